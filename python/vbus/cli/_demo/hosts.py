"""Hosts for the demo: network namespaces with a switch between them; the host's own network is not touched.

Each lives as long as a small program in it, which ends when its input does: with this process, however that
ends.
"""

import os
import shutil
import subprocess
from types import TracebackType

TOOLS = ("unshare", "nsenter", "ip", "sh")
# The host's name is one's own there too.
ENTER = "echo {name} >/proc/sys/kernel/hostname; ip link set lo up && echo ready && exec cat"
SWITCH = "ip link add name br0 type bridge mcast_snooping 0 forward_delay 0 && ip link set br0 up"
PLUG = (
    "ip link add name port{number} type veth peer name eth0 netns {pid} && "
    "ip link set port{number} master br0 up"
)
ADDRESS = "ip addr add 10.89.0.{number}/24 dev eth0 && ip link set eth0 up"


class NoHostsError(Exception):
    """No namespaces can be made here; the text says what was tried and what it answered."""


class Hosts:
    """A switch, and what is plugged into it."""

    def __init__(self) -> None:
        for tool in TOOLS:
            if shutil.which(tool) is None:
                raise NoHostsError(f"there is no `{tool}`")
        if os.geteuid():
            raise NoHostsError("only root may make network namespaces")
        self._holders: list[subprocess.Popen[str]] = []
        try:
            self._switch = self._hold("switch")
            within(self._switch, SWITCH)
        except NoHostsError:
            self.close()
            raise

    def __enter__(self) -> "Hosts":
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, name: str) -> int:
        """One more host on the switch; the pid of the program that holds it."""
        pid, number = self._hold(name), len(self._holders)
        within(self._switch, PLUG.format(number=number, pid=pid))
        within(pid, ADDRESS.format(number=number))
        return pid

    def close(self) -> None:
        """Nothing is left of them."""
        for holder in self._holders:
            holder.communicate()
        self._holders.clear()

    def _hold(self, name: str) -> int:
        holder = subprocess.Popen(
            ["unshare", "--net", "--uts", "sh", "-c", ENTER.format(name=name)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._holders.append(holder)
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != "ready\n":
            raise NoHostsError(holder.stderr.read().strip() or "unshare failed")
        return holder.pid


def inside(pid: int) -> list[str]:
    """What a command begins with that runs on a host."""
    return ["nsenter", f"--target={pid}", "--net", "--uts"]


def within(pid: int, script: str) -> None:
    """Run it on a host."""
    done = subprocess.run([*inside(pid), "sh", "-c", script], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoHostsError(done.stderr.strip() or f"`{script}` failed")
