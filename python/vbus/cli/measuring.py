"""What `vbus hz` and `vbus bw` have in common: each topic's last seconds, told once a second."""

from __future__ import annotations

import statistics
import time
from collections import deque
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import vbus

from .joining import join, tell_if_nobody_publishes

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

__all__ = ["Window", "measure", "spread"]

REPORT_SECONDS = 1.0
WINDOW_SECONDS = 10.0
WINDOW_SAMPLES = 10_000


class Window:
    """The samples of one topic in its last seconds, by the time at which they were published."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.count = 0
        """Samples so far."""
        self.lost = 0
        """Samples that were published so far and not seen here."""
        self.fresh = 0
        """Samples since the last report."""
        self._samples: deque[tuple[int, int, int]] = deque()  # time, lost before it, bytes

    def add(self, sample: vbus.Sample[Any]) -> None:
        """Takes a sample up, and drops those that are too old."""
        # What was missed before the first one is not known to be of this time.
        lost = sample.lost if self._samples else 0
        self.count += 1
        self.lost += lost
        self.fresh += 1
        self._samples.append((sample.timestamp_ns, lost, sample.nbytes))
        oldest = sample.timestamp_ns - WINDOW_SECONDS * 1e9
        while len(self._samples) > 2 and (
            self._samples[0][0] < oldest or len(self._samples) > WINDOW_SAMPLES
        ):
            self._samples.popleft()

    @property
    def rate(self) -> float | None:
        """Samples per second, those that were lost included; None where there is no gap to measure."""
        seconds = self._seconds()
        return sum(1 + lost for _, lost, _ in list(self._samples)[1:]) / seconds if seconds else None

    @property
    def bytes_per_second(self) -> float | None:
        """Bytes of payload per second, lost samples taken to be like the others; None as for `rate`."""
        rate, sizes = self.rate, self.sizes()[1:]
        return None if rate is None else rate * statistics.fmean(sizes)

    def gaps(self) -> list[float]:
        """Seconds between one sample and the next."""
        times = sorted(time for time, _, _ in self._samples)
        return [(later - earlier) / 1e9 for earlier, later in pairwise(times)]

    def sizes(self) -> list[float]:
        """Bytes of each sample."""
        return [float(nbytes) for _, _, nbytes in self._samples]

    def _seconds(self) -> float:
        times = [time for time, _, _ in self._samples]
        return (max(times) - min(times)) / 1e9 if times else 0.0


def spread(values: list[float]) -> dict[str, float]:
    """Least, greatest, mean and standard deviation; empty if there is nothing to say it of."""
    if not values:
        return {}
    return {
        "min": min(values),
        "max": max(values),
        "mean": statistics.fmean(values),
        "stddev": statistics.pstdev(values),
    }


def measure(options: argparse.Namespace, command: str, show: Callable[[Window], None]) -> int:
    """Shows each topic once a second and at the end. With a timeout: 1 when it passes."""
    windows: dict[str, Window] = {}
    deadline = None if options.timeout is None else time.monotonic() + options.timeout

    def is_enough() -> bool:
        # One sample has no rate: it takes two of some topic, however small the count.
        seen = [window.count for window in windows.values()]
        return options.count is not None and sum(seen) >= options.count and max(seen) > 1

    def report() -> None:
        for topic in sorted(windows):
            show(windows[topic])
            windows[topic].fresh = 0

    # drop_oldest: whoever looks on must not stop a publisher. No history: it is of another time.
    with (
        join(options, command) as node,
        node.subscriber(options.topic, on_full="drop_oldest", history=0) as subscriber,
    ):
        tell_if_nobody_publishes(subscriber)
        due = time.monotonic() + REPORT_SECONDS
        while not is_enough():
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                report()
                return 1
            if now >= due:
                report()
                due = now + REPORT_SECONDS
            try:
                sample = subscriber.receive(min(due, deadline or due) - now)
            except vbus.Timeout:
                continue
            with sample:
                windows.setdefault(sample.topic, Window(sample.topic)).add(sample)
        report()
    return 0
