"""A type: values are checked before they leave and when they arrive.

msgspec encodes, and decodes what it encoded: a value that the other side could not read never leaves. What
MessagePack would let through, a dict for a dataclass or a str for a UUID, is asked for before. Unions that
msgspec does not know are decoded by the kinds of `shape`, which also find the words for everything that
does not fit.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import msgspec

from vbus.errors import EncodeError, quote

from . import Codec
from .arrays import encoded_array, is_array, plain_scalar, read_array
from .failure import Misfit, decode_error, decode_misfit, encode_error
from .outofband import ARRAY, Arrays, HasArrays, Reader
from .shape import ArrayOf, Kind, analyse

if TYPE_CHECKING:
    from . import Encoded, Encoder
    from .arrays import Array

__all__ = ["codec"]


def codec(type_: Any, topic: str) -> Codec:
    """The codec of a type. ConfigError if it cannot travel."""
    kind = analyse(type_)
    if isinstance(kind, ArrayOf):
        return Codec(
            shape=kind.text(),
            raw=False,
            encoder=_array_encoder(kind, topic),
            decoder=_Typed(type_, kind, topic).decode,
            lends=("ndarray",),
        )
    typed = _Typed(type_, kind, topic)
    return Codec(shape=kind.text(), raw=False, encoder=typed.encode, decoder=typed.decode)


def _array_encoder(kind: ArrayOf, topic: str) -> Encoder:
    def encode(value: Any) -> Encoded:
        try:
            kind.check(value, full=True)
            return encoded_array(value)
        except Misfit as misfit:
            raise encode_error(topic, misfit.steps, misfit.expected, value) from None
        except Exception as error:
            raise _cannot_publish(topic, value, error) from error

    return encode


class _Typed:
    def __init__(self, type_: Any, kind: Kind, topic: str) -> None:
        self._kind = kind
        self._topic = topic
        # Arrays of the decoding under way in this thread; msgspec's hooks have no argument for it.
        self._here = threading.local()
        self._plain = msgspec.msgpack.Decoder(ext_hook=self._extension)
        self._encoder = msgspec.msgpack.Encoder(enc_hook=_without_arrays)
        self._decoder: msgspec.msgpack.Decoder[Any] | None
        try:
            self._decoder = msgspec.msgpack.Decoder(type_, ext_hook=self._extension)
        except TypeError:
            self._decoder = None  # a union that msgspec does not know: `kind` decodes
        self._check_arrays = "ndarray" in kind.text()  # msgspec looks at the class, not at the dtype

    def encode(self, value: Any) -> Encoded:
        try:
            self._kind.check(value, full=self._decoder is None)
            try:
                head = self._encoder.encode(value)
                if self._decoder is not None:
                    self._decoder.decode(head)
                return "msgpack", (head,), b""
            except HasArrays:
                return self._encode_with_arrays(value)
        except Misfit as misfit:
            raise encode_error(self._topic, misfit.steps, misfit.expected, misfit.value) from None
        except Exception as error:
            raise self._why_not(value, error) from error

    def decode(self, encoding: str, payload: memoryview, meta: bytes) -> Any:
        if encoding != "msgpack":
            return self._decode_other(encoding, payload, meta)
        try:
            if not meta:
                return self._decode_head(payload)
            reader = Reader(payload, meta)
            self._here.array = reader.array
            try:
                return self._decode_head(reader.head)
            finally:
                del self._here.array
        except Exception as error:
            raise self._why_unreadable(payload, meta, error) from error

    def _decode_head(self, head: memoryview | bytes) -> Any:
        if self._decoder is None:
            return self._kind.build(self._plain.decode(head))
        value = self._decoder.decode(head)
        if self._check_arrays:
            self._kind.check(value, full=False)
        return value

    def _decode_other(self, encoding: str, payload: memoryview, meta: bytes) -> Any:
        """A publisher without a type may send what this type takes as raw bytes or as an array."""
        value: Any
        try:
            if encoding == "raw":
                value = bytes(payload)
            elif encoding == "ndarray":
                value = read_array(payload, meta)
            else:
                raise ValueError(f"encoding {quote(encoding)} is not that of {self._kind.expected}")
            return self._kind.build(value)
        except Misfit as misfit:
            raise decode_misfit(self._topic, misfit.steps, misfit.expected, misfit.value) from None
        except Exception as error:
            raise decode_error(
                self._topic, f"cannot be read: {error}; compare the types of both sides"
            ) from error

    def _encode_with_arrays(self, value: Any) -> Encoded:
        arrays = Arrays()

        def keep(part: Any) -> Any:
            return msgspec.msgpack.Ext(ARRAY, arrays.add(part)) if is_array(part) else _without_arrays(part)

        head = msgspec.msgpack.encode(value, enc_hook=keep)
        if self._decoder is not None:
            self._here.array = arrays.originals.__getitem__
            try:
                self._decoder.decode(head)
            finally:
                del self._here.array
        return arrays.encoded(head)

    def _extension(self, code: int, data: memoryview) -> Any:
        if code != ARRAY:
            return msgspec.msgpack.Ext(code, bytes(data))
        array: Any = getattr(self._here, "array", None)
        if array is None:
            raise ValueError("it refers to an array that did not come with it")
        found: Array = array(bytes(data))
        return found

    def _why_not(self, value: Any, error: Exception) -> EncodeError:
        """The slow way, which knows the place; the words of the encoder only if it finds none."""
        try:
            self._kind.check(value, full=True)
        except Misfit as misfit:
            return encode_error(self._topic, misfit.steps, misfit.expected, misfit.value)
        except Exception:
            pass
        return _cannot_publish(self._topic, value, error)

    def _why_unreadable(self, payload: memoryview, meta: bytes, error: Exception) -> Exception:
        misfit = error if isinstance(error, Misfit) else self._misfit(payload, meta)
        if misfit is not None:
            return decode_misfit(self._topic, misfit.steps, misfit.expected, misfit.value)
        return decode_error(self._topic, f"cannot be read: {_told(error)}; compare the types of both sides")

    def _misfit(self, payload: memoryview, meta: bytes) -> Misfit | None:
        try:
            reader = Reader(payload, meta) if meta else None
            self._here.array = reader.array if reader else None
            try:
                self._kind.build(self._plain.decode(reader.head if reader else payload))
            finally:
                del self._here.array
        except Misfit as misfit:
            return misfit
        except Exception:
            pass
        return None


def _without_arrays(value: Any) -> Any:
    if is_array(value):
        raise HasArrays
    scalar = plain_scalar(value)
    if scalar is None:
        raise TypeError(f"{type(value).__name__} {quote(value)} has no encoding")
    return scalar


def _cannot_publish(topic: str, value: object, error: Exception) -> EncodeError:
    failure = EncodeError(f"cannot publish {quote(value)} on {quote(topic)}: {_told(error)}")
    failure.topic = topic
    return failure


def _told(error: Exception) -> str:
    return str(error) or type(error).__name__
