"""Everything vbus raises. The classes are born in the Rust extension and named here.

```text
Error
├── Timeout             also TimeoutError       nothing came, or nobody took it, in time
├── Closed                                      the object, or its node, was closed
├── Full                                        a subscriber is full and on_full is "error"
├── EncodeError         also ValueError         the value does not fit the type of the topic
├── DecodeError         also ValueError         what arrived does not fit the type asked for
├── TopicError          also ValueError         not a topic, or not one to publish on
├── ConfigError         also ValueError         an argument or an environment variable is wrong
├── TooLarge            also ValueError         beyond max_size, or beyond what headers may take
├── NoServer            also ConnectionError    nobody serves this name; the call did not run
├── RemoteError                                 the handler at the other side raised
├── ForkError           also RuntimeError       an object of the parent was used in a forked child
├── SharedMemoryError   also OSError            a meeting directory or memory cannot be used
└── TransportError      also OSError            the other side went away
```

Every error has the attributes `topic`, `subscriber`, `limit` and `field`, None where they do not apply.
"""

from ._vbus import (
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

__all__ = [
    "Closed",
    "ConfigError",
    "DecodeError",
    "EncodeError",
    "Error",
    "ForkError",
    "Full",
    "NoServer",
    "RemoteError",
    "SharedMemoryError",
    "Timeout",
    "TooLarge",
    "TopicError",
    "TransportError",
]


def quote(value: object) -> str:
    """The value for an error message, cut where it gets long."""
    try:
        text = repr(value)
    except Exception:  # a broken __repr__ must not hide the error that is being told
        text = f"<{type(value).__name__}>"
    text = " ".join(text.split())
    return text if len(text) <= QUOTED_CHARS else text[:QUOTED_CHARS] + "…"


QUOTED_CHARS = 80
