"""`vbus hz`: how often a topic is published, and how evenly."""

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
    return measure(options, "hz", partial(_show, as_json=options.json))


def _show(window: Window, *, as_json: bool) -> None:
    rate = window.rate if window.fresh else 0.0
    gaps = spread(window.gaps())
    if as_json:
        print_json(
            {"topic": window.topic, "rate": rate, "count": window.count, "lost": window.lost, "gaps": gaps}
        )
    elif not window.fresh:
        print_line(f"{window.topic}: nothing new")
    elif rate is None:
        print_line(f"{window.topic}: one sample")
    else:
        shown = ", ".join(f"{name} {1000 * seconds:.3f}" for name, seconds in gaps.items())
        lost = f", {window.lost} lost" if window.lost else ""
        print_line(f"{window.topic}: {rate:.2f} Hz, gaps in ms: {shown}{lost}")
