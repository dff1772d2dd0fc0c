"""Looking for the place in a value that is to blame, when encoding it failed or would change it."""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false
# Values are anything at all.

from __future__ import annotations

from .arrays import array_bytes, array_text, is_array, plain_scalar
from .failure import Misfit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

__all__ = ["altered", "culprit"]


def culprit(value: Any) -> Misfit | None:
    """The first place in a value that has no encoding, with what could stand there instead."""
    try:
        return _culprit(value, 0)
    except Exception:  # of a property or a container of somebody's own: the first error tells more
        return None


def _culprit(value: Any, depth: int) -> Misfit | None:
    if depth > DEEPEST or isinstance(value, (bool, float, bytes, bytearray, type(None))):
        return None
    if isinstance(value, int):
        fits = -(1 << 63) <= value < 1 << 64
        return None if fits else Misfit("an int of 64 bits, -2**63 to 2**64 - 1", value)
    if isinstance(value, str):
        return None if _is_unicode(value) else Misfit("str without lone surrogates", value)
    if is_array(value):
        return _refused_array(value)
    for step, part in _parts(value):
        misfit = _culprit(part, depth + 1)
        if misfit is not None:
            return misfit.within(step) if step else misfit
    if _is_known(value):
        return None
    return Misfit(
        "a number, str, bytes, list, dict, dataclass, array or what a codec was registered for", value
    )


def altered(value: Any, built: Any) -> None:
    """Misfit at the first place where what was built from the encoding is of another kind than the value."""
    if _same_kind(value, built):
        if isinstance(built, dict):
            _compare_items(value, built)
            return
        mine, theirs = dict(_parts(value)), dict(_parts(built))
        for step, part in theirs.items():
            if step in mine:
                _compare(mine[step], part, step)
        return
    raise Misfit(f"one that does not read as {type(built).__qualname__}", value)


def _compare_items(value: Any, built: dict[Any, Any]) -> None:
    if len(value) != len(built):  # a TypedDict leaves out what it does not know
        for key in built.keys() & value.keys():
            _compare(value[key], built[key], f"[{key!r}]")
        return
    for (key, item), (built_key, built_item) in zip(value.items(), built.items()):
        _compare(key, built_key, f"[{key!r}]")
        _compare(item, built_item, f"[{key!r}]")


def _compare(value: Any, built: Any, step: str) -> None:
    try:
        altered(value, built)
    except Misfit as misfit:
        raise misfit.within(step) from None


DEEPEST = 100
"""Levels that are searched; what is nested deeper cannot be encoded anyway, or contains itself."""


def _parts(value: Any) -> Iterable[tuple[str, Any]]:
    """What a value consists of, with the way there; a step may be empty."""
    from collections.abc import Mapping

    if isinstance(value, Mapping):
        for key, item in value.items():
            yield f"[{key!r}]", key
            yield f"[{key!r}]", item
    elif (names := _field_names(value)) is not None:
        for name in names:
            if hasattr(value, name):
                yield name, getattr(value, name)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield f"[{index}]", item
    elif isinstance(value, (set, frozenset)):
        for item in value:
            yield "", item


def _field_names(value: Any) -> Iterable[str] | None:
    cls = type(value)
    for place in ("__dataclass_fields__", "__struct_fields__"):
        found: Iterable[str] | None = getattr(cls, place, None)
        if found is not None:
            return found
    names: Iterable[str] | None = getattr(cls, "_fields", None) if isinstance(value, tuple) else None
    return names


def _same_kind(value: Any, built: Any) -> bool:
    if isinstance(value, type(built)):
        return not isinstance(value, bool) or isinstance(built, bool)
    scalar = plain_scalar(value)
    if scalar is not None:
        value = scalar
    alike = ((int, float), (list, tuple), (set, frozenset), (bytes, bytearray, memoryview))
    return isinstance(value, type(built)) or any(
        isinstance(value, classes) and isinstance(built, classes) for classes in alike
    )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refused_array(array: Any) -> Misfit | None:
    try:
        array_text(array.shape, array.dtype)
        array_bytes(array[:0] if array.ndim else array)
    except ValueError:
        return Misfit("an array without objects and without a mask, of a dtype of fixed size", array)
    return None


def _is_known(value: Any) -> bool:
    """Whether something stands on its own, or was searched to its parts."""
    import datetime
    import decimal
    import enum
    import uuid
    from collections.abc import Collection

    own = (datetime.date, datetime.time, datetime.timedelta, uuid.UUID, decimal.Decimal, enum.Enum)
    if isinstance(value, (*own, memoryview, Collection)) or plain_scalar(value) is not None:
        return True
    return _field_names(value) is not None or hasattr(type(value), "__struct_fields__")
