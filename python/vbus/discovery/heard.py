"""Who announces itself by mDNS, told to the core. Anybody may say anything, so all of it is bounded.

A node has at most 8 addresses, and 1,024 nodes are kept; who was not heard for longest makes room. An address
is believed if it can be one of the same site, so that nobody makes a domain knock at strangers.
"""

from __future__ import annotations

import ipaddress
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from vbus.records import Candidate

from .announcement import VERSION, node_of, read

if TYPE_CHECKING:
    from vbus._vbus import Node as Core

    from . import Address
    from .interfaces import Network

__all__ = ["MAX_ADDRESSES", "MAX_NODES", "Heard"]

MAX_NODES = 1024
MAX_ADDRESSES = 8

IP: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


class Heard:
    """The nodes that are announced and are of this node's domain."""

    def __init__(self, core: Core, digest: str, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._core = core
        self._digest = digest
        self._clock_ns = clock_ns
        self._own: frozenset[IP] = frozenset()
        self._networks: tuple[Network, ...] = ()
        self._nodes: dict[str, Candidate] = {}
        self.ignored = Counter[str]()
        self.last_ns: int | None = None

    def live_at(self, networks: Iterable[Network]) -> None:
        """The addresses of this host are these now."""
        self._networks = tuple(networks)
        self._own = frozenset(its.ip for its in self._networks if not its.ip.is_loopback)

    def is_wanted(self, name: str) -> bool:
        """Whether this can be the name of another node."""
        node = node_of(name)
        if node is None:
            self.ignored["malformed"] += 1
        return node is not None and node != self._core.id

    def announced(self, name: str, said: Mapping[bytes, bytes | None], addresses: Iterable[str]) -> None:
        """Somebody says so; `addresses` may have scopes."""
        node = node_of(name)
        if node is None or node == self._core.id:
            return
        self.last_ns = self._clock_ns()
        told = read(said)
        if told is None:
            self.ignored["malformed"] += 1
        elif told.version != VERSION:
            self.ignored["other version"] += 1
        elif told.digest != self._digest:
            self.ignored["other domain"] += 1
        else:
            believed = self._believed(addresses)
            if believed:
                self._keep(node, [(address, told.port) for address in believed])
            else:
                self.ignored["no usable address"] += 1

    def withdrawn(self, name: str) -> None:
        """It said goodbye, or was not heard for long."""
        node = node_of(name)
        if node is not None and self._nodes.pop(node, None) is not None:
            self._core.remove_peer(node, "mdns")

    def candidates(self) -> tuple[Candidate, ...]:
        """Those that were heard and are of this domain."""
        return tuple(self._nodes.copy().values())

    def _keep(self, node: str, addresses: list[Address]) -> None:
        before = self._nodes.pop(node, None)
        if before is None and len(self._nodes) >= MAX_NODES:
            oldest = next(iter(self._nodes))
            del self._nodes[oldest]
            self._core.remove_peer(oldest, "mdns")
            self.ignored["too many nodes"] += 1
        elif before is not None and not set(before.addresses) <= set(addresses):
            self._core.remove_peer(node, "mdns")  # some are gone, and need not be tried for ever
        self._nodes[node] = Candidate(node, tuple(addresses), self.last_ns)
        self._core.add_peer(node, addresses, "mdns")

    def _believed(self, addresses: Iterable[str]) -> list[str]:
        """Those that may be tried, at most 8.

        Who lives at an address of this host is on this host, or on a clone of it: there, loopback is tried as
        well, because without a secret only that is trusted. Loopback that is announced counts if nothing else
        is, which is so on a host without a network.
        """
        parsed: dict[IP, None] = {}
        for address in addresses:
            ip = ipaddress.ip_address(address)
            if not (ip.is_unspecified or ip.is_multicast) and self._is_of_this_site(ip):
                parsed[ip] = None
        abroad = [ip for ip in parsed if not ip.is_loopback]
        kept = [str(ip) for ip in (abroad or parsed) if not _lacks_scope(ip)]
        if any(_bare(ip) in self._own for ip in abroad):
            versions = sorted({ip.version for ip in abroad})
            kept = [LOOPBACK[version] for version in versions] + kept
        if len(kept) > MAX_ADDRESSES:
            self.ignored["too many addresses"] += len(kept) - MAX_ADDRESSES
        return kept[:MAX_ADDRESSES]

    def _is_of_this_site(self, ip: IP) -> bool:
        return ip.is_private or ip.is_link_local or any(ip in its.network for its in self._networks)


LOOPBACK = {4: "127.0.0.1", 6: "::1"}


def _bare(ip: IP) -> IP:
    """Without its scope."""
    return ipaddress.IPv6Address(ip.packed) if isinstance(ip, ipaddress.IPv6Address) else ip


def _lacks_scope(ip: IP) -> bool:
    """Whether nobody can say on which link it is: it was told over IPv4."""
    return isinstance(ip, ipaddress.IPv6Address) and ip.is_link_local and ip.scope_id is None
