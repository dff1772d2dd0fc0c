"""`vbus bench asyncio`: how long until a coroutine goes on, beside `receive()` in the same run.

`ping-pong` is a round trip with an echo process that waits in the same way; `one-way` is from `publish` to
the line behind the wait, at some 300 messages a second, so that the receiver sleeps each time.
"""

import asyncio
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

from .bench import LATE_S, START_LIMIT_S, Crew, Figure, Plan, node, on_processor, require

BLOCKING = "receive()"
SIZE = 64
ROUNDS = 3
PAUSE_S = 0.003


def measure(quick: bool, domain: str) -> Iterator[Figure]:
    """Each figure of asyncio followed by that of `receive()`; medians of some rounds that take turns."""
    plan = Plan((SIZE,), 500 if quick else 3000, 0.0, domain)
    measures: dict[str, Callable[[Plan, bool], list[float]]] = {"ping-pong": ping_pong, "one-way": one_way}
    for test, times_of in measures.items():
        times: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(ROUNDS):
            for awaited in (True, False):
                times[awaited] += times_of(plan, awaited)
        for awaited in (True, False):
            cuts = statistics.quantiles(times[awaited], n=100, method="inclusive")
            name = "vbus" if awaited else BLOCKING
            yield Figure(test, SIZE, 1, name, round(cuts[49] / 1e3, 1), round(cuts[98] / 1e3, 1))


def ping_pong(plan: Plan, awaited: bool) -> list[float]:
    """Nanoseconds of each round trip."""
    times: list[float] = []
    with (
        Crew(ASYNC_ECHO if awaited else ECHO, plan, SIZE, 1),
        on_processor(0),
        node(plan.domain) as me,
        me.publisher("ping", bytes) as ping,
        me.subscriber("pong", bytes) as pong,
    ):
        require(ping.wait_for_subscribers(1, START_LIMIT_S) and pong.wait_for_publishers(1, START_LIMIT_S))

        def send(number: int) -> bytes:
            body = number.to_bytes(8, "little") + bytes(SIZE - 8)
            ping.publish(body)
            return body

        async def story() -> None:
            for number in range(plan.round_trips):
                begin = time.perf_counter_ns()
                body = send(number)
                sample = await pong.receive_async(LATE_S)
                times.append(time.perf_counter_ns() - begin)
                require(sample.value == body)

        if awaited:
            asyncio.run(story())
        else:
            for number in range(plan.round_trips):
                begin = time.perf_counter_ns()
                body = send(number)
                sample = pong.receive(LATE_S)
                times.append(time.perf_counter_ns() - begin)
                require(sample.value == body)
        ping.publish(b"")
    return times[plan.round_trips // 10 :]


def one_way(plan: Plan, awaited: bool) -> list[float]:
    """Nanoseconds from each `publish` to the receiver's next line."""
    with Crew(ASYNC_SINK if awaited else SINK, plan, SIZE, 1) as crew, on_processor(0):
        with node(plan.domain) as me, me.publisher("ping", bytes) as ping:
            require(ping.wait_for_subscribers(1, START_LIMIT_S))
            for _ in range(plan.round_trips // 10):
                time.sleep(PAUSE_S)
                ping.publish(bytes(SIZE))
            ping.publish(b"")
        return [float(text) for text in receive_texts(crew.sockets[0])]


def receive_texts(peer: socket.socket) -> list[str]:
    """What the worker wrote, until it closed."""
    text = b""
    while chunk := peer.recv(1 << 16):
        text += chunk
    return text.decode().split()


# ---- the processes ------------------------------------------------------------------------------


def echo(domain: str, awaited: bool, boss: Connection) -> None:
    """Send back what comes, until the empty message."""
    with (
        on_processor(-1),
        node(domain) as me,
        me.publisher("pong", bytes) as pong,
        me.subscriber("ping", bytes) as ping,
    ):

        async def story() -> None:
            async for sample in ping:
                if not sample.nbytes:
                    return
                pong.publish(sample.value)

        boss.send(0.0)
        if awaited:
            return asyncio.run(story())
        for sample in ping:
            if not sample.nbytes:
                return None
            pong.publish(sample.value)
    return None


def sink(domain: str, awaited: bool, boss: Connection, peer: socket.socket) -> None:
    """Write how old each message is, until the empty one."""
    ages: list[int] = []
    with on_processor(-1), node(domain) as me, me.subscriber("ping", bytes) as ping:

        async def story() -> None:
            async for sample in ping:
                ages.append(time.time_ns() - sample.timestamp_ns)
                if not sample.nbytes:
                    return

        boss.send(0.0)
        if awaited:
            asyncio.run(story())
        else:
            for sample in ping:
                ages.append(time.time_ns() - sample.timestamp_ns)
                if not sample.nbytes:
                    break
    peer.sendall(" ".join(map(str, ages[:-1])).encode())
    peer.close()


ECHO, ASYNC_ECHO, SINK, ASYNC_SINK = "echo", "async_echo", "sink", "async_sink"
TASKS: dict[str, Callable[[str, int, Connection, socket.socket], None]] = {
    ECHO: lambda domain, _size, boss, _peer: echo(domain, False, boss),
    ASYNC_ECHO: lambda domain, _size, boss, _peer: echo(domain, True, boss),
    SINK: lambda domain, _size, boss, peer: sink(domain, False, boss, peer),
    ASYNC_SINK: lambda domain, _size, boss, peer: sink(domain, True, boss, peer),
}
