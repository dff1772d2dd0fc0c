"""What the Rust extension gives Python. The public classes in `vbus` are these, dressed."""

from _thread import RLock
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar

from typing_extensions import Buffer  # collections.abc.Buffer from Python 3.12 on

from .records import Peer

T = TypeVar("T")

__version__: str

# ---- errors: born in Rust (crates/vbus-python/src/errors.rs), re-exported by vbus.errors --------
# Every class has the attributes topic, subscriber, limit, field (None where they do not apply).

class Error(Exception):
    topic: str | None
    subscriber: str | None
    limit: int | None
    field: str | None

class Timeout(Error, TimeoutError): ...
class Closed(Error): ...
class Full(Error): ...
class EncodeError(Error, ValueError): ...
class DecodeError(Error, ValueError): ...
class TopicError(Error, ValueError): ...
class ConfigError(Error, ValueError): ...
class TooLarge(Error, ValueError): ...
class NoServer(Error, ConnectionError): ...

class RemoteError(Error):
    type: str
    message: str
    traceback: str
    server: Peer

class ForkError(Error, RuntimeError): ...
class SharedMemoryError(Error, OSError): ...
class TransportError(Error, OSError): ...

# ---- functions ----------------------------------------------------------------------------------

def check_topic(topic: str, *, pattern: bool) -> None:
    """Raise TopicError unless `topic` follows the grammar; `pattern` allows `*` and `**`."""

def check_qos(qos: Mapping[str, Any], *, publisher: bool) -> None:
    """Raise ConfigError for an unknown name, a wrong type or a value out of range."""

def shapes_agree(offered: str, asked: str) -> tuple[str, str, str] | None:
    """None if the two shapes agree, else (field, offered, asked) of the first disagreement."""

def meeting_list(directory: str) -> list[tuple[str, str]]:
    """Sockets in a meeting directory: (path, state); state is "alive", "stale" or "foreign"."""

def meeting_collect(directory: str) -> list[str]:
    """Remove the stale sockets of this boot that may be removed; their paths."""

def set_aside(lock: RLock, function: Callable[..., T], *arguments: Any) -> T:
    """Call it while this thread does not hold the lock, and again after it; it holds it now."""

def leave_daemons_asleep() -> None:
    """The interpreter ends: other threads that meet something closed sleep on instead of raising."""

# ---- records as they cross (plain tuples; vbus._records makes the frozen dataclasses) ----------

# id, name, host, pid, addresses, path, rtt, since_ns, version
PeerTuple = tuple[str, str, str, int, tuple[str, ...], str | None, float | None, int, str]

class Node:
    """A participant of one domain: the driver thread, its neighbours, its publishers and subscribers.

    `make_peer` turns a PeerTuple into what `Sample.source` returns.
    `shm` are the meeting directories, tried in order and all used; with `shm_required`
    (the user named one) an unusable one raises SharedMemoryError, else it is skipped.
    `memory` 0 means a quarter of what the machine or the container has.
    `listen` is the address for UDP, "address:port"; None is no network at all. `open`: whether strangers
    may in without a secret. `interfaces`: names or addresses; empty means all.
    """
    def __new__(
        cls,
        *,
        name: str,
        domain: str,
        secret: bytes | None,
        shm: Sequence[str],
        shm_required: bool,
        memory: int,
        listen: str | None,
        open: bool,
        interfaces: Sequence[str],
        make_peer: Callable[[PeerTuple], Any],
    ) -> Self: ...
    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def domain(self) -> str: ...
    @property
    def closed(self) -> bool: ...
    @property
    def memory(self) -> int: ...
    def add_peer(self, name: str, addresses: list[tuple[str, int]], source: str) -> None:
        """`name` (a "host:port" of `peers`, or a node's id), found by `source` ("peers" or "mdns"), may be
        reached at these addresses, too: each call adds, and the core bounds what it keeps. An IPv6 address
        may have a scope, as a number: "fe80::1%2". Closed."""
    def remove_peer(self, name: str, source: str) -> None:
        """It is not found so any more; nothing is disconnected by it. Closed."""
    def network_port(self) -> int | None:
        """The UDP port; None without a network."""
    def self_tuple(self) -> PeerTuple: ...
    def peer_tuples(self) -> list[PeerTuple]:
        """Connected peers, without oneself."""
    def wait_for_peers(self, n: int = 1, timeout: float | None = None) -> bool: ...
    def news(self) -> News:
        """Tells when peers come or go, and when it is closed."""
    def topic_dicts(self) -> list[dict[str, Any]]:
        """One dict per topic that has a publisher: `topic` str, `shape` str, `encoding` str,
        `publishers` and `subscribers` lists of (id, PeerTuple, shape, qos dict),
        `rate` and `bytes_per_second` floats from the publishers' own counters,
        `mismatches` list of (publisher_id, subscriber_id, field, offered, asked)."""
    def stats_dict(self) -> dict[str, Any]: ...
    def findings(self, topic: str | None = None) -> list[tuple[str, str | None, str, str, str, str]]:
        """(peer id or address, topic or None, path, verdict, reason, remedy)."""
    def survey_dict(self) -> dict[str, int] | None:
        """How things stand on the network; None without one. `connections` with peers; `buffers_asked`,
        `receive_buffer`, `send_buffer` bytes (the kernel counts twice what it is asked for); `uncut` batches
        that it refused to cut; `received` datagrams, `forged` that did not open, `malformed` that are no
        packets."""
    def directory_tuples(self) -> list[tuple[str, str | None]]:
        """The meeting directories that were to be used: (path, why it cannot be, or None)."""
    def watch(self, endpoints: bool = False) -> Watch:
        """What happens, beginning with what is there; with `endpoints` single subscribers too, the bus's
        own included."""
    def subscriber_tuples(self, prefix: str) -> list[tuple[str, str, PeerTuple, str]]:
        """(id, topic, peer, shape) of every subscriber, near and far, whose topic begins so."""
    def wait_notices(self, timeout: float | None = None) -> list[tuple[str, str]]:
        """Block (GIL released) until there is something to log, or the node closed (then []).
        (level "warning" | "info" | "debug", message), each cause once."""
    def close(self, linger: float = 2.0) -> None: ...

class Publisher(Generic[T]):
    """`encoder(value) -> (encoding name, buffers, meta)`: the buffers are written one after the
    other as the payload; `meta` bytes travel beside it (dtype and shape of an ndarray).
    Plain `bytes` are MessagePack without meta.
    With `raw`, bytes-like values do not go through the encoder. `shape` is the type's shape text
    ("" for no type). `qos` values that are absent or None are not given."""
    def __new__(
        cls,
        node: Node,
        topic: str,
        *,
        shape: str,
        raw: bool,
        encoder: Callable[[Any], tuple[str, Sequence[Buffer], bytes] | bytes],
        qos: Mapping[str, Any],
    ) -> Self: ...
    @property
    def id(self) -> str:
        """Hex, unique: the one in Sample, Endpoint, Link and Mismatch."""
    @property
    def topic(self) -> str:
        """What it publishes on."""
    @property
    def closed(self) -> bool:
        """Whether it, or its node, was closed."""
    @property
    def subscribers(self) -> int:
        """How many subscribers are linked to it now."""
    def publish(self, value: T, *, headers: Mapping[str, str] | None = None) -> int:
        """Encode and send a value; the sample's `sequence`, which counts from 0.

        All or nothing: when it raises, nobody got the sample and no sequence was used, so it may be tried
        again. `headers` are texts of 4 KiB in all at most. Timeout after `block_timeout` seconds and
        Full, both naming the subscriber without room; TooLarge beyond `max_size`, or of headers;
        EncodeError for a value that is not of the type; Closed; SharedMemoryError where no memory is
        left.
        """
    def publish_message(
        self,
        kind: int,
        call: int,
        amount: int,
        encoded: tuple[str, Sequence[Buffer], bytes] | bytes,
        timeout: float | None,
    ) -> int:
        """Publish a message of a call; waits `timeout` seconds for room, whatever `block_timeout` is."""
    def draft_message(
        self, kind: int, call: int, amount: int, encoded: tuple[str, Sequence[Buffer], bytes] | bytes
    ) -> Draft:
        """The same, not tried yet."""
    def attempt(self, value: T, headers: Mapping[str, str] | None) -> int | Draft:
        """Publish at once: the sequence, or what is to be tried in turn. Raises what `publish` does."""
    def is_free(self) -> bool:
        """Whether a task may try at once: nobody waits before it, and not too many did so, for where there is
        always room, its loop would never get its turn."""
    def room(self) -> Room:
        """For one event loop."""
    def loan(self, nbytes: int, *, headers: Mapping[str, str] | None = None) -> Loan:
        """Borrow `nbytes` bytes of the bus's memory: fill `loan.buffer`; leaving `with` publishes it.

        The contents are undefined at first. For types None and bytes, else ConfigError. TooLarge beyond
        `max_size`.
        """
    def raw_loan(self, nbytes: int, headers: Mapping[str, str] | None, encoding: str, meta: bytes) -> Loan:
        """A loan with an encoding of the caller's choice (what `loan` and `loan_array` are made of)."""
    def wait_for_subscribers(self, n: int = 1, timeout: float | None = None) -> bool:
        """Wait until `n` subscribers are linked; whether they are.

        `timeout` in seconds, None for ever, 0 tries once. ValueError for a negative one, Closed.
        """
    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything reliable is with every subscriber's node; whether it is.

        `timeout` in seconds, None for ever, 0 tries once. ValueError for a negative one, Closed.
        """
    def stats_dict(self) -> dict[str, Any]:
        """What `stats` is made of."""
    def close(self) -> None:
        """End it: its history goes, and what was accepted is still received. Closing twice is fine."""
    def news(self) -> News:
        """Tells when subscribers come, and when it is closed."""

class Loan:
    """Memory borrowed from the bus. A context manager: leaving publishes, an exception discards."""
    @property
    def buffer(self) -> memoryview:
        """The memory to fill: a writable memoryview. ValueError once it was published or discarded."""
    @property
    def nbytes(self) -> int:
        """Bytes that will be published."""
    def truncate(self, n: int) -> None:
        """Publish only the first `n` bytes. ValueError for more than there are."""
    def publish(self) -> int:
        """Send it; the sample's `sequence`. Afterwards the buffer is gone.

        May be tried again after Timeout or Full, which come as from `Publisher.publish`. ValueError if it
        is over.
        """
    def discard(self) -> None:
        """Give the memory back unpublished; nothing happens if it is over already."""
    async def publish_async(self) -> int:
        """`publish` for asyncio. Cancelled, it published nothing, and the loan is as it was."""
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

class Draft:
    """A sample on its way: encoded once, tried as often as it takes."""

    def attempt_at_once(self) -> int | None:
        """`attempt`, if nobody queues up; None also to give the loop back now and then."""
    def attempt(self) -> int | None:
        """Publish it if there is room: the sequence, or None. Raises what `publish` does, but for Timeout."""
    @property
    def is_blocked(self) -> bool:
        """Whether it was tried, in vain."""
    @property
    def block_timeout(self) -> float | None: ...
    def timeout(self, waited: float) -> Timeout | None:
        """The error that names who had no room; None if it was not tried in vain."""
    def tell_long_wait(self, waited: float) -> None:
        """Tell the user, once, if it waited a second."""
    def queue_up(self) -> None:
        """From now on, no other is attempted at once."""
    def leave_queue(self, blocked: float | None) -> None:
        """Never mind any more; if it was blocked, so many seconds are counted."""

class Room:
    """How one event loop waits for room at one publisher: ask, watch the file, rest, try again."""

    def fileno(self) -> int: ...
    def ask(self, draft: Draft, waited: float) -> float | None:
        """Have the file become readable when there may be room. 0.0: there may be some already; else it is
        worth a try after so many seconds in any case (None: only then)."""
    def rest(self) -> None:
        """Wait no more: the file is quiet until the next time."""

class Ear:
    """A file of one's own that is readable when that of a subscriber or watch is, open while this lives."""

    def fileno(self) -> int: ...

class News:
    """A file that is readable after news of what it was made from, until it is silenced."""

    def fileno(self) -> int: ...
    def silence(self) -> None: ...

class Ears:
    """Many ears, of which one thread waits for any."""

    def __new__(cls) -> Self: ...
    def add(self, ear: Ear, token: int) -> None:
        """From now on `wait` tells `token` while `ear` is readable."""
    def remove(self, ear: Ear) -> None: ...
    def wait(self) -> list[int]:
        """Wait (GIL released) until an ear is readable or somebody rings: the tokens of those that are."""
    def ring(self) -> None: ...

class Subscriber(Generic[T]):
    """`decoder(encoding name, payload, meta) -> value`: payload is a read-only memoryview that keeps the
    sample's memory; with `raw`, samples of encoding "raw" become bytes without it. `quick(payload) -> value`,
    if given, is asked first for MessagePack without meta; if it raises, the decoder is asked.
    Iterable; iteration ends when subscriber or node closes."""
    def __new__(
        cls,
        node: Node,
        topic: str,
        *,
        shape: str,
        raw: bool,
        quick: Callable[[Buffer], Any] | None = None,
        decoder: Callable[[str, memoryview, bytes], Any],
        spin: float | None,
        qos: Mapping[str, Any],
    ) -> Self: ...
    @property
    def id(self) -> str:
        """Hex, unique: the one in Endpoint, Link and Mismatch."""
    @property
    def topic(self) -> str:
        """The topic or pattern that it subscribes to."""
    @property
    def closed(self) -> bool:
        """Whether it, or its node, was closed."""
    @property
    def publishers(self) -> int:
        """How many publishers are linked to it now."""
    def receive(self, timeout: float | None = None) -> Sample[T]:
        """The next sample; waits for it, without the GIL.

        `timeout` in seconds, None for ever, 0 tries once. Timeout if none comes, Closed, ValueError for a
        negative timeout. Never raises for a value that cannot be read: `Sample.value` does.
        """
    def receive_nowait(self) -> Sample[T] | None:
        """The next sample if one waits, else None. Closed once it is closed."""
    def receive_many(self, max: int | None = None, timeout: float | None = None) -> list[Sample[T]]:
        """What waits, up to `max` samples (1 or more; None for all); waits for at least one.

        `timeout` in seconds, None for ever, 0 tries once. Timeout if none comes, Closed, ValueError for a
        `max` below 1 or a negative timeout.
        """
    def receive_message(self) -> Message:
        """The next message of a call; waits for it. What is none is passed over."""
    def take_message(self) -> Message | None:
        """The next message of a call if one waits."""
    def wait(self, timeout: float | None = None) -> None:
        """Until there may be a sample, or a nudge; takes nothing. For one thread at a time."""
    def nudge(self) -> None:
        """End the `wait` of another thread, or the next one."""
    def forget_nudge(self) -> None:
        """Take back a nudge that ended no `wait`."""
    def __iter__(self) -> Iterator[Sample[T]]: ...
    def __next__(self) -> Sample[T]: ...
    def fileno(self) -> int:
        """A descriptor for select and loops, readable while a sample waits or the subscriber is closed.

        Level-triggered; it may be readable with nothing there, but not again after `receive_nowait()`
        returned None until something comes. Never read from it. It stays open until this object is
        deleted.
        """
    def wait_for_publishers(self, n: int = 1, timeout: float | None = None) -> bool:
        """Wait until `n` publishers are linked; whether they are.

        `timeout` in seconds, None for ever, 0 tries once. ValueError for a negative one, Closed.
        """
    def stats_dict(self) -> dict[str, Any]:
        """What `stats` is made of."""
    def close(self) -> None:
        """End it; closing twice is fine.

        Who waits in it wakes with Closed; what waits is dropped and counted "closed".
        """
    def glance(self) -> Sample[T] | None:
        """`receive_nowait` that leaves the file as it is, for who asks again before it waits."""
    def look(self, rested: float | None) -> bool:
        """Look for a sample, for 50 µs at most, if that tends to help; whether one was found, not taken.

        By how long somebody waited for the file since the last look, it learns whether it helps."""
    def take(self) -> Sample[T] | Literal[False] | None:
        """`receive_nowait` for a thread that ends when this is closed: False then, and no exception, which
        would leave the thread asleep while the interpreter ends."""
    def receive_many_nowait(self, max: int | None = None) -> list[Sample[T]]: ...
    def timed_out(self, timeout: float) -> Timeout:
        """The error of a `receive` that waited so long."""
    def ear(self) -> Ear: ...
    def news(self) -> News:
        """Tells when publishers come, and when it is closed."""

class Message:
    """One message of a call as it arrived: see `vbus.service.wire`."""

    @property
    def kind(self) -> int: ...
    @property
    def call(self) -> int: ...
    @property
    def amount(self) -> int: ...
    @property
    def encoding(self) -> str: ...
    @property
    def payload(self) -> memoryview | bytes:
        """The value; small MessagePack is copied, all else a view of the bus's memory."""
    @property
    def meta(self) -> bytes:
        """The codec's own."""
    @property
    def node(self) -> str:
        """The id of the node that sent it."""

class Sample(Generic[T]):
    """One published message, as API.md describes it; made by a Subscriber only."""
    @property
    def value(self) -> T:
        """The payload as a value of the type, decoded on first use. DecodeError if it is none."""
    @property
    def payload(self) -> memoryview:
        """A read-only memoryview of the bytes as published."""
    @property
    def nbytes(self) -> int:
        """Bytes of the payload."""
    @property
    def topic(self) -> str:
        """The publisher's topic."""
    @property
    def sequence(self) -> int:
        """The publisher's count, from 0."""
    @property
    def lost(self) -> int:
        """Samples of this publisher missing directly before this one."""
    @property
    def publisher(self) -> str:
        """The publisher's id."""
    @property
    def timestamp_ns(self) -> int:
        """The publisher's `time.time_ns()`."""
    @property
    def source(self) -> Peer:
        """The publisher's node, a Peer."""
    @property
    def encoding(self) -> str:
        """How it is written: "raw", "msgpack", "ndarray" or a codec's name."""
    @property
    def headers(self) -> dict[str, str]:
        """The publisher's headers."""
    @property
    def via(self) -> str:
        """The path it came by: "shm" or "udp"."""
    def release(self) -> None:
        """Gives the memory back, unless a view of it lives. `payload` and `value` raise Closed then; what
        else the sample says of itself stays."""
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

class Watch:
    """Events as tuples: ("peer_joined", PeerTuple, time_ns), ("peer_left", PeerTuple, reason, time_ns),
    ("peer_refused", name, address, reason, remedy, time_ns), ("topic_added", topic, time_ns),
    ("topic_removed", topic, time_ns); with `endpoints` also ("subscriber_added", id, topic, PeerTuple, shape)
    and ("subscriber_removed", id, topic, PeerTuple)."""
    @property
    def closed(self) -> bool: ...
    @property
    def missed(self) -> int: ...
    def receive_tuple(self, timeout: float | None = None) -> tuple[Any, ...]: ...
    def receive_tuple_nowait(self) -> tuple[Any, ...] | None: ...
    def timed_out(self, timeout: float) -> Timeout:
        """The error of a `receive` that waited so long."""
    def fileno(self) -> int: ...
    def ear(self) -> Ear: ...
    def close(self) -> None: ...

class Look:
    """Whether a value is of just this class, and its attributes (items, if it is dict) are of just these
    classes (none: any). A place is (name, may be missing in a dict, classes)."""
    def __new__(cls, of: type, places: Sequence[tuple[str, bool, Sequence[type]]]) -> Self: ...
    def __call__(self, value: object) -> bool: ...

# stats_dict of a publisher: topic, published, bytes, dropped (dict by cause), lost, waiting, held,
#   blocked_seconds, links: list of dict(publisher, subscriber, peer: PeerTuple, sent, delivered, waiting,
#   dropped, lost)
# stats_dict of a subscriber: topic, sent, delivered, waiting, held, dropped, lost, bytes, links
# stats_dict of a node: peers, published, delivered, dropped, lost, bytes_sent, bytes_received, memory
