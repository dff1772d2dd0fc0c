"""Requests and replies: one side serves a name, the other calls it.

| room       | what is in it                                                                        |
|------------|--------------------------------------------------------------------------------------|
| `wire`     | the messages of a call, and what a server announces                                  |
| `contract` | a name with two types, ready to encode and decode                                    |
| `exchange` | all calls of a node: its threads, who serves, whom it answers, who went away         |
| `caller`   | `call`, `call_async` and streams, on the calling side                                |
| `serving`  | what every server does, and `Server` for people                                      |
| `threads`  | handlers that are functions, on threads                                              |
| `loops`    | handlers that are coroutines, on a loop                                              |
"""

# ruff: noqa: F811
# F811: ruff does not know `overload` by the stand-in that it has here at run time.

from __future__ import annotations

from vbus._vbus import check_topic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Generic, NoReturn, TypeAlias, TypeVar, overload

    from typing_extensions import TypeForm

    Q = TypeVar("Q")
    R = TypeVar("R")
    X = TypeVar("X")
    Rebuild: TypeAlias = tuple[Callable[[str, Any, Any], "Service[Any, Any]"], tuple[str, Any, Any]]
else:
    from vbus.channel import Generic, overload

    Q = R = object


__all__ = ["Service"]


class Service(Generic[Q, R]):
    """A name, the type of its requests and that of its replies: `Service("math/add", Add, int)`.

    Frozen, hashable, picklable; stands for the name in `node.serve`, `node.call` and `node.call_stream`.
    TopicError if the name does not follow the grammar of topics. The types are looked at when it is first
    served or called.
    """

    if TYPE_CHECKING:
        # For a checker, what is a slot can be set.

        @property
        def name(self) -> str:
            """What is served and called."""
            raise NotImplementedError

        @property
        def request(self) -> TypeForm[Q] | None:
            """Of the values that callers send; None for whatever comes."""
            raise NotImplementedError

        @property
        def reply(self) -> TypeForm[R] | None:
            """Of the values that they get, each one in a stream; None for whatever comes."""
            raise NotImplementedError
    else:
        __slots__ = ("name", "reply", "request")

    @overload
    def __init__(self: Service[Any, Any], name: str, request: None = None, reply: None = None) -> None: ...
    @overload
    def __init__(self: Service[X, Any], name: str, request: TypeForm[X], reply: None = None) -> None: ...
    @overload
    def __init__(self: Service[Any, X], name: str, request: None = None, *, reply: TypeForm[X]) -> None: ...
    @overload
    def __init__(self: Service[Any, X], name: str, request: None, reply: TypeForm[X]) -> None: ...
    @overload
    def __init__(self, name: str, request: TypeForm[Q], reply: TypeForm[R]) -> None: ...
    def __init__(self, name: str, request: Any = None, reply: Any = None) -> None:
        check_topic(name, pattern=False)
        put = object.__setattr__
        put(self, "name", name)
        put(self, "request", request)
        put(self, "reply", reply)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Service):
            return NotImplemented
        return self._parts() == other._parts()

    def __hash__(self) -> int:
        # Without the types: not every one can be hashed, and names differ more.
        return hash((Service, self.name))

    def __repr__(self) -> str:
        types = {"request": self.request, "reply": self.reply}
        named = [
            f"{name}={getattr(type_, '__qualname__', None) or repr(type_)}"
            for name, type_ in types.items()
            if type_ is not None
        ]
        return f"Service({', '.join([repr(self.name), *named])})"

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Service is frozen: {name!r} cannot be set; make another Service")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a Service is frozen: {name!r} cannot be deleted")

    def __reduce__(self) -> Rebuild:
        return _rebuild, self._parts()

    def _parts(self) -> tuple[str, Any, Any]:
        return self.name, self.request, self.reply


def _rebuild(name: str, request: Any, reply: Any) -> Service[Any, Any]:
    return Service(name, request, reply)
