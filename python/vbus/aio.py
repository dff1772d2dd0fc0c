"""The twins for asyncio: waiting without a thread, and without losing a sample to a cancellation.

A receiver waits for its subscriber's descriptor to become readable and takes the sample in the same step in
which it returns it. So a receiver that is cancelled, however late, has taken nothing.
"""

# ruff: noqa: ASYNC109
# ASYNC109: a twin has the arguments of its original.

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .errors import Closed, Timeout, quote

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._vbus import Sample, Subscriber

    T = TypeVar("T")
    T_co = TypeVar("T_co", covariant=True)

    class Receiver(Protocol[T_co]):
        """A Subscriber, a Watch: something that gives what waits, and whose file tells when to ask."""

        def receive_nowait(self) -> T_co | None: ...
        def fileno(self) -> int: ...


__all__ = ["Waiters", "in_slices", "next_of", "receive", "receive_many"]


async def receive(receiver: Receiver[T], waiters: Waiters, timeout: float | None) -> T:
    """The next sample or event. Timeout if none comes in time, Closed when the subscriber is."""
    deadline = deadline_in(timeout)
    await waiters.let_others_run()
    while True:
        received = receiver.receive_nowait()
        if received is not None:
            return received
        await waiters.wait(receiver, deadline)


async def receive_many(
    subscriber: Subscriber[T], waiters: Waiters, max: int | None, timeout: float | None
) -> list[Sample[T]]:
    """What waits, up to `max`, and at least one. Timeout and Closed as for `receive`."""
    deadline = deadline_in(timeout)
    while True:
        try:
            return subscriber.receive_many(max, 0)
        except Timeout:
            await waiters.wait(subscriber, deadline)


class Waiters:
    """Who waits for one subscriber, in whatever loops: each sample wakes one of them."""

    __slots__ = ("_calls", "_queues")

    def __init__(self) -> None:
        # A loop is here only while somebody waits in it, and only that loop's thread touches its queue.
        self._queues: dict[asyncio.AbstractEventLoop, deque[asyncio.Future[bool]]] = {}
        self._calls = 0

    async def let_others_run(self) -> None:
        """Now and then: where samples never end, a receiver would never give the loop back."""
        self._calls += 1
        if self._calls % CALLS_IN_A_ROW == 0:
            await asyncio.sleep(0)

    async def wait(self, receiver: Receiver[Any], deadline: float | None) -> None:
        """Until the receiver may have something, or is closed. Timeout at the deadline."""
        remaining = None if deadline is None else deadline - time.monotonic()
        if remaining is not None and remaining <= 0:
            raise Timeout(f"nothing came on {_name(receiver)} in time")
        loop = asyncio.get_running_loop()
        queue = self._queues.get(loop)
        if queue is None:
            queue = self._queues[loop] = deque()
            loop.add_reader(receiver.fileno(), _wake_one, queue)
        future = loop.create_future()
        queue.append(future)
        timer = None if remaining is None else loop.call_later(remaining, _end, future)
        try:
            await future
        finally:
            if timer is not None:
                timer.cancel()
            if future in queue:
                queue.remove(future)
            if not queue and self._queues.pop(loop, None) is not None:
                loop.remove_reader(receiver.fileno())


async def in_slices(attempt: Callable[[float], bool], timeout: float | None) -> bool:
    """`attempt(seconds)` in a thread, again and again: a cancellation leaves no thread behind for long."""
    deadline = deadline_in(timeout)
    if attempt(0):
        return True
    while True:
        remaining = SLICE_SECONDS if deadline is None else min(SLICE_SECONDS, deadline - time.monotonic())
        if remaining <= 0:
            return False
        if await asyncio.to_thread(attempt, remaining):
            return True


def deadline_in(timeout: float | None) -> float | None:
    """The end of the wait on the monotonic clock. ValueError for a negative timeout."""
    if timeout is None:
        return None
    if not timeout >= 0:
        raise ValueError(f"timeout is {timeout}; give seconds from 0 on, or None to wait for ever")
    return time.monotonic() + timeout


async def next_of(receiver: Receiver[T], waiters: Waiters) -> T:
    """For `async for`: ends when the subscriber closes."""
    try:
        return await receive(receiver, waiters, None)
    except Closed:
        raise StopAsyncIteration from None


SLICE_SECONDS = 0.2
CALLS_IN_A_ROW = 64


def _name(receiver: object) -> str:
    return quote(getattr(receiver, "topic", "watch()"))


def _wake_one(queue: deque[asyncio.Future[bool]]) -> None:
    """Level-triggered: while a sample is left, the loop comes here again for the next one."""
    while queue:
        future = queue.popleft()
        if not future.done():
            future.set_result(True)
            return


def _end(future: asyncio.Future[bool]) -> None:
    if not future.done():
        future.set_result(False)
