"""What the README and the tutorial show, works: their Python blocks are run as they stand.

A block that begins with a file name in a comment is a program: these run side by side until each has
printed a few lines, then Ctrl-C ends them. Every other block runs to its end by itself.
"""

import os
import re
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = (README, ROOT / "docs" / "tutorial.md")


def blocks_of(page: Path) -> tuple[list[str], dict[str, str]]:
    """Its blocks of Python: those that end by themselves, and programs by their names."""
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    programs = {block.split()[1]: block for block in blocks if re.match(r"# \w+\.py\n", block)}
    return [block for block in blocks if block not in programs.values()], programs


SCRIPTS = {f"{page.stem}-{at}": script for page in PAGES for at, script in enumerate(blocks_of(page)[0])}


@pytest.fixture
def environment():
    """A domain of its own, so that nothing else on the machine answers."""
    return {**os.environ, "VBUS_DOMAIN": f"readme-{secrets.token_hex(4)}"}


def test_pages_have_blocks_to_run():
    scripts, programs = blocks_of(README)
    assert scripts
    assert set(programs) == {"detector.py", "viewer.py"}
    scripts, programs = blocks_of(PAGES[1])
    assert len(scripts) >= 5
    assert set(programs) == {"camera.py", "detector.py"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_block_runs_to_its_end(name, environment, tmp_path):
    script = SCRIPTS[name]
    if "numpy" in script:
        pytest.importorskip("numpy")
    file = tmp_path / "block.py"
    file.write_text(script)
    done = subprocess.run(
        [sys.executable, file], env=environment, capture_output=True, text=True, timeout=25, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr or "mismatch" in script, "what does not fit is logged, nothing else"
    assert done.stdout


def test_first_block_prints_what_the_readme_says(environment, tmp_path):
    promised = re.search(r"It prints `(.*)`\.", README.read_text())
    done = subprocess.run(
        [sys.executable, "-c", SCRIPTS["README-0"]],
        env=environment,
        capture_output=True,
        text=True,
        timeout=25,
        check=True,
    )
    assert done.stdout.strip() == promised.group(1)


@pytest.mark.contract("two programs on one machine find each other")
@pytest.mark.parametrize("order", [("detector.py", "viewer.py"), ("viewer.py", "detector.py")], ids="-".join)
def test_programs_find_each_other_in_any_order(order, environment, tmp_path):
    running = {}
    try:
        for name in order:
            file = tmp_path / name
            file.write_text(blocks_of(README)[1][name])
            running[name] = start_program(file, environment)
        seen = [running["viewer.py"].stdout.readline() for _ in range(5)]
        assert all("vision/detections" in line and "cat" in line and "shm" in line for line in seen), seen
    finally:
        end_with_ctrl_c(running)


def test_the_camera_of_the_tutorial_is_seen_by_its_detector(environment, tmp_path):
    pytest.importorskip("numpy")
    running = {}
    try:
        for name, source in blocks_of(PAGES[1])[1].items():
            (tmp_path / name).write_text(source)
            running[name] = start_program(tmp_path / name, environment)
        command = [
            sys.executable,
            "-m",
            "vbus",
            "echo",
            "vision/brightness",
            "--count",
            "3",
            "--timeout",
            "20",
        ]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=25
        )
        assert len(done.stdout.splitlines()) >= 3
        assert "'mean'" in done.stdout
    finally:
        end_with_ctrl_c(running)


def start_program(file: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, file], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def end_with_ctrl_c(running: dict[str, subprocess.Popen[str]]) -> None:
    for process in running.values():
        process.send_signal(signal.SIGINT)
    ends = {name: process.communicate(timeout=10) for name, process in running.items()}
    for name, (_out, err) in ends.items():
        assert err.rstrip().endswith("KeyboardInterrupt"), f"{name}: {err}"


def test_every_command_of_the_pages_exists():
    text = "\n".join(page.read_text() for page in PAGES)
    commands = set(re.findall(r"^vbus (\w+)|`vbus (\w+)", text, re.MULTILINE))
    commands = {name for found in commands for name in found if name}
    said = subprocess.run(
        [sys.executable, "-m", "vbus", "--help"], capture_output=True, text=True, timeout=25, check=True
    ).stdout
    assert [name for name in sorted(commands) if name not in said] == []
