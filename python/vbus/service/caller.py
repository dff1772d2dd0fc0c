"""Calling: one value and its reply, or a stream of replies. The twins for asyncio are in `tasks`."""

from __future__ import annotations

import os
import sys
from _thread import allocate_lock, get_ident
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from vbus._vbus import Message
from vbus.closing import Closing
from vbus.errors import Closed, DecodeError, Error, NoServer, RemoteError, Timeout, TransportError, quote
from vbus.waits import acquire, deadline_in

from . import wire
from .meeting import may_meet, meet
from .wire import WINDOW

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from typing import NoReturn, Self

    from vbus.codec import Encoded
    from vbus.node import Node

    from .contract import Contract
    from .exchange import Exchange, Pending, Remote
    from .wire import Outgoing

__all__ = ["CallStream", "call", "result"]

R = TypeVar("R")


def call(exchange: Exchange, contract: Contract, value: Any, timeout: float | None) -> Any:
    """What `Node.call` does."""
    if exchange.is_interrupted():
        return exchange.aside(call, exchange, contract, value, timeout)
    deadline = deadline_in(timeout)
    encoded = contract.request.encoder(value)
    meet(exchange, contract.name, deadline)
    pending = exchange.begin(contract, is_stream=False)
    try:
        serving = exchange.servings.get(pending.remote.id)
        if serving is not None and serving.is_stopped_by(get_ident()):
            raise RuntimeError(
                f"the handler of {quote(contract.name)} runs in the event loop of this very thread, which a "
                "call would stop; use `await node.call_async(...)`"
            )
        outgoing = wire.CALL, pending.number, 0, encoded
        if not exchange.try_send(pending, outgoing):
            exchange.send(pending, outgoing, deadline)
        del encoded, outgoing
        if exchange.wait(pending, deadline):
            return result(contract, pending)
    except BaseException:
        exchange.leave(pending)
        raise
    exchange.leave(pending, timed_out=True)
    raise pending.timeout_error(f"{timeout:g} s are over; it may still run")


class CallStream(Closing, Generic[R]):
    """The replies of one call, as they come; made by `node.call_stream`.

    Iterate with `for` or `async for`, or step with `next` or `anext`. Leaving a loop, or `with`, before the
    end stops the generator at the server, as does `close()`, and as does forgetting it.
    """

    __slots__ = (
        "__weakref__",
        "_consumed",
        "_contract",
        "_granted",
        "_node",
        "exchange",
        "pending",
        "timeout",
        "turn",
        "unsent",
    )

    def __init__(
        self, node: Node, exchange: Exchange, contract: Contract, value: Any, timeout: float | None
    ) -> None:
        deadline = deadline_in(timeout)
        self.unsent: Encoded | bytes | None = contract.request.encoder(value)
        """What is asked, until it was sent."""
        self._node = node
        self.exchange = exchange
        self._contract = contract
        self.timeout = timeout
        self._consumed = 0
        self._granted = WINDOW
        self.turn = allocate_lock()
        self.pending: Pending | None = None
        """The call, once it has begun."""
        # In a loop, what has to wait waits until the first step: no loop stands still for us.
        may_wait = not _is_in_loop()
        if exchange.is_interrupted():
            exchange.aside(self._begin, deadline, may_wait)
        else:
            self._begin(deadline, may_wait)

    def _begin(self, deadline: float | None, may_wait: bool) -> None:
        try:
            if self.pending is None and self.unsent is not None:
                if may_wait:
                    meet(self.exchange, self.name, deadline)
                elif may_meet(self.exchange, self.name):
                    return
            outgoing, pending = self.choose(), self.pending
            if outgoing is None or pending is None:
                return
            if self.exchange.try_send(pending, outgoing):
                self.unsent = None
            elif may_wait:
                self.exchange.send(pending, outgoing, deadline)
                self.unsent = None
        except BaseException:
            self.close()
            raise

    def choose(self) -> Outgoing | None:
        """What is to be sent to the server that is called; None if it was. NoServer if there is none."""
        pending, unsent = self.pending, self.unsent
        if unsent is None:
            return None
        if pending is None:
            pending = self.pending = self.exchange.begin(self._contract, is_stream=True)
        return wire.STREAM, pending.number, WINDOW, unsent

    def __next__(self) -> R:
        if self.exchange.is_interrupted():
            return self.exchange.aside(self.__next__)
        self.check_open()
        deadline = deadline_in(self.timeout)
        if not acquire(self.turn, deadline):
            raise self.timeout_error()
        try:
            self._begin(deadline, True)
            pending = self.open_call()
            if not self.exchange.wait(pending, deadline):
                raise self.timeout_error()
            return self.take(pending, StopIteration)
        finally:
            self.turn.release()

    async def __anext__(self) -> R:
        from .tasks import step

        return await step(self)

    @property
    def name(self) -> str:
        """The service's."""
        return self._contract.name

    def check_open(self) -> None:
        """Closed if it was left, ForkError in a child."""
        if self.unsent is None:
            self.open_call()
        else:
            _ = self.exchange.core.closed

    def open_call(self) -> Pending:
        """What it waits for, once the call has begun. Closed if it was left, ForkError in a child."""
        _ = self.exchange.core.closed
        if self.pending is None:
            error = Closed(f"the stream of {quote(self.name)} was left; call again")
            error.topic = self.name
            raise error
        return self.pending

    def take(self, pending: Pending, over: type[StopIteration | StopAsyncIteration]) -> R:
        """The next item, which is there."""
        with self.exchange.lock:
            message = pending.items.popleft() if pending.items else None
        if message is None:
            end = pending.end
            if isinstance(end, Message) and end.kind == wire.END:
                raise over
            _fail(self._contract, pending.remote, end)
        self._consumed += 1
        if self._granted - self._consumed <= WINDOW // 2 and not pending.is_over:
            self._granted = self._consumed + WINDOW
            self.exchange.control(pending, wire.CREDIT, self._granted)
        item: R = self._contract.decode_reply(message)
        return item

    def timeout_error(self) -> Timeout:
        """For an item that did not come in time."""
        error = Timeout(f"no item of the stream of {quote(self.name)} in {self.timeout} s; it goes on")
        error.topic = self.name
        return error

    def close(self) -> None:
        """Leave it: the generator at the server is closed. Closing twice is fine."""
        pending, self.pending, self.unsent = self.pending, None, None
        if pending is not None and self.exchange.pid == os.getpid():
            self.exchange.leave(pending)

    async def close_async(self) -> None:
        """`close` for asyncio; it does not wait."""
        self.close()

    def __iter__(self) -> Iterator[R]:
        return _Loop(self)

    def __aiter__(self) -> AsyncIterator[R]:
        return _Loop(self)

    def __repr__(self) -> str:
        return f"<vbus.CallStream of {self.name!r}>"

    def forget(self) -> None:
        """Leave it, from wherever the garbage collector happens to run: takes no lock."""
        pending: Pending | None = getattr(self, "pending", None)
        self.unsent = None
        if pending is not None and not pending.is_over and self.exchange.pid == os.getpid():
            self.pending = None
            self.exchange.left.append(pending)
            self.exchange.ring()

    def __del__(self) -> None:
        self.forget()


class _Loop(Generic[R]):
    """One `for` over a stream: it is gone when the loop is left."""

    __slots__ = ("_is_over", "_stream")

    def __init__(self, stream: CallStream[R]) -> None:
        self._stream = stream
        self._is_over = False

    def __iter__(self) -> Self:
        return self

    def __aiter__(self) -> Self:
        return self

    def __next__(self) -> R:
        return next(self._stream)

    async def __anext__(self) -> R:
        return await anext(self._stream)

    def __del__(self) -> None:
        self._stream.forget()


def _is_in_loop() -> bool:
    loops = sys.modules.get("asyncio")
    return loops is not None and loops._get_running_loop() is not None


# ---- what came ----------------------------------------------------------------------------------


def result(contract: Contract, pending: Pending) -> Any:
    """The reply, or whatever the end of the call is."""
    end = pending.end
    if isinstance(end, Message) and end.kind == wire.VALUE:
        pending.end = None
        return contract.decode_reply(end)
    return _fail(contract, pending.remote, end)


def _fail(contract: Contract, remote: Remote, end: Message | Error | None) -> NoReturn:
    """Raise what kept the call from a reply."""
    if isinstance(end, Error):
        raise end
    error: Error
    said: Any = None
    if end is not None:
        try:
            said = wire.read_plain(end)
        except DecodeError:
            said = None
    if end is not None and end.kind == wire.REFUSED:
        error = NoServer(f"{said}, so the call did not run; call another server")
    elif end is not None and end.kind == wire.ERROR:
        error = _remote_error(remote, said)
    else:
        why = said if isinstance(said, str) else "its reply makes no sense"
        error = TransportError(f"no reply from the server of {remote}: {why}; the call may have run")
    error.topic = contract.name
    raise error


def _remote_error(remote: Remote, said: Any) -> RemoteError:
    from vbus.records import Peer

    kind, message, trace = (_text(said, name) for name in ("type", "message", "traceback"))
    error = RemoteError(
        f"{kind}: {message}, in the server of {remote}" if message else f"{kind} in the server of {remote}"
    )
    error.type, error.message, error.traceback = kind, message, trace
    error.server = Peer(*remote.peer)
    return error


def _text(said: Any, name: str) -> str:
    text = wire.field(said, name)
    return text if isinstance(text, str) else ""
