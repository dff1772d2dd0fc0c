"""`vbus services`: what is served, by whom, and what it takes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vbus.errors import quote

from .joining import join
from .output import print_records

if TYPE_CHECKING:
    import argparse

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """One line per name and types, after looking for a while."""
    with join(options, "services") as node:
        time.sleep(options.wait)  # who is on another host comes a moment later
        services = node.services()
    print_records(
        services,
        ("SERVICE", "SERVERS", "REQUEST", "REPLY"),
        lambda service: (
            service.name,
            ", ".join(sorted(peer.name for peer in service.servers)),
            service.request or "any",
            service.reply or "any",
        ),
        as_json=options.json,
        if_none=f"nothing is served in domain {quote(node.domain)}; `vbus nodes` tells who is there, "
        "`vbus explain` who is elsewhere",
    )
    return 0
