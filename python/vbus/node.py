"""`Node`, `Publisher` and `Subscriber`: the public classes, on top of those of the Rust extension.

What must be fast (`publish`, `receive`, iteration) is the extension's and is not touched here.
"""

# ruff: noqa: F811, D102, ASYNC109
# F811, D102: ruff does not know `overload` by the stand-in that it has here at run time.
# ASYNC109: a twin has the arguments of its original.

from __future__ import annotations

import os
import sys
from _thread import RLock, allocate_lock, get_ident, start_new_thread
from _weakref import ref
from time import monotonic

from ._vbus import Loan, Sample, check_topic, leave_daemons_asleep
from ._vbus import Node as CoreNode
from ._vbus import Publisher as CorePublisher
from ._vbus import Subscriber as CoreSubscriber
from .channel import Channel, check_not_own, publisher_qos, subscriber_qos
from .closing import Closing, ClosingSlowly
from .config import resolve
from .errors import Closed, ConfigError, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
    from types import TracebackType
    from typing import Any, NoReturn, Self, TypeAlias, TypeVar, overload

    import numpy
    from typing_extensions import TypeForm, Unpack

    from ._vbus import Draft, PeerTuple
    from .aio import Receivers
    from .callbacks import Callbacks
    from .channel import PublisherQos, SubscriberQos
    from .codec import Codec
    from .codec.arrays import Array
    from .config import PathText
    from .discovery import Discovery
    from .records import (
        Finding,
        NodeStats,
        Peer,
        PublisherStats,
        ServiceInfo,
        SubscriberStats,
        TopicInfo,
        Way,
    )
    from .service import Service
    from .service.caller import CallStream
    from .service.exchange import Exchange
    from .service.serving import Server
    from .turns import Queues
    from .watch import Watch

    T = TypeVar("T")
    Q = TypeVar("Q")
    R = TypeVar("R")
    Handler: TypeAlias = (
        Callable[[Q], R]
        | Callable[[Q], Awaitable[R]]
        | Callable[[Q], Iterator[R]]
        | Callable[[Q], AsyncIterator[R]]
    )
else:
    from .channel import overload

    T = object


__all__ = ["ArrayLoan", "Node", "Publisher", "Subscriber"]


class Node(ClosingSlowly):
    """One participant of a domain, normally one per process.

    Arguments beat environment variables (`VBUS_NAME`, …) beat defaults:

    - `name`: for people; default is the program's name and pid.
    - `domain`: nodes see only those of their own domain; default "default".
    - `secret`: str or bytes, 8 bytes or more; only nodes with the same one join. `vbus keygen` makes one.
    - `open`: True lets in anyone from the network who names the domain; without it, and without a secret,
      only nodes of this host may join.
    - `peers`: "host:port" of nodes to reach over the network; names are asked for again as time goes on.
    - `listen`: "address:port" for UDP; default "[::]:0", a free port of all addresses; "off" for no network.
    - `interfaces`: names or addresses of interfaces to use; default all that are up.
    - `discovery`: any of "shm", "mdns", "peers"; default all.
    - `shm`: the directory where neighbours meet, made if it is missing; False or "off" for none. Default is
      every usable one of /run/vbus, /dev/shm/vbus, /tmp/vbus.
    - `memory`: bytes that its publishers may keep; default a quarter of what the machine or container has.

    Returns when it has met the neighbours already there. ConfigError for a wrong value, SharedMemoryError
    for a directory that was named and cannot be used, TransportError for an address that cannot be had.
    Close it, or use it in `with`.
    """

    __slots__ = (
        "__weakref__",
        "_callbacks",
        "_children",
        "_core",
        "_discovery",
        "_exchange",
        "_first_call",
        "_log",
        "_met_by",
        "_pid",
    )

    def __init__(
        self,
        name: str | None = None,
        *,
        domain: str | None = None,
        secret: str | bytes | None = None,
        open: bool | None = None,
        peers: Iterable[str] | None = None,
        listen: str | None = None,
        interfaces: Iterable[str] | None = None,
        discovery: Iterable[str] | None = None,
        shm: PathText | bool | None = None,
        memory: int | None = None,
    ) -> None:
        settings = resolve(
            name=name,
            domain=domain,
            secret=secret,
            open=open,
            peers=peers,
            listen=listen,
            interfaces=interfaces,
            discovery=discovery,
            shm=shm,
            memory=memory,
        )
        self._core = CoreNode(
            name=settings.name,
            domain=settings.domain,
            secret=settings.secret,
            shm=settings.shm,
            shm_required=settings.shm_required,
            memory=settings.memory,
            listen=None if settings.listen == "off" else settings.listen,
            open=settings.open,
            interfaces=settings.interfaces,
            make_peer=_make_peer,
        )
        self._pid = os.getpid()
        self._children: dict[int, ref[Publisher[Any] | Subscriber[Any]]] = {}
        self._callbacks: Callbacks | None = None
        self._exchange: Exchange | None = None
        self._first_call = RLock()
        self._log = _Log(self._core)
        from .discovery import Discovery

        self._discovery = Discovery(self._core, settings)
        self._met_by = monotonic() + MEETING_SECONDS if self._discovery.seeks else None
        _close_at_exit(self)

    @property
    def id(self) -> str:
        """Hex, unique, drawn anew for every Node."""
        return self._core.id

    @property
    def name(self) -> str:
        """What people call it."""
        return self._core.name

    @property
    def domain(self) -> str:
        """The domain it is in."""
        return self._core.domain

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it can be reached, as "host:port"; none without a network."""
        return self._core.self_tuple()[4]

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._core.closed

    @overload
    def publisher(
        self, channel_or_topic: Channel[T], type: None = None, **qos: Unpack[PublisherQos]
    ) -> Publisher[T]: ...
    @overload
    def publisher(
        self, channel_or_topic: Channel[Any] | str, type: TypeForm[T], **qos: Unpack[PublisherQos]
    ) -> Publisher[T]: ...
    @overload
    def publisher(
        self, channel_or_topic: str, type: None = None, **qos: Unpack[PublisherQos]
    ) -> Publisher[Any]: ...
    def publisher(
        self, channel_or_topic: Channel[Any] | str, type: Any = None, **qos: Unpack[PublisherQos]
    ) -> Publisher[Any]:
        """A publisher of a channel, or of a topic with values of `type` (None: any).

        Quality of service, with defaults: `reliability` "reliable" or "best_effort"; `ordered` True;
        `depth` 64 samples that may wait at one subscriber; `on_full` "block" if reliable, else "drop_oldest"
        ("drop_newest", "error"); `block_timeout` None, seconds; `history` 0 samples for late subscribers;
        `lifespan` None, seconds; `priority` 4 of 0 (first) to 7; `max_size` 1 GiB.

        Returns when it knows the subscriptions of its neighbours. TopicError for a pattern or no topic,
        ConfigError for wrong quality of service or a type that cannot travel.
        """
        channel, topic, type = _what(channel_or_topic, type)
        check_topic(topic, pattern=False)
        check_not_own(topic)
        offered = publisher_qos(channel, dict(qos))
        codec = _codec(type, topic)
        publisher: Publisher[Any] = Publisher(
            self._core, topic, shape=codec.shape, raw=codec.raw, encoder=codec.encoder, qos=offered
        )
        publisher._node = self  # pyright: ignore[reportPrivateUsage]
        publisher._codec = codec  # pyright: ignore[reportPrivateUsage]
        publisher._queues = None  # pyright: ignore[reportPrivateUsage]
        self._adopt(publisher)
        return publisher

    @overload
    def subscriber(
        self,
        channel_or_topic: Channel[T],
        type: None = None,
        *,
        callback: Callable[[Sample[T]], None] | None = None,
        spin: float | None = None,
        **qos: Unpack[SubscriberQos],
    ) -> Subscriber[T]: ...
    @overload
    def subscriber(
        self,
        channel_or_topic: Channel[Any] | str,
        type: TypeForm[T],
        *,
        callback: Callable[[Sample[T]], None] | None = None,
        spin: float | None = None,
        **qos: Unpack[SubscriberQos],
    ) -> Subscriber[T]: ...
    @overload
    def subscriber(
        self,
        channel_or_topic: str,
        type: None = None,
        *,
        callback: Callable[[Sample[Any]], None] | None = None,
        spin: float | None = None,
        **qos: Unpack[SubscriberQos],
    ) -> Subscriber[Any]: ...
    def subscriber(
        self,
        channel_or_topic: Channel[Any] | str,
        type: Any = None,
        *,
        callback: Callable[[Sample[Any]], None] | None = None,
        spin: float | None = None,
        **qos: Unpack[SubscriberQos],
    ) -> Subscriber[Any]:
        """A subscriber to a channel, a topic, or a pattern: `*` is one segment, `**` any number.

        `callback` is called with each sample, in order, on one thread of the node that serves all callbacks;
        an exception in it is logged and counted, and the next sample is delivered. The node keeps such a
        subscriber until it is closed; one cannot receive from it.

        `spin`: seconds to look before sleeping; None adapts, 0 never. Quality of service as for
        `publisher`; what is not given is taken as offered. Returns when its neighbours know it. TopicError
        for no pattern, ConfigError for wrong quality of service or a type that cannot travel, TypeError for a
        callback that is no plain function.
        """
        channel, topic, type = _what(channel_or_topic, type)
        check_topic(topic, pattern=True)
        check_not_own(topic)
        _check_spin(spin)
        made_for: type[Subscriber[Any]] = Subscriber
        if callback is not None:
            from .callbacks import made_for_callback

            made_for = made_for_callback(callback)
        asked = subscriber_qos(channel, dict(qos))
        codec = _codec(type, topic)
        subscriber: Subscriber[Any] = made_for(
            self._core,
            topic,
            shape=codec.shape,
            raw=codec.raw,
            quick=codec.quick,
            decoder=codec.decoder,
            spin=spin,
            qos=asked,
        )
        subscriber._node = self  # pyright: ignore[reportPrivateUsage]
        subscriber._receivers = None  # pyright: ignore[reportPrivateUsage]
        if callback is not None:
            from .callbacks import begin

            begin(self, subscriber, callback)
        self._adopt(subscriber)
        return subscriber

    @overload
    def serve(self, service: Service[Q, R], handler: Handler[Q, R], *, concurrency: int = 1) -> Server: ...
    @overload
    def serve(
        self,
        service: str,
        handler: Handler[Q, R],
        *,
        request: TypeForm[Q],
        reply: TypeForm[R],
        concurrency: int = 1,
    ) -> Server: ...
    @overload
    def serve(
        self,
        service: str,
        handler: Handler[Q, Any],
        *,
        request: TypeForm[Q],
        reply: None = None,
        concurrency: int = 1,
    ) -> Server: ...
    @overload
    def serve(
        self,
        service: str,
        handler: Handler[Any, R],
        *,
        request: None = None,
        reply: TypeForm[R],
        concurrency: int = 1,
    ) -> Server: ...
    @overload
    def serve(
        self,
        service: str,
        handler: Handler[Any, Any],
        *,
        request: None = None,
        reply: None = None,
        concurrency: int = 1,
    ) -> Server: ...
    def serve(
        self,
        service: Service[Any, Any] | str,
        handler: Handler[Any, Any],
        *,
        request: Any = None,
        reply: Any = None,
        concurrency: int = 1,
    ) -> Server:
        """Answer the calls of a service, until the Server or this node is closed.

        `handler(request)` returns the reply. A function runs on `concurrency` threads; a coroutine function
        on the loop that runs now, else on one of the node's, `concurrency` at a time; a generator of either
        kind gives a stream of replies, and is one of these until its caller took the last or left. What it
        raises reaches the caller as RemoteError. With a name, `request` and `reply` are the types; None is
        any.

        Returns when its neighbours know it. TopicError for a wrong name, ConfigError for a type that cannot
        travel or a `concurrency` below 1, TypeError for a handler that cannot be called.
        """
        from .service.contract import contract_of
        from .service.serving import Server, serve

        if not callable(handler):
            raise TypeError(
                f"a handler is a function, a coroutine function or a generator, not {quote(handler)}"
            )
        if not isinstance(concurrency, int) or concurrency < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"concurrency is {quote(concurrency)}; give a number from 1 on")
        return Server(self, serve(self._calls(), contract_of(service, request, reply), handler, concurrency))

    @overload
    def call(self, service: Service[Q, R], value: Q, *, timeout: float | None = None) -> R: ...
    @overload
    def call(
        self,
        service: str,
        value: Any,
        *,
        request: Any = None,
        reply: TypeForm[R],
        timeout: float | None = None,
    ) -> R: ...
    @overload
    def call(
        self,
        service: str,
        value: Any,
        *,
        request: Any = None,
        reply: None = None,
        timeout: float | None = None,
    ) -> Any: ...
    def call(
        self,
        service: Service[Any, Any] | str,
        value: Any,
        *,
        request: Any = None,
        reply: Any = None,
        timeout: float | None = None,
    ) -> Any:
        """Send a request to one of those who serve it, and wait for the reply.

        It runs at most once and is never retried. NoServer: it did not run. Timeout: no reply in `timeout`
        seconds. TransportError: the server went away, and it may have run. RemoteError: the handler raised,
        or its reply is of the wrong type. EncodeError, TooLarge: the request cannot be sent. DecodeError: the
        reply is not of the type `reply`. RuntimeError: the handler runs in the event loop of this thread,
        which waiting would stop.
        """
        exchange = self._calls()
        return exchange.call(exchange.contract_of(service, request, reply), value, timeout)

    @overload
    async def call_async(self, service: Service[Q, R], value: Q, *, timeout: float | None = None) -> R: ...
    @overload
    async def call_async(
        self,
        service: str,
        value: Any,
        *,
        request: Any = None,
        reply: TypeForm[R],
        timeout: float | None = None,
    ) -> R: ...
    @overload
    async def call_async(
        self,
        service: str,
        value: Any,
        *,
        request: Any = None,
        reply: None = None,
        timeout: float | None = None,
    ) -> Any: ...
    async def call_async(
        self,
        service: Service[Any, Any] | str,
        value: Any,
        *,
        request: Any = None,
        reply: Any = None,
        timeout: float | None = None,
    ) -> Any:
        """`call` for asyncio; cancelling it cancels a coroutine at the server, and disturbs no other call."""
        from .service.tasks import call_async

        exchange = self._calls()
        contract = exchange.contract_of(service, request, reply)
        return await call_async(exchange, contract, value, timeout)

    @overload
    def call_stream(
        self, service: Service[Q, R], value: Q, *, timeout: float | None = None
    ) -> CallStream[R]: ...
    @overload
    def call_stream(
        self,
        service: str,
        value: Any,
        *,
        request: Any = None,
        reply: TypeForm[R],
        timeout: float | None = None,
    ) -> CallStream[R]: ...
    @overload
    def call_stream(
        self,
        service: str,
        value: Any,
        *,
        request: Any = None,
        reply: None = None,
        timeout: float | None = None,
    ) -> CallStream[Any]: ...
    def call_stream(
        self,
        service: Service[Any, Any] | str,
        value: Any,
        *,
        request: Any = None,
        reply: Any = None,
        timeout: float | None = None,
    ) -> CallStream[Any]:
        """A call whose replies are many: `for item in node.call_stream(service, value):`, or `async for`.

        `timeout` in seconds is for each next item. Leaving it early, by `break`, `with` or `close()`, stops
        the generator at the server. Errors as for `call`, here or at any item.
        """
        from .service.caller import CallStream
        from .service.contract import contract_of

        return CallStream(self, self._calls(), contract_of(service, request, reply), value, timeout)

    def peers(self) -> list[Peer]:
        """The connected peers, without oneself."""
        return [_make_peer(peer) for peer in self._core.peer_tuples()]

    def topics(self) -> list[TopicInfo]:
        """Every topic that somebody publishes, this node included."""
        from .reports import topic_infos

        return topic_infos(self._core)

    def services(self) -> list[ServiceInfo]:
        """Every service that somebody serves, this node included; one per name and types."""
        from .reports import service_infos

        return service_infos(self._core)

    def wait_for_peers(self, n: int = 1, timeout: float | None = None) -> bool:
        """Wait until `n` peers are connected, `timeout` seconds at most; whether they are."""
        return self._core.wait_for_peers(n, timeout)

    async def wait_for_peers_async(self, n: int = 1, timeout: float | None = None) -> bool:
        """`wait_for_peers` for asyncio."""
        from .aio import until

        return await until(lambda: self.wait_for_peers(n, 0), self._core, timeout)

    def watch(self) -> Watch:
        """What happens in the domain, beginning with an event for everything already there: PeerJoined,
        PeerLeft, PeerRefused, TopicAdded, TopicRemoved, PathChanged. Closed when the node is."""
        from .watch import Watch

        return Watch(self, self._core.watch())

    def explain(self, topic: str | None = None, peer: Peer | str | None = None) -> list[Finding]:
        """Which ways to whom were tried, with what result, why, and what to do about it.

        Of everything; or of one `topic`, or those of a pattern (then also whether anybody publishes it, and
        subscribes to it); or of one `peer` (a Peer, an id, a name, or the address of a stranger). `str()` of
        a Finding is a line.
        """
        from .reports import findings

        return findings(self._core, self.discovery(), topic, peer)

    def discovery(self) -> tuple[Way, ...]:
        """How each way of finding others stands: "shm", "mdns" and "peers", on or off, when it last heard of
        somebody, and what hinders it."""
        from .reports import meeting_way

        return (meeting_way(self._core), *self._discovery.status())

    def stats(self) -> NodeStats:
        """Counts over all publishers and subscribers; still works after close()."""
        from .reports import node_stats

        return node_stats(self._core)

    def close(self, linger: float = 2.0) -> None:
        """Close everything: flushes reliable publishers for at most `linger` seconds, and says goodbye.

        Handlers that run have as long to answer. What was not accepted in time is logged per topic. Closing
        twice is fine.
        """
        if os.getpid() != self._pid:
            return  # the child of a fork: nothing here is its own
        if self._exchange is not None:
            self._exchange.close(linger)
        self._discovery.stop()
        self._core.close(linger)
        for child in list(self._children.values()):
            if (endpoint := child()) is not None:
                endpoint.close()
        if self._callbacks is not None:
            self._callbacks.end()
        self._discovery.join()
        self._log.drain()

    def __repr__(self) -> str:
        return f"<vbus.Node {self.name!r} in {self.domain!r}>"

    def __del__(self) -> None:
        # Its publishers and subscribers hold it, so they are closed; what they sent may still be on its way.
        discovery: Discovery | None = getattr(self, "_discovery", None)
        if discovery is not None:
            discovery.stop()
        core: CoreNode | None = getattr(self, "_core", None)
        if core is not None:
            core.close()
        callbacks: Callbacks | None = getattr(self, "_callbacks", None)
        if callbacks is not None:
            callbacks.stop()

    def _calls(self) -> Exchange:
        """What serves and calls for this node, made when it first does. Closed and ForkError as ever."""
        closed = self._core.closed
        exchange = self._exchange
        if exchange is None:
            from .service.exchange import Exchange

            with self._first_call:
                if self._exchange is None and not closed:
                    self._keep(Exchange(self._core, self._met_by))
                exchange = self._exchange
        if closed or exchange is None:
            raise Closed(f"the node {quote(self.name)} is closed; open a new one")
        return exchange

    def _keep(self, exchange: Exchange) -> None:
        if self._exchange is None:
            self._exchange = exchange
        else:  # the handler of a signal was faster
            exchange.close(0)

    def _adopt(self, child: Publisher[Any] | Subscriber[Any]) -> None:
        """Remember a publisher or subscriber for close(), without keeping it alive."""
        key, children = id(child), self._children
        children[key] = ref(child, lambda _: children.pop(key, None))


class Publisher(CorePublisher[T], Closing):
    """Publishes values on one topic; made by `node.publisher`. All methods may be called from any thread.

    Close it, or use it in `with`; it also closes when nothing refers to it.
    """

    __slots__ = ("__weakref__", "_codec", "_node", "_queues")

    _codec: Codec
    _node: Node
    _queues: Queues | None

    def loan_array(
        self,
        shape: int | tuple[int, ...],
        dtype: numpy.typing.DTypeLike = float,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> ArrayLoan:
        """Borrow an array: `with publisher.loan_array((480, 640), "u1") as array:` publishes it on leaving.

        The contents are undefined at first; after publishing the array is read-only. For types None and
        ndarray, else ConfigError. TooLarge beyond `max_size`, EncodeError for a dtype that cannot travel or
        is not that of the type.
        """
        self._check_lends_arrays()
        return ArrayLoan(self, shape, dtype, headers)

    async def publish_async(self, value: T, *, headers: Mapping[str, str] | None = None) -> int:
        """`publish` for asyncio: while there is no room, the task waits and its loop goes on.

        Samples of several tasks of a loop go in the order of the calls. Cancelled, it published nothing.
        """
        sent = self.attempt(value, headers)
        if isinstance(sent, int):
            return sent
        return await (self._queues or self._make_queues()).publish(self, sent)

    async def flush_async(self, timeout: float | None = None) -> bool:
        """`flush` for asyncio."""
        from .aio import until

        return await until(lambda: self.flush(0), self, timeout)

    async def wait_for_subscribers_async(self, n: int = 1, timeout: float | None = None) -> bool:
        """`wait_for_subscribers` for asyncio."""
        from .aio import until

        return await until(lambda: self.wait_for_subscribers(n, 0), self, timeout)

    def stats(self) -> PublisherStats:
        """Counts of this publisher; still works after close()."""
        from .reports import publisher_stats

        return publisher_stats(self)

    def __repr__(self) -> str:
        return f"<vbus.Publisher of {self.topic!r}>"

    async def _publish_draft(self, draft: Draft) -> int:
        """What `Loan.publish_async` calls."""
        sequence = draft.attempt_at_once()
        if sequence is not None:
            return sequence
        return await (self._queues or self._make_queues()).publish(self, draft)

    def _make_queues(self) -> Queues:
        from .turns import Queues

        self._queues = Queues()
        return self._queues

    def _check_lends_arrays(self) -> None:
        if "ndarray" not in self._codec.lends:
            error = ConfigError(
                "a loan of ndarray is for the types None and numpy.ndarray, which "
                f"{quote(self.topic)} has not; use publish()"
            )
            error.topic = self.topic
            raise error


class Subscriber(CoreSubscriber[T], Closing):
    """Receives the samples of one topic or pattern; made by `node.subscriber`. All methods are thread-safe.

    Iterate, or call `receive`; of several receivers each sample goes to one. Close it, or use it in `with`;
    it also closes when nothing refers to it.
    """

    __slots__ = ("__weakref__", "_node", "_receivers")

    _node: Node
    _receivers: Receivers | None

    async def receive_async(self, timeout: float | None = None) -> Sample[T]:
        """`receive` for asyncio; cancelling it never loses a sample."""
        return await (self._receivers or self._make_receivers()).receive(self, timeout)

    async def receive_many_async(
        self, max: int | None = None, timeout: float | None = None
    ) -> list[Sample[T]]:
        """`receive_many` for asyncio; cancelling it never loses a sample."""
        return await (self._receivers or self._make_receivers()).receive_many(self, max, timeout)

    async def wait_for_publishers_async(self, n: int = 1, timeout: float | None = None) -> bool:
        """`wait_for_publishers` for asyncio."""
        from .aio import until

        return await until(lambda: self.wait_for_publishers(n, 0), self, timeout)

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[Any, Any, Sample[T]]:
        return (self._receivers or self._make_receivers()).next(self)

    def stats(self) -> SubscriberStats:
        """Counts of this subscriber; still works after close()."""
        from .reports import subscriber_stats

        return subscriber_stats(self)

    def __repr__(self) -> str:
        return f"<vbus.Subscriber to {self.topic!r}>"

    def _make_receivers(self) -> Receivers:
        from .aio import Receivers

        self._receivers = Receivers()
        return self._receivers


class ArrayLoan:
    """An array in the bus's memory: a context manager that gives the ndarray, publishes on leaving `with`,
    and discards on an exception."""

    __slots__ = ("_array", "_dtype", "_headers", "_loan", "_publisher", "_shape")

    def __init__(
        self,
        publisher: Publisher[Any],
        shape: int | tuple[int, ...],
        dtype: Any,
        headers: Mapping[str, str] | None,
    ) -> None:
        self._publisher = publisher
        self._shape = shape
        self._dtype = dtype
        self._headers = headers
        self._array: Array | None = None
        self._loan: Loan | None = None

    def __enter__(self) -> Array:
        try:
            from .codec.loans import loan_array
        except ModuleNotFoundError as error:
            if error.name != "numpy":
                raise
            raise ModuleNotFoundError(
                "loan_array needs numpy, which is not installed; `pip install numpy`", name="numpy"
            ) from error

        publisher = self._publisher
        takes = publisher._codec.takes  # pyright: ignore[reportPrivateUsage]
        self._loan, self._array = loan_array(publisher, self._shape, self._dtype, self._headers, takes)
        return self._array

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        array, loan = self._array, self._loan
        self._array = self._loan = None
        if array is None or loan is None:
            return
        array.flags.writeable = False
        if kind is None:
            loan.publish()
        else:
            loan.discard()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a loan cannot be pickled; open a node in the worker")


class _Log:
    """A thread that moves what a node has to say to the logger "vbus", so that the core never calls
    Python."""

    __slots__ = ("_done", "_thread")

    def __init__(self, core: CoreNode) -> None:
        self._done = allocate_lock()
        self._done.acquire()
        # Not `threading`: its import costs as much as a node, and nobody ever joins this thread.
        self._thread = start_new_thread(_log_notices, (core, self._done))

    def drain(self) -> None:
        """Wait until everything is logged; the node is closed, so the thread ends."""
        if get_ident() != self._thread and self._done.acquire(timeout=DRAIN_SECONDS):
            self._done.release()


DRAIN_SECONDS = 1.0
MEETING_SECONDS = 0.5


def _log_notices(core: CoreNode, done: Any) -> None:
    try:
        waiting: list[tuple[str, str]] = []
        while notices := core.wait_notices():
            waiting += notices
            try:
                tell = _teller()
            except OSError:
                continue  # no descriptor is free to read a module with; the next notice brings another try
            notices, waiting = waiting, []
            for level, message in notices:
                tell(level, message)
    finally:
        done.release()


def _teller() -> Callable[[str, str], None]:
    """How to tell a notice now."""
    if "threading" not in sys.modules:
        # `logging` would import it, and before Python 3.13 the thread that does so first counts as the main
        # one: the program would wait for its end for ever. Without it nobody has set `logging` up.
        return _tell_as_logging_unset
    import logging
    import threading

    threading.current_thread().name = "vbus-log"
    logger = logging.getLogger("vbus")
    levels = {"warning": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}
    return lambda level, message: logger.log(levels.get(level, logging.INFO), "%s", message)


def _tell_as_logging_unset(level: str, message: str) -> None:
    if level == "warning" and sys.stderr is not None:
        try:  # noqa: SIM105 (`contextlib` is not imported for this)
            sys.stderr.write(f"{message}\n")
        except (OSError, ValueError):
            pass  # nobody reads it


def _what(channel_or_topic: Channel[Any] | str, type: Any) -> tuple[Channel[Any] | None, str, Any]:
    """Channel if there is one, topic, and type; a type that is given beats the channel's."""
    if isinstance(channel_or_topic, Channel):
        return channel_or_topic, channel_or_topic.topic, channel_or_topic.type if type is None else type
    if not isinstance(channel_or_topic, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"a topic is a str or a vbus.Channel, not {quote(channel_or_topic)}")
    return None, channel_or_topic, type


def _check_spin(spin: object) -> None:
    if spin is None or (isinstance(spin, (int, float)) and 0 <= spin < float("inf")):
        return
    raise ConfigError(f"spin is {quote(spin)}; give seconds from 0 on, or None to adapt")


def _codec(type: Any, topic: str) -> Codec:
    from .codec import codec_for

    return codec_for(type, topic)


def _make_peer(peer: PeerTuple) -> Peer:
    from .records import Peer

    return Peer(*peer)


def _close_at_exit(node: Node) -> None:
    if not _open_nodes:
        import atexit

        atexit.unregister(_close_open_nodes)
        atexit.register(_close_open_nodes)
    key = id(node)
    _open_nodes[key] = ref(node, lambda _: _open_nodes.pop(key, None))


def _close_open_nodes() -> None:
    leave_daemons_asleep()
    for node in list(_open_nodes.values()):
        if (open_node := node()) is not None:
            open_node.close()


_open_nodes: dict[int, ref[Node]] = {}
