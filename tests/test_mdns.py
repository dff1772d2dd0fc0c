"""mDNS for real: processes in network namespaces of their own, a bridge between them, packets on it."""

# ruff: noqa: F811 (fixtures are imported, and named as arguments)

import contextlib
import json
import os
import socket

import pytest
from helpers import chance, start, until  # noqa: F401
from hosts import Host, hosts_can_be_made, switch  # noqa: F401

from vbus.discovery.announcement import SERVICE, digest

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("hosts_can_be_made")]

HOST = "import finders; finders.enter_own_network(); finders.serve({digit!r}, {port}, **{settings!r})"


class Announcer(Host):
    """A host whose program has mDNS and nothing else."""

    def __init__(self, start, digit="a", port=7000, **settings):
        super().__init__(digit, start(HOST.format(digit=digit, port=port, settings=settings)))

    def begin(self):
        self.program.tell("begin")

    def status(self):
        """How mDNS stands; what was said before is for others."""
        self.program.tell("status")
        while not (line := self.program.hear()).startswith("{"):
            pass
        return json.loads(line)

    def is_live(self, *addresses):
        """Waits until it announces these."""
        until(
            lambda: set(addresses) <= set(self.status()["addresses"]), f"{self.digit} announces {addresses}"
        )

    def hears_itself(self):
        """Waits until its own packets came back on each of its interfaces."""
        until(lambda: (now := self.status())["addresses"] and not now["deaf"], f"{self.digit} hears itself")

    def hears(self, what, other, *addresses):
        """Waits until it says so, with these addresses among others; what it says before may be anything."""
        heard = []
        while True:
            heard.append(self.program.hear())
            kind, name, *found = heard[-1].split()
            if (kind, name) == (what, other) and set(addresses) <= set(found):
                return


@pytest.fixture
def pair(start, switch):
    """Two hosts on one switch."""
    left, right = Announcer(start, "a", 7001), Announcer(start, "b", 7002)
    switch.plug(left, "10.0.0.1/24")
    switch.plug(right, "10.0.0.2/24")
    return left, right


def test_two_hosts_find_each_other_and_say_goodbye(pair):
    left, right = pair
    left.begin()
    right.begin()
    left.hears("add", "b", "10.0.0.2|7002")
    right.hears("add", "a", "10.0.0.1|7001")
    right.program.tell("stop")
    left.hears("remove", "b")
    assert left.status()["candidates"] == 0


def test_a_host_that_comes_later_finds_who_is_there(pair):
    left, right = pair
    left.begin()
    left.is_live("10.0.0.1")
    right.begin()
    right.hears("add", "a", "10.0.0.1|7001")
    left.hears("add", "b", "10.0.0.2|7002")


@pytest.mark.parametrize("network", ["fd00", "fe80"], ids=["IPv6 alone", "link-local alone"])
def test_hosts_without_ipv4_find_each_other(start, switch, network):
    left, right = Announcer(start, "a"), Announcer(start, "b")
    switch.plug(left, f"{network}::aaaa/64")
    switch.plug(right, f"{network}::bbbb/64")
    left.begin()
    right.begin()
    left.hears("add", "b", f"{network}::bbbb|7000")
    right.hears("add", "a", f"{network}::aaaa|7000")


def test_two_programs_on_a_host_without_a_network_find_each_other_over_loopback(start):
    program = start("""
        import finders
        finders.enter_own_network()
        import subprocess
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        a, b = finders.find("a", 7001), finders.find("b", 7002)
        hear()
        """)
    heard = {program.hear(), program.hear()}
    assert heard == {"add b 127.0.0.1|7002 ::1|7002", "add a 127.0.0.1|7001 ::1|7001"}


def test_two_programs_on_one_host_are_told_to_use_loopback(start, switch):
    host = Announcer(start, "a")
    host.loopback()
    switch.plug(host, "10.0.0.1/24")
    neighbour = start(
        f"""
        import ctypes, finders
        net = os.open("/proc/{host.program.pid}/ns/net", os.O_RDONLY)
        assert ctypes.CDLL(None).setns(net, 0) == 0
        finders.serve("b")
        """
    )
    neighbour.expect("ready")
    host.begin()
    host.is_live("10.0.0.1")
    neighbour.tell("begin")
    host.hears("add", "b", "127.0.0.1|7000", "10.0.0.1|7000")


def test_a_cable_that_is_plugged_in_later_is_used(start, switch):
    left, right = Announcer(start, "a"), Announcer(start, "b")
    left.begin()
    right.begin()
    for host in (left, right):
        assert (host.status()["addresses"], host.status()["error"]) == ([], None)
    switch.plug(left, "10.0.0.1/24")
    switch.plug(right, "10.0.0.2/24")
    left.hears("add", "b", "10.0.0.2|7000")
    right.hears("add", "a", "10.0.0.1|7000")


def test_an_interface_that_was_down_is_used_again(start, switch, pair):
    left, right = pair
    left.begin()
    left.is_live("10.0.0.1")
    left.ip("link", "set", "eth0", "down")
    until(lambda: not left.status()["addresses"], "the interface is seen to be down")
    right.begin()
    right.is_live("10.0.0.2")
    left.ip("link", "set", "eth0", "up")
    left.hears("add", "b", "10.0.0.2|7002")
    right.hears("add", "a", "10.0.0.1|7001")


def test_an_address_that_changes_is_told(pair):
    left, right = pair
    left.begin()
    right.begin()
    right.hears("add", "a", "10.0.0.1|7001")
    left.ip("addr", "add", "10.0.0.77/24", "dev", "eth0")
    right.hears("add", "a", "10.0.0.77|7001")
    left.ip("addr", "del", "10.0.0.1/24", "dev", "eth0")
    left.ip("addr", "add", "10.0.0.78/24", "dev", "eth0")
    right.hears("add", "a", "10.0.0.78|7001")


def test_a_network_that_was_dead_when_both_began_is_asked_again(switch, pair):
    left, right = pair
    for host in pair:
        switch.isolate(host, True)
        host.begin()
        host.is_live(f"10.0.0.{1 + (host is right)}")
    # Nothing that a host could notice: no interface, no address changes.
    for host in pair:
        assert host.status()["candidates"] == 0
        switch.isolate(host, False)
    left.hears("add", "b", "10.0.0.2|7002")
    right.hears("add", "a", "10.0.0.1|7001")


def test_another_domain_is_not_told(start, switch):
    left, right = Announcer(start, "a"), Announcer(start, "b", domain="away")
    switch.plug(left, "10.0.0.1/24")
    switch.plug(right, "10.0.0.2/24")
    left.begin()
    right.begin()
    until(lambda: "other domain" in left.status()["ignored"], "the other domain is heard")
    assert left.status()["candidates"] == 0


def test_only_interfaces_that_are_meant_are_spoken_at(start, switch):
    host = Announcer(start, "a", interfaces=["eth0", "eth7"])
    host.loopback()
    switch.plug(host, "10.0.0.1/24")
    host.begin()
    host.is_live("10.0.0.1")
    status = host.status()
    assert status["interfaces"] == ["eth0"]
    assert "eth7" in status["error"]


def test_where_multicast_does_not_pass_the_other_ways_work_and_the_end_is_quick(start, switch):
    ways = {"discovery": ("mdns", "peers"), "peers": ("10.0.0.2:7000",)}
    left, right = Announcer(start, "a", **ways), Announcer(start, "b")
    for number, host in enumerate((left, right), 1):
        switch.plug(host, f"10.0.0.{number}/24")
        switch.ip("link", "set", f"to-{host.digit}", "type", "bridge_slave", "mcast_flood", "off")
    left.begin()
    left.hears("add", "1", "10.0.0.2|7000")
    right.begin()
    for host in (left, right):
        host.hears_itself()
        assert host.status()["candidates"] == 0
        host.program.tell("stop")
        while host.program.hear() != "stopped":
            pass


def test_a_port_that_another_responder_has_for_itself_is_an_error_until_it_goes(pair):
    left, right = pair
    right.begin()
    right.is_live("10.0.0.2")
    with in_network_of(left):
        hog = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with hog:
        hog.bind(("::", 5353))
        left.begin()
        until(lambda: "in use" in (left.status()["error"] or ""), "the port is seen to be taken")
    left.hears("add", "b", "10.0.0.2|7002")


def test_a_responder_that_shares_the_port_is_no_trouble(pair):
    left, right = pair
    with in_network_of(left):
        other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("", 5353))
        left.begin()
        right.begin()
        left.hears("add", "b", "10.0.0.2|7002")
        right.hears("add", "a", "10.0.0.1|7001")


def test_a_thousand_foreign_services_hide_nobody(pair):
    left, right = pair
    left.begin()
    left.is_live("10.0.0.1")
    with speaker(right, "10.0.0.2") as shout:
        for number in range(1000):
            shout(answer(f"{number}._ipp._tcp.local.", "_ipp._tcp.local.", "10.0.0.2", {"x": "y"}))
    right.begin()
    left.hears("add", "b", "10.0.0.2|7002")
    until(lambda: left.status()["ignored"].get("other services", 0) >= 500, "most of them were heard")


def test_a_crowd_of_forged_nodes_is_bounded_and_hides_nobody(pair):
    left, right = pair
    left.begin()
    left.is_live("10.0.0.1")
    with speaker(right, "10.0.0.2") as shout:
        for number in range(3000):
            name = f"{number:032x}.{SERVICE}"
            shout(answer(name, SERVICE, "10.0.0.9", {"v": "1", "d": digest("home"), "p": "9"}))
    until(lambda: left.status()["candidates"] > 500, "they were heard")
    right.begin()
    left.hears("add", "b", "10.0.0.2|7002")
    assert left.status()["candidates"] <= 1024


def test_packets_of_garbage_stop_nothing(pair, chance):
    left, right = pair
    left.begin()
    left.is_live("10.0.0.1")
    good = answer(f"{'c' * 32}.{SERVICE}", SERVICE, "10.0.0.9", {"v": "1", "d": digest("home"), "p": "9"})
    with speaker(right, "10.0.0.2") as shout:
        for _ in range(800):
            broken = bytearray(good)
            for _ in range(chance.randrange(1, 8)):
                broken[chance.randrange(len(broken))] = chance.randrange(256)
            shout(bytes(broken[: chance.randrange(1, len(broken) + 1)]))
    right.begin()
    left.hears("add", "b", "10.0.0.2|7002")


# ---- forks and ends -----------------------------------------------------------------------------


FORKED = """
import finders
finders.enter_own_network()
import subprocess
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
mine = finders.find("a")
"""


def test_a_fork_disturbs_neither_side(start):
    program = start(
        FORKED
        + """
while not finders.status(mine)["addresses"]:
    time.sleep(0.001)
if (child := os.fork()) == 0:
    say("epolls", len(finders.open_files("eventpoll")))
    mine.stop()
    mine.join()
    del mine
    gc.collect()
    sys.exit(0)
say("child", os.waitpid(child, 0)[1])
other = finders.find("b")
hear()
"""
    )
    program.expect("epolls", 0)
    program.expect("child", 0)
    # Each hears the other, once or, as announcements are repeated, again.
    heard = set()
    while len(heard) < 2:
        heard.add(program.hear())
    assert heard == {"add a 127.0.0.1|7000 ::1|7000", "add b 127.0.0.1|7000 ::1|7000"}
    program.tell("end")
    program.finish()


def test_a_fork_while_mdns_is_being_imported_leaves_a_child_that_can_import(start):
    program = start(
        FORKED
        + """
if (child := os.fork()) == 0:
    import asyncio, logging, zeroconf
    os._exit(0)
say("child", os.waitpid(child, 0)[1])
"""
    )
    program.expect("child", 0)
    program.finish()


@pytest.mark.parametrize("moment", ["pass", "mine.stop()", "mine.stop(); mine.join()", "del mine"])
def test_a_program_that_ends_at_once_ends_at_once(start, moment):
    start(FORKED + moment).finish()


def test_a_program_that_ends_while_mdns_speaks_ends(start):
    start(FORKED + "while not finders.status(mine)['addresses']: time.sleep(0.001)").finish()


def test_ends_are_clean_also_for_those_who_look_closely(start):
    program = start(
        FORKED
        + """
while not finders.status(mine)["addresses"]:
    time.sleep(0.001)
mine.stop()
mine.join()
while any(thread.name == "vbus-mdns" for thread in threading.enumerate()):
    time.sleep(0.001)
del mine
gc.collect()
say(finders.open_files("socket", "event"))
""",
        options=["-X", "dev", "-W", "error"],
    )
    program.expect("[]")
    program.finish()


# ---- packets of the test ------------------------------------------------------------------------


@contextlib.contextmanager
def in_network_of(host):
    """What is opened here belongs to the host's network."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/proc/{host.program.pid}/ns/net", os.O_RDONLY)
    try:
        set_network(there)
        yield
    finally:
        set_network(here)
        os.close(here)
        os.close(there)


def set_network(descriptor):
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.setns(descriptor, 0x40000000) == 0, os.strerror(ctypes.get_errno())


@contextlib.contextmanager
def speaker(host, address):
    """A function that sends one packet of mDNS from a host."""
    with in_network_of(host):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))

        def shout(packet):
            sender.sendto(packet, ("224.0.0.251", 5353))

        yield shout


def answer(name, service, address, text, ttl=None):
    """An answer that announces one instance; with a time to live of 0, that it is gone."""
    from zeroconf import DNSOutgoing, ServiceInfo

    port = 9
    info = ServiceInfo(service, name, port=port, properties=text, server=name, parsed_addresses=[address])
    packet = DNSOutgoing(0x8400)
    pointer = info.dns_pointer() if ttl is None else info.dns_pointer(override_ttl=ttl)
    for record in (pointer, info.dns_service(), info.dns_text(), *info.dns_addresses()):
        packet.add_answer_at_time(record, 0)
    return packet.packets()[0]
