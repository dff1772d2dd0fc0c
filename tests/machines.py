"""Virtual machines for tests: QEMU without KVM, on the same switch as hosts in namespaces.

Each is its own kernel, memory and clock, with vbus installed from its wheel (`guest.py` says of what). A test
speaks to one as to a puppet on any other host. They boot in some seconds, so they are booted only where
`./dev test --machines` asks for it.
"""

import contextlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest import KERNEL, QEMU, ROOT, NoMachinesError, require
from helpers import WATCHDOG, until
from hosts import Puppet

__all__ = ["ASKED_FOR", "boot", "machines_can_be_booted"]

ASKED_FOR = os.environ.get("VBUS_MACHINES") == "1"
"""Read before the tests' own environment is made."""

MEMORY = "384"
CPU = "max"
NO_DICE = ",rdrand=off,rdseed=off"
# The first process is a Python, which else wants random numbers earlier than such a machine has any.
BOOT = "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable PYTHONHASHSEED=0"
BOOT_LIMIT = 120.0
"""Seconds; emulated, and among others on a busy machine."""

# Ends with the test that started it, whatever becomes of that.
BESIDE = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture(scope="module")
def machines_can_be_booted() -> None:
    """Skips where none can be made, with the reason."""
    try:
        require()
    except NoMachinesError as reason:
        pytest.skip(f"no virtual machines: {reason}")


class Machine(Puppet):
    """A virtual machine. It has eth0, as hosts on a switch do."""

    def __init__(self, start, switch, digit: str, directory: Path, number: int, dice: bool) -> None:
        self.digit, self.program = digit, None
        self.monitor = Monitor(directory / f"{digit}.monitor")
        self.console = directory / f"{digit}.console"
        port = f"to-{digit}"
        switch.ip("tuntap", "add", "name", port, "mode", "tap")
        switch.ip("link", "set", port, "master", "br0", "up")
        self._start = start
        self._command = [
            *("-c", BESIDE, "nsenter", switch.net),
            *(QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", CPU if dice else CPU + NO_DICE),
            *("-m", MEMORY, "-kernel", str(KERNEL), "-initrd", str(ROOT)),
            *("-append", BOOT),
            *("-chardev", f"file,id=console,path={self.console}", "-serial", "chardev:console"),
            *("-chardev", "stdio,id=line,signal=off", "-serial", "chardev:line"),
            *("-netdev", f"tap,id=net,ifname={port},script=no,downscript=no"),
            *("-device", f"virtio-net-pci,netdev=net,mac=52:54:00:00:00:{number:02x}"),
            *("-qmp", f"unix:{self.monitor.path},server=on,wait=off"),
        ]

    def switch_on(self, saved: Path | None = None) -> None:
        """It boots; or goes on as the one that was saved."""
        self.monitor.close()
        self.monitor.path.unlink(missing_ok=True)
        self.program = self._start([*self._command, *(["-incoming", f"exec:cat {saved}"] if saved else [])])

    def is_up(self) -> None:
        """Waits until it obeys."""
        self.program.expect("ready", seconds=BOOT_LIMIT)
        self.do("import subprocess")

    def goes_on(self) -> None:
        """Waits until all that was saved is back, and has it go on from there."""
        until(lambda: self.monitor.call("query-status")["status"] == "paused", "it is back", BOOT_LIMIT)
        self.resume()

    def ip(self, *words: str) -> None:
        """The tool `ip`, on this machine."""
        self.run("ip", *words)

    def run(self, *words: str) -> str:
        """What a tool says there."""
        return self.ask(f"subprocess.run({words!r}, check=True, capture_output=True, text=True).stdout")

    def address(self, *addresses: str) -> None:
        """Has eth0 up, with these."""
        for address in addresses:
            self.ip("addr", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
        self.ip("link", "set", "eth0", "up")

    def suspend(self) -> None:
        """It stands still, its clock too."""
        self.monitor.call("stop")

    def resume(self) -> None:
        """It goes on where it stood."""
        self.monitor.call("cont")

    def save(self, file: Path) -> None:
        """All that it is, memory and all, into a file; it stands still from now on."""
        self.suspend()
        self.monitor.call("migrate", uri=f"exec:cat > {file}")
        until(
            lambda: self.monitor.call("query-migrate").get("status") == "completed", "it is saved", BOOT_LIMIT
        )

    def power_cut(self) -> None:
        """It is gone, at once."""
        self.program.kill()


class Monitor:
    """QEMU's own ear, for what is done to a machine from outside."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream = None

    def call(self, command: str, **arguments: object) -> dict:
        """Has it done; what it answers."""
        if self._stream is None:
            self._stream = self._connect()
            self.call("qmp_capabilities")
        self._stream.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._stream.flush()
        for line in self._stream:
            answer = json.loads(line)
            if "error" in answer:
                pytest.fail(f"QEMU, told to {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        pytest.fail(f"QEMU is gone, told to {command}")

    def _connect(self):
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(WATCHDOG)
            until(lambda: line.connect_ex(str(self.path)) == 0, "QEMU listens")
            stream = line.makefile("rw")
        stream.readline()  # its greeting
        return stream

    def close(self) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError):
                self._stream.close()
        self._stream = None


@pytest.fixture
def boot(start, switch) -> Iterator:
    """Switches machines on: `boot("left", "right")` gives both, up and without an address.

    With `saved=file` each is a copy of the one that was saved there, hardware address and all; without
    `dice`, the processor has no random numbers to give.
    """
    directory = Path(tempfile.mkdtemp(prefix="vbus-", dir="/tmp"))
    machines: list[Machine] = []

    def boot_all(*names: str, saved: Path | None = None, dice: bool = True) -> list[Machine]:
        for name in names:
            machines.append(Machine(start, switch, name, directory, len(machines) + 1, dice))
            machines[-1].switch_on(saved)
        booted = machines[-len(names) :]
        for machine in booted:
            machine.is_up() if saved is None else machine.goes_on()
        return booted

    yield boot_all
    for machine in machines:
        machine.monitor.close()
        if machine.console.exists():
            print(f"the console of {machine.digit}:", machine.console.read_text(errors="replace"), sep="\n")
    shutil.rmtree(directory)
