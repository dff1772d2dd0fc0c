"""Nodes on two hosts: how they find each other, who may in, and what breaks between them."""

# ruff: noqa: F811 (fixtures are imported, and named as arguments)

import itertools

import pytest
from helpers import start, until  # noqa: F401
from hosts import NO_MEMORY, SECRET, Puppet, hosts_can_be_made, hosts_on, switch  # noqa: F401

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("hosts_can_be_made")]


@pytest.fixture
def hosts(start, switch):
    """Two hosts on one switch, "left" at 10.0.0.1 and "right" at 10.0.0.2."""
    return hosts_on(switch, start, "left", "right")


def open_node(host, port=0, **settings):
    """Opens `node` there, in IPv4 only, so that a story is told once; `watch` sees all of it."""
    host.open_node(**{"listen": f"0.0.0.0:{port}", "secret": None, **settings})


def meet(left, right, **settings):
    """Nodes that are peers, the left one by address."""
    open_node(right, 7000, discovery=["peers"], **settings)
    open_node(left, discovery=["peers"], peers=["10.0.0.2:7000"], **settings)
    for host in (left, right):
        assert host.ask("node.wait_for_peers(1, 20)")


def is_refused(stranger, why, remedy):
    """Waits for it: a finding and an event."""
    stranger.until("findings(node, 'refused')")
    ((_, reason, its),) = stranger.ask("findings(node, 'refused')")
    assert why in reason
    assert remedy in its
    until(lambda: "PeerRefused" in "".join(stranger.ask("everything(watch)")), "it is told")
    assert stranger.ask("node.peers()") == []


def warns_once(host, remedy):
    """Waits for the one warning there that names a remedy."""
    found = f"[text for text in logged if {remedy!r} in text]"
    host.until(found)
    assert len(host.ask(found)) == 1


# ---- finding each other -------------------------------------------------------------------------


@pytest.mark.contract("Across machines give both one secret", 'any of `"shm"`, `"mdns"`, `"peers"`')
@pytest.mark.parametrize("way", ["mdns", "peers"])
def test_two_hosts_with_one_secret_find_each_other_and_samples_flow_both_ways(hosts, way):
    left, right = hosts
    peers = {"peers": ["10.0.0.2:7000"]} if way == "peers" else {}
    open_node(right, 7000, secret=SECRET, discovery=[way])
    open_node(left, secret=SECRET, discovery=[way], **peers)
    for host in hosts:
        host.do("publisher, subscriber = node.publisher(f't/{node.name}'), node.subscriber('t/*')")
    for host in hosts:
        assert host.ask("publisher.wait_for_subscribers(2, 20) and subscriber.wait_for_publishers(2, 20)")
        host.do("for number in range(30): publisher.publish({'number': number, 'rest': bytes(100 * number)})")
    for host, other in (hosts, hosts[::-1]):
        host.do("got = [subscriber.receive(20) for _ in range(60)]")
        got = host.ask("[(it.value['number'], it.lost, it.via) for it in got if it.source.path]")
        assert got == [(number, 0, "udp") for number in range(30)]
        ((name, path),) = host.ask("[(peer.name, peer.path) for peer in node.peers()]")
        assert (name, path) == (other.digit, "udp")
        assert host.ask("all(isinstance(peer.rtt, float) and 0 < peer.rtt < 1 for peer in node.peers())")
        assert not host.ask("logged")


def test_the_addresses_of_a_peer_on_another_host_begin_with_the_one_in_use_and_lead_there(hosts):
    meet(*hosts, secret=SECRET)
    left, right = hosts
    (addresses,) = left.ask("[peer.addresses for peer in node.peers()]")
    assert addresses == ("10.0.0.2:7000",)
    (addresses,) = right.ask("[peer.addresses for peer in node.peers()]")
    assert addresses == (left.ask("node.addresses")[0],)
    assert right.ask("node.addresses") == ("10.0.0.2:7000", "127.0.0.1:7000")


def test_hosts_with_ipv6_alone_find_each_other(start, switch):
    hosts = hosts_on(None, start, "left", "right")
    switch.plug_all(hosts, "fd00::{}/64")
    for host in hosts:
        host.open_node()
    for host in hosts:
        assert host.ask("node.wait_for_peers(1, 20)")


@pytest.mark.contract("asked again as time goes on")
def test_a_name_is_looked_up_again_and_leads_to_whoever_has_it_by_then(hosts, tmp_path):
    """First to nobody, then to a host; then to a second one besides, as a headless service does."""
    left, right = hosts
    names = tmp_path / "hosts"
    names.write_text("127.0.0.1 localhost\n10.0.0.99 robot\n")
    left.do(f"import finders; finders.use_hosts_file({str(names)!r})")
    open_node(right, 7000, secret=SECRET, discovery=["peers"])
    open_node(left, secret=SECRET, discovery=["peers"], peers=["robot:7000"])
    left.until("[way.heard_ns for way in node.discovery() if way.name == 'peers'] != [None]")
    assert left.ask("node.peers()") == []
    names.write_text("127.0.0.1 localhost\n10.0.0.2 robot\n")
    for host in hosts:
        assert host.ask("node.wait_for_peers(1, 20)")
    assert left.ask("findings(node, 'failed')") == []


# ---- who may in ---------------------------------------------------------------------------------


@pytest.mark.contract(
    "strangers that it finds are refused, visibly",
    'A refusal is a Finding `"refused"` and a PeerRefused at least at the side that opened the connection',
)
def test_without_a_secret_strangers_of_another_host_are_refused_on_both_sides_with_one_warning(hosts):
    for host in hosts:
        open_node(host)
    for host in hosts:
        is_refused(host, "without a secret", "open=True")
        warns_once(host, "VBUS_SECRET")


@pytest.mark.contract("which accepts anyone who names the domain")
def test_open_on_both_sides_lets_strangers_in(hosts):
    meet(*hosts, open=True)


@pytest.mark.parametrize("opened", [0, 1])
@pytest.mark.contract("Both sides open, or both with the same secret; everything else is refused")
def test_open_on_one_side_only_is_refused(hosts, opened):
    open_node(hosts[1], 7000, open=opened == 1)
    open_node(hosts[0], open=opened == 0, discovery=["peers"], peers=["10.0.0.2:7000"])
    is_refused(hosts[0], "", "open=True")
    warns_once(hosts[0], "open=True")


def test_another_secret_is_refused_and_the_remedy_is_one_secret(hosts):
    open_node(hosts[1], 7000, secret="another horse battery", discovery=["peers"])
    open_node(hosts[0], secret=SECRET, discovery=["peers"], peers=["10.0.0.2:7000"])
    is_refused(hosts[0], "secret is another", "same VBUS_SECRET")
    warns_once(hosts[0], "same VBUS_SECRET")


@pytest.mark.parametrize("having", [0, 1])
def test_a_secret_on_one_side_only_is_refused(hosts, having):
    open_node(hosts[1], 7000, secret=SECRET if having == 1 else None)
    open_node(hosts[0], secret=SECRET if having == 0 else None, discovery=["peers"], peers=["10.0.0.2:7000"])
    is_refused(hosts[0], "secret", "VBUS_SECRET")
    warns_once(hosts[0], "VBUS_SECRET")


@pytest.mark.contract('a reachable node of another domain is a Finding `"off"` that names the domain')
def test_a_node_of_another_domain_on_another_host_is_a_finding_that_names_it(hosts):
    open_node(hosts[1], 7000, secret=SECRET, domain="elsewhere")
    open_node(hosts[0], secret=SECRET, discovery=["peers"], peers=["10.0.0.2:7000"])
    hosts[0].until("findings(node, 'off')")
    ((whom, reason, _),) = hosts[0].ask("findings(node, 'off')")
    assert whom == "10.0.0.2:7000"
    assert "'elsewhere'" in reason or '"elsewhere"' in reason
    assert hosts[0].ask("node.peers()") == []


@pytest.mark.contract("or a string of `peers` as given")
@pytest.mark.parametrize("peer", ["10.0.0.2:7000", "10.0.0.9:7000", "10.9.9.9:7000"])
def test_whom_nobody_answers_for_is_a_finding_with_a_reason(hosts, peer):
    """No program at a port, no host at an address, no way to a network."""
    open_node(hosts[0], secret=SECRET, discovery=["peers"], peers=[peer])
    hosts[0].until("findings(node, 'failed')")
    ((whom, reason, remedy),) = hosts[0].ask("findings(node, 'failed')")
    assert whom == peer
    assert peer in reason
    assert "peers" in remedy


# ---- what breaks --------------------------------------------------------------------------------


@pytest.mark.contract("(`flush` then counts its samples as lost and returns True)")
def test_a_killed_process_on_another_host_is_gone_within_fifteen_seconds(hosts):
    meet(*hosts, secret=SECRET)
    left, right = hosts
    right.do("subscriber = node.subscriber('t')")
    left.do("publisher = node.publisher('t', bytes); publisher.wait_for_subscribers(1, 20)")
    right.program.kill()
    left.do("begun = time.monotonic()")
    left.do("for _ in range(10): publisher.publish(bytes(1000))")
    assert left.ask("publisher.flush(30)", 40)
    assert left.ask("time.monotonic() - begun") < 16
    left.until("node.peers() == []")
    assert any("PeerLeft" in event and "timeout" in event for event in left.ask("everything(watch)"))
    assert left.ask("publisher.stats().lost") == 10


@pytest.mark.parametrize("way", ["mdns", "peers"])
def test_a_host_that_was_switched_off_and_on_again_is_met_anew_though_it_has_the_same_address(
    hosts, start, way
):
    left, right = hosts
    peers = {"peers": ["10.0.0.2:7000"]} if way == "peers" else {}
    open_node(right, 7000, secret=SECRET, discovery=[way])
    open_node(left, secret=SECRET, discovery=[way], **peers)
    right.do("subscriber = node.subscriber('t', int)")
    left.do("publisher = node.publisher('t', int, history=10); publisher.wait_for_subscribers(1, 20)")
    left.do("for number in range(10): publisher.publish(number)")
    right.do("got = [subscriber.receive(20) for _ in range(10)]")
    again = Puppet(start, "again", beside=right, environment=NO_MEMORY)
    # What one took that died before it told so counts as lost.
    left.until("publisher.stats().links[0].delivered == 10")
    right.program.kill()
    left.do("for number in range(10, 20): publisher.publish(number)")
    open_node(again, 7000, secret=SECRET, discovery=[way])
    again.do("subscriber = node.subscriber('t', int)")
    again.do("got = [subscriber.receive(20) for _ in range(10)]")
    assert again.ask("[it.value for it in got]") == list(range(10, 20))
    left.until("[peer.name for peer in node.peers()] == ['again']")
    left.until("publisher.stats().lost == 10")
    assert left.ask("publisher.stats().published") == 20


def test_a_blackout_loses_nothing_of_a_reliable_publisher(hosts, switch):
    meet(*hosts, secret=SECRET)
    left, right = hosts
    right.do("subscriber = node.subscriber('t', int)")
    left.do("publisher = node.publisher('t', int, depth=100_000); publisher.wait_for_subscribers(1, 20)")
    left.do("count = 0")
    speak = "for _ in range(100): publisher.publish(count); count += 1"
    left.do(speak)
    cable = f"to-{right.digit}"
    switch.ip("link", "set", cable, "down")
    left.do(speak)
    # Nothing of this can have come: the link was down before it was said.
    assert not left.ask("publisher.flush(3)")
    switch.ip("link", "set", cable, "up")
    left.do(speak)
    right.do("got = [subscriber.receive(20) for _ in range(300)]")
    assert right.ask("[(it.value, it.lost) for it in got]") == [(number, 0) for number in range(300)]
    assert left.ask("publisher.flush(20)")
    assert all("PeerLeft" not in event for event in left.ask("everything(watch)"))


def test_an_address_that_changes_heals_and_nothing_is_lost(hosts):
    meet(*hosts, secret=SECRET)
    left, right = hosts
    right.do("subscriber = node.subscriber('t', int)")
    left.do("publisher = node.publisher('t', int); publisher.wait_for_subscribers(1, 20); count = 0")
    numbers = itertools.count()
    for address in ("10.0.0.1", "10.0.0.77", "10.0.0.78"):
        left.ip("addr", "flush", "dev", "eth0")
        left.ip("addr", "add", f"{address}/24", "dev", "eth0")
        left.do("for _ in range(50): publisher.publish(count); count += 1")
        right.do("got = [subscriber.receive(20) for _ in range(50)]")
        for sample, number in zip(right.ask("[(it.value, it.lost) for it in got]"), numbers):
            assert sample == (number, 0)
    assert all("PeerLeft" not in event for event in right.ask("everything(watch)"))
