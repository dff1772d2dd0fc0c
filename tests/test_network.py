"""Nodes that share no memory: what the contract promises over the network, by real sockets on loopback."""

import asyncio
import contextlib
import itertools
import os
import socket
import time

import pytest
from helpers import WATCHDOG, check_conservation, start, until

import vbus

__all__ = ["start"]


@pytest.fixture
def far(join):
    """Opens nodes that have the network only, each told of those before it; returns when it met them."""
    nodes: list[vbus.Node] = []

    def open_node(name: str = "far", **settings: object) -> vbus.Node:
        peers = [node.addresses[0] for node in nodes]
        node = join(name, **{"shm": False, "listen": "127.0.0.1:0", "peers": peers, **settings})
        assert node.wait_for_peers(len(peers), WATCHDOG)
        nodes.append(node)
        return node

    return open_node


@pytest.fixture
def begin(start):
    """Starts programs that have the network only, and reach a node of the test."""

    def begin(source: str, node: vbus.Node, **environment: str):
        environment = {
            "VBUS_SHM": "off",
            "VBUS_LISTEN": "127.0.0.1:0",
            "VBUS_PEERS": node.addresses[0],
            "VBUS_DISCOVERY": "peers",
            **environment,
        }
        return start(source, environment=environment)

    return begin


@pytest.mark.contract("Over the network use `wait_for_subscribers` or `history`")
def test_samples_go_from_one_process_to_another_and_say_how(far, begin):
    node = far("listener")
    subscriber = node.subscriber("t/*")
    speaker = begin(
        """
        node = vbus.Node("speaker")
        publisher = node.publisher("t/x")
        publisher.wait_for_subscribers(1)
        for number in range(1000):
            publisher.publish({"number": number, "rest": bytes(number * 20)}, headers={"n": str(number)})
        say("flushed", publisher.flush(20))
        hear()
        """,
        node,
    )
    for number in range(1000):
        sample = subscriber.receive(WATCHDOG)
        assert sample.value == {"number": number, "rest": bytes(number * 20)}
        assert (sample.sequence, sample.lost, sample.via) == (number, 0, "udp")
        assert sample.headers == {"n": str(number)}
        assert (sample.source.name, sample.source.path) == ("speaker", "udp")
    speaker.expect("flushed", True)
    check_conservation(subscriber)


def test_both_sides_count_what_a_far_subscriber_took(far):
    here, there = far("here"), far("there")
    publisher = here.publisher("t")
    subscriber = there.subscriber("t")
    assert publisher.wait_for_subscribers(1, WATCHDOG)
    for number in range(100):
        publisher.publish(number)
    for _ in range(40):
        subscriber.receive(WATCHDOG)
    assert publisher.flush(WATCHDOG)
    stats = publisher.stats()
    (link,) = stats.links
    assert (link.subscriber, link.peer) == (subscriber.id, here.peers()[0])
    assert (link.sent, link.delivered, link.waiting) == (100, 40, 60)
    check_conservation(publisher, subscriber)
    subscriber.close()
    until(lambda: not publisher.stats().links, "it is known to be gone")
    assert dict(publisher.stats().dropped) == {"closed": 60}


def test_a_late_far_subscriber_gets_history_and_then_what_follows(far):
    here, there = far("here"), far("there")
    publisher = here.publisher("t", history=5)
    for number in range(20):
        publisher.publish(number)
    early = there.subscriber("t", history=3)
    assert [early.receive(WATCHDOG).value for _ in range(3)] == [17, 18, 19]
    late = there.subscriber("t")
    assert [late.receive(WATCHDOG).value for _ in range(5)] == [15, 16, 17, 18, 19]
    publisher.publish(20)
    assert (early.receive(WATCHDOG).value, late.receive(WATCHDOG).value) == (20, 20)
    check_conservation(publisher, early, late)


def test_a_far_subscriber_that_does_not_read_blocks_its_publisher_and_no_other(far):
    here, there = far("here"), far("there")
    subscriber = there.subscriber("slow", bytes)
    other = there.subscriber("quick", bytes)
    slow = here.publisher("slow", bytes, depth=4, block_timeout=0.2)
    quick = here.publisher("quick", bytes)
    for publisher in (slow, quick):
        assert publisher.wait_for_subscribers(1, WATCHDOG)
    with pytest.raises(vbus.Timeout) as raised:
        all(slow.publish(bytes(50_000)) >= 0 for _ in itertools.count())
    assert raised.value.subscriber == subscriber.id
    quick.publish(b"still")
    assert other.receive(WATCHDOG).value == b"still"
    while subscriber.stats().delivered < slow.stats().published:
        subscriber.receive(WATCHDOG)
    assert subscriber.stats().delivered == slow.stats().published
    assert slow.publish(b"again") == subscriber.receive(WATCHDOG).sequence
    check_conservation(slow, subscriber)


@pytest.mark.parametrize("on_full", ["drop_oldest", "drop_newest"])
def test_far_drops_are_counted_and_seen(far, on_full):
    here, there = far("here"), far("there")
    subscriber = there.subscriber("t", depth=4, on_full=on_full)
    publisher = here.publisher("t")
    assert publisher.wait_for_subscribers(1, WATCHDOG)
    for number in range(500):
        publisher.publish(number)
    assert publisher.flush(WATCHDOG)
    until(lambda: sum(publisher.stats().dropped.values()) == 496, "all is known")
    got = subscriber.receive_many(timeout=WATCHDOG)
    while sample := subscriber.receive_nowait():
        got.append(sample)
    assert len(got) == 4
    assert [sample.sequence for sample in got] == sorted(sample.sequence for sample in got)
    assert set(publisher.stats().dropped) == {on_full}
    assert publisher.stats().links[0].delivered == 4
    check_conservation(publisher, subscriber)


def test_a_sample_of_megabytes_arrives_byte_for_byte(far):
    here, there = far("here"), far("there")
    publisher, subscriber = here.publisher("t", bytes), there.subscriber("t", bytes)
    assert publisher.wait_for_subscribers(1, WATCHDOG)
    payload = bytes(range(256)) * (5 << 12)
    with publisher.loan(len(payload)) as loan:
        loan.buffer[:] = payload
    assert subscriber.receive(WATCHDOG).value == payload


def test_a_sample_beyond_the_memory_of_a_far_node_is_dropped_and_counted_at_both(far):
    here, there = far("here"), far("there", memory=4 << 20)
    publisher, subscriber = here.publisher("t", bytes), there.subscriber("t", bytes)
    assert publisher.wait_for_subscribers(1, WATCHDOG)
    for size in (10, 20 << 20, 11):
        publisher.publish(bytes(size))
    assert subscriber.receive(WATCHDOG).nbytes == 10
    sample = subscriber.receive(WATCHDOG)
    assert (sample.nbytes, sample.sequence, sample.lost) == (11, 2, 1)
    assert publisher.flush(WATCHDOG)
    until(lambda: dict(publisher.stats().dropped) == {"memory": 1}, "it is known")
    assert dict(subscriber.stats().dropped) == {"memory": 1}
    check_conservation(publisher, subscriber)


@pytest.mark.contract("the same bound, separately, for samples of far publishers")
def test_samples_of_all_far_publishers_together_stay_below_the_memory_of_their_node_and_none_is_lost(far):
    there = far("there", memory=16 << 20)
    publishers = [far(f"camera-{number}").publisher("t", bytes, depth=20) for number in range(4)]
    subscriber = there.subscriber("t", bytes, depth=100)
    for publisher in publishers:
        assert publisher.wait_for_subscribers(1, WATCHDOG)
        for _ in range(20):
            publisher.publish(bytes(1 << 20))
    held = [subscriber.receive(WATCHDOG)]
    with contextlib.suppress(vbus.Timeout):  # what comes while nothing is given back
        while len(held) < 80:
            held.append(subscriber.receive(1.0))
    assert len(held) < 16
    assert there.stats().memory <= 16 << 20
    received = len(held)
    held.clear()
    while received < 80:
        received += len(subscriber.receive_many(timeout=WATCHDOG))
    check_conservation(*publishers, subscriber)


def test_a_far_service_answers_and_streams(far):
    here, there = far("here"), far("there")
    there.serve("add", lambda pair: pair[0] + pair[1])

    def count(n):
        yield from range(n)

    there.serve("count", count)
    until(lambda: len(here.services()) == 2, "the servers are known")
    assert [here.call("add", [number, 1], timeout=WATCHDOG) for number in range(20)] == list(range(1, 21))
    assert list(here.call_stream("count", 50, timeout=WATCHDOG)) == list(range(50))


@pytest.mark.contract("when no server is known after the meeting time")
@pytest.mark.parametrize(
    "way", ["call", "call_async", "call_stream", "call_stream in a loop", "call_unserved"]
)
def test_a_call_right_after_joining_finds_a_far_server(far, join, way):
    there = far("there")
    there.serve("double", lambda value: 2 * value, request=int, reply=int)
    for _ in range(5):
        with join("here", shm=False, listen="127.0.0.1:0", peers=[there.addresses[0]]) as here:
            # Half a second, on a machine that is busy with other tests.
            if way != "call_unserved":
                here._calls().met_by += WATCHDOG
            match way:
                case "call":
                    assert here.call("double", 21, request=int, reply=int) == 42
                case "call_async":
                    assert asyncio.run(here.call_async("double", 21, request=int, reply=int)) == 42
                case "call_stream":
                    assert list(here.call_stream("double", 21, request=int, reply=int)) == [42]
                case "call_stream in a loop":

                    async def items():
                        return [item async for item in here.call_stream("double", 21, request=int, reply=int)]

                    assert asyncio.run(items()) == [42]
                case _:
                    with pytest.raises(vbus.NoServer, match="nobody serves 'triple'"):
                        here.call("triple", 21, request=int, reply=int)
                    assert here.call("double", 21, request=int, reply=int) == 42


def test_topics_and_findings_tell_of_far_publishers_with_their_figures(far):
    here, there = far("here"), far("there")
    publisher = here.publisher("t")
    there.subscriber("t")
    for number in range(10):
        publisher.publish(number)
    (topic,) = there.topics()
    assert (topic.topic, topic.encoding) == ("t", "msgpack")
    assert topic.rate > 0
    assert topic.publishers[0].peer == there.peers()[0]
    (finding,) = there.explain()
    assert (finding.path, finding.verdict, finding.peer) == ("udp", "used", there.peers()[0])
    assert there.peers()[0].rtt is None or there.peers()[0].rtt > 0
    assert there.peers()[0].addresses == here.addresses


@pytest.mark.contract("(flushes reliable publishers for at most `linger` seconds")
def test_a_far_peer_that_closes_said_goodbye_and_its_samples_stay(far):
    here, there = far("here"), far("there")
    watch = there.watch()
    subscriber = there.subscriber("t")
    publisher = here.publisher("t")
    assert publisher.wait_for_subscribers(1, WATCHDOG)
    for number in range(50):
        publisher.publish(number)
    peer = there.peers()[0]
    here.close()
    until(lambda: not there.peers(), "it is gone")
    left = [event for event in watch.receive_many(timeout=WATCHDOG) if isinstance(event, vbus.PeerLeft)]
    assert [(event.peer, event.reason) for event in left] == [(peer, "bye")]
    assert [subscriber.receive(WATCHDOG).value for _ in range(50)] == list(range(50))


def test_a_publisher_that_closes_leaves_all_it_sent_to_its_far_subscribers(far):
    here, there = far("here"), far("there")
    subscriber = there.subscriber("t")
    with here.publisher("t") as publisher:
        assert publisher.wait_for_subscribers(1, WATCHDOG)
        for number in range(64):
            publisher.publish(number)
    assert [subscriber.receive(WATCHDOG).value for _ in range(64)] == list(range(64))
    until(lambda: subscriber.publishers == 0, "its end is known")


@pytest.mark.contract("Samples accepted before a publisher closed or died are still received")
@pytest.mark.parametrize("ending", ["del publisher, node; os._exit(0)", "sys.exit()", ""])
def test_a_program_that_does_not_close_leaves_all_it_sent_to_far_subscribers(far, begin, ending):
    node = far("listener")
    subscriber = node.subscriber("t", bytes)
    speaker = begin(
        f"""
        import os, sys
        node = vbus.Node("speaker")
        publisher = node.publisher("t", bytes)
        assert publisher.wait_for_subscribers(1, 20)
        for number in range(50):
            publisher.publish(bytes([number]) * 1_000_000)
        {ending}
        """,
        node,
    )
    for number in range(50):
        assert subscriber.receive(WATCHDOG).payload == bytes([number]) * 1_000_000
    speaker.finish()


@pytest.mark.contract("over the network not longer than the 15 s after which")
def test_a_killed_far_subscriber_does_not_keep_its_publisher_for_ever(far, begin):
    node = far("speaker")
    publisher = node.publisher("t", bytes, depth=4)
    listener = begin(
        """
        node = vbus.Node("listener")
        subscriber = node.subscriber("t")
        say("ready")
        hear()
        """,
        node,
    )
    listener.expect("ready")
    assert publisher.wait_for_subscribers(1, WATCHDOG)
    listener.kill()
    begun = time.monotonic()
    for _ in range(200):
        publisher.publish(bytes(100_000))
    assert publisher.flush(WATCHDOG)
    assert time.monotonic() - begun < WATCHDOG
    assert publisher.subscribers == 0
    stats = publisher.stats()
    assert 0 < stats.lost <= 200


def test_a_frozen_far_subscriber_goes_on_where_it_stopped(far, begin):
    node = far("speaker")
    publisher = node.publisher("t", bytes)
    listener = begin(
        """
        node = vbus.Node("listener")
        subscriber = node.subscriber("t", bytes)
        say("ready")
        for number in range(200):
            sample = subscriber.receive(30)
            assert (sample.sequence, sample.lost) == (number, 0)
        say("all")
        """,
        node,
    )
    listener.expect("ready")
    assert publisher.wait_for_subscribers(1, WATCHDOG)
    listener.stop()
    for _ in range(50):
        publisher.publish(bytes(1000))
    listener.go_on()
    for _ in range(150):
        publisher.publish(bytes(1000))
    listener.expect("all")


@pytest.mark.contract(
    "only nodes with the same secret join, over the network and over shared memory",
    "Both sides open, or both with the same secret",
)
def test_far_nodes_with_one_secret_join_and_others_are_refused_on_both_sides(far, join):
    here = far("here", secret="correct horse battery")
    there = far("there", secret="correct horse battery")
    assert [peer.name for peer in here.peers()] == ["there"]
    assert [peer.name for peer in there.peers()] == ["here"]
    watch = here.watch()
    for name, secret in (("wrong", "staple horse battery"), ("none", None)):
        stranger = join(name, shm=False, listen="127.0.0.1:0", peers=[here.addresses[0]], secret=secret)
        until(lambda it=stranger: any(its.verdict == "refused" for its in it.explain()), "it is refused")
        (finding,) = [its for its in stranger.explain() if its.verdict == "refused"]
        assert (finding.peer, finding.path) == (here.addresses[0], "udp")
        assert "VBUS_SECRET" in finding.remedy
        assert not stranger.peers()
    names = set()
    while len(names) < 1:
        event = watch.receive(WATCHDOG)
        if isinstance(event, vbus.PeerRefused):
            names.add(event.name)
            assert "VBUS_SECRET" in event.remedy


def test_a_far_node_of_another_domain_is_a_finding_that_names_it(far, join):
    here = far("here")
    other = join("other", domain="elsewhere", shm=False, listen="127.0.0.1:0", peers=[here.addresses[0]])
    until(lambda: any(its.verdict == "off" for its in other.explain()), "it is known")
    (finding,) = [its for its in other.explain() if its.verdict == "off"]
    assert here.domain in finding.reason
    assert not other.peers()


def test_whom_nobody_answers_for_is_a_finding_by_the_name_that_was_given(join):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        name = f"127.0.0.1:{silent.getsockname()[1]}"
        node = join("seeker", shm=False, listen="127.0.0.1:0", peers=[name])
        until(lambda: any(its.verdict == "failed" for its in node.explain()), "it failed")
        (finding,) = node.explain()
        assert (finding.peer, finding.path) == (name, "udp")


def test_an_address_that_cannot_be_had_is_a_transport_error(join):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(vbus.TransportError, match=str(taken.getsockname()[1])):
            join("late", listen=f"127.0.0.1:{taken.getsockname()[1]}")
    with pytest.raises(vbus.ConfigError, match="nowhere0"):
        join("strange", interfaces=["nowhere0"])


def test_a_node_without_a_network_has_no_address_and_meets_no_stranger(far, join):
    here = far("here")
    alone = join("alone", shm=False, listen="off", peers=[here.addresses[0]])
    assert alone.addresses == ()
    assert not alone.wait_for_peers(1, 0.2)
    assert not here.peers()


def test_memory_beats_the_network(join):
    here = join("here", listen="127.0.0.1:0")
    there = join("there", listen="127.0.0.1:0", peers=[here.addresses[0]])
    assert [peer.path for peer in there.peers()] == ["shm"]
    publisher, subscriber = here.publisher("t"), there.subscriber("t")
    for number in range(100):
        publisher.publish(number)
        assert subscriber.receive(WATCHDOG).via == "shm"
    assert [peer.path for peer in here.peers()] == ["shm"]


def test_a_fork_of_a_far_node_disturbs_nobody(far):
    here, there = far("here"), far("there")
    publisher, subscriber = here.publisher("t"), there.subscriber("t")
    assert publisher.wait_for_subscribers(1, WATCHDOG)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            publisher.close()
            here.close()
        os._exit(0)
    os.waitpid(child, 0)
    for number in range(10):
        publisher.publish(number)
    assert [subscriber.receive(WATCHDOG).value for _ in range(10)] == list(range(10))


@pytest.mark.contract("names or addresses to use and to announce")
def test_a_node_is_reached_only_at_the_interfaces_that_were_named(join):
    there = join("there", shm=False, interfaces=["127.0.0.1"], listen="0.0.0.0:0")
    (address,) = there.addresses
    strange = address.replace("127.0.0.1", "127.0.0.2")
    stranger = join("stranger", shm=False, peers=[strange])
    until(lambda: any(its.verdict == "failed" for its in stranger.explain()), "nobody answers")
    assert not there.peers()
    friend = join("friend", shm=False, peers=[address])
    assert friend.wait_for_peers(1, WATCHDOG)
