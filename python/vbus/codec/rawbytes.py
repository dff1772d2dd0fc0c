"""Type `bytes`: the payload is the value."""

from __future__ import annotations

from vbus.errors import quote

from .failure import decode_error, encode_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from . import Decoder, Encoded, Encoder

__all__ = ["as_buffer", "decoder", "encoder"]


def encoder(topic: str) -> Encoder:
    """Only bytes-like values pass; most never come here, the extension takes them at the door."""

    def encode(value: Any) -> Encoded:
        if type(value) is bytes:
            return "raw", (value,), b""
        buffer = as_buffer(value)
        if buffer is None:
            raise encode_error(topic, (), "bytes-like", value)
        return "raw", (buffer,), b""

    return encode


def decoder(topic: str) -> Decoder:
    """Reads raw payloads, and MessagePack that is bytes."""

    def decode(encoding: str, payload: memoryview, meta: bytes) -> bytes:
        if encoding == "raw":
            return bytes(payload)
        if encoding == "msgpack":
            from .plain import decoder as plain_decoder

            value = plain_decoder(topic)(encoding, payload, meta)
            if isinstance(value, bytes):
                return value
        raise decode_error(
            topic, f"is encoded as {quote(encoding)}, expected bytes; compare the types of both sides"
        )

    return decode


def as_buffer(value: object) -> memoryview | bytes | None:
    """The bytes of a bytes-like object, copied only if they are scattered; None for anything else."""
    try:
        view = memoryview(value)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    except TypeError:
        return None
    return view.cast("B") if view.c_contiguous and view.ndim and view.nbytes else view.tobytes()
