"""Encodings against chance: what is sent comes back, what agrees can be read, and no bytes do harm."""

import contextlib
import dataclasses
import datetime
import decimal
import enum
import tracemalloc
import uuid
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vbus import DecodeError, EncodeError, _vbus
from vbus.codec import codec_for, shape_of

TOPIC = "a/b"
SETTINGS = settings(deadline=None, suppress_health_check=list(HealthCheck))


def sent(type_, value):
    """Encoding, payload and meta, as they cross the bus."""
    encoded = codec_for(type_, TOPIC).encoder(value)
    encoding, buffers, meta = ("msgpack", (encoded,), b"") if isinstance(encoded, bytes) else encoded
    return encoding, memoryview(b"".join(bytes(buffer) for buffer in buffers)), meta


def read(type_, message):
    """The value in a message, also by the short way if there is one, which must find the same."""
    encoding, payload, meta = message
    codec = codec_for(type_, TOPIC)
    value = codec.decoder(encoding, payload, meta)
    if codec.quick is not None and encoding == "msgpack" and not meta:
        assert same(codec.quick(payload), value)
    return value


def same(one, other):
    """Equal to the last class, arrays by dtype, shape and bytes."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if dataclasses.is_dataclass(one):
        return same(vars(one), vars(other))
    return one == other


# ---- round trips ----------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"
    ONE = 1


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Options(TypedDict):
    speed: int
    why: NotRequired[str]


class Point(NamedTuple):
    x: float
    y: int = 3


class Start(msgspec.Struct, tag=True):
    speed: int


class Stop(msgspec.Struct, tag=True):
    why: str | None = None


@dataclass
class Tree:
    value: int
    children: "list[Tree]" = field(default_factory=list)


ints = st.integers(-(2**63), 2**64 - 1)
words = st.text(max_size=8)
moments = st.datetimes(timezones=st.none() | st.just(datetime.UTC))
arrays = hnp.arrays(
    hnp.boolean_dtypes()
    | hnp.integer_dtypes()
    | hnp.floating_dtypes()
    | hnp.complex_number_dtypes()
    | hnp.datetime64_dtypes()
    | hnp.unicode_string_dtypes(max_len=4),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
LEAVES = [
    (bool, st.booleans()),
    (int, ints),
    (float, st.floats(allow_nan=False)),
    (str, words),
    (bytes, st.binary(max_size=8)),
    (type(None), st.none()),
    (datetime.datetime, moments),
    (datetime.date, st.dates()),
    (datetime.timedelta, st.timedeltas()),
    (uuid.UUID, st.uuids()),
    (decimal.Decimal, st.decimals(allow_nan=False)),
    (Colour, st.sampled_from(Colour)),
    (Access, st.sampled_from([*Access, Access.READ | Access.WRITE])),
    (Literal["a", 1, True], st.sampled_from(["a", 1, True])),
    (np.ndarray, arrays),
    (Options, st.fixed_dictionaries({"speed": ints}, optional={"why": words})),
    (Point, st.builds(Point, st.floats(allow_nan=False), ints)),
    (Start | Stop, st.builds(Start, ints) | st.builds(Stop, st.none() | words)),
    (
        Tree,
        st.recursive(st.builds(Tree, ints), lambda inner: st.builds(Tree, ints, st.lists(inner, max_size=3))),
    ),
]


def lists(of):
    return list[of[0]], st.lists(of[1], max_size=4)


def dicts(of):
    return dict[str, of[0]], st.dictionaries(words, of[1], max_size=4)


def tuples(of):
    return tuple[of[0], ...], st.lists(of[1], max_size=4).map(tuple)


def pairs(of):
    return tuple[of[0], int], st.tuples(of[1], ints)


def optional(of):
    return of[0] | None, st.none() | of[1]


def records(of):
    made = dataclasses.make_dataclass(
        "Made", [("one", of[0]), ("two", of[0] | None, None), ("three", str, "")]
    )
    return made, st.builds(made, of[1], st.none() | of[1], words)


typed = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.builds(
        lambda make, of: make(of), st.sampled_from([lists, dicts, tuples, pairs, optional, records]), inner
    ),
    max_leaves=4,
)


@SETTINGS
@given(st.data())
def test_every_value_of_every_type_comes_back_as_it_was(data):
    type_, values = data.draw(typed, label="type")
    value = data.draw(values, label="value")
    assert same(read(type_, sent(type_, value)), value)


@SETTINGS
@given(st.data())
def test_a_value_of_a_union_comes_back_as_it_was_or_is_refused(data):
    (one, values), (other, more) = data.draw(st.tuples(typed, typed), label="types")
    value = data.draw(values | more, label="value")
    try:
        message = sent(one | other, value)
    except EncodeError as error:
        assert "does not read as" in str(error)  # noqa: PT017, not raising is as well
        return
    back = read(one | other, message)
    assert same(back, value) or back == value or _of_one_kind(back, value)


def _of_one_kind(one, other):
    """Tuples may come as the list of the same union, ints as its floats, and so on inside."""
    kinds = ((list, tuple), (int, float))
    return type(one) is type(other) or any(isinstance(one, of) and isinstance(other, of) for of in kinds)


plain_values = st.recursive(
    st.none() | st.booleans() | ints | st.floats(allow_nan=False) | words | st.binary(max_size=8) | arrays,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=8,
)


@SETTINGS
@given(plain_values)
def test_every_value_without_a_type_comes_back_as_it_was(value):
    assert same(read(None, sent(None, value)), value)
    assert same(read(Any, sent(Any, value)), value)


@SETTINGS
@given(st.data())
def test_a_value_of_another_type_is_a_value_or_an_encode_error(data):
    (type_, _), (_, values) = data.draw(st.tuples(typed, typed), label="types")
    value = data.draw(values, label="value")
    try:
        message = sent(type_, value)
    except EncodeError as error:
        assert error.topic == TOPIC  # noqa: PT017, not raising is as well
        return
    read(type_, message)  # what leaves can be read


# ---- evolution ------------------------------------------------------------------------------------

# A model of types with a few words: what a value that fits two of them would be, if there is one.
Model = tuple[str, Any]
LEAF_TYPES = {"int": int, "float": float, "str": str, "bytes": bytes, "bool": bool, "uuid": uuid.UUID}
WITNESSES = {"int": 1, "float": 1.5, "str": "x", "bytes": b"x", "bool": True, "uuid": uuid.UUID(int=1)}

leaf_models = st.sampled_from([(name, None) for name in LEAF_TYPES])


def record_models(inner):
    fields = st.dictionaries(st.sampled_from("abcd"), st.tuples(inner, st.booleans()), max_size=3)
    return fields.map(lambda fields: ("record", fields))


models = record_models(
    st.recursive(
        leaf_models,
        lambda inner: st.tuples(st.sampled_from(["list", "dict", "optional"]), inner) | record_models(inner),
        max_leaves=6,
    )
)


@st.composite
def changed(draw, model: Model) -> Model:
    """The same type a few releases later."""
    word, inner = model
    change = draw(st.sampled_from(["none", "none", "none", "widen", "another"]))
    if word != "record" and change == "widen":
        return ("float", None) if word == "int" else ("optional", model) if word != "optional" else model
    if word != "record" and change == "another":
        return draw(leaf_models)
    if word in ("list", "dict", "optional"):
        return word, draw(changed(inner))
    if word != "record":
        return model
    fields = {}
    for name, (part, default) in inner.items():
        what = draw(st.sampled_from(["keep", "keep", "drop", "default"]))
        if what != "drop":
            fields[name] = (draw(changed(part)), default or what == "default")
    for name in draw(st.sets(st.sampled_from("abcdef"), max_size=2)):
        fields.setdefault(name, (draw(leaf_models), draw(st.booleans())))
    return "record", fields


def real(model: Model):
    word, inner = model
    if word == "list":
        return list[real(inner)]
    if word == "dict":
        return dict[str, real(inner)]
    if word == "optional":
        return real(inner) | None
    if word != "record":
        return LEAF_TYPES[word]
    key = repr(model)
    if key not in made:
        parts = [
            (name, real(part), *((_default(part),) if default else ()))
            for name, (part, default) in inner.items()
        ]
        made[key] = dataclasses.make_dataclass("Made", parts, kw_only=True)
    return made[key]


made: dict[str, type] = {}


def _default(model: Model):
    value = built(model, plain_of(model))
    return field(default_factory=lambda: value)


def plain_of(model: Model):
    """Any value of a model, records as dicts."""
    return common(model, model)


NOTHING = object()


def common(one: Model, other: Model):
    """A plain value that fits both, or NOTHING."""
    if one[0] == "optional" or other[0] == "optional":
        inner = common(*(model[1] if model[0] == "optional" else model for model in (one, other)))
        both = one[0] == other[0] == "optional"
        return None if inner is NOTHING and both else inner
    if {one[0], other[0]} == {"int", "float"}:
        return 1
    if one[0] != other[0] and {one[0], other[0]} != {"dict", "record"}:
        return NOTHING
    if one[0] == other[0] == "list":
        item = common(one[1], other[1])
        return NOTHING if item is NOTHING else [item]
    if one[0] == other[0] == "dict":
        item = common(one[1], other[1])
        return NOTHING if item is NOTHING else {"k": item}
    if one[0] == other[0] == "record":
        return _common_record(one[1], other[1])
    if "dict" in (one[0], other[0]):
        return _common_dict(one, other)
    return WITNESSES[one[0]]


def _common_record(offered, asked):
    value = {name: plain_of(part) for name, (part, _default) in offered.items()}
    for name, (part, default) in asked.items():
        if name not in offered:
            if not default:
                return NOTHING
            continue
        value[name] = common(offered[name][0], part)
        if value[name] is NOTHING:
            return NOTHING
    return value


def _common_dict(one, other):
    fields, inner = (one[1], other[1]) if one[0] == "record" else (other[1], one[1])
    value = {}
    for name, (part, default) in fields.items():
        if default and one[0] == "dict":
            continue
        item = common(part, inner)
        if item is NOTHING:
            return NOTHING if not default else value | {}
        value[name] = item
    return value


def built(model: Model, plain):
    """A plain value as one of the real type."""
    word, inner = model
    if word == "list":
        return [built(inner, item) for item in plain]
    if word == "dict":
        return {key: built(inner, item) for key, item in plain.items()}
    if word == "optional":
        return None if plain is None else built(inner, plain)
    if word != "record":
        return plain
    arguments = {name: built(part, plain[name]) for name, (part, _) in inner.items() if name in plain}
    return real(model)(**arguments)


def has_dict_beside_record(one, other):
    """Whether a dict meets a record: what is then common is more than this model says."""
    if "optional" in (one[0], other[0]):
        return has_dict_beside_record(
            *(model[1] if model[0] == "optional" else model for model in (one, other))
        )
    if {one[0], other[0]} == {"dict", "record"}:
        return True
    if one[0] != other[0]:
        return False
    if one[0] in ("list", "dict"):
        return has_dict_beside_record(one[1], other[1])
    if one[0] == "record":
        return any(
            has_dict_beside_record(one[1][name][0], other[1][name][0]) for name in one[1] if name in other[1]
        )
    return False


@SETTINGS
@given(st.data())
def test_two_versions_of_a_type_agree_just_if_some_value_fits_both(data):
    old = data.draw(models, label="old")
    new = data.draw(changed(old), label="new")
    if has_dict_beside_record(old, new):
        return
    witness = common(old, new)
    parting = _vbus.shapes_agree(shape_of(real(old)), shape_of(real(new)))
    assert (parting is None) == (witness is not NOTHING), parting
    if witness is not NOTHING:
        read(real(new), sent(real(old), built(old, witness)))
    with contextlib.suppress(DecodeError):  # this one may fit the old type only
        read(real(new), sent(real(old), built(old, plain_of(old))))


# ---- hostile bytes --------------------------------------------------------------------------------


@dataclass
class Frame:
    image: np.ndarray
    masks: dict[str, np.ndarray]
    start: Start | Stop
    tree: Tree | Options | None = None


FRAME = Frame(np.arange(20.0), {"a": np.zeros((2, 3), "u1")}, Stop("x"), Tree(1, [Tree(2)]))
TARGETS = [
    None,
    Any,
    bytes,
    np.ndarray,
    Frame,
    Tree,
    Start | Stop,
    Tree | Start,
    dict[str, int | list[str]],
    Point,
]
VALID = [
    sent(Frame, FRAME),
    sent(None, {"a": [np.arange(3), b"x", 1.5]}),
    sent(None, np.zeros((2, 2))),
    sent(Tree, FRAME.tree),
]


@SETTINGS
@given(
    st.sampled_from(VALID),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
    st.integers(-9, 0),
    st.data(),
)
def test_damaged_samples_are_values_or_decode_errors(message, damages, cut, data):
    encoding, payload, meta = message
    payload, meta = bytearray(payload), bytearray(meta)
    for place, byte in damages:
        target = meta if place % 8 == 0 and meta else payload
        target[place % len(target)] = byte
    encoding = data.draw(st.sampled_from([encoding, "raw", "msgpack", "ndarray", "unknown"]))
    payload = payload[: len(payload) + cut]
    for type_ in TARGETS:
        with contextlib.suppress(DecodeError):
            read(type_, (encoding, memoryview(bytes(payload)), bytes(meta)))


@SETTINGS
@given(st.binary(max_size=200), st.binary(max_size=20), st.sampled_from(["raw", "msgpack", "ndarray", "odd"]))
def test_any_bytes_are_a_value_or_a_decode_error(payload, meta, encoding):
    for type_ in TARGETS:
        with contextlib.suppress(DecodeError):
            read(type_, (encoding, memoryview(payload), meta))


dtype_texts = st.sampled_from(
    [
        "<f4",
        "|O",
        "O",
        "<M8[D]",
        "|V99999999999",
        "<U999999999",
        "f4,f4",
        '[["a","<f4"]]',
        '[["a","<f4",[99999,99999]]]',
        '[["a",[["a",[["a","|O"]]]]]]',
        "[" * 9000,
        '[["a","<f4"]',
        "bfloat16",
        "void",
        "(3,)f4",
        "f4," * 20,
        "1" * 5000,
    ]
) | st.text(max_size=12)
lengths = st.sampled_from(
    ["", "3", "0", "-1", "1x2x3", "9" * 30, "9" * 5000, "x".join("9" * 40), "0x" * 40 + "1", " "]
)


@SETTINGS
@given(lengths, dtype_texts, st.sampled_from(["0", "64", "1", "-64", "9" * 30, "9" * 5000, "x"]))
def test_descriptions_of_arrays_that_lie_are_values_or_decode_errors(shape, dtype, offset):
    text = f"{shape} {dtype}".encode()
    head = msgspec.msgpack.encode({"image": msgspec.msgpack.Ext(1, f"{offset} ".encode() + text)})
    beside = head + bytes(-len(head) % 64) + bytes(128)
    tracemalloc.start()
    for type_ in (None, np.ndarray, Frame):
        with contextlib.suppress(DecodeError):
            read(type_, ("ndarray", memoryview(bytes(12)), text))
        with contextlib.suppress(DecodeError):
            read(type_, ("msgpack", memoryview(beside), str(len(head)).encode()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


GREEDY = [
    b"\xdd\xff\xff\xff\xff",
    b"\xdd\x7f\xff\xff\xff" + b"\x01" * 100,
    (b"\xdd" + (100_000).to_bytes(4, "big")) * 500,
    b"\xdf\x7f\xff\xff\xff" + b"\x01" * 100,
    (b"\xdf" + (100_000).to_bytes(4, "big") + b"\x01") * 500,
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\x91" * 50_000,
    b"\x81\x01" * 50_000,
    b"\x82\xa5value\x01\xa8children\x91" * 20_000,
]


@pytest.mark.parametrize("payload", GREEDY, ids=range(len(GREEDY)))
@pytest.mark.parametrize("type_", TARGETS, ids=str)
def test_claims_of_length_and_depth_cost_neither_memory_nor_stack(type_, payload):
    codec_for(type_, TOPIC)
    tracemalloc.start()
    with pytest.raises(DecodeError):
        read(type_, ("msgpack", memoryview(payload), b""))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.tuples(
            st.binary(max_size=60),
            st.binary(max_size=12),
            st.sampled_from(["raw", "msgpack", "ndarray", "odd"]),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_hostile_samples_of_the_bus_are_values_or_decode_errors(node, messages):
    with node.publisher("t") as publisher, contextlib.ExitStack() as stack:
        readers = [stack.enter_context(node.subscriber("t", type_)) for type_ in (None, Tree, Frame, bytes)]
        for payload, meta, encoding in messages:
            with publisher.raw_loan(len(payload), None, encoding, meta) as loan:
                loan.buffer[:] = payload
            for reader in readers:
                sample = reader.receive(5)
                assert sample.payload == payload
                with contextlib.suppress(DecodeError):
                    sample.value  # noqa: B018
