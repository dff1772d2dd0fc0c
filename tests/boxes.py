"""Containers on a network for tests: each has a cable to a switch, and does what the test says.

Their networks are made here, not by the engine, so nothing of the host's is touched and no plugin is needed.
"""

import os
import select
import time
from pathlib import Path

import pytest
from helpers import PROGRAMS, WATCHDOG
from hosts import SECRET, Host, Puppet

from vbus.cli import _containers

__all__ = ["boxes", "boxes_can_be_plugged", "engine"]

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="session")
def engine():
    """A container engine that was seen to work."""
    try:
        found = _containers.find_engine(also_mounted=[PROGRAMS, EXAMPLES])
    except _containers.NoContainersError as reason:
        pytest.skip(f"no containers: {reason}")
    yield found
    found.close()


@pytest.fixture
def boxes_can_be_plugged(engine, hosts_can_be_made):
    """Skips where containers cannot be given a network that was made here."""
    if "podman" not in engine.program:
        pytest.skip("no network for containers: only podman takes one that was made by others")


class Mouth:
    """What is said to the program in a container, and what it says; its errors come the same way."""

    def __init__(self, container):
        self.container = container
        self.process = container.process
        self._heard = b""
        self._noise = []

    def tell(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def hear(self, seconds=WATCHDOG, wanted=lambda line: line.startswith(("(", "ready"))):
        """The next line that is wanted; what else is printed comes with the failure."""
        end = time.monotonic() + seconds
        while True:
            while b"\n" in self._heard:
                begun, _, self._heard = self._heard.partition(b"\n")
                line = begun.decode(errors="replace")
                if wanted(line):
                    return line
                self._noise.append(line)
            pipe = self.process.stdout.fileno()
            ready, _, _ = select.select([pipe], [], [], max(0, end - time.monotonic()))
            chunk = os.read(pipe, 65536) if ready else b""
            if not chunk:
                state = "ended" if ready else "hangs"
                pytest.fail(f"the container {state}; it said {self._heard!r} and {self._noise[-50:]}")
            self._heard += chunk

    def expect(self, words, seconds=WATCHDOG):
        assert self.hear(seconds) == words


class Box(Puppet):
    """A container on the switch, at an address of its own."""

    def __init__(self, engine, cable, name, *, flags=(), environment=None):
        self.digit = name
        self.cable = cable
        self.container = engine.start(
            ["-c", "import puppet; puppet.obey(own_network=False)"],
            flags=flags,
            environment={"PYTHONPATH": python_path(), "VBUS_SECRET": SECRET, **(environment or {})},
            network=f"ns:/proc/{cable.program.pid}/ns/net",
        )
        self.program = Mouth(self.container)
        self.program.expect("ready")

    def ip(self, *words):
        self.cable.ip(*words)


def python_path():
    """As in any container of the engine, and the tests' programs."""
    return os.pathsep.join(map(str, [PROGRAMS, *_containers.package_directories()]))


class Boxes:
    """The containers of one test, on one switch, in one domain. They share nothing that is not given."""

    def __init__(self, engine, start, switch, domain):
        self.engine, self.switch, self.domain = engine, switch, domain
        self._start = start
        self._made = []

    def cable(self, name, *addresses):
        """A network of its own for something, plugged into the switch."""
        holder = self._start("import finders; finders.enter_own_network(); say('ready'); hear()")
        cable = Host(name, holder)
        cable.loopback()
        self.switch.plug(cable, *addresses)
        return cable

    def make(self, name, *flags, cable=None, **environment):
        """A container; the n-th has the address 10.0.0.n if it is not given the network of another."""
        settings = {"VBUS_DOMAIN": self.domain, **environment}
        cable = cable or self.cable(name, f"10.0.0.{len(self._made) + 1}/24")
        box = Box(self.engine, cable, name, flags=flags, environment=settings)
        self._made.append(box)
        return box

    def run(self, *arguments, cable, flags=(), **environment):
        """A container that runs this Python with these arguments; what it says can be heard."""
        container = self.engine.start(
            arguments,
            flags=flags,
            environment={"VBUS_DOMAIN": self.domain, **environment},
            network=f"ns:/proc/{cable.program.pid}/ns/net",
        )
        self._made.append(Mouth(container))
        return self._made[-1]

    def close(self):
        """Those that joined another's namespace end before it."""
        for box in reversed(self._made):
            box.container.remove()


@pytest.fixture
def boxes(engine, start, switch, domain, boxes_can_be_plugged):
    result = Boxes(engine, start, switch, domain)
    yield result
    result.close()
