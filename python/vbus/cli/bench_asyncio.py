"""`vbus bench asyncio`: what the twins cost, beside their blocking originals in the same run.

`ping-pong` is a round trip with an echo process that waits in the same way; `one-way` is from `publish` to
the line behind the wait, at some 300 messages a second, so that the receiver sleeps each time. `publish` is
what one task, or thread, publishes while there is always room, `await publish_async()` beside `publish()`.
`many` are 100 subscribers of one process in one loop, beside a thread for each, to whom 100,000 messages a
second are offered in all: how many came, and how much of a processor that process used.
"""

import asyncio
import contextlib
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import vbus

from .bench import LATE_S, START_LIMIT_S, Crew, Figure, Plan, node, on_processor, require

BLOCKING = "blocking"
SIZE = 64
ROUNDS = 3
PAUSE_S = 0.003
MANY = 100
MANY_PER_SECOND = 100_000


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
            yield Figure(test, SIZE, 1, name_of(awaited), round(cuts[49] / 1e3, 1), round(cuts[98] / 1e3, 1))
    rates = asyncio.run(publish_rates(plan))
    for awaited in (True, False):
        yield Figure(
            "publish", SIZE, 1, name_of(awaited), per_second=round(statistics.median(rates[awaited]))
        )
    for awaited in (True, False):
        rate, processors = many(plan, 0.5 if quick else 2.0, awaited)
        yield Figure(
            "many", SIZE, MANY, name_of(awaited), per_second=round(rate), processors=round(processors, 2)
        )


def name_of(awaited: bool) -> str:
    """Whose figure it is."""
    return "vbus" if awaited else BLOCKING


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


async def publish_rates(plan: Plan) -> dict[bool, list[float]]:
    """Calls in a second, in rounds that take turns."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    body, calls = bytes(SIZE), 1000
    with (
        node(plan.domain) as me,
        me.subscriber("one", bytes, on_full="drop_oldest"),
        me.publisher("one", bytes) as one,
    ):
        for _ in range(max(10, plan.round_trips // 100)):
            for awaited in (True, False):
                begin = time.perf_counter()
                if awaited:
                    for _ in range(calls):
                        await one.publish_async(body)
                else:
                    for _ in range(calls):
                        one.publish(body)
                rates[awaited].append(calls / (time.perf_counter() - begin))
    return rates


def many(plan: Plan, seconds: float, awaited: bool) -> tuple[float, float]:
    """Messages received in a second, by all together, and processors used."""
    with (
        Crew(ASYNC_MANY if awaited else THREADS, plan, SIZE, 1) as crew,
        node(plan.domain) as me,
        contextlib.ExitStack() as stack,
    ):
        publishers = [stack.enter_context(me.publisher(f"many/{at}", bytes)) for at in range(MANY)]
        for publisher in publishers:
            require(publisher.wait_for_subscribers(1, START_LIMIT_S))
        body, tick = bytes(SIZE), MANY / MANY_PER_SECOND
        now = begin = time.perf_counter()
        while now < begin + seconds:
            for publisher in publishers:
                publisher.publish(body)
            next_tick, now = now + tick, time.perf_counter()
            if now < next_tick:
                time.sleep(next_tick - now)
                # What a sleep was too long, the next ones are shorter.
                now = next_tick
        for publisher in publishers:
            publisher.publish(b"")
        rate, processors = receive_texts(crew.sockets[0])
        return float(rate), float(processors)


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


def crowd(domain: str, awaited: bool, boss: Connection, peer: socket.socket) -> None:
    """Receive with many subscribers until each got the empty message; write rate and processors used."""
    count, begin, used = 0, 0.0, 0.0

    def more(sample: vbus.Sample[bytes]) -> bool:
        """Whether more is to come."""
        nonlocal count, begin, used
        if not count:
            begin, used = time.perf_counter(), time.process_time()
        count += 1
        return sample.nbytes > 0

    with node(domain) as me:
        subscribers = [me.subscriber(f"many/{at}", bytes) for at in range(MANY)]

        async def task(subscriber: vbus.Subscriber[bytes]) -> None:
            async for sample in subscriber:
                if not more(sample):
                    return

        def thread(subscriber: vbus.Subscriber[bytes]) -> None:
            for sample in subscriber:
                if not more(sample):
                    return

        async def tasks() -> None:
            await asyncio.gather(*(task(its) for its in subscribers))

        boss.send(0.0)
        if awaited:
            asyncio.run(tasks())
        else:
            threads = [threading.Thread(target=thread, args=(its,)) for its in subscribers]
            for its in threads:
                its.start()
            for its in threads:
                its.join()
        seconds, used = time.perf_counter() - begin, time.process_time() - used
    peer.sendall(f"{count / seconds} {used / seconds}".encode())
    peer.close()


ECHO, ASYNC_ECHO, SINK, ASYNC_SINK = "echo", "async_echo", "sink", "async_sink"
ASYNC_MANY, THREADS = "async_many", "threads"
TASKS: dict[str, Callable[[str, int, Connection, socket.socket], None]] = {
    ECHO: lambda domain, _size, boss, _peer: echo(domain, False, boss),
    ASYNC_ECHO: lambda domain, _size, boss, _peer: echo(domain, True, boss),
    SINK: lambda domain, _size, boss, peer: sink(domain, False, boss, peer),
    ASYNC_SINK: lambda domain, _size, boss, peer: sink(domain, True, boss, peer),
    ASYNC_MANY: lambda domain, _size, boss, peer: crowd(domain, True, boss, peer),
    THREADS: lambda domain, _size, boss, peer: crowd(domain, False, boss, peer),
}
