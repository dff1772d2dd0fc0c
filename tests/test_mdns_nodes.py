"""Nodes whose mDNS is blocked, absent, spoofed, flooded or stuck: what works otherwise works on."""

# ruff: noqa: F811 (fixtures are imported, and named as arguments)

import socket

import pytest
from helpers import start  # noqa: F401
from hosts import SECRET, Puppet, hosts_can_be_made, hosts_on, switch  # noqa: F401
from test_mdns import answer, in_network_of, speaker

from vbus.discovery.announcement import SERVICE, digest, instance

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("hosts_can_be_made")]


@pytest.fixture
def hosts(start, switch):
    """Two hosts on one switch, "left" at 10.0.0.1 and "right" at 10.0.0.2; at "third", 10.0.0.3, nobody."""
    return hosts_on(switch, start, "left", "right", "third")


def open_nodes(*hosts, **settings):
    for host in hosts:
        host.open_node(**{"listen": "0.0.0.0:7000", **settings})


def open_by_address(left, right):
    open_nodes(left, right, peers=["10.0.0.1:7000", "10.0.0.2:7000"])


def talk(left, right):
    """A hundred samples each way."""
    for host in (left, right):
        host.do("publisher = node.publisher(f't/{node.name}', int, depth=1000)")
        host.do("subscriber = node.subscriber('t/*', int)")
    for host in (left, right):
        assert host.ask("publisher.wait_for_subscribers(2, 20) and subscriber.wait_for_publishers(2, 20)")
    for host in (left, right):
        host.do("for number in range(100): publisher.publish(number)")
    for host in (left, right):
        host.do("got = [subscriber.receive(20) for _ in range(200)]")
        got = host.ask("[(it.value, it.lost) for it in got if it.source.path]")
        assert got == [(number, 0) for number in range(100)]


def is_live(host):
    """Waits until mDNS is spoken there."""
    host.until("any(way.addresses for way in node.discovery() if way.name == 'mdns')")


def mdns(host):
    """How mDNS stands there."""
    return host.ask(
        "next((way.error, way.deaf, len(way.candidates), dict(way.ignored))"
        " for way in node.discovery() if way.name == 'mdns')"
    )


def peers_stay(*hosts):
    for host in hosts:
        assert not any(
            word in event for event in host.ask("everything(watch)") for word in ("Left", "Refused")
        )


@pytest.mark.parametrize("hook", ["output", "input"])
def test_a_firewall_that_blocks_mdns_is_seen_and_the_other_ways_work(hosts, hook):
    left, right, _ = hosts
    for host in (left, right):
        host.drop("udp dport 5353", hook=hook)
    open_by_address(left, right)
    talk(left, right)
    left.until("any(way.deaf or way.error for way in node.discovery() if way.name == 'mdns')")
    assert mdns(left)[2] == 0


def test_a_responder_that_has_the_port_for_itself_hinders_nobody_who_is_named(hosts):
    left, right, _ = hosts
    with in_network_of(left):
        hog = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with hog:
        hog.bind(("::", 5353))
        open_by_address(left, right)
        talk(left, right)
        left.until("any(way.error for way in node.discovery() if way.name == 'mdns')")


def test_whoever_hears_a_thousand_foreign_services_talks_on(hosts):
    left, right, third = hosts
    with speaker(third, "10.0.0.3") as shout:
        foreign = [
            answer(f"{number}._ipp._tcp.local.", "_ipp._tcp.local.", "10.0.0.3", {"x": "y"})
            for number in range(1000)
        ]
        for packet in foreign:
            shout(packet)
        open_nodes(left, right)
        is_live(left)
        for packet in foreign:
            shout(packet)
        talk(left, right)
    assert mdns(left)[3].get("other services", 0) > 0
    peers_stay(left, right)


def test_a_crowd_of_forged_nodes_keeps_no_true_one_out(hosts):
    """Each is announced at an address where nobody answers."""
    left, right, third = hosts
    domain = left.ask("os.environ['VBUS_DOMAIN']")
    open_nodes(left)
    is_live(left)
    with speaker(third, "10.0.0.3") as shout:
        for number in range(1500):
            name = f"{number:032x}.{SERVICE}"
            shout(answer(name, SERVICE, f"10.0.0.{100 + number % 100}", announced(domain, 9)))
        left.until("sum(len(way.candidates) for way in node.discovery() if way.name == 'mdns') > 500")
        open_nodes(right)
        talk(left, right)
    peers_stay(left, right)


def test_forged_words_about_a_peer_do_not_part_those_who_have_met(hosts):
    """That it is elsewhere, that it is gone, and that somebody else is where it is."""
    left, right, third = hosts
    open_nodes(left, right)
    talk(left, right)
    domain, name = left.ask("os.environ['VBUS_DOMAIN']"), instance(right.ask("node.id"))
    with speaker(third, "10.0.0.3") as shout:
        shout(answer(name, SERVICE, "10.0.0.77", announced(domain, 9)))
        shout(answer(f"{'e' * 32}.{SERVICE}", SERVICE, "10.0.0.2", announced(domain, 7000)))
        left.until("any('e' * 32 == its.name for way in node.discovery() for its in way.candidates)")
        shout(answer(name, SERVICE, "10.0.0.77", announced(domain, 9), ttl=0))
    for host in (left, right):
        host.do("subscriber.close(); publisher.close()")
    talk(left, right)
    peers_stay(left, right)


def announced(domain, port):
    return {"v": "1", "d": digest(domain), "p": str(port)}


STUCK = """
import threading
threading.Event().wait()
"""


def test_nodes_do_not_wait_for_mdns_to_begin_or_to_end(start, tmp_path, switch):
    """Its library never comes to an end of being imported."""
    (tmp_path / "zeroconf.py").write_text(STUCK)
    first = Puppet(start, "left", environment={"VBUS_DISCOVERY": "shm,mdns"})
    switch.plug(first, "10.0.0.1/24")
    second = Puppet(start, "right", beside=first, environment={"VBUS_DISCOVERY": "shm,mdns"})
    for host in (first, second):
        host.do(f"import sys; sys.path.insert(0, {str(tmp_path)!r})")
    for host in (first, second):
        host.open_node()
    for host in (first, second):
        assert host.ask("node.wait_for_peers(1, 20)")
    for host in (first, second):
        host.do("node.close()")
        assert not host.ask("logged")
