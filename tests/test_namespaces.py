"""Two programs, each the first process of namespaces of its own: no pid, no network, no IPC, no host name in
common. All that they share is a directory."""

import shutil
import subprocess
import sys
import time

import pytest
from helpers import until
from situations import situation

import vbus

APART = ["unshare", "--pid", "--ipc", "--net", "--uts", "--mount", "--fork", "--mount-proc"]
"""How a program is put into namespaces of its own."""

ECHO = """
import os, sys
import vbus
with vbus.Node("echo", shm=sys.argv[1]) as node:
    replies, requests = node.publisher("reply", bytes), node.subscriber("request", bytes)
    print(os.getpid(), flush=True)
    for sample in requests:
        replies.publish(sample.payload)
"""


@pytest.fixture(scope="module", autouse=True)
def namespaces() -> None:
    """Skips where this user may not make any, with what was said."""
    if shutil.which("unshare") is None:
        pytest.skip("no namespaces: there is no `unshare`")
    tried = subprocess.run([*APART, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"no namespaces: {tried.stderr.strip()}")


@pytest.fixture
def echo(meeting: str, domain: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VBUS_DOMAIN", domain)
    program = subprocess.Popen(
        [*APART, sys.executable, "-c", ECHO, meeting], stdout=subprocess.PIPE, text=True
    )
    yield program
    program.kill()
    program.wait()
    program.stdout.close()


@pytest.mark.contract("in containers too if they share one directory")
def test_samples_cross_namespaces_both_ways(echo, meeting):
    assert echo.stdout.readline().strip() == "1", "the other side is the first process of its namespace"
    took, begun = None, time.monotonic()
    with vbus.Node("outside", shm=meeting) as node:
        requests, replies = node.publisher("request", bytes), node.subscriber("reply", bytes)
        assert requests.wait_for_subscribers(1, 10)
        for size in (0, 1, 4096, 1 << 20):
            requests.publish(bytes(size))
            with replies.receive(10) as sample:
                took = took or time.monotonic() - begun
                assert (sample.nbytes, sample.via) == (size, "shm")
                assert sample.source.pid == 1
    name = "two processes in pid, ipc, network and mount namespaces of their own, one directory"
    situation(name, "shm", "shm", took)


def test_a_death_in_another_pid_namespace_is_noticed(echo, meeting):
    echo.stdout.readline()
    with vbus.Node("outside", shm=meeting) as node:
        replies = node.subscriber("reply", bytes)
        assert replies.wait_for_publishers(1, 10)
        # The first process of a pid namespace takes all others with it; `unshare` waits for it.
        subprocess.run(["pkill", "-KILL", "-P", str(echo.pid)], check=True)
        until(lambda: replies.publishers == 0 and node.peers() == [], "the death is noticed")
