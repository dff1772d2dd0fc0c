"""`vbus bench`: what the bus does on this machine, between real processes, beside a bare baseline.

Each figure of vbus stands next to that of a Unix socket doing the same work in the same run, so that a
slow or busy machine slows both. `latency` is a ping-pong: a message of the full size there, one of the
full size back, blocking `receive()` on both sides, each on a processor of its own. The others count at
the subscriber: messages written with `publish`, large ones with `loan`, whose first 16 bytes are written
and read (the baseline must move all of them: that is the difference). Nothing is lost: every publisher
blocks. `vbus bench types` compares typed values with what they cost by hand: see `bench_types`.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import secrets
import socket
import statistics
import struct
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

import vbus

DESCRIPTION = "What the bus does on this machine, between real processes, beside a bare baseline."
SOCKET = "unix socket"
HEADER = struct.Struct("<QQ")
LOANED_FROM = 16 * 1024
SIZES = (64, 1024, 64 * 1024, 1 << 20, 8 << 20)
QUICK_SIZES = (64, 1 << 20)
FAN_OUT = 4
START_LIMIT_S = 20.0
LATE_S = 30.0


@dataclass(frozen=True)
class Plan:
    """How long and how often to measure."""

    sizes: Sequence[int]
    round_trips: int
    seconds: float
    domain: str


@dataclass(frozen=True)
class Figure:
    """One result: what was measured, of whom, how much."""

    test: str
    size: int
    subscribers: int
    of: str
    """`vbus` or the baseline's name."""
    p50_us: float | None = None
    p99_us: float | None = None
    per_second: float | None = None
    """Messages received in a second, by all subscribers together."""
    processors: float | None = None
    """How many processors the receivers kept busy, where that is told."""


def run(argv: Sequence[str]) -> int:
    """The command; its exit status."""
    options = parser().parse_args(argv)
    if options.secret_file:
        os.environ["VBUS_SECRET_FILE"] = options.secret_file
    plan = Plan(
        sizes=QUICK_SIZES if options.quick else SIZES,
        round_trips=300 if options.quick else 3000,
        seconds=0.5 if options.quick else 2.0,
        domain=options.domain or f"bench-{secrets.token_hex(4)}",
    )
    if options.what == "types":
        from . import bench_types

        figures, baseline = bench_types.measure(options.quick, options.domain), bench_types.BY_HAND
    elif options.what == "asyncio":
        from . import bench_asyncio

        figures, baseline = bench_asyncio.measure(options.quick, plan.domain), bench_asyncio.BLOCKING
    elif options.what == "calls":
        from . import bench_calls

        figures, baseline = bench_calls.measure(options.quick, plan.domain), bench_calls.PING_PONG
    else:
        figures, baseline = measure(plan), SOCKET
    if options.json:
        for figure in figures:
            given = {name: value for name, value in asdict(figure).items() if value is not None}
            print(json.dumps(given), flush=True)
    else:
        print_figures(figures, baseline)
    return 0


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    result = argparse.ArgumentParser(prog="vbus bench", description=DESCRIPTION)
    result.add_argument(
        "what",
        nargs="?",
        choices=("bus", "types", "asyncio", "calls"),
        default="bus",
        help="bus: beside a Unix socket (default); types: typed values beside msgspec by hand; "
        "asyncio: receive_async beside receive; calls: requests and replies beside two samples",
    )
    result.add_argument("--quick", action="store_true", help="two sizes, half a second each; fewer rounds")
    result.add_argument("--json", action="store_true", help="one JSON object per figure")
    result.add_argument("--domain", help="the domain to use (default: one of its own)")
    result.add_argument("--secret-file", metavar="FILE", help="the secret that all processes share")
    return result


def measure(plan: Plan) -> Iterator[Figure]:
    """All figures, each of vbus followed by the baselines' of the same work."""
    for size in plan.sizes:
        yield from latency(plan, size)
    for size in (64, 1024):
        yield from flow(plan, "messages", size, 1)
    for size in (1 << 20, 8 << 20):
        yield from flow(plan, "loans", size, 1)
    for size in (1024, 1 << 20):
        yield from flow(plan, "fan-out", size, FAN_OUT)


def latency(plan: Plan, size: int) -> Iterator[Figure]:
    """Round trips with one echo process."""
    for name in ("vbus", SOCKET):
        with Crew(BUS_ECHO if name == "vbus" else SOCKET_ECHO, plan, size, 1) as echo, on_processor(0):
            times = (bus_round_trips if name == "vbus" else socket_round_trips)(plan, size, echo)
        cuts = statistics.quantiles(times, n=100, method="inclusive")
        yield Figure("latency", size, 1, name, round(cuts[49] / 1e3, 1), round(cuts[98] / 1e3, 1))


def flow(plan: Plan, test: str, size: int, subscribers: int) -> Iterator[Figure]:
    """One publisher as fast as it can, to some subscribers in processes of their own."""
    for name in ("vbus", SOCKET):
        with Crew(BUS_READER if name == "vbus" else SOCKET_READER, plan, size, subscribers) as crew:
            (bus_flood if name == "vbus" else socket_flood)(plan, size, crew)
            rate = sum(crew.results())
        yield Figure(test, size, subscribers, name, per_second=round(rate))


# ---- the processes ------------------------------------------------------------------------------


class Crew:
    """Worker processes of one measurement, ended when it ends."""

    def __init__(self, task: str, plan: Plan, size: int, count: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.ends: list[Connection] = []
        self.sockets: list[socket.socket] = []
        self._processes: list[Any] = []
        for _ in range(count):
            mine, theirs = socket.socketpair()
            end, other = spawn.Pipe()
            process = spawn.Process(target=work, args=(task, plan.domain, size, other, theirs), daemon=True)
            process.start()
            theirs.close()
            self.ends.append(end)
            self.sockets.append(mine)
            self._processes.append(process)

    def __enter__(self) -> "Crew":
        for end in self.ends:
            self._answer(end, START_LIMIT_S)
        return self

    def __exit__(self, *_error: object) -> None:
        for mine in self.sockets:
            mine.close()
        for process in self._processes:
            process.join(5)
            process.kill()

    def results(self) -> list[float]:
        """What each worker measured."""
        return [self._answer(end, LATE_S) for end in self.ends]

    def _answer(self, end: Connection, limit: float) -> float:
        """The next word of a worker."""
        if not end.poll(limit):
            raise vbus.Timeout(f"a worker process of the benchmark said nothing for {limit:.0f} s")
        return float(end.recv())


@contextlib.contextmanager
def on_processor(which: int) -> Generator[None]:
    """Stay on one processor meanwhile, if there is a choice.

    Left alone, two processes of a ping-pong share a processor in some runs and not in others, and the
    figures differ by five times.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) > 1:
        os.sched_setaffinity(0, {allowed[which]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def work(task: str, domain: str, size: int, boss: Connection, peer: socket.socket) -> None:
    """What a worker process does."""
    if task not in TASKS:
        from . import bench_asyncio, bench_calls

        TASKS.update(bench_asyncio.TASKS)
        TASKS.update(bench_calls.TASKS)
    TASKS[task](domain, size, boss, peer)


def bus_echo(domain: str, size: int, boss: Connection, _peer: socket.socket) -> None:
    """Send back what comes, until the empty message."""
    with (
        on_processor(-1),
        node(domain) as me,
        me.publisher("pong", bytes) as pong,
        me.subscriber("ping", bytes) as ping,
    ):
        send = sender(pong, size)
        boss.send(0.0)
        for sample in ping:
            header = bytes(sample.payload[: HEADER.size])
            ended = not sample.nbytes
            sample.release()
            if ended:
                return
            send(header)


def socket_echo(_domain: str, size: int, boss: Connection, peer: socket.socket) -> None:
    """The same over a socket."""
    buffer = memoryview(bytearray(size))
    with on_processor(-1):
        boss.send(0.0)
        while receive_all(peer, buffer):
            peer.sendall(buffer)


def bus_reader(domain: str, _size: int, boss: Connection, _peer: socket.socket) -> None:
    """Count messages until the empty one, check their order, answer their rate."""
    with node(domain) as me, me.subscriber("flood", bytes) as flood:
        boss.send(0.0)
        count, first = 0, 0.0
        for sample in flood:
            if not sample.nbytes:
                break
            number, _sent = HEADER.unpack_from(sample.payload)
            if number != count:
                raise vbus.Error(f"message {number} came where {count} was expected")
            first = first or time.perf_counter()
            count += 1
        boss.send((count - 1) / (time.perf_counter() - first))


def socket_reader(_domain: str, size: int, boss: Connection, peer: socket.socket) -> None:
    """The same over a socket."""
    buffer = memoryview(bytearray(size))
    boss.send(0.0)
    count, first = 0, 0.0
    while receive_all(peer, buffer):
        HEADER.unpack_from(buffer)
        first = first or time.perf_counter()
        count += 1
    boss.send((count - 1) / (time.perf_counter() - first))


BUS_ECHO, SOCKET_ECHO, BUS_READER, SOCKET_READER = "bus_echo", "socket_echo", "bus_reader", "socket_reader"
TASKS: dict[str, Callable[[str, int, Connection, socket.socket], None]] = {
    BUS_ECHO: bus_echo,
    SOCKET_ECHO: socket_echo,
    BUS_READER: bus_reader,
    SOCKET_READER: socket_reader,
}


# ---- the side that measures ---------------------------------------------------------------------


def bus_round_trips(plan: Plan, size: int, _crew: Crew) -> list[float]:
    """Nanoseconds of each round trip over the bus."""
    with node(plan.domain) as me, me.publisher("ping", bytes) as ping, me.subscriber("pong", bytes) as pong:
        require(ping.wait_for_subscribers(1, START_LIMIT_S) and pong.wait_for_publishers(1, START_LIMIT_S))
        send = sender(ping, size)

        def once(header: bytes) -> None:
            send(header)
            pong.receive(LATE_S).release()

        times = timed(plan.round_trips, once)
        ping.publish(b"")
        ping.flush(LATE_S)
    return times


def socket_round_trips(plan: Plan, size: int, crew: Crew) -> list[float]:
    """The same over a socket."""
    peer, buffer = crew.sockets[0], memoryview(bytearray(size))

    def once(header: bytes) -> None:
        buffer[: HEADER.size] = header
        peer.sendall(buffer)
        receive_all(peer, buffer)

    return timed(plan.round_trips, once)


def timed(count: int, once: Callable[[bytes], None]) -> list[float]:
    """Nanoseconds of each call, after a warm-up of a tenth."""
    times: list[float] = []
    for number in range(count + count // 10):
        begin = time.perf_counter_ns()
        once(HEADER.pack(number, begin))
        times.append(time.perf_counter_ns() - begin)
    return times[count // 10 :]


def bus_flood(plan: Plan, size: int, crew: Crew) -> None:
    """Publish for the time of the plan; an empty message ends it."""
    with node(plan.domain) as me, me.publisher("flood", bytes) as flood:
        require(flood.wait_for_subscribers(len(crew.sockets), START_LIMIT_S))
        send = sender(flood, size)
        for number in numbers_for(plan.seconds):
            send(HEADER.pack(number, 0))
        flood.publish(b"")
        flood.flush(LATE_S)


def socket_flood(plan: Plan, size: int, crew: Crew) -> None:
    """The same over sockets, one for each subscriber."""
    buffer = memoryview(bytearray(size))
    for number in numbers_for(plan.seconds):
        buffer[: HEADER.size] = HEADER.pack(number, 0)
        for peer in crew.sockets:
            peer.sendall(buffer)
    for peer in crew.sockets:
        peer.shutdown(socket.SHUT_WR)


def numbers_for(seconds: float) -> Iterator[int]:
    """0, 1, 2 ... until the time is over."""
    end, number = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        yield number
        number += 1


def node(domain: str) -> vbus.Node:
    """A node that meets the others over shared memory only."""
    return vbus.Node(domain=domain, listen="off", discovery=("shm",))


def sender(publisher: vbus.Publisher[bytes], size: int) -> Callable[[bytes], object]:
    """Sends a message of this size that begins with a header: small ones by copy, large ones in place."""
    if size >= LOANED_FROM:

        def lend(header: bytes) -> None:
            with publisher.loan(size) as loan:
                loan.buffer[: HEADER.size] = header

        return lend
    rest = bytes(size - HEADER.size)
    return lambda header: publisher.publish(header + rest)


def receive_all(peer: socket.socket, buffer: memoryview) -> bool:
    """Fill the buffer; False at the end of the stream."""
    got = 0
    while got < len(buffer):
        count = peer.recv_into(buffer[got:])
        if not count:
            return False
        got += count
    return True


def require(met: bool) -> None:
    """The other process must be there before anything is measured."""
    if not met:
        raise vbus.Timeout(
            f"the processes of the benchmark did not meet within {START_LIMIT_S:.0f} s; "
            "see what `vbus nodes` says"
        )


# ---- showing ------------------------------------------------------------------------------------


def print_figures(figures: Iterator[Figure], baseline: str) -> None:
    """One line per measurement as it comes: vbus, the baseline, and how they compare."""
    print(f"{'test':{LABEL}} {'size':>9}  {'vbus':>26}  {baseline:>26}  vbus is")
    for ours in figures:
        theirs = next(figures)
        label = ours.test if ours.subscribers == 1 else f"{ours.test} {ours.subscribers}"
        sides = f"{text(ours):>26}  {text(theirs):>26}"
        print(f"{label:{LABEL}} {size_text(ours.size):>9}  {sides}  {ratio(ours, theirs)}", flush=True)


LABEL = 18


def text(figure: Figure) -> str:
    """A figure as words."""
    if figure.per_second is None:
        return f"p50 {figure.p50_us:.1f} p99 {figure.p99_us:.1f} µs"
    used = "" if figure.processors is None else f", {figure.processors:.2f} CPU"
    return f"{figure.per_second:,.0f} messages/s{used}"


def ratio(ours: Figure, theirs: Figure) -> str:
    """How much faster."""
    if ours.p50_us and theirs.p50_us and theirs.of != SOCKET:
        return f"{ours.p50_us / theirs.p50_us:.2f} × as dear"
    if ours.p50_us and theirs.p50_us:
        return f"{theirs.p50_us / ours.p50_us:.1f} × as quick"
    return f"{(ours.per_second or 0) / (theirs.per_second or 1):.1f} × as many"


def size_text(size: int) -> str:
    """Bytes as people write them."""
    for unit, scale in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= scale:
            return f"{size // scale} {unit}"
    return f"{size} B"
