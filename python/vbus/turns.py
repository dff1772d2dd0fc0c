"""`publish_async`: waiting for room in an event loop, in the order of the calls, without a thread.

A sample is encoded once, when the call is made. Where there is room it goes at once. Else its task queues up
behind those of its loop that wait for the same publisher; only the first of them tries, when the publisher's
file says that there may be room. A task publishes in the same step in which it returns: one that is cancelled
has published nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from .resume import Line, Turn
from .waits import is_over

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._vbus import Draft, Publisher, Room

__all__ = ["Queues"]


class Queues:
    """Who waits to publish at one publisher, in whatever loops."""

    __slots__ = ("_queues",)

    def __init__(self) -> None:
        # A loop that goes takes its queue along.
        self._queues: WeakValueDictionary[asyncio.AbstractEventLoop, Queue] = WeakValueDictionary()

    async def publish(
        self, publisher: Publisher[Any], draft: Draft, attempt: Callable[[], int | None] | None = None
    ) -> int:
        """Publish when it is our turn and there is room; its sequence. Raises what `publish` does.

        `attempt` is what tries it, if that is more than `draft.attempt`.
        """
        loop = asyncio.get_running_loop()
        queue = self._queues.get(loop)
        if queue is None:
            queue = self._queues[loop] = Queue(loop, publisher.room())
        return await queue.publish(draft, attempt or draft.attempt)


class Queue(Line):
    """Who waits in one loop: the first for room, the others for their turn. Only its thread touches it."""

    __slots__ = ("_room", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop, room: Room) -> None:
        super().__init__(loop, room)
        self._waiting: deque[_Waiting] = deque()
        self._room = room

    async def publish(self, draft: Draft, attempt: Callable[[], int | None]) -> int:
        """As `Queues.publish`."""
        me = _Waiting(draft, time.monotonic())
        self._waiting.append(me)
        draft.queue_up()
        try:
            if not draft.is_blocked:
                # It did not try yet, for those before it or for the sake of the loop.
                await asyncio.sleep(0)
            while True:
                if self._waiting[0] is not me:
                    await self._wait_for_turn(me)
                elif (sequence := attempt()) is not None:
                    return sequence
                else:
                    await self._wait_for_room(me)
        finally:
            was_first = self._waiting[0] is me
            self._waiting.remove(me)
            if was_first and self._waiting and (turn := self._waiting[0].turn) is not None:
                turn.wake_soon()
            draft.leave_queue(me.waited() if me.was_behind or draft.is_blocked else None)

    async def _wait_for_turn(self, me: _Waiting) -> None:
        """Until this is the first, or late."""
        me.was_behind = True
        first = self._waiting[0].draft
        # Whoever is first and did not try yet is about to.
        if me.is_late() and (error := first.timeout(me.waited())) is not None:
            raise error
        turn = me.turn = Turn(self._loop)
        timer = None
        if me.deadline is not None and not me.is_late():
            timer = self._loop.call_later(me.deadline - time.monotonic(), turn.wake)
        try:
            await turn
        finally:
            me.turn = None
            if timer is not None:
                timer.cancel()

    async def _wait_for_room(self, me: _Waiting) -> None:
        """Until there may be some. Timeout when it is late; a warning when it has been long."""
        waited = me.waited()
        if me.is_late() and (error := me.draft.timeout(waited)) is not None:
            raise error
        me.draft.tell_long_wait(waited)
        try:
            look_in = self._room.ask(me.draft, waited)
            if look_in == 0:
                return await asyncio.sleep(0)
            now = time.monotonic()
            ends = [me.deadline, me.since + LONG_WAIT_S if waited < LONG_WAIT_S else None]
            ends.append(None if look_in is None else now + look_in)
            await self.wait(min((end for end in ends if end is not None), default=None))
        finally:
            self._room.rest()
        return None


class _Waiting:
    """A task that waits."""

    __slots__ = ("deadline", "draft", "since", "turn", "was_behind")

    def __init__(self, draft: Draft, since: float) -> None:
        self.draft = draft
        self.since = since
        self.deadline = None if draft.block_timeout is None else since + draft.block_timeout
        self.turn: Turn | None = None
        self.was_behind = False

    def waited(self) -> float:
        return time.monotonic() - self.since

    def is_late(self) -> bool:
        return is_over(self.deadline)


LONG_WAIT_S = 1.0
"""After so long a publish tells who keeps it waiting; the core says the same."""
