"""What `vbus doctor` looks at: whether this machine, or container, lets vbus work well.

```
__init__.py   the record of a check, and all of them in order
machine.py    kernel, memory, descriptors, clock: without a node
sockets.py    UDP: buffers, batches, the size of packets
meeting.py    where neighbours meet, who may in, and what a container has to be given for it
finding.py    the ways of discovery
```

Nothing here needs rights that a program does not have, and nothing waits. Between nodes `Node.explain` looks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vbus.node import Node

__all__ = ["Check", "of_machine", "of_node"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    check: str
    """What it is about."""
    verdict: str
    """ "ok"; "note": it works, and could be better; "failed"."""
    looked: str
    """What was seen, with the numbers."""
    remedy: str = ""
    """What to do: lines to be pasted, and a comment behind `#`. Empty if nothing is wrong."""


def of_machine() -> list[Check]:
    """What is to be seen without a node."""
    from . import machine, sockets

    return [machine.kernel(), machine.memory(), machine.descriptors(), machine.clock(), sockets.batches()]


def of_node(node: Node) -> list[Check]:
    """What a node knows that has been open for a while."""
    from . import finding, meeting, sockets

    core = node._core  # pyright: ignore[reportPrivateUsage]
    near = sum(peer.path == "shm" for peer in node.peers())
    return [
        *meeting.directories(core.directory_tuples(), near),
        *sockets.of_survey(core.survey_dict(), node.addresses),
        *finding.ways(node),
    ]
