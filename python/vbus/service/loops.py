"""Handlers that are coroutines: tasks of one loop, as many at a time as `concurrency` says."""

from __future__ import annotations

import asyncio
import inspect
import time
from _thread import allocate_lock, get_ident, start_new_thread
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vbus.errors import Closed
from vbus.resume import crowd_in

from .serving import Served, Serving
from .threads import not_a_stream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from vbus._vbus import Message

    from .contract import Contract
    from .exchange import Exchange

__all__ = ["LoopServing", "OwnLoop", "own_loop"]


class LoopServing(Serving):
    """Looks at the bus when its file is readable and a task more may run."""

    def __init__(
        self,
        exchange: Exchange,
        contract: Contract,
        handler: Callable[[Any], Any],
        concurrency: int,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(exchange, contract, handler, concurrency)
        self._loop = loop
        self._tasks: set[asyncio.Task[None]] = set()
        self._looks = False
        self._guard: AsyncGenerator[None, None] | None = None
        self._crowd = crowd_in(loop)
        self._resting_since = time.monotonic()
        self._rested: float | None = None
        self._thread = 0

    def run(self) -> None:
        """Begin; from whatever thread."""
        self._in_loop(self._start)

    def halt(self, abandoned: list[Served]) -> None:
        """What runs is cancelled."""
        self._in_loop(self._cancel_all)

    def is_stopped_by(self, thread: int) -> bool:
        """The loop's own thread cannot wait for itself."""
        return self._thread == thread

    def runs_here(self, served: Served) -> bool:
        """Whether this is the loop's own thread."""
        return self.is_stopped_by(get_ident())

    def stop_taking(self) -> None:
        """As every server does; and the loop forgets the file."""
        super().stop_taking()
        self._in_loop(self._look_away)

    def _in_loop(self, what: Callable[[], None]) -> None:
        if asyncio._get_running_loop() is self._loop:
            what()
        else:
            with suppress(RuntimeError):  # the loop is closed: nothing runs there any more
                self._loop.call_soon_threadsafe(what)

    # ---- in the loop ----------------------------------------------------------------------------

    def _start(self) -> None:
        self._thread = get_ident()
        self._guard = self._until_the_loop_ends()
        # One step is enough for the loop to know it, and to end it when it ends itself.
        with suppress(StopIteration):
            self._guard.__anext__().send(None)
        self._look_on()

    async def _until_the_loop_ends(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            if not self.is_closing:
                self.close(0)

    def _look_on(self) -> None:
        if not self._looks and not self.is_closing:
            self._looks = True
            self._loop.add_reader(self.subscriber.fileno(), self._on_readable)

    def _look_away(self) -> None:
        if self._looks:
            self._looks = False
            self._loop.remove_reader(self.subscriber.fileno())
        guard, self._guard = (self._guard, None) if self.is_closing else (None, self._guard)
        if guard is not None:
            with suppress(StopIteration, RuntimeError):  # or it runs, and is what closes us
                guard.aclose().send(None)

    def _take(self) -> None:
        """Begin what there is room for. When something comes and there is none, the loop looks away."""
        try:
            while len(self._tasks) < self.concurrency:
                message = self.subscriber.take_message()
                if message is None:
                    return None
                task = self._loop.create_task(self._handle(message))
                self._tasks.add(task)
                task.add_done_callback(self._done)
                del message
        except Closed:
            return self._look_away()
        return None

    def _on_readable(self) -> None:
        if len(self._tasks) >= self.concurrency:
            return self._look_away()
        if not self._tasks:
            self._rested = time.monotonic() - self._resting_since
        return self._take()

    def _look(self) -> None:
        """Have a short look for the next request, where it tends to come soon."""
        if not self._tasks and self._crowd.is_quiet() and not self.is_closing:
            rested, self._rested = self._rested, None
            with suppress(Closed):
                if self.subscriber.look(rested):
                    self._take()
                self._resting_since = time.monotonic()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception) and not isinstance(error, Closed):
            self.tell_unanswered(error)
        if not self._looks:
            self._look_on()
        self._look()

    def _cancel_all(self) -> None:
        self._look_away()
        for task in self._tasks:
            task.cancel()

    async def _handle(self, message: Message) -> None:
        caller = message.node
        mailbox = self.exchange.mailbox_if_open(caller)
        if mailbox is None:
            mailbox = await asyncio.to_thread(self.exchange.mailbox, caller)
        served = self.begin(message, mailbox)
        del message
        if served is None:
            return
        task = asyncio.current_task()
        news = asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(look)

        def look() -> None:
            news.set()
            if served.is_cancelled and not served.is_over and task is not None and not served.pauses:
                task.cancel()

        with self.exchange.lock:
            served.stop = wake
            if served.is_cancelled:
                wake()
        try:
            await self._answer(served, news)
        except asyncio.CancelledError:
            served.abandon("its handler was cancelled")
            raise
        except BaseException as error:
            # Whatever it is, it is the caller's to know. Ctrl-C is everybody's.
            served.fail(error)
            if isinstance(error, KeyboardInterrupt):
                raise

    async def _answer(self, served: Served, news: asyncio.Event) -> None:
        value = served.take_request()
        reply = self.handler(value)
        del value
        if not inspect.isasyncgen(reply):
            return served.reply(await reply)
        if not served.is_stream:
            await reply.aclose()
            raise not_a_stream(self.contract.name)
        return await self._stream(served, reply, news)

    async def _stream(self, served: Served, items: AsyncGenerator[Any, Any], news: asyncio.Event) -> None:
        try:
            while served.is_wanted():
                if not served.may_send():
                    news.clear()
                    if served.may_send() or not served.is_wanted():
                        continue
                    served.pauses = True
                    await news.wait()
                    served.pauses = False
                    continue
                try:
                    item = await anext(items)
                except StopAsyncIteration:
                    return served.end()
                if not served.is_wanted():
                    break
                served.item(item)
                del item
        finally:
            await items.aclose()
        return served.drop()


class OwnLoop:
    """A loop on a thread of the node's, for coroutines that are served where no loop runs."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._unasked = allocate_lock()
        self._ended = allocate_lock()
        self._ended.acquire()
        self._thread = start_new_thread(self._run, ())

    def stop(self) -> None:
        """End what runs in it, and the loop. May be called twice."""
        if self._unasked.acquire(blocking=False):
            with suppress(RuntimeError):  # a handler has ended it
                self.loop.call_soon_threadsafe(self.loop.stop)
        if get_ident() != self._thread and self._ended.acquire(timeout=END_SECONDS):
            self._ended.release()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            tasks = asyncio.all_tasks(self.loop)
            for task in tasks:
                task.cancel()
            if tasks:
                self.loop.run_until_complete(asyncio.wait(tasks, timeout=END_SECONDS))
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
        finally:
            asyncio.set_event_loop(None)
            self.loop.close()
            self._ended.release()


END_SECONDS = 1.0


def own_loop(exchange: Exchange) -> asyncio.AbstractEventLoop:
    """The node's own loop, made when it is first needed."""
    with exchange.lock:
        if exchange.own_loop is None:
            exchange.own_loop = OwnLoop()
        own: OwnLoop = exchange.own_loop
        return own.loop
