"""Values to bytes and back, without a bus."""

import contextlib
import datetime
import decimal
import enum
import json
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vbus import ConfigError, DecodeError, EncodeError, register_codec
from vbus.codec import codec_for

TOPIC = "a/b"


@dataclass
class Pose:
    x: float
    y: float = 0.0


@dataclass
class Detection:
    label: str
    score: float
    pose: Pose | None = None


@dataclass
class Frame:
    image: np.ndarray
    masks: dict[str, np.ndarray]
    id: int


@dataclass
class Single:
    data: NDArray[np.float32]


@dataclass
class Tree:
    value: int
    children: "list[Tree]" = field(default_factory=list)


@dataclass
class Start:
    speed: int


@dataclass
class Stop:
    why: str


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Options(TypedDict):
    a: int
    b: NotRequired[str]


class Point(NamedTuple):
    x: int
    y: int = 3


class Command(msgspec.Struct):
    name: str
    arguments: list[int] = []


def sent(type_, value):
    """Encoding, payload and meta, as they cross the bus."""
    encoded = codec_for(type_, TOPIC).encoder(value)
    encoding, buffers, meta = ("msgpack", (encoded,), b"") if isinstance(encoded, bytes) else encoded
    return encoding, memoryview(b"".join(bytes(buffer) for buffer in buffers)), meta


def received(type_, message):
    return codec_for(type_, TOPIC).decoder(*message)


def trip(type_, value, reader=...):
    return received(type_ if reader is ... else reader, sent(type_, value))


NOW = datetime.datetime(2026, 5, 4, 3, 2, 1, 123456, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (bool, True),
        (int, -5),
        (int, 2**64 - 1),
        (float, 1.5),
        (str, "grüße"),
        (bytes, b"\0\xff"),
        (None, None),
        (type(None), None),
        (int | None, None),
        (int | str, "x"),
        (str | bytes, b"x"),
        (Literal["a", 1], 1),
        (list[int], [1, 2]),
        (dict[str, Pose], {"k": Pose(1.0, 2.0)}),
        (dict[int, str], {1: "a"}),
        (tuple[int, str], (1, "a")),
        (tuple[int, ...], (1, 2, 3)),
        (set[int], {1, 2}),
        (Detection, Detection("cat", 0.5, Pose(1.0))),
        (Tree, Tree(1, [Tree(2), Tree(3, [Tree(4)])])),
        (Colour, Colour.BLUE),
        (Options, {"a": 1}),
        (Point, Point(1)),
        (Command, Command("go", [1])),
        (Start | Stop, Stop("tired")),
        (Start | Stop, Start(3)),
        (list[Start | Stop | None], [Start(3), None, Stop("x")]),
        (datetime.datetime, NOW),
        (datetime.datetime, NOW.replace(tzinfo=None)),
        (datetime.date, NOW.date()),
        (datetime.timedelta, datetime.timedelta(seconds=1.5)),
        (uuid.UUID, uuid.UUID(int=5)),
        (decimal.Decimal, decimal.Decimal("1.10")),
        (Annotated[int, "metres"], 5),
        (Any, {"a": [1, None]}),
    ],
)
def test_typed_values_come_back_as_they_were(type_, value):
    back = trip(type_, value)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        7,
        -1.5,
        "text",
        b"bytes",
        [1, [2]],
        {"a": {"b": None}},
        {1: "int key"},
        {(1, 2): "tuple key"},
        NOW,
    ],
)
def test_values_without_a_type_come_back_as_they_were(value):
    assert trip(None, value) == value


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Detection("cat", 1.0), {"label": "cat", "score": 1.0, "pose": None}),
        ((1, 2), [1, 2]),
        (Point(1, 2), [1, 2]),
        (Colour.RED, "red"),
        (uuid.UUID(int=5), str(uuid.UUID(int=5))),
        (Command("go"), {"name": "go", "arguments": []}),
        ({1}, [1]),
        (np.float32(1.5), 1.5),
        ({"n": np.int16(5), "b": np.bool_(True)}, {"n": 5, "b": True}),
        (bytearray(b"abc"), b"abc"),
        (memoryview(b"abcdef")[::2], b"ace"),
    ],
)
def test_without_a_type_things_become_the_plain_values_they_consist_of(value, plain):
    back = trip(None, value)
    assert back == plain
    assert type(back) is type(plain)


def test_a_typed_sample_is_plain_for_a_reader_without_a_type():
    frame = Frame(np.ones((2, 3), "u1"), {"m": np.zeros(4)}, 7)
    back = trip(Frame, frame, None)
    assert list(back) == ["image", "masks", "id"]
    assert back["image"].shape == (2, 3)
    assert back["masks"]["m"].dtype == np.float64
    assert trip(None, {"image": frame.image, "masks": {}, "id": 1}, Frame).id == 1


ARRAYS = [
    np.arange(6, dtype="f4").reshape(2, 3),
    np.zeros((0, 3)),
    np.array(5, "i8"),
    np.arange(12).reshape(3, 4).T,
    np.arange(10, dtype="u1")[::3],
    np.array(["2020-01-01", "NaT"], "M8[D]"),
    np.array(["a", "bcd"]),
    np.array([b"ab", b"c"]),
    np.array([1 + 2j]),
    np.array([True, False]),
    np.arange(3, dtype=">i2"),
    np.array([(1, [0.5, 1.5])], dtype=[("a", "<i4"), ("b", "<f8", (2,))]),
    np.zeros(2, np.dtype([("x", "u1"), ("y", "<f8")], align=True)),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: str(array.dtype)[:20])
@pytest.mark.parametrize("type_", [None, np.ndarray])
def test_arrays_come_back_equal_and_read_only(array, type_):
    encoding, payload, meta = sent(type_, array)
    back = received(type_, (encoding, payload, meta))
    assert encoding == "ndarray"
    assert (back.shape, back.dtype) == (array.shape, array.dtype)
    assert back.tobytes() == np.ascontiguousarray(array).tobytes()
    assert not back.flags.writeable


def test_arrays_inside_values_are_aligned_views_of_the_payload():
    frame = Frame(np.arange(7, dtype="u1"), {"a": np.arange(3.0), "empty": np.zeros((0, 2))}, 1)
    encoding, payload, meta = sent(Frame, frame)
    # The payload of the bus begins at a multiple of 64; here it is put there by hand.
    room = np.zeros(len(payload) + 64, "u1")
    start = -room.ctypes.data % 64
    room[start : start + len(payload)] = np.frombuffer(payload, "u1")
    room.flags.writeable = False
    back = received(Frame, (encoding, memoryview(room)[start : start + len(payload)], meta))
    for array in (back.image, back.masks["a"]):
        assert np.shares_memory(array, room)
        assert array.ctypes.data % 64 == 0
        assert not array.flags.writeable
    assert (back.masks["a"] == frame.masks["a"]).all()
    assert back.masks["empty"].shape == (0, 2)


@pytest.mark.parametrize("type_", [list[np.ndarray | int], dict[str, np.ndarray | None]])
def test_arrays_may_stand_in_unions(type_):
    value = [np.arange(3), 5] if type_ == list[np.ndarray | int] else {"a": np.arange(3), "b": None}
    back = trip(type_, value)
    first = back[0] if isinstance(back, list) else back["a"]
    assert (first == np.arange(3)).all()


@pytest.mark.parametrize(
    ("type_", "value", "where", "words"),
    [
        (Detection, Detection("cat", "high"), "score", ["float", "'high'"]),
        (Detection, Detection("cat", 1.0, Pose("left")), "pose.x", ["float", "'left'"]),
        (Detection, {"label": "cat", "score": 1.0}, None, ["Detection", "dict"]),
        (Detection, None, None, ["Detection", "None"]),
        (list[Pose], [Pose(1), Pose(None)], "[1].x", ["float"]),
        (int, True, None, ["int", "True"]),
        (int, 1.5, None, ["int", "1.5"]),
        (int, "5", None, ["int", "'5'"]),
        (bytes, "text", None, ["bytes", "'text'"]),
        (str, b"bytes", None, ["str"]),
        (Literal["a", "b"], "c", None, ["'a'", "'b'", "'c'"]),
        (Colour, "red", None, ["Colour", "'red'"]),
        (uuid.UUID, "not one", None, ["UUID"]),
        (Start | Stop, Start("fast"), "speed", ["int", "'fast'"]),
        (Options, {"b": "x"}, "a", ["'a'", "int", "missing"]),
        (np.ndarray, [1, 2], None, ["ndarray"]),
        (NDArray[np.float32], np.zeros(2), None, ["float32"]),
        (Single, Single(np.zeros(2)), "data", ["float32"]),
        (int, 2**70, None, ["1180591620717411303424"]),
        (str, "\ud800", None, ["a/b"]),
        (None, object(), None, ["object"]),
        (None, np.array([object()]), None, ["object"]),
        (None, {"a": np.array([object()])}, "['a']", ["object"]),
        (None, np.ma.masked_array([1], [True]), None, ["mask"]),
        (None, 2**70, None, ["1180591620717411303424"]),
        (Annotated[int, msgspec.Meta(ge=3)], 2, None, [">= 3"]),
    ],
)
def test_a_wrong_value_is_an_encode_error_with_topic_field_and_expectation(type_, value, where, words):
    with pytest.raises(EncodeError) as caught:
        sent(type_, value)
    assert (caught.value.topic, caught.value.field) == (TOPIC, where)
    for word in [TOPIC, *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("value", "reader", "where", "words"),
    [
        ({"label": 5, "score": 1.0}, Detection, "label", ["str", "5"]),
        ({"label": "cat"}, Detection, "score", ["no field 'score'", "float"]),
        ({"label": "c", "score": 1, "pose": {"x": "l"}}, Detection, "pose.x", ["float", "'l'"]),
        ([1, 2], Detection, None, ["Detection"]),
        (b"raw", Detection, None, ["Detection", "bytes"]),
        (np.zeros(3), Detection, None, ["Detection"]),
        (np.zeros(3), NDArray[np.float32], None, ["float32"]),
        (1.5, int, None, ["int", "1.5"]),
        ("green", Colour, None, ["Colour", "'green'"]),
        ({"x": 1}, Start | Stop, None, ["Start", "Stop"]),
        ("x", bytes, None, ["bytes"]),
        ([1], np.ndarray, None, ["ndarray"]),
    ],
)
def test_a_sample_that_does_not_fit_is_a_decode_error_with_topic_field_and_expectation(
    value, reader, where, words
):
    with pytest.raises(DecodeError) as caught:
        trip(None, value, reader)
    assert (caught.value.topic, caught.value.field) == (TOPIC, where)
    for word in [TOPIC, *words]:
        assert word in str(caught.value)


def test_types_that_differ_but_agree_understand_each_other():
    @dataclass
    class Newer:
        label: str
        score: float
        extra: int = 5

    @dataclass
    class Older:
        label: str

    assert trip(Detection, Detection("cat", 1), Newer) == Newer("cat", 1.0, 5)
    assert trip(Detection, Detection("cat", 1), Older) == Older("cat")
    assert trip(int, 3, float) == 3.0
    assert trip(tuple[int, int], (1, 2), list[float]) == [1.0, 2.0]
    assert trip(bytes | None, b"x", bytes) == b"x"
    assert trip(bytes, b"x", bytes | None) == b"x"
    assert trip(np.ndarray | None, np.arange(2), np.ndarray).tolist() == [0, 1]
    assert trip(np.ndarray, np.arange(2), np.ndarray | None).tolist() == [0, 1]


def test_of_two_alternatives_that_fit_the_nearer_is_built():
    @dataclass
    class Small:
        x: int

    @dataclass
    class Large:
        x: int
        y: int

    assert trip(Small | Large, Large(1, 2)) == Large(1, 2)
    assert trip(Large | Small, Small(1)) == Small(1)


@pytest.mark.parametrize("type_", [object(), complex, {}, list[complex], Callable := type(lambda: 0)])
def test_a_type_that_cannot_travel_is_refused_with_a_hint(type_):
    with pytest.raises(ConfigError, match="register_codec"):
        codec_for(type_, TOPIC)


@pytest.mark.parametrize("type_", ["int", list["int"]])
def test_the_name_of_a_type_is_no_type(type_):
    with pytest.raises(ConfigError, match="give the type itself"):
        codec_for(type_, TOPIC)


HOSTILE = [
    b"",
    b"\xc1",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\x91" * 100_000,
    b"\x81\x01" * 100_000,
    b"\x81\x80\x01",
    b"\xa2\xff\xff",
    b"\x01\x02",
    b"\xd6\xff\xff\xff\xff\xff\xff",
    b"\xc7\x0c\xff" + b"\xff" * 12,
    b"\xc7\x03\x01abc",
    b"\xc7\x06\x010 3 <f",
]


@pytest.mark.parametrize("payload", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("type_", [None, Detection, list[int], Tree, Start | Stop, np.ndarray, Frame])
@pytest.mark.parametrize("meta", [b"", b"5", b"-1", b"x", b"999999999999999999999", b"0"])
def test_hostile_bytes_are_decode_errors(type_, payload, meta):
    with pytest.raises(DecodeError):
        received(type_, ("msgpack", memoryview(payload), meta))


@pytest.mark.parametrize(
    "meta",
    [
        b"",
        b"3",
        b"3 ",
        b"3 |O",
        b"3 O",
        b"-1 <f4",
        b"x <f4",
        b"99999999999999999999 <f4",
        b"3 <f4",
        b"3 <f99",
        b'1 [["a"]]',
        b"1 [[[[[",
        b'1 [["a","|O"]]',
        b"1 {}",
        b"\xff 4",
        b"1x" * 100 + b"1 <f4",
        b"3 (3,)u1",
        b"12 V1,V1",
    ],
)
def test_hostile_descriptions_of_arrays_are_decode_errors(meta):
    with pytest.raises(DecodeError):
        received(None, ("ndarray", memoryview(b"0" * 11), meta))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.binary(max_size=12))
def test_any_bytes_are_a_value_or_a_decode_error(payload, meta):
    for type_ in (None, Detection, Frame, Start | Stop):
        for encoding in ("msgpack", "ndarray", "raw"):
            with contextlib.suppress(DecodeError):
                received(type_, (encoding, memoryview(payload), meta))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(json_values)
def test_every_plain_value_comes_back(value):
    assert trip(None, value) == value


def test_an_unknown_encoding_says_which_codec_is_missing():
    with pytest.raises(DecodeError, match="'cbor'"):
        received(None, ("cbor", memoryview(b""), b""))


class Temperature:
    def __init__(self, kelvin):
        self.kelvin = kelvin


def test_a_registered_codec_serves_with_and_without_a_type():
    register_codec(
        Temperature,
        name="kelvin",
        encode=lambda value: str(value.kelvin).encode(),
        decode=lambda payload: Temperature(float(bytes(payload))),
    )
    assert sent(Temperature, Temperature(3))[0] == "kelvin"
    assert trip(Temperature, Temperature(3)).kelvin == 3.0
    assert trip(None, Temperature(3)).kelvin == 3.0
    with pytest.raises(EncodeError):
        sent(Temperature, 3)
    with pytest.raises(DecodeError):
        received(Temperature, ("kelvin", memoryview(b"warm"), b""))
    with pytest.raises(DecodeError):
        received(Temperature, ("raw", memoryview(b"3"), b""))
    for type_, name in (
        (Temperature, "celsius"),
        (Pose, "kelvin"),
        (Pose, "raw"),
        (bytes, "mine"),
        (Pose, ""),
    ):
        with pytest.raises(ConfigError):
            register_codec(type_, name=name, encode=bytes, decode=bytes)


def test_raw_bytes_need_neither_numpy_nor_a_messagepack_library():
    script = """
import json, sys
from vbus.codec import codec_for
for type_ in (None, bytes):
    codec = codec_for(type_, "a/b")
    assert codec.raw and bytes(codec.encoder(b"x")[1][0]) == b"x"
heavy = ("numpy", "msgspec", "msgpack", "asyncio", "logging", "dataclasses")
print(json.dumps([name for name in heavy if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert json.loads(done.stdout) == []
