"""Peers with several addresses: all are tried at once, one is used, and another when that one dies."""

# ruff: noqa: F811 (fixtures are imported, and named as arguments)

import pytest
from helpers import start  # noqa: F401
from hosts import Puppet, Switch, hosts_can_be_made, hosts_on, switch  # noqa: F401

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("hosts_can_be_made")]


@pytest.fixture
def hosts(start):
    """Two hosts without a cable."""
    return hosts_on(None, start, "left", "right")


@pytest.fixture
def networks(start, hosts):
    """Two switches, by the interface that leads there: 10.0.0.1, 10.0.0.2 and 10.1.0.1, 10.1.0.2."""
    switches = {interface: Switch(start) for interface in ("eth0", "eth1")}
    for at, (interface, network) in enumerate(switches.items()):
        network.plug_all(hosts, f"10.{at}.0.{{}}/24", interface=interface)
    return switches


def isolate(switch, hosts, on=True, interface="eth0"):
    for host in hosts:
        switch.isolate(host, on, interface)


def open_nodes(hosts, **settings):
    for host in hosts:
        host.open_node(**{"discovery": ["mdns"], **settings})


def talk(hosts):
    """A sample each way; the next ones are numbered on."""
    for host in hosts:
        host.do("publisher, subscriber = node.publisher(f't/{node.name}', int), node.subscriber('t/*', int)")
        host.do("count = 0")
    for host in hosts:
        assert host.ask("publisher.wait_for_subscribers(2, 20) and subscriber.wait_for_publishers(2, 20)")
    say_and_hear(hosts, 10)


def say_and_hear(hosts, count):
    for host in hosts:
        host.do(f"for _ in range({count}): publisher.publish(count); count += 1")
    for host in hosts:
        host.do(f"got = [subscriber.receive(20) for _ in range({2 * count})]")
        got = host.ask("[(it.value, it.lost, it.via) for it in got if it.source.path]")
        last = host.ask("count")
        assert got == [(number, 0, "udp") for number in range(last - count, last)]


def is_one_peer(hosts):
    """Each has met the other once, and nothing failed."""
    for host in hosts:
        assert host.ask("len(node.peers())") == 1
        events = host.ask("everything(watch)")
        assert sum("PeerJoined" in event for event in events) == 1
        assert not any("PeerLeft" in event for event in events)
        assert host.ask("findings(node, 'failed') + findings(node, 'refused')") == []


@pytest.mark.parametrize("dead", ["eth0", "eth1"])
def test_of_two_networks_the_one_that_lives_is_used_and_the_dead_one_does_no_harm(hosts, networks, dead):
    isolate(networks[dead], hosts, interface=dead)
    open_nodes(hosts)
    talk(hosts)
    ((first, *_),) = hosts[0].ask("[peer.addresses for peer in node.peers()]")
    assert first.startswith("10.1.0.2" if dead == "eth0" else "10.0.0.2")
    is_one_peer(hosts)


def test_an_address_that_is_a_black_hole_is_passed_over(hosts, switch):
    """It is announced, and a firewall drops what goes there."""
    for number, host in enumerate(hosts, 1):
        switch.plug(host, f"10.0.0.{number}/24", f"10.5.0.{number}/24", f"fd00::{number}/64")
        host.drop("ip daddr 10.5.0.0/24", "ip6 daddr fd00::/64")
    open_nodes(hosts)
    talk(hosts)
    is_one_peer(hosts)


@pytest.mark.contract("`PathChanged(peer, old, new, reason)`")
def test_when_the_network_in_use_dies_the_other_is_used_and_nothing_is_lost(hosts, networks):
    open_nodes(hosts)
    talk(hosts)
    (before,) = hosts[0].ask("[peer.addresses[0] for peer in node.peers()]")
    dying, living = ("eth0", "10.1.0.2") if before.startswith("10.0.0.2") else ("eth1", "10.0.0.2")
    isolate(networks[dying], hosts, interface=dying)
    say_and_hear(hosts, 10)
    (after,) = hosts[0].ask("[peer.addresses[0] for peer in node.peers()]")
    assert after.startswith(living)
    for host in hosts:
        ((old, new, _),) = host.ask("[(it.old, it.new, it.reason) for it in changes(watch)]")
        assert (old, new) == ("udp", "udp")


def test_nodes_that_see_each_other_at_the_same_moment_have_one_connection(hosts, switch):
    switch.plug_all(hosts, "10.0.0.{}/24", "fd00::{}/64")
    isolate(switch, hosts)
    for host, other in zip(hosts, (2, 1)):
        peers = [f"10.0.0.{other}:7000", f"[fd00::{other}]:7000"]
        open_nodes([host], listen="[::]:7000", discovery=["mdns", "peers"], peers=peers)
    isolate(switch, hosts, on=False)
    talk(hosts)
    is_one_peer(hosts)


def test_a_node_that_is_found_three_ways_is_one_peer(start, switch):
    """In memory, by mDNS, and by address."""
    left = Puppet(start, "left")
    switch.plug(left, "10.0.0.1/24")
    right = Puppet(start, "right", beside=left)
    ways = ["shm", "mdns", "peers"]
    open_nodes([right], listen="[::]:7000", discovery=ways)
    open_nodes([left], discovery=ways, peers=["10.0.0.1:7000", "127.0.0.1:7000"])
    for host in (left, right):
        host.do("publisher, subscriber = node.publisher(f't/{node.name}', int), node.subscriber('t/*', int)")
    for host in (left, right):
        host.do("publisher.publish(1)")
    for host in (left, right):
        host.do("got = [subscriber.receive(20) for _ in range(2)]")
        assert host.ask("{it.via for it in got}") == {"shm"}
    # It was heard, and nothing came of it.
    left.until("any(way.name == 'mdns' and way.candidates for way in node.discovery())")
    is_one_peer([left, right])


def test_an_address_that_changes_is_told_and_followed(hosts, switch):
    left, right = hosts
    switch.plug_all(hosts, "10.0.0.{}/24")
    open_nodes(hosts, listen="0.0.0.0:7000")
    talk(hosts)
    # As a lease that ends: the only address goes, and then there is another.
    right.ip("addr", "flush", "dev", "eth0")
    right.ip("addr", "add", "10.0.0.99/24", "dev", "eth0")
    left.until("[peer.addresses[0] for peer in node.peers()] == ['10.0.0.99:7000']")
    right.until("node.addresses == ('10.0.0.99:7000', '127.0.0.1:7000')")
    say_and_hear(hosts, 10)
    assert left.ask("[(it.old, it.new) for it in changes(watch)]") == [("udp", "udp")]
