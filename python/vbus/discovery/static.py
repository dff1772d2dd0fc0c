"""`peers`: addresses that somebody wrote down, and DNS names with as many addresses as they have.

Addresses are told to the core at once. Names are asked in a thread of their own, since a name server that
does not answer blocks for half a minute: at once, then after 1, 2, 5, 10, 20 and 30 s while nobody of that
name is connected, and every 30 s ever after, for pods and hosts come and go under one name. One name that
hangs delays the others by one question.
"""

from __future__ import annotations

import _socket
import os
import time

from vbus.errors import Closed

from . import CLOSED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, TypeAlias

    from vbus._vbus import Node as Core
    from vbus.records import Way

    from . import Address

    Resolve: TypeAlias = Callable[[str, int], list[Address]]

__all__ = ["Static"]


class Static:
    """What `peers` names. Begins with the object, and ends by `stop`."""

    def __init__(self, core: Core, peers: Sequence[str], *, begin: bool = True) -> None:
        self._core = core
        self._pid = os.getpid()
        self._stopped = False
        self._found: dict[str, list[Address]] = {}
        self._heard: dict[str, int] = {}
        self._names: list[Name] = []
        for peer in peers:
            host, port = split(peer)
            try:
                addresses = numeric(host, port)
            except OSError:
                self._names.append(Name(peer, host, port))
            else:
                self._tell(peer, addresses)
        self._wake: Callable[[], object] | None = None
        if self._names and begin:
            # Imported by whoever makes a node: before Python 3.13, the thread that does it first counts as
            # the main one.
            import threading

            stop = threading.Event()
            self._wake = stop.set
            target = _ask_for_ever
            threading.Thread(target=target, args=(self, stop.wait), name="vbus-peers", daemon=True).start()

    def ask(self, now: float, resolve: Resolve) -> float:
        """Ask for every name that is due; when the next one is. A failure is the name's status, and one
        warning."""
        connected = {address for peer in self._core.peer_tuples() for address in peer[4]}
        for name in self._names:
            if self._stopped:
                break
            if name.due > now:
                continue
            try:
                addresses = resolve(name.host, name.port)
            except (OSError, UnicodeError) as error:
                name.error = reason(error)
                if not name.warned:
                    name.warned = True
                    _warn(name)
            else:
                name.error = None
                self._tell(name.peer, addresses)
            known = self._found.get(name.peer, ())
            name.plan(now, any(written(address) in connected for address in known))
        return min((name.due for name in self._names), default=now + DELAYS[-1])

    @property
    def stopped(self) -> bool:
        """Whether it has ended."""
        return self._stopped

    def stop(self) -> None:
        """Ask no more; does not wait for a question that is under way."""
        if os.getpid() == self._pid:
            self._stopped = True
            if self._wake is not None:
                self._wake()

    def status(self) -> Way:
        """Each peer, its addresses, when it was last resolved, and what hinders it."""
        from vbus.records import Candidate, Way

        errors = {name.peer: name.error for name in self._names}
        peers = {**dict.fromkeys(errors, ()), **self._found}
        candidates = tuple(
            Candidate(peer, tuple(addresses), self._heard.get(peer), errors.get(peer))
            for peer, addresses in list(peers.items())
        )
        return Way(
            "peers",
            on=not self._stopped,
            reason=CLOSED if self._stopped else "",
            heard_ns=max(self._heard.copy().values(), default=None),
            error=next((f"{peer}: {error}" for peer, error in errors.items() if error), None),
            candidates=candidates,
        )

    def _tell(self, peer: str, addresses: list[Address]) -> None:
        addresses = addresses[:MAX_ADDRESSES]
        if not set(self._found.get(peer, ())) <= set(addresses):
            self._core.remove_peer(peer, "peers")  # some are gone, and need not be tried for ever
        self._found[peer] = addresses
        self._heard[peer] = time.time_ns()
        self._core.add_peer(peer, addresses, "peers")


class Name:
    """A DNS name, and when to ask for it."""

    __slots__ = ("due", "error", "host", "peer", "port", "tries", "warned")

    def __init__(self, peer: str, host: str, port: int) -> None:
        self.peer = peer
        self.host = host
        self.port = port
        self.due = float("-inf")
        self.tries = 0
        self.error: str | None = None
        self.warned = False

    def plan(self, now: float, connected: bool) -> None:
        """It was asked; when again."""
        self.due = now + (DELAYS[-1] if connected else DELAYS[min(self.tries, len(DELAYS) - 1)])
        self.tries = 0 if connected else self.tries + 1


DELAYS = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0)
MAX_ADDRESSES = 256
"""Of one name; a headless service has one per pod."""


def split(peer: str) -> tuple[str, int]:
    """Host and port of what `vbus.config` has checked."""
    host, _, port = peer.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def numeric(host: str, port: int) -> list[Address]:
    """The address that a host is; OSError for a name."""
    # As bytes: of a str Python would make an international domain name first, and import what that needs.
    return _addresses(_socket.getaddrinfo(host.encode(), port, *_DATAGRAM, _socket.AI_NUMERICHOST))


def resolved(host: str, port: int) -> list[Address]:
    """What the system's resolver says now."""
    return _addresses(_socket.getaddrinfo(host, port, *_DATAGRAM))


_DATAGRAM = (0, _socket.SOCK_DGRAM, _socket.IPPROTO_UDP)


def written(address: Address) -> str:
    """As `Peer.addresses` has it."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reason(error: Exception) -> str:
    """What a resolver's error says."""
    strerror = getattr(error, "strerror", None)
    return strerror if isinstance(strerror, str) else str(error)


def _addresses(found: Iterable[tuple[int, int, int, str, tuple[Any, ...]]]) -> list[Address]:
    """Without repetition, in the resolver's order, which is that of preference."""
    addresses: dict[Address, None] = {}
    for _, _, _, _, (host, port, *scope) in found:
        if isinstance(host, str):  # a family that Python does not know comes as bytes
            zone = f"%{scope[1]:d}" if scope and scope[1] else ""
            addresses[f"{host.partition('%')[0]}{zone}", int(port)] = None
    return list(addresses)


def _ask_for_ever(static: Static, wait: Callable[[float], object]) -> None:
    import signal

    # Signals are for those who would be woken by them.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        while not static.stopped:
            due = static.ask(time.monotonic(), resolved)
            wait(max(0.0, due - time.monotonic()))
    except Closed:
        return  # the node was, while a name server took its time


def _warn(name: Name) -> None:
    import logging

    logging.getLogger("vbus").warning(
        "peers has %s, but %s has no address: %s; it is asked again and again",
        name.peer,
        name.host,
        name.error,
    )
