"""Real containers with a network: on one bridge, each with an address of its own, and with the engine's own
seccomp profile and limits. Where they share memory as well, they use it."""

# ruff: noqa: F811 (fixtures are imported, and named as arguments)

import time

import pytest
from boxes import boxes, boxes_can_be_plugged, engine  # noqa: F401
from helpers import start  # noqa: F401
from hosts import hosts_can_be_made, switch  # noqa: F401
from situations import situation

pytestmark = [pytest.mark.containers, pytest.mark.timeout(120)]

MIB = 1 << 20


def open_node(box, **settings):
    """Its secret is in its environment."""
    box.open_node(secret=None, **settings)


def meet(*boxes, **settings):
    """All of them have a node, and know each other."""
    for box in boxes:
        open_node(box, **settings)
    for box in boxes:
        assert box.ask(f"node.wait_for_peers({len(boxes) - 1}, 20)")


def talk(left, right):
    """Small and large samples go both ways; seconds to the first one and the path of all."""
    for box in (left, right):
        box.do("pub = node.publisher(f'from/{node.name}', history=1)")
        box.do("pub.publish('hello')")
    # Who opened its node last asks first, so that time is its time.
    for box, other in ((right, left), (left, right)):
        box.do(f"sub = node.subscriber('from/{other.digit}'); first = sub.receive(20)")
        box.do("took = time.monotonic() - begun")
        assert box.ask("first.value") == "hello"
    for box, other in ((left, right), (right, left)):
        assert box.ask("pub.wait_for_subscribers(1, 20)")
        box.do("for number in range(20): pub.publish(bytes([number]) * (1 << number))")
        other.do("got = [sub.receive(20) for _ in range(20)]")
        assert other.ask("[it.value == bytes([n]) * (1 << n) for n, it in enumerate(got)]") == [True] * 20
        assert other.ask("[(it.sequence, it.lost) for it in got]") == [(n + 1, 0) for n in range(20)]
    (path,) = {path for box in (left, right) for path in box.ask("list({it.via for it in got})")}
    return right.ask("took"), path


def found_by(*boxes):
    """The ways by which one of them, at least, found another over the network."""
    ways = "[way.name for way in node.discovery() if way.candidates]"
    return {way for box in boxes for way in box.ask(ways)}


def counts_are_right(box, name):
    """Every sample is somewhere."""
    assert box.ask(f"repr(conserved({name}))") == "[]"


# ---- finding each other -------------------------------------------------------------------------


@pytest.mark.contract("Across machines give both one secret")
def test_two_containers_on_one_bridge_meet_by_mdns_with_nothing_in_common(boxes):
    left, right = boxes.make("left"), boxes.make("right")
    meet(left, right)
    took, path = talk(left, right)
    assert path == "udp"
    assert found_by(left, right) == {"mdns"}
    assert left.ask("os.getpid()") == right.ask("os.getpid()") == 1
    assert left.ask("'Seccomp:\\t2' in open('/proc/self/status').read()")
    situation("two containers on one bridge, each with its own network", "mdns", "udp", took)


def test_clones_with_one_host_name_one_machine_id_and_one_pid_are_two(boxes, tmp_path):
    identity = tmp_path / "machine-id"
    identity.write_text("0123456789abcdef0123456789abcdef\n")
    clone = ["--hostname=clone", f"--volume={identity}:/etc/machine-id:ro"]
    left, right = boxes.make("left", *clone), boxes.make("right", *clone)
    meet(left, right)
    took, path = talk(left, right)
    assert path == "udp"
    for box in (left, right):
        assert box.ask("[(peer.host, peer.pid) for peer in node.peers()]") == [("clone", 1)]
    situation("two cloned containers: one host name, one machine id, both pid 1", "mdns", "udp", took)


def test_without_multicast_an_address_in_peers_is_enough(boxes):
    left = boxes.make("left")
    right = boxes.make("right", VBUS_LISTEN="0.0.0.0:7000")
    for port in ("to-left", "to-right"):
        boxes.switch.ip("link", "set", port, "type", "bridge_slave", "mcast_flood", "off")
    open_node(right)
    open_node(left)
    assert not left.ask("node.wait_for_peers(1, 3)"), "multicast was to be dropped"
    remedy = "VBUS_LISTEN=[::]:7000 at one, VBUS_PEERS=<its address>:7000 at the other"
    situation("two containers, no multicast", None, None, None, remedy)
    left.do("node.close(); os.environ['VBUS_PEERS'] = '10.0.0.2:7000'")
    open_node(left)
    took, path = talk(right, left)
    assert path == "udp"
    assert found_by(left, right) == {"peers"}
    situation("two containers, no multicast, VBUS_PEERS", "peers", "udp", took)


# ---- memory where there is some -----------------------------------------------------------------


@pytest.mark.parametrize(("ipc", "expected"), [("private", "udp"), ("shareable", "shm"), ("host", "shm")])
def test_containers_with_a_network_use_memory_if_they_share_some(boxes, ipc, expected):
    left = boxes.make("left", f"--ipc={ipc}")
    joined = f"container:{left.container.name}" if ipc == "shareable" else ipc
    right = boxes.make("right", f"--ipc={joined}")
    meet(left, right)
    took, path = talk(left, right)
    assert path == expected
    found = "shm" if path == "shm" else "mdns"
    situation(f"two containers on one bridge, --ipc={ipc}", found, path, took)


# ---- rights and limits --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rights",
    [
        pytest.param(["--user=1000:1000", "--cap-drop=ALL"], id="uid 1000 without rights"),
        pytest.param(["--read-only"], id="a file system that cannot be written"),
    ],
)
def test_rights_are_not_needed(boxes, rights):
    left, right = boxes.make("left"), boxes.make("right", *rights)
    meet(left, right)
    took, path = talk(left, right)
    assert path == "udp"
    situation(f"a container with {' '.join(rights)}, network only", "mdns", "udp", took)


def test_a_user_namespace_of_its_own_changes_nothing(boxes, monkeypatch, tmp_path):
    # Podman would write a sysctl of the network, which is not the new user's.
    settings = tmp_path / "containers.conf"
    settings.write_text("[containers]\ndefault_sysctls = []\n")
    left = boxes.make("left")
    monkeypatch.setenv("CONTAINERS_CONF", str(settings))
    right = boxes.make("right", "--uidmap=0:100000:65536")
    assert right.ask("open('/proc/self/uid_map').read().split()") == ["0", "100000", "65536"]
    meet(left, right)
    took, path = talk(left, right)
    assert path == "udp"
    situation("a container in a user namespace of its own, network only", "mdns", "udp", took)


@pytest.mark.contract("the same bound, separately, for samples of far publishers")
def test_a_small_container_sends_and_receives_more_than_it_has(boxes):
    limit = ["--memory=64m", "--memory-swap=64m"]
    large, small = boxes.make("large"), boxes.make("small", *limit)
    meet(large, small)
    for writer, reader in ((large, small), (small, large)):
        reader.do("sub = node.subscriber('frames', bytes)")
        writer.do("pub = node.publisher('frames', bytes); pub.wait_for_subscribers(1, 20)")
        writer.tell("do", f"for number in range(150): pub.publish(bytes([number]) * {MIB})")
        reader.do("seen = []")
        reader.do(
            "for _ in range(150): it = sub.receive(20); seen.append((it.nbytes, it.payload[-1], it.lost))"
        )
        writer.done()
        assert reader.ask("seen") == [(MIB, number, 0) for number in range(150)]
        reader.do("sub.close(); del it")
        writer.do("pub.close()")
    situation("a container with 64 MiB, network only", "mdns", "udp", None)


# ---- frozen and killed --------------------------------------------------------------------------


SPEAK = """
import threading

def speak():
    global count
    while not is_over:
        pub.publish(count)
        count += 1
        time.sleep(0.0001)

count, is_over = 0, False
speaker = threading.Thread(target=speak)
speaker.start()
"""
"""Publishes numbers until `is_over`."""


@pytest.mark.parametrize("paused", ["writer", "reader"])
def test_a_short_pause_in_the_middle_of_traffic_loses_nothing(boxes, paused):
    writer, reader = boxes.make("writer"), boxes.make("reader")
    meet(writer, reader)
    reader.do("sub = node.subscriber('ticks', int)")
    writer.do("pub = node.publisher('ticks', int); pub.wait_for_subscribers(1, 20)")
    writer.do(SPEAK)
    reader.do("seen = [sub.receive(20).value for _ in range(500)]")
    reader.tell("do", "while seen[-1] != -1: seen.append(sub.receive(20).value)")
    frozen = writer if paused == "writer" else reader
    frozen.container.pause()
    time.sleep(3)  # this is the pause
    frozen.container.unpause()
    writer.do("is_over = True; speaker.join(); pub.publish(-1)")
    reader.done()
    assert reader.ask(f"seen == [*range({writer.ask('count')}), -1]")
    for box in (writer, reader):
        assert not box.ask("[event for event in everything(watch) if 'PeerLeft' in event]")
    counts_are_right(writer, "pub")
    counts_are_right(reader, "sub")


@pytest.mark.contract("over the network not longer than the 15 s after which a silent peer counts as gone")
def test_after_a_long_pause_it_comes_back_and_nobody_else_noticed(boxes):
    writer, brisk, frozen = boxes.make("writer"), boxes.make("brisk"), boxes.make("frozen")
    meet(writer, brisk, frozen)
    for reader in (brisk, frozen):
        reader.do("sub = node.subscriber('ticks', int)")
    writer.do("pub = node.publisher('ticks', int, depth=16)")
    assert writer.ask("pub.wait_for_subscribers(2, 20)")
    frozen.container.pause()
    writer.tell("do", "for number in range(2000): pub.publish(number)")
    brisk.do("seen = [sub.receive(30).value for _ in range(2000)]")
    writer.done()
    assert brisk.ask("seen == list(range(2000))")
    writer.until("[its for its in everything(watch) if 'PeerLeft' in its and 'timeout' in its]")
    frozen.container.unpause()
    assert writer.ask("pub.wait_for_subscribers(2, 20)")
    writer.do("pub.publish(-1)")
    frozen.do("seen = [sub.receive(20)]")
    frozen.do("while seen[-1].value != -1: seen.append(sub.receive(20))")
    assert frozen.ask("len(seen) + sum(it.lost for it in seen)") == 2001
    assert frozen.ask("[it.sequence for it in seen] == sorted({it.sequence for it in seen})")
    assert frozen.ask("sub.receive_nowait() is None")
    assert brisk.ask("sub.receive(20).value") == -1
    counts_are_right(writer, "pub")
    for reader in (brisk, frozen):
        counts_are_right(reader, "sub")
    situation("a container paused for longer than 15 s, then unpaused", "mdns", "udp", None)


def test_killed_containers_at_either_end_of_a_stream_are_gone_after_fifteen_seconds(boxes):
    """A writer whose reader is killed goes on; a reader whose writer is killed has all until then."""
    writer, doomed_reader = boxes.make("writer"), boxes.make("no-reader")
    reader, doomed_writer = boxes.make("reader"), boxes.make("no-writer")
    meet(writer, doomed_reader, reader, doomed_writer)
    doomed_reader.do("sub = node.subscriber('a', bytes)")
    reader.do("sub = node.subscriber('b', bytes)")
    writer.do("pub = node.publisher('a', bytes); pub.wait_for_subscribers(1, 20)")
    doomed_writer.do("pub = node.publisher('b', bytes); pub.wait_for_subscribers(1, 20)")
    writer.do("begun = time.monotonic()")
    writer.tell("do", "for number in range(200): pub.publish(bytes(100_000))")
    doomed_writer.tell("do", "while True: pub.publish(bytes(100_000))")
    reader.do("seen = [sub.receive(20) for _ in range(50)]; seen = [(it.sequence, it.lost) for it in seen]")
    for box in (doomed_writer, doomed_reader):
        box.container.kill()
    writer.done(40)
    assert writer.ask("pub.flush(20)")
    for box, name in ((writer, "no-reader"), (reader, "no-writer")):
        box.until(f"{name!r} not in [peer.name for peer in node.peers()]")
        events = [event for event in box.ask("everything(watch)") if "PeerLeft" in event and name in event]
        assert len(events) == 1
        assert "timeout" in events[0]
    reader.do("for it in iter(sub.receive_nowait, None): seen.append((it.sequence, it.lost))")
    assert reader.ask("seen == [(number, 0) for number in range(len(seen))]")
    counts_are_right(writer, "pub")
    counts_are_right(reader, "sub")
    assert writer.ask("pub.stats().lost > 0 or pub.stats().published == 200")
