"""The twins for asyncio: waiting without a thread, and without losing a sample to a cancellation.

A receiver waits for its source's file to become readable and takes in the same step in which it returns. So a
receiver that is cancelled, however late, has taken nothing.
"""

# ruff: noqa: ASYNC109
# ASYNC109: a twin has the arguments of its original.

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from weakref import WeakValueDictionary

from .errors import Closed
from .resume import Ear, Line
from .waits import deadline_in, is_over

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._vbus import News
    from .errors import Timeout

    Item = TypeVar("Item")

    class Source(Protocol[Item]):
        """What items are received from: a Subscriber, a Watch."""

        def receive_nowait(self) -> Item | None: ...
        def receive_many_nowait(self, max: int | None) -> list[Item]: ...
        def glance(self) -> Item | None: ...
        def look(self, rested: float | None) -> bool: ...
        def ear(self) -> Ear: ...
        def timed_out(self, timeout: float) -> Timeout: ...

    class Changing(Protocol):
        """What there is news of: a Node, a Publisher, a Subscriber."""

        def news(self) -> News: ...


__all__ = ["Receivers", "until"]


class Receivers:
    """Who waits for one source, in whatever loops: each item wakes one of them."""

    __slots__ = ("_calls", "_ear", "_lines")

    def __init__(self) -> None:
        self._lines: WeakValueDictionary[asyncio.AbstractEventLoop, Line] = WeakValueDictionary()
        self._ear: Ear | None = None
        self._calls = 0

    async def receive(self, source: Source[Item], timeout: float | None) -> Item:
        """The next item. Timeout if none comes in time, Closed when the source is."""
        deadline = None if timeout is None else deadline_in(timeout)
        self._calls += 1
        if self._calls % CALLS_IN_A_ROW == 0:
            # Where items never end, a receiver would never give the loop back.
            await asyncio.sleep(0)
        item = source.glance()
        if item is not None:
            return item
        line = self._line(source)
        if timeout != 0 and line.loop_is_quiet():
            rested, line.rested = line.rested, None
            source.look(rested)
        while (item := source.receive_nowait()) is None:
            if timeout is not None and is_over(deadline):
                raise source.timed_out(timeout)
            await line.wait(deadline)
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
            if timeout is not None and is_over(deadline):
                raise source.timed_out(timeout)
            await self._line(source).wait(deadline)
        return items

    def _line(self, source: Source[Any]) -> Line:
        """That of the running loop."""
        loop = asyncio.get_running_loop()
        line = self._lines.get(loop)
        if line is None:
            if self._ear is None:
                self._ear = source.ear()
            line = self._lines[loop] = Line(loop, self._ear)
        return line


async def until(true: Callable[[], bool], source: Changing, timeout: float | None) -> bool:
    """Until `true()` is, looked at whenever there is news of `source`; False if it is not in time."""
    deadline = deadline_in(timeout)
    if true():
        return True
    news = source.news()
    line = Line(asyncio.get_running_loop(), news)
    try:
        while not true():
            if is_over(deadline):
                return False
            await line.wait(deadline)
            news.silence()
    finally:
        line.close()
    return True


CALLS_IN_A_ROW = 32
