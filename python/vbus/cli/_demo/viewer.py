"""The demo's viewer: measures every sample of every topic, and says what it measured.

Latency is the time from the publisher's `timestamp_ns` to the moment the viewer has the sample in hand.
Whether a sample was copied is not believed but checked: its address must lie in a mapped memfd.
"""

import selectors
import statistics
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import vbus
from vbus.cli._demo import ROLES, scene

if TYPE_CHECKING:
    from rich.table import Table

# What is remembered of one topic, for quantiles and rates.
KEPT = 10_000
# Rates are those of so many last seconds.
RECENT_S = 2.0


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

    def __init__(self, subscriber: vbus.Subscriber[Any]) -> None:
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
            "rate": round(len(recent) / span, 1),
            "mb_per_second": round(sum(recent) / span / 1e6, 3),
            "p50_ms": quantile(self.latencies_ms, 0.50),
            "p99_ms": quantile(self.latencies_ms, 0.99),
            "path": self.path,
            "drops": self.lost,
            "zero_copy": self.in_place,
            "samples": self.count,
        }


def quantile(values: Sequence[float], part: float) -> float | None:
    """The value below which this part of them lies."""
    if len(values) < 2:
        return round(values[0], 3) if values else None
    return round(statistics.quantiles(values, n=100, method="inclusive")[round(part * 100) - 1], 3)


class Viewer:
    """One more process on the bus: it subscribes to all topics of the demo and measures."""

    def __init__(self, node: vbus.Node) -> None:
        self._ready = selectors.DefaultSelector()
        self.meters: dict[str, Meter] = {}
        channels: list[vbus.Channel[Any]] = [scene.FRAMES, scene.MOTION, scene.HOST]
        for role, channel in zip(ROLES, channels, strict=True):
            # Someone who only watches never stops those who work.
            subscriber = node.subscriber(channel, on_full="drop_oldest")
            self.meters[role] = Meter(subscriber)
            self._ready.register(subscriber.fileno(), selectors.EVENT_READ, self.meters[role])

    def wait(self, seconds: float) -> None:
        """Take what comes, for at most so long."""
        for key, _events in self._ready.select(max(seconds, 0.0)):
            key.data.take()

    def flows(self) -> bool:
        """Whether frames and detections have come."""
        return self.what_is_missing() is None

    def what_is_missing(self) -> str | None:
        """The first topic that never came, if one did not."""
        for role in ("camera", "detector"):
            if not self.meters[role].count:
                return f"nothing came from the {role}; see what `vbus nodes` and `vbus topics` say"
        return None

    def rows(self) -> list[dict[str, Any]]:
        """One per topic."""
        return [meter.row() for meter in self.meters.values()]

    def close(self) -> None:
        """Stop listening."""
        self._ready.close()


# ---- in words -----------------------------------------------------------------------------------


def plain(row: dict[str, Any]) -> str:
    """A row as words."""
    return (
        f"{row['topic']:12} {row['rate']:6.1f}/s {row['mb_per_second']:8.3f} MB/s  "
        f"p50 {milliseconds(row['p50_ms'])}  p99 {milliseconds(row['p99_ms'])}  "
        f"path {row['path'] or '-'}  drops {row['drops']}  zero-copy {row['zero_copy'] or '-'}"
    )


def milliseconds(value: float | None) -> str:
    """A time as words."""
    return "       -" if value is None else f"{value:5.2f} ms"


def table(viewer: Viewer) -> "Table":
    """The rows as a table."""
    from rich.table import Table

    result = Table(caption=caption(viewer), caption_justify="left")
    for title in ("topic", "from", "on", "path", "zero-copy"):
        result.add_column(title)
    for title in ("rate /s", "MB/s", "p50", "p99", "drops"):
        result.add_column(title, justify="right")
    for row in viewer.rows():
        result.add_row(
            *(row["topic"], row["from"], row["host"], row["path"], row["zero_copy"]),
            *(f"{row['rate']:.1f}", f"{row['mb_per_second']:.3f}"),
            *(milliseconds(row["p50_ms"]), milliseconds(row["p99_ms"]), str(row["drops"])),
        )
    return result


def caption(viewer: Viewer) -> str:
    """What the last typed samples say."""
    motion, host = (viewer.meters[role].last for role in ("detector", "telemetry"))
    lines: list[str] = []
    if motion is not None:
        where = f"within {motion.box}" if motion.box else "nowhere"
        lines.append(f"motion in frame {motion.frame}: {motion.moving:.1%} of the pixels, {where}")
    if host is not None:
        used, total = host.memory_used / 2**30, host.memory_total / 2**30
        lines.append(f"host {host.name}: cpu {host.cpu:.0%}, memory {used:.1f} of {total:.1f} GiB")
    return "\n".join(lines)
