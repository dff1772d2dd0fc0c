"""Discovery without a network: its core, resolver, packets and clock are the test's."""

import asyncio
import contextlib
import ipaddress
import logging
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from helpers import until

import vbus
import vbus.discovery
from vbus.discovery import announcement, interfaces
from vbus.discovery.announcement import digest, instance, node_of, properties, read
from vbus.discovery.heard import MAX_ADDRESSES, MAX_NODES, Heard
from vbus.discovery.interfaces import Interface
from vbus.discovery.responder import PACKETS_AT_ONCE, PACKETS_PER_SECOND, Bucket, Echo, Gate
from vbus.discovery.static import DELAYS, Static, numeric, resolved
from vbus.discovery.static import MAX_ADDRESSES as MAX_STATIC

OWN, OTHER = "0" * 32, "a" * 32


class Core:
    """Keeps what it is told."""

    def __init__(self, port=7000):
        self.id, self.port = OWN, port
        self.peers, self.told, self.connected = {}, [], []

    def add_peer(self, name, addresses, source):
        self.told.append(("add", name, addresses, source))
        self.peers.setdefault((name, source), []).extend(addresses)

    def remove_peer(self, name, source):
        self.told.append(("remove", name, source))
        self.peers.pop((name, source), None)

    def network_port(self):
        return self.port

    def peer_tuples(self):
        return [("id", "name", "host", 1, (address,), "udp", 0.0, 0, "1") for address in self.connected]


class Settings:
    domain, discovery, peers, listen, interfaces = "home", ("shm", "mdns", "peers"), (), "[::]:0", ()

    def __init__(self, **others):
        vars(self).update(others)


@pytest.fixture
def core():
    return Core()


# ---- the ensemble -------------------------------------------------------------------------------


def test_without_a_network_every_way_is_off_and_says_so():
    ways = vbus.discovery.Discovery(Core(port=None), Settings(peers=["10.0.0.1:7000"])).status()
    assert {(way.name, way.on, way.reason) for way in ways} == {
        ("mdns", False, 'there is no network: listen is "off"'),
        ("peers", False, 'there is no network: listen is "off"'),
    }


def test_a_way_that_is_not_chosen_is_off_and_says_so(core):
    found = vbus.discovery.Discovery(core, Settings(discovery=["peers"], peers=["10.0.0.1:7000"]))
    mdns, peers = sorted(found.status(), key=lambda way: way.name)
    assert (mdns.on, mdns.reason) == (False, 'discovery does not have "mdns"')
    assert (peers.on, peers.reason) == (True, "")
    found.stop()
    found.join()


# ---- peers that are written down ----------------------------------------------------------------


class Resolver:
    """A name server of the test."""

    def __init__(self, **answers):
        self.answers, self.asked = answers, []

    def __call__(self, host, port):
        self.asked.append(host)
        answer = self.answers[host]
        if isinstance(answer, Exception):
            raise answer
        return [(address, port) for address in answer]


NOBODY = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def test_addresses_are_told_at_once_and_need_no_name_server(core):
    static = Static(core, ["10.0.0.1:7000", "[fd00::1]:7001", "[::1]:1"])
    assert core.told == [
        ("add", "10.0.0.1:7000", [("10.0.0.1", 7000)], "peers"),
        ("add", "[fd00::1]:7001", [("fd00::1", 7001)], "peers"),
        ("add", "[::1]:1", [("::1", 1)], "peers"),
    ]
    static.stop()


def test_a_link_local_address_keeps_its_interface_as_a_number():
    assert numeric("fe80::1%lo", 7000) == [(f"fe80::1%{socket.if_nametoindex('lo')}", 7000)]


def test_a_name_has_all_of_its_addresses(core):
    static, resolver = Static(core, ["pods:7000"], begin=False), Resolver(pods=["10.0.0.1", "fd00::1"])
    assert core.told == [], "a name is not asked for where the node is made"
    static.ask(0.0, resolver)
    assert core.told == [("add", "pods:7000", [("10.0.0.1", 7000), ("fd00::1", 7000)], "peers")]
    (found,) = static.status().candidates
    assert (found.name, found.addresses[0], found.error) == ("pods:7000", ("10.0.0.1", 7000), None)


@pytest.mark.contract("asked again as time goes on")
def test_a_name_is_asked_again_and_again_ever_more_rarely(core):
    static, resolver = Static(core, ["pods:7000"], begin=False), Resolver(pods=["10.0.0.1"])
    now, times = 0.0, []
    for _ in range(8):
        times.append(now)
        now = static.ask(now, resolver)
    assert times == [0.0, 1.0, 3.0, 8.0, 18.0, 38.0, 68.0, 98.0]
    assert len(resolver.asked) == len(times)


def test_a_name_that_is_connected_is_asked_every_30_seconds_and_soon_again_once_it_is_not(core):
    static, resolver = Static(core, ["pods:7000"], begin=False), Resolver(pods=["fd00::1"])
    core.connected = ["[fd00::1]:7000"]
    assert static.ask(0.0, resolver) == DELAYS[-1]
    core.connected = []
    assert static.ask(30.0, resolver) == 30.0 + DELAYS[0]


def test_names_that_are_not_due_are_not_asked(core):
    static, resolver = Static(core, ["a:1", "b:2"], begin=False), Resolver(a=NOBODY, b=["10.0.0.2"])
    core.connected = ["10.0.0.2:2"]
    static.ask(0.0, resolver)
    static.ask(1.0, resolver)
    assert resolver.asked == ["a", "b", "a"]


def test_addresses_that_a_name_no_longer_has_are_taken_back(core):
    static, resolver = Static(core, ["pods:7000"], begin=False), Resolver(pods=["10.0.0.1", "10.0.0.2"])
    static.ask(0.0, resolver)
    resolver.answers["pods"] = ["10.0.0.2", "10.0.0.3"]
    static.ask(1.0, resolver)
    assert core.peers == {("pods:7000", "peers"): [("10.0.0.2", 7000), ("10.0.0.3", 7000)]}


def test_a_name_that_is_unknown_is_a_status_and_one_warning(core, caplog):
    static, resolver = Static(core, ["pods:7000"], begin=False), Resolver(pods=NOBODY)
    with caplog.at_level(logging.WARNING, "vbus"):
        later = static.ask(static.ask(0.0, resolver), resolver)
    (message,) = caplog.messages
    assert "pods:7000" in message
    assert "Name or service not known" in message
    assert static.status().error == "pods:7000: Name or service not known"
    resolver.answers["pods"] = ["10.0.0.1"]
    static.ask(later, resolver)
    assert static.status().error is None


def test_an_answer_of_thousands_is_cut(core):
    crowd = [str(ipaddress.ip_address(0x0A000000 + number)) for number in range(5000)]
    static = Static(core, ["pods:7000"], begin=False)
    static.ask(0.0, Resolver(pods=crowd))
    assert len(core.peers["pods:7000", "peers"]) == MAX_STATIC


def test_a_name_that_is_none_is_an_error_and_no_end(core):
    static = Static(core, [f"{'x' * 70}.example:7000"], begin=False)
    static.ask(0.0, resolved)
    assert static.status().error


def test_the_resolver_of_the_system_knows_this_host():
    assert ("127.0.0.1", 7000) in resolved("localhost", 7000)


# ---- what is announced --------------------------------------------------------------------------


def said(domain="home", port=7000, **others):
    record = {**properties(domain, port), **others}
    return {key.encode(): value.encode() for key, value in record.items() if value is not None}


def test_an_announcement_is_read_as_it_was_written():
    assert read(said()) == (announcement.VERSION, digest("home"), 7000)
    assert node_of(instance(OTHER)) == OTHER
    assert node_of(instance(OTHER).upper()) == OTHER, "names of DNS know no case"


def test_the_name_of_a_domain_is_not_on_the_air():
    record = said("secret project")
    assert not any(b"secret" in value for value in record.values())
    assert digest("a") != digest("b")


@pytest.mark.parametrize(
    "record",
    [
        {},
        {b"v": None, b"d": None, b"p": None},
        said(p="0"),
        said(p="65536"),
        said(p="7000000000"),
        said(p="-1"),
        said(p="\u0663"),
        said(d="ab"),
        said(v="1" * 200),
    ],
)
def test_nonsense_is_not_read(record):
    assert read(record) is None


@pytest.mark.parametrize(
    "name", ["", "x", SERVICE := announcement.SERVICE, f"x.{SERVICE}", f"{'g' * 32}.{SERVICE}"]
)
def test_a_name_that_no_node_can_have_is_none(name):
    assert node_of(name) is None


# ---- who is heard -------------------------------------------------------------------------------


@pytest.fixture
def heard(core):
    heard = Heard(core, digest("home"), clock_ns=iter(range(1, 1 << 30)).__next__)
    heard.live_at(map(ipaddress.ip_interface, ["127.0.0.1/8", "10.0.0.1/24", "203.0.113.1/24"]))
    return heard


def test_a_node_of_the_domain_is_told_with_all_its_addresses(core, heard):
    heard.announced(instance(OTHER), said(), ["10.0.0.2", "fd00::2", "fe80::2%3"])
    addresses = [("10.0.0.2", 7000), ("fd00::2", 7000), ("fe80::2%3", 7000)]
    assert core.told == [("add", OTHER, addresses, "mdns")]
    (candidate,) = heard.candidates()
    assert (candidate.name, candidate.addresses, candidate.heard_ns) == (OTHER, tuple(addresses), 1)


def test_oneself_is_not_heard(core, heard):
    heard.announced(instance(OWN), said(), ["10.0.0.1"])
    assert (core.told, heard.last_ns) == ([], None)


def test_another_domain_and_nonsense_are_counted_and_not_told(core, heard):
    heard.announced(instance(OTHER), said("other"), ["10.0.0.2"])
    heard.announced(instance(OTHER), said(v="2"), ["10.0.0.2"])
    heard.announced(instance(OTHER), said(p="x"), ["10.0.0.2"])
    heard.announced(instance(OTHER), said(), ["0.0.0.0", "224.0.0.1", "fe80::1"])
    heard.is_wanted("printer._vbus._udp.local.")
    assert core.told == []
    assert heard.ignored == Counter(
        {"other domain": 1, "other version": 1, "malformed": 2, "no usable address": 1}
    )


def test_nobody_makes_a_domain_knock_at_strangers(core, heard):
    heard.announced(instance(OTHER), said(), ["8.8.8.8", "2001:4860::1", "203.0.113.9", "10.9.9.9"])
    assert core.peers[OTHER, "mdns"] == [("203.0.113.9", 7000), ("10.9.9.9", 7000)]


def test_who_lives_at_our_address_is_tried_over_loopback_first(core, heard):
    heard.announced(instance(OTHER), said(), ["10.0.0.1", "fd00::5"])
    assert core.peers[OTHER, "mdns"][:2] == [("127.0.0.1", 7000), ("::1", 7000)]


def test_loopback_of_others_is_not_ours(core, heard):
    heard.announced(instance(OTHER), said(), ["127.0.0.1", "10.0.0.2"])
    assert core.peers[OTHER, "mdns"] == [("10.0.0.2", 7000)]


def test_on_a_host_without_a_network_loopback_is_all_there_is(core, heard):
    heard.announced(instance(OTHER), said(), ["127.0.0.1"])
    assert core.peers[OTHER, "mdns"] == [("127.0.0.1", 7000)]


def test_a_node_has_few_addresses_however_many_it_says(core, heard):
    heard.announced(instance(OTHER), said(), [f"10.0.1.{number}" for number in range(200)])
    assert len(core.peers[OTHER, "mdns"]) == MAX_ADDRESSES
    assert heard.ignored["too many addresses"] == 200 - MAX_ADDRESSES


def test_nodes_are_bounded_and_who_was_silent_longest_makes_room(core, heard):
    names = [instance(f"{number:032x}") for number in range(1, MAX_NODES + 2)]
    for name in names[:-1]:
        heard.announced(name, said(), ["10.0.0.2"])
    heard.announced(names[0], said(), ["10.0.0.2"])
    heard.announced(names[-1], said(), ["10.0.0.2"])
    kept = {candidate.name for candidate in heard.candidates()}
    assert len(kept) == MAX_NODES
    assert node_of(names[0]) in kept
    assert core.told[-2:] == [
        ("remove", node_of(names[1]), "mdns"),
        ("add", node_of(names[-1]), [("10.0.0.2", 7000)], "mdns"),
    ]


def test_goodbye_takes_back_what_was_told_and_no_more(core, heard):
    heard.announced(instance(OTHER), said(), ["10.0.0.2"])
    heard.withdrawn(instance(OTHER))
    heard.withdrawn(instance(OTHER))
    heard.withdrawn(instance("b" * 32))
    assert core.told[1:] == [("remove", OTHER, "mdns")]


def test_a_node_that_moved_is_no_longer_sought_where_it_was(core, heard):
    heard.announced(instance(OTHER), said(), ["10.0.0.2", "10.0.0.3"])
    heard.announced(instance(OTHER), said(), ["10.0.0.3", "10.0.0.4"])
    assert core.peers == {(OTHER, "mdns"): [("10.0.0.3", 7000), ("10.0.0.4", 7000)]}


# ---- interfaces ---------------------------------------------------------------------------------


def an_interface(name, index, *addresses, loopback=False):
    return Interface(name, index, loopback, tuple(map(ipaddress.ip_interface, addresses)))


ETH = an_interface("eth0", 2, "10.0.0.1/24", "10.0.0.9/24", "fd00::1/64", "fe80::1/64")
WIFI = an_interface("wlan0", 3, "192.168.0.5/24")
LO = an_interface("lo", 1, "127.0.0.1/8", "::1/128", loopback=True)
ALL = [ETH, WIFI, LO]


def chosen(wanted=(), listen="[::]:0"):
    found, missing = interfaces.choose(ALL, wanted, listen)
    return {its.name: [str(address.ip) for address in its.addresses] for its in found}, missing


def test_all_interfaces_are_used_unless_some_are_named():
    assert list(chosen()[0]) == ["eth0", "wlan0", "lo"]
    assert chosen(["wlan0"]) == ({"wlan0": ["192.168.0.5"]}, [])
    assert chosen(["10.0.0.9", "lo"]) == ({"eth0": ["10.0.0.9"], "lo": ["127.0.0.1", "::1"]}, [])
    assert chosen(["wlan0", "eth7"]) == ({"wlan0": ["192.168.0.5"]}, ["eth7"])


def test_a_host_name_that_is_listened_at_is_announced_as_its_address():
    assert chosen(listen="localhost:7000") == chosen(listen=f"{resolved('localhost', 7000)[0][0]}:7000")
    assert list(chosen(listen="localhost:7000")[0]) == ["lo"]


def test_only_what_is_listened_at_is_announced():
    assert chosen(listen="10.0.0.1:7000")[0] == {"eth0": ["10.0.0.1"]}
    assert chosen(listen="[fd00::1]:7000")[0] == {"eth0": ["fd00::1"]}
    assert chosen(listen="0.0.0.0:0")[0] == {
        "eth0": ["10.0.0.1", "10.0.0.9"],
        "wlan0": ["192.168.0.5"],
        "lo": ["127.0.0.1"],
    }


def test_each_interface_is_spoken_at_once_per_family():
    assert interfaces.spoken(ALL) == ["10.0.0.1", 2, "192.168.0.5", "127.0.0.1"]
    assert interfaces.spoken([]) == []


def test_ports_of_a_bridge_are_left_out_unless_there_is_nothing_else():
    port = an_interface("veth1", 7, "fe80::7/64")
    assert [its.name for its in interfaces.choose([ETH, port, LO], (), "[::]:0")[0]] == ["eth0", "lo"]
    assert [its.name for its in interfaces.choose([port, LO], (), "[::]:0")[0]] == ["veth1", "lo"]
    assert [its.name for its in interfaces.choose([ETH, port], ["veth1"], "[::]:0")[0]] == ["veth1"]


def test_ipv6_is_spoken_where_hosts_may_have_nothing_else():
    assert interfaces.spoken([an_interface("a", 4, "10.0.0.1/24", "fe80::1/64")]) == ["10.0.0.1"]
    assert interfaces.spoken([an_interface("a", 4, "10.0.0.1/24", "fd00::1/64")]) == ["10.0.0.1", 4]
    assert interfaces.spoken([an_interface("a", 4, "fe80::1/64")]) == [4]


def test_loopback_is_announced_only_where_there_is_nothing_else():
    assert interfaces.announced(ALL, 8) == ["10.0.0.1", "10.0.0.9", "192.168.0.5", "fd00::1", "fe80::1"]
    assert interfaces.announced(ALL, 2) == ["10.0.0.1", "10.0.0.9"]
    assert interfaces.announced([LO], 8) == ["127.0.0.1", "::1"]


def test_this_host_has_loopback():
    assert "lo" in [its.name for its in interfaces.present() if its.loopback]


# ---- what is read at all ------------------------------------------------------------------------


class Inner(asyncio.DatagramProtocol):
    def __init__(self):
        self.got = []

    def datagram_received(self, data, addr):
        self.got.append(data)
        if b"trap" in data:
            raise ValueError(data)


def a_gate():
    clock, ignored, inner = [0.0], Counter(), Inner()
    echo = Echo(OWN, ECHOES)
    return Gate(inner, Bucket(), ignored, print, echo, lambda: clock[0]), inner, ignored, clock


ECHOES = set()


OURS = b"\0\0\x84\0" + announcement.LABELS
HERE = ("10.0.0.2", 5353)


def test_foreign_services_are_not_read():
    gate, inner, ignored, _ = a_gate()
    for number in range(5000):
        gate.datagram_received(b"%d\x04_ipp\x04_tcp\x05local" % number, HERE)
    gate.datagram_received(OURS, HERE)
    gate.datagram_received(OURS.upper(), HERE)
    assert inner.got == [OURS, OURS.upper()]
    assert ignored == {"other services": 5000}


def test_a_flood_of_our_own_service_is_read_at_a_bounded_rate():
    gate, inner, ignored, clock = a_gate()
    for _ in range(5000):
        gate.datagram_received(OURS, HERE)
    assert len(inner.got) == PACKETS_AT_ONCE
    clock[0] += 1.0
    for _ in range(5000):
        gate.datagram_received(OURS, HERE)
    assert len(inner.got) == PACKETS_AT_ONCE + PACKETS_PER_SECOND
    assert ignored["too many packets"] == 10_000 - len(inner.got)


def test_a_packet_that_trips_the_reader_is_counted_and_the_next_is_read():
    gate, inner, ignored, _ = a_gate()
    gate.datagram_received(OURS + b"trap", HERE)
    gate.datagram_received(OURS, HERE)
    assert (len(inner.got), ignored) == (2, {"malformed": 1})


def test_ones_own_words_are_known_when_they_come_back():
    ECHOES.clear()
    gate, *_ = a_gate()
    gate.datagram_received(OURS + instance(OTHER).encode(), ("10.0.0.2", 5353))
    gate.datagram_received(OURS + bytes([32]) + OWN.encode(), ("10.0.0.1", 5353))
    gate.datagram_received(OURS + bytes([32]) + OWN.encode(), ("fe80::1%eth0", 5353, 0, 2))
    assert sorted(ECHOES) == ["10.0.0.1", "fe80::1"]


def test_a_node_that_closes_while_its_mdns_begins_leaves_no_socket_open(domain, meeting):
    def sockets_after(moment):
        node = vbus.Node(domain=domain, shm=meeting, discovery=["mdns"], listen="127.0.0.1:0")
        time.sleep(moment)
        node.close(linger=0)
        until(lambda: all(its.name != "vbus-mdns" for its in threading.enumerate()), "its thread has ended")
        return sum(is_socket(file) for file in Path("/proc/self/fd").iterdir())

    before = sockets_after(0.2)
    assert {sockets_after(moment / 400) for moment in range(40)} == {before}


def is_socket(file):
    with contextlib.suppress(OSError):  # that of the listing is gone
        return file.is_socket()
    return False
