"""Real containers that share one directory, or one /dev/shm, and nothing else.

The containers run this very Python over an image of empty directories (`vbus.cli._containers`), without a
network, with the engine's own seccomp profile and 64 MiB `/dev/shm`. Where none can be started, each test
skips with the engine's own words.
"""

# ruff: noqa: F811 (a fixture is imported, and named as an argument)

import json
import os
import secrets
import shutil
import tempfile
import threading
from pathlib import Path

import pytest
from boxes import engine  # noqa: F401
from situations import situation

import vbus

pytestmark = [pytest.mark.containers, pytest.mark.timeout(120)]

MIB = 1 << 20

# What every program in a container begins with: `say` is one line of JSON to the test.
PREAMBLE = """
import json, os, sys, time
import vbus

def say(**words):
    print(json.dumps(words), flush=True)

def seccomp():
    return int(dict(line.split(":", 1) for line in open("/proc/self/status"))["Seccomp"])

def shm_mib():
    room = os.statvfs("/dev/shm")
    return room.f_blocks * room.f_frsize >> 20
"""

WRITER = """
opened = time.time_ns()
with vbus.Node("writer", listen="off") as node, node.publisher("frames", bytes) as pub:
    assert pub.wait_for_subscribers(1, 30), "no subscriber came"
    for number in range(20):
        with pub.loan(1 << 20) as loan:
            loan.buffer[:] = bytes([number]) * (1 << 20)
    pub.publish(bytes(100 << 20))
    pub.publish(b"")
    say(flushed=pub.flush(30), opened=opened, pid=os.getpid(), seccomp=seccomp(), shm_mib=shm_mib())
"""

READER = """
with vbus.Node("reader", listen="off") as node, node.subscriber("frames", bytes) as sub:
    say(ready=True)
    seen, came = [], None
    for sample in sub:
        came = came or time.time_ns()
        if not sample.nbytes:
            break
        first, last = sample.payload[0], sample.payload[-1]
        seen.append([sample.sequence, sample.nbytes, first, last, sample.lost, sample.via])
    say(seen=seen, came=came, pid=os.getpid(), uid=os.getuid(), seccomp=seccomp(), shm_mib=shm_mib())
"""

# Everything is received and told, until the empty sample.
COUNTER = """
qos = json.loads(sys.argv[1])
with vbus.Node("counter", listen="off") as node, node.subscriber("ticks", bytes, **qos) as sub:
    say(ready=True)
    got = lost = 0
    for sample in sub:
        got, lost = got + 1, lost + sample.lost
        if got == 1:
            say(first=sample.sequence)
        if not sample.nbytes:
            break
    sample.release()
    say(got=got, lost=lost)
"""

# One sample is taken and kept; the rest is left waiting.
HOARDER = """
with vbus.Node("hoarder", listen="off") as node, node.subscriber("ticks", bytes) as sub:
    say(ready=True)
    kept = sub.receive(30)
    say(kept=kept.sequence)
    sys.stdin.read()
"""

TALKER = """
with vbus.Node("talker", listen="off") as node, node.publisher("words", bytes) as pub:
    assert pub.wait_for_subscribers(1, 30), "no subscriber came"
    for number in range(8):
        pub.publish(bytes([number]) * (1 << 20))
    say(published=8)
    sys.stdin.read()
"""

# Its reader keeps all it gets, so the memory must come to its end.
FILLER = """
memory = json.loads(sys.argv[1])
with vbus.Node("filler", listen="off", memory=memory) as node:
    with node.publisher("frames", bytes, depth=10_000, block_timeout=0.5) as pub:
        assert pub.wait_for_subscribers(1, 30), "no subscriber came"
        count, error = 0, None
        try:
            while count < 200:
                pub.publish(bytes(1 << 20))
                count += 1
        except vbus.Error as stopped:
            error = [type(stopped).__name__, str(stopped)]
        try:
            pub.publish(bytes(100 << 20))
            large = None
        except vbus.Error as stopped:
            large = [type(stopped).__name__, str(stopped)]
        say(count=count, error=error, large=large)
"""


class World:
    """One directory, one domain, and the containers of one test."""

    def __init__(self, engine, directory):
        self.engine, self.directory = engine, directory
        self.domain = f"boxes-{secrets.token_hex(4)}"
        self.containers = []

    @property
    def mount(self):
        """What joins a container to the world."""
        return f"--volume={self.directory}:/run/vbus"

    def start(self, program, *arguments, flags=None):
        """A container with this program; by default only the directory is shared."""
        container = self.engine.start(
            ["-c", PREAMBLE + program, *arguments],
            flags=[self.mount] if flags is None else flags,
            environment={"VBUS_DOMAIN": self.domain},
        )
        self.containers.append(container)
        return container

    def node(self, name):
        """A node of the test's own process, in the same directory."""
        return vbus.Node(name, domain=self.domain, shm=str(self.directory), listen="off")

    def close(self):
        """Those that joined another's namespace end before it."""
        for container in reversed(self.containers):
            container.remove()


@pytest.fixture
def world(engine):
    directory = Path(tempfile.mkdtemp(prefix="vbus-test-"))
    directory.chmod(0o1777)
    result = World(engine, directory)
    yield result
    result.close()
    shutil.rmtree(directory)


def listen(container):
    """The next words of the program in a container; what it printed otherwise is for a failure."""
    noise = []
    for line in container.process.stdout:
        if line.startswith("{"):
            return json.loads(line)
        noise.append(line)
    raise AssertionError("the container ended without a word: " + "".join(noise))


def assert_all_came(situated, reader_words, writer_words):
    """Every frame, whole, once, in order, through memory; how they are situated is written down."""
    small = [[number, MIB, number, number, 0, "shm"] for number in range(20)]
    assert reader_words["seen"] == [*small, [20, 100 * MIB, 0, 0, 0, "shm"]]
    assert writer_words["flushed"]
    situation(situated, "shm", "shm", (reader_words["came"] - writer_words["opened"]) / 1e9)


@pytest.mark.contract(
    "in containers too if they share one directory", "one bind mount or volume joins containers"
)
def test_directory_alone_joins_two_first_processes(world):
    reader = world.start(READER)
    assert listen(reader)["ready"]
    wrote = listen(world.start(WRITER))
    read = listen(reader)
    assert_all_came("two containers that share one directory, without any network", read, wrote)
    assert (read["pid"], wrote["pid"]) == (1, 1)
    assert (read["seccomp"], wrote["seccomp"]) == (2, 2), "the default profile was to be in force"
    assert read["shm_mib"] <= 64, "a private /dev/shm was to be in force"


def test_user_ids_need_not_match(world):
    reader = world.start(READER, flags=[world.mount, "--user=1000:1000"])
    assert listen(reader)["ready"]
    wrote, read = listen(world.start(WRITER)), listen(reader)
    assert read["uid"] == 1000
    assert_all_came("two containers with one directory, one of them as uid 1000", read, wrote)


def test_writer_may_be_the_one_without_rights(world):
    reader = world.start(READER)
    assert listen(reader)["ready"]
    wrote = listen(world.start(WRITER, flags=[world.mount, "--user=1000:1000", "--cap-drop=ALL"]))
    read = listen(reader)
    assert_all_came("two containers with one directory, the writer as uid 1000 without rights", read, wrote)


def test_user_namespaces_need_not_match(world):
    if os.geteuid() or "podman" not in world.engine.program:
        pytest.skip("only root may map other user ids, and only podman does it for one container")
    mapped = [world.mount, "--uidmap=0:100000:65536"]
    reader = world.start(READER, flags=mapped)
    assert listen(reader)["ready"]
    wrote, read = listen(world.start(WRITER)), listen(reader)
    assert_all_came("two containers with one directory, one in a user namespace of its own", read, wrote)


def test_ipc_of_the_host_needs_no_mount(world):
    reader = world.start(READER, flags=["--ipc=host"])
    assert listen(reader)["ready"]
    wrote, read = listen(world.start(WRITER, flags=["--ipc=host"])), listen(reader)
    assert_all_came("two containers, both with --ipc=host, without any network", read, wrote)


def test_shareable_ipc_needs_no_mount(world):
    reader = world.start(READER, flags=["--ipc=shareable"])
    assert listen(reader)["ready"]
    wrote = listen(world.start(WRITER, flags=[f"--ipc=container:{reader.name}"]))
    read = listen(reader)
    assert_all_came(
        "two containers, --ipc=shareable and --ipc=container:..., without any network", read, wrote
    )
    assert read["shm_mib"] <= 64, "100 MiB were to pass beside a /dev/shm of 64 MiB"


def test_containers_that_share_nothing_do_not_meet(world):
    reader = world.start(COUNTER, "{}", flags=[])
    assert listen(reader)["ready"]
    with world.node("writer") as node, node.publisher("ticks", bytes) as pub:
        assert not pub.wait_for_subscribers(1, 0.5)
    situation(
        "two containers that share neither directory nor network",
        None, None, None, "--volume=/run/vbus:/run/vbus for both",
    )  # fmt: skip


def test_a_directory_that_one_may_only_read_joins_nobody(world):
    reader = world.start(COUNTER, "{}", flags=[f"{world.mount}:ro"])
    assert listen(reader)["ready"]
    with world.node("writer") as node, node.publisher("ticks", bytes) as pub:
        assert not pub.wait_for_subscribers(1, 0.5)
    situation(
        "two containers with one directory, read-only in one of them, without any network",
        None, None, None, "--volume=/run/vbus:/run/vbus without :ro",
    )  # fmt: skip


@pytest.mark.contract("a quarter of what the machine or the container has")
@pytest.mark.parametrize("memory", [None, 1 << 30], ids=["default", "more than the container has"])
def test_small_container_stops_short_of_its_limit(world, memory):
    with world.node("hoarder") as node, node.subscriber("frames", bytes, depth=10_000) as sub:
        limit = ["--memory=64m", "--memory-swap=64m"]
        filler = world.start(FILLER, json.dumps(memory), flags=[world.mount, *limit])
        words = listen(filler)
        assert filler.process.wait(30) == 0, "killed for its memory"
        assert 1 <= words["count"] < 64
        kind, message = words["error"]
        assert kind in {"Timeout", "Full"}
        assert "memory" in message
        kind, message = words["large"]
        assert kind in {"TooLarge", "Timeout", "Full"}
        assert "memory" in message
        assert len(sub.receive_many(timeout=0)) == words["count"]


@pytest.mark.contract("one that is alive but stuck blocks only if")
def test_paused_container_stops_nobody_else(world):
    frozen = world.start(COUNTER, json.dumps({"on_full": "drop_oldest", "depth": 16}))
    brisk = world.start(COUNTER, "{}")
    assert listen(frozen)["ready"]
    assert listen(brisk)["ready"]
    with world.node("writer") as node, node.publisher("ticks", bytes) as pub:
        assert pub.wait_for_subscribers(2, 30)
        pub.publish(b"tick")
        assert listen(frozen)["first"] == listen(brisk)["first"] == 0
        frozen.pause()
        for _ in range(500):
            pub.publish(b"tick")
        with world.node("late") as late, late.subscriber("ticks", bytes) as sub:
            pub.publish(b"")
            assert sub.receive(30).sequence == 501
        assert listen(brisk) == {"got": 502, "lost": 0}
        frozen.unpause()
        words = listen(frozen)
        assert words["got"] + words["lost"] == 502
        assert words["lost"] >= 500 - 16


@pytest.mark.contract("A subscriber whose process is gone never blocks a publisher")
def test_killed_container_frees_its_publisher(world):
    hoarder = world.start(HOARDER)
    assert listen(hoarder)["ready"]
    with world.node("writer") as node, node.publisher("ticks", bytes, depth=4) as pub:
        assert pub.wait_for_subscribers(1, 30)
        publishing = threading.Thread(target=lambda: [pub.publish(bytes(MIB)) for _ in range(50)])
        publishing.start()
        assert listen(hoarder)["kept"] == 0
        hoarder.kill()
        publishing.join(30)
        assert not publishing.is_alive(), "a dead reader still blocks"
        again = world.start(COUNTER, "{}")
        assert listen(again)["ready"]
        assert pub.wait_for_subscribers(1, 30)
        pub.publish(b"")
        assert listen(again)["first"] == 50
        assert listen(again) == {"got": 1, "lost": 0}
        assert pub.stats().held == 0


@pytest.mark.contract("They stay valid and unchanged for as long as")
def test_samples_of_a_killed_container_stay_readable(world):
    with world.node("reader") as node, node.subscriber("words", bytes) as sub:
        talker = world.start(TALKER)
        held = [sub.receive(30) for _ in range(2)]
        assert listen(talker)["published"] == 8
        talker.kill()
        talker.process.wait(30)
        held += [sub.receive(30) for _ in range(6)]
        assert [sample.sequence for sample in held] == list(range(8))
        for number, sample in enumerate(held):
            assert bytes(sample.payload) == bytes([number]) * MIB
