"""`vbus services`: what is served, by whom, and what it takes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vbus.errors import quote

from .joining import join
from .output import for_json, print_json, print_table

if TYPE_CHECKING:
    import argparse

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """One line per name and types, as of right after joining."""
    with join(options, "services") as node:
        services = node.services()
    if options.json:
        for service in services:
            print_json(for_json(service))
        return 0
    print_table(
        ("SERVICE", "SERVERS", "REQUEST", "REPLY"),
        [
            (
                service.name,
                ", ".join(sorted(peer.name for peer in service.servers)),
                service.request or "any",
                service.reply or "any",
            )
            for service in services
        ],
    )
    if not services:
        print(
            f"vbus: nothing is served in domain {quote(node.domain)}; `vbus nodes` tells who is there, "
            "`vbus explain` who is elsewhere",
            file=sys.stderr,
        )
    return 0
