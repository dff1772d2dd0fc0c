"""A type: values are checked before they leave and when they arrive.

The kinds of `shape` check what is to be published, msgspec encodes it, and msgspec decodes what arrived.
Unions that msgspec does not know are decoded by the kinds, which also find the words for everything that does
not fit.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import msgspec

from vbus.errors import EncodeError, quote

from . import Codec
from .arrays import encoded_array, is_array, plain_scalar, read_array
from .failure import Misfit, decode_error, decode_misfit, encode_error
from .outofband import ARRAY, Arrays, Reader
from .search import altered, culprit
from .shape import Analysis, ArrayOf

if TYPE_CHECKING:
    from collections.abc import Callable

    from . import Encoded, Encoder
    from .arrays import Array

__all__ = ["codec"]


def codec(type_: Any, topic: str) -> Codec:
    """The codec of a type. ConfigError if it cannot travel."""
    analysis = Analysis(type_)
    kind = analysis.root
    typed = _Typed(type_, analysis, topic)
    if isinstance(kind, ArrayOf):
        return Codec(
            shape=kind.text(),
            raw=False,
            encoder=_array_encoder(kind, topic),
            decoder=typed.decode,
            lends=("ndarray",),
            takes=kind.takes,
        )
    return Codec(
        shape=kind.text(),
        raw=False,
        encoder=typed.encoder(),
        decoder=typed.decode,
        quick=typed.quick_decoder(),
    )


def _array_encoder(kind: ArrayOf, topic: str) -> Encoder:
    def encode(value: Any) -> Encoded:
        try:
            kind.check(value)
            return encoded_array(value)
        except Misfit as misfit:
            raise encode_error(topic, misfit.steps, misfit.expected, value) from None
        except Exception as error:
            raise _cannot_publish(topic, value, error) from error

    return encode


class _Typed:
    def __init__(self, type_: Any, analysis: Analysis, topic: str) -> None:
        self._kind = analysis.root
        self._topic = topic
        self._may_hold_arrays = analysis.may_hold_arrays
        # Arrays of the decoding under way in this thread; msgspec's hooks have no argument for it.
        self._here = threading.local()
        self._plain = msgspec.msgpack.Decoder(ext_hook=self._extension)
        self._decoder: msgspec.msgpack.Decoder[Any] | None
        try:
            self._decoder = msgspec.msgpack.Decoder(type_, ext_hook=self._extension)
        except TypeError:
            self._decoder = None  # a union that msgspec does not know: `kind` decodes
        self._check_arrays = analysis.names_dtypes  # msgspec looks at the class, not at the dtype

    def encoder(self) -> Encoder:
        """The shortest way that is right for this type."""
        if self._may_hold_arrays:
            return self._encode_with_arrays
        check, encode = self._kind.check, msgspec.msgpack.Encoder(enc_hook=_plainer).encode
        verify, why_not = self._verify if self._decoder is None else None, self._why_not

        def encode_value(value: Any) -> bytes:
            try:
                check(value)
                head = encode(value)
                if verify is not None:
                    verify(value, head)
                return head
            except Exception as error:
                raise why_not(value, error) from error

        return encode_value

    def quick_decoder(self) -> Callable[[Any], Any] | None:
        """What reads MessagePack without arrays and needs no other look at the value."""
        if self._decoder is None or self._check_arrays:
            return None
        return self._decoder.decode

    def decode(self, encoding: str, payload: memoryview, meta: bytes) -> Any:
        """Whatever arrived as a value of the type, or DecodeError."""
        if encoding != "msgpack":
            return self._decode_other(encoding, payload, meta)
        try:
            if not meta:
                return self._decode_head(payload)
            reader = Reader(payload, meta)
            return self._with_arrays(reader.array, self._decode_head, reader.head)
        except Exception as error:
            raise self._why_unreadable(payload, meta, error) from error

    def _decode_head(self, head: memoryview | bytes) -> Any:
        if self._decoder is None:
            return self._kind.build(self._plain.decode(head))
        value = self._decoder.decode(head)
        if self._check_arrays:
            self._kind.check(value)
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

    def _encode_with_arrays(self, value: Any) -> Encoded | bytes:
        arrays = Arrays()

        def keep(part: Any) -> Any:
            return msgspec.msgpack.Ext(ARRAY, arrays.add(part)) if is_array(part) else _plainer(part)

        try:
            self._kind.check(value)
            head = msgspec.msgpack.encode(value, enc_hook=keep)
            if self._decoder is None:
                self._with_arrays(arrays.originals.__getitem__, self._verify, value, head)
        except Exception as error:
            raise self._why_not(value, error) from error
        return arrays.encoded(head) if arrays.originals else head

    def _verify(self, value: Any, head: bytes) -> None:
        """Misfit if another alternative of a union would be nearer when it arrives."""
        altered(value, self._kind.build(self._plain.decode(head)))

    def _with_arrays(self, array: Callable[[bytes], Array], work: Callable[..., Any], *given: Any) -> Any:
        """Decodes where these arrays are at hand; what a class does when it is made may decode as well."""
        before = getattr(self._here, "array", None)
        self._here.array = array
        try:
            return work(*given)
        finally:
            self._here.array = before

    def _extension(self, code: int, data: memoryview) -> Any:
        if code != ARRAY:
            return msgspec.msgpack.Ext(code, bytes(data))
        array: Callable[[bytes], Array] | None = getattr(self._here, "array", None)
        if array is None:
            raise ValueError("it refers to an array that did not come with it")
        return array(bytes(data))

    def _why_not(self, value: Any, error: Exception) -> EncodeError:
        """What is wrong where; the words of the encoder only if no place is found."""
        misfit = error if isinstance(error, Misfit) else culprit(value)
        if misfit is not None:
            return encode_error(self._topic, misfit.steps, misfit.expected, misfit.value)
        return _cannot_publish(self._topic, value, error)

    def _why_unreadable(self, payload: memoryview, meta: bytes, error: Exception) -> Exception:
        misfit = error if isinstance(error, Misfit) else self._misfit(payload, meta)
        if misfit is not None:
            return decode_misfit(self._topic, misfit.steps, misfit.expected, misfit.value)
        return decode_error(self._topic, f"cannot be read: {_told(error)}; compare the types of both sides")

    def _misfit(self, payload: memoryview, meta: bytes) -> Misfit | None:
        try:
            reader = Reader(payload, meta) if meta else None
            plain = self._with_arrays(
                reader.array if reader else _no_array, self._plain.decode, reader.head if reader else payload
            )
            self._kind.build(plain)
        except Misfit as misfit:
            return misfit
        except Exception:
            pass
        return None


def _no_array(text: bytes) -> Array:
    raise ValueError("it refers to an array that did not come with it")


def _plainer(value: Any) -> Any:
    """Something that msgspec does not know as something that it knows; TypeError if there is none."""
    scalar = plain_scalar(value)
    if scalar is not None:
        return scalar
    from collections.abc import Collection, Mapping

    anything: Any = value  # isinstance would make it a collection of unknown things
    if isinstance(value, Mapping):
        return dict(anything)
    if isinstance(value, Collection) and not is_array(anything):
        return list(anything)
    raise TypeError(f"{type(anything).__name__} {quote(anything)} has no encoding")


def _cannot_publish(topic: str, value: object, error: Exception) -> EncodeError:
    failure = EncodeError(f"cannot publish {quote(value)} on {quote(topic)}: {_told(error)}")
    failure.topic = topic
    return failure


def _told(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply, or contains itself"
    return str(error) or type(error).__name__
