"""The messages of a call, and what a server announces.

```text
caller                                                server
  request   ──── $vbus/serve/<server id> ──────────────▶   call, stream
  replies   ◀─── $vbus/reply/<caller's node id> ────────   value · item … end · error · refused · lost
                                                           leaving
  control   ──── $vbus/control/<server's node id> ─────▶   cancel, credit
```

Every message is the payload of one sample, encoded as a sample of that value would be; what it is about
stands before the codec's own meta: `kind` (1 byte), `call` (8 bytes, unique in the caller's node), `amount`
(4 bytes). A server announces itself by the shape of its subscriber, which is a small JSON; that of its
callers' publishers is empty, which agrees with everything.
"""

from __future__ import annotations

import json
from struct import Struct, error
from typing import TYPE_CHECKING, Any, NamedTuple

from vbus._vbus import check_topic
from vbus.codec.plain import decoder, encoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer

    from vbus.codec import Encoded
    from vbus.errors import Error

    Outgoing = tuple[str, Sequence[Buffer], bytes]

__all__ = [
    "CALL", "CANCEL", "CONTROL", "CREDIT", "END", "ERROR", "ITEM", "LEAVING", "LOST", "REFUSED", "REPLY",
    "SERVE", "STREAM", "VALUE", "WINDOW", "Announced", "Message", "as_it_is", "describe", "failure",
    "failure_instead_of", "message", "plain", "read_announced", "read_plain",
]  # fmt: skip

SERVE = "$vbus/serve/"
REPLY = "$vbus/reply/"
CONTROL = "$vbus/control/"

# To a server.
CALL = 1
STREAM = 2  # amount: items that may be sent at first
# To a caller.
VALUE = 3
ITEM = 4
END = 5
ERROR = 6  # {"type", "message", "traceback"}
REFUSED = 7  # it did not run; a str says why
LOST = 8  # it may have run; a str says why
LEAVING = 9  # {"server", "calls"}: the server is closing, and will answer only these
# To a server's node.
CANCEL = 10
CREDIT = 11  # amount: items that may be sent in all

WINDOW = 64
"""Items of a stream that may be on their way, or wait to be taken."""

_HEAD = Struct("<BQI")


class Message(NamedTuple):
    """One message as it arrived. The payload is a view of the bus's memory."""

    kind: int
    call: int
    amount: int
    encoding: str
    payload: memoryview
    meta: bytes


def as_it_is(encoding: str, payload: memoryview, meta: bytes) -> Message | None:
    """The decoder of every subscriber of this room: None for nonsense."""
    try:
        kind, call, amount = _HEAD.unpack_from(meta)
    except error:
        return None
    return Message(kind, call, amount, encoding, payload, meta[_HEAD.size :])


def message(kind: int, call: int, amount: int, encoded: Encoded | bytes) -> Outgoing:
    """What `publish_encoded` wants, of an encoded value."""
    if isinstance(encoded, bytes):
        return "msgpack", (encoded,), _HEAD.pack(kind, call, amount)
    encoding, buffers, meta = encoded
    return encoding, buffers, _HEAD.pack(kind, call, amount) + meta


def plain(kind: int, call: int, amount: int, value: Any) -> Outgoing:
    """The same, of a value of no type."""
    return message(kind, call, amount, _encode(value))


def failure(call: int, error: BaseException, trace: str = "") -> Outgoing:
    """What a handler raised, for its caller."""
    try:
        text = str(error)
    except Exception:  # a broken __str__ must not hide the error that is being told
        text = ""
    said = {"type": type(error).__qualname__, "message": _fit(text), "traceback": _fit(trace)}
    return plain(ERROR, call, 0, said)


def failure_instead_of(outgoing: Outgoing, error: Error) -> Outgoing:
    """For a reply that turned out to be one that cannot be sent."""
    return failure(_HEAD.unpack_from(outgoing[2])[1], error)


def _fit(text: str) -> str:
    """As UTF-8 takes it, and of a length that a message has; the end of a traceback says most."""
    text = text.encode(errors="replace").decode()
    return text if len(text) <= TEXT_MAX else f"…{text[-TEXT_MAX:]}"


TEXT_MAX = 64 << 10


def read_plain(message: Message) -> Any:
    """The value of no type in a message. DecodeError if there is none."""
    return _decode(message.encoding, message.payload, message.meta)


_encode = encoder("$vbus")
_decode = decoder("$vbus")


class Announced(NamedTuple):
    """What a server says of itself."""

    name: str
    request: str
    reply: str


def describe(name: str, request: str, reply: str) -> str:
    """A server's announcement, as the shape of its subscriber."""
    return json.dumps({"service": name, "request": request, "reply": reply}, separators=(",", ":"))


def read_announced(shape: str) -> Announced | None:
    """What a server says; None if it is nonsense. It comes from others: the core bounds its length."""
    try:
        said = json.loads(shape)
        announced = Announced(said["service"], said["request"], said["reply"])
        if {type(text) for text in announced} != {str}:
            return None
        check_topic(announced.name, pattern=False)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return announced
