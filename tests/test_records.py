"""The records, field by field."""

import dataclasses
import inspect
import os
import socket
import time

import pytest
from helpers import WATCHDOG, check_conservation, until

import vbus

pytestmark = pytest.mark.paths("shm", "udp")

FIELDS = {
    "Peer": "id name host pid addresses path rtt since_ns version",
    "TopicInfo": "topic type encoding publishers subscribers rate bytes_per_second mismatches",
    "Endpoint": "id peer type qos",
    "Mismatch": "publisher subscriber field offered asked",
    "ServiceInfo": "name request reply servers",
    "PublisherStats": "topic published bytes dropped lost waiting held blocked_seconds links",
    "Link": "publisher subscriber peer sent delivered waiting dropped lost",
    "ServerStats": "service begun running waiting errors refused",
    "SubscriberStats": "topic sent delivered waiting held dropped lost bytes callback_errors links",
    "NodeStats": "peers published delivered dropped lost bytes_sent bytes_received memory",
    "PeerJoined": "peer time_ns",
    "PeerLeft": "peer reason time_ns",
    "PeerRefused": "name address reason remedy time_ns",
    "TopicAdded": "topic time_ns",
    "TopicRemoved": "topic time_ns",
    "PathChanged": "peer old new reason time_ns",
    "Finding": "peer topic path verdict reason remedy",
    "Way": "name on reason heard_ns error interfaces deaf addresses candidates ignored",
    "Candidate": "name addresses heard_ns error",
}


@pytest.mark.contract(
    "Records (frozen dataclasses;",
    "`TopicInfo`: `topic type encoding publishers subscribers rate",
    "`ServiceInfo`: `name request reply servers`",
    "`PublisherStats`: `topic published bytes dropped lost waiting",
    "`SubscriberStats`: `topic sent delivered waiting held dropped",
    "`NodeStats`: `peers published delivered dropped lost bytes_sent",
    "`Finding`: `peer topic path verdict reason remedy`",
)
@pytest.mark.parametrize("name", FIELDS)
def test_a_record_has_these_fields_and_is_frozen(name):
    record = getattr(vbus, name)
    names = FIELDS[name].split()
    assert [field.name for field in dataclasses.fields(record)] == names
    one = record(*names)
    assert one == record(*names)
    for field in names:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(one, field, None)


@pytest.mark.contract("Records (frozen dataclasses;")
def test_no_record_is_forgotten():
    records = {name for name in vbus.__all__ if dataclasses.is_dataclass(getattr(vbus, name))}
    assert records == set(FIELDS)
    assert all(inspect.isclass(getattr(vbus, name)) for name in FIELDS)


@pytest.mark.contract("`Peer` (equal and hashed by `id`)")
@pytest.mark.paths("shm")  # a far peer has addresses
def test_a_peer_is_who_it_is_by_its_id(join):
    before = time.time_ns()
    node, far = join("near"), join("far")
    (peer,) = node.peers()
    assert (peer.id, peer.name, peer.host, peer.pid) == (far.id, "far", socket.gethostname(), os.getpid())
    assert (peer.addresses, peer.path, peer.version) == ((), "shm", vbus.__version__)
    assert peer.rtt is None or peer.rtt >= 0
    assert before <= peer.since_ns <= time.time_ns()
    other = dataclasses.replace(peer, name="another name", path=None)
    assert (other, hash(other)) == (peer, hash(peer))
    assert dataclasses.replace(peer, id="0") != peer
    with node.publisher("t") as publisher, node.subscriber("t") as subscriber:
        publisher.publish(1)
        source = subscriber.receive(WATCHDOG).source
        assert (source.id, source.path) == (node.id, None)


@pytest.mark.contract(
    "`publishers` and `subscribers` are tuples of `Endpoint(id, peer, type, qos)`", "One's own included"
)
def test_topics_tells_of_both_sides_and_of_oneself(join):
    node, far = join("near"), join("far")
    with (
        node.publisher("t", int, depth=8) as mine,
        far.publisher("t", int) as other,
        far.subscriber("*", float) as subscriber,
    ):
        assert mine.publish(1) == other.publish(2) == 0
        for asked in (node, far):
            (topic,) = asked.topics()
            assert (topic.topic, topic.type, topic.encoding) == ("t", "int", "msgpack")
            assert {endpoint.id: endpoint.peer.id for endpoint in topic.publishers} == {
                mine.id: node.id,
                other.id: far.id,
            }
            (end,) = topic.subscribers
            assert (end.id, end.peer.id, end.type) == (subscriber.id, far.id, "float")
            assert next(it for it in topic.publishers if it.id == mine.id).qos["depth"] == 8
            assert isinstance(topic.publishers, tuple)
            assert topic.mismatches == ()
            assert topic.rate >= 0
            assert topic.bytes_per_second >= 0


@pytest.mark.contract("a dotted field of the type, or a quality of service (which still connect)")
def test_a_mismatch_names_what_does_not_fit(node):
    @dataclasses.dataclass
    class Position:
        x: float

    @dataclasses.dataclass
    class Pose:
        position: Position

    @dataclasses.dataclass
    class Label:
        x: str

    @dataclasses.dataclass
    class Named:
        position: Label

    with (
        node.publisher("t", Pose, depth=2) as publisher,
        node.subscriber("t", int) as other_type,
        node.subscriber("t", Named) as other_field,
        node.subscriber("t", Pose, depth=3) as deeper,
    ):
        (topic,) = node.topics()
        found = {it.subscriber: (it.publisher, it.field, it.offered, it.asked) for it in topic.mismatches}
        assert found[deeper.id] == (publisher.id, "depth", "2", "3")
        assert found[other_type.id][:2] == (publisher.id, "type")
        assert found[other_field.id] == (publisher.id, "position.x", "float", "str")
        assert (publisher.subscribers, deeper.publishers, other_field.publishers) == (1, 1, 0)


@pytest.mark.contract(
    "`sent == delivered + waiting + sum(dropped.values()) + lost` always holds",
    "`delivered` is what the subscriber's program took",
)
def test_a_link_counts_the_same_at_both_ends(join):
    node, far = join("near"), join("far")
    with (
        node.publisher("t", bytes, depth=2) as publisher,
        far.subscriber("t", on_full="drop_newest") as subscriber,
    ):
        for sent in range(1, 6):
            publisher.publish(b"1234")
            check_conservation(publisher, subscriber)
            assert publisher.stats().links[0].sent == sent
        subscriber.receive(WATCHDOG)
        until(lambda: publisher.stats().links[0].delivered == 1, "the publisher knows")
        (out,), (into,) = publisher.stats().links, subscriber.stats().links
        assert (out.peer.id, into.peer.id) == (far.id, node.id)
        for link in (out, into):
            assert (link.publisher, link.subscriber) == (publisher.id, subscriber.id)
            assert (link.sent, link.delivered, link.waiting, link.lost) == (5, 1, 1, 0)
            assert dict(link.dropped) == {"drop_newest": 3}
        stats = publisher.stats()
        assert (stats.topic, stats.published, stats.bytes, stats.lost) == ("t", 5, 20, 0)
        assert (stats.waiting, stats.held, stats.blocked_seconds) == (1, 0, 0)
        stats = subscriber.stats()
        assert (stats.topic, stats.sent, stats.delivered, stats.bytes) == ("t", 5, 1, 4)
        assert (stats.waiting, stats.held, stats.lost, stats.callback_errors) == (1, 0, 0, 0)
        check_conservation(publisher, subscriber)


@pytest.mark.contract(
    "Totals include links that ended, `links` only living ones; `stats()` still works after"
)
def test_totals_remember_what_ended(join):
    node, far = join("near"), join("far")
    publisher, subscriber = node.publisher("t"), far.subscriber("t")
    for turn in range(1, 4):
        with node.subscriber("t") as passing:
            publisher.publish(turn)
            passing.receive(WATCHDOG)
            publisher.publish(turn)
        assert dict(publisher.stats().dropped) == {"closed": turn}
    for _ in range(6):
        subscriber.receive(WATCHDOG)
    assert len(publisher.stats().links) == 1
    publisher.close()
    until(lambda: subscriber.publishers == 0, "it left")
    stats = subscriber.stats()
    assert (stats.links, stats.sent, stats.delivered) == ((), 6, 6)
    subscriber.close()
    for node_ in (node, far):
        node_.close()
    assert (publisher.stats().published, dict(publisher.stats().dropped)) == (6, {"closed": 3})
    assert (subscriber.stats().delivered, node.stats().published, far.stats().delivered) == (6, 6, 6)


@pytest.mark.contract("`NodeStats`: `peers published delivered dropped lost bytes_sent")
@pytest.mark.paths("shm")  # what comes from far takes memory
def test_a_node_sums_up(join):
    node, far = join("near"), join("far")
    publishers = [node.publisher(f"t/{at}", bytes) for at in range(2)]
    with far.subscriber("t/*") as subscriber:
        for publisher in publishers:
            publisher.publish(b"12345")
            subscriber.receive(WATCHDOG)
        sent, received = node.stats(), far.stats()
        assert (sent.peers, sent.published, sent.bytes_sent) == (1, 2, 10)
        assert (received.peers, received.delivered, received.bytes_received) == (1, 2, 10)
        assert (sent.lost, dict(sent.dropped)) == (0, {})
        assert sent.memory > 0
        assert received.memory == 0
