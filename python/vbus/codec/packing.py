"""MessagePack for values without a type. Imported with the first of them."""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false
# Types and values are anything at all.

from __future__ import annotations

import msgpack  # type: ignore[import-untyped]  # pyright: ignore[reportMissingTypeStubs]

from .arrays import is_array, plain_scalar
from .outofband import ARRAY, Arrays, HasArrays, Reader

TYPE_CHECKING = False  # typing itself takes longer to import than msgpack
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from . import Encoded

__all__ = ["pack", "unpack"]


def pack(value: Any) -> Encoded:
    """Whatever the library raises means: not this value."""
    try:
        head: Any = msgpack.packb(value, default=_without_arrays, datetime=True)
    except HasArrays:
        arrays = Arrays()
        head = msgpack.packb(value, default=_collecting(arrays), datetime=True)
        return arrays.encoded(head)
    return "msgpack", (head,), b""


def _without_arrays(value: Any) -> Any:
    if is_array(value):
        raise HasArrays
    return _plain(value)


def _collecting(arrays: Arrays) -> Callable[[Any], Any]:
    def default(value: Any) -> Any:
        return msgpack.ExtType(ARRAY, arrays.add(value)) if is_array(value) else _plain(value)

    return default


def _plain(value: Any) -> Any:
    """The plain value of something that MessagePack does not know; TypeError if there is none."""
    if (scalar := plain_scalar(value)) is not None:
        return scalar
    # One level is enough: what is inside comes back here if it must.
    fields = getattr(type(value), "__dataclass_fields__", None)
    if fields is not None:
        return {name: getattr(value, name) for name in fields if hasattr(value, name)}
    if isinstance(value, (set, frozenset)):
        return list(value)
    import enum

    if isinstance(value, enum.Enum):
        return value.value
    import msgspec

    if isinstance(value, msgspec.Struct):
        config = value.__struct_config__
        if not config.array_like and config.tag is None:
            return {
                name: getattr(value, attribute)
                for name, attribute in zip(
                    value.__struct_encode_fields__, value.__struct_fields__, strict=True
                )
            }
    return msgspec.to_builtins(value)


def unpack(payload: memoryview, meta: bytes) -> Any:
    """Whatever the library raises means: not these bytes."""
    if meta:
        reader = Reader(payload, meta)
        head: memoryview = reader.head

        def extension(code: int, data: bytes) -> Any:
            return reader.array(data) if code == ARRAY else msgpack.ExtType(code, data)
    else:
        head, extension = payload, _no_array
    try:
        return msgpack.unpackb(head, strict_map_key=False, timestamp=3, ext_hook=extension)
    except TypeError:
        # A list cannot be a key, a tuple can: what was published with tuples for keys.
        return msgpack.unpackb(
            head, strict_map_key=False, timestamp=3, ext_hook=extension, object_pairs_hook=_with_tuple_keys
        )


def _no_array(code: int, data: bytes) -> Any:
    if code == ARRAY:
        raise ValueError("it refers to an array that did not come with it")
    return msgpack.ExtType(code, data)


def _with_tuple_keys(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    return {_frozen(key): value for key, value in pairs}


def _frozen(key: Any) -> Any:
    return tuple(_frozen(item) for item in key) if isinstance(key, list) else key
