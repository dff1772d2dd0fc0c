"""Nodes that share a directory, but no memory: over UDP the later finds the earlier, as over shared memory.

`VBUS_SHM` names the directory where neighbours of a test meet. With `meet_over_udp` its nodes meet at ports
of one loopback address instead, which is that of the directory: a node listens at the next port and has
those before it as its peers.
"""

import os
from pathlib import Path

import vbus

__all__ = ["meet_over_udp"]

PORTS = 7001
FIRST_MEETING = 0.5
"""Seconds in which the neighbours that are already there are met; a frozen one, or a stranger, is not."""


def meet_over_udp(directory: str, address: str) -> object:
    """What takes the place of `vbus.Node.__init__`: who would meet in `directory` does so at `address`."""
    open_node = vbus.Node.__init__

    def open_at_next_port(node: vbus.Node, name: str | None = None, **settings: object) -> None:
        if settings.get("shm", directory) != directory or "listen" in settings:
            open_node(node, name, **settings)
            return
        number = _next_number(Path(directory))
        before = [f"{address}:{PORTS + earlier}" for earlier in range(number)]
        network = {
            "shm": False,
            "listen": f"{address}:{PORTS + number}",
            "discovery": ["peers"],
            "peers": before,
        }
        open_node(node, name, **{**settings, **network})
        there = _listening(address)
        node.wait_for_peers(sum(PORTS + earlier in there for earlier in range(number)), FIRST_MEETING)
        node.topics()  # asks the peers, who by their answer have said what they subscribe to

    return open_at_next_port


def _next_number(directory: Path) -> int:
    number = 0
    while True:
        try:
            (directory / f"udp-{number}").touch(exist_ok=False)
        except FileExistsError:
            number += 1
        else:
            return number


def _listening(address: str) -> set[int]:
    """The UDP ports of `address` that somebody has."""
    place = "".join(f"{int(part):02X}" for part in reversed(address.split(".")))
    lines = Path("/proc/net/udp").read_text().splitlines()[1:]
    locals = (line.split()[1].split(":") for line in lines)
    return {int(port, 16) for ip, port in locals if ip == place}


if "LOOPBACK_OF_TEST" in os.environ:
    vbus.Node.__init__ = meet_over_udp(os.environ["VBUS_SHM"], os.environ["LOOPBACK_OF_TEST"])
