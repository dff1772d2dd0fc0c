"""The interfaces of this host, and which of them are meant."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import ifaddr

from .static import resolved, split

__all__ = ["Interface", "announced", "choose", "open_changes", "present", "spoken"]

Network: TypeAlias = ipaddress.IPv4Interface | ipaddress.IPv6Interface


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface that is up and running, with its addresses."""

    name: str
    index: int
    loopback: bool
    addresses: tuple[Network, ...]


def present() -> list[Interface]:
    """What is up now, by index: the hardware is before bridges of containers."""
    found: list[Interface] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for adapter in ifaddr.get_adapters():
            flags = _flags(asked, adapter.name)
            if flags & _IFF_UP and flags & _IFF_RUNNING and adapter.index is not None:
                addresses = tuple(_network(ip) for ip in adapter.ips)
                found.append(Interface(adapter.name, adapter.index, bool(flags & _IFF_LOOPBACK), addresses))
    return sorted(found, key=lambda interface: (interface.loopback, interface.index, interface.name))


def choose(
    all_present: Iterable[Interface], wanted: Sequence[str], listen: str
) -> tuple[list[Interface], list[str]]:
    """Of what is there, what is meant, and which of `wanted` is not there.

    `wanted` has names (all addresses of it) and addresses (only these); empty, it means all. `listen`, an
    "address:port", leaves only the addresses that are listened at. An interface that nobody named and that
    has nothing but link-local addresses counts only if there is no better one: the ports of a bridge are
    such, one for each container of a host.
    """
    # The first is what the socket is bound to.
    host = ipaddress.ip_address(resolved(*split(listen))[0][0].partition("%")[0])
    chosen: list[Interface] = []
    for interface in all_present:
        if wanted and interface.name not in wanted:
            addresses = tuple(its for its in interface.addresses if str(its.ip) in wanted)
        else:
            addresses = interface.addresses
        addresses = tuple(its for its in addresses if _is_heard(its, host))
        if addresses:
            chosen.append(replace(interface, addresses=addresses))
    if not wanted and any(_is_configured(interface) and not interface.loopback for interface in chosen):
        chosen = [interface for interface in chosen if _is_configured(interface)]
    here = {interface.name for interface in chosen}
    here |= {str(its.ip) for interface in chosen for its in interface.addresses}
    return chosen, [name for name in wanted if name not in here]


def spoken(chosen: Iterable[Interface]) -> list[str | int]:
    """Where mDNS is spoken, as python-zeroconf wants it: per interface one IPv4 address, and the index for
    IPv6 if there may be hosts that have nothing else. Loopback has no multicast by IPv6."""
    places: list[str | int] = []
    for interface in chosen:
        first = next((its for its in interface.addresses if its.version == 4), None)
        if first is not None:
            places.append(str(first.ip))
        sixth = [its for its in interface.addresses if its.version == 6]
        if (
            not interface.loopback
            and sixth
            and (first is None or any(not its.ip.is_link_local for its in sixth))
        ):
            places.append(interface.index)
    return list(dict.fromkeys(places))


def announced(chosen: Iterable[Interface], limit: int) -> list[str]:
    """The addresses to tell others, the most useful first: those of loopback only if there are no others."""
    addresses = [its.ip for interface in chosen for its in interface.addresses]
    abroad = [ip for ip in addresses if not ip.is_loopback]
    ordered = sorted(abroad or addresses, key=lambda ip: (ip.is_link_local, ip.version))
    return list(dict.fromkeys(str(ip) for ip in ordered))[:limit]


def open_changes() -> socket.socket | None:
    """A socket that is readable after interfaces or addresses changed; None where it may not be had."""
    try:
        changes = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_ROUTE)
    except OSError:
        return None
    try:
        changes.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
    except OSError:
        changes.close()
        return None
    return changes


def read_changes(changes: socket.socket) -> None:
    """Take what waits: that there was something is all that matters, so an overrun does no harm."""
    for _ in range(MAX_READS):
        try:
            changes.recv(1)  # the rest of it is thrown away
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS: more came than it could keep
            continue


MAX_READS = 64

_IFF_UP, _IFF_LOOPBACK, _IFF_RUNNING = 0x1, 0x8, 0x40
_SIOCGIFFLAGS = 0x8913
_NETLINK_ROUTE = 0
_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x1, 0x10, 0x100


def _flags(asked: socket.socket, name: str) -> int:
    request = struct.pack("16sh22x", name.encode()[:15], 0)
    try:
        answer = fcntl.ioctl(asked, _SIOCGIFFLAGS, request)
    except OSError:  # it has just gone
        return 0
    flags: int = struct.unpack_from("H", answer, 16)[0]
    return flags


def _network(ip: ifaddr.IP) -> Network:
    address = ip.ip if isinstance(ip.ip, str) else ip.ip[0].partition("%")[0]
    return ipaddress.ip_interface(f"{address}/{ip.network_prefix}")


def _is_configured(interface: Interface) -> bool:
    """Whether somebody gave it an address."""
    return any(not its.ip.is_link_local for its in interface.addresses)


def _is_heard(its: Network, host: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether who listens at `host` is reached by this address; `::` is both families."""
    if host.is_unspecified:
        return host.version == 6 or its.version == 4
    return its.ip == host
