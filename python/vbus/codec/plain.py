"""No type: a sample says itself what it is.

bytes-like is sent raw, an array with shape and dtype, anything else as MessagePack. Dataclasses, enums,
uuids and other things that have a type of their own become the plain values they consist of.
"""

from __future__ import annotations

from vbus.errors import EncodeError, quote

from .arrays import encoded_array, is_array, plain_scalar, read_array
from .failure import decode_error, encode_error
from .rawbytes import as_buffer
from .registry import registered_name, registered_value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from . import Decoder, Encoded, Encoder

__all__ = ["decoder", "encoder"]


def encoder(topic: str) -> Encoder:
    """Takes every value; EncodeError for those that nothing can be made of."""
    pack: Callable[[Any], Encoded] | None = None

    def encode(value: Any) -> Encoded:
        nonlocal pack
        try:
            # bool, int, … also have no buffer, but asking costs more than knowing.
            if type(value) not in _NEVER_BYTES:
                if (codec := registered_value(value)) is not None:
                    return codec.encode(value, topic)
                if is_array(value):
                    return encoded_array(value)
                if plain_scalar(value) is None and (buffer := as_buffer(value)) is not None:
                    return "raw", (buffer,), b""
            if pack is None:
                from . import packing

                pack = packing.pack
            return pack(value)
        except EncodeError:
            raise
        except Exception as error:
            raise _why_not(topic, value, error) from error

    return encode


def decoder(topic: str) -> Decoder:
    """Reads whatever arrives; DecodeError for damage and for codecs that are not registered."""

    unpack: Callable[[memoryview, bytes], Any] | None = None

    def decode(encoding: str, payload: memoryview, meta: bytes) -> Any:
        nonlocal unpack
        try:
            if encoding == "msgpack":
                if unpack is None:
                    from . import packing

                    unpack = packing.unpack
                return unpack(payload, meta)
            if encoding == "raw":
                return bytes(payload)
            if encoding == "ndarray":
                return read_array(payload, meta)
        except Exception as error:
            raise decode_error(topic, f"cannot be read as {encoding}: {_told(error)}") from error
        codec = registered_name(encoding)
        if codec is None:
            raise decode_error(
                topic, f"is encoded as {quote(encoding)}; register a codec of that name to read it"
            )
        return codec.decode(payload, topic)

    return decode


_NEVER_BYTES = frozenset({dict, list, str, int, float, bool, tuple, type(None)})


def _why_not(topic: str, value: object, error: Exception) -> EncodeError:
    from .search import culprit

    misfit = culprit(value)
    if misfit is not None:
        return encode_error(topic, misfit.steps, misfit.expected, misfit.value)
    failure = EncodeError(
        f"cannot publish {type(value).__name__} {quote(value)} on {quote(topic)}: {_told(error)}; "
        "use numbers, str, bytes, list, dict, dataclasses or arrays, or register a codec"
    )
    failure.topic = topic
    return failure


def _told(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error}; install it where samples of this kind are read"
    return str(error) or type(error).__name__
