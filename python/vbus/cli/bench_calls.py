"""`vbus bench calls`: a call and its reply, beside a ping-pong of the same bytes in the same run.

`call` waits for a handler that is a function, beside `publish` and `receive()`; `call_async` awaits a handler
that is a coroutine, beside `publish` and `receive_async()`. So the figures are what requests, replies and who
waits for which cost on top of two samples.
"""

import asyncio
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import vbus

from .bench import LATE_S, Crew, Figure, Plan, node, on_processor, require
from .bench_asyncio import SIZE, ping_pong

PING_PONG = "ping-pong"
SERVICE = vbus.Service("bench", bytes, bytes)
ROUNDS = 5


def measure(quick: bool, domain: str) -> Iterator[Figure]:
    """Calls, each kind followed by its ping-pong; medians of some rounds that take turns."""
    plan = Plan((SIZE,), 300 if quick else 3000, 0.0, domain)
    for test, awaited in (("call", False), ("call_async", True)):
        times: dict[str, list[float]] = {"vbus": [], PING_PONG: []}
        for _ in range(ROUNDS):
            times["vbus"] += calls(plan, awaited)
            times[PING_PONG] += ping_pong(plan, awaited)
        for name, of in times.items():
            cuts = statistics.quantiles(of, n=100, method="inclusive")
            yield Figure(test, SIZE, 1, name, round(cuts[49] / 1e3, 1), round(cuts[98] / 1e3, 1))


def calls(plan: Plan, awaited: bool) -> list[float]:
    """Nanoseconds of each call."""
    times: list[float] = []
    body = bytes(SIZE)
    with Crew(ASYNC_SERVE if awaited else SERVE, plan, SIZE, 1), on_processor(0), node(plan.domain) as me:
        require(bool(me.services()))

        async def story() -> None:
            for _ in range(plan.round_trips):
                begin = time.perf_counter_ns()
                reply = await me.call_async(SERVICE, body, timeout=LATE_S)
                times.append(time.perf_counter_ns() - begin)
                require(reply == body)

        if awaited:
            asyncio.run(story())
        else:
            for _ in range(plan.round_trips):
                begin = time.perf_counter_ns()
                reply = me.call(SERVICE, body, timeout=LATE_S)
                times.append(time.perf_counter_ns() - begin)
                require(reply == body)
    return times[plan.round_trips // 10 :]


# ---- the processes ------------------------------------------------------------------------------


def serve(domain: str, awaited: bool, boss: Connection, peer: socket.socket) -> None:
    """Answer with what was asked, until the other side closes its socket."""

    def answer(value: bytes) -> bytes:
        return value

    async def answer_later(value: bytes) -> bytes:
        return value

    async def story(me: vbus.Node) -> None:
        me.serve(SERVICE, answer_later)
        boss.send(0.0)
        peer.setblocking(False)
        await asyncio.get_running_loop().sock_recv(peer, 1)

    with on_processor(-1), node(domain) as me:
        if awaited:
            return asyncio.run(story(me))
        me.serve(SERVICE, answer)
        boss.send(0.0)
        peer.recv(1)
    return None


SERVE, ASYNC_SERVE = "serve", "async_serve"
TASKS: dict[str, Callable[[str, int, Connection, socket.socket], None]] = {
    SERVE: lambda domain, _size, boss, peer: serve(domain, False, boss, peer),
    ASYNC_SERVE: lambda domain, _size, boss, peer: serve(domain, True, boss, peer),
}
