"""The demo and the benchmark, run as a user runs them."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(120)


def vbus_command(*arguments):
    """The command's exit status, its lines as objects, and what it complained about."""
    done = subprocess.run(
        [sys.executable, "-m", "vbus", *arguments], capture_output=True, text=True, timeout=100, check=False
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


PAIRS = {
    ("demo/frames", "viewer"): ("shm", "directory", "yes"),
    ("demo/motion", "viewer"): ("shm", "directory", "payload"),
    ("demo/host", "viewer"): ("udp", "mDNS", "payload"),
    ("demo/frames", "far-viewer"): ("udp", "mDNS", "yes"),
    ("demo/motion", "far-viewer"): ("udp", "mDNS", "payload"),
    ("demo/host", "far-viewer"): ("shm", "directory", "payload"),
}
"""Path, how it was found, and what of it is no copy; for each topic at each viewer."""


def last_of_each_pair(rows):
    """The demo's last word on each, which has samples everywhere."""
    last = {(row["topic"], row["to"]): row for row in rows}
    assert {pair: (row["path"], row["found_by"], row["zero_copy"]) for pair, row in last.items()} == PAIRS
    assert all(row["samples"] > 0 for row in last.values())
    return last


def test_demo_shows_memory_and_network_side_by_side():
    pytest.importorskip("av")
    status, rows, complaint = vbus_command("demo", "--no-containers", "--seconds", "3", "--json")
    assert (status, complaint) == (0, "")
    last_of_each_pair(rows)


def test_demo_needs_neither_root_nor_tools(monkeypatch):
    """Without tools no namespace can be made either: both groups are processes of this host."""
    pytest.importorskip("av")
    monkeypatch.setenv("PATH", "/nowhere")
    status, rows, complaint = vbus_command("demo", "--seconds", "3", "--json")
    assert (status, complaint) == (0, "")
    last_of_each_pair(rows)


@pytest.mark.containers
def test_demo_crosses_containers():
    pytest.importorskip("av")
    from vbus.cli import _containers

    try:
        engine = _containers.find_engine()
    except _containers.NoContainersError as reason:
        pytest.skip(f"no containers: {reason}")
    engine.close()
    status, rows, complaint = vbus_command("demo", "--seconds", "3", "--json")
    assert (status, complaint) == (0, "")
    last = last_of_each_pair(rows)
    if engine.takes_namespaces:
        assert last["demo/frames", "far-viewer"]["host"] == "camera-container"
        assert last["demo/motion", "viewer"]["host"] == "detector-container"


def test_demo_says_what_is_wrong_with_its_video():
    pytest.importorskip("av")
    status, rows, complaint = vbus_command("demo", "--video", "no/such/clip.mp4")
    assert (status, rows) == (1, [])
    assert "'no/such/clip.mp4'" in complaint
    assert "--video" in complaint


def test_demo_ends_with_the_reason_when_the_camera_cannot_play(tmp_path):
    pytest.importorskip("av")
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"this is no video")
    status, _rows, complaint = vbus_command("demo", "--no-containers", "--json", "--video", str(clip))
    assert status == 1
    assert "the camera ended" in complaint


def test_bench_puts_every_figure_beside_its_baseline():
    status, figures, complaint = vbus_command("bench", "--quick", "--json")
    assert (status, complaint) == (0, "")
    ours = [(row["test"], row["size"]) for row in figures if row["of"] == "vbus"]
    theirs = [(row["test"], row["size"]) for row in figures if row["of"] != "vbus"]
    assert ours == theirs
    assert {test for test, _size in ours} == {"latency", "messages", "loans", "fan-out"}
    assert all(row.get("p50_us", 1) > 0 and row.get("per_second", 1) > 0 for row in figures)


def test_bench_puts_every_type_beside_the_same_work_by_hand():
    pytest.importorskip("numpy")
    status, figures, complaint = vbus_command("bench", "types", "--quick", "--json")
    assert (status, complaint) == (0, "")
    assert [row["of"] for row in figures] == ["vbus", "by hand"] * 4
    ours, theirs = figures[::2], figures[1::2]
    assert [(row["test"], row["size"]) for row in ours] == [(row["test"], row["size"]) for row in theirs]
    assert all(row["p50_us"] > 0 for row in figures)
