"""What a node says of itself by mDNS: that it is there, never what it publishes.

```
<id>._vbus._udp.local.   instance; also the host of its addresses, so all of it has `_vbus` in its name
TXT v                    version of what is said here
    d                    digest of the domain
    p                    UDP port
A, AAAA                  addresses of its interfaces
```

The digest keeps strangers apart before they bother each other, and a domain's name off the air. Its key is no
secret: one made from the secret would let everybody who listens try guesses at it, and would make "other
secret", which the handshake can explain, look like "other domain".
"""

from __future__ import annotations

import hmac
import string
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["SERVICE", "Announcement", "digest", "instance", "node_of", "properties", "read"]

SERVICE = "_vbus._udp.local."
LABELS = b"\x05_vbus\x04_udp"
"""What every packet about it has in it."""
VERSION = "1"


class Announcement(NamedTuple):
    """What another node said."""

    version: str
    digest: str
    port: int


def digest(domain: str) -> str:
    """16 hex digits for the name of a domain."""
    return hmac.digest(b"vbus domain 1", domain.encode(), "sha256")[:8].hex()


def instance(node: str) -> str:
    """The name under which a node is announced."""
    return f"{node}.{SERVICE}"


def node_of(name: str) -> str | None:
    """The id of the node that is announced under this name; None if it cannot be one."""
    label = name[: -len(SERVICE) - 1]
    if name[-len(SERVICE) - 1 :].lower() != f".{SERVICE}" or len(label) != ID_DIGITS:
        return None
    return label.lower() if set(label) <= HEX else None


def properties(domain: str, port: int) -> dict[str, str]:
    """The TXT record."""
    return {"v": VERSION, "d": digest(domain), "p": str(port)}


def read(said: Mapping[bytes, bytes | None]) -> Announcement | None:
    """What a TXT record says; None for nonsense. Anybody may have written it."""
    version, told, port = (said.get(key) for key in (b"v", b"d", b"p"))
    if not (version and told and port) or len(port) > 5 or not port.isdigit():
        return None
    if len(version) > 8 or len(told) != 16 or not 0 < int(port) < 1 << 16:
        return None
    return Announcement(version.decode("latin-1"), told.decode("latin-1").lower(), int(port))


ID_DIGITS = 32
HEX = frozenset(string.hexdigits)
