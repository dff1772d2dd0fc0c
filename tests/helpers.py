"""What stories about processes share: programs that talk line by line, payloads that show a tear, and counts
of what a process has open.

Nothing here sleeps in order to wait for something: programs say when they are where a test wants them.
"""

import contextlib
import gc
import os
import random
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

WATCHDOG = 20.0
"""Seconds after which something that must happen is taken to hang. A test asserts nothing by it."""

PRELUDE = """
import gc, os, signal, sys, threading, time
import vbus
import loopback
from patterns import is_whole, pattern

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def hear():
    line = sys.stdin.readline()
    if not line:
        os._exit(3)  # the test is gone
    return line.strip()
"""


class Program:
    """A Python program in a process of its own, of this test's domain, that talks line by line.

    Its source is a text, which has `say`, `hear` and the payloads of `patterns` at hand, or arguments of
    Python.
    """

    def __init__(self, source: str | list[str], domain: str, meeting: str, **settings: object) -> None:
        environment = {
            **os.environ,
            "VBUS_DOMAIN": domain,
            "VBUS_SHM": meeting,
            "PYTHONPATH": str(PROGRAMS),
            "PYTHONFAULTHANDLER": "1",
        }
        environment.update(settings.pop("environment", {}))
        options = settings.pop("options", [])
        self.process = subprocess.Popen(
            [sys.executable, *options, *(source if isinstance(source, list) else _script(source))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            **settings,
        )
        self._heard = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    def hear(self, seconds: float = WATCHDOG) -> str:
        """The next line that the program says."""
        until = time.monotonic() + seconds
        while b"\n" not in self._heard:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, until - time.monotonic()))
            chunk = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            if not chunk:
                state = "hangs" if not ready else "ended"
                if not ready:
                    self.signal(signal.SIGABRT)  # its threads' stacks come with the failure
                else:
                    self.kill()
                pytest.fail(f"the program {state}; it said {self._heard!r} and {self.errors()!r}")
            self._heard += chunk
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode()

    def expect(self, *words: object, seconds: float = WATCHDOG) -> None:
        """The program says just this."""
        heard, expected = self.hear(seconds), " ".join(map(str, words))
        if heard != expected:
            self.kill()
            pytest.fail(f"expected {expected!r}, heard {heard!r}; errors: {self.errors()!r}")

    def tell(self, *words: object) -> None:
        """The program hears a line."""
        self.process.stdin.write((" ".join(map(str, words)) + "\n").encode())
        self.process.stdin.flush()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def stop(self) -> None:
        """Freezes it; returns when every thread of it stands still."""
        self.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def go_on(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9; returns when it is dead."""
        self.process.kill()
        self.process.wait(WATCHDOG)

    def finish(self, status: int = 0, errors: str = "") -> None:
        """It ends by itself, so and with no more on stderr than this."""
        try:
            self.process.stdin.close()
            self.process.wait(WATCHDOG)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGABRT)  # its threads' stacks come with the failure
            self.process.wait(WATCHDOG)
            pytest.fail(f"it does not end: {self.errors()}")
        heard = self.errors()
        if (self.process.returncode, heard) != (status, errors):
            ended = f"it ended with {self.process.returncode}, not {status}"
            pytest.fail(f"{ended}, and said: {heard or 'nothing'}")

    def errors(self) -> str:
        """What it said on stderr; it is dead, or about to be."""
        self.process.wait(WATCHDOG)
        if self.process.stderr.closed:
            return ""
        # Whoever it forked may live on with the pipe: read what there is.
        os.set_blocking(self.process.stderr.fileno(), False)
        return (self.process.stderr.read() or b"").decode()

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(OSError):
                pipe.close()


def _script(source: str) -> list[str]:
    return ["-c", PRELUDE + textwrap.dedent(source)]


PROGRAMS = Path(__file__).parent / "programs"

Start = Callable[..., Program]


@pytest.fixture
def start(domain: str, meeting: str) -> Iterator[Start]:
    """Starts programs of this test's domain; they are killed at the end."""
    programs: list[Program] = []

    def start_program(source: str | list[str], **settings: object) -> Program:
        program = Program(source, domain, meeting, **settings)
        programs.append(program)
        return program

    yield start_program
    for program in programs:
        program.close()


# ---- what a process has ---------------------------------------------------------------------------


class Belongings(NamedTuple):
    """What a process has open and mapped, but for the segments of its own publishers: `stats().memory` tells
    of those."""

    descriptors: int
    mappings: int

    @classmethod
    def of(cls, pid: int, feeder: int | None = None) -> "Belongings":
        """The process `feeder` shows its segments to this one, so they do not count either."""
        gc.collect()
        files = _files(pid)
        own = sum("memfd:vbus-data" in file for file in files)
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
        shown = sum("memfd:vbus-data" in file for file in _files(feeder)) if feeder else 0
        return cls(len(files) - own, sum("memfd:vbus" in line for line in maps) - own - shown)

    def at_most(self, before: "Belongings", slack: int = 8) -> bool:
        """The slack is for what is held for a moment: far less than one per event that a test repeats."""
        return all(now <= then + slack for now, then in zip(self, before))


def _files(pid: int) -> list[str]:
    files = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            files.append(str(Path(f"/proc/{pid}/fd/{number}").readlink()))
    return files


def until(true: Callable[[], object], what: str, seconds: float = WATCHDOG) -> None:
    """Looks again and again until it is true; for what nothing tells."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.001)


def is_asleep(thread: int, pid: int | str = "self") -> bool:
    """Whether a thread sleeps in the kernel; nothing else tells that a call has begun to wait."""
    stat = Path(f"/proc/{pid}/task/{thread}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "S"


class Survivor(threading.Thread):
    """A thread of this process; what it raises comes out of `join`."""

    def __init__(self, run) -> None:
        super().__init__(daemon=True)
        self._run, self._error = run, None
        self.start()

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self._error = error

    def join(self) -> None:
        super().join(WATCHDOG)
        assert not self.is_alive(), "a survivor hangs"
        self.check()

    def check(self) -> None:
        if self._error is not None:
            raise self._error


# ---- counts -------------------------------------------------------------------------------------


def check_conservation(*endpoints) -> None:
    """`sent == delivered + waiting + dropped + lost`, in the total of subscribers and on every link."""
    for endpoint in endpoints:
        stats = endpoint.stats()
        counts = list(stats.links)
        if hasattr(stats, "callback_errors"):
            counts.append(stats)
        for it in counts:
            assert it.sent == it.delivered + it.waiting + sum(it.dropped.values()) + it.lost, it


# ---- chance -------------------------------------------------------------------------------------


@pytest.fixture
def chance() -> random.Random:
    """The dice of a test. The seed is printed, and VBUS_SEED repeats it."""
    seed = SEED if SEED is not None else random.randrange(1 << 32)
    print(f"VBUS_SEED={seed}")
    return random.Random(seed)


# Read before the tests' own environment is made.
SEED = int(os.environ["VBUS_SEED"]) if "VBUS_SEED" in os.environ else None
SOAK = os.environ.get("VBUS_SOAK") == "1"
