"""The twins of calling, for asyncio."""

# ruff: noqa: ASYNC109
# ASYNC109: a twin has the arguments of its original.

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from vbus.aio import until
from vbus.errors import Closed, Timeout
from vbus.resume import Turn, crowd_in
from vbus.waits import deadline_in, is_over

from . import wire
from .caller import result
from .exchange import LoopWaiter
from .meeting import meet_async

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
    await meet_async(exchange, contract.name, deadline)
    pending = exchange.begin(contract, is_stream=False)
    try:
        outgoing = wire.CALL, pending.number, 0, encoded
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
    stream.check_open()
    deadline = deadline_in(stream.timeout)
    while not stream.turn.acquire(blocking=False):
        # Another task, or a thread, steps just now.
        if is_over(deadline):
            raise stream.timeout_error()
        await asyncio.sleep(LONGEST_NAP)
    try:
        await _begin(stream, deadline)
        pending = stream.open_call()
        if not await _wait(stream.exchange, pending, deadline):
            raise stream.timeout_error()
        return stream.take(pending, StopAsyncIteration)
    finally:
        stream.turn.release()


async def _begin(stream: CallStream[R], deadline: float | None) -> None:
    """What the first step does, where the stream was made in a loop and something had to wait."""
    try:
        if stream.pending is None and stream.unsent is not None:
            await meet_async(stream.exchange, stream.name, deadline)
        outgoing, pending = stream.choose(), stream.pending
        if outgoing is not None and pending is not None:
            await _send(stream.exchange, pending, outgoing, deadline)
            stream.unsent = None
    except BaseException:
        stream.close()
        raise


async def _send(exchange: Exchange, pending: Pending, outgoing: Outgoing, deadline: float | None) -> None:
    publisher = pending.remote.publisher
    if publisher is not None and publisher.is_free() and exchange.try_send(pending, outgoing):
        return
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout_at(
            None if deadline is None else loop.time() + deadline - time.monotonic()
        ):
            if not await _open(exchange, pending, deadline):
                return
            await exchange.send_in_turn(pending, outgoing)
    except TimeoutError as error:
        if isinstance(error, Timeout):
            raise
        raise pending.timeout_error("it takes no request") from None


async def _open(exchange: Exchange, pending: Pending, deadline: float | None) -> bool:
    """The way to a server, opened by a thread when it is first called; False if the call is over."""
    remote = pending.remote
    if not remote.is_linked:
        publisher = remote.publisher
        if publisher is None:
            publisher = await asyncio.to_thread(exchange.door, remote, deadline)
        with suppress(Closed):  # it is gone, and so is the call
            await until(lambda: pending.is_over or publisher.wait_for_subscribers(1, 0), publisher, None)
            remote.is_linked = not pending.is_over
    return not pending.is_over


async def _wait(exchange: Exchange, pending: Pending, deadline: float | None) -> bool:
    """Until there is something for it; False at the deadline."""
    if pending.has_news():
        return True
    loop = asyncio.get_running_loop()
    crowd = crowd_in(loop)
    if crowd.is_quiet():
        try:
            exchange.look(pending)
        except Closed:
            exchange.fail_all()
        if pending.has_news():
            return True
    exchange.join_loop(loop)
    crowd.waiting += 1
    begin = time.monotonic()
    try:
        while True:
            turn = Turn(loop)
            with exchange.lock:
                if pending.has_news():
                    return True
                pending.waiter = LoopWaiter(loop, turn)
            timer = None
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    exchange.take()
                    return pending.has_news()
                timer = loop.call_later(left, turn.wake)
            try:
                await turn
            finally:
                if timer is not None:
                    timer.cancel()
                pending.waiter = None
    finally:
        crowd.waiting -= 1
        exchange.part_from_loop(loop, time.monotonic() - begin)


LONGEST_NAP = 0.01
