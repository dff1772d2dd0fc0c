"""`Watch`: what happens in the domain, event by event, beginning with what is there already."""

# ruff: noqa: ASYNC109
# ASYNC109: a twin has the arguments of its original.

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from .closing import Closing
from .errors import Closed
from .records import (
    PathChanged,
    Peer,
    PeerJoined,
    PeerLeft,
    PeerRefused,
    TopicAdded,
    TopicRemoved,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any, Self

    from ._vbus import Ear
    from ._vbus import Watch as CoreWatch
    from .aio import Receivers
    from .errors import Timeout
    from .node import Node
    from .records import Event

__all__ = ["Watch"]


class Watch(Closing):
    """Receives what happens in the domain; made by `node.watch`. All methods are thread-safe.

    It begins with an event for everything already there: peers, those that were refused, topics. A peer joins
    before its topics are added, and leaves after they are removed. Iterate, or call `receive`; of several
    receivers each event goes to one. Up to 65,536 events wait; then the oldest are dropped, which `missed`
    counts. Close it, or use it in `with`; it also closes when nothing refers to it.
    """

    __slots__ = ("__weakref__", "_core", "_node", "_receivers")

    def __init__(self, node: Node, core: CoreWatch) -> None:
        self._node = node
        self._core = core
        self._receivers: Receivers | None = None

    @property
    def closed(self) -> bool:
        """Whether it, or its node, was closed."""
        return self._core.closed

    @property
    def missed(self) -> int:
        """Events that were dropped because too many waited."""
        return self._core.missed

    def receive(self, timeout: float | None = None) -> Event:
        """The next event. Timeout if nothing happens in `timeout` seconds, Closed when the watch is."""
        return _record(self._core.receive_tuple(timeout))

    def receive_nowait(self) -> Event | None:
        """The next event if one waits, else None. Closed when the watch is."""
        happened = self._core.receive_tuple_nowait()
        return None if happened is None else _record(happened)

    def receive_many(self, max: int | None = None, timeout: float | None = None) -> list[Event]:
        """Waits for one event, `timeout` seconds at most, then returns what waits, up to `max`.

        Timeout and Closed as for `receive`; ValueError for a `max` below 1."""
        return self.receive_many_nowait(max) or self._and_more(self.receive(timeout), max)

    def receive_many_nowait(self, max: int | None = None) -> list[Event]:
        """What waits, up to `max`; nothing if nothing does. Closed when the watch is."""
        if max is not None and max < 1:
            raise ValueError(f"max is {max}; give 1 or more, or None for all that wait")
        first = self.receive_nowait()
        return [] if first is None else self._and_more(first, max)

    async def receive_async(self, timeout: float | None = None) -> Event:
        """`receive` for asyncio; cancelling it never loses an event."""
        return await (self._receivers or self._make_receivers()).receive(self, timeout)

    async def receive_many_async(self, max: int | None = None, timeout: float | None = None) -> list[Event]:
        """`receive_many` for asyncio; cancelling it never loses an event."""
        return await (self._receivers or self._make_receivers()).receive_many(self, max, timeout)

    def fileno(self) -> int:
        """A file that is readable while an event waits or the watch is closed; never read from it."""
        return self._core.fileno()

    def close(self) -> None:
        """Take no more; what waits is discarded. Wakes whoever waits. Closing twice is fine."""
        self._core.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        try:
            return self.receive()
        except Closed:
            raise StopIteration from None

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[Any, Any, Event]:
        return (self._receivers or self._make_receivers()).next(self)

    def __repr__(self) -> str:
        return f"<vbus.Watch of {self._node!r}>"

    def ear(self) -> Ear:
        """A file of one's own that is readable when `fileno` is; what an event loop watches."""
        return self._core.ear()

    def glance(self) -> Event | None:
        """`receive_nowait`."""
        return self.receive_nowait()

    def look(self, rested: float | None) -> bool:
        """Events are too rare to look for them."""
        return False

    def timed_out(self, timeout: float) -> Timeout:
        """The error of a `receive` that waited so long."""
        return self._core.timed_out(timeout)

    def _and_more(self, first: Event, max: int | None) -> list[Event]:
        """An event, and what waits behind it, up to `max` in all."""
        events = [first]
        # One that is closed meanwhile gives no more; what was taken is not lost.
        with suppress(Closed):
            while (max is None or len(events) < max) and (event := self.receive_nowait()) is not None:
                events.append(event)
        return events

    def _make_receivers(self) -> Receivers:
        from .aio import Receivers

        self._receivers = Receivers()
        return self._receivers


def _record(happened: tuple[Any, ...]) -> Event:
    """The record of what the extension tells."""
    kind, *parts = happened
    match kind:
        case "peer_joined" | "peer_left":
            peer, *rest = parts
            record = PeerJoined if kind == "peer_joined" else PeerLeft
            return record(Peer(*peer), *rest)
        case "path_changed":
            peer, *rest = parts
            return PathChanged(Peer(*peer), *rest)
        case "peer_refused":
            return PeerRefused(*parts)
        case "topic_added":
            return TopicAdded(*parts)
        case "topic_removed":
            return TopicRemoved(*parts)
        case _:
            raise AssertionError(f"an event of a kind that is not known here: {kind}")
