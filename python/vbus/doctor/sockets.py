"""UDP: what the kernel lets a socket hold, whether it cuts batches, and how large packets may be."""

from __future__ import annotations

import fcntl
import socket
import struct

from . import Check

__all__ = ["batches", "of_survey"]

PART = 1000
"""Bytes of each packet of the batch that is tried."""
PATIENCE = 1.0
LEAST_MTU = 1248
"""Datagrams of 1,200 bytes, and the headers of IPv6."""


def batches() -> Check:
    """Whether the kernel cuts what is handed over in one go (GSO)."""
    try:
        parts = _send_one_batch()
    except OSError as error:
        why = f"the kernel does not cut batches for us (GSO): {error.strerror or error}"
        return Check(
            "batches", "note", f"{why}; sending costs several times as much", "uname -r  # 4.18 has it"
        )
    if parts != [PART, PART, PART // 2]:
        return Check("batches", "note", f"a batch of {PART * 5 // 2} bytes came as {parts}, not in packets")
    return Check("batches", "ok", "the kernel cuts batches into packets (GSO)")


def of_survey(survey: dict[str, int] | None, addresses: tuple[str, ...]) -> list[Check]:
    """What a node's socket got and saw; nothing without a network."""
    if survey is None:
        return [Check("network", "ok", 'none: listen is "off"')]
    return [_network(survey, addresses), _sizes(), _buffers(survey)]


def _network(survey: dict[str, int], addresses: tuple[str, ...]) -> Check:
    looked = f"UDP at {', '.join(addresses) or 'no address'}; {survey['received']:,} packets came"
    if survey["forged"] > 0:
        looked += f", {survey['forged']:,} of which did not open"
    if survey["uncut"] > 0:
        looked += f"; a network card refused {survey['uncut']:,} batches"
    if not addresses:
        return Check("network", "failed", looked, "ip address  # an interface must be up and have an address")
    return Check("network", "ok", looked)


def _sizes() -> Check:
    """How large packets may be on the first links."""
    sizes: dict[str, int] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(asked, _SIOCGIFMTU, struct.pack("16sI", name.encode(), 0))
            except OSError:
                continue  # it has just gone
            sizes[name] = struct.unpack("16sI", answer)[1]
    looked = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    small = [name for name, size in sizes.items() if size < LEAST_MTU]
    if not small:
        return Check("mtu", "ok", looked)
    remedy = f"sudo ip link set dev {small[0]} mtu 1500"
    return Check("mtu", "failed", f"{looked}; vbus needs {LEAST_MTU:,} bytes", remedy)


def _buffers(survey: dict[str, int]) -> Check:
    """The kernel counts twice what it is asked for."""
    asked = survey["buffers_asked"]
    receive, send = survey["receive_buffer"] // 2, survey["send_buffer"] // 2
    looked = f"asked for {asked:,} bytes each way, got {receive:,} to receive and {send:,} to send"
    if min(receive, send) >= asked:
        return Check("buffers", "ok", looked)
    limits = [
        f"net.core.{name}_max={asked}" for name, got in (("rmem", receive), ("wmem", send)) if got < asked
    ]
    looked += ": what comes faster than it is read is lost and sent again"
    return Check(
        "buffers", "note", looked, f"sudo sysctl -w {' '.join(limits)}  # on the host, if this is a container"
    )


def _send_one_batch() -> list[int]:
    """The bytes of each packet that came of two and a half."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there,
    ):
        there.bind(("127.0.0.1", 0))
        there.settimeout(PATIENCE)
        here.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, PART)
        here.sendto(bytes(PART * 5 // 2), there.getsockname())
        return [len(there.recv(PART * 3)) for _ in range(3)]


_UDP_SEGMENT = 103
_SIOCGIFMTU = 0x8921
