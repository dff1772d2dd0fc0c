"""Codecs that a program brings along, known to the whole process by type and by name."""

from __future__ import annotations

from vbus.errors import ConfigError, quote

from .failure import decode_error, encode_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from typing_extensions import Buffer

    from . import Decoder, Encoded, Encoder

    T = TypeVar("T")

__all__ = ["Registered", "register_codec", "registered_name", "registered_type", "registered_value"]


def register_codec(
    type: type[T], *, name: str, encode: Callable[[T], Buffer], decode: Callable[[memoryview], T]
) -> None:
    """Teach this process to send and read values of `type` under the encoding `name`.

    `encode(value)` returns bytes-like, `decode(payload)` gets a read-only memoryview of the bus's memory and
    returns the value. Publishers and subscribers of that type use it, and those without a type too. A second
    codec of that name or type is ConfigError.
    """
    _check(type, name)
    if not callable(encode) or not callable(decode):
        raise ConfigError(f"encode and decode of codec {quote(name)} must be callable")
    if name in OWN_ENCODINGS:
        raise ConfigError(f"{quote(name)} is an encoding of vbus itself; choose another name")
    if type in OWN_TYPES:
        raise ConfigError(f"{type.__name__} already has an encoding; register a class of your own")
    if name in _by_name:
        raise ConfigError(f"a codec named {quote(name)} is already registered; choose another name")
    if type in _by_type:
        raise ConfigError(f"{type.__qualname__} already has the codec {quote(_by_type[type].name)}")
    codec = Registered(type, name, encode, decode)
    _by_name[name] = _by_type[type] = codec


def _check(type_: object, name: object) -> None:
    if not isinstance(type_, type):
        raise ConfigError(f"a codec is for a class, not for {quote(type_)}")
    if not isinstance(name, str) or not name or len(name.encode()) > 255:
        raise ConfigError(f"the name of a codec is a str of 1 to 255 bytes, not {quote(name)}")


class Registered:
    """One codec as it was registered."""

    __slots__ = ("_decode", "_encode", "name", "type")

    def __init__(
        self, type: type[Any], name: str, encode: Callable[[Any], Buffer], decode: Callable[[memoryview], Any]
    ) -> None:
        self.type = type
        self.name = name
        self._encode = encode
        self._decode = decode

    @property
    def shape_name(self) -> str:
        """The name as it stands in the text of a shape."""
        from .shape import escape

        return escape(self.name)

    def encoder(self, topic: str) -> Encoder:
        """For publishers of the type."""

        def encode(value: Any) -> Encoded:
            if not isinstance(value, self.type):
                raise encode_error(topic, (), self.type.__qualname__, value)
            return self.encode(value, topic)

        return encode

    def decoder(self, topic: str) -> Decoder:
        """For subscribers to the type."""

        def decode(encoding: str, payload: memoryview, meta: bytes) -> Any:
            if encoding != self.name:
                raise decode_error(topic, f"is encoded as {quote(encoding)}, expected {quote(self.name)}")
            return self.decode(payload, topic)

        return decode

    def encode(self, value: Any, topic: str) -> Encoded:
        """The value as this codec sends it; EncodeError for whatever it raises."""
        try:
            payload = memoryview(self._encode(value))
        except Exception as error:
            raise encode_error(
                topic, (), f"a value that codec {quote(self.name)} can encode", value
            ) from error
        return self.name, (payload if payload.contiguous else payload.tobytes(),), b""

    def decode(self, payload: memoryview, topic: str) -> Any:
        """The value in a payload; DecodeError for whatever the codec raises."""
        try:
            return self._decode(payload)
        except Exception as error:
            raise decode_error(topic, f"was refused by codec {quote(self.name)}: {error}") from error


def registered_type(type_: object) -> Registered | None:
    """The codec for exactly this type."""
    return _by_type.get(type_) if _by_type and isinstance(type_, type) else None


def registered_value(value: object) -> Registered | None:
    """The codec for the type of this value."""
    return _by_type.get(type(value)) if _by_type else None


def registered_name(name: str) -> Registered | None:
    """The codec for this encoding."""
    return _by_name.get(name)


OWN_ENCODINGS = ("raw", "msgpack", "ndarray")
OWN_TYPES: tuple[type, ...] = (bytes, str, int, float, bool, list, dict, tuple, type(None))

_by_type: dict[object, Registered] = {}
_by_name: dict[str, Registered] = {}
