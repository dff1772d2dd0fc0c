"""What a topic is, said once for both sides."""

# ruff: noqa: F811
# F811: ruff does not know `overload` by the stand-in that it has here at run time.

from __future__ import annotations

from ._vbus import ConfigError, TopicError, check_qos, check_topic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Generic, Literal, NoReturn, TypeAlias, TypedDict, TypeVar, overload

    from typing_extensions import TypeForm, Unpack

    T = TypeVar("T")

    class SubscriberQos(TypedDict, total=False):
        """What a subscriber may ask for; the table in the documentation has the defaults."""

        reliability: Literal["reliable", "best_effort"] | None
        ordered: bool | None
        depth: int | None
        on_full: Literal["block", "drop_oldest", "drop_newest"] | None
        history: int | None
        lifespan: float | None

    class PublisherQos(TypedDict, total=False):
        """What a publisher may offer; the table in the documentation has the defaults."""

        reliability: Literal["reliable", "best_effort"] | None
        ordered: bool | None
        depth: int | None
        on_full: Literal["block", "drop_oldest", "drop_newest", "error"] | None
        history: int | None
        lifespan: float | None
        block_timeout: float | None
        priority: int | None
        max_size: int | None

    Rebuild: TypeAlias = tuple[
        Callable[[str, Any, dict[str, Any]], "Channel[Any]"], tuple[str, Any, dict[str, Any]]
    ]
else:
    # typing costs more to import than vbus itself.
    T = object

    class Generic:
        __slots__ = ()

        def __class_getitem__(cls, of):
            return cls if cls is Generic else type(list[int])(cls, of)

    def overload(function):
        return function


__all__ = ["Channel"]


class Channel(Generic[T]):
    """A topic, the type of its values, and its quality of service: `Channel("robot/pose", Pose, history=1)`.

    Frozen, hashable, picklable. Keywords of `node.publisher` and `node.subscriber` override those given here,
    and what is the publisher's alone is ignored by subscribers. The topic may be a pattern, to subscribe to.
    TopicError if it is neither, ConfigError if the quality of service has a wrong name or value. The type is
    looked at by the first publisher or subscriber.
    """

    _qos: tuple[tuple[str, Any], ...]

    if TYPE_CHECKING:
        # For a checker, what is a slot can be set.

        @property
        def topic(self) -> str:
            """What to publish on or subscribe to."""
            raise NotImplementedError

        @property
        def type(self) -> TypeForm[T] | None:
            """Of the values; None for whatever comes."""
            raise NotImplementedError
    else:
        __slots__ = ("_qos", "topic", "type")

    @overload
    def __init__(self: Channel[Any], topic: str, type: None = None, **qos: Unpack[PublisherQos]) -> None: ...
    @overload
    def __init__(self, topic: str, type: TypeForm[T], **qos: Unpack[PublisherQos]) -> None: ...
    def __init__(self, topic: str, type: Any = None, **qos: Unpack[PublisherQos]) -> None:
        check_topic(topic, pattern=True)
        given = {name: value for name, value in qos.items() if value is not None}
        check_qos(given, publisher=True)
        put = object.__setattr__
        put(self, "topic", topic)
        put(self, "type", type)
        put(self, "_qos", tuple(sorted(given.items())))

    @property
    def qos(self) -> dict[str, Any]:
        """The quality of service that was given, by name."""
        return dict(self._qos)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Channel):
            return NotImplemented
        return self._parts() == other._parts()

    def __hash__(self) -> int:
        # Without the type: not every one can be hashed, and topics differ more.
        return hash((self.topic, self._qos))

    def __repr__(self) -> str:
        name = getattr(self.type, "__qualname__", None) or repr(self.type)
        parts = [repr(self.topic), *([name] if self.type is not None else [])]
        return f"Channel({', '.join(parts + [f'{key}={value!r}' for key, value in self._qos])})"

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Channel is frozen: {name!r} cannot be set; make another Channel")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a Channel is frozen: {name!r} cannot be deleted; make another Channel")

    def __reduce__(self) -> Rebuild:
        return _rebuild, (self.topic, self.type, self.qos)

    def _parts(self) -> tuple[object, ...]:
        return self.topic, self.type, self._qos


def check_not_own(topic: str) -> None:
    """TopicError for a topic that is the bus's own."""
    if topic == "$vbus" or topic.startswith("$vbus/"):
        error = TopicError(f"{topic!r} is the bus's own; choose a name that does not begin with $vbus/")
        error.topic = topic
        raise error


def publisher_qos(channel: Channel[Any] | None, given: dict[str, Any]) -> dict[str, Any]:
    """What a publisher offers: keywords beat the channel; None is not given. ConfigError if one is wrong."""
    offered = _without_none({**(channel.qos if channel is not None else {}), **given})
    check_qos(offered, publisher=True)
    return offered


def subscriber_qos(channel: Channel[Any] | None, given: dict[str, Any]) -> dict[str, Any]:
    """What a subscriber asks for: what in the channel is the publisher's alone is left out."""
    for name in PUBLISHERS_ALONE:
        if given.get(name) is not None:
            error = ConfigError(f"{name} is the publisher's alone; give it to the publisher, or in a Channel")
            error.field = name
            raise error
    check_qos(_without_none(given), publisher=False)
    asked = {
        name: value
        for name, value in (channel.qos if channel is not None else {}).items()
        if name not in PUBLISHERS_ALONE and (name, value) != ("on_full", "error")
    }
    return _without_none({**asked, **given})


PUBLISHERS_ALONE = ("block_timeout", "priority", "max_size")


def _without_none(qos: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in qos.items() if value is not None}


def _rebuild(topic: str, type: Any, qos: dict[str, Any]) -> Channel[Any]:
    return Channel(topic, type, **qos)
