"""How a coroutine waits in an event loop of asyncio: for a file, in a line of its own loop, without a thread.

A future of asyncio hands its task back to the loop, which looks at all files once more before it runs it. A
`Turn` runs its task within the loop's own callback instead: the task has taken what made the file readable
before the loop looks again. That saves a round of the loop for each wait, and lets the file stay registered
between waits.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from types import coroutine
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from contextvars import Context

__all__ = ["Ear", "Line", "Turn", "crowd_in"]


class Ear(Protocol):
    """A file to watch, open for as long as this lives; it becomes readable when its owner goes."""

    def fileno(self) -> int:
        """Its number."""
        ...


class Turn:
    """What one task awaits: like a future, but `wake` runs the task at once."""

    __slots__ = ("_asyncio_future_blocking", "_cancelled", "_context", "_done", "_loop", "_resume")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._asyncio_future_blocking = False
        self._loop = loop
        self._done = self._cancelled = False
        self._resume: Callable[[Turn], object] | None = None
        self._context: Context | None = None

    def wake(self) -> None:
        """Go on, now. For callbacks of the loop only: there no other task runs."""
        if not self._done:
            self._done = True
            if self._resume is not None:
                resume, context, self._resume = self._resume, self._context, None
                if context is None:
                    resume(self)
                else:
                    context.run(resume, self)

    def wake_soon(self) -> None:
        """Go on, in the next round of the loop. May be called within a task."""
        if not self._done:
            self._done = True
            # A loop that was closed runs nobody any more.
            if self._resume is not None and not self._loop.is_closed():
                self._loop.call_soon(self._resume, self, context=self._context)
                self._resume = None

    def __await__(self) -> Generator[Turn, None, None]:
        if self._done:
            return self.result()
        self.blocks()
        return (yield self)

    def blocks(self) -> None:
        """A task that is given this now waits for it, and asks for the result itself before it goes on."""
        self._asyncio_future_blocking = True

    # ---- what a task of asyncio wants of what it awaits ----------------------------------------

    def add_done_callback(self, resume: Callable[[Turn], object], *, context: Context | None = None) -> None:
        """A task says how it goes on."""
        if self._done:
            self._loop.call_soon(resume, self, context=context)
        else:
            self._resume, self._context = resume, context

    def remove_done_callback(self, resume: Callable[[Turn], object]) -> int:
        """A task does not wait any more; how many callbacks were there."""
        found = self._resume is not None and self._resume == resume
        if found:
            self._resume = None
        return int(found)

    def cancel(self, msg: object = None) -> bool:
        """The task is cancelled; False if it was woken before."""
        if self._done:
            return False
        self._cancelled = True
        self.wake_soon()
        return True

    def cancelled(self) -> bool:
        """Whether `cancel` was in time."""
        return self._cancelled

    def done(self) -> bool:
        """Whether it was woken, or cancelled."""
        return self._done

    def result(self) -> None:
        """Nothing, or CancelledError."""
        if self._cancelled:
            raise asyncio.CancelledError

    def exception(self) -> BaseException | None:
        """None, or CancelledError is raised."""
        self.result()
        return None

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The loop of its task."""
        return self._loop


class Line:
    """Those who wait in one loop for one file, in the order in which they came.

    The file stays registered until it is readable and nobody waits. Meanwhile the loop keeps the line; who
    wants to find it again refers to it weakly, so that a loop that goes takes all who waited along.
    """

    __slots__ = ("__weakref__", "_crowd", "_ear", "_file", "_loop", "_turns", "rested")

    def __init__(self, loop: asyncio.AbstractEventLoop, ear: Ear) -> None:
        self._crowd = crowd_in(loop)
        self._loop = loop
        self._turns: deque[Turn] = deque()
        self._ear = ear
        self._file = -1
        self.rested: float | None = None
        """Seconds of the last wait."""

    def loop_is_quiet(self) -> bool:
        """Whether a short look keeps nobody waiting."""
        return self._crowd.is_quiet()

    @coroutine
    def wait(self, deadline: float | None) -> Generator[Turn, None, None]:
        """Until the file is readable and it is our turn, at most until the deadline. May end for nothing."""
        if self._file < 0:
            file = self._ear.fileno()
            self._loop.add_reader(file, self._on_readable)
            self._file = file
        turn = Turn(self._loop)
        begin = time.monotonic()
        timer = None if deadline is None else self._loop.call_later(deadline - begin, turn.wake)
        self._turns.append(turn)
        self._crowd.waiting += 1
        try:
            # What `await turn` does; a frame less on the way back.
            turn.blocks()
            yield turn
        finally:
            self._crowd.waiting -= 1
            if timer is not None:
                timer.cancel()
            if self._turns[0] is turn:
                self._turns.popleft()
            else:
                self._turns.remove(turn)
            self.rested = time.monotonic() - begin

    def _on_readable(self) -> None:
        """One is woken; level-triggered, the loop comes here again for the next one while there is more."""
        for turn in self._turns:
            if not turn.done():
                return turn.wake()
        if not self._turns:  # those that are done are about to go
            self.close()
        return None

    def close(self) -> None:
        """The loop calls no more."""
        if self._file >= 0 and not self._loop.is_closed():
            self._loop.remove_reader(self._file)
        self._file = -1


class Crowd:
    """Who waits in one loop, for whatever files."""

    __slots__ = ("ready", "waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.waiting = 0
        self.ready = getattr(loop, "_ready", None)
        """What asyncio runs next. Other loops do not show it."""

    def is_quiet(self) -> bool:
        """Whether nobody waits or is about to run, so far as we know, whom a short look keeps waiting."""
        return not self.waiting and not self.ready


def crowd_in(loop: asyncio.AbstractEventLoop) -> Crowd:
    """That of a loop."""
    crowd = _crowds.get(loop)
    if crowd is None:
        crowd = _crowds[loop] = Crowd(loop)
    return crowd


_crowds: WeakKeyDictionary[asyncio.AbstractEventLoop, Crowd] = WeakKeyDictionary()
