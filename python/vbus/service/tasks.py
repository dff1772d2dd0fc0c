"""The twins of calling, for asyncio."""

# ruff: noqa: ASYNC109
# ASYNC109: a twin has the arguments of its original.

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, TypeVar

from vbus.errors import Timeout

from . import wire
from .caller import deadline_in, result
from .exchange import LoopWaiter

if TYPE_CHECKING:
    from .caller import CallStream
    from .contract import Contract
    from .exchange import Exchange, Pending
    from .wire import Outgoing

    R = TypeVar("R")

__all__ = ["call_async", "step"]


async def call_async(exchange: Exchange, contract: Contract, value: Any, timeout: float | None) -> Any:
    """What `Node.call_async` does."""
    deadline = deadline_in(timeout)
    encoded = contract.request.encoder(value)
    pending = exchange.begin(contract, is_stream=False)
    try:
        outgoing = wire.message(wire.CALL, pending.number, 0, encoded)
        del encoded
        await _send(exchange, pending, outgoing, deadline)
        del outgoing
        if await _wait(exchange, pending, deadline):
            return result(contract, pending)
    except BaseException:
        exchange.leave(pending)
        raise
    exchange.leave(pending, timed_out=True)
    raise pending.timeout_error(f"{timeout:g} s are over; it may still run")


async def step(stream: CallStream[R]) -> R:
    """The next item of a stream. StopAsyncIteration at its end."""
    stream.open_call()
    deadline = deadline_in(stream.timeout)
    while not stream.turn.acquire(blocking=False):
        # Another task, or a thread, steps just now.
        if deadline is not None and time.monotonic() >= deadline:
            raise stream.timeout_error()
        await asyncio.sleep(LONGEST_NAP)
    try:
        if stream.outgoing is not None and stream.pending is not None:
            try:
                await _send(stream.exchange, stream.pending, stream.outgoing, deadline)
            except BaseException:
                stream.close()
                raise
            stream.outgoing = None
        pending = stream.open_call()
        if not await _wait(stream.exchange, pending, deadline):
            raise stream.timeout_error()
        return stream.take(pending, StopAsyncIteration)
    finally:
        stream.turn.release()


async def _send(exchange: Exchange, pending: Pending, outgoing: Outgoing, deadline: float | None) -> None:
    if exchange.try_send(pending, outgoing):
        return
    remote, loop = pending.remote, asyncio.get_running_loop()
    turn = remote.turns.get(loop)
    if turn is None:
        turn = remote.turns[loop] = asyncio.Lock()
    try:
        async with asyncio.timeout_at(
            None if deadline is None else loop.time() + deadline - time.monotonic()
        ):
            # One looks for room, the others wait for it.
            async with turn:
                if remote.publisher is None:
                    await asyncio.to_thread(exchange.door, remote, deadline)
                nap = FIRST_NAP
                while not exchange.try_send(pending, outgoing):
                    await asyncio.sleep(nap)
                    nap = min(2 * nap, LONGEST_NAP)
    except TimeoutError as error:
        if isinstance(error, Timeout):
            raise
        raise pending.timeout_error("it takes no request") from None


async def _wait(exchange: Exchange, pending: Pending, deadline: float | None) -> bool:
    """Until there is something for it; False at the deadline."""
    loop = asyncio.get_running_loop()
    exchange.join_loop(loop)
    try:
        while True:
            future: asyncio.Future[None] = loop.create_future()
            with exchange.lock:
                if pending.has_news():
                    return True
                pending.waiter = LoopWaiter(loop, future)
            timer = None
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    exchange.take()
                    return pending.has_news()
                timer = loop.call_later(left, _end, future)
            try:
                await future
            finally:
                if timer is not None:
                    timer.cancel()
                with exchange.lock:
                    pending.waiter = None
    finally:
        exchange.part_from_loop(loop)


def _end(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


FIRST_NAP = 0.0005
LONGEST_NAP = 0.01
