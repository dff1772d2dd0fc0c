"""`vbus nodes`: who is in the domain."""

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
    """Whoever is connected right after joining."""
    with join(options, "nodes") as node:
        peers = sorted(node.peers(), key=lambda peer: (peer.name, peer.id))
    if options.json:
        for peer in peers:
            print_json(for_json(peer))
    else:
        print_table(
            ("NAME", "HOST", "PID", "PATH", "VERSION", "ID"),
            [(peer.name, peer.host, str(peer.pid), peer.path or "", peer.version, peer.id) for peer in peers],
        )
        if not peers:
            print(
                f"vbus: no node in domain {quote(node.domain)}; `vbus explain` tells who is elsewhere",
                file=sys.stderr,
            )
    return 0
