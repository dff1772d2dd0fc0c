"""`vbus nodes`: who is in the domain."""

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
    """Whoever is connected after looking for a while."""
    with join(options, "nodes") as node:
        time.sleep(options.wait)  # who is on another host comes a moment later
        peers = sorted(node.peers(), key=lambda peer: (peer.name, peer.id))
    print_records(
        peers,
        ("NAME", "HOST", "PID", "PATH", "VERSION", "ID"),
        lambda peer: (peer.name, peer.host, str(peer.pid), peer.path or "", peer.version, peer.id),
        as_json=options.json,
        if_none=f"no node in domain {quote(node.domain)}; `vbus explain` tells who is elsewhere",
    )
    return 0
