"""`vbus doctor`: what it says of a machine that is well, and of one that lacks something."""

# ruff: noqa: F811 (fixtures are imported, and named as arguments)

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from helpers import Survivor, start, until  # noqa: F401
from hosts import hosts_can_be_made  # noqa: F401
from test_cli import run

import vbus
from vbus.doctor import meeting as rooms
from vbus.doctor import sockets

COMMANDS = "every command with `--domain`, `--secret-file`, `--json` (one object per line)"
STATUS = "Exit status 0 ok, 1 failed, 2 usage, 130 after Ctrl-C"
ASKED = 4 << 20
RMEM_MAX = Path("/proc/sys/net/core/rmem_max")


def doctor(meeting, *arguments, status=0, **options):
    """What it says, by check; findings are under None."""
    done = run("doctor", "--json", "--wait", "0.5", *arguments, meeting=meeting, **options)
    assert done.returncode == status, (done.stdout, done.stderr)
    said = {}
    for line in done.stdout.splitlines():
        one = json.loads(line)
        said.setdefault(one.get("check"), []).append(one)
    return said


def apart(program, *arguments, **environment):
    """In namespaces of its own, as a program that `unshare` or `setpriv` starts."""
    done = subprocess.run(
        [*program, sys.executable, "-m", "vbus", "doctor", "--json", "--wait", "0.5", *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=25,
    )
    return {one.get("check"): one for one in map(json.loads, done.stdout.splitlines())}, done


def publish_in_vain(publisher):
    with pytest.raises(vbus.Closed):
        publisher.publish(2)


@pytest.mark.contract(COMMANDS)
def test_a_machine_that_is_well_is_told_so_with_the_numbers(join, domain, meeting):
    join("neighbour")
    said = doctor(meeting, "--domain", domain)
    checks = ["kernel", "memory", "descriptors", "clock", "batches", "directories", "users", "network", "mtu"]
    assert list(said)[: len(checks)] == checks
    assert {"buffers", "mdns", "peers", "nodes"} <= set(said)
    assert None not in said
    for name, (check,) in said.items():
        assert check["verdict"] in ("ok", "note"), check
        assert check["verdict"] == "ok" or check["remedy"], check
        assert check["looked"], name
    assert f"{meeting} (1 other node there)" in said["directories"][0]["looked"]
    assert "1 by shm" in said["nodes"][0]["looked"]
    people = run("doctor", "--wait", "0.1", "--domain", domain, meeting=meeting).stdout.splitlines()
    assert people[0].startswith("ok      kernel: ")
    assert people[-1] == "all is well" or people[-1].startswith("0 failed")


@pytest.mark.contract(STATUS, "`str()` is doctor's line")
def test_a_stuck_subscriber_is_no_failure_and_a_refused_node_is_one(join, domain, meeting):
    slow, source = join("slow"), join("source")
    subscriber = slow.subscriber("t", depth=1)
    publisher = source.publisher("t")
    publisher.publish(1)
    blocked = Survivor(lambda: publish_in_vain(publisher))
    until(lambda: any(it.remedy for it in source.explain()), "it is stuck")
    (stuck,) = doctor(meeting, "--domain", domain)[None]
    assert subscriber.id in stuck["reason"]
    assert (stuck["topic"], stuck["verdict"], stuck["peer"]["name"]) == ("t", "used", "slow")
    assert 'node.subscriber("t", on_full="drop_oldest")' in stuck["remedy"]
    source.close(linger=0)
    blocked.join()
    join("guarded", secret="correct horse battery")
    found = doctor(meeting, "--domain", domain, status=1)[None]
    (refused,) = [it for it in found if it["verdict"] == "refused"]
    assert "guarded" in refused["reason"]
    assert refused["remedy"].startswith("here: export VBUS_SECRET=")
    people = run("doctor", "--wait", "0.5", "--domain", domain, meeting=meeting)
    assert people.stdout.splitlines()[-1].startswith("1 failed")
    assert any(line.startswith("failed  shm:") and "refused" in line for line in people.stdout.splitlines())


def test_a_peer_that_says_nothing_is_a_failure_with_the_port_to_open(domain, meeting, monkeypatch):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        monkeypatch.setenv("VBUS_PEERS", f"127.0.0.1:{port}")
        said = doctor(meeting, "--domain", domain, "--wait", "4", status=1)
    (finding,) = said[None]
    assert (finding["peer"], finding["verdict"]) == (f"127.0.0.1:{port}", "failed")
    assert f"sudo ufw allow {port}/udp" in finding["remedy"]
    assert said["peers"][0]["looked"].startswith("on, 1 named")


@pytest.mark.skipif(os.getuid() != 0, reason="only root becomes somebody who may not write")
def test_a_directory_that_cannot_be_used_is_a_failure_with_what_makes_it_usable(domain):
    """Somebody named it, so there is no node; the machine is examined all the same."""
    closed = tempfile.mkdtemp(prefix="vbus-", dir="/tmp")
    try:
        Path(closed).chmod(0o755)
        os.chown(closed, 1234, 1234)
        said = doctor(closed, "--domain", domain, status=1)
        (node,) = said["node"]
        assert node["verdict"] == "failed"
        assert "uid 1234" in node["looked"]
        assert said["kernel"][0]["verdict"] == "ok"
    finally:
        shutil.rmtree(closed)


def test_too_few_descriptors_are_told_with_both_limits(domain, meeting):
    said, _ = apart(["sh", "-c", 'ulimit -n 512; exec "$@"', "sh"], "--domain", domain, VBUS_SHM=meeting)
    assert said["descriptors"]["verdict"] == "note"
    assert "512" in said["descriptors"]["looked"]
    assert "--ulimit nofile=65536:65536" in said["descriptors"]["remedy"]


def test_a_packet_size_that_is_too_small_is_a_failure_with_its_interface(hosts_can_be_made, domain, meeting):
    script = (
        "ip link set lo up && ip link add name v0 type veth peer name v1 && ip link set v0 mtu 1000 up && "
        'ip address add 10.7.7.1/24 dev v0 && exec "$@"'
    )
    said, done = apart(["unshare", "--net", "sh", "-c", script, "sh"], "--domain", domain, VBUS_SHM=meeting)
    assert done.returncode == 1
    assert said["mtu"]["verdict"] == "failed"
    assert "v0 1,000" in said["mtu"]["looked"]
    assert said["mtu"]["remedy"] == "sudo ip link set dev v0 mtu 1500"


def test_a_machine_without_a_network_is_told_so(hosts_can_be_made, domain, meeting):
    said, done = apart(["unshare", "--net"], "--domain", domain, VBUS_SHM=meeting)
    assert (done.returncode, said["network"]["verdict"]) == (1, "failed")
    assert "no address" in said["network"]["looked"]


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="there is no `setpriv` to drop a right with")
@pytest.mark.skipif(
    int(RMEM_MAX.read_text() if RMEM_MAX.exists() else ASKED) >= ASKED,
    reason=f"this machine lets everybody have buffers of {ASKED} bytes: net.core.rmem_max",
)
def test_small_socket_buffers_are_noted_with_what_was_asked_and_got(domain, meeting):
    drop = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"] if os.getuid() == 0 else []
    said, _ = apart(drop, "--domain", domain, VBUS_SHM=meeting)
    check = said["buffers"]
    assert check["verdict"] == "note"
    assert f"got {int(RMEM_MAX.read_text()):,} to receive" in check["looked"]
    assert f"sudo sysctl -w net.core.rmem_max={ASKED}" in check["remedy"]


def test_what_the_kernel_gave_less_of_is_what_the_remedy_raises():
    survey = {"buffers_asked": ASKED, "receive_buffer": 425_984, "send_buffer": 2 * ASKED}
    survey |= {"received": 7, "forged": 3, "uncut": 0}
    network, _, buffers = sockets.of_survey(survey, ("10.0.0.1:7000",))
    assert "3 of which did not open" in network.looked
    assert "got 212,992 to receive and 4,194,304 to send" in buffers.looked
    assert buffers.remedy.startswith(f"sudo sysctl -w net.core.rmem_max={ASKED} ")


@pytest.mark.parametrize(
    ("environment", "lines"),
    [
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, ["emptyDir: {medium: Memory}", "mountPath: /run/vbus"]),
        ({}, ["vbus:/run/vbus", "docker run -v"]),
    ],
)
def test_a_container_that_shares_no_directory_gets_the_lines_to_add(monkeypatch, meeting, environment, lines):
    monkeypatch.setattr(rooms, "_is_container", lambda: True)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    *_, container = rooms.directories([(meeting, None)], near=0)
    assert (container.check, container.verdict) == ("container", "note")
    assert all(line in container.remedy for line in lines)
    assert "container" not in [it.check for it in rooms.directories([(meeting, None)], near=1)]


def test_a_directory_for_one_user_is_told_from_one_for_all(meeting):
    Path(meeting).chmod(0o700)
    assert "only who may write" in rooms.directories([(meeting, None)], near=1)[1].looked
    Path(meeting).chmod(0o1777)
    assert "modes keep users apart" in rooms.directories([(meeting, None)], near=1)[1].looked
