"""What `watch()` and `explain()` tell: who comes, who goes, who may not, and what keeps samples from getting
through."""

import asyncio
import dataclasses
import pickle
import select
import threading
import time

import pytest
from helpers import Survivor, chance, start, until

import vbus

__all__ = ["chance", "start"]  # fixtures

pytestmark = pytest.mark.paths("shm", "udp")

WATCH = "begins with an event for everything already there"
FINDING = "`peer` is a Peer, or the stranger's address, or a string of `peers` as given"


def kinds(events: list[object]) -> list[str]:
    return [type(event).__name__ for event in events]


@pytest.mark.contract(WATCH)
def test_a_watch_begins_with_what_is_there_peers_first(join):
    there, late = join("there"), join("late")
    with there.publisher("b/2"), there.publisher("a/1"), late.publisher("own"):
        until(lambda: len(late.topics()) == 3, "all are known")
        watch = late.watch()
        events = [watch.receive(1) for _ in range(4)]
        assert watch.receive_nowait() is None
    assert kinds(events) == ["PeerJoined", "TopicAdded", "TopicAdded", "TopicAdded"]
    assert events[0].peer.name == "there"
    assert [event.topic for event in events[1:]] == ["a/1", "b/2", "own"]
    assert all(abs(event.time_ns - time.time_ns()) < 60e9 for event in events)


@pytest.mark.contract(WATCH)
def test_peers_and_topics_come_and_go_in_order(join):
    with join("watcher") as node, node.watch() as watch:
        with join("guest") as guest:
            one, two = guest.publisher("t"), guest.publisher("t")
            one.close()
            two.publish(1)
            guest.publisher("$vbus-is-not-the-bus").close()
        events = [watch.receive(5) for _ in range(6)]
        with pytest.raises(vbus.Timeout, match=r"nothing happened in 0 s"):
            watch.receive(0.0)
    assert kinds(events) == [
        "PeerJoined",
        "TopicAdded",
        "TopicAdded",
        "TopicRemoved",
        "TopicRemoved",
        "PeerLeft",
    ]
    assert [getattr(event, "topic", None) for event in events[1:5]] == [
        "t",
        "$vbus-is-not-the-bus",
        "$vbus-is-not-the-bus",
        "t",
    ]
    assert (events[5].peer.name, events[5].reason) == ("guest", "bye")


@pytest.mark.contract(WATCH, '`PeerLeft` is `"died"` when that is proved')
@pytest.mark.paths("shm")  # a silent peer is gone after 15 s
def test_a_peer_that_is_killed_died_and_its_topics_go_first(join, start):
    with join("watcher") as node, node.watch() as watch:
        program = start("node = vbus.Node('victim'); p = node.publisher('t'); say('up'); hear()")
        program.expect("up")
        assert kinds([watch.receive(5), watch.receive(5)]) == ["PeerJoined", "TopicAdded"]
        program.kill()
        assert kinds([gone := watch.receive(5), left := watch.receive(5)]) == ["TopicRemoved", "PeerLeft"]
        assert (gone.topic, left.peer.name, left.reason) == ("t", "victim", "died")


@pytest.mark.contract(
    WATCH,
    'A refusal is a Finding `"refused"` and a PeerRefused at least at the side that opened the connection',
)
@pytest.mark.paths("shm")  # test_network.py has its like
def test_a_refusal_is_an_event_and_a_finding_on_both_sides(join):
    with join("one", secret="a secret of one") as one, one.watch() as watch:
        with join("two", secret="a secret of two") as two:
            refused = watch.receive(5)
            assert isinstance(refused, vbus.PeerRefused)
            assert refused.name == "two"
            assert "secret" in refused.reason
            assert "VBUS_SECRET" in refused.remedy
            with two.watch() as late:
                begun = late.receive(5)
                assert isinstance(begun, vbus.PeerRefused), "what was refused before is told as well"
                assert begun.name == "one"
            for node, other in ((one, "two"), (two, "one")):
                (finding,) = [it for it in node.explain() if it.verdict == "refused"]
                assert isinstance(finding.peer, str)
                assert other in finding.reason
                assert finding.remedy in str(finding)
                assert node.explain(peer=finding.peer) == [finding]
        until(lambda: one.explain() == [], "a stranger that left is forgotten")


@pytest.mark.contract(WATCH)
@pytest.mark.paths("shm")  # test_network.py has its like
def test_a_node_without_a_secret_learns_who_refused_it(join):
    with join("safe", secret="a secret of one"), join("plain") as plain, plain.watch() as watch:
        refused = watch.receive(5)
        assert (type(refused).__name__, refused.name) == ("PeerRefused", "safe")
        assert "neither" in refused.remedy


@pytest.mark.contract('a reachable node of another domain is a Finding `"off"` that names the domain')
@pytest.mark.paths("shm")  # test_network.py has its like
def test_a_node_of_another_domain_is_a_finding_that_names_it(join):
    with join("here") as here, join("there", domain="elsewhere"):
        until(here.explain, "the two have met")
        (finding,) = here.explain()
        assert (finding.verdict, finding.path) == ("off", "shm")
        assert "elsewhere" in str(finding)
        assert "there" in str(finding)
        with here.watch() as watch:
            assert watch.receive_nowait() is None, "another domain is no refusal"


@pytest.mark.contract('a stuck subscriber is `"used"` with reason and remedy, and is named', FINDING)
@pytest.mark.paths("shm")  # on its way, more than `depth` may wait
def test_a_stuck_subscriber_is_named_to_its_publisher_and_to_a_third(join):
    with join("slow") as slow, join("source") as source, join("third") as third:
        subscriber = slow.subscriber("t", depth=1)
        publisher = source.publisher("t")
        publisher.publish(1)
        blocked = Survivor(lambda: publisher.publish(2))
        for node in (source, slow, third):
            until(lambda node=node: [it for it in node.explain("t") if it.remedy], "it is stuck long enough")
            (finding,) = [it for it in node.explain("t") if it.remedy]
            assert (finding.verdict, finding.topic, finding.peer.name) == ("used", "t", "slow")
            assert subscriber.id in finding.reason
            assert "source" in finding.reason
            assert "depth" in finding.remedy
            assert finding in node.explain(peer="slow")
        subscriber.receive(1)
        blocked.join()
        until(lambda: not [it for it in third.explain("t") if it.remedy], "and goes on")


@pytest.mark.contract('`verdict` is `"used" "standby" "failed" "refused" "off"`')
def test_explain_tells_of_a_topic_who_has_to_do_with_it_and_who_is_missing(join):
    with join("a") as a, join("b") as b:
        (nobody,) = [it for it in a.explain("t") if it.topic == "t"]
        assert (nobody.verdict, nobody.peer.name) == ("off", "a")
        assert "nobody publishes it and nobody subscribes" in nobody.reason
        with b.publisher("t"):
            until(a.topics, "it is known")
            (other, missing) = [it for it in a.explain("t") if it.topic == "t"]
            assert (other.peer.name, other.verdict) == ("b", "used")
            assert "it publishes" in other.reason
            assert "nobody subscribes" in missing.reason
            with a.subscriber("*"):
                assert [it.verdict for it in a.explain("t")] == ["used"]
        (unknown,) = a.explain(peer="nobody")
        assert (unknown.peer, unknown.verdict) == ("nobody", "failed")


def test_explain_takes_a_pattern_too(join):
    with join("a") as a, join("b") as b, b.publisher("vision/dogs"):
        until(a.topics, "it is known")
        for pattern in ("vision/*", "**", "*/dogs"):
            (publishes, missing) = [it for it in a.explain(pattern) if it.topic == pattern]
            assert "it publishes" in publishes.reason
            assert missing.reason.startswith("nobody subscribes to it")
        (missing,) = [it for it in a.explain("audio/*") if it.topic]
        assert missing.reason.startswith("nobody publishes it and nobody subscribes to it, among the 2 nodes")
        with a.subscriber("vision/cats/**"), a.subscriber("*/dogs"):
            assert [it.verdict for it in a.explain("vision/*")] == ["used"]


@pytest.mark.contract("Types agree if some value fits both")
def test_types_that_cannot_agree_are_a_finding_with_both_types(join):
    @dataclasses.dataclass
    class Offered:
        x: int

    @dataclasses.dataclass
    class Asked:
        x: str

    with join("offers") as offers, join("asks") as asks:
        with offers.publisher("t", Offered), asks.subscriber("t", Asked):
            for node, other in ((offers, "asks"), (asks, "offers")):
                (finding,) = [it for it in node.explain("t") if it.verdict == "refused"]
                assert finding.peer.name == other
                assert "x" in finding.reason
                assert "int" in finding.reason
                assert "str" in finding.reason
        with offers.publisher("q", history=1), asks.subscriber("q", history=5):
            (finding,) = [it for it in asks.explain("q") if it.remedy]
            assert finding.verdict == "used", "a quality of service still connects"
            assert "history" in finding.reason


@pytest.mark.contract(WATCH)
def test_a_closed_watch_wakes_its_receiver_and_ends_iteration(join):
    node = join("watcher")
    watch = node.watch()
    began = threading.Event()

    def receive() -> None:
        began.set()
        with pytest.raises(vbus.Closed, match="the watch is closed"):
            watch.receive()

    waiting = Survivor(receive)
    began.wait()
    watch.close()
    waiting.join()
    watch.close()
    assert watch.closed
    assert list(watch) == []
    assert select.select([watch], [], [], 0)[0], "its file stays readable"
    other = node.watch()
    node.close()
    assert other.closed
    with pytest.raises(vbus.Closed):
        other.receive_nowait()
    with pytest.raises(vbus.Closed, match="the node"):
        node.watch()


@pytest.mark.contract(WATCH)
def test_the_file_of_a_watch_is_readable_while_an_event_waits(join):
    with join("watcher") as node, node.watch() as watch:
        assert not select.select([watch], [], [], 0)[0]
        publisher = node.publisher("t")
        publisher.close()
        assert select.select([watch], [], [], 5)[0]
        assert kinds(watch.receive_many(timeout=1)) == ["TopicAdded", "TopicRemoved"]
        assert not select.select([watch], [], [], 0)[0]


@pytest.mark.contract(WATCH)
def test_a_watch_works_with_asyncio(join):
    async def story() -> list[str]:
        async with join("watcher") as node, node.watch() as watch:
            with pytest.raises(vbus.Timeout):
                await watch.receive_async(0)
            waiting = asyncio.create_task(watch.receive_async(5))
            await asyncio.sleep(0)
            publisher = node.publisher("t")
            seen = [await waiting]
            publisher.close()
            async for event in watch:
                seen.append(event)
                watch.close()
            return kinds(seen)

    assert asyncio.run(story()) == ["TopicAdded", "TopicRemoved"]


def test_a_watch_closes_when_nothing_refers_to_it_and_cannot_be_pickled(node):
    watch = node.watch()
    with pytest.raises(TypeError, match="open a node in the worker"):
        pickle.dumps(watch)
    files = set(map(str, [watch.fileno()]))
    del watch
    with node.watch() as again:
        assert str(again.fileno()) in files, "its file was free again"


def test_no_event_is_lost_between_the_beginning_and_what_follows(join, chance):
    """A watch that is opened while topics come sees each of them once."""
    with join("watcher") as node, join("busy") as busy:
        for _ in range(20):
            names = {f"t{number}" for number in range(20)}
            publishers: list[object] = []

            def publish(names=names, publishers=publishers) -> None:
                publishers.extend(busy.publisher(name) for name in sorted(names))

            thread = Survivor(publish)
            enough = chance.randrange(20)
            until(lambda publishers=publishers, enough=enough: len(publishers) > enough, "some are there")
            with node.watch() as watch:
                assert isinstance(watch.receive(5), vbus.PeerJoined)
                seen = [watch.receive(5).topic for _ in names]
            thread.join()
            assert sorted(seen) == sorted(names)
            for publisher in publishers:
                publisher.close()
            until(lambda: not node.topics(), "all are gone")
