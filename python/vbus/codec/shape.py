"""What a type looks like: a tree of kinds, which checks values, builds values, and writes itself as text.

The text is what publisher and subscriber compare (crates/vbus-core/src/bus/shape.rs has its grammar and the
rules). Values are checked here before msgspec encodes them, quickly where the classes of the values tell it
all. Building is complete but slow: `typed` lets msgspec decode whatever it can and comes here for unions that
msgspec does not know, and for words about what is wrong.
"""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false
# Types and values are anything at all.

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import decimal
import enum
import sys
import types
import typing
import uuid
from typing import Any, TypeVar

from vbus._vbus import Look
from vbus.errors import ConfigError, quote

from .arrays import is_array, plain_scalar
from .failure import MISSING, Misfit
from .registry import registered_type

if typing.TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Analysis", "Kind", "escape"]


class Kind:
    """What one place of a type takes."""

    expected = "a value"
    classes: tuple[type, ...] = ()
    """Classes whose values are of this kind and of no other in a sensible union."""
    told: frozenset[type] = frozenset()
    """Classes of which every value fits, but for those of subclasses: most values need no other look."""
    shallow = False
    """Whether what fits is, but for odd cases, always of these classes."""

    def check(self, value: Any) -> None:
        """Misfit unless the value may be published."""

    def clearly(self, values: Iterable[Any]) -> bool:
        """Whether a quick look tells that all of them fit; if not, they still may."""
        return self.told.issuperset(map(type, values))

    def build(self, plain: Any) -> Any:
        """The value from the plain one that arrived; Misfit if it does not fit."""
        return plain

    def distance(self, plain: Any) -> int:
        """How far a plain value that fits is from the typical one: in a union the nearest wins."""
        return 0

    def text(self, around: tuple[Kind, ...] = ()) -> str:
        """As it is announced; `around` are the records that this place is in, the outermost first."""
        raise NotImplementedError


class _Every(frozenset[type]):
    """All classes there are."""

    def __contains__(self, item: object) -> bool:
        return True

    def issuperset(self, other: Iterable[object]) -> bool:
        return True


class Anything(Kind):
    told = _Every()
    shallow = True

    def text(self, around: tuple[Kind, ...] = ()) -> str:
        return "any"


class Atom(Kind):
    """A kind that has no parts."""

    shallow = True

    def __init__(self, word: str, expected: str, accepted: tuple[type, ...]) -> None:
        self.word = word
        self.expected = expected
        self.accepted = self.classes = accepted
        self.told = frozenset(accepted)

    def check(self, value: Any) -> None:
        if type(value) in self.told or self.fits(value):
            return
        scalar = plain_scalar(value)
        if scalar is None or not self.fits(scalar):
            raise Misfit(self.expected, value)

    def build(self, plain: Any) -> Any:
        if self.fits(plain):
            return plain
        raise Misfit(self.expected, plain)

    def fits(self, value: Any) -> bool:
        return isinstance(value, self.accepted) and (type(value) is not bool or bool in self.told)

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
        super().__init__(word, cls.__qualname__, (cls,))
        self.cls = cls

    def fits(self, value: Any) -> bool:
        # A datetime is a date for Python, but not on the wire.
        return isinstance(value, self.cls) and (
            self.cls is not datetime.date or not isinstance(value, datetime.datetime)
        )

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
        self.expected = "ndarray" if dtype is None else f"ndarray of {getattr(dtype, '__name__', dtype)}"

    def check(self, value: Any) -> None:
        if not is_array(value) or not self.takes(value.dtype):
            raise Misfit(self.expected, value)

    def takes(self, dtype: Any) -> bool:
        """Whether arrays of this dtype are meant."""
        if self.dtype is None:
            return True
        import numpy

        return bool(numpy.issubdtype(dtype, self.dtype))

    def build(self, plain: Any) -> Any:
        self.check(plain)
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


class ListOf(Kind):
    def __init__(self, item: Kind, cls: type, accepted: tuple[type, ...]) -> None:
        self.item = item
        self.cls = cls
        self.accepted = accepted
        self.expected = cls.__name__

    def check(self, value: Any) -> None:
        if not isinstance(value, self.accepted) or isinstance(value, (str, bytes, bytearray)):
            raise Misfit(self.expected, value)
        items: Any = value
        if self.item.clearly(items):
            return
        check, index = self.item.check, 0
        try:
            for part in items:
                check(part)
                index += 1  # asked for when the loop was left
        except Misfit as misfit:
            raise misfit.within(f"[{index}]") from None

    def build(self, plain: Any) -> Any:
        if not isinstance(plain, (list, tuple)):
            raise Misfit(self.expected, plain)
        items = [_build_item(self.item, index, item) for index, item in enumerate(plain)]
        try:
            return self.cls(items)
        except TypeError as error:  # a set of what cannot be hashed
            raise Misfit(f"{self.expected} ({error})", plain) from error

    def text(self, around: tuple[Kind, ...] = ()) -> str:
        return f"list<{self.item.text(around)}>"


class DictOf(Kind):
    def __init__(self, key: Kind, item: Kind) -> None:
        self.key = key
        self.item = item
        self.expected = "dict"

    def check(self, value: Any) -> None:
        if not isinstance(value, collections.abc.Mapping):
            raise Misfit(self.expected, value)
        if self.key.clearly(value) and self.item.clearly(value.values()):
            return
        key: Any = None
        try:
            for key, item in value.items():
                self.key.check(key)
                self.item.check(item)
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
            except TypeError as error:  # a key that cannot be hashed
                raise Misfit(f"{self.expected} ({error})", plain) from error
        return built

    def text(self, around: tuple[Kind, ...] = ()) -> str:
        return f"dict<{self.key.text(around)},{self.item.text(around)}>"


class TupleOf(Kind):
    def __init__(self, places: list[Kind]) -> None:
        self.places = places
        self.expected = f"tuple of {len(places)}"

    def check(self, value: Any) -> None:
        if not isinstance(value, (tuple, list)) or len(value) != len(self.places):
            raise Misfit(self.expected, value)
        index = 0
        try:
            for index, part in enumerate(value):
                place = self.places[index]
                if type(part) not in place.told:
                    place.check(part)
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
        names = [quote(value) for _, value in members]
        shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        self.expected = f"one of {shown}" if cls is None else f"{cls.__qualname__} ({shown})"
        if cls is not None:
            self.classes = (cls,)
            self.told = frozenset(self.classes)
            self.shallow = True

    def check(self, value: Any) -> None:
        if self.cls is not None:
            fits = isinstance(value, self.cls)
        else:
            try:
                member = self.members[_member(value)]
            except (KeyError, TypeError):
                raise Misfit(self.expected, value) from None
            fits = value is member or not isinstance(member, enum.Enum)
        if not fits:
            raise Misfit(self.expected, value)

    def build(self, plain: Any) -> Any:
        try:
            return self.members[_member(plain)]
        except (KeyError, TypeError):
            pass
        if self.cls is not None:
            try:
                return self.cls(plain)  # several flags at once, and what `_missing_` makes of it
            except Exception:
                pass
        raise Misfit(self.expected, plain)

    def text(self, around: tuple[Kind, ...] = ()) -> str:
        if self.cls is not None and issubclass(self.cls, enum.Flag):
            return "int"
        return "|".join(dict.fromkeys(_literal_text(value) for _, value in self.members))


class Either(Kind):
    """A union: the nearest alternative that fits."""

    def __init__(self, alternatives: list[Kind]) -> None:
        self.alternatives = alternatives
        self.expected = " or ".join(dict.fromkeys(kind.expected for kind in alternatives))
        told = [kind.told for kind in alternatives]
        self.told = next((some for some in told if isinstance(some, _Every)), frozenset[type]().union(*told))
        self.shallow = all(kind.shallow for kind in alternatives)
        # Most values are told by their class alone, which saves trying one after the other.
        self.by_class: dict[type, Kind] = {}
        for kind in alternatives:
            for cls in kind.classes:
                self.by_class.setdefault(cls, kind)

    def check(self, value: Any) -> None:
        if type(value) in self.told:
            return
        kind = self.by_class.get(type(value))
        if kind is not None:
            kind.check(value)
            return
        misfits: list[Misfit] = []
        for kind in self.alternatives:
            try:
                kind.check(value)
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


class Constrained(Kind):
    """A kind with the bounds of a `msgspec.Meta`, which msgspec knows to check."""

    def __init__(self, kind: Kind, bounds: Any) -> None:
        self.kind = kind
        self.bounds = bounds
        self.expected = kind.expected
        self.classes = kind.classes

    def check(self, value: Any) -> None:
        self.kind.check(value)
        import msgspec

        try:
            msgspec.convert(value, self.bounds)
        except msgspec.ValidationError as error:
            words = str(error).removeprefix("Expected ").replace("`", "")
            raise Misfit(words, value) from error

    def build(self, plain: Any) -> Any:
        built = self.kind.build(plain)
        self.check(built)
        return built

    def distance(self, plain: Any) -> int:
        return self.kind.distance(plain)

    def text(self, around: tuple[Kind, ...] = ()) -> str:
        return self.kind.text(around)


class Role(enum.Enum):
    """What becomes of a field that arrived."""

    ARGUMENT = 0
    SET = 1
    """Set afterwards: the class takes no such argument."""
    TAG = 2
    """Nothing: it only tells which class it is."""


@dataclasses.dataclass(slots=True)
class Field:
    name: str
    """As it travels."""
    attribute: str
    """As the program says it."""
    kind: Kind
    may_be_missing: bool
    role: Role = Role.ARGUMENT


class Record(Kind):
    """Named fields: a dataclass, a Struct or a TypedDict as a map, a NamedTuple as an array."""

    def __init__(self, cls: type, *, row: bool) -> None:
        self.cls = cls
        self.row = row
        self.expected = cls.__qualname__
        self.fields: list[Field] = []
        self.is_dict = typing.is_typeddict(cls)
        self.classes = () if self.is_dict else (cls,)
        self._look: Look | None = None
        self._deep: list[Field] = []
        self._texts: dict[tuple[int, ...], str] = {}

    def settle(self) -> None:
        """All fields are there: decide which of them are told by the classes of their values."""
        held = [field for field in self.fields if field.role is not Role.TAG]
        self._deep = [field for field in held if not field.kind.shallow]
        # `Anything` is told by every class, and none means any.
        told = [
            (field.attribute, field.may_be_missing, [*field.kind.told])
            for field in held
            if field.kind.shallow
        ]
        self._look = Look(dict if self.is_dict else self.cls, told)

    def check(self, value: Any) -> None:
        if self._look is None or not self._look(value):
            self._check_each(value)
            return
        for field in self._deep:
            name = field.attribute
            item = value.get(name, MISSING) if self.is_dict else getattr(value, name, MISSING)
            if type(item) in field.kind.told:
                continue
            try:
                field.kind.check(item)
            except Misfit as misfit:
                if item is MISSING or _is_unset(type(item), field):
                    self._check_each(value)
                    return
                raise misfit.within(name) from None

    def clearly(self, values: Iterable[Any]) -> bool:
        return self._look is not None and not self._deep and all(map(self._look, values))

    def _check_each(self, value: Any) -> None:
        cls: Any = dict if self.is_dict else self.cls
        if not isinstance(value, cls):
            raise Misfit(self.expected, value)
        for field in self.fields:
            if field.role is Role.TAG:
                continue
            try:
                item: Any = value[field.attribute] if self.is_dict else getattr(value, field.attribute)
            except (KeyError, AttributeError):
                if field.may_be_missing and self.is_dict:
                    continue
                raise Misfit(field.kind.expected, MISSING).within(field.attribute) from None
            if _is_unset(type(item), field):
                continue
            try:
                field.kind.check(item)
            except Misfit as misfit:
                raise misfit.within(field.attribute) from None

    def build(self, plain: Any) -> Any:
        present = self._present(plain)
        arguments: dict[str, Any] = {}
        later: dict[str, Any] = {}
        for field in self.fields:
            if field.name not in present:
                if not field.may_be_missing:
                    raise Misfit(field.kind.expected, MISSING).within(field.name)
                continue
            try:
                item = field.kind.build(present[field.name])
            except Misfit as misfit:
                raise misfit.within(field.name) from None
            if field.role is Role.ARGUMENT:
                arguments[field.attribute] = item
            elif field.role is Role.SET:
                later[field.attribute] = item
        try:
            built = self.cls(**arguments)
        except (TypeError, ValueError) as error:
            raise Misfit(f"{self.expected} ({error})", plain) from error
        for attribute, item in later.items():
            object.__setattr__(built, attribute, item)
        return built

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
        # What is used in many places is worked out once for each way that leads to it.
        way = tuple(map(id, around))
        if (known := self._texts.get(way)) is None:
            known = self._texts[way] = self._text(around)
        return known

    def _text(self, around: tuple[Kind, ...]) -> str:
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


def _is_unset(cls: type, field: Field) -> bool:
    """Whether msgspec leaves this field out."""
    return field.may_be_missing and cls.__name__ == "UnsetType"


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
    typing.LiteralString: Text(),
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


class Analysis:
    """One walk over a type; records are made once, so that recursive types end.

    ConfigError if values of the type cannot travel, saying which part and why.
    """

    def __init__(self, whole: Any) -> None:
        self.whole = whole
        self.records: dict[Any, Record] = {}
        self.depth = 0
        self.may_hold_arrays = False
        """Whether there is a place that takes an ndarray, be it one that takes anything."""
        self.names_dtypes = False
        """Whether there is a place for arrays of one dtype only."""
        self.root = self.kind(whole, {})
        """The kind of the whole type."""
        for record in self.records.values():
            record.settle()

    def kind(self, type_: Any, bound: dict[Any, Any]) -> Kind:
        """The kind of a part, where type parameters are bound so."""
        self.depth += 1
        if self.depth > 200:
            raise self.refused(type_, "it never ends")
        try:
            return self._kind(type_, bound)
        finally:
            self.depth -= 1

    def _kind(self, type_: Any, bound: dict[Any, Any]) -> Kind:
        if isinstance(type_, TypeVar):
            return self.kind(bound[type_] if type_ in bound else _stand_in(type_), bound)
        if type_ is typing.Self and type_ in bound:
            return self.kind(bound[type_], bound)
        if isinstance(type_, (str, typing.ForwardRef)):
            raise self.refused(type_, "give the type itself, not its name")
        try:
            if (atom := _ATOMS.get(type_)) is not None:
                self.may_hold_arrays |= isinstance(atom, Anything)
                return atom
        except TypeError:
            pass  # not hashable, so none of them
        if registered_type(type_) is not None:
            raise self.refused(type_, "a registered codec serves for whole samples, not for parts of one")
        if (inner := _unwrapped(type_)) is not None:
            kind = self.kind(inner, bound)
            bounds = _bounds(type_)
            return kind if bounds is None else Constrained(kind, bounds)
        origin, arguments = typing.get_origin(type_), typing.get_args(type_)
        if origin is typing.Union or origin is types.UnionType:
            # What is unset does not travel.
            set_ = [argument for argument in arguments if getattr(argument, "__name__", "") != "UnsetType"]
            return Either([self.kind(argument, bound) for argument in set_])
        if origin is typing.Literal:
            return OneOf({_member(value): value for value in arguments}, None)
        cls = origin or type_
        try:
            hash(cls)
        except TypeError:
            raise self.refused(type_) from None
        if (array := _array_kind(cls, arguments)) is not None:
            self.may_hold_arrays = True
            self.names_dtypes |= array.dtype is not None
            return array
        if cls in _LISTS:
            made, accepted = _LISTS[cls]
            return ListOf(self.kind(arguments[0] if arguments else Any, bound), made, accepted)
        if cls in _DICTS:
            key, item = arguments or (Any, Any)
            return DictOf(self.kind(key, bound), self.kind(item, bound))
        if cls is tuple:
            if origin is None or (len(arguments) == 2 and arguments[1] is Ellipsis):
                return ListOf(self.kind(arguments[0] if arguments else Any, bound), tuple, (tuple, list))
            if any(
                typing.get_origin(argument) is typing.Unpack or _is_starred(argument)
                for argument in arguments
            ):
                raise self.refused(type_, "a tuple has either fixed places or any number of one type")
            return TupleOf([self.kind(argument, bound) for argument in arguments])
        if isinstance(cls, type):
            if issubclass(cls, enum.Enum):
                return OneOf({_member(member.value): member for member in cls}, cls)
            return self.record(type_, cls, arguments, bound)
        raise self.refused(type_)

    def record(self, type_: Any, cls: type, arguments: tuple[Any, ...], around: dict[Any, Any]) -> Kind:
        """The kind of a class with named fields, where type parameters are bound so around it."""
        fields = _fields_of(cls)
        if fields is None:
            raise self.refused(type_)
        if (only_argument := _init_only(cls)) is not None:
            why = f"{only_argument!r} is an InitVar, which is not kept and so cannot be sent; make it a field"
            raise self.refused(cls, why)
        parameters: tuple[Any, ...] = getattr(cls, "__parameters__", ())
        given = [_substituted(argument, around) for argument in arguments]
        # Without arguments, and where they are parameters of nobody, the bounds say what is meant.
        bound: dict[Any, Any] = {parameter: _stand_in(parameter) for parameter in parameters}
        bound |= {
            parameter: argument
            for parameter, argument in zip(parameters, given, strict=False)
            if not isinstance(argument, TypeVar)
        }
        key = (cls, *bound.values())
        try:
            if key in self.records:
                return self.records[key]
        except TypeError:
            raise self.refused(type_, "its arguments cannot be hashed") from None
        bound = {**_inherited(cls, bound), **bound, typing.Self: cls}
        struct = getattr(cls, "__struct_config__", None)
        record = Record(cls, row=hasattr(cls, "_fields") or bool(struct and struct.array_like))
        self.records[key] = record
        if struct is not None and struct.tag is not None:
            tag = OneOf({_member(struct.tag): struct.tag}, None)
            record.fields.append(Field(struct.tag_field, struct.tag_field, tag, True, Role.TAG))
        try:
            hints = typing.get_type_hints(cls, include_extras=True)
        except Exception as error:
            raise self.refused(cls, f"its annotations cannot be read: {error}") from error
        for name, attribute, may_be_missing, argument in fields:
            # Annotations that are strings hide these from the TypedDict itself.
            marker = typing.get_origin(hints[attribute])
            if marker in (typing.Required, typing.NotRequired):
                may_be_missing = marker is typing.NotRequired
            kind = self.kind(hints[attribute], bound)
            role = Role.ARGUMENT if argument else Role.SET
            record.fields.append(Field(name, attribute, kind, may_be_missing, role))
        return record

    def refused(self, part: Any, why: str = "") -> ConfigError:
        """The error for a part that cannot travel."""
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


def _init_only(cls: type) -> str | None:
    """The first argument of a dataclass that is not a field of it."""
    declared: dict[str, Any] = getattr(cls, "__dataclass_fields__", {})
    kept = {field.name for field in dataclasses.fields(cls)} if declared else set[str]()
    for name, field in declared.items():
        if name not in kept and getattr(field._field_type, "name", "") == "_FIELD_INITVAR":
            return name
    return None


def _stand_in(parameter: Any) -> Any:
    """What a type parameter that nobody gave an argument stands for."""
    constraints: tuple[Any, ...] = getattr(parameter, "__constraints__", ())
    if constraints:
        return typing.Union[constraints]  # noqa: UP007, there is no other way to write it
    bound = getattr(parameter, "__bound__", None)
    return Any if bound is None else bound


def _substituted(argument: Any, bound: dict[Any, Any]) -> Any:
    """`list[T]` as what it is where `T` is known."""
    if isinstance(argument, TypeVar):
        return bound.get(argument, argument)
    parameters = getattr(argument, "__parameters__", ())
    if not parameters or isinstance(argument, type):
        return argument
    return argument[tuple(bound.get(parameter, _stand_in(parameter)) for parameter in parameters)]


def _inherited(cls: type, bound: dict[Any, Any]) -> dict[Any, Any]:
    """What the type parameters of the bases are in a class that was made of `Base[int]`."""
    found: dict[Any, Any] = {}
    for base in getattr(cls, "__orig_bases__", ()):
        origin = typing.get_origin(base)
        if origin in (None, typing.Generic):
            continue
        given = [_substituted(argument, bound) for argument in typing.get_args(base)]
        own = dict(zip(getattr(origin, "__parameters__", ()), given, strict=False))
        found |= {**_inherited(origin, own), **own}
    return found


def _is_starred(argument: Any) -> bool:
    return bool(getattr(argument, "__unpacked__", False))


def _bounds(type_: Any) -> Any:
    """The bounds in an `Annotated`, on the bare class, whose parts are checked elsewhere; None if none."""
    metadata = getattr(type_, "__metadata__", ())
    msgspec = sys.modules.get("msgspec")
    if msgspec is None or not any(isinstance(item, msgspec.Meta) for item in metadata):
        return None
    inner = typing.get_args(type_)[0]
    return typing.Annotated[(typing.get_origin(inner) or inner, *metadata)]


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
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, (list, tuple)):
        return tuple, tuple(_member(item) for item in value)
    for cls in (bool, int, float, str, bytes):
        if isinstance(value, cls):
            return cls, value
    return type(value), value


def _literal_text(value: Any) -> str:
    if isinstance(value, enum.Enum):
        value = value.value
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
