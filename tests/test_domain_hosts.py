"""A domain on three hosts: who is linked with whom, what of it each host sees, and what is counted."""

# ruff: noqa: F811 (fixtures are imported, and named as arguments)

import pytest
from helpers import start  # noqa: F401
from hosts import hosts_can_be_made, hosts_on, switch  # noqa: F401

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("hosts_can_be_made")]

TOPICS = """[
    (
        it.topic,
        it.type,
        sorted((end.peer.name, end.type) for end in it.publishers),
        sorted((end.peer.name, end.type) for end in it.subscribers),
        sorted((bad.field, bad.offered, bad.asked) for bad in it.mismatches),
    )
    for it in sorted(node.topics(), key=lambda it: it.topic)
]"""


@pytest.fixture
def hosts(start, switch):
    """Nodes "a", "b" and "c", each on its own host, who know each other."""
    found = hosts_on(switch, start, *"abc", discovery="mdns")
    for host in found:
        host.open_node()
    for host in found:
        assert host.ask("node.wait_for_peers(2, 20)")
    return found


def test_patterns_types_and_quality_of_service_decide_on_every_host_alike(hosts):
    a, b, c = hosts
    a.do("pose, image = node.publisher('robot/pose', int), node.publisher('robot/arm/image', bytes)")
    a.do("quick = node.publisher('robot/quick', int, reliability='best_effort')")
    b.do("one = node.subscriber('robot/*', int)")
    b.do("strict = node.subscriber('robot/quick', int, reliability='reliable')")
    c.do("every, wrong = node.subscriber('**'), node.subscriber('robot/pose', str)")
    a.until("(pose.subscribers, image.subscribers, quick.subscribers) == (2, 1, 3)")
    expected = [
        ("robot/arm/image", "bytes", [("a", "bytes")], [("c", "")], []),
        (
            "robot/pose",
            "int",
            [("a", "int")],
            [("b", "int"), ("c", ""), ("c", "str")],
            [("type", "int", "str")],
        ),
        (
            "robot/quick",
            "int",
            [("a", "int")],
            [("b", "int"), ("b", "int"), ("c", "")],
            [("reliability", "best_effort", "reliable")],
        ),
    ]
    for host in hosts:
        host.until(f"len({TOPICS}) == 3 and sum(len(it[4]) for it in {TOPICS}) == 2")
        assert host.ask(TOPICS) == expected
        assert host.ask("sorted(peer.name for peer in node.peers())") == sorted("abc".replace(host.digit, ""))
    a.do("for number in range(100): pose.publish(number); image.publish(bytes([number]))")
    b.do("got = [one.receive(20) for _ in range(100)]")
    c.do("got = [every.receive(20) for _ in range(200)]")
    assert b.ask("[it.value for it in got]") == list(range(100))
    assert c.ask("[it.value for it in got if it.topic == 'robot/pose']") == list(range(100))
    assert c.ask("{it.source.name for it in got}") == {"a"}
    assert c.ask("wrong.receive_nowait()") is None


def test_counts_of_all_subscribers_of_a_domain_agree_with_what_they_took(hosts):
    a, *_ = hosts
    a.do("publisher = node.publisher('t', int, depth=10, on_full='drop_oldest')")
    for host in hosts:
        host.do("subscriber = node.subscriber('t', int)")
    a.until("publisher.subscribers == 3")
    a.do("for number in range(500): publisher.publish(number)")
    for host in hosts:
        host.do("got = [subscriber.receive(20)]")
        host.do("while got[-1].value < 499: got.append(subscriber.receive(20))")
        assert host.ask("len(got) + sum(it.lost for it in got)") == 500
    taken = {host.digit: host.ask("len(got)") for host in hosts}
    a.until(f"{{its.peer.name: its.delivered for its in publisher.stats().links}} == {taken!r}")
    assert a.ask("conserved(publisher)") == []
    for host in hosts:
        assert host.ask("conserved(subscriber)") == []
        ((sent, dropped),) = host.ask(
            "[(its.sent, sum(its.dropped.values())) for its in subscriber.stats().links]"
        )
        assert (sent, dropped) == (500, 500 - taken[host.digit])
