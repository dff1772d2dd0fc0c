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


def test_demo_shows_real_frames_without_a_copy():
    pytest.importorskip("av")
    status, rows, complaint = vbus_command("demo", "--no-containers", "--seconds", "3", "--json")
    assert (status, complaint) == (0, "")
    last = {row["topic"]: row for row in rows}
    assert set(last) == {"demo/frames", "demo/motion", "demo/host"}
    assert all(row["samples"] > 0 and row["path"] == "shm" and row["drops"] == 0 for row in last.values())
    assert last["demo/frames"]["zero_copy"] == "yes"
    assert last["demo/motion"]["zero_copy"] == "payload"


@pytest.mark.containers
def test_demo_crosses_containers():
    pytest.importorskip("av")
    from vbus.cli import _containers

    try:
        _containers.find_engine().close()
    except _containers.NoContainersError as reason:
        pytest.skip(f"no containers: {reason}")
    status, rows, complaint = vbus_command("demo", "--seconds", "3", "--json")
    assert (status, complaint) == (0, "")
    last = {row["topic"]: row for row in rows}
    assert last["demo/frames"]["host"] == "camera-container"
    assert last["demo/frames"]["zero_copy"] == "yes"
    assert last["demo/motion"]["host"] == "detector-container"


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
