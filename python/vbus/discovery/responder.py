"""mDNS by python-zeroconf: announces this node, asks for others, and follows interfaces as they come and go.

Everything here runs in one loop of asyncio, in the thread of `mdns.py`. What is asked, and when, is decided
here and not by a ServiceBrowser: that one never asks again once it knows nobody, so two nodes that started
while a switch was dead would never meet, and it remembers every name that anybody shouts.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, cast

# These are public in its documentation, and missing from its list of exports.
from zeroconf import (  # type: ignore[attr-defined]
    DNSOutgoing,  # pyright: ignore[reportPrivateImportUsage]
    DNSPointer,  # pyright: ignore[reportPrivateImportUsage]
    DNSQuestion,  # pyright: ignore[reportPrivateImportUsage]
    Error,
    RecordUpdate,
    RecordUpdateListener,
    Zeroconf,
    current_time_millis,
)
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from . import interfaces
from .announcement import LABELS, SERVICE, instance, properties
from .heard import MAX_ADDRESSES, MAX_NODES, Heard

__all__ = ["Gate", "Responder"]


class Responder:
    """One node's mDNS. `live` runs until it is cancelled, and says goodbye then."""

    def __init__(
        self,
        node: str,
        domain: str,
        port: int,
        heard: Heard,
        wanted: Sequence[str],
        listen: str,
    ) -> None:
        self._node = node
        self._domain = domain
        self._port = port
        self._heard = heard
        self._wanted = wanted
        self._listen = listen
        self._dns: AsyncZeroconf | None = None
        self._info: AsyncServiceInfo | None = None
        self._listener = Listener(self._on_names)
        self._tasks: set[asyncio.Future[Any]] = set()
        self._asking: set[str] = set()
        self._asked = 0
        self._ask_at = 0.0
        self._bucket = Bucket()
        self._wake = asyncio.Event()
        self.ignored = Counter[str]()
        self.spoken: tuple[str, ...] = ()
        self.announced: tuple[str, ...] = ()
        self.error: str | None = None
        self.descriptors: frozenset[int] = frozenset()
        self._echoes: set[str] = set()
        self._places: dict[str, frozenset[str]] = {}

    @property
    def deaf(self) -> tuple[str, ...]:
        """Interfaces where this node's own packets were not heard, though a system shows its own to itself: a
        firewall, or no multicast. None as long as little was said there."""
        if self._asked <= LISTENED_FOR:
            return ()
        echoes = self._echoes.copy()
        return tuple(name for name, addresses in self._places.items() if not addresses & echoes)

    async def live(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        changes = interfaces.open_changes()
        if changes is not None:
            loop.add_reader(changes, self._on_change, changes)
        try:
            while True:
                self._wake.clear()
                await self._follow(changes)
                # News of interfaces come by themselves; what failed is tried again.
                hurry = changes is None or self.error is not None
                await self._ask_until(loop.time() + (LOOK_SECONDS if hurry else LOOK_ANYWAY_SECONDS))
                if self._wake.is_set():
                    await asyncio.sleep(SETTLE_SECONDS)  # they come in flocks
        finally:
            self.descriptors = frozenset()
            if changes is not None:
                loop.remove_reader(changes)
                changes.close()
            await self._leave()

    # ---- following interfaces ---------------------------------------------------------------------

    async def _follow(self, changes: socket.socket | None) -> None:
        """Sockets and addresses are those of the interfaces that there are."""
        try:
            chosen, missing = interfaces.choose(interfaces.present(), self._wanted, self._listen)
            self.error = f"there is no interface or address {', '.join(missing)}" if missing else None
            self.spoken = tuple(interface.name for interface in chosen)
            self._places = {its.name: frozenset(str(net.ip) for net in its.addresses) for its in chosen}
            self._heard.live_at(its for interface in chosen for its in interface.addresses)
            places = interfaces.spoken(chosen)
            before = self._sockets()
            if self._dns is None:
                self._dns = AsyncZeroconf(interfaces=places)
                # Before the first packet: what the cache has already is no news to anybody.
                self._dns.zeroconf.async_add_listener(self._listener, None)
                # A cancellation must not reach what zeroconf waits for itself when it is closed.
                await asyncio.shield(self._dns.zeroconf.async_wait_for_start())
            await self._announce(self._dns.zeroconf, interfaces.announced(chosen, MAX_ADDRESSES))
            await self._dns.zeroconf.async_update_interfaces(places)
            self._guard()
            self.descriptors = self._sockets() | (frozenset() if changes is None else {changes.fileno()})
            if self._sockets() - before:
                # Somewhere new: who is there?
                self._asked = 0
                self._plan(asyncio.get_running_loop().time())
        except (OSError, RuntimeError, Error) as error:
            self.error = str(error) or type(error).__name__

    async def _announce(self, zeroconf: Zeroconf, addresses: list[str]) -> None:
        """Say where this node is, if that is new."""
        if self._info is not None and tuple(addresses) == self.announced:
            return
        first = self._info is None
        name = instance(self._node)
        said = properties(self._domain, self._port)
        self._info = AsyncServiceInfo(
            SERVICE,
            name,
            port=self._port,
            properties=said,
            server=name,
            host_ttl=TTL_SECONDS,
            other_ttl=TTL_SECONDS,
            parsed_addresses=addresses,
        )
        self.announced = tuple(addresses)
        untyped: Any = zeroconf
        if first:
            # Nobody else has these 128 random bits, so nobody is asked whether the name is free.
            self._spawn(await untyped.async_register_service(self._info, cooperating_responders=True))
        else:
            self._spawn(await untyped.async_update_service(self._info))

    def _guard(self) -> None:
        """A gate before each socket's protocol."""
        assert self._dns is not None
        for reader in self._dns.zeroconf.engine.readers:
            protocol = cast(asyncio.DatagramProtocol, reader.transport.get_protocol())
            if not isinstance(protocol, Gate):
                echo = Echo(self._node, self._echoes)
                gate = Gate(protocol, self._bucket, self.ignored, self._on_error, echo)
                reader.transport.set_protocol(gate)
                # Fifty programs that start at once say a lot; what the system allows may be less.
                reader.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)

    # ---- asking -----------------------------------------------------------------------------------

    async def _ask_until(self, then: float) -> None:
        """Ask who is there when it is time, until then or until something changes."""
        loop = asyncio.get_running_loop()
        while not self._wake.is_set() and (now := loop.time()) < then:
            if now >= self._ask_at:
                self._ask()
                self._plan(now)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), max(0.0, min(self._ask_at, then) - loop.time()))

    def _plan(self, now: float) -> None:
        """When to ask next: soon at first, and then the more rarely the more nodes there are, so that all of
        them together ask about once a second."""
        if self._asked < len(FIRST_QUESTIONS):
            pause = FIRST_QUESTIONS[self._asked]
        else:
            pause = max(ASK_SECONDS, float(len(self._heard.candidates())))
        self._asked += 1
        self._ask_at = now + pause * random.uniform(0.8, 1.2)

    def _ask(self) -> None:
        """Whoever is not among those we name may answer. To all: others on this host have the same port, and
        an answer to us alone could be theirs."""
        if self._dns is None:
            return
        now = current_time_millis()
        question = DNSOutgoing(_QUERY)
        question.add_question(DNSQuestion(SERVICE, _PTR, _IN))
        for known in self._dns.zeroconf.cache.get_all_by_details(SERVICE, _PTR, _IN)[:MAX_NODES]:
            if not known.is_stale(now):
                question.add_answer_at_time(known, now)
        self._dns.zeroconf.async_send(question)

    # ---- hearing ----------------------------------------------------------------------------------

    def _on_names(self, zeroconf: Zeroconf, names: dict[str, bool]) -> None:
        """Something was heard of these names; False: goodbye, or not heard for long."""
        for name, present in names.items():
            if not present:
                self._heard.withdrawn(name)
                continue
            if not self._heard.is_wanted(name):
                continue
            info = AsyncServiceInfo(SERVICE, name)
            if info.load_from_cache(zeroconf):
                self._on_announced(info)
            elif name in self._asking:
                continue
            elif len(self._asking) < MAX_ASKED_AT_ONCE:
                self._asking.add(name)
                self._spawn(self._resolve(zeroconf, info))
            else:
                self.ignored["too many questions"] += 1

    async def _resolve(self, zeroconf: Zeroconf, info: AsyncServiceInfo) -> None:
        """A name was heard without all that belongs to it."""
        try:
            if await info.async_request(zeroconf, RESOLVE_MS):
                self._on_announced(info)
        finally:
            self._asking.discard(info.name)

    def _on_announced(self, info: AsyncServiceInfo) -> None:
        self._heard.announced(info.name, info.properties, info.parsed_scoped_addresses())

    def _on_change(self, changes: socket.socket) -> None:
        interfaces.read_changes(changes)
        self._wake.set()

    def _on_error(self, error: Exception) -> None:
        """A socket could not send: a firewall, or no route."""
        self.error = str(error)

    # ---- the end ----------------------------------------------------------------------------------

    async def _leave(self) -> None:
        """Goodbye, once and at once: who misses it finds out by itself."""
        for task in self._tasks:
            task.cancel()
        if self._dns is not None:
            goodbye = self._dns.zeroconf.generate_unregister_all_services()
            if goodbye is not None:
                self._dns.zeroconf.async_send(goodbye)
            await self._dns.async_close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _sockets(self) -> frozenset[int]:
        if self._dns is None:
            return frozenset()
        return frozenset(reader.fileno for reader in self._dns.zeroconf.engine.readers)

    def _spawn(self, work: Any) -> None:
        task: asyncio.Future[Any] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.error = str(error) or type(error).__name__


class Listener(RecordUpdateListener):
    """Collects the names of our service that a packet tells something about; tells when the cache has it."""

    def __init__(self, on_names: Callable[[Zeroconf, dict[str, bool]], None]) -> None:
        self._on_names = on_names
        self._names: dict[str, bool] = {}
        self._zeroconf: Zeroconf | None = None

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        """A packet has, or the cache lost, these."""
        self._zeroconf = zc
        for update in records:
            record = update.new
            if isinstance(record, DNSPointer):
                if record.key == SERVICE:
                    self._names[record.alias] = not record.is_expired(now)
            elif update.old is None and record.key.endswith(SERVICE) and not record.is_expired(now):
                self._names.setdefault(record.name, True)

    def async_update_records_complete(self) -> None:
        """The cache has them."""
        names, self._names = self._names, {}
        if names and self._zeroconf is not None:
            self._on_names(self._zeroconf, names)


class Bucket:
    """How many packets about our service are read: a thousand at once, and so many a second."""

    def __init__(self) -> None:
        self._left = PACKETS_AT_ONCE
        self._filled = 0.0

    def take(self, now: float) -> bool:
        """Whether one more may be read."""
        self._left = min(PACKETS_AT_ONCE, self._left + (now - self._filled) * PACKETS_PER_SECOND)
        self._filled = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Echo:
    """Which addresses of ours were heard as the source of our own words."""

    def __init__(self, node: str, echoes: set[str]) -> None:
        self._mark = bytes([len(node)]) + node.encode()
        self._echoes = echoes

    def look(self, data: bytes, source: str) -> None:
        """A packet was heard from there."""
        source = source.partition("%")[0].removeprefix("::ffff:")
        if source not in self._echoes and len(self._echoes) < MAX_ECHOES and self._mark in data:
            self._echoes.add(source)


class Gate(asyncio.DatagramProtocol):
    """Lets through what is about our service, which every such packet has in it, and not too much of that.

    So a thousand foreign services cost a look each, and neither time to read nor room in the cache."""

    def __init__(
        self,
        inner: asyncio.DatagramProtocol,
        bucket: Bucket,
        ignored: Counter[str],
        on_error: Callable[[Exception], None],
        echo: Echo,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._inner = inner
        self._bucket = bucket
        self._ignored = ignored
        self._on_error = on_error
        self._echo = echo
        self._clock = clock or asyncio.get_running_loop().time

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        """From the socket."""
        if LABELS not in data and LABELS not in data.lower():
            self._ignored["other services"] += 1
        elif self._bucket.take(self._clock()):
            self._echo.look(data, addr[0])
            try:
                self._inner.datagram_received(data, addr)
            except Exception:  # whatever it was made to trip over, the next packet has done nothing wrong
                self._ignored["malformed"] += 1
        else:
            self._ignored["too many packets"] += 1

    def error_received(self, exc: Exception) -> None:
        """From the socket."""
        self._on_error(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        self._inner.connection_lost(exc)


FIRST_QUESTIONS = (0.06, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds after coming somewhere new, and then from question to question."""
LISTENED_FOR = 2
"""So many questions after coming somewhere new, it is known whether they are heard: after a second."""
ASK_SECONDS = 30.0
"""From question to question, later; a healed network is found so."""
TTL_SECONDS = 1200
"""How long others remember this node if it does not say goodbye. Twenty minutes: python-zeroconf remembers a
shorter one as long."""
LOOK_SECONDS = 5.0
"""From look to look at the interfaces where nobody tells that they changed, or after an error."""
LOOK_ANYWAY_SECONDS = 300.0
SETTLE_SECONDS = 0.1
RESOLVE_MS = 3000
MAX_ASKED_AT_ONCE = 8
MAX_ECHOES = 64
RECEIVE_BYTES = 1 << 20
PACKETS_AT_ONCE = 1000.0
PACKETS_PER_SECOND = 200.0

_QUERY = 0
_PTR = 12
_IN = 1
