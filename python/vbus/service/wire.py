"""The messages of a call, and what a server announces.

```text
caller                                                server
  request   ──── $vbus/serve/<server id> ──────────────▶   call, stream
  replies   ◀─── $vbus/reply/<caller's node id> ────────   value · item … end · error · refused · lost
                                                           leaving
  control   ──── $vbus/control/<server's node id> ─────▶   cancel, credit
```

Every message is the payload of one sample, encoded as a sample of that value would be; what it is about
stands before the codec's own meta (`crates/vbus-python/src/message.rs` writes and reads it): `kind` (1 byte),
`call` (8 bytes, unique in the caller's node, and known to nobody but the server that was asked), `amount`
(4 bytes). A server announces itself by the shape of its subscriber, which is a small JSON; that of its
callers' publishers is empty, which agrees with everything.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from vbus._vbus import check_topic
from vbus.codec.plain import decoder, encoder
from vbus.errors import DecodeError

if TYPE_CHECKING:
    from vbus._vbus import Message
    from vbus.codec import Encoded
    from vbus.errors import Error

    Outgoing = tuple[int, int, int, Encoded | bytes]
    """kind, call, amount, and a value that is encoded."""

__all__ = [
    "CALL", "CANCEL", "CONTROL", "CREDIT", "END", "ERROR", "ITEM", "LEAVING", "LOST", "REFUSED", "REPLY",
    "SERVE", "STREAM", "VALUE", "WINDOW", "Announced", "copy", "describe", "failure",
    "failure_instead_of", "field", "plain", "read_announced", "read_leaving", "read_plain",
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


def plain(kind: int, call: int, amount: int, value: Any) -> Outgoing:
    """A message of a value of no type."""
    return kind, call, amount, _encode(value)


def copy(outgoing: Outgoing) -> Outgoing:
    """The same for later: whoever made the value may go on to change it."""
    kind, call, amount, encoded = outgoing
    if not isinstance(encoded, bytes):
        encoding, buffers, meta = encoded
        encoded = encoding, [bytes(buffer) for buffer in buffers], meta
    return kind, call, amount, encoded


def failure(call: int, error: BaseException, trace: str = "") -> Outgoing:
    """What a handler raised, for its caller."""
    try:
        text = str(error)
    except BaseException:  # a broken __str__ must not hide the error that is being told
        text = ""
    said = {"type": type(error).__qualname__, "message": text, "traceback": trace}
    return plain(ERROR, call, 0, {name: _fit(text) for name, text in said.items()})


def failure_instead_of(outgoing: Outgoing, error: Error) -> Outgoing:
    """For a reply that turned out to be one that cannot be sent."""
    return failure(outgoing[1], error)


def _fit(text: str) -> str:
    """As UTF-8 takes it, and of a length that a message has; the end of a traceback says most."""
    text = text.encode(errors="replace").decode()
    return text if len(text) <= TEXT_MAX else f"…{text[-TEXT_MAX:]}"


TEXT_MAX = 64 << 10


def read_plain(message: Message) -> Any:
    """The value of no type in a message. DecodeError if there is none."""
    return _decode(message.encoding, memoryview(message.payload), message.meta)


def read_leaving(message: Message) -> tuple[str, frozenset[int]] | None:
    """Which server leaves, and what it will still answer; None if it is nonsense."""
    try:
        said = read_plain(message)
    except DecodeError:
        return None
    server, calls = field(said, "server"), field(said, "calls")
    if not isinstance(server, str) or not isinstance(calls, list):
        return None
    return server, frozenset(number for number in cast("list[object]", calls) if isinstance(number, int))


def field(said: object, name: str) -> object:
    """What stands under a name in what another one says; None if nothing does."""
    return cast("dict[object, object]", said).get(name) if isinstance(said, dict) else None


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
