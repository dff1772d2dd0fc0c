"""`vbus explain`: which ways to whom were tried, what came of it, and what would help."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .joining import join
from .output import for_json, print_json, print_line

if TYPE_CHECKING:
    import argparse

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """What a node that has just joined finds out; of one topic, what concerns it."""
    with join(options, "explain") as node:
        findings = node.explain(options.topic)
        domain = node.domain
    for finding in findings:
        if options.json:
            print_json(for_json(finding))
        else:
            print_line(str(finding))
    if not findings and not options.json:
        print_line(
            f"nobody else is here, in domain {domain!r} or another; start the other program, "
            "and see that both share a meeting directory (`vbus shm ls`)"
        )
    return 0
