"""From a value to bytes and back: one `Codec` per publisher or subscriber.

An encoder is `encoder(value) -> (encoding, buffers, meta)`; the buffers, one after the other, are the
payload, and `meta` travels beside it. Plain `bytes` instead of all that are MessagePack without arrays. A
decoder is `decoder(encoding, payload, meta) -> value`.

| encoding    | payload                                                    | meta                          |
|-------------|------------------------------------------------------------|-------------------------------|
| `"raw"`     | the bytes themselves                                       | empty                         |
| `"ndarray"` | the elements in C order                                    | shape and dtype, see `arrays` |
| `"msgpack"` | MessagePack; arrays in it follow, each at 64-byte boundary | length of the MessagePack     |
| other       | what a registered codec made                               | empty                         |

Whatever is wrong with a value is an `EncodeError`, whatever is wrong with bytes a `DecodeError`; both
name the topic. This module imports neither numpy nor a MessagePack library until one is needed.
"""

from __future__ import annotations

from .registry import register_codec, registered_type

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TypeAlias

    from typing_extensions import Buffer

    Encoded: TypeAlias = tuple[str, Sequence[Buffer], bytes]
    Encoder: TypeAlias = Callable[[Any], Encoded | bytes]
    Decoder: TypeAlias = Callable[[str, memoryview, bytes], Any]

__all__ = ["Codec", "codec_for", "register_codec", "shape_of"]


class Codec:
    """How values of one type travel on one topic.

    `shape` is the type as text, "" for no type. With `raw`, bytes-like values are the payload as they
    are and a raw payload is read as bytes, without asking encoder or decoder. `lends` says which loans
    the type allows: "bytes", "ndarray" or both, and `takes` which dtypes. `quick`, if there is one, reads
    MessagePack without arrays from a buffer; whatever it raises, the decoder then says what is wrong.
    """

    __slots__ = ("decoder", "encoder", "lends", "quick", "raw", "shape", "takes")

    def __init__(
        self,
        *,
        shape: str,
        raw: bool,
        encoder: Encoder,
        decoder: Decoder,
        lends: tuple[str, ...] = (),
        takes: Callable[[Any], bool] | None = None,
        quick: Callable[[Any], Any] | None = None,
    ) -> None:
        self.shape = shape
        self.raw = raw
        self.encoder = encoder
        self.decoder = decoder
        self.lends = lends
        self.takes = takes
        self.quick = quick


def codec_for(type_: Any, topic: str) -> Codec:
    """The codec for values of `type_` (None: whatever comes) on `topic`.

    ConfigError if the type is one that cannot travel.
    """
    if type_ is None:
        from . import plain

        return Codec(
            shape="",
            raw=True,
            encoder=plain.encoder(topic),
            decoder=plain.decoder(topic),
            lends=("bytes", "ndarray"),
        )
    if type_ is bytes:
        from . import rawbytes

        return Codec(
            shape="bytes",
            raw=True,
            encoder=rawbytes.encoder(topic),
            decoder=rawbytes.decoder(topic),
            lends=("bytes",),
        )
    if (codec := registered_type(type_)) is not None:
        return Codec(
            shape=f"codec<{codec.shape_name}>",
            raw=False,
            encoder=codec.encoder(topic),
            decoder=codec.decoder(topic),
        )
    from . import typed

    return typed.codec(type_, topic)


def shape_of(type_: Any) -> str:
    """The type by shape and field names, as text: "" for None. ConfigError if it cannot travel."""
    if type_ is None:
        return ""
    if (codec := registered_type(type_)) is not None:
        return f"codec<{codec.shape_name}>"
    from .shape import Analysis

    return Analysis(type_).root.text()
