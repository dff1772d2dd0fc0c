"""Handlers that are functions: each runs on one of the server's threads, from request to reply."""

from __future__ import annotations

import inspect
from _thread import allocate_lock, get_ident, start_new_thread
from typing import TYPE_CHECKING, Any

from vbus.errors import Closed

from .serving import Served, Serving

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from .contract import Contract
    from .exchange import Exchange

__all__ = ["ThreadServing", "not_a_stream"]


class ThreadServing(Serving):
    """Threads that take requests in turn: one waits at the bus, the others for it, so a request wakes one."""

    def __init__(
        self, exchange: Exchange, contract: Contract, handler: Callable[[Any], Any], concurrency: int
    ) -> None:
        super().__init__(exchange, contract, handler, concurrency)
        self._turn = allocate_lock()

    def run(self) -> None:
        """Start the threads. They end with the subscriber."""
        for _ in range(self.concurrency):
            # Not `threading`: nobody joins them, and a handler that never ends must not keep a program.
            start_new_thread(self._work, ())

    def halt(self, abandoned: list[Served]) -> None:
        """A function cannot be stopped; a generator is, at its next item."""
        with self.exchange.lock:
            for served in abandoned:
                served.cancel()

    def runs_here(self, served: Served) -> bool:
        """Whether this is the thread that runs it."""
        return served.thread == get_ident()

    def _work(self) -> None:
        while self._take_one():
            pass

    def _take_one(self) -> bool:
        # A method of its own: what a request left in its variables is gone before the next wait.
        with self._turn:
            try:
                message = self.subscriber.receive_message()
            except Closed:
                return False
        try:
            served = self.begin(message, self.exchange.mailbox(message.node))
            del message
            if served is not None:
                served.thread = get_ident()
                self._handle(served)
        except Closed:
            return False
        except Exception as error:
            # Whatever came, and whatever cannot be said: the next request is another one.
            self.tell_unanswered(error)
        return True

    def _handle(self, served: Served) -> None:
        try:
            value = served.take_request()
            reply = self.handler(value)
            del value
            if inspect.isgenerator(reply):
                if not served.is_stream:
                    reply.close()
                    raise not_a_stream(self.contract.name)
                self._stream(served, reply)
            else:
                served.reply(reply)
        except BaseException as error:
            # Whatever it is, it is the caller's to know.
            served.fail(error)

    def _stream(self, served: Served, items: Generator[Any, Any, Any]) -> None:
        gate = allocate_lock()
        gate.acquire()

        def open_gate() -> None:
            if gate.locked():
                gate.release()

        with self.exchange.lock:
            served.stop = open_gate
        try:
            while served.is_wanted():
                if not served.may_send():
                    gate.acquire()
                    continue
                try:
                    item = next(items)
                except StopIteration:
                    return served.end()
                if not served.is_wanted():
                    break
                served.item(item)
                del item
        finally:
            items.close()
        return served.drop()


def not_a_stream(name: str) -> TypeError:
    """For a caller that wants one reply, of a handler that gives many."""
    return TypeError(f"{name!r} replies with a stream; use call_stream")
