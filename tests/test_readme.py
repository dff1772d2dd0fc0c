"""What the README shows, works: its Python blocks are run as they stand.

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

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
PROGRAMS = {block.split()[1]: block for block in BLOCKS if re.match(r"# \w+\.py\n", block)}
SCRIPTS = [block for block in BLOCKS if block not in PROGRAMS.values()]


@pytest.fixture
def environment():
    """A domain of its own, so that nothing else on the machine answers."""
    return {**os.environ, "VBUS_DOMAIN": f"readme-{secrets.token_hex(4)}"}


def test_readme_has_blocks_to_run():
    assert SCRIPTS
    assert set(PROGRAMS) == {"detector.py", "viewer.py"}


@pytest.mark.parametrize("script", SCRIPTS, ids=range(len(SCRIPTS)))
def test_block_runs_to_its_end(script, environment, tmp_path):
    if "numpy" in script:
        pytest.importorskip("numpy")
    file = tmp_path / "block.py"
    file.write_text(script)
    done = subprocess.run(
        [sys.executable, file], env=environment, capture_output=True, text=True, timeout=25, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_first_block_prints_what_the_readme_says(environment, tmp_path):
    promised = re.search(r"It prints `(.*)`\.", README.read_text())
    done = subprocess.run(
        [sys.executable, "-c", SCRIPTS[0]],
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
            file.write_text(PROGRAMS[name])
            running[name] = subprocess.Popen(
                [sys.executable, file],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        seen = [running["viewer.py"].stdout.readline() for _ in range(5)]
        assert all("vision/detections" in line and "cat" in line and "shm" in line for line in seen), seen
    finally:
        for process in running.values():
            process.send_signal(signal.SIGINT)
        ends = {name: process.communicate(timeout=10) for name, process in running.items()}
    for name, (_out, err) in ends.items():
        assert err.rstrip().endswith("KeyboardInterrupt"), f"{name}: {err}"


def test_every_command_of_the_readme_exists():
    commands = set(re.findall(r"^vbus (\w+)", README.read_text(), re.MULTILINE))
    said = subprocess.run(
        [sys.executable, "-m", "vbus", "--help"], capture_output=True, text=True, timeout=25, check=True
    ).stdout
    assert [name for name in sorted(commands) if name not in said] == []
