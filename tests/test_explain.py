"""Why two nodes do not talk, or not as well as they could: each cause is staged, named, and ended by what the
remedy says."""

# ruff: noqa: F811 (fixtures are imported, and named as arguments)

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from helpers import WATCHDOG, start, until  # noqa: F401
from hosts import SECRET, hosts_can_be_made, hosts_on, run, switch  # noqa: F401

import vbus

DROP = "table inet filter { chain input { type filter hook input priority 0; udp dport %s %s; }; }"
"""A firewall as distributions make it."""


def only(findings, **members):
    """The one of these."""
    (found,) = [it for it in findings if all(getattr(it, name) == its for name, its in members.items())]
    return found


# ---- two hosts -----------------------------------------------------------------------------------


@pytest.fixture
def hosts(hosts_can_be_made, start, switch):
    """Two hosts on one switch, "left" at 10.0.0.1 and "right" at 10.0.0.2."""
    return hosts_on(switch, start, "left", "right")


@pytest.fixture
def firewall():
    """Lays these rules on a host, as far as there is `nft`."""
    if shutil.which("nft") is None:
        pytest.skip("no firewall: there is no `nft`")

    def lay(host, rules):
        on(host, "nft", "-f", "-", input=rules)

    return lay


def on(host, *words, **settings):
    """A command on a host."""
    words = ("nsenter", f"--net=/proc/{host.program.pid}/ns/net", *words)
    done = subprocess.run(words, capture_output=True, text=True, check=False, **settings)
    assert done.returncode == 0, (words, done.stderr)


def paste(host, remedy, what):
    """Does on a host what a remedy says with this word in it, as a person would who reads it."""
    lines = [part.strip() for part in remedy.replace("# or:", "\n").replace(";", "\n").splitlines()]
    (line,) = [line for line in lines if what in line]
    on(host, *shlex.split(line.partition("sudo ")[2], comments=True))


def open_node(host, port=0, **settings):
    host.open_node(**{"listen": f"0.0.0.0:{port}", **settings})


def failed(host, word):
    """Waits for the finding "failed" that has this word in its reason."""
    host.until(f"any({word!r} in its[1] for its in findings(node, 'failed'))", 40)
    return next(its for its in host.ask("findings(node, 'failed')") if word in its[1])


@pytest.mark.timeout(120)
def test_a_firewall_that_drops_udp_is_named_with_its_port_and_the_remedy_opens_it(hosts, firewall):
    left, right = hosts
    firewall(right, DROP % (7000, "drop"))
    open_node(right, 7000, discovery=["peers"])
    open_node(left, discovery=["peers"], peers=["10.0.0.2:7000"])
    whom, reason, remedy = failed(left, "firewall")
    assert whom == "10.0.0.2:7000"
    assert "nobody answers at 10.0.0.2:7000" in reason
    assert "nothing comes back" in reason
    assert "on 10.0.0.2: sudo ufw allow 7000/udp" in remedy
    paste(right, remedy, "sudo nft")
    assert left.ask("node.wait_for_peers(1, 20)")
    assert left.ask("findings(node, 'failed')") == []


@pytest.mark.timeout(120)
def test_who_is_found_by_mdns_and_does_not_answer_is_named_by_its_address(hosts, firewall):
    left, right = hosts
    # Neither lets anything in.
    for host, port in ((left, 7001), (right, 7002)):
        firewall(host, DROP % (port, "drop"))
        open_node(host, port)
    for host, other, address in ((left, right, "10.0.0.2:7002"), (right, left, "10.0.0.1:7001")):
        whom, reason, remedy = failed(host, "found by mDNS")
        assert whom == address
        assert "firewall" in reason
        assert f"VBUS_LISTEN='[::]:{address[-4:]}'" in remedy
        paste(other, remedy, "sudo nft")
    assert left.ask("node.wait_for_peers(1, 20)")


@pytest.mark.timeout(120)
def test_a_port_that_is_closed_is_told_from_one_that_is_silent(hosts):
    left, right = hosts
    open_node(left, discovery=["peers"], peers=["10.0.0.2:7000"])
    _, reason, remedy = failed(left, "closed")
    assert "the host says that port 7000 is closed" in reason
    assert "VBUS_LISTEN='[::]:7000'" in remedy
    open_node(right, 7000, discovery=["peers"])
    assert left.ask("node.wait_for_peers(1, 20)")


@pytest.mark.timeout(120)
def test_a_path_that_loses_packets_says_how_many_and_loses_no_sample(hosts, firewall):
    left, right = hosts
    rules = "udp dport 7000 numgen inc mod 20 0 drop"
    firewall(right, f"table inet filter {{ chain input {{ type filter hook input priority 0; {rules}; }}; }}")
    open_node(right, 7000, discovery=["peers"])
    open_node(left, discovery=["peers"], peers=["10.0.0.2:7000"])
    right.do("subscriber = node.subscriber('t', bytes)")
    left.do("publisher = node.publisher('t', bytes); publisher.wait_for_subscribers(1, 20)")
    left.do("for number in range(40): publisher.publish(bytes([number]) * 100_000)")
    right.do("got = [subscriber.receive(20) for _ in range(40)]")
    assert right.ask("[(it.value[0], it.lost) for it in got]") == [(number, 0) for number in range(40)]
    left.do("assert publisher.flush(20)")
    ((_, reason, remedy),) = left.ask("findings(node, 'used')")
    share, packets = map(float, re.search(r", ([\d.]+) % of (\d+) packets lost", reason).groups())
    assert 0 < share < 20
    assert packets > 2000
    assert remedy == ""
    ((_, reason, _),) = right.ask("findings(node, 'used')")
    assert "lost" not in reason, "nothing is dropped the other way"


@pytest.mark.timeout(120)
def test_a_firewall_that_lets_nothing_out_is_known_as_ones_own(hosts, firewall):
    left, right = hosts
    rules = "table inet filter { chain output { type filter hook output priority 0; udp dport 7000 drop; }; }"
    firewall(left, rules)
    open_node(right, 7000, discovery=["peers"])
    open_node(left, discovery=["peers"], peers=["10.0.0.2:7000"])
    _, _, remedy = failed(left, "the firewall of this host lets nothing out")
    paste(left, remedy, "sudo nft")
    assert left.ask("node.wait_for_peers(1, 20)")


@pytest.mark.timeout(120)
def test_no_such_host_and_no_way_to_a_network_are_told_apart(hosts):
    left, _ = hosts
    open_node(left, discovery=["peers"], peers=["10.0.0.9:7000", "10.9.9.9:7000"])
    _, reason, remedy = failed(left, "no host there has the address")
    assert "10.0.0.9" in reason
    assert remedy.startswith("ping 10.0.0.9")
    _, reason, remedy = failed(left, "no route")
    assert "10.9.9.9" in reason
    assert remedy.startswith("ip route get 10.9.9.9")


@pytest.mark.timeout(120)
def test_an_interface_where_multicast_is_not_heard_is_named_and_the_remedy_mends_it(hosts, firewall):
    left, _ = hosts
    firewall(left, DROP % (5353, "drop"))
    open_node(left)
    whom, reason, remedy = failed(left, "multicast is not heard on eth0")
    assert whom == "left"
    assert "5353" in reason
    assert left.ask("[way.deaf for way in node.discovery() if way.name == 'mdns']") == [("eth0", "lo")]
    paste(left, remedy, "sudo nft")
    left.until("not findings(node, 'failed')", 60)


@pytest.mark.timeout(120)
def test_a_path_where_large_packets_vanish_is_named_with_its_size(hosts, switch):
    left, right = hosts
    # What is larger does not leave the switch, and nobody is told.
    switch.ip("link", "set", f"to-{right.digit}", "mtu", "1400")
    open_node(right, 7000, discovery=["peers"])
    open_node(left, discovery=["peers"], peers=["10.0.0.2:7000"])
    assert left.ask("node.wait_for_peers(1, 20)")
    telling = "(its.verdict, its.path, its.reason, its.remedy)"
    narrow = f"[{telling} for its in node.explain() if 'black hole' in its.reason]"
    left.until(narrow, 40)
    (told,) = left.ask(narrow)
    assert told[:2] == ("used", "udp")
    assert "packets of more than 1400 bytes vanish" in told[2]
    assert "eth0 takes 1500" in told[2]
    assert told[3] == "sudo ip link set dev eth0 mtu 1400"
    paste(left, told[3], "sudo ip")
    assert left.ask(narrow) == []
    right.do("subscriber = node.subscriber('t')")
    left.do("publisher = node.publisher('t'); publisher.wait_for_subscribers(1, 20)")
    left.do("publisher.publish(bytes(100_000))")
    assert right.ask("len(subscriber.receive(20).value)") == 100_000


@pytest.mark.timeout(120)
def test_a_name_that_has_no_address_is_a_finding_by_that_name(join):
    peer = "nowhere.invalid:7000"
    node = join(discovery=["peers"], peers=[peer])
    until(lambda: [it for it in node.explain() if it.verdict == "failed"], "it was asked for", 60)
    finding = only(node.explain(), verdict="failed")
    assert finding.peer == peer
    assert "nowhere.invalid has no address" in finding.reason
    assert finding.remedy.startswith("getent ahosts nowhere.invalid")


# ---- one machine ---------------------------------------------------------------------------------


@pytest.fixture
def elsewhere():
    """Another meeting directory."""
    directory = tempfile.mkdtemp(prefix="vbus-", dir="/tmp")
    yield directory
    shutil.rmtree(directory)


def test_neighbours_in_different_directories_are_told_to_share_one(join, meeting, elsewhere):
    here = join("here", listen="127.0.0.1:0")
    there = join("there", shm=elsewhere, listen="127.0.0.1:0", peers=[here.addresses[0]])
    assert there.wait_for_peers(1, WATCHDOG)
    until(lambda: len(there.explain()) > 1, "each knows where the other is")
    finding = only(there.explain(), path="shm")
    assert (finding.verdict, finding.peer) == ("failed", there.peers()[0])
    assert f"here in {elsewhere}, there in {meeting}" in finding.reason
    assert f"-v {elsewhere}:{elsewhere}" in finding.remedy
    shared = finding.remedy.rpartition("export VBUS_SHM=")[2]
    assert only(there.explain(), path="udp").verdict == "used"
    third = join("third", shm=shared)
    assert [peer.path for peer in third.peers() if peer.name == "there"] == ["shm"]


def test_a_directory_of_the_same_name_in_another_container_is_known_as_another(
    hosts_can_be_made, join, meeting, start
):
    """A mount namespace of its own is what a container has."""
    here = join("here", listen="127.0.0.1:0")
    program = start(
        f"""
        import ctypes, subprocess
        assert ctypes.CDLL(None).unshare(0x00020000) == 0
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "none", {meeting!r}], check=True)
        node = vbus.Node("boxed", listen="127.0.0.1:0", peers=[{here.addresses[0]!r}])
        say(node.wait_for_peers(1, 20))
        hear()
        """
    )
    program.expect(True)
    until(lambda: any(it.path == "shm" for it in here.explain()), "it is known where it is")
    finding = only(here.explain(), path="shm")
    assert finding.verdict == "failed"
    assert f"its {meeting} is another directory" in finding.reason
    assert f"-v {meeting}:{meeting}" in finding.remedy


def test_who_turned_memory_off_is_told_apart_from_who_cannot(join, meeting):
    here = join("here", listen="127.0.0.1:0")
    there = join("there", shm=False, listen="127.0.0.1:0", peers=[here.addresses[0]])
    assert there.wait_for_peers(1, WATCHDOG)
    until(lambda: any(it.path == "shm" for it in here.explain()), "it is known")
    finding = only(here.explain(), path="shm")
    assert (finding.verdict, finding.remedy) == ("off", f"there: export VBUS_SHM={meeting}")
    assert [it.path for it in there.explain()] == ["udp"], "who turned it off knows that"


@pytest.mark.contract('`verdict` is `"used" "standby" "failed" "refused" "off"`')
def test_neighbours_that_could_use_the_network_too_have_it_on_standby(join):
    here = join("here", listen="127.0.0.1:0")
    there = join("there", listen="127.0.0.1:0", peers=[here.addresses[0]])
    assert there.wait_for_peers(1, WATCHDOG)
    until(lambda: len(there.explain()) == 2, "it was found there, too")
    used, standby = there.explain()
    assert [(it.path, it.verdict, it.remedy) for it in (used, standby)] == [
        ("shm", "used", ""),
        ("udp", "standby", ""),
    ]
    assert here.addresses[0] in standby.reason
    assert used.peer == standby.peer == there.peers()[0]


@pytest.mark.skipif(os.getuid() != 0, reason="only root becomes somebody who may not write")
def test_directories_that_may_not_be_written_are_named_with_what_makes_one(start, tmp_path):
    closed = tempfile.mkdtemp(prefix="vbus-", dir="/tmp")
    Path(closed).chmod(0o755)
    try:
        program = start(
            f"""
            import vbus.config
            with vbus.Node(listen="off", shm=False) as first:
                first.explain()  # who becomes nobody can import no more
            vbus.config.MEETING_DIRECTORIES = ({closed!r},)
            os.setgid(65534); os.setuid(65534)
            node = vbus.Node("nobody", listen="off")
            (finding,) = node.explain()
            say(finding.verdict, finding.path, finding.peer.name)
            say(finding.reason)
            say(finding.remedy)
            say(node.discovery()[0].on, node.discovery()[0].error)
            hear()
            node = vbus.Node("nobody", listen="off")
            say(node.explain())
            """,
            environment={"VBUS_SHM": "1"},
        )
        program.expect("failed shm nobody")
        reason = program.hear()
        assert closed in reason
        assert "uid 65534" in reason
        remedy = program.hear()
        assert remedy == f"sudo install -d -m 1777 {closed}"
        assert closed in program.hear()
        run(*shlex.split(remedy.removeprefix("sudo ")))
        program.tell("go on")
        program.expect("[]")
    finally:
        shutil.rmtree(closed)


@pytest.mark.parametrize(("having", "side"), [("one", "there"), ("two", "here")])
def test_a_secret_on_one_side_says_which_side_is_to_have_it(join, having, side):
    one, two = (join(name, secret=SECRET if having == name else None) for name in ("one", "two"))
    until(lambda: one.explain() and two.explain(), "they refused each other")
    finding = only(one.explain(), verdict="refused")
    assert finding.remedy.startswith(f"{side}: export VBUS_SECRET=")
    assert f"it has {'no' if having == 'one' else 'a'} secret" in finding.reason


def test_each_way_of_discovery_says_how_it_stands(join, meeting):
    with vbus.Node("deaf", shm=False, listen="off") as alone:
        assert [(way.name, way.on) for way in alone.discovery()] == [
            ("shm", False),
            ("mdns", False),
            ("peers", False),
        ]
        assert all(way.reason for way in alone.discovery())
    node = join(peers=["127.0.0.1:9"])
    shm, peers, mdns = node.discovery()
    assert (shm.name, shm.on, shm.addresses, shm.heard_ns) == ("shm", True, (meeting,), None)
    assert (peers.name, peers.on, peers.candidates[0].name) == ("peers", True, "127.0.0.1:9")
    assert (mdns.name, mdns.on) == ("mdns", False)
    assert "discovery does not have" in mdns.reason
    other = join("other")
    assert node.discovery()[0].heard_ns == only(node.peers(), id=other.id).since_ns
