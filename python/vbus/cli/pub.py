"""`vbus pub`: values from the command line, from lines, or the bytes of a file."""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .joining import join
from .output import print_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

__all__ = ["run", "value_of"]


def run(options: argparse.Namespace) -> int:
    """0 also if nobody listens; 1 if subscribers did not take everything in time."""
    if (options.value is None) == (options.file is None):
        print("vbus: give a VALUE or --file", file=sys.stderr)
        return 2
    values = _values(options)
    with join(options, "pub") as node, node.publisher(options.topic) as publisher:
        publisher.wait_for_subscribers(1, options.wait)
        due = time.monotonic()
        for value in values:
            time.sleep(max(0.0, due - time.monotonic()))
            sequence = publisher.publish(value)
            if options.json:
                print_json({"topic": options.topic, "sequence": sequence})
            if options.rate is not None:
                due = max(due + 1 / options.rate, time.monotonic() - CATCH_UP_SECONDS)
        if publisher.flush(FLUSH_SECONDS):
            return 0
    print(f"vbus: subscribers did not take everything within {FLUSH_SECONDS:g} s", file=sys.stderr)
    return 1


FLUSH_SECONDS = 10.0
CATCH_UP_SECONDS = 1.0


def _values(options: argparse.Namespace) -> Iterable[Any]:
    if options.value == "-":
        values: Iterable[Any] = (value_of(line.rstrip("\r\n")) for line in sys.stdin)
        return values if options.count is None else itertools.islice(values, options.count)
    value: Any = _read(options.file) if options.file is not None else value_of(options.value)
    if options.count is not None:
        return itertools.repeat(value, options.count)
    return itertools.repeat(value) if options.rate is not None else (value,)


def value_of(text: str) -> Any:
    """JSON if it is, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read(path: str) -> bytes:
    if path == "-":
        return sys.stdin.buffer.read()
    return Path(path).read_bytes()
