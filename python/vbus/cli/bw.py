"""`vbus bw`: how many bytes a topic carries."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from .measuring import Window, measure, spread
from .output import print_json, print_line

if TYPE_CHECKING:
    import argparse

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """With a timeout: 1 when it passes."""
    return measure(options, "bw", partial(_show, as_json=options.json))


def _show(window: Window, *, as_json: bool) -> None:
    flow = window.bytes_per_second if window.fresh else 0.0
    sizes = spread(window.sizes())
    if as_json:
        fields = {
            "topic": window.topic,
            "bytes_per_second": flow,
            "rate": window.rate if window.fresh else 0.0,
        }
        print_json({**fields, "count": window.count, "lost": window.lost, "sizes": sizes})
    elif not window.fresh:
        print_line(f"{window.topic}: nothing new")
    elif flow is None:
        print_line(f"{window.topic}: one sample of {sizes['max']:.0f} B")
    else:
        shown = ", ".join(f"{name} {_bytes(sizes[name])}" for name in ("min", "max", "mean"))
        lost = f", {window.lost} lost" if window.lost else ""
        print_line(f"{window.topic}: {_bytes(flow)}/s, samples: {shown}{lost}")


def _bytes(count: float) -> str:
    """As people write it, in powers of 1000."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count:.0f} B"
