"""A broker-less message bus for Python programs in processes, containers and virtual machines.

```python
with vbus.Node("detector") as node, node.publisher("vision/detections") as publisher:
    publisher.publish({"label": "cat", "score": 0.98})
```

`Node` joins a domain; its `publisher()` and `subscriber()` send and receive samples on topics; a `Channel`
says once for both sides what a topic is. Everything else is a record that one of them returns, or an error.
"""

from __future__ import annotations

from ._vbus import Loan, Sample, __version__
from .channel import Channel
from .errors import (
    Closed,
    ConfigError,
    DecodeError,
    EncodeError,
    Error,
    ForkError,
    Full,
    NoServer,
    RemoteError,
    SharedMemoryError,
    Timeout,
    TooLarge,
    TopicError,
    TransportError,
)
from .node import Node, Publisher, Subscriber

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .codec.registry import register_codec
    from .records import (
        Candidate,
        Endpoint,
        Finding,
        Link,
        Mismatch,
        NodeStats,
        PathChanged,
        Peer,
        PeerJoined,
        PeerLeft,
        PeerRefused,
        PublisherStats,
        ServerStats,
        ServiceInfo,
        SubscriberStats,
        TopicAdded,
        TopicInfo,
        TopicRemoved,
        Way,
    )
    from .service import Service
    from .service.caller import CallStream
    from .service.serving import Server
    from .watch import Watch

__all__ = [
    "CallStream",
    "Candidate",
    "Channel",
    "Closed",
    "ConfigError",
    "DecodeError",
    "EncodeError",
    "Endpoint",
    "Error",
    "Finding",
    "ForkError",
    "Full",
    "Link",
    "Loan",
    "Mismatch",
    "NoServer",
    "Node",
    "NodeStats",
    "PathChanged",
    "Peer",
    "PeerJoined",
    "PeerLeft",
    "PeerRefused",
    "Publisher",
    "PublisherStats",
    "RemoteError",
    "Sample",
    "Server",
    "ServerStats",
    "Service",
    "ServiceInfo",
    "SharedMemoryError",
    "Subscriber",
    "SubscriberStats",
    "Timeout",
    "TooLarge",
    "TopicAdded",
    "TopicError",
    "TopicInfo",
    "TopicRemoved",
    "TransportError",
    "Watch",
    "Way",
    "__version__",
    "register_codec",
]

_RECORDS = frozenset(
    {
        "Candidate",
        "Endpoint",
        "Finding",
        "Link",
        "Mismatch",
        "NodeStats",
        "PathChanged",
        "Peer",
        "PeerJoined",
        "PeerLeft",
        "PeerRefused",
        "PublisherStats",
        "ServerStats",
        "ServiceInfo",
        "SubscriberStats",
        "TopicAdded",
        "TopicInfo",
        "TopicRemoved",
        "Way",
    }
)


def __getattr__(name: str) -> object:
    # Records are dataclasses, whose machinery takes longer to import than all the rest of vbus.
    value: object
    if name in _RECORDS:
        from . import records

        value = getattr(records, name)
    elif name == "register_codec":
        from .codec.registry import register_codec as value
    elif name == "Watch":
        from .watch import Watch as value
    elif name == "Service":
        from .service import Service as value
    elif name == "Server":
        from .service.serving import Server as value
    elif name == "CallStream":
        from .service.caller import CallStream as value
    else:
        raise AttributeError(f"module 'vbus' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
