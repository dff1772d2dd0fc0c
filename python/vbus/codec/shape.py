"""What a type looks like: a tree of kinds, which checks values, builds values, and writes itself as text.

The text is what publisher and subscriber compare (crates/vbus-core/src/bus/shape.rs has its grammar and the
rules). Checking and building here are complete but slow; `typed` lets msgspec do whatever it can and comes
here for the rest: for unions that msgspec does not know, for values that would slip through, and for words
about what is wrong.
"""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false
# Types and values are anything at all.

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import decimal
import enum
import functools
import sys
import types
import typing
import uuid
from typing import Any, TypeVar

from vbus.errors import ConfigError, quote

from .arrays import is_array, plain_scalar
from .failure import Misfit
from .registry import registered_type

__all__ = ["Kind", "analyse", "escape"]


def analyse(type_: Any) -> Kind:
    """The kind of a type. ConfigError if values of it cannot travel, saying which part and why."""
    return _Analysis(type_).kind(type_, {})


class Kind:
    """What one place of a type takes.

    `on_wire` says that MessagePack keeps everything this kind checks: then decoding what was encoded is
    check enough.
    """

    on_wire = False
    expected = "a value"
    classes: tuple[type, ...] = ()
    """Classes whose values are of this kind and of no other in a sensible union."""

    def check(self, value: Any, *, full: bool) -> None:
        """Misfit unless the value may be published; without `full`, of what the wire cannot tell only."""

    def build(self, plain: Any) -> Any:
        """The value from the plain one that arrived; Misfit if it does not fit."""
        return plain

    def distance(self, plain: Any) -> int:
        """How far a plain value that fits is from the typical one: in a union the nearest wins."""
        return 0

    def text(self, around: tuple[Kind, ...] = ()) -> str:
        """As it is announced; `around` are the records that this place is in, the outermost first."""
        raise NotImplementedError


class Anything(Kind):
    on_wire = True

    def text(self, around: tuple[Kind, ...] = ()) -> str:
        return "any"


class Atom(Kind):
    """A kind that has no parts."""

    def __init__(self, word: str, expected: str, accepted: tuple[type, ...], *, on_wire: bool = True) -> None:
        self.word = word
        self.expected = expected
        self.accepted = self.classes = accepted
        self.on_wire = on_wire

    def check(self, value: Any, *, full: bool) -> None:
        if isinstance(value, self.accepted) and (type(value) is not bool or bool in self.accepted):
            return
        scalar = plain_scalar(value)
        if scalar is None or not isinstance(scalar, self.accepted):
            raise Misfit(self.expected, value)

    def build(self, plain: Any) -> Any:
        if isinstance(plain, self.accepted) and (type(plain) is not bool or bool in self.accepted):
            return plain
        raise Misfit(self.expected, plain)

    def text(self, around: tuple[Kind, ...] = ()) -> str:
        return self.word


class Float(Atom):
    def __init__(self) -> None:
        super().__init__("float", "float", (float, int))

    def build(self, plain: Any) -> Any:
        return float(super().build(plain))

    def distance(self, plain: Any) -> int:
        return int(not isinstance(plain, float))


class Text(Atom):
    def __init__(self) -> None:
        super().__init__("str", "str", (str,))

    def distance(self, plain: Any) -> int:
        return 1  # whatever else is written as text says more


class Bytes(Atom):
    def __init__(self, cls: type) -> None:
        super().__init__("bytes", "bytes-like", (bytes, bytearray, memoryview))
        self.cls = cls

    def build(self, plain: Any) -> Any:
        plain = super().build(plain)
        return plain if isinstance(plain, self.cls) else self.cls(plain)


class Written(Atom):
    """Something that travels as text or number and is read back by msgspec: datetime, UUID, Decimal, …"""

    def __init__(self, word: str, cls: type) -> None:
        super().__init__(word, cls.__qualname__, (cls,), on_wire=False)
        self.cls = cls

    def build(self, plain: Any) -> Any:
        import msgspec

        try:
            return msgspec.convert(plain, self.cls)
        except msgspec.ValidationError as error:
            raise Misfit(self.expected, plain) from error


class ArrayOf(Kind):
    """An ndarray, of one dtype if `dtype` is given."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        self.on_wire = dtype is None
        self.expected = "ndarray" if dtype is None else f"ndarray of {getattr(dtype, '__name__', dtype)}"

    def check(self, value: Any, *, full: bool) -> None:
        if not is_array(value) or not self._has_dtype(value):
            raise Misfit(self.expected, value)

    def build(self, plain: Any) -> Any:
        self.check(plain, full=True)
        return plain

    def text(self, around: tuple[Kind, ...] = ()) -> str:
        if self.dtype is None:
            return "ndarray"
        import numpy

        try:
            concrete = numpy.dtype(self.dtype).str.lstrip("<>=|")
        except TypeError:
            return "ndarray"  # `floating` and its like: no one dtype
        return f"ndarray<{escape(concrete)}>" if concrete[0] in "?biufc" else "ndarray"

    def _has_dtype(self, array: Any) -> bool:
        if self.dtype is None:
            return True
        import numpy

        return bool(numpy.issubdtype(array.dtype, self.dtype))


class ListOf(Kind):
    def __init__(self, item: Kind, cls: type, accepted: tuple[type, ...]) -> None:
        self.item = item
        self.cls = cls
        self.accepted = accepted
        self.on_wire = item.on_wire
        self.expected = cls.__name__

    def check(self, value: Any, *, full: bool) -> None:
        if not isinstance(value, self.accepted) or isinstance(value, (str, bytes, bytearray)):
            raise Misfit(self.expected, value)
        if full or not self.item.on_wire:
            for index, item in enumerate(value):  # type: ignore[var-annotated,arg-type]
                try:
                    self.item.check(item, full=full)
                except Misfit as misfit:
                    raise misfit.within(f"[{index}]") from None

    def build(self, plain: Any) -> Any:
        if not isinstance(plain, (list, tuple)):
            raise Misfit(self.expected, plain)
        return self.cls(_build_item(self.item, index, item) for index, item in enumerate(plain))

    def text(self, around: tuple[Kind, ...] = ()) -> str:
        return f"list<{self.item.text(around)}>"


class DictOf(Kind):
    def __init__(self, key: Kind, item: Kind) -> None:
        self.key = key
        self.item = item
        self.on_wire = key.on_wire and item.on_wire
        self.expected = "dict"

    def check(self, value: Any, *, full: bool) -> None:
        if not isinstance(value, collections.abc.Mapping):
            raise Misfit(self.expected, value)
        if full or not self.on_wire:
            for key, item in value.items():
                try:
                    self.key.check(key, full=full)
                    self.item.check(item, full=full)
                except Misfit as misfit:
                    raise misfit.within(f"[{quote(key)}]") from None

    def build(self, plain: Any) -> Any:
        if not isinstance(plain, dict):
            raise Misfit(self.expected, plain)
        built: dict[Any, Any] = {}
        for key, item in plain.items():
            try:
                built[self.key.build(key)] = self.item.build(item)
            except Misfit as misfit:
                raise misfit.within(f"[{quote(key)}]") from None
        return built

    def text(self, around: tuple[Kind, ...] = ()) -> str:
        return f"dict<{self.key.text(around)},{self.item.text(around)}>"


class TupleOf(Kind):
    def __init__(self, places: list[Kind]) -> None:
        self.places = places
        self.on_wire = all(place.on_wire for place in places)
        self.expected = f"tuple of {len(places)}"

    def check(self, value: Any, *, full: bool) -> None:
        if not isinstance(value, (tuple, list)) or len(value) != len(self.places):
            raise Misfit(self.expected, value)
        for index, (place, item) in enumerate(zip(self.places, value, strict=True)):
            try:
                place.check(item, full=full)
            except Misfit as misfit:
                raise misfit.within(f"[{index}]") from None

    def build(self, plain: Any) -> Any:
        if not isinstance(plain, (tuple, list)) or len(plain) != len(self.places):
            raise Misfit(self.expected, plain)
        return tuple(
            _build_item(place, index, item)
            for index, (place, item) in enumerate(zip(self.places, plain, strict=True))
        )

    def text(self, around: tuple[Kind, ...] = ()) -> str:
        return f"tuple<{','.join(place.text(around) for place in self.places)}>"


class OneOf(Kind):
    """`Literal` and enums: `members` maps what travels to what the program holds."""

    def __init__(self, members: dict[Any, Any], cls: type | None) -> None:
        self.members = members
        self.cls = cls
        self.on_wire = cls is None
        names = [quote(value) for _, value in members]
        shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        self.expected = f"one of {shown}" if cls is None else f"{cls.__qualname__} ({shown})"

    def check(self, value: Any, *, full: bool) -> None:
        fits = isinstance(value, self.cls) if self.cls is not None else _member(value) in self.members
        if not fits:
            raise Misfit(self.expected, value)

    def build(self, plain: Any) -> Any:
        try:
            return self.members[_member(plain)]
        except (KeyError, TypeError):
            raise Misfit(self.expected, plain) from None

    def text(self, around: tuple[Kind, ...] = ()) -> str:
        return "|".join(dict.fromkeys(_literal_text(value) for _, value in self.members))


class Either(Kind):
    """A union: the nearest alternative that fits."""

    def __init__(self, alternatives: list[Kind]) -> None:
        self.alternatives = alternatives
        self.on_wire = all(kind.on_wire for kind in alternatives)
        self.expected = " or ".join(dict.fromkeys(kind.expected for kind in alternatives))
        # Most values are told by their class alone, which saves trying one after the other.
        self.by_class: dict[type, Kind] = {}
        for kind in alternatives:
            for cls in kind.classes:
                self.by_class.setdefault(cls, kind)

    def check(self, value: Any, *, full: bool) -> None:
        if self.on_wire and not full:
            return
        kind = self.by_class.get(type(value))
        if kind is not None:
            kind.check(value, full=full)
            return
        misfits: list[Misfit] = []
        for kind in self.alternatives:
            try:
                kind.check(value, full=True)
                return
            except Misfit as misfit:
                misfits.append(misfit)
        raise self._misfit(value, misfits)

    def build(self, plain: Any) -> Any:
        fitting: list[tuple[int, Any]] = []
        misfits: list[Misfit] = []
        for kind in self.alternatives:
            try:
                fitting.append((kind.distance(plain), kind.build(plain)))
            except Misfit as misfit:
                misfits.append(misfit)
        if not fitting:
            raise self._misfit(plain, misfits)
        return min(fitting, key=_distance)[1]

    def text(self, around: tuple[Kind, ...] = ()) -> str:
        return "|".join(dict.fromkeys(kind.text(around) for kind in self.alternatives))

    def _misfit(self, value: Any, misfits: list[Misfit]) -> Misfit:
        """The one alternative that got further than the door knows better what is wrong."""
        inner = [misfit for misfit in misfits if misfit.steps]
        return inner[0] if len(inner) == 1 else Misfit(self.expected, value)


@dataclasses.dataclass(slots=True)
class Field:
    name: str
    """As it travels."""
    attribute: str
    """As the program says it."""
    kind: Kind
    may_be_missing: bool
    given: bool = True
    """Whether it is an argument of the class."""


class Record(Kind):
    """Named fields: a dataclass, a Struct or a TypedDict as a map, a NamedTuple as an array."""

    def __init__(self, cls: type, *, row: bool) -> None:
        self.cls = cls
        self.row = row
        self.expected = cls.__qualname__
        self.fields: list[Field] = []
        self.is_dict = typing.is_typeddict(cls)
        self.classes = () if self.is_dict else (cls,)

    def check(self, value: Any, *, full: bool) -> None:
        cls: Any = dict if self.is_dict else self.cls
        if not isinstance(value, cls):
            raise Misfit(self.expected, value)
        for field in self.fields if full else self.fields_off_wire:
            try:
                item: Any = value[field.attribute] if self.is_dict else getattr(value, field.attribute)
            except (KeyError, AttributeError):
                if field.may_be_missing:
                    continue
                raise Misfit(f"{self.expected} with a field {field.attribute!r}", value) from None
            try:
                field.kind.check(item, full=full)
            except Misfit as misfit:
                raise misfit.within(field.attribute) from None

    @functools.cached_property
    def fields_off_wire(self) -> list[Field]:
        """Those whose values the wire does not check."""
        return [field for field in self.fields if not field.kind.on_wire]

    def build(self, plain: Any) -> Any:
        present = self._present(plain)
        arguments: dict[str, Any] = {}
        for field in self.fields:
            if field.name not in present:
                if not field.may_be_missing:
                    raise Misfit(f"{self.expected} with a field {field.name!r}", plain)
                continue
            try:
                item = field.kind.build(present[field.name])
            except Misfit as misfit:
                raise misfit.within(field.name) from None
            if field.given:
                arguments[field.attribute] = item
        try:
            return self.cls(**arguments)
        except (TypeError, ValueError) as error:
            raise Misfit(f"{self.expected} ({error})", plain) from error

    def distance(self, plain: Any) -> int:
        if not isinstance(plain, dict):
            return 0
        names = {field.name for field in self.fields}
        return len(plain.keys() ^ names)

    def text(self, around: tuple[Kind, ...] = ()) -> str:
        for outward, kind in enumerate(reversed(around)):
            if kind is self:
                return f"^{outward}"
        if len(around) >= MAX_NESTING:
            return "any"
        inside = (*around, self)
        fields = ",".join(
            f"{escape(field.name)}{'?' if field.may_be_missing else ''}:{field.kind.text(inside)}"
            for field in self.fields
        )
        text = f"({fields})" if self.row else f"{{{fields}}}"
        # Types used many times are written many times; what gets too long is told less precisely.
        return text if len(text) <= MAX_TEXT >> len(around) or not around else "any"

    def _present(self, plain: Any) -> dict[Any, Any]:
        if not self.row:
            if isinstance(plain, dict):
                return plain
        elif isinstance(plain, (list, tuple)) and len(plain) <= len(self.fields):
            return {field.name: item for field, item in zip(self.fields, plain, strict=False)}
        raise Misfit(self.expected, plain)


def escape(name: str) -> str:
    """A name as it stands in a shape: letters, digits and `_-.`, the rest as `%xx` of its UTF-8."""
    if name.isascii() and name.replace("_", "a").isalnum():
        return name
    return "".join(
        chr(byte) if chr(byte).isascii() and (chr(byte).isalnum() or chr(byte) in "_-.") else f"%{byte:02x}"
        for byte in name.encode("utf-8", "surrogatepass")
    )


# Longest text of a shape, and deepest nesting of records in it: half of what shape.rs reads.
MAX_TEXT = 32 * 1024
MAX_NESTING = 24

_ATOMS: dict[object, Kind] = {
    Any: Anything(),
    object: Anything(),
    None: Atom("none", "None", (type(None),)),
    type(None): Atom("none", "None", (type(None),)),
    bool: Atom("bool", "bool", (bool,)),
    int: Atom("int", "int", (int,)),
    float: Float(),
    str: Text(),
    bytes: Bytes(bytes),
    bytearray: Bytes(bytearray),
    memoryview: Bytes(memoryview),
    datetime.datetime: Written("datetime", datetime.datetime),
    datetime.date: Written("date", datetime.date),
    datetime.time: Written("time", datetime.time),
    datetime.timedelta: Written("duration", datetime.timedelta),
    uuid.UUID: Written("uuid", uuid.UUID),
    decimal.Decimal: Written("decimal", decimal.Decimal),
}

_LISTS: dict[object, tuple[type, tuple[type, ...]]] = {
    list: (list, (list, tuple)),
    set: (set, (set, frozenset)),
    frozenset: (frozenset, (set, frozenset)),
    collections.abc.Sequence: (list, (collections.abc.Sequence,)),
    collections.abc.MutableSequence: (list, (collections.abc.MutableSequence,)),
    collections.abc.Collection: (list, (collections.abc.Collection,)),
    collections.abc.Set: (set, (collections.abc.Set,)),
    collections.abc.MutableSet: (set, (collections.abc.MutableSet,)),
}

_DICTS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


class _Analysis:
    """One walk over a type; records are made once, so that recursive types end."""

    def __init__(self, whole: Any) -> None:
        self.whole = whole
        self.records: dict[Any, Record] = {}
        self.depth = 0

    def kind(self, type_: Any, bound: dict[Any, Any]) -> Kind:
        self.depth += 1
        if self.depth > 200:
            raise self.refused(type_, "it never ends")
        try:
            return self._kind(type_, bound)
        finally:
            self.depth -= 1

    def _kind(self, type_: Any, bound: dict[Any, Any]) -> Kind:
        if isinstance(type_, TypeVar):
            return self.kind(bound.get(type_, type_.__bound__ or Any), bound)
        try:
            if (atom := _ATOMS.get(type_)) is not None:
                return atom
        except TypeError:
            pass  # not hashable, so none of them
        if registered_type(type_) is not None:
            raise self.refused(type_, "a registered codec serves for whole samples, not for parts of one")
        if (inner := _unwrapped(type_)) is not None:
            return self.kind(inner, bound)
        origin, arguments = typing.get_origin(type_), typing.get_args(type_)
        if origin is typing.Union or origin is types.UnionType:
            return Either([self.kind(argument, bound) for argument in arguments])
        if origin is typing.Literal:
            return OneOf({_member(value): value for value in arguments}, None)
        cls = origin or type_
        try:
            hash(cls)
        except TypeError:
            raise self.refused(type_) from None
        if (array := _array_kind(cls, arguments)) is not None:
            return array
        if cls in _LISTS:
            made, accepted = _LISTS[cls]
            return ListOf(self.kind(arguments[0] if arguments else Any, bound), made, accepted)
        if cls in _DICTS:
            key, item = arguments or (Any, Any)
            return DictOf(self.kind(key, bound), self.kind(item, bound))
        if cls is tuple:
            if not arguments or (len(arguments) == 2 and arguments[1] is Ellipsis):
                return ListOf(self.kind(arguments[0] if arguments else Any, bound), tuple, (tuple, list))
            return TupleOf([self.kind(argument, bound) for argument in arguments if argument != ()])
        if isinstance(cls, type):
            if issubclass(cls, enum.Enum):
                return OneOf({_member(member.value): member for member in cls}, cls)
            return self.record(cls, tuple(bound.get(argument, argument) for argument in arguments))
        raise self.refused(type_)

    def record(self, cls: type, arguments: tuple[Any, ...]) -> Kind:
        fields = _fields_of(cls)
        if fields is None:
            raise self.refused(cls)
        key = (cls, arguments)
        if key in self.records:
            return self.records[key]
        struct = getattr(cls, "__struct_config__", None)
        record = Record(cls, row=hasattr(cls, "_fields") or bool(struct and struct.array_like))
        self.records[key] = record
        bound = dict(zip(getattr(cls, "__parameters__", ()), arguments, strict=False))
        if struct is not None and struct.tag is not None:
            tag = OneOf({_member(struct.tag): struct.tag}, None)
            record.fields.append(Field(struct.tag_field, struct.tag_field, tag, True, given=False))
        try:
            hints = typing.get_type_hints(cls, include_extras=True)
        except Exception as error:
            raise self.refused(cls, f"its annotations cannot be read: {error}") from error
        for name, attribute, may_be_missing, given in fields:
            # Annotations that are strings hide these from the TypedDict itself.
            marker = typing.get_origin(hints[attribute])
            if marker in (typing.Required, typing.NotRequired):
                may_be_missing = marker is typing.NotRequired
            record.fields.append(
                Field(name, attribute, self.kind(hints[attribute], bound), may_be_missing, given=given)
            )
        return record

    def refused(self, part: Any, why: str = "") -> ConfigError:
        name = getattr(part, "__qualname__", None) or quote(part)
        of = (
            ""
            if part is self.whole
            else f" (in {getattr(self.whole, '__qualname__', None) or quote(self.whole)})"
        )
        hint = why or "use a dataclass or another documented type, or vbus.register_codec"
        return ConfigError(f"values of type {name}{of} cannot travel: {hint}")


def _fields_of(cls: type) -> list[tuple[str, str, bool, bool]] | None:
    """(name as it travels, attribute, may be missing, is an argument) of each field, if it is a record at
    all."""
    if typing.is_typeddict(cls):
        required: frozenset[str] = getattr(cls, "__required_keys__", frozenset())
        return [(name, name, name not in required, True) for name in cls.__annotations__]
    if dataclasses.is_dataclass(cls):
        return [
            (
                field.name,
                field.name,
                field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING,
                field.init,
            )
            for field in dataclasses.fields(cls)
        ]
    if hasattr(cls, "__struct_config__"):
        import msgspec

        return [
            (field.encode_name, field.name, not field.required, True) for field in msgspec.structs.fields(cls)
        ]
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        defaults: dict[str, Any] = getattr(cls, "_field_defaults", {})
        names: tuple[str, ...] = getattr(cls, "_fields", ())
        return [(name, name, name in defaults, True) for name in names]
    return None


def _unwrapped(type_: Any) -> Any:
    """What stands in `Annotated`, `Required`, `Final`, `NewType`, a type alias; None for all others."""
    if isinstance(type_, typing.NewType):
        return type_.__supertype__
    if type(type_).__name__ == "TypeAliasType":
        return type_.__value__
    origin = typing.get_origin(type_)
    if origin in _WRAPPERS or getattr(origin, "_name", None) == "ReadOnly":
        return typing.get_args(type_)[0]
    return None


_WRAPPERS = (typing.Annotated, typing.Required, typing.NotRequired, typing.Final)


def _array_kind(cls: Any, arguments: tuple[Any, ...]) -> ArrayOf | None:
    numpy = sys.modules.get("numpy")  # whoever names ndarray has imported it
    if numpy is None or cls is not numpy.ndarray:
        return None
    inner = typing.get_args(arguments[1]) if len(arguments) > 1 else ()
    dtype = inner[0] if inner and isinstance(inner[0], type) and inner[0] is not numpy.generic else None
    return ArrayOf(dtype)


def _member(value: Any) -> tuple[type, Any]:
    """A value as a key of its own type, since 1 == True == 1.0; what travels as list counts as tuple."""
    if isinstance(value, (list, tuple)):
        return tuple, tuple(_member(item) for item in value)
    for cls in (bool, int, float, str, bytes):
        if isinstance(value, cls):
            return cls, value
    return type(value), value


def _literal_text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"={str(value).lower()}"
    if isinstance(value, int):
        return f"={int(value)}"
    if isinstance(value, float):
        return f"={value!r}"
    if isinstance(value, str):
        return f"='{escape(str(value))}'" if value else "=''"
    return "any"


def _build_item(kind: Kind, index: int, item: Any) -> Any:
    try:
        return kind.build(item)
    except Misfit as misfit:
        raise misfit.within(f"[{index}]") from None


def _distance(scored: tuple[int, Any]) -> int:
    return scored[0]
