"""How discovery stands: plain records, made when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Candidate", "Way"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that was found, or looked for, and may be a peer."""

    name: str
    """A string of `peers` as given, or a node's id."""
    addresses: tuple[tuple[str, int], ...] = ()
    """Where it may be reached: (address, port)."""
    heard_ns: int | None = None
    """When it was last heard of, by `time.time_ns()`; None if never."""
    error: str | None = None
    """Why it has no address, or why these are not fresh."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way of discovery."""

    name: str
    """ "mdns" or "peers"."""
    on: bool
    """Whether it works, or tries to."""
    reason: str = ""
    """Why it is off."""
    heard_ns: int | None = None
    """When it last heard of somebody else, by `time.time_ns()`; None if never."""
    error: str | None = None
    """What hinders it now."""
    interfaces: tuple[str, ...] = ()
    """Where mDNS is spoken."""
    deaf: tuple[str, ...] = ()
    """Those of them where not even one's own packets are heard: a firewall, or no multicast."""
    addresses: tuple[str, ...] = ()
    """What this node announces."""
    candidates: tuple[Candidate, ...] = ()
    """Who was found."""
    ignored: Mapping[str, int] = field(default_factory=dict[str, int])
    """What was heard and not followed, by cause."""
