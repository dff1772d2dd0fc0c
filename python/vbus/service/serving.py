"""What every server does: it announces itself, takes requests, answers them, and leaves in good order.

Closing refuses what did not begin, and gives what did a chance to answer; whoever gets no answer is told so.
"""

from __future__ import annotations

import os
import time
import traceback
from _thread import allocate_lock
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vbus.closing import ClosingSlowly
from vbus.errors import Closed, Error, quote
from vbus.waits import acquire

from . import wire
from .exchange import subscriber
from .wire import SERVE

if TYPE_CHECKING:
    from _thread import LockType
    from collections.abc import Callable
    from types import TracebackType

    from vbus._vbus import Message
    from vbus.node import Node
    from vbus.records import ServerStats

    from .contract import Contract
    from .exchange import Exchange, Mailbox
    from .wire import Outgoing

__all__ = ["Served", "Server", "Serving", "serve"]


class Served:
    """One call at the side that answers it."""

    __slots__ = (
        "_allowed",
        "_message",
        "caller",
        "is_cancelled",
        "is_over",
        "is_stream",
        "mailbox",
        "number",
        "pauses",
        "sent",
        "serving",
        "stop",
        "thread",
    )

    def __init__(self, serving: Serving, mailbox: Mailbox, message: Message) -> None:
        self.serving = serving
        self.caller = mailbox.node
        self.mailbox = mailbox
        self.number = message.call
        self.is_stream = message.kind == wire.STREAM
        self.is_cancelled = False
        self.is_over = False
        self.pauses = False
        """Whether a stream waits for credit, and for nothing else."""
        self.thread = 0
        self.sent = 0
        self.stop: Callable[[], None] | None = None
        """Wakes whoever runs it, when it is cancelled or has new credit. May be called by any thread."""
        # A caller may ask for what it likes; what waits for it is bounded.
        self._allowed = min(message.amount, wire.WINDOW)
        self._message: Message | None = message

    def take_request(self) -> Any:
        """The value, once: nothing here keeps the memory it lies in. DecodeError if it is none."""
        message, self._message = self._message, None
        if message is None:
            raise AssertionError("a request is taken once")
        return self.serving.contract.decode_request(message)

    # ---- what the caller says; with the lock of the exchange held -------------------------------

    def cancel(self) -> None:
        """The caller does not wait any more, or is gone."""
        self.is_cancelled = True
        if self.stop is not None:
            self.stop()

    def allow(self, count: int) -> None:
        """Credit for items, counted from the first."""
        self._allowed = max(self._allowed, min(count, self.sent + wire.WINDOW))
        if self.stop is not None:
            self.stop()

    def is_wanted(self) -> bool:
        """Whether anybody waits for it. It may change at any moment."""
        return not self.is_cancelled

    def may_send(self) -> bool:
        """Whether the caller takes one more item."""
        return self.sent < self._allowed

    # ---- what the handler says ------------------------------------------------------------------

    def reply(self, value: Any) -> None:
        """The one reply; as a stream, the one item of it."""
        if self.is_stream:
            self.item(value)
            self.end()
        else:
            encoded = self.serving.contract.reply.encoder(value)
            self._finish((wire.VALUE, self.number, 0, encoded))

    def item(self, value: Any) -> None:
        """One of many. EncodeError, TooLarge if it cannot be sent."""
        encoded = self.serving.contract.reply.encoder(value)
        self.sent += 1
        self._post((wire.ITEM, self.number, 0, encoded))

    def end(self) -> None:
        """The last item was sent."""
        self._finish(wire.plain(wire.END, self.number, 0, None))

    def fail(self, error: BaseException) -> None:
        """The handler raised, or its reply cannot be sent."""
        with self.serving.exchange.lock:
            self.serving.errors += 1
        try:
            self._post(wire.failure(self.number, error, _told(error)))
        except Error as worse:
            # Of what it raised there is more than may be sent.
            self._post(wire.failure(self.number, worse))
        finally:
            self.serving.finished(self)

    def refuse(self, why: str) -> None:
        """It will not run."""
        self._finish(wire.plain(wire.REFUSED, self.number, 0, why))

    def abandon(self, why: str) -> None:
        """It may have run, and there is no answer."""
        self._finish(wire.plain(wire.LOST, self.number, 0, why))

    def drop(self) -> None:
        """Nobody waits for it."""
        self._finish(None)

    def _finish(self, outgoing: Outgoing | None) -> None:
        # A reply that cannot be sent raises, and an error takes its place.
        if outgoing is not None:
            self._post(outgoing)
        self.serving.finished(self)

    def _post(self, outgoing: Outgoing) -> None:
        if not self.is_cancelled and not self.is_over:
            self.serving.exchange.post(self.mailbox, outgoing)


class Serving:
    """A server, without its handler: see `threads` and `loops`."""

    def __init__(
        self, exchange: Exchange, contract: Contract, handler: Callable[[Any], Any], concurrency: int
    ):
        self.exchange = exchange
        self.contract = contract
        self.handler = handler
        self.concurrency = concurrency
        self.pid = os.getpid()
        self.is_closing = False
        self.begun = 0
        self.errors = 0
        self.refused = 0
        self._running: dict[Served, None] = {}
        self._idle: LockType | None = None
        """Is released when nothing runs, if somebody waits for that."""
        self._finishing = allocate_lock()
        shape = wire.describe(contract.name, contract.request.shape, contract.reply.shape)
        # The node's id is in it: a copy of this machine has the same random numbers, but an id of its own.
        own = int(exchange.core.id, 16) ^ int.from_bytes(os.urandom(16), "little")
        self.subscriber = subscriber(exchange.core, f"{SERVE}{own:032x}", shape)
        self.id = self.subscriber.id
        with exchange.lock:
            if exchange.closed:
                self.subscriber.close()
                raise exchange.closed_error()
            exchange.servings[self.id] = self

    # ---- for `threads` and `loops` --------------------------------------------------------------

    def run(self) -> None:
        """Begin to take requests."""
        raise NotImplementedError

    def halt(self, abandoned: list[Served]) -> None:
        """Have whoever runs these end, if it can be."""
        raise NotImplementedError

    def is_stopped_by(self, thread: int) -> bool:
        """Whether nothing would be answered while this thread waits."""
        return False

    def runs_here(self, served: Served) -> bool:
        """Whether a call waits for the very thread that asks this."""
        raise NotImplementedError

    def begin(self, message: Message, mailbox: Mailbox) -> Served | None:
        """A request that may run now; None if it may not, or need not."""
        served = Served(self, mailbox, message)
        with self.exchange.lock:
            is_closing = self.is_closing
            if not is_closing:
                if mailbox.is_full:
                    self._ignore(mailbox)
                    return None
                if not self.exchange.start_serving(served):
                    return None
                self.begun += 1
                self._running[served] = None
        if is_closing:
            with self.exchange.lock:
                self.refused += 1
            served.refuse(self._closing_text())
            return None
        return served

    def _ignore(self, mailbox: Mailbox) -> None:
        """A request of one that takes no replies: one more would be kept for ever."""
        self.refused += 1
        if not mailbox.is_told:
            mailbox.is_told = True
            self.tell_unanswered(f"node {mailbox.node} has not taken {mailbox.untaken} replies before it")

    def tell_unanswered(self, why: object) -> None:
        """A caller cannot be answered; nobody else would hear of it."""
        import logging

        logging.getLogger("vbus").warning("a call of %r cannot be answered: %s", self.contract.name, why)

    def finished(self, served: Served) -> None:
        """A call is over, for whatever reason. May be called twice."""
        with self.exchange.lock:
            served.is_over = True
            self.exchange.running.pop((served.caller, served.number), None)
            if served in self._running:
                del self._running[served]
                if not self._running and self._idle is not None:
                    self._idle.release()
                    self._idle = None

    # ---- its end --------------------------------------------------------------------------------

    def close(self, linger: float) -> None:
        """Refuse what did not begin, give what did `linger` seconds to answer."""
        if self.exchange.is_interrupted():
            return self.exchange.aside(self.close, linger)
        self.stop_taking()
        return self.finish(time.monotonic() + linger)

    def stop_taking(self) -> None:
        """No request begins any more; callers know it before the server is gone."""
        with self.exchange.lock:
            if self.is_closing:
                return
            self.is_closing = True
        with suppress(Closed):
            while (message := self.subscriber.take_message()) is not None:
                self.begin(message, self.exchange.mailbox(message.node))
        with self.exchange.lock:
            calls: dict[Mailbox, list[int]] = {}
            for served in self._running:
                calls.setdefault(served.mailbox, []).append(served.number)
        for mailbox, numbers in calls.items():
            self.exchange.post(mailbox, wire.plain(wire.LEAVING, 0, 0, {"server": self.id, "calls": numbers}))
        self.subscriber.close()

    def finish(self, deadline: float) -> None:
        """Wait for what runs, and abandon what still does."""
        with self._finishing:
            idle = None
            with self.exchange.lock:
                if self._running and not any(self.runs_here(served) for served in self._running):
                    idle = self._idle = allocate_lock()
                    idle.acquire()
            if idle is not None:
                acquire(idle, deadline)
            abandoned = list(self._running)
            for served in abandoned:
                served.abandon(f"{self._closing_text()}, and its handler was not done in time")
            self.halt(abandoned)
            with self.exchange.lock:
                self.exchange.servings.pop(self.id, None)

    def stats(self) -> ServerStats:
        """What it counted."""
        from vbus.records import ServerStats

        try:
            waiting: int = self.subscriber.stats_dict()["waiting"]
        except Closed:
            waiting = 0
        return ServerStats(
            self.contract.name, self.begun, len(self._running), waiting, self.errors, self.refused
        )

    def _closing_text(self) -> str:
        return f"the server of {quote(self.contract.name)} is closing"


class Server(ClosingSlowly):
    """Answers calls of one service; made by `node.serve`, and kept by its node until closed.

    All methods may be called from any thread. Close it, or use it in `with`.
    """

    __slots__ = ("__weakref__", "_node", "_serving")

    def __init__(self, node: Node, serving: Serving) -> None:
        self._node = node
        self._serving = serving

    @property
    def name(self) -> str:
        """What it serves."""
        return self._serving.contract.name

    @property
    def id(self) -> str:
        """Hex, unique, drawn anew for every server."""
        return self._serving.id

    @property
    def closed(self) -> bool:
        """Whether it, or its node, was closed."""
        return self._serving.subscriber.closed

    def stats(self) -> ServerStats:
        """Counts of this server; still works after close()."""
        return self._serving.stats()

    def close(self, linger: float = 2.0) -> None:
        """Refuse requests that did not begin, and give those that did `linger` seconds to be answered.

        Callers of what is not done by then get TransportError. Closing twice is fine.
        """
        if self._serving.pid == os.getpid():  # the child of a fork has nothing of it
            self._serving.close(linger)

    def __repr__(self) -> str:
        return f"<vbus.Server of {self.name!r}>"


def _told(error: BaseException) -> str:
    """The traceback, without what is ours: it says nothing to anybody."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(HERE):
        trace = trace.tb_next
    with suppress(Exception):
        return "".join(traceback.format_exception(type(error), error, trace))
    return ""


HERE = os.path.dirname(__file__)  # noqa: PTH120 texts are compared, not paths


def serve(exchange: Exchange, contract: Contract, handler: Any, concurrency: int) -> Serving:
    """A server that runs, with the handler on threads or on a loop, as it is made for."""
    import inspect
    import sys

    called: Any = handler if inspect.isroutine(handler) else getattr(handler, "__call__", handler)  # noqa: B004
    kinds = (handler, called)
    is_coroutine = any(inspect.iscoroutinefunction(it) or inspect.isasyncgenfunction(it) for it in kinds)
    serving: Serving
    if is_coroutine:
        from .loops import LoopServing, own_loop

        running = sys.modules["asyncio"]._get_running_loop() if "asyncio" in sys.modules else None
        loop = running if running is not None else own_loop(exchange)
        serving = LoopServing(exchange, contract, handler, concurrency, loop)
    else:
        from .threads import ThreadServing

        serving = ThreadServing(exchange, contract, handler, concurrency)
    serving.run()
    return serving
