"""Types and encodings as the documentation promises them, through a node."""

import collections.abc
import copy
import dataclasses
import datetime
import decimal
import enum
import logging
import pickle
import subprocess
import sys
import textwrap
import uuid
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, NamedTuple, NotRequired, TypedDict, TypeVar

import msgspec
import numpy as np
import pytest
from helpers import until
from numpy.typing import NDArray

import vbus

T = TypeVar("T")


@dataclass
class Pose:
    x: float
    y: float = 0.0


@dataclass
class Frame:
    image: np.ndarray
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    id: int = 0


@dataclass
class Box(Generic[T]):
    content: T


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Options(TypedDict):
    speed: int
    why: NotRequired[str]


class Point(NamedTuple):
    x: int
    y: int = 3


class Command(msgspec.Struct, tag="command"):
    name: str


class Query(msgspec.Struct, tag="query"):
    name: str


def over(node, type_, value, reader=...):
    """The sample of a value that went over the bus."""
    reader = type_ if reader is ... else reader
    with node.subscriber("t", reader) as subscriber, node.publisher("t", type_) as publisher:
        publisher.publish(value)
        return subscriber.receive(5)


# ---- without a type -------------------------------------------------------------------------------


@pytest.mark.contract(
    "`type=None` is self-describing: bytes-like is sent raw (and read as `bytes`, a copy; `payload` is the "
    "view), a numpy array with its dtype and shape",
    '`encoding` is `"raw"`, `"msgpack"`, `"ndarray"` or a codec\'s name',
)
@pytest.mark.parametrize(
    ("value", "encoding", "back"),
    [
        (b"abc", "raw", b"abc"),
        (bytearray(b"abc"), "raw", b"abc"),
        (memoryview(b"abcdef")[::2], "raw", b"ace"),
        ({"a": [1, None, 2.5, b"x"]}, "msgpack", {"a": [1, None, 2.5, b"x"]}),
        ("text", "msgpack", "text"),
        (None, "msgpack", None),
        ((1, 2), "msgpack", [1, 2]),
        (np.float32(0.5), "msgpack", 0.5),
    ],
)
def test_without_a_type_a_sample_says_what_it_is(node, value, encoding, back):
    sample = over(node, None, value)
    assert (sample.encoding, sample.value, type(sample.value)) == (encoding, back, type(back))
    if encoding == "raw":
        assert sample.payload == back
        assert sample.payload.readonly


@pytest.mark.contract("A subscriber with `type=None` decodes by what arrived")
@pytest.mark.parametrize(
    ("type_", "value", "plain"),
    [
        (Pose, Pose(1.0), {"x": 1.0, "y": 0.0}),
        (list[Pose], [Pose(1.0, 2.0)], [{"x": 1.0, "y": 2.0}]),
        (str, "x", "x"),
        (int, 7, 7),
        (bytes, b"x", b"x"),
        (Colour, Colour.RED, "red"),
        (Point, Point(1), [1, 3]),
    ],
)
def test_without_a_type_one_gets_plain_values_of_typed_samples(node, type_, value, plain):
    sample = over(node, type_, value, None)
    assert (sample.value, type(sample.value)) == (plain, type(plain))


def test_without_a_type_one_gets_the_arrays_of_typed_samples(node):
    value = over(node, Frame, Frame(np.ones((2, 2)), {"a": np.arange(3)}), None).value
    assert list(value) == ["image", "masks", "id"]
    assert value["image"].tolist() == [[1, 1], [1, 1]]
    assert value["masks"]["a"].tolist() == [0, 1, 2]


# ---- with a type ----------------------------------------------------------------------------------


@pytest.mark.contract(
    "With a type, values are checked on both sides: `bytes`, `str`, `int`, `float`, `bool`, `None`, unions"
)
@pytest.mark.parametrize(
    ("type_", "value", "wrong"),
    [
        (bytes, b"x", "x"),
        (str, "x", b"x"),
        (int, 1, "1"),
        (float, 1.5, "1.5"),
        (bool, True, 1),
        (type(None), None, 0),
        (int | str, "x", 1.5),
        (Literal["a", 1], "a", "b"),
        (list[int], [1], ["1"]),
        (dict[str, int], {"a": 1}, {"a": "1"}),
        (tuple[int, str], (1, "x"), (1, 2)),
        (tuple[int, ...], (1, 2, 3), (1, "2")),
        (Pose, Pose(1.0), Pose("left")),
        (Box[int], Box(1), Box("one")),
        (Options, {"speed": 1}, {"why": "x"}),
        (Point, Point(1), Point("one")),
        (Colour, Colour.RED, "red"),
        (datetime.datetime, datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), "2026-01-02"),
        (datetime.datetime, datetime.datetime(2026, 1, 2, 3, 4, 5, 6), 5),
        (uuid.UUID, uuid.UUID(int=5), str(uuid.UUID(int=5))),
        (decimal.Decimal, decimal.Decimal("1.10"), [1]),
        (Command, Command("go"), Query("go")),
        (Command | Query, Query("who"), {"name": "who"}),
        (Annotated[int, msgspec.Meta(ge=3)], 3, 2),
    ],
)
def test_a_type_is_checked_when_publishing_and_when_reading(node, type_, value, wrong):
    back = over(node, type_, value).value
    assert (back, type(back)) == (value, type(value))
    with pytest.raises(vbus.EncodeError) as caught:
        over(node, type_, wrong)
    assert caught.value.topic == "t"
    if (type_, wrong) not in READ_ALL_THE_SAME:
        sample = over(node, None, wrong, type_)
        with pytest.raises(vbus.DecodeError) as refused:
            sample.value  # noqa: B018
        assert refused.value.topic == "t"


READ_ALL_THE_SAME = [
    (Colour, "red"),  # what they look like on the wire
    (datetime.datetime, "2026-01-02"),
    (uuid.UUID, str(uuid.UUID(int=5))),
]


@pytest.mark.contract(
    "a missing field needs a default, unknown fields are ignored, int serves for float; numpy scalars become "
    "numbers, tuples lists"
)
def test_two_versions_of_a_type_talk(node):
    @dataclass
    class Older:
        x: float

    @dataclass
    class Newer:
        x: float
        label: str = "none"

    assert over(node, Older, Older(1), Newer).value == Newer(1.0)
    assert over(node, Newer, Newer(1, "a"), Older).value == Older(1.0)
    assert type(over(node, Older, Older(1), Older).value.x) is float
    assert over(node, list[float], (np.float32(1.5), 2)).value == [1.5, 2.0]
    assert over(node, Older, Older(np.int16(3)), Older).value == Older(3.0)


@pytest.mark.contract("Types are compared by shape and field names, never by class name")
def test_types_of_other_names_are_the_same_type(node):
    @dataclass
    class Position:
        x: float
        y: float = 0.0

    with node.publisher("t", Pose) as publisher, node.subscriber("t", Position) as subscriber:
        assert (publisher.subscribers, subscriber.publishers) == (1, 1)
        publisher.publish(Pose(1.0))
        assert subscriber.receive(5).value == Position(1.0)


@pytest.mark.contract(
    "Types agree if some value fits both (`int | None` and `int` do; a value that fits only one is "
    "`EncodeError` or `DecodeError`); `None` agrees with every type"
)
def test_types_agree_if_some_value_fits_both(node):
    assert over(node, int | None, 5, int).value == 5
    with pytest.raises(vbus.DecodeError, match="expected int"):
        over(node, int | None, None, int).value  # noqa: B018
    with pytest.raises(vbus.EncodeError, match="must be int"):
        over(node, int, None, int | None)
    for type_ in (int, Pose, np.ndarray, None):
        with node.publisher("t", type_) as publisher, node.subscriber("t"):
            assert publisher.subscribers == 1
        with node.publisher("t") as publisher, node.subscriber("t", type_):
            assert publisher.subscribers == 1


@pytest.mark.contract(
    "Wrong value: `EncodeError` / `DecodeError`, naming topic, field and expectation",
)
def test_a_wrong_value_is_named_by_topic_field_and_expectation(node):
    @dataclass
    class Track:
        poses: list[Pose]

    with node.publisher("a/b", Track) as publisher:
        with pytest.raises(vbus.EncodeError) as caught:
            publisher.publish(Track([Pose(1.0), Pose("left")]))
        assert (caught.value.topic, caught.value.field) == ("a/b", "poses[1].x")
        assert "'a/b'" in str(caught.value)
        assert "must be float, not str 'left'" in str(caught.value)
        with pytest.raises(vbus.EncodeError, match=r"'poses\[0\].y' must be .* 64 bits") as caught:
            publisher.publish(Track([Pose(1.0, 2**64)]))
        assert caught.value.field == "poses[0].y"
    with node.subscriber("a/b", Track) as subscriber, node.publisher("a/b") as publisher:
        publisher.publish({"poses": [{"x": "left"}]})
        sample = subscriber.receive(5)
        with pytest.raises(vbus.DecodeError) as caught:
            sample.value  # noqa: B018
        assert (caught.value.topic, caught.value.field) == ("a/b", "poses[0].x")
        assert "expected float" in str(caught.value)


@pytest.mark.contract(
    "A publisher and a subscriber whose types cannot agree are not connected; both log it once, and "
    "`topics()` shows it",
    'where `field` is `"type"`, a dotted field of the type, or a quality of service (which still connect)',
)
@pytest.mark.parametrize(
    ("offered", "asked", "where"),
    [(int, str, "type"), (Box[Pose], Box[Box[int]], "content.content"), (Pose, Options, "speed")],
)
def test_types_that_cannot_agree_are_not_connected_and_shown(join, caplog, offered, asked, where):
    one, other = join("one"), join("other")
    caplog.set_level(logging.INFO, "vbus")
    with one.publisher("t", offered) as publisher, other.subscriber("t", asked) as subscriber:
        assert (publisher.subscribers, subscriber.publishers) == (0, 0)
        for node in (one, other):
            until(lambda node=node: node.topics() and node.topics()[0].mismatches, "the mismatch is shown")
            (mismatch,) = node.topics()[0].mismatches
            assert (mismatch.publisher, mismatch.subscriber) == (publisher.id, subscriber.id)
            assert mismatch.field == where
        until(lambda: len(told_apart(caplog)) == 2, "both log it")
        one.publisher("another", offered).close()
    one.close()
    other.close()
    assert len(told_apart(caplog)) == 2, "and once"


def told_apart(caplog):
    return [record for record in caplog.records if "differ in" in record.getMessage()]


@pytest.mark.contract(
    "`type: TypeForm[T]` (so `int | None`, `Literal`, `Annotated` work",
)
@pytest.mark.parametrize("type_", [int | None, Literal["a", "b"], Annotated[int, "metres"], list[int | str]])
def test_type_forms_are_types(node, type_):
    with node.publisher(vbus.Channel("t", type_)) as publisher:
        assert publisher.topic == "t"
    with node.subscriber(vbus.Channel("t", type_)) as subscriber:
        assert subscriber.topic == "t"


def test_an_init_var_is_refused_because_it_would_be_lost(node):
    @dataclass
    class Scaled:
        size: int
        scale: dataclasses.InitVar[int] = 2

    with pytest.raises(vbus.ConfigError, match="'scale' is an InitVar"):
        node.publisher("t", Scaled)


def test_a_value_that_would_arrive_as_another_alternative_is_refused(node):
    for type_, value in ((datetime.date | str, "2026-01-02"), (uuid.UUID | str, str(uuid.UUID(int=1)))):
        with pytest.raises(vbus.EncodeError, match="does not read as"):
            over(node, type_, value)
    assert over(node, datetime.date | str, "tomorrow").value == "tomorrow"


# ---- arrays ---------------------------------------------------------------------------------------

ARRAYS = [
    np.arange(6, dtype="f4").reshape(2, 3),
    np.array(5, "i8"),
    np.zeros((0, 3)),
    np.arange(12).reshape(3, 4).T,
    np.arange(3, dtype=">i2"),
    np.array([True, False]),
    np.array([1 + 2j]),
    np.array(["2020-01-01", "NaT"], "M8[D]"),
    np.array([(1, [0.5, 1.5])], dtype=[("a", "<i4"), ("b", "<f8", (2,))]),
]


@pytest.mark.contract(
    "Over shared memory `payload` and ndarray values, also inside a dataclass or dict (64-byte aligned), "
    "are views",
    "`payload` is a read-only memoryview (of an ndarray: its bytes)",
)
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: str(array.dtype)[:12])
def test_arrays_arrive_as_read_only_views_of_the_payload(node, array):
    plain = over(node, np.ndarray, array)
    assert plain.encoding == "ndarray"
    assert plain.payload == np.ascontiguousarray(array).tobytes()
    framed = over(node, Frame, Frame(array, {"a": array}))
    listed = over(node, None, {"a": array})
    found = [(plain, plain.value), (framed, framed.value.image), (framed, framed.value.masks["a"])]
    for sample, back in [*found, (listed, listed.value["a"])]:
        assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, array.shape, array.tobytes())
        assert not back.flags.writeable
        if back.nbytes:
            assert np.shares_memory(back, np.frombuffer(sample.payload, "u1"))
            assert back.ctypes.data % 64 == 0


@pytest.mark.contract(
    "They stay valid and unchanged for as long as anything refers to them",
    "`release()`, or leaving `with sample:`, gives the memory back at once unless a view of it lives",
)
def test_a_view_keeps_the_memory_after_release_and_the_end_of_its_node(join):
    node, reader = join("one"), join("two")
    with node.publisher("t", Frame) as publisher, reader.subscriber("t", Frame) as subscriber:
        publisher.publish(Frame(np.arange(1000)))
        sample = subscriber.receive(5)
        image = sample.value.image
        part = image[10:20]
        sample.release()
        assert subscriber.stats().held == 1
        with pytest.raises(vbus.Closed):
            sample.value  # noqa: B018
        for _ in range(200):
            publisher.publish(Frame(np.zeros(1000, int)))
            subscriber.receive(5).release()
        del image, sample
        assert subscriber.stats().held == 1
    node.close()
    reader.close()
    assert part.tolist() == list(range(10, 20))


def test_objects_and_masks_do_not_travel_and_the_field_is_named(node):
    for array in (np.array([object()]), np.ma.masked_array([1], [True])):
        for type_, value, where in (
            (np.ndarray, array, None),
            (Frame, Frame(array), "image"),
            (None, {"a": array}, "['a']"),
        ):
            with pytest.raises(vbus.EncodeError, match=r"object|mask") as caught:
                over(node, type_, value)
            assert caught.value.field == where


@pytest.mark.contract("Only for types `None`, `bytes`, `ndarray`")
@pytest.mark.parametrize(
    ("type_", "loan", "loan_array"),
    [
        (None, True, True),
        (bytes, True, False),
        (np.ndarray, False, True),
        (NDArray[np.uint8], False, True),
        (int, False, False),
        (Frame, False, False),
        (bytes | None, False, False),
    ],
)
def test_loans_are_for_types_whose_memory_is_the_value(node, type_, loan, loan_array):
    with node.publisher("t", type_) as publisher:
        for allowed, borrow in (
            (loan, lambda: publisher.loan(8)),
            (loan_array, lambda: publisher.loan_array(8, "u1")),
        ):
            if allowed:
                with borrow():
                    pass
            else:
                with pytest.raises(vbus.ConfigError, match="loan"):
                    borrow()


def test_a_loaned_array_has_the_dtype_of_the_type(node):
    with node.publisher("t", NDArray[np.uint8]) as publisher:
        with pytest.raises(vbus.EncodeError, match="float64"), publisher.loan_array(3):
            pass
        with publisher.loan_array(3, "u1") as array:
            array[:] = 1


# ---- codecs ---------------------------------------------------------------------------------------


class Temperature:
    def __init__(self, kelvin):
        self.kelvin = kelvin

    def __eq__(self, other):
        return self.kelvin == other.kelvin

    __hash__ = None


class Unregistered:
    pass


vbus.register_codec(
    Temperature,
    name="encodings/kelvin",
    encode=lambda value: str(value.kelvin).encode(),
    decode=lambda payload: Temperature(float(bytes(payload))),
)


@pytest.mark.contract(
    "`vbus.register_codec(type, *, name, encode, decode)`",
    "process-wide; a second codec of that name or type is `ConfigError`",
)
def test_a_registered_codec_serves_the_whole_process(node):
    for type_ in (Temperature, None):
        for reader in (Temperature, None):
            sample = over(node, type_, Temperature(3.5), reader)
            assert sample.value == Temperature(3.5)
            assert sample.encoding == "encodings/kelvin"
    for type_, name in ((Temperature, "another"), (Unregistered, "encodings/kelvin")):
        with pytest.raises(vbus.ConfigError, match="already"):
            vbus.register_codec(type_, name=name, encode=bytes, decode=bytes)


def test_a_codec_is_for_whole_samples_and_a_type_with_one_inside_says_so(node):
    with pytest.raises(vbus.ConfigError, match="whole samples"):
        node.publisher("t", Box[Temperature])
    with pytest.raises(vbus.EncodeError, match="Temperature") as caught:
        over(node, None, {"a": [Temperature(1)]})
    assert caught.value.field == "['a'][0]"


def test_topics_name_the_codec_of_what_was_published(join):
    near, far = join("near"), join("far")
    with near.publisher("typed", Temperature) as typed, near.publisher("free") as free:
        typed.publish(Temperature(1))
        free.publish(Temperature(1))
        expected = dict.fromkeys(("typed", "free"), "encodings/kelvin")
        for node in (near, far):
            until(lambda node=node: encodings(node) == expected, "both are named")
        free.publish(b"")
        assert encodings(far)["free"] == "raw"


def encodings(node):
    return {info.topic: info.encoding for info in node.topics()}


def test_a_reader_without_the_codec_is_told_its_name(node, domain, meeting):
    with node.publisher("t", history=1) as publisher:
        publisher.publish(Temperature(1))
        script = """
        import vbus
        with vbus.Node() as node, node.subscriber("t") as subscriber:
            sample = subscriber.receive(10)
            print(sample.encoding)
            try:
                sample.value
            except vbus.DecodeError as error:
                print(error)
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            env={"VBUS_DOMAIN": domain, "VBUS_SHM": meeting},
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    encoding, words = done.stdout.splitlines()
    assert encoding == "encodings/kelvin"
    assert "'encodings/kelvin'" in words
    assert "register a codec" in words


def test_a_codec_that_raises_is_an_encode_or_decode_error_with_its_name(node):
    with pytest.raises(vbus.EncodeError, match="must be Temperature"):
        over(node, Temperature, 5)

    class Odd:
        pass

    vbus.register_codec(Odd, name="encodings/odd", encode=lambda value: 1 / 0, decode=lambda payload: 1 / 0)
    with pytest.raises(vbus.EncodeError, match="encodings/odd"):
        over(node, Odd, Odd())
    with node.publisher("t") as publisher, node.subscriber("t") as subscriber:
        publisher.publish(Temperature("warm"))
        with pytest.raises(vbus.DecodeError, match="encodings/kelvin"):
            subscriber.receive(5).value  # noqa: B018


@pytest.mark.contract("Pickle is never used")
def test_nothing_that_travels_is_pickled(monkeypatch, node):
    def never(*_arguments, **_keywords):
        raise AssertionError("pickled")

    monkeypatch.setattr(Unregistered, "__reduce_ex__", never)
    for type_, value in (
        (None, Unregistered()),
        (Any, Unregistered()),
        (None, {"a": np.array([Unregistered()])}),
    ):
        with pytest.raises(vbus.EncodeError):
            over(node, type_, value)


# ---- channels, and what cannot be pickled ----------------------------------------------------------

CHANNELS = [
    vbus.Channel("a/b"),
    vbus.Channel("a/b", Pose, depth=3, on_full="error"),
    vbus.Channel("a/*", int | None),
    vbus.Channel("a", Annotated[int, "metres"]),
    vbus.Channel("a", list[Pose]),
    vbus.Channel("a", Box[int]),
    vbus.Channel("a", Literal["x"]),
    vbus.Channel("a", np.ndarray),
]


@pytest.mark.contract("`vbus.Channel[T](topic, type=None, **qos)`: frozen, hashable, picklable")
@pytest.mark.parametrize("channel", CHANNELS, ids=repr)
def test_a_channel_is_frozen_hashable_picklable_with_its_type(channel):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        back = pickle.loads(pickle.dumps(channel, protocol))  # noqa: S301, just dumped
        assert (back, hash(back), back.type, back.qos) == (channel, hash(channel), channel.type, channel.qos)
    assert copy.copy(channel) == copy.deepcopy(channel) == channel
    with pytest.raises(AttributeError, match="frozen"):
        channel.topic = "b"
    with pytest.raises(AttributeError, match="frozen"):
        del channel.type


@pytest.mark.contract(
    "None of them, nor Sample, can be pickled (`TypeError` that says: open a node in the worker)"
)
def test_what_belongs_to_a_process_is_neither_pickled_nor_copied(node):
    with node.publisher("t") as publisher, node.subscriber("t") as subscriber:
        publisher.publish(1)
        loan, array = publisher.loan(5), publisher.loan_array(5)
        for one in (node, publisher, subscriber, subscriber.receive(5), loan, array):
            for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(TypeError, match="open a node in the worker"):
                    attempt(one)
        loan.discard()


def test_an_error_while_looking_for_words_hides_nothing(node):
    class Sulky(collections.abc.Mapping):
        def __len__(self):
            return 1

        def __iter__(self):
            raise ValueError("not now")

        def __getitem__(self, key):
            raise ValueError("not now")

    for type_ in (None, Any):
        with pytest.raises(vbus.EncodeError, match="'t'"):
            over(node, type_, {"a": Sulky()})
