"""Many nodes: everybody meets everybody, once, whatever they have in common that should be unique."""

# ruff: noqa: F811 (fixtures are imported, and named as arguments)

import pytest
from helpers import start  # noqa: F401
from hosts import NO_MEMORY, SECRET, Puppet, hosts_can_be_made, switch  # noqa: F401

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("hosts_can_be_made")]

BOTH_WAYS = {"VBUS_DISCOVERY": "shm,mdns"}
BY_MDNS = {**NO_MEMORY, "VBUS_DISCOVERY": "mdns"}


def form_a_full_bus(hosts, **settings):
    """All begin at once; each publishes one sample, of which everybody gets one."""
    count = len(hosts)
    opened = f"node = vbus.Node('n', **{dict(secret=SECRET, **settings)!r}); watch = node.watch()"
    for host in hosts:
        host.tell("do", f"{opened}; subscriber = node.subscriber('t/*', str)")
    for host in hosts:
        host.done()
        host.do(
            f"publisher = node.publisher('t/' + node.id, str, history=1); publisher.publish({host.digit!r})"
        )
    for host in hosts:
        host.tell("ask", f"sorted(subscriber.receive(60).value for _ in range({count}))")
    everyone = sorted(host.digit for host in hosts)
    for host in hosts:
        assert host.done(90) == everyone
        assert host.ask("subscriber.receive_nowait()") is None
        events = host.ask("everything(watch)")
        assert sum("PeerJoined" in event for event in events) == count - 1
        assert not any(word in event for event in events for word in ("PeerLeft", "PeerRefused"))
    ids = {host.ask("node.id") for host in hosts}
    for host in hosts:
        topics = host.ask("[(its.topic, its.publishers[0].peer.id) for its in node.topics()]")
        assert sorted(topics) == sorted((f"t/{its}", its) for its in ids)
        assert set(host.ask("[peer.id for peer in node.peers()]")) == ids - {host.ask("node.id")}
        trouble = host.ask("findings(node, 'failed') + findings(node, 'refused')")
        # All hosts of a test are one machine, and those that look for directories hear that they share none.
        assert [it for it in trouble if not it[1].startswith("it is on this machine")] == []
        assert not host.ask("logged")


def test_eight_hosts_on_one_switch_form_a_full_bus(start, switch):
    hosts = [Puppet(start, f"h{number}", environment=BY_MDNS) for number in range(8)]
    switch.plug_all(hosts, "10.0.0.{}/24", "fd00::{}/64")
    form_a_full_bus(hosts)
    for host in hosts:
        assert set(host.ask("[peer.path for peer in node.peers()]")) == {"udp"}


def test_twelve_nodes_of_one_host_without_memory_in_common_form_a_full_bus(start, switch):
    first = Puppet(start, "h0", environment=BY_MDNS)
    switch.plug(first, "10.0.0.1/24")
    others = [Puppet(start, f"h{number}", beside=first, environment=BY_MDNS) for number in range(1, 12)]
    form_a_full_bus([first, *others])
    for host in others:
        assert set(host.ask("[peer.path for peer in node.peers()]")) == {"udp"}


def test_cloned_machines_are_told_apart_and_not_taken_for_neighbours(start, switch):
    """The same host name, the same machine id, the same pid, and directories of the same name."""
    hosts = [Puppet(start, f"h{number}", clone=True, environment=BOTH_WAYS) for number in range(3)]
    switch.plug_all(hosts, "10.0.0.{}/24")
    assert {host.ask("os.getpid()") for host in hosts} == {1}
    assert len({host.ask("os.uname().nodename") for host in hosts}) == 1
    form_a_full_bus(hosts)
    for host in hosts:
        assert set(host.ask("[peer.path for peer in node.peers()]")) == {"udp"}
