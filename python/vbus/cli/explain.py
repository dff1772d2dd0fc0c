"""`vbus explain`: which ways to whom were tried, what came of it, and what would help."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .joining import join
from .output import for_json, print_json, print_line

if TYPE_CHECKING:
    import argparse

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """What a node finds out in a while; of one topic, what concerns it."""
    with join(options, "explain") as node:
        time.sleep(options.wait)  # who is on another host comes, or is refused, a moment later
        findings = node.explain(options.topic)
        domain = node.domain
    for finding in findings:
        if options.json:
            print_json(for_json(finding))
        else:
            print_line(str(finding))
    if not findings and not options.json:
        print_line(
            f"nobody else is here, in domain {domain!r} or another; start the other program; on "
            "one host both need a common meeting directory (`vbus shm ls`), on two one secret, and `peers` "
            "where there is no multicast; `vbus doctor` examines this machine"
        )
    return 0
