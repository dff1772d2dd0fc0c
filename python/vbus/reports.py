"""From what the extension counts to the records that people read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .records import (
    Candidate,
    Endpoint,
    Finding,
    Link,
    Mismatch,
    NodeStats,
    Peer,
    PublisherStats,
    ServiceInfo,
    SubscriberStats,
    TopicInfo,
    Way,
)

if TYPE_CHECKING:
    from ._vbus import Node as CoreNode
    from ._vbus import PeerTuple
    from ._vbus import Publisher as CorePublisher
    from ._vbus import Subscriber as CoreSubscriber

__all__ = [
    "findings",
    "meeting_way",
    "node_stats",
    "publisher_stats",
    "service_infos",
    "subscriber_stats",
    "topic_infos",
]


def topic_infos(core: CoreNode) -> list[TopicInfo]:
    """One per topic, sorted by name."""
    infos = [
        TopicInfo(
            topic=topic["topic"],
            type=topic["shape"],
            encoding=topic["encoding"],
            publishers=_endpoints(topic["publishers"]),
            subscribers=_endpoints(topic["subscribers"]),
            rate=topic["rate"],
            bytes_per_second=topic["bytes_per_second"],
            mismatches=tuple(Mismatch(*mismatch) for mismatch in topic["mismatches"]),
        )
        for topic in core.topic_dicts()
    ]
    return sorted(infos, key=lambda info: info.topic)


def service_infos(core: CoreNode) -> list[ServiceInfo]:
    """One per name and types, sorted by name."""
    from .service.wire import SERVE, Announced, read_announced

    found: dict[Announced, dict[str, Peer]] = {}
    for _, _, peer, shape in core.subscriber_tuples(SERVE):
        if (announced := read_announced(shape)) is not None:
            found.setdefault(announced, {})[peer[0]] = Peer(*peer)
    return [
        ServiceInfo(its.name, its.request, its.reply, tuple(peers[id] for id in sorted(peers)))
        for its, peers in sorted(found.items())
    ]


def findings(
    core: CoreNode, ways: tuple[Way, ...], topic: str | None, peer: Peer | str | None
) -> list[Finding]:
    """What `explain` returns: everything, or what is about one topic or one peer."""
    from .discovery.troubles import troubles

    peers = _peers(core)
    wanted = peer.id if isinstance(peer, Peer) else peer
    found: list[Finding] = []
    for who, about, path, verdict, reason, remedy in core.findings(topic):
        known = peers.get(who)
        if wanted is None or wanted in (who, known.name if known else None):
            found.append(Finding(known or who, about, path, verdict, reason, remedy))
    own = Peer(*core.self_tuple())
    found += [its for its in troubles(ways, own) if wanted is None or wanted in _names(its.peer)]
    if wanted is not None and not found and wanted not in _names(own):
        reason = f"none of the {len(peers) - 1} connected peers and no stranger is known by this name"
        remedy = "look at `vbus nodes`; check its domain, its secret and its directories"
        found.append(Finding(wanted, topic, "shm", "failed", reason, remedy))
    return found


def node_stats(core: CoreNode) -> NodeStats:
    """What a node counted."""
    return NodeStats(**core.stats_dict())


def publisher_stats(publisher: CorePublisher[Any]) -> PublisherStats:
    """What a publisher counted."""
    counts = publisher.stats_dict()
    counts["links"] = _links(counts["links"])
    return PublisherStats(**counts)


def subscriber_stats(subscriber: CoreSubscriber[Any]) -> SubscriberStats:
    """What a subscriber counted."""
    counts = subscriber.stats_dict()
    counts["links"] = _links(counts["links"])
    counts.setdefault("callback_errors", 0)
    return SubscriberStats(**counts)


def meeting_way(core: CoreNode) -> Way:
    """How the meeting directories stand."""
    directories = core.directory_tuples()
    near = [Peer(*its) for its in core.peer_tuples() if its[5] == "shm"]
    usable = tuple(path for path, error in directories if error is None)
    errors = "; ".join(error for _, error in directories if error is not None)
    return Way(
        "shm",
        on=bool(usable),
        reason="" if directories else NO_DIRECTORIES,
        heard_ns=max((its.since_ns for its in near), default=None),
        error=errors or None,
        addresses=usable,
        candidates=tuple(Candidate(its.id, (), its.since_ns) for its in near),
    )


NO_DIRECTORIES = 'shm is "off", or discovery does not have "shm"'


def _names(peer: Peer | str) -> tuple[str, ...]:
    return (peer.id, peer.name) if isinstance(peer, Peer) else (peer,)


def _peers(core: CoreNode) -> dict[str, Peer]:
    """By id, oneself included."""
    return {peer[0]: Peer(*peer) for peer in (core.self_tuple(), *core.peer_tuples())}


def _endpoints(endpoints: list[tuple[str, PeerTuple, str, dict[str, Any]]]) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(id, Peer(*peer), shape, qos) for id, peer, shape, qos in endpoints)


def _links(links: list[dict[str, Any]]) -> tuple[Link, ...]:
    return tuple(_link(**link) for link in links)


def _link(*, peer: PeerTuple, **counts: Any) -> Link:
    return Link(peer=Peer(*peer), **counts)
