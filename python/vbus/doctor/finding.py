"""The ways of discovery."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vbus.discovery.troubles import troubles
from vbus.records import Peer

from . import Check

if TYPE_CHECKING:
    from vbus.node import Node
    from vbus.records import Finding, Way

__all__ = ["ways"]


def ways(node: Node) -> list[Check]:
    """How mDNS and `peers` stand; the directories are a check of their own."""
    over_network = node.discovery()[1:]
    found = troubles(over_network, Peer(*node._core.self_tuple()))  # pyright: ignore[reportPrivateUsage]
    return [_check(way, [its for its in found if its.path == way.name]) for way in over_network]


def _check(way: Way, hindered: list[Finding]) -> Check:
    if hindered:
        looked = "; ".join(its.reason for its in hindered)
        return Check(way.name, "failed", looked, hindered[0].remedy)
    if not way.on:
        return Check(way.name, "ok", f"off: {way.reason}")
    return Check(way.name, "ok", f"on{_where(way)}; {_heard(way)}")


def _where(way: Way) -> str:
    if way.name == "peers":
        return f", {len(way.candidates)} named"
    return f" at {', '.join(way.interfaces)}" if way.interfaces else ""


def _heard(way: Way) -> str:
    if way.heard_ns is None:
        return "nobody else was heard yet"
    ago = max(0.0, (time.time_ns() - way.heard_ns) / 1e9)
    others = f"{len(way.candidates)} of this domain" if way.name == "mdns" else "their addresses"
    return f"{others}, last heard {ago:.1f} s ago"
