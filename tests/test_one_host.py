"""Programs of one host: what two of them need in common, and how quickly the first sample comes."""

import os
import time

import pytest
from helpers import WATCHDOG, start
from situations import situation

import vbus

__all__ = ["start"]

GREETING = "hello"

TALKER = """
    node = vbus.Node("talker", **eval(hear()))
    publisher = node.publisher("greeting", history=1)
    publisher.publish(b"hello")
    say("ready")
    hear()
"""

# It opens its node as the last, and tells how long the first sample took.
LISTENER = """
    settings = eval(hear())
    user = settings.pop("user", None)
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    say("ready")
    hear()
    begun = time.monotonic()
    with vbus.Node("listener", **settings) as node, node.subscriber("greeting") as subscriber:
        sample = subscriber.receive(timeout=20)
        say(bytes(sample.payload).decode(), sample.via, time.monotonic() - begun)
"""


@pytest.fixture
def greet(start):
    """The path of the first sample from one program to another, opened in this order, and its seconds."""

    def greet(talker: dict, listener: dict, **settings) -> tuple[str, float]:
        talking, listening = start(TALKER, **settings), start(LISTENER, **settings)
        listening.tell(listener)
        listening.expect("ready")
        talking.tell(talker)
        talking.expect("ready")
        listening.tell("go")
        said, path, seconds = listening.hear(2 * WATCHDOG).split()
        assert said == GREETING
        return path, float(seconds)

    return greet


def test_two_nodes_of_one_process_share_memory(join):
    with join("talker").publisher("greeting", history=1) as publisher:
        publisher.publish(GREETING)
        begun = time.monotonic()
        sample = join("listener").subscriber("greeting").receive(WATCHDOG)
        took = time.monotonic() - begun
    assert (sample.value, sample.via) == (GREETING, "shm")
    situation("two nodes of one process", "shm", "shm", took)


@pytest.mark.contract("two programs on one machine find each other")
def test_two_programs_of_one_host_share_memory(greet):
    path, took = greet({}, {})
    assert path == "shm"
    situation("two processes", "shm", "shm", took)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become somebody else")
def test_two_users_share_memory_in_a_directory_that_both_may_write(greet, meeting):
    os.chmod(meeting, 0o1777)  # noqa: PTH101
    path, took = greet({}, {"user": 1000})
    assert path == "shm"
    situation("two processes of two users, one directory (mode 1777)", "shm", "shm", took)


def test_without_a_directory_in_common_two_programs_talk_over_loopback_if_one_names_the_other(
    greet, tmp_path
):
    settings = {"discovery": ["peers"], "shm": str(tmp_path / "mine")}
    talker = {**settings, "listen": "127.0.0.1:0"}
    with vbus.Node("probe", shm=False, listen="127.0.0.1:0", discovery=["peers"]) as probe:
        port = probe.addresses[0].rpartition(":")[2]
    talker["listen"] = f"127.0.0.1:{port}"
    path, took = greet(talker, {**settings, "shm": str(tmp_path / "yours"), "peers": [talker["listen"]]})
    assert path == "udp"
    situation("two processes without a directory in common, VBUS_PEERS", "peers", "udp", took)


def test_without_a_directory_or_a_network_two_programs_do_not_meet(join, tmp_path):
    join("left", shm=str(tmp_path / "left"), listen="off")
    right = join("right", shm=str(tmp_path / "right"), listen="off")
    assert not right.wait_for_peers(1, 0.5)
    remedy = "one VBUS_SHM for both, or none: /run/vbus, /dev/shm/vbus and /tmp/vbus are found without"
    situation("two processes without a directory in common and without network", None, None, None, remedy)
