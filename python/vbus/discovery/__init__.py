"""How nodes find each other over the network: an ensemble of ways, each optional, each with a visible status.

```
__init__.py       the ensemble: begins the ways that are on, ends them, tells how they stand
static.py         `peers`: addresses, and DNS names that are asked again and again
mdns.py           mDNS: the thread, and what a fork does to it
responder.py      mDNS: python-zeroconf, following interfaces as they come and go
heard.py          mDNS: who announces itself, bounded, told to the core
announcement.py   mDNS: what a node says of itself
interfaces.py     the interfaces of this host, and which of them are meant
troubles.py       what hinders a way, as findings
```

All ways end in one call, `core.add_peer(name, addresses, source)`; the core never calls Python. Discovery
grants nothing: who may in is decided in the handshake. Nothing here is waited for: `Node()` starts threads,
and what they need is imported there.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    from vbus._vbus import Node as Core
    from vbus.config import Settings
    from vbus.records import Way

    from .mdns import Mdns
    from .static import Static

    Address: TypeAlias = tuple[str, int]

__all__ = ["Discovery"]


class Discovery:
    """The ways of one node. They begin here, and end by `stop`."""

    __slots__ = ("_mdns", "_off", "_static")

    def __init__(self, core: Core, settings: Settings) -> None:
        self._static: Static | None = None
        self._mdns: Mdns | None = None
        self._off: dict[str, str] = {}
        port = core.network_port()
        if port is None:
            self._off = dict.fromkeys(("mdns", "peers"), NO_NETWORK)
            return
        for way in ("mdns", "peers"):
            if way not in settings.discovery:
                self._off[way] = f'discovery does not have "{way}"'
        if "peers" not in self._off:
            if settings.peers:
                from .static import Static

                self._static = Static(core, settings.peers)
            else:
                self._off["peers"] = "peers is empty"
        if "mdns" not in self._off:
            from .mdns import Mdns

            self._mdns = Mdns(core, settings, port)

    @property
    def seeks(self) -> bool:
        """Whether anybody is looked for."""
        return self._static is not None or self._mdns is not None

    def stop(self) -> None:
        """No longer: says goodbye. Does not wait, and does nothing in the child of a fork."""
        for way in (self._static, self._mdns):
            if way is not None:
                way.stop()

    def join(self) -> None:
        """Wait until goodbye is said, for 0.2 s at most."""
        if self._mdns is not None:
            self._mdns.join(GOODBYE_SECONDS)

    def status(self) -> tuple[Way, ...]:
        """How each way over the network stands."""
        from vbus.records import Way

        ways = [way.status() for way in (self._mdns, self._static) if way is not None]
        return (*ways, *(Way(name, on=False, reason=why) for name, why in self._off.items()))


CLOSED = "the node is closed"
NO_NETWORK = 'there is no network: listen is "off"'
GOODBYE_SECONDS = 0.2
