"""The twins for asyncio: waiting without a thread, and without losing a sample to a cancellation.

A receiver waits for its source's file to become readable and takes in the same step in which it returns. So a
receiver that is cancelled, however late, has taken nothing.
"""

# ruff: noqa: ASYNC109
# ASYNC109: a twin has the arguments of its original.

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

from .errors import Closed
from .resume import Ear, Line, Lines, deadline_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._vbus import News
    from .errors import Timeout

    Item = TypeVar("Item")

    class Source(Protocol[Item]):
        """What items are received from: a Subscriber, a Watch."""

        def receive_nowait(self) -> Item | None: ...
        def soon(self, look: bool) -> Item | None: ...
        def rested(self, seconds: float) -> None: ...
        def receive_many_nowait(self, max: int | None) -> list[Item]: ...
        def ear(self) -> Ear: ...
        def timed_out(self, timeout: float) -> Timeout: ...

    class Changing(Protocol):
        """What there is news of: a Node, a Publisher, a Subscriber."""

        def news(self) -> News: ...


__all__ = ["Receivers", "here_in", "until"]


class Receivers:
    """Who waits for one source, in whatever loops: each item wakes one of them."""

    __slots__ = ("_calls", "_last", "_lines")

    def __init__(self) -> None:
        self._lines = Lines()
        self._calls = 0
        self._last: tuple[asyncio.AbstractEventLoop | None, Here | None] = None, None

    async def receive(self, source: Source[Item], timeout: float | None) -> Item:
        """The next item. Timeout if none comes in time, Closed when the source is."""
        deadline = None if timeout is None else deadline_in(timeout)
        self._calls += 1
        if self._calls % CALLS_IN_A_ROW == 0:
            # Where items never end, a receiver would never give the loop back.
            await asyncio.sleep(0)
        here = self._here()
        # A short look keeps nobody else of the loop waiting.
        item = source.soon(timeout != 0 and here.is_idle())
        while item is None and (item := source.receive_nowait()) is None:
            await self._wait(source, timeout, deadline)
        return item

    async def next(self, source: Source[Item]) -> Item:
        """For `async for`: ends when the source closes."""
        try:
            return await self.receive(source, None)
        except Closed:
            raise StopAsyncIteration from None

    async def receive_many(self, source: Source[Item], max: int | None, timeout: float | None) -> list[Item]:
        """What waits, up to `max`, and at least one. Timeout and Closed as for `receive`."""
        deadline = deadline_in(timeout)
        self._calls += 1
        if self._calls % CALLS_IN_A_ROW == 0:
            await asyncio.sleep(0)
        while not (items := source.receive_many_nowait(max)):
            await self._wait(source, timeout, deadline)
        return items

    async def _wait(self, source: Source[Any], timeout: float | None, deadline: float | None) -> None:
        """Until the source may have something, or is closed. Timeout at the deadline."""
        if timeout is not None and deadline is not None and time.monotonic() >= deadline:
            raise source.timed_out(timeout)
        here, begin = self._here(), time.monotonic()
        here.waiting += 1
        try:
            await self._lines.here(source).wait(deadline)
        finally:
            here.waiting -= 1
        source.rested(time.monotonic() - begin)

    def _here(self) -> Here:
        loop = asyncio.get_running_loop()
        last, here = self._last
        if here is None or last is not loop:
            here = here_in(loop)
            self._last = loop, here
        return here


class Here:
    """What receivers know of a loop."""

    __slots__ = ("ready", "waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.ready = getattr(loop, "_ready", None)
        """What asyncio runs next. Other loops do not show it; a look there is as short."""
        self.waiting = 0
        """Receivers that wait."""

    def is_idle(self) -> bool:
        """Whether nobody is kept waiting by one who has a short look."""
        return not self.waiting and not self.ready


def here_in(loop: asyncio.AbstractEventLoop) -> Here:
    """That of a loop."""
    here = _known.get(loop)
    if here is None:
        here = _known[loop] = Here(loop)
    return here


_known: WeakKeyDictionary[asyncio.AbstractEventLoop, Here] = WeakKeyDictionary()


async def until(true: Callable[[], bool], source: Changing, timeout: float | None) -> bool:
    """Until `true()` is, looked at whenever there is news of `source`; False if it is not in time."""
    deadline = deadline_in(timeout)
    if true():
        return True
    news = source.news()
    line = Line(asyncio.get_running_loop(), news)
    try:
        while not true():
            if deadline is not None and time.monotonic() >= deadline:
                return False
            await line.wait(deadline)
            news.silence()
    finally:
        line.close()
    return True


CALLS_IN_A_ROW = 32
