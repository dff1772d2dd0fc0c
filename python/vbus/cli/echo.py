"""`vbus echo`: the samples of a topic or pattern, as they come."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import vbus

from .joining import join, tell_if_nobody_publishes
from .output import for_json, for_people, print_json

if TYPE_CHECKING:
    import argparse

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """With a timeout: 1 when it passes."""
    deadline = None if options.timeout is None else time.monotonic() + options.timeout
    # drop_oldest: whoever looks on must not stop a publisher.
    with join(options, "echo") as node, node.subscriber(options.topic, on_full="drop_oldest") as subscriber:
        tell_if_nobody_publishes(subscriber)
        seen = 0
        while options.count is None or seen < options.count:
            try:
                sample = subscriber.receive(
                    None if deadline is None else max(0.0, deadline - time.monotonic())
                )
            except vbus.Timeout:
                return 1
            with sample:
                _show(sample, options)
            seen += 1
    return 0


def _show(sample: vbus.Sample[Any], options: argparse.Namespace) -> None:
    value, error = None, None
    try:
        value = sample.value
    except vbus.DecodeError as unreadable:
        error = str(unreadable)
    if options.json:
        fields = {
            "topic": sample.topic,
            "value": for_json(value, full=options.full),
            "sequence": sample.sequence,
            "lost": sample.lost,
            "publisher": sample.publisher,
            "timestamp_ns": sample.timestamp_ns,
            "source": for_json(sample.source),
            "encoding": sample.encoding,
            "headers": dict(sample.headers),
            "nbytes": sample.nbytes,
            "via": sample.via,
        }
        print_json(fields if error is None else fields | {"error": error})
        return
    if sample.lost:
        print(f"{sample.topic}: {sample.lost} lost")
    shown = error if error is not None else for_people(value, full=options.full)
    print(f"{sample.topic}: {shown}", flush=True)
