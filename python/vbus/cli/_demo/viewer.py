"""The demo's viewer, one in each group: measures every sample of every topic, and reports that, a JSON object
per line.

Latency is the time from the publisher's `timestamp_ns` to the moment the viewer has the sample in hand.
Whether a sample was copied is not believed but checked: its address must lie in a mapped memfd.
"""

import json
import selectors
import statistics
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import vbus
from vbus.cli._demo import scene

REPORT_S = 0.25
# What is remembered of one topic, for quantiles and rates.
KEPT = 10_000
# Rates are those of so many last seconds.
RECENT_S = 2.0
# No peer is named to anyone, so who is not met in a directory was heard of by mDNS.
FOUND_BY = {"shm": "directory", "udp": "mDNS", "": ""}


def is_shared(address: int) -> bool:
    """Whether the address lies in a memfd that is mapped shared, by the kernel's own list."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, permissions, *rest = line.split()
        start, end = (int(edge, 16) for edge in span.split("-"))
        if start <= address < end:
            return "s" in permissions and any(word.startswith("/memfd:") for word in rest)
    return False


class Meter:
    """What the viewer measures of one topic."""

    def __init__(self, viewer: str, subscriber: vbus.Subscriber[Any]) -> None:
        self.viewer = viewer
        self.subscriber = subscriber
        self.count = self.nbytes = self.lost = 0
        self.latencies_ms: deque[float] = deque(maxlen=KEPT)
        self.last: Any = None
        self.sender = self.host = self.path = self.in_place = ""
        self._recent: deque[tuple[float, int]] = deque(maxlen=KEPT)
        self._started: float | None = None

    def take(self) -> None:
        """Measure all that waits."""
        while (sample := self.subscriber.receive_nowait()) is not None:
            self.latencies_ms.append((time.time_ns() - sample.timestamp_ns) / 1e6)
            self.count += 1
            self.nbytes += sample.nbytes
            self.lost += sample.lost
            self.sender, self.host = sample.source.name, sample.source.host
            self.path, self.last = sample.via, sample.value
            self.in_place = self._where(sample)
            now = time.monotonic()
            self._started = self._started or now
            self._recent.append((now, sample.nbytes))

    def _where(self, sample: vbus.Sample[Any]) -> str:
        """Whether payload and value are read where the publisher wrote them, or were copied."""
        address = np.frombuffer(sample.payload, np.uint8).ctypes.data
        if not is_shared(address):
            return "no"
        value: object = sample.value
        if not isinstance(value, np.ndarray):
            return "payload"
        own = value.flags.owndata or value.ctypes.data != address
        return "no" if own else "yes"

    def row(self) -> dict[str, Any]:
        """The figures of the last seconds, as the table and JSON show them."""
        now = time.monotonic()
        span = max(min(now - (self._started or now), RECENT_S), 1e-9)
        recent = [nbytes for then, nbytes in self._recent if then > now - span]
        return {
            "topic": self.subscriber.topic,
            "from": self.sender,
            "host": self.host,
            "to": self.viewer,
            "rate": round(len(recent) / span, 1),
            "mb_per_second": round(sum(recent) / span / 1e6, 3),
            "p50_ms": quantile(self.latencies_ms, 0.50),
            "p99_ms": quantile(self.latencies_ms, 0.99),
            "path": self.path,
            "found_by": FOUND_BY.get(self.path, "?"),
            "drops": self.lost,
            "zero_copy": self.in_place,
            "samples": self.count,
            "bytes": self.nbytes,
        }


def quantile(values: Sequence[float], part: float) -> float | None:
    """The value below which this part of them lies."""
    if len(values) < 2:
        return round(values[0], 3) if values else None
    return round(statistics.quantiles(values, n=100, method="inclusive")[round(part * 100) - 1], 3)


class Viewer:
    """It subscribes to all topics of the demo and measures."""

    def __init__(self, node: vbus.Node) -> None:
        self._node = node
        self._ready = selectors.DefaultSelector()
        self._meters: list[Meter] = []
        channels: list[vbus.Channel[Any]] = [scene.FRAMES, scene.MOTION, scene.HOST]
        for channel in channels:
            # Someone who only watches never stops those who work.
            meter = Meter(node.name, node.subscriber(channel, on_full="drop_oldest"))
            self._meters.append(meter)
            self._ready.register(meter.subscriber.fileno(), selectors.EVENT_READ, meter)

    def wait(self, seconds: float) -> None:
        """Take what comes, for so long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            for key, _events in self._ready.select(left):
                key.data.take()

    def report(self) -> dict[str, Any]:
        """What was measured, what the last typed samples say, and what hinders those that never came."""
        missing = not all(meter.count for meter in self._meters)
        findings = [str(its) for its in self._node.explain() if its.verdict != "used"] if missing else []
        return {
            "rows": [meter.row() for meter in self._meters],
            "says": [words for meter in self._meters if (words := describe(meter.last))],
            "findings": findings,
        }


def describe(value: object) -> str:
    """A typed sample as words."""
    match value:
        case scene.Motion(frame, moving, box):
            where = f"within {box}" if box else "nowhere"
            return f"motion in frame {frame}: {moving:.1%} of the pixels, {where}"
        case scene.Host(name, cpu, used, total, _load):
            used_gib, total_gib = used / 2**30, total / 2**30
            return f"host {name}: cpu {cpu:.0%}, memory {used_gib:.1f} of {total_gib:.1f} GiB"
        case _:
            return ""


def watch() -> None:
    """Measure and report until told to stop."""
    with vbus.Node() as node:
        viewer = Viewer(node)
        while True:
            viewer.wait(REPORT_S)
            print(json.dumps(viewer.report()), flush=True)
