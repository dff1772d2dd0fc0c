"""Arrays beside the MessagePack they belong to.

```text
payload:  | MessagePack, `head` bytes | gap | array 0 | gap | array 1 | …      meta: b"<head>"
                                            ^ every array at a multiple of 64
```

In the MessagePack an array is extension 1 with the text `<offset> <shape> <dtype>`; offsets count from the
first multiple of 64 behind the head. Without arrays meta is empty and the payload is the MessagePack alone.
"""

from __future__ import annotations

from .arrays import ALIGNMENT, aligned, array_bytes, array_text, made_array, shape_and_dtype

TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import Encoded
    from .arrays import Array

__all__ = ["ARRAY", "Arrays", "HasArrays", "Reader"]

ARRAY = 1
"""The MessagePack extension that stands for an array."""


class HasArrays(Exception):
    """Raised by the quick pass of an encoder, which then runs again and collects the arrays."""


class Arrays:
    """The arrays of one value while it is encoded."""

    __slots__ = ("_buffers", "_end", "originals")

    def __init__(self) -> None:
        self._buffers: list[memoryview | bytes] = []
        self._end = 0
        self.originals: dict[bytes, Array] = {}
        """Arrays by their text, for whoever decodes the head alone."""

    def add(self, array: Array) -> bytes:
        """Keep the array for the end; what stands for it in the head. ValueError if it cannot travel."""
        description = array_text(array.shape, array.dtype)
        data = array_bytes(array)
        offset = aligned(self._end)
        self._buffers += [bytes(offset - self._end), data]
        self._end = offset + len(data)
        text = b"%d %b" % (offset, description)
        self.originals[text] = array
        return text

    def encoded(self, head: bytes) -> Encoded:
        """Head, gap and arrays, as an encoder returns them."""
        gap = bytes(aligned(len(head)) - len(head))
        buffers = [buffer for buffer in (head, gap, *self._buffers) if len(buffer)]
        return "msgpack", buffers, b"%d" % len(head)


class Reader:
    """Splits a payload into head and arrays; the arrays are views of it."""

    __slots__ = ("_arrays", "head")

    def __init__(self, payload: memoryview, meta: bytes) -> None:
        length = int(meta)
        if not 0 <= length <= payload.nbytes:
            raise ValueError(f"a head of {length} bytes does not fit into {payload.nbytes}")
        self.head = payload[:length]
        self._arrays = payload[min(aligned(length), payload.nbytes) :]

    def array(self, text: bytes) -> Array:
        """The array that this text in the head stands for. ValueError if it is not there."""
        place, _, description = text.partition(b" ")
        offset = int(place)
        if offset < 0 or offset % ALIGNMENT:
            raise ValueError(f"no array can begin at {offset}")
        shape, dtype = shape_and_dtype(description)
        nbytes = dtype.itemsize
        for length in shape:
            nbytes *= length
        return made_array(self._arrays[offset : offset + nbytes], shape, dtype)
