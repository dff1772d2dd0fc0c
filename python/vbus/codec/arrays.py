"""numpy arrays as text and bytes. numpy is imported when the first array comes by.

The text of an array is `480x640x3 <f4`: its shape (empty for no dimension), a space, its dtype. A structured
dtype is written as the JSON of numpy's description of it. Dtypes with Python objects do not travel.
"""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false
# numpy comes without being imported, and JSON is anything.

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, TypeAlias

    import numpy

    from . import Encoded

    Array: TypeAlias = numpy.ndarray[Any, numpy.dtype[Any]]

__all__ = [
    "ALIGNMENT",
    "aligned",
    "array_bytes",
    "array_text",
    "encoded_array",
    "is_array",
    "made_array",
    "plain_scalar",
    "read_array",
    "shape_and_dtype",
]

ALIGNMENT = 64


def is_array(value: object) -> bool:
    """Whether this is an ndarray, without importing numpy to find out."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def plain_scalar(value: object) -> object | None:
    """The Python number, str or bytes of a numpy scalar; None for anything else."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.generic):
        return None
    scalar: Any = value
    plain: object = scalar.item()
    return None if isinstance(plain, numpy.generic) else plain


def aligned(offset: int) -> int:
    """The next place where an array may begin."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def encoded_array(array: Array) -> Encoded:
    """An array that is the whole sample. ValueError if it cannot travel."""
    text = array_text(array.shape, array.dtype)  # first: it knows the dtypes that cannot
    return "ndarray", (array_bytes(array),), text


def array_text(shape: Iterable[int], dtype: numpy.dtype[Any]) -> bytes:
    """Shape and dtype as text. ValueError for a dtype that cannot travel."""
    return f"{'x'.join(map(str, shape))} {_dtype_text(dtype)}".encode()


def array_bytes(array: Array) -> memoryview | bytes:
    """The elements in C order; a copy only if they do not lie so. ValueError if something would be lost."""
    import numpy

    if isinstance(array, numpy.ma.MaskedArray):
        raise ValueError("a masked array would lose its mask; fill it, or send data and mask")
    if array.nbytes == 0:
        return b""
    flat = numpy.ascontiguousarray(numpy.asarray(array)).reshape(-1)
    return flat.view(numpy.uint8).data


def read_array(payload: memoryview, text: bytes) -> Array:
    """A view of the payload, read-only as the payload is. ValueError if text and payload do not belong
    together."""
    return made_array(payload, *shape_and_dtype(text))


def made_array(payload: memoryview, shape: tuple[int, ...], dtype: numpy.dtype[Any]) -> Array:
    """An array in just these bytes. ValueError if it would have more or fewer."""
    import numpy

    count = 1
    for length in shape:
        count *= length
    if count * dtype.itemsize != payload.nbytes:
        raise ValueError(
            f"an array of {count} elements of {dtype.itemsize} bytes cannot have {payload.nbytes} bytes"
        )
    array: Array = numpy.ndarray(shape, dtype, buffer=payload if payload.nbytes else b"")
    array.flags.writeable = False
    return array


def shape_and_dtype(text: bytes) -> tuple[tuple[int, ...], numpy.dtype[Any]]:
    """The opposite of `array_text`. ValueError for anything else."""
    lengths, _, dtype = text.decode().partition(" ")
    shape = tuple(int(length) for length in lengths.split("x")) if lengths else ()
    if len(shape) > MAX_DIMENSIONS or any(not 0 <= length < 1 << 63 for length in shape):
        raise ValueError(f"{lengths!r} is not a shape")
    return shape, _read_dtype(dtype)


# Kinds whose `dtype.str` says everything: booleans, numbers, times, strings and plain memory.
_PLAIN_KINDS = "?biufcmMSUV"
MAX_DIMENSIONS = 32


def _dtype_text(dtype: numpy.dtype[Any]) -> str:
    import numpy

    if dtype.hasobject or dtype.kind not in _PLAIN_KINDS:
        raise ValueError(
            f"an array of dtype {dtype} cannot travel; use a dtype of fixed size without objects"
        )
    if dtype.names is not None:
        import json

        return json.dumps(numpy.lib.format.dtype_to_descr(dtype), separators=(",", ":"))
    if dtype.kind == "V" and dtype.type is not numpy.void:
        return dtype.name  # one that a package registered, such as bfloat16
    return dtype.str


def _read_dtype(text: str) -> numpy.dtype[Any]:
    dtype = _known.get(text)
    if dtype is None:
        dtype = _new_dtype(text)
        if len(_known) < MAX_KNOWN and len(text) <= MAX_NAME:
            _known[text] = dtype
    return dtype


# Dtypes by their text, as far as they were read before: reading one takes longer than making an array.
_known: dict[str, numpy.dtype[Any]] = {}
MAX_KNOWN = 256
# Longest text of a dtype without fields, and of one with fields.
MAX_NAME = 64
MAX_DESCRIPTION = 64 * 1024


def _new_dtype(text: str) -> numpy.dtype[Any]:
    import numpy

    structured = text.startswith("[")
    if len(text) > (MAX_DESCRIPTION if structured else MAX_NAME):
        raise ValueError(f"a dtype of {len(text)} characters is not read")
    if structured:
        import json

        dtype = numpy.lib.format.descr_to_dtype(_description(json.loads(text)))
    else:
        try:
            dtype = numpy.dtype(text)
        except TypeError as error:
            raise ValueError(
                f"dtype {text[:40]!r} is not known here; import the package that defines it"
            ) from error
    if dtype.hasobject or dtype.kind not in _PLAIN_KINDS or dtype.subdtype is not None:
        raise ValueError(f"dtype {text[:40]!r} does not travel")
    return dtype


def _description(fields: list[Any]) -> list[tuple[Any, ...]]:
    """JSON has only lists; numpy wants tuples for fields, titles and shapes."""
    return [
        (_as_tuple(name), _description(kind) if isinstance(kind, list) else kind, *map(_as_tuple, shape))
        for name, kind, *shape in fields
    ]


def _as_tuple(part: Any) -> Any:
    return tuple(part) if isinstance(part, list) else part
