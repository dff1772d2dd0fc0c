"""What hinders a way of discovery, as findings: where multicast is not heard, what has no address."""

from __future__ import annotations

from vbus.records import Finding, Peer, Way

__all__ = ["troubles"]


def troubles(ways: tuple[Way, ...], own: Peer) -> list[Finding]:
    """What keeps the ways that are on from finding somebody; `own` is the node that looks."""
    found: list[Finding] = []
    for way in ways:
        if way.name == "mdns" and way.on:
            found += _of_mdns(way, own)
        elif way.name == "peers":
            found += _of_names(way)
    return found


def _of_mdns(way: Way, own: Peer) -> list[Finding]:
    found = [Finding(own, None, "mdns", "failed", *_deafness(interface, way.error)) for interface in way.deaf]
    if way.error is not None and not way.deaf:
        remedy = "export VBUS_PEERS=host:port  # finds others without mDNS; or VBUS_DISCOVERY=shm,peers"
        found.append(Finding(own, None, "mdns", "failed", f"mDNS is hindered: {way.error}", remedy))
    return found


def _deafness(interface: str, error: str | None) -> tuple[str, str]:
    """Reason and remedy."""
    silent = f"multicast is not heard on {interface}: not even this node's own words come back"
    if error is not None:
        return f"{silent} ({error})", f"sudo ip link set dev {interface} multicast on; {_ADDRESSES}"
    remedy = "sudo ufw allow 5353/udp  # or: sudo nft insert rule inet filter input udp dport 5353 accept"
    return f"{silent}, as if a firewall drops UDP port 5353", f"{remedy}; {_ADDRESSES}"


_ADDRESSES = "without multicast: export VBUS_PEERS=host:port"


def _of_names(way: Way) -> list[Finding]:
    """DNS names without an address."""
    found: list[Finding] = []
    for candidate in way.candidates:
        if candidate.error is not None and not candidate.addresses:
            host = candidate.name.rpartition(":")[0]
            reason = f"{host} has no address: {candidate.error}"
            remedy = (
                f"getent ahosts {host}  # must tell one; correct `peers`, or what this host asks for names"
            )
            found.append(Finding(candidate.name, None, "udp", "failed", reason, remedy))
    return found
