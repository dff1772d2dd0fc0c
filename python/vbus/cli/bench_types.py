"""`vbus bench types`: what a type costs beside what its user would pay by hand, in one process and one run.

By hand means: msgspec encodes, the bus carries bytes, msgspec decodes into the same class; nobody checks what
is sent. An array by hand is a loan that the array is copied into, and `numpy.frombuffer` at the other side.
Both publish, receive and decode the same values, round by round in turns, so that what else the machine does
slows both; a figure is the median of the rounds.
"""

from __future__ import annotations

import secrets
import statistics
import time
from dataclasses import dataclass, make_dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import msgspec

import vbus

from .bench import Figure, node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["measure"]

BY_HAND = "by hand"
ARRAY_BYTES = 8 << 20


def measure(quick: bool, domain: str | None) -> Iterator[Figure]:
    """Figures of vbus, each followed by that of the same work by hand."""
    plan = Plan(rounds=11 if quick else 31, seconds=0.01 if quick else 0.03)
    with node(domain or f"bench-{secrets.token_hex(4)}") as me:
        yield from compare(plan, "ten fields", record(me, Detection, DETECTION))
        yield from compare(plan, "list of 100", record(me, list[Detection], [DETECTION] * 100))
        if find_spec("numpy") is not None:
            yield from compare(plan, "array", array(me, inside=False))
            yield from compare(plan, "in a record", array(me, inside=True))


@dataclass(frozen=True)
class Plan:
    """How long and how often to measure."""

    rounds: int
    seconds: float


@dataclass(frozen=True)
class Pair:
    """One piece of work done by the bus, and the same by hand."""

    size: int
    by_bus: Callable[[], object]
    by_hand: Callable[[], object]


@dataclass
class Detection:
    """Ten fields of the usual kinds."""

    id: int
    label: str
    score: float
    x: float
    y: float
    width: int
    height: int
    valid: bool
    source: str
    note: str | None = None


DETECTION = Detection(7, "person", 0.93, 1.5, 2.5, 640, 480, True, "camera/front")


def record(me: vbus.Node, type_: Any, value: Any) -> Pair:
    """A value of plain fields."""
    typed, typed_reader = me.publisher("typed", type_), me.subscriber("typed", type_)
    raw, raw_reader = me.publisher("raw", bytes), me.subscriber("raw", bytes)
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(type_).decode

    def by_bus() -> object:
        typed.publish(value)
        return typed_reader.receive().value

    def by_hand() -> object:
        raw.publish(encode(value))
        return decode(raw_reader.receive().payload)

    return Pair(len(encode(value)), by_bus, by_hand)


def array(me: vbus.Node, inside: bool) -> Pair:
    """A large array, as the whole value or in a field of one."""
    import numpy

    image: Any = make_dataclass("Image", [("id", int), ("pixels", numpy.ndarray)])
    type_ = image if inside else numpy.ndarray
    pixels = numpy.arange(ARRAY_BYTES, dtype=numpy.uint8)
    value: Any = image(1, pixels) if inside else pixels
    typed, typed_reader = me.publisher("typed", type_), me.subscriber("typed", type_)
    raw, raw_reader = me.publisher("raw", bytes), me.subscriber("raw", bytes)

    def by_bus() -> object:
        typed.publish(value)
        return typed_reader.receive().value

    def by_hand() -> object:
        with raw.loan(pixels.nbytes) as loan:
            numpy.frombuffer(loan.buffer, numpy.uint8)[:] = pixels
        return numpy.frombuffer(raw_reader.receive().payload, numpy.uint8)

    return Pair(pixels.nbytes, by_bus, by_hand)


def compare(plan: Plan, test: str, pair: Pair) -> Iterator[Figure]:
    """Microseconds per value of both sides, in turns."""
    count = max(1, round(plan.seconds / (elapsed(pair.by_hand, 10) / 10)))
    elapsed(pair.by_bus, count)
    ours: list[float] = []
    theirs: list[float] = []
    for turn in range(plan.rounds):
        # Whoever comes second finds the caches as the first left them.
        sides = [(ours, pair.by_bus), (theirs, pair.by_hand)]
        for times, work in sides if turn % 2 else reversed(sides):
            times.append(elapsed(work, count) / count)
    for name, times in (("vbus", ours), (BY_HAND, theirs)):
        cuts = statistics.quantiles(times, n=100, method="inclusive")
        yield Figure(f"types: {test}", pair.size, 1, name, round(cuts[49] * 1e6, 2), round(cuts[98] * 1e6, 2))


def elapsed(work: Callable[[], object], count: int) -> float:
    """Seconds that it takes so often."""
    begin = time.perf_counter()
    for _ in range(count):
        work()
    return time.perf_counter() - begin
