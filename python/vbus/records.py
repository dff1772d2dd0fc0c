"""What vbus tells about itself: frozen dataclasses. The command line's JSON uses the same names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

__all__ = [
    "Candidate",
    "Endpoint",
    "Event",
    "Finding",
    "Link",
    "Mismatch",
    "NodeStats",
    "PathChanged",
    "Peer",
    "PeerJoined",
    "PeerLeft",
    "PeerRefused",
    "PublisherStats",
    "ServerStats",
    "ServiceInfo",
    "SubscriberStats",
    "TopicAdded",
    "TopicInfo",
    "TopicRemoved",
    "Way",
]


@dataclass(frozen=True, slots=True)
class Peer:
    """A node, as another sees it. Equal and hashed by `id`."""

    id: str
    """Unique, hex, drawn anew for every Node."""
    name: str = field(compare=False)
    """For people; need not be unique."""
    host: str = field(compare=False)
    """Host name of its machine or container."""
    pid: int = field(compare=False)
    """Its process, as it is numbered in its own container."""
    addresses: tuple[str, ...] = field(compare=False)
    """Where it can be reached over the network, each "host:port", the one in use first."""
    path: str | None = field(compare=False)
    """The way samples take to it: "shm", "udp"; None for oneself."""
    rtt: float | None = field(compare=False)
    """Round trip in seconds, where it was measured."""
    since_ns: int = field(compare=False)
    """When it was met, as time.time_ns()."""
    version: str = field(compare=False)
    """Its version of vbus."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One publisher or subscriber of a topic."""

    id: str
    """Of the publisher or subscriber."""
    peer: Peer
    """The node that has it."""
    type: str
    """Its type by shape and field names; empty without a type."""
    qos: Mapping[str, Any]
    """Quality of service, as offered or as asked."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """What keeps a publisher and a subscriber from being one, or what is less than was asked."""

    publisher: str
    """Id of the publisher."""
    subscriber: str
    """Id of the subscriber."""
    field: str
    """"type", a dotted field of the type, or a quality of service (which still connect)."""
    offered: str
    """What the publisher has."""
    asked: str
    """What the subscriber wants."""


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """A topic that somebody publishes."""

    topic: str
    """Its name."""
    type: str
    """By shape and field names, of its first publisher that has one; empty without a type."""
    encoding: str
    """Of the last sample: "raw", "msgpack", "ndarray" or a codec's name; empty before the first one."""
    publishers: tuple[Endpoint, ...]
    """Who publishes it, this node included."""
    subscribers: tuple[Endpoint, ...]
    """Who subscribes to it, this node included."""
    rate: float
    """Samples per second, of all publishers."""
    bytes_per_second: float
    """Bytes of payload per second, of all publishers."""
    mismatches: tuple[Mismatch, ...]
    """Pairs that do not fit."""


@dataclass(frozen=True, slots=True)
class ServiceInfo:
    """A service that somebody serves."""

    name: str
    """Its name."""
    request: str
    """Type of the requests, by shape and field names."""
    reply: str
    """Type of the replies, by shape and field names."""
    servers: tuple[Peer, ...]
    """The nodes that serve it."""


@dataclass(frozen=True, slots=True)
class Link:
    """One publisher and one subscriber. sent == delivered + waiting + sum(dropped.values()) + lost,
    always."""

    publisher: str
    """Id of the publisher."""
    subscriber: str
    """Id of the subscriber."""
    peer: Peer
    """The node at the other side."""
    sent: int
    """Samples meant for this subscriber."""
    delivered: int
    """Samples that its program took."""
    waiting: int
    """Samples that are on their way or wait to be taken."""
    dropped: Mapping[str, int]
    """By reason: "drop_oldest" "drop_newest" "lifespan" "memory" "closed"."""
    lost: int
    """What a best-effort network or a dead peer took."""


@dataclass(frozen=True, slots=True)
class PublisherStats:
    """Counts of a publisher; totals include links that ended."""

    topic: str
    """What it publishes on."""
    published: int
    """Samples that were accepted."""
    bytes: int
    """Of their payloads."""
    dropped: Mapping[str, int]
    """Over all subscribers, by reason."""
    lost: int
    """Over all subscribers."""
    waiting: int
    """Over all subscribers."""
    held: int
    """Samples that subscribers' programs hold."""
    blocked_seconds: float
    """Time that publish() waited for subscribers that were full."""
    links: tuple[Link, ...]
    """The living ones."""


@dataclass(frozen=True, slots=True)
class SubscriberStats:
    """Counts of a subscriber; totals include links that ended."""

    topic: str
    """What it subscribes to."""
    sent: int
    """Samples meant for it."""
    delivered: int
    """Samples that the program took."""
    waiting: int
    """Samples that wait to be taken."""
    held: int
    """Samples of which the program still holds a view."""
    dropped: Mapping[str, int]
    """By reason: "drop_oldest" "drop_newest" "lifespan" "memory" "closed"."""
    lost: int
    """What a best-effort network or a dead peer took."""
    bytes: int
    """Of the payloads delivered."""
    callback_errors: int
    """Exceptions that the callback raised."""
    links: tuple[Link, ...]
    """The living ones."""


@dataclass(frozen=True, slots=True)
class ServerStats:
    """Counts of a server."""

    service: str
    """The name that it serves."""
    begun: int
    """Requests whose handler was begun."""
    running: int
    """Those of them that are not answered yet."""
    waiting: int
    """Requests that wait for their turn."""
    errors: int
    """Exceptions that its handler raised, replies that could not be sent, requests that could not be read."""
    refused: int
    """Requests that did not run because it was closing."""


@dataclass(frozen=True, slots=True)
class NodeStats:
    """Counts of a node, over all its publishers and subscribers."""

    peers: int
    """Connected ones."""
    published: int
    """Samples of its publishers."""
    delivered: int
    """Samples that its program took."""
    dropped: Mapping[str, int]
    """By reason."""
    lost: int
    """What a best-effort network or a dead peer took."""
    bytes_sent: int
    """Of payloads."""
    bytes_received: int
    """Of payloads."""
    memory: int
    """Bytes of shared memory that its publishers keep."""


@dataclass(frozen=True, slots=True)
class PeerJoined:
    """A peer is connected."""

    peer: Peer
    """Who joined."""
    time_ns: int
    """When, as time.time_ns()."""


@dataclass(frozen=True, slots=True)
class PeerLeft:
    """A peer is no longer connected."""

    peer: Peer
    """Who left."""
    reason: str
    """"bye"; "died" when that is proved, else "timeout"."""
    time_ns: int
    """When, as time.time_ns()."""


@dataclass(frozen=True, slots=True)
class PeerRefused:
    """A node wanted to connect and may not."""

    name: str
    """What it calls itself."""
    address: str
    """Where it came from."""
    reason: str
    """Why it may not."""
    remedy: str
    """What would let it in."""
    time_ns: int
    """When, as time.time_ns()."""


@dataclass(frozen=True, slots=True)
class TopicAdded:
    """A topic has its first publisher."""

    topic: str
    """Its name."""
    time_ns: int
    """When, as time.time_ns()."""


@dataclass(frozen=True, slots=True)
class TopicRemoved:
    """A topic lost its last publisher."""

    topic: str
    """Its name."""
    time_ns: int
    """When, as time.time_ns()."""


@dataclass(frozen=True, slots=True)
class PathChanged:
    """Samples take another way to a peer, or the same to another address."""

    peer: Peer
    """To whom they go; the first of its `addresses` is the one in use."""
    old: str
    """The way before: "shm" or "udp"."""
    new: str
    """The way now; the same as before if only the address is another."""
    reason: str
    """Why they go there."""
    time_ns: int
    """When, as time.time_ns()."""


Event: TypeAlias = "PeerJoined | PeerLeft | PeerRefused | TopicAdded | TopicRemoved | PathChanged"
"""What `node.watch()` gives."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Somebody who was found, or looked for, by one way of discovery, and may be a peer."""

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
    """One way of discovery, and how it stands."""

    name: str
    """ "shm", "mdns" or "peers"."""
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
    """What this node announces; of "shm" the directories where it meets neighbours."""
    candidates: tuple[Candidate, ...] = ()
    """Who was found."""
    ignored: Mapping[str, int] = field(default_factory=dict[str, int])
    """What was heard and not followed, by cause."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One way to one peer: what came of it, why, and what would help. `str()` is a line for people."""

    peer: Peer | str
    """A peer, or the address of a stranger, or an entry of `peers` as it was given."""
    topic: str | None
    """The topic it is about; None for all."""
    path: str
    """"shm", "udp", …"""
    verdict: str
    """"used", "standby", "failed", "refused" or "off"."""
    reason: str
    """Why it is so."""
    remedy: str
    """What to do about it; empty if nothing is wrong."""

    def __str__(self) -> str:
        who = (
            f"{self.peer.name} ({self.peer.host}, pid {self.peer.pid})"
            if isinstance(self.peer, Peer)
            else self.peer
        )
        line = f"{who}{f' on {self.topic}' if self.topic else ''} by {self.path}: {self.verdict}"
        line += f", {self.reason}" if self.reason else ""
        return f"{line}; {self.remedy}" if self.remedy else line
