"""Virtual machines that share nothing but a network: they find each other, break, are copied, stand still.

All of them have one host name and one machine id, as copies of one image have. Nothing here is configured
but a secret.
"""

# ruff: noqa: F811 (fixtures are imported, and named as arguments)

import pytest
from boxes import boxes, boxes_can_be_plugged, engine  # noqa: F401
from helpers import start  # noqa: F401
from hosts import Puppet, hosts_can_be_made, switch  # noqa: F401
from machines import ASKED_FOR, boot, machines_can_be_booted  # noqa: F401
from situations import situation

if not ASKED_FOR:
    pytest.skip("virtual machines are booted by ./dev test --machines", allow_module_level=True)

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.usefixtures("hosts_can_be_made", "machines_can_be_booted"),
]

SECRET = "vbus1-" + "5a" * 32
"""Such as `vbus keygen` draws: a passphrase is stretched, for which an emulated machine takes seconds."""

LONG = 60.0
"""Seconds for what takes one or two on a machine that is not emulated."""

PUBLISH_100 = "for _ in range(100): publisher.publish(next(numbers))"
BOOT_ID = "open('/proc/sys/kernel/random/boot_id').read()"


@pytest.fixture
def pair(boot):
    """Two machines on one switch, "left" at 10.0.0.1 and "right" at 10.0.0.2."""
    machines = boot("left", "right")
    for number, machine in enumerate(machines, 1):
        machine.address(f"10.0.0.{number}/24")
    return machines


@pytest.fixture
def machine(boot):
    """One machine, at 10.0.0.1."""
    (machine,) = boot("machine")
    machine.address("10.0.0.1/24")
    return machine


@pytest.fixture
def neighbour(start, switch):
    """A host in a namespace on the same switch, at 10.0.0.9."""
    host = Puppet(start, "neighbour", environment={"VBUS_SHM": "off", "VBUS_DISCOVERY": "mdns,peers"})
    switch.plug(host, "10.0.0.9/24")
    return host


def open_node(host):
    """Opens `node` there, with a secret and nothing else; `watch` sees all of it."""
    host.do("import itertools, threading, time; begun = time.monotonic()")
    host.do(
        f"node = vbus.Node({host.digit!r}, domain='default', secret={SECRET!r}); watch = node.watch()", LONG
    )


def first_sample(talker, listener):
    """Both open their nodes, the listener as the later: seconds until its first sample, by mDNS and UDP."""
    open_node(talker)
    talker.do("talker = node.publisher('greeting', history=1); talker.publish('hello')")
    open_node(listener)
    listener.do(f"heard = node.subscriber('greeting').receive({LONG}); took = time.monotonic() - begun", LONG)
    assert listener.ask("(heard.value, heard.via)") == ("hello", "udp")
    ways = "{way.name for way in node.discovery() if way.candidates}"
    assert talker.ask(ways) | listener.ask(ways) == {"mdns"}
    return listener.ask("took")


def talk_both_ways(*hosts):
    """Thirty samples from each to each; small ones, and some of several datagrams."""
    for host in hosts:
        host.do("publisher, subscriber = node.publisher(f't/{node.name}'), node.subscriber('t/*')")
    for host in hosts:
        knows_subscribers(host, 2)
        assert host.ask(f"subscriber.wait_for_publishers(2, {LONG})", LONG)
        host.do("for number in range(30): publisher.publish({'number': number, 'rest': bytes(300 * number)})")
    for host in hosts:
        host.do(f"got = [subscriber.receive({LONG}) for _ in range(60)]", LONG)
        got = host.ask("[(it.value['number'], it.lost, it.via) for it in got if it.source.path]")
        assert got == [(number, 0, "udp") for number in range(30)]
        assert not host.ask("logged")


def knows_subscribers(host, count):
    """Waits until so many have its publisher."""
    assert host.ask(f"publisher.wait_for_subscribers({count}, {LONG})", LONG)


def has_left(host):
    """Waits until `events` there has somebody leave; the events of both kinds."""
    host.do("events = []")
    host.until("events.extend(everything(watch)) or any('PeerLeft' in event for event in events)", LONG)
    events = host.ask("events")
    return ([event for event in events if kind in event] for kind in ("PeerJoined", "PeerLeft"))


# ---- finding each other -------------------------------------------------------------------------


@pytest.mark.contract("Across machines give both one secret")
def test_two_machines_find_each_other_with_nothing_configured_but_a_secret(pair):
    took = first_sample(*pair)
    talk_both_ways(*pair)
    situation("two virtual machines on one bridge", "mdns", "udp", took)


def test_a_machine_and_a_host_find_each_other(machine, neighbour):
    took = first_sample(machine, neighbour)
    talk_both_ways(machine, neighbour)
    situation("a virtual machine and its host, on one bridge", "mdns", "udp", took)


def test_a_machine_and_a_container_find_each_other(machine, boxes):
    box = boxes.make("box", cable=boxes.cable("box", "10.0.0.9/24"))
    took = first_sample(box, machine)
    talk_both_ways(box, machine)
    situation("a virtual machine and a container on one bridge", "mdns", "udp", took)


@pytest.mark.contract("`id` (hex, unique, drawn anew for every Node)")
def test_copies_of_a_running_machine_draw_ids_of_their_own_and_find_each_other(boot, tmp_path):
    """One is saved with vbus loaded, random numbers and all, and goes on twice, each time with the same."""
    (original,) = boot("original", dice=False)
    original.ask(f"(os.urandom(8), {BOOT_ID})")
    original.save(tmp_path / "saved")
    original.power_cut()
    copies = boot("left", "right", saved=tmp_path / "saved", dice=False)
    for number, copy in enumerate(copies, 1):
        copy.ip("link", "set", "eth0", "address", f"52:54:00:00:01:{number:02x}")
        copy.address(f"10.0.0.{number}/24")
    (tmp_path / "saved").unlink()  # it is large
    took = first_sample(*copies)
    assert len({copy.ask("node.id") for copy in copies}) == 2
    assert len({copy.ask(BOOT_ID) for copy in copies}) == 1
    talk_both_ways(*copies)
    situation("two virtual machines, copies of one that was running", "mdns", "udp", took)


# ---- what breaks --------------------------------------------------------------------------------


def test_a_machine_that_loses_power_while_it_publishes_is_gone_and_comes_back_as_another(machine, neighbour):
    open_node(neighbour)
    neighbour.do("subscriber = node.subscriber('t', int)")
    open_node(machine)
    machine.do("publisher = node.publisher('t', int)")
    knows_subscribers(machine, 1)
    machine.do(
        "threading.Thread(target=lambda: [*map(publisher.publish, itertools.count())], daemon=True).start()"
    )
    neighbour.do("got = [subscriber.receive(20) for _ in range(100)]")
    machine.power_cut()
    machine.switch_on()
    machine.is_up()
    machine.address("10.0.0.1/24")
    open_node(machine)
    machine.do("publisher = node.publisher('t', int)")
    knows_subscribers(machine, 1)
    machine.do("for number in range(100): publisher.publish(number)")
    joined, left = has_left(neighbour)
    assert len(joined) == 2
    assert len(left) == 1
    assert "'timeout'" in left[0]
    second = machine.ask("publisher.id")
    neighbour.do(
        f"while (got[-1].publisher, got[-1].value) != ({second!r}, 99): got.append(subscriber.receive(20))"
    )
    assert machine.ask(f"publisher.flush({LONG})", LONG)
    got = neighbour.ask("[(it.publisher, it.value, it.lost) for it in got]")
    first = got[0][0]
    for publisher, end in ((first, len(got) - 100), (second, 100)):
        values = [(value, lost) for whose, value, lost in got if whose == publisher]
        assert values == [(number, 0) for number in range(end)]
    counts = neighbour.ask("(lambda its: (its.sent, its.delivered, len(node.peers())))(subscriber.stats())")
    assert counts == (len(got), len(got), 1)
    situation("a virtual machine that lost power and booted again: another node", "mdns", "udp", None)


def test_a_machine_that_is_suspended_for_seconds_loses_nothing_in_either_direction(machine, neighbour):
    hosts = (machine, neighbour)
    for host in hosts:
        open_node(host)
        host.do("publisher = node.publisher(f't/{node.name}', int, depth=1000); numbers = itertools.count()")
        host.do("subscriber = node.subscriber('t/*', int)")
    for host in hosts:
        knows_subscribers(host, 2)
        host.do(PUBLISH_100)
    machine.do(
        "threading.Thread(target=lambda: [publisher.publish(next(numbers)) for _ in range(800)]).start()"
    )
    machine.suspend()
    neighbour.do(PUBLISH_100)
    assert not neighbour.ask("publisher.flush(8)"), "it was to stand still"
    machine.resume()
    neighbour.do(PUBLISH_100)
    counts = {"machine": 900, "neighbour": 300}
    for host in hosts:
        assert host.ask(f"publisher.flush({LONG})", LONG)
        host.do(f"got = [subscriber.receive({LONG}) for _ in range({sum(counts.values())})]", LONG)
        for name, count in counts.items():
            values = host.ask(f"[(it.value, it.lost) for it in got if it.source.name == {name!r}]")
            assert values == [(number, 0) for number in range(count)]
        assert not any("PeerLeft" in event for event in host.ask("everything(watch)"))
    situation("a virtual machine suspended for 8 s: nothing lost", "mdns", "udp", None)


def test_a_machine_that_is_suspended_for_longer_than_a_peer_may_be_silent_is_met_anew(machine, neighbour):
    for host in (machine, neighbour):
        open_node(host)
    machine.do("subscriber = node.subscriber('t', int)")
    neighbour.do("publisher = node.publisher('t', int); numbers = itertools.count()")
    knows_subscribers(neighbour, 1)
    machine.suspend()
    neighbour.do("for _ in range(10): publisher.publish(next(numbers))")
    _, (left,) = has_left(neighbour)
    assert "'timeout'" in left
    assert neighbour.ask("publisher.stats().lost") == 10
    machine.resume()
    knows_subscribers(neighbour, 1)
    neighbour.do("for _ in range(10): publisher.publish(next(numbers))")
    assert neighbour.ask(f"publisher.flush({LONG})", LONG)
    machine.do(f"got = [subscriber.receive({LONG})]", LONG)
    machine.do("while got[-1].value < 19: got.append(subscriber.receive(20))")
    # Of the first ten it has those that were in its memory when it stood still, or on their way into it.
    values = machine.ask("[it.value for it in got]")
    assert values == sorted(set(values))
    assert values[-10:] == [*range(10, 20)]
    for host, endpoint in ((machine, "subscriber"), (neighbour, "publisher")):
        assert host.ask(f"repr(conserved({endpoint}))") == "[]"
    situation("a virtual machine suspended for longer than 15 s: met anew", "mdns", "udp", None)


def test_loss_delay_reordering_and_duplicates_made_by_the_kernel_lose_nothing(machine, neighbour):
    """By `netem` on its way out: so to its samples, and to its acknowledgements of the samples of others."""
    storm = ["delay", "20ms", "10ms", "loss", "10%", "duplicate", "5%", "reorder", "10%"]
    machine.run("tc", "qdisc", "add", "dev", "eth0", "root", "netem", *storm)
    hosts = (machine, neighbour)
    for host in hosts:
        open_node(host)
        host.do(
            "publisher = node.publisher(f't/{node.name}', depth=1000); subscriber = node.subscriber('t/*')"
        )
    for host in hosts:
        knows_subscribers(host, 2)
        host.do("for number in range(500): publisher.publish({'number': number, 'rest': bytes(10 * number)})")
    for host in hosts:
        host.do(f"got = [subscriber.receive({LONG}) for _ in range(1000)]", 2 * LONG)
        got = host.ask("[(it.value['number'], it.lost) for it in got if it.source.path]")
        assert got == [(number, 0) for number in range(500)]
    assert "dropped 0" not in machine.run("tc", "-s", "qdisc", "show", "dev", "eth0")
    situation("a virtual machine behind 10 % loss, jitter, reordering and duplicates", "mdns", "udp", None)
