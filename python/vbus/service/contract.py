"""A name with two types, ready to encode and decode."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vbus._vbus import check_topic, shapes_agree
from vbus.channel import check_not_own
from vbus.codec import codec_for
from vbus.errors import quote

from . import Service

if TYPE_CHECKING:
    from vbus._vbus import Message
    from vbus.codec import Codec

    from .wire import Announced

__all__ = ["Contract", "contract_of"]


class Contract:
    """What one side knows of a service."""

    __slots__ = ("_agreed", "name", "reply", "request")

    def __init__(self, name: str, request: Codec, reply: Codec) -> None:
        self.name = name
        self.request = request
        self.reply = reply
        self._agreed: dict[Announced, tuple[str, str, str, str] | None] = {}

    def decode_request(self, message: Message) -> Any:
        """DecodeError if it is none."""
        return _decoded(self.request, message)

    def decode_reply(self, message: Message) -> Any:
        """DecodeError if it is none."""
        return _decoded(self.reply, message)

    def misfit(self, server: Announced) -> tuple[str, str, str, str] | None:
        """What keeps us from calling this server: (request or reply, field, offered, asked)."""
        if server not in self._agreed:
            if len(self._agreed) > REMEMBERED:
                self._agreed.clear()
            self._agreed[server] = self._compare(server)
        return self._agreed[server]

    def _compare(self, server: Announced) -> tuple[str, str, str, str] | None:
        if differs := shapes_agree(self.request.shape, server.request):
            return "request", *differs
        if differs := shapes_agree(server.reply, self.reply.shape):
            return "reply", *differs
        return None


def contract_of(service: Service[Any, Any] | str, request: Any, reply: Any) -> Contract:
    """Types that are given beat those of the Service. TopicError for a wrong name, ConfigError for types that
    cannot travel."""
    if isinstance(service, Service):
        name: str = service.name
        request = service.request if request is None else request
        reply = service.reply if reply is None else reply
    else:
        name = service
    key = (name, request, reply)
    try:
        known = _known.get(key)
    except TypeError:  # a type that cannot be hashed
        return _make(name, request, reply)
    if known is None:
        if len(_known) >= REMEMBERED:
            _known.clear()
        known = _known[key] = _make(name, request, reply)
    return known


def _decoded(codec: Codec, message: Message) -> Any:
    if codec.quick is not None and message.encoding == "msgpack" and not message.meta:
        with suppress(Exception):  # the decoder finds the words
            return codec.quick(message.payload)
    return codec.decoder(message.encoding, memoryview(message.payload), message.meta)


def _make(name: Any, request: Any, reply: Any) -> Contract:
    if not isinstance(name, str):
        raise TypeError(f"a service is a str or a vbus.Service, not {quote(name)}")
    check_topic(name, pattern=False)
    check_not_own(name)
    return Contract(name, codec_for(request, name), codec_for(reply, name))


REMEMBERED = 1024
_known: dict[tuple[str, Any, Any], Contract] = {}
