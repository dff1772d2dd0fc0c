"""The places where hosts are: who finds whom there, how samples travel, and what helps where nobody does.

Each story is a row of `docs/where-it-works.md`.
"""

# ruff: noqa: F811 (fixtures are imported, and named as arguments)

import pytest
from helpers import start  # noqa: F401
from hosts import Puppet, hosts_can_be_made, hosts_on, switch  # noqa: F401
from situations import situation

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("hosts_can_be_made")]


@pytest.fixture
def hosts(start):
    """Two hosts without a cable."""
    return hosts_on(None, start, "left", "right")


def open_node(host, **settings):
    host.open_node(**{"discovery": ["mdns"], **settings})


def talk(left, right):
    """Samples of 100 kB each way, all of them; the seconds from when the right one began to the first."""
    for host in (left, right):
        host.do("publisher = node.publisher(f't/{node.name}', bytes, history=1)")
        host.do("publisher.publish(b'first'); subscriber = node.subscriber('t/*', bytes)")
    took = []
    for host, other in ((left, right), (right, left)):
        host.do(f"while (got := subscriber.receive(60)).source.name != {other.digit!r}: pass")
        took.append(host.ask("time.monotonic() - begun"))
        assert host.ask("(got.payload.tobytes(), got.via)") == (b"first", "udp")
        host.do("while subscriber.receive_nowait(): pass")
    for host in (left, right):
        assert host.ask("publisher.wait_for_subscribers(2, 20)")
        host.do("for number in range(20): publisher.publish(bytes([number]) * 100_000)")
    for host, other in ((left, right), (right, left)):
        host.do("got = [subscriber.receive(60) for _ in range(40)]")
        assert host.ask(f"[it.value[0] for it in got if it.source.name == {other.digit!r}]") == list(
            range(20)
        )
        assert host.ask("all(it.lost == 0 and len(set(it.value)) == 1 for it in got)")
    return took[1]


@pytest.mark.parametrize(
    ("name", "addresses"),
    [
        ("two hosts on one switch", ("10.0.0.{}/24", "fd00::{}/64")),
        ("two hosts on one switch, IPv4 only", ("10.0.0.{}/24",)),
        ("two hosts on one switch, IPv6 only", ("fd00::{}/64",)),
        ("two hosts on one switch, link-local addresses only", ("fe80::aaaa:{}/64",)),
    ],
)
def test_two_hosts_on_one_switch_talk(hosts, switch, name, addresses):
    for number, host in enumerate(hosts, 1):
        if not any(":" in address for address in addresses):
            host.sysctl("net.ipv6.conf.all.disable_ipv6=1")
        switch.plug(host, *(address.format(number) for address in addresses))
        open_node(host)
    situation(name, "mdns", "udp", talk(*hosts))


def test_hosts_whose_kernel_has_no_ipv6_socket_find_who_has(hosts, switch):
    left, right = hosts
    switch.plug_all(hosts, "10.0.0.{}/24")
    open_node(left, listen="0.0.0.0:0")
    open_node(right)
    situation("a host that listens on IPv4 alone, and one on both", "mdns", "udp", talk(left, right))


def test_a_link_of_the_smallest_mtu_carries_all(hosts, switch):
    for number, host in enumerate(hosts, 1):
        switch.plug(host, f"10.0.0.{number}/24", f"fd00::{number}/64", mtu=1280)
        open_node(host)
    situation("two hosts on a link of MTU 1280, as in a tunnel", "mdns", "udp", talk(*hosts))


def test_a_router_with_a_smaller_mtu_that_tells_nobody_is_no_trouble(start, hosts, switch):
    """A tunnel on the way, and a firewall that eats the ICMP of who should say so."""
    left, right = hosts
    router = between(start, switch, left, right, mtu=1280)
    router.drop("icmp type destination-unreachable")
    open_node(right, discovery=["peers"], listen="0.0.0.0:7000")
    open_node(left, discovery=["peers"], peers=["10.2.0.2:7000"])
    took = talk(left, right)
    situation("behind a router with MTU 1280 that swallows ICMP", "peers", "udp", took, "`peers`")


@pytest.mark.parametrize(("percent", "name"), [(2, "2 %"), (20, "20 %")])
def test_a_switch_that_loses_packets_loses_no_samples(hosts, switch, percent, name):
    for number, host in enumerate(hosts, 1):
        switch.plug(host, f"10.0.0.{number}/24")
        host.drop(f"udp dport != 5353 numgen random mod 100 < {percent}")
        open_node(host)
    situation(f"two hosts, {name} of the packets lost each way", "mdns", "udp", talk(*hosts))


def test_where_multicast_does_not_pass_peers_do(hosts, switch):
    """An overlay of containers, a VPN, a cloud's network."""
    for number, host in enumerate(hosts, 1):
        switch.plug(host, f"10.0.0.{number}/24")
        switch.ip("link", "set", f"to-{host.digit}", "type", "bridge_slave", "mcast_flood", "off")
    left, right = hosts
    ways = ["mdns", "peers"]
    open_node(right, listen="0.0.0.0:7000", discovery=ways)
    open_node(left)
    assert not left.ask("node.wait_for_peers(1, 3)")
    situation("a network without multicast, mDNS alone", None, None, None, '`peers=["host:port"]`')
    left.do("node.close()")
    open_node(left, discovery=ways, peers=["10.0.0.2:7000"])
    took = talk(right, left)
    situation("a network without multicast, and `peers`", "peers", "udp", took, "`peers`")


def test_a_router_between_two_networks_is_crossed_by_peers(start, hosts, switch):
    left, right = hosts
    between(start, switch, left, right)
    open_node(right, discovery=["peers"], listen="0.0.0.0:7000")
    open_node(left, discovery=["peers"], peers=["10.2.0.2:7000"])
    situation("two networks with a router between them", "peers", "udp", talk(left, right), "`peers`")


def test_behind_masquerade_the_inner_host_reaches_out_and_learns_where_it_is_seen(start, hosts, switch):
    left, right = hosts
    router = between(start, switch, left, right)
    masquerade(router)
    # Without the router's help nobody could reach the inner host.
    right.ip("route", "del", "10.1.0.0/24")
    open_node(right, discovery=["peers"], listen="0.0.0.0:7000")
    open_node(left, discovery=["peers"], listen="0.0.0.0:7001", peers=["10.2.0.2:7000"])
    took = talk(left, right)
    situation(
        "one host behind NAT (masquerade)", "peers", "udp", took, "the inner one has the other in `peers`"
    )
    ((seen, *_),) = right.ask("[peer.addresses for peer in node.peers()]")
    assert seen.startswith("10.2.0.1:")
    assert left.ask("node.addresses") == ("10.1.0.2:7001", seen, "127.0.0.1:7001")


def test_a_translator_with_another_address_outside_is_no_loss_though_only_the_outer_host_speaks(
    start, hosts, switch
):
    """The provider gave it a new one, and all that was translated is forgotten."""
    left, right = hosts
    router = between(start, switch, left, right)
    masquerade(router)
    right.ip("route", "del", "10.1.0.0/24")
    open_node(right, discovery=["peers"], listen="0.0.0.0:7000")
    open_node(left, discovery=["peers"], listen="0.0.0.0:7001", peers=["10.2.0.2:7000"])
    talk(left, right)
    router.ip("addr", "del", "10.2.0.1/24", "dev", "to-right")
    router.ip("addr", "add", "10.2.0.9/24", "dev", "to-right")
    right.do("for number in range(20): publisher.publish(bytes([number]) * 1000)")
    left.do("got = [subscriber.receive(60) for _ in range(20)]")
    assert left.ask("[(it.value[0], it.lost) for it in got]") == [(number, 0) for number in range(20)]
    assert right.ask("node.peers()[0].addresses[0]").startswith("10.2.0.9:")
    left.until("any(its.startswith('10.2.0.9:') for its in node.addresses)")


def between(start, switch, left, right, mtu=1500):
    """A router between 10.1.0.2 and 10.2.0.2, each in a network of its own."""
    router = Puppet(start, "router")
    router.sysctl("net.ipv4.ip_forward=1")
    for number, host in enumerate((left, right), 1):
        cable = f"to-{host.digit}"
        pid = str(host.program.pid)
        router.ip("link", "add", "name", cable, "type", "veth", "peer", "name", "eth0", "netns", pid)
        router.ip("addr", "add", f"10.{number}.0.1/24", "dev", cable)
        router.ip("link", "set", cable, "up")
        host.ip("addr", "add", f"10.{number}.0.2/24", "dev", "eth0")
        host.ip("link", "set", "eth0", "up")
        host.ip("route", "add", f"10.{3 - number}.0.0/24", "via", f"10.{number}.0.1")
    router.ip("link", "set", "to-right", "mtu", str(mtu))
    right.ip("link", "set", "eth0", "mtu", str(mtu))
    return router


def masquerade(router):
    chain = "chain out {\ntype nat hook postrouting priority 100\noifname to-right masquerade random\n}"
    router.nft(f"table ip translator {{\n{chain}\n}}")
