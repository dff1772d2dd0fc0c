"""`vbus nodes`: who is in the domain."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    return 0
