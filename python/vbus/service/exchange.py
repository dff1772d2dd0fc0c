"""All calls of a node: who serves, who waits for what, and who went away.

One lock, `Exchange.lock`, guards all tables. It is held for moments: never while waiting, and never while
code of users runs, but for handlers of signals and what the garbage collector calls, which come in between.
What waits in these goes through `Exchange.aside`. Replies are taken from the bus only with it, so they are
seen in their order, and when a server is gone, all that it had sent is seen first.

Of the threads that wait for replies one *leads*: it sleeps at the bus and hands out what comes. When it has
what it waited for, it passes the lead on. A loop of asyncio that has calls under way looks by itself when
there is something to take.

One thread per node, the *keeper*, learns who came and who went, and does what must not make anybody else
wait: cancels, credit for streams, replies for callers that are slow to take them.
"""

from __future__ import annotations

import itertools
import os
import select
import time
from _thread import RLock, allocate_lock, get_ident, start_new_thread
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vbus._vbus import Publisher as CorePublisher
from vbus._vbus import Subscriber as CoreSubscriber
from vbus._vbus import set_aside
from vbus.errors import Closed, Error, Full, NoServer, SharedMemoryError, Timeout, TransportError, quote
from vbus.waits import acquire, is_over, remaining

from . import wire
from .caller import call
from .contract import contract_of
from .wire import CONTROL, REPLY, SERVE

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from typing import TypeVar

    from vbus._vbus import Message, PeerTuple
    from vbus._vbus import Node as CoreNode
    from vbus.resume import Turn
    from vbus.turns import Queues

    from .contract import Contract
    from .serving import Served, Serving
    from .wire import Announced, Outgoing

    T = TypeVar("T")


__all__ = ["Exchange", "LoopWaiter", "Mailbox", "Pending", "Remote"]

DEPTH = 1024
"""Messages that may wait at one receiver; more wait at their sender."""
RETRY_SECONDS = 0.005
LONGEST_RETRY_SECONDS = 0.05
RECHECK_SECONDS = 0.05
KEEPER_SECONDS = 2.0
TAKEN_AT_ONCE = 256
EARLY_CANCELS = 1024
"""Cancels per caller that may be there before their calls."""
UNTAKEN = 1 << 16
"""Replies that may wait for a node that takes none; then its requests are not taken either."""
SUSPECT_SECONDS = 1.0
LONGEST_SUSPECT_SECONDS = 30.0


class Exchange:
    """The calls of one node, made when it first serves or calls."""

    contract_of = staticmethod(contract_of)
    call = call

    def __init__(self, core: CoreNode, met_by: float | None) -> None:
        self.core = core
        self.met_by = met_by
        """Until when others may be met whom the node looks for; None if it looks for nobody."""
        self.pid = os.getpid()
        # Of a coroutine that the garbage collector ends, the end may run while its thread holds the lock.
        self.lock = RLock()
        self.closed = False
        self._calls_are_over = False
        # What this node calls.
        self._numbers = itertools.count(1)
        self._choices = itertools.count(1)
        self._pending: dict[int, Pending] = {}
        self._came: deque[Message] = deque()
        """What was taken and not handed out, which is so for a moment."""
        self._remotes: dict[str, Remote] = {}
        self._by_name: dict[str, list[Remote]] = {}
        self._controls: dict[str, Mailbox] = {}
        # Who waits for replies.
        self._leader: ThreadWaiter | None = None
        self._first = ThreadWaiter(0)
        """Leads where nobody does."""
        self._leader_sleeps = False
        self._is_nudged = False
        self._followers: dict[ThreadWaiter, None] = {}
        self._loops: dict[asyncio.AbstractEventLoop, int] = {}
        # Seconds that the last call waited in a loop.
        self._rested: float | None = None
        # What this node serves.
        self.servings: dict[str, Serving] = {}
        self.running: dict[tuple[str, int], Served] = {}
        self._mailboxes: dict[str, Mailbox] = {}
        self._early: dict[str, dict[int, None]] = {}
        self.own_loop: Any = None
        # What the keeper has to do. Anybody may append, at any moment: also the garbage collector.
        self.left: deque[Pending] = deque()
        self._disposed: deque[CorePublisher[Any]] = deque()
        self._slow: dict[Mailbox, None] = {}
        self._opening = allocate_lock()
        self._replies = self._subscriber(REPLY)
        self._control = self._subscriber(CONTROL)
        self._watch = core.watch(endpoints=True)
        self._missed = 0
        with self.lock:
            self._learn_all()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._kept = allocate_lock()
        self._kept.acquire()
        self._keeper = start_new_thread(self._keep, ())

    # ---- who serves -----------------------------------------------------------------------------

    def begin(self, contract: Contract, is_stream: bool) -> Pending:
        """A call of the server that has least to do. NoServer if there is none, or none that fits."""
        with self.lock:
            if self._calls_are_over:
                raise self.closed_error()
            remotes = self._servers_of(contract.name)
            if len(remotes) == 1 and remotes[0].fits is contract and remotes[0].leaving is None:
                best = remotes[0]
            else:
                best = self._choose(contract, remotes)
            best.under_way += 1
            pending = Pending((best.salt + next(self._numbers)) & NUMBERS, best, is_stream)
            self._pending[pending.number] = pending
            return pending

    def knows(self, name: str) -> bool:
        """Whether anybody serves `name`, for all that is known."""
        with self.lock:
            return bool(self._servers_of(name))

    def _servers_of(self, name: str) -> list[Remote]:
        """Under the lock."""
        self._hear()
        if not self._by_name.get(name):
            self._learn_all()
        return self._by_name.get(name, [])

    def _choose(self, contract: Contract, remotes: list[Remote]) -> Remote:
        best, misfit = None, None
        for remote in remotes:
            if remote.leaving is not None:
                continue
            if (found := contract.misfit(remote.announced)) is not None:
                misfit = found, remote
            elif best is None or remote.burden() < best.burden():
                best = remote
        if best is None:
            raise self._nobody(contract.name, misfit)
        best.fits = contract
        best.asked = next(self._choices)
        return best

    def _nobody(self, name: str, misfit: tuple[tuple[str, str, str, str], Remote] | None) -> NoServer:
        if misfit is None:
            error = NoServer(
                f"nobody serves {quote(name)} in the domain {quote(self.core.domain)}, so the call did not "
                "run; start its server, or see what is served by `vbus services`"
            )
        else:
            (part, field, offered, asked), remote = misfit
            place = "" if field == "type" else f" in field {quote(field)}"
            mine, its = (offered, asked) if part == "request" else (asked, offered)
            error = NoServer(
                f"{quote(name)} of node {quote(remote.peer[1])} has another type of {part}, {its}{place}, "
                f"than the caller, {mine}, so the call did not run; compare the types of both sides"
            )
            error.field = field
        error.topic = name
        return error

    def _learn_all(self) -> None:
        # With the lock held: whoever goes after this look is heard of after it.
        for id, topic, peer, shape in self.core.subscriber_tuples(SERVE):
            self._learn(id, topic, peer, shape)

    def _learn(self, id: str, topic: str, peer: PeerTuple, shape: str) -> None:
        if id in self._remotes or not topic.startswith(SERVE):
            return
        announced = wire.read_announced(shape)
        if announced is None:
            return
        remote = Remote(id, topic, peer, announced)
        self._remotes[id] = remote
        self._by_name.setdefault(announced.name, []).append(remote)

    def _hear(self) -> None:
        """Who came, who went. With the lock held; Closed if the node is."""
        try:
            event = self._watch.receive_tuple_nowait()
            if event is None:
                return
            while event is not None:
                self._learn_of(event)
                event = self._watch.receive_tuple_nowait()
        except Closed:
            raise self.closed_error() from None
        if self._watch.missed != self._missed:
            self._missed = self._watch.missed
            self._compare_all()

    def _learn_of(self, event: tuple[Any, ...]) -> None:
        match event:
            case ("subscriber_added", id, topic, peer, shape):
                self._learn(id, topic, peer, shape)
            case ("subscriber_removed", id, _, _):
                self._forget(id)
            case ("peer_left", peer, _, _):
                self._forget_node(peer[0])
            case _:
                pass

    def _compare_all(self) -> None:
        """More happened than could wait for us: look at what is there instead."""
        there = {id for id, *_ in self.core.subscriber_tuples(SERVE)}
        for id in [id for id in self._remotes if id not in there]:
            self._forget(id)
        self._learn_all()
        nodes = {self.core.id, *(peer[0] for peer in self.core.peer_tuples())}
        callers = {node for node, _ in self.running}
        for node in {*self._controls, *self._mailboxes, *callers} - nodes:
            self._forget_node(node)

    def _forget(self, id: str) -> None:
        if id not in self._remotes:
            return
        # What it sent before it went was accepted, and counts.
        self._take_all()
        remote = self._remotes.pop(id)
        same = self._by_name[remote.announced.name]
        same.remove(remote)
        if not same:
            del self._by_name[remote.announced.name]
        answered = remote.leaving or frozenset()
        for pending in list(self._pending.values()):
            if pending.remote is remote and pending.number not in answered:
                self._finish(pending, remote.gone_error(pending.is_sent))
        remote.is_gone = True
        self._dispose(remote.publisher)

    def _forget_node(self, id: str) -> None:
        self._take_all()
        for remote in [it for it in self._remotes.values() if it.peer[0] == id]:
            remote.leaving = None
            self._forget(remote.id)
        # Servers that had left before, and had still something to answer.
        for pending in list(self._pending.values()):
            if pending.remote.peer[0] == id:
                self._finish(pending, pending.remote.gone_error(pending.is_sent))
        for boxes in (self._controls, self._mailboxes):
            if (box := boxes.pop(id, None)) is not None:
                box.is_over = True
                self._slow.pop(box, None)
                self._dispose(box.publisher)
        self._early.pop(id, None)
        for served in [it for (node, _), it in self.running.items() if node == id]:
            served.cancel()

    def _dispose(self, publisher: CorePublisher[Any] | None) -> None:
        """Closing tells neighbours, which need not wait for us here."""
        if publisher is not None:
            self._disposed.append(publisher)
            self.ring()

    # ---- what is under way ----------------------------------------------------------------------

    def send(self, pending: Pending, outgoing: Outgoing, deadline: float | None) -> None:
        """Hand a request to its server. Timeout if it takes none until the deadline."""
        publisher = pending.remote.publisher or self.door(pending.remote, deadline)
        while not pending.remote.is_linked:
            if pending.is_over:
                return None
            left = remaining(deadline)
            slice_ = RECHECK_SECONDS if left is None else min(left, RECHECK_SECONDS)
            try:
                pending.remote.is_linked = publisher.wait_for_subscribers(1, slice_)
            except Closed:
                return self._sent_to_nobody(pending)
            if not pending.remote.is_linked and left is not None and left <= 0:
                raise pending.timeout_error("it does not answer")
        pending.is_sent = True
        try:
            publisher.publish_message(*outgoing, remaining(deadline))
        except Closed:
            self._sent_to_nobody(pending)
        except Timeout as error:
            pending.is_sent = False
            raise pending.timeout_error(str(error)) from None
        except BaseException:
            # Also Ctrl-C while it waited: nobody got it.
            pending.is_sent = False
            raise
        return None

    def try_send(self, pending: Pending, outgoing: Outgoing) -> bool:
        """The same without waiting; False if it has to wait, for room or to open a way."""
        remote = pending.remote
        publisher = remote.publisher
        if publisher is None:
            return False
        if not remote.is_linked:
            try:
                remote.is_linked = publisher.subscribers > 0
            except Closed:
                remote.is_linked = False
        if not remote.is_linked:
            return pending.is_over
        pending.is_sent = True
        try:
            publisher.publish_message(*outgoing, 0)
        except Timeout:
            pending.is_sent = False
            return False
        except Closed:
            self._sent_to_nobody(pending)
        except BaseException:
            pending.is_sent = False
            raise
        return True

    async def send_in_turn(self, pending: Pending, outgoing: Outgoing) -> None:
        """The same for a task, behind those of its loop that wait for the same server, without a deadline."""
        remote, publisher = pending.remote, pending.remote.publisher
        if publisher is None:
            raise AssertionError("a request is sent when the way is open")
        if remote.queues is None:
            from vbus.turns import Queues

            remote.queues = Queues()
        draft = publisher.draft_message(*outgoing)

        def attempt() -> int | None:
            # Whoever hears that the server went away must know whether it may have run.
            pending.is_sent = True
            sequence = None
            try:
                sequence = draft.attempt()
            finally:
                pending.is_sent = sequence is not None
            return sequence

        try:
            await remote.queues.publish(publisher, draft, attempt)
        except Closed:
            self._sent_to_nobody(pending)

    def _sent_to_nobody(self, pending: Pending) -> None:
        """The way to the server was closed, by us: it is gone, or we are."""
        pending.is_sent = False
        with self.lock:
            self._finish(pending, self.closed_error() if self.closed else pending.remote.gone_error(False))

    def door(self, remote: Remote, deadline: float | None) -> CorePublisher[Any]:
        """The way to a server, opened when it is first called."""
        if remote.publisher is not None:
            return remote.publisher
        if not acquire(remote.opening, deadline):
            raise Timeout(f"{remote} could not be reached in time; call again")
        try:
            publisher = remote.publisher
            if publisher is None:
                publisher = self._publisher(remote.topic, on_full="block")
                with self.lock:
                    # The handler of a signal may have opened it meanwhile.
                    is_second = remote.publisher is not None
                    if not is_second:
                        remote.publisher = publisher
                    if is_second or remote.is_gone:
                        self._dispose(publisher)
            return remote.publisher or publisher
        finally:
            remote.opening.release()

    def leave(self, pending: Pending, *, timed_out: bool = False) -> None:
        """Nobody waits for it any more: the server may stop. May be called twice; never waits."""
        if self.pid != os.getpid():
            return  # the child of a fork, where another thread's lock stays taken
        with self.lock:
            if timed_out:
                pending.remote.suspect()
            if pending.number not in self._pending:
                return
            # Another thread may wait in a stream that this one leaves.
            self._finish(pending, pending.left_error())
            if not pending.is_sent:
                return
        self.control(pending, wire.CANCEL, 0)

    def control(self, pending: Pending, kind: int, count: int) -> None:
        """A word to the server about a call, now or when it can be said; never waits."""
        remote = pending.remote
        node = remote.peer[0]
        with self.lock:
            if self.closed or (remote.is_gone and remote.leaving is None):
                return
            box = self._controls.get(node)
            if box is None:
                # Opening may take its time; the keeper has it.
                box = self._controls[node] = Mailbox(CONTROL, node)
        self.post(box, wire.plain(kind, pending.number, count, None))

    def post(self, box: Mailbox, outgoing: Outgoing) -> None:
        """A message to a node, which may be slow to take it. TooLarge if it is more than may be sent."""
        if not box.deliver(outgoing):
            self._slow[box] = None
            self.ring()

    # ---- what comes -----------------------------------------------------------------------------

    def wait(self, pending: Pending, deadline: float | None) -> bool:
        """Until there is something for it; False at the deadline. One thread per call."""
        waiter = None
        thread = get_ident()
        try:
            # A signal may come at every call, and its handler may raise, or call on top of this: from here
            # on, whoever leads passes the lead on, and what is decided between two calls holds.
            with self.lock:
                if pending.is_over or pending.items:
                    return True
                waiter = self._first if self._leader is None else None
                if waiter is not None:
                    self._leader, self._leader_sleeps = waiter, True
                    waiter.thread, waiter.below, waiter.is_over = thread, None, False
                    pending.waiter = waiter
                else:
                    waiter = pending.waiter = ThreadWaiter(thread)
                    if pending.is_over or pending.items:
                        return True
                    if self._leader is None or self._leader.thread == thread:
                        waiter.below = self._leader
                        if waiter.below is not None:
                            self._followers[waiter.below] = None
                        self._leader, self._leader_sleeps = waiter, True
                    else:
                        self._followers[waiter] = None
            while True:
                if self._leader is not waiter:
                    acquire(waiter.bell, deadline)
                elif not self._came:
                    self._replies.wait(None if deadline is None else remaining(deadline))
                with self.lock:
                    if self._leader is waiter:
                        self._leader_sleeps = False
                        if self._is_nudged:
                            self._wake_up()
                        self._take_some(pending)
                    if pending.is_over or pending.items:
                        return True
                    if is_over(deadline):
                        return False
                    if self._leader is waiter:
                        self._leader_sleeps = True
        except Closed:
            self.fail_all()
            return True
        finally:
            if waiter is not None:
                with self.lock:
                    pending.waiter = None
                    waiter.is_over = True
                    self._followers.pop(waiter, None)
                    while self._came:  # Ctrl-C came in between
                        self._hand_out(self._came[0])
                    if self._leader is waiter:
                        self._wake_up()
                        self._pass_on_lead(waiter)

    def _wake_up(self) -> None:
        self._leader_sleeps = False
        if self._is_nudged:
            self._is_nudged = False
            self._replies.forget_nudge()

    def _pass_on_lead(self, waiter: ThreadWaiter) -> None:
        if waiter.below is not None:
            self._followers.pop(waiter.below, None)
            self._leader = waiter.below
            return self._rouse_leader()
        while self._followers:
            # The last: of those of one thread, it is the one on top.
            heir, _ = self._followers.popitem()
            if not heir.is_over:
                self._leader, self._leader_sleeps = heir, True
                return heir.ring()
        self._leader = None
        return None

    def _rouse_leader(self) -> None:
        """Have the leader look again, which is this thread, below the handler of a signal.

        It may be about to sleep, and what it looked for may have been taken on top of it.
        """
        self._leader_sleeps = self._is_nudged = True
        self._replies.nudge()

    def is_interrupted(self) -> bool:
        """Whether this thread holds the lock: who asks was called by the handler of a signal, or the like."""
        return _is_held(self.lock)

    def aside(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run what waits for others, in an interrupted thread: it gives the lock away meanwhile."""
        if self._leader is not None:
            # This thread may have been about to.
            self._leader.ring()
        try:
            return set_aside(self.lock, function, *arguments)
        finally:
            if self._leader is not None and self._leader.thread == get_ident():
                self._rouse_leader()

    def join_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """The loop of this thread has a call under way."""
        with self.lock:
            count = self._loops.get(loop)
            if count is None:
                for other in [other for other in self._loops if other.is_closed()]:
                    del self._loops[other]
            self._loops[loop] = (count or 0) + 1
        if count is None:
            loop.add_reader(self._replies.fileno(), self._look, loop)

    def part_from_loop(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        """The loop of this thread has one less, that waited so long, which tells how soon replies come.

        It goes on to watch until something comes for others.
        """
        if self.pid != os.getpid():
            return
        with self.lock:
            if loop in self._loops:
                self._loops[loop] -= 1
            self._rested = seconds

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Called by a loop when something came."""
        try:
            with self.lock:
                if self._loops[loop]:
                    return self._take_some()
        except Closed:
            self.fail_all()
        with self.lock:
            del self._loops[loop]
        loop.remove_reader(self._replies.fileno())
        return None

    def look(self, pending: Pending) -> None:
        """Have a short look for a reply, where it tends to come soon."""
        rested, self._rested = self._rested, None
        if self._replies.look(rested):
            with self.lock:
                self._take_some(pending)

    def take(self) -> None:
        """Look once, without waiting, for what came."""
        with self.lock:
            self._take_some()

    def _take_some(self, enough: Pending | None = None) -> None:
        """Hand out what came, until one call is over."""
        for _ in range(TAKEN_AT_ONCE):
            if not self._hand_out_next():
                return
            if enough is not None and enough.is_over:
                return

    def _take_all(self) -> None:
        with suppress(Closed):  # whoever closed it fails what is left
            while self._hand_out_next():
                pass

    def _hand_out_next(self) -> bool:
        if not self._came:
            # In one step of the interpreter: in between, the handler of a signal might take what comes after.
            self._came.extend(itertools.islice(iter(self._replies.take_message, None), 1))
        if not self._came:
            return False
        self._hand_out(self._came[0])
        return True

    def _hand_out(self, message: Message) -> None:
        """The first that came, which is out of the queue after it, and in it until then.

        Whoever interrupts this begins with the same one, so all here may be done twice.
        """
        pending = self._pending.get(message.call)
        if pending is None:
            if message.kind == wire.LEAVING:
                self._remember_leaving(message)
        elif message.kind != wire.ITEM:
            pending.remote.timeouts = 0
            self._finish(pending, message)
        elif len(pending.items) < (wire.WINDOW if pending.is_stream else 0):
            pending.remote.timeouts = 0
            it = itertools.islice(iter(self._came.popleft, None), 1)
            if self._came and self._came[0] is message:
                pending.items.extend(it)  # from queue to queue, in one step again
                self._wake(pending)
            return
        else:
            self._finish(pending, pending.flooded_error())
            self.control(pending, wire.CANCEL, 0)
        if self._came and self._came[0] is message:
            self._came.popleft()

    def _remember_leaving(self, message: Message) -> None:
        said = wire.read_leaving(message)
        remote = self._remotes.get(said[0]) if said is not None else None
        # Nobody says so of another's server.
        if said is not None and remote is not None and remote.peer[0] == message.node:
            remote.leaving = said[1]

    def _finish(self, pending: Pending, end: Message | Error) -> None:
        if self._pending.pop(pending.number, None) is None:
            return
        pending.remote.under_way -= 1
        pending.is_over = True
        pending.end = end
        self._wake(pending)

    def _wake(self, pending: Pending) -> None:
        waiter = pending.waiter
        if waiter is None:
            return
        if waiter is not self._leader:
            waiter.ring()
        elif self._leader_sleeps and not self._is_nudged:
            self._is_nudged = True
            self._replies.nudge()

    def fail_all(self) -> None:
        """The node is closed: whoever waits gets Closed."""
        with self.lock:
            self.closed = True
            self._end_calls()

    def _end_calls(self) -> None:
        self._calls_are_over = True
        for pending in list(self._pending.values()):
            self._finish(pending, self.closed_error())

    def closed_error(self) -> Closed:
        """For calls of a node that is closed."""
        return Closed(f"the node {quote(self.core.name)} is closed; open a new one")

    # ---- whom this node answers -----------------------------------------------------------------

    def mailbox_if_open(self, node: str) -> Mailbox | None:
        """The way back to a caller, if it was opened before."""
        return self._mailboxes.get(node)

    def mailbox(self, node: str) -> Mailbox:
        """The way back to a caller, opened when it first calls."""
        box = self._mailboxes.get(node)
        if box is None:
            with self._opening:
                box = self._mailboxes.get(node)
                if box is None:
                    box = Mailbox(REPLY, node)
                    with suppress(SharedMemoryError):  # out of descriptors, or of memory: the keeper tries
                        box.publisher = self._publisher(box.topic, on_full="error")
                    with self.lock:
                        self._mailboxes[node] = box
                        self._hear()
                        known = {self.core.id, *(peer[0] for peer in self.core.peer_tuples())}
                        if node not in known:  # gone before this
                            self._forget_node(node)
        return box

    def start_serving(self, served: Served) -> bool:
        """Remember a call that begins; False if it was cancelled before, or nobody is there to answer.

        With the lock held.
        """
        if served.mailbox.is_over:
            return False
        early = self._early.get(served.caller)
        if early is not None and served.number in early:
            del early[served.number]
            return False
        self.running[served.caller, served.number] = served
        return True

    def _obey(self, message: Message) -> None:
        """A word of a caller about a call."""
        node = message.node
        with self.lock:
            served = self.running.get((node, message.call))
            if message.kind == wire.CREDIT and served is not None:
                served.allow(message.amount)
            elif message.kind == wire.CANCEL and served is not None:
                served.cancel()
            elif message.kind == wire.CANCEL:
                early = self._early.setdefault(node, {})
                early[message.call] = None
                if len(early) > EARLY_CANCELS:
                    del early[next(iter(early))]

    # ---- the keeper -----------------------------------------------------------------------------

    def ring(self) -> None:
        """Have the keeper look; never waits, takes no lock."""
        with suppress(BlockingIOError):  # it is full, so it rings
            os.eventfd_write(self._bell, 1)

    def _keep(self) -> None:
        try:
            poll = select.poll()
            for fd in (self._watch.fileno(), self._control.fileno(), self._bell):
                poll.register(fd, select.POLLIN)
            patience = RETRY_SECONDS
            while not self.closed:
                poll.poll(patience * 1000 if self._slow else None)
                patience = min(2 * patience, LONGEST_RETRY_SECONDS) if self._slow else RETRY_SECONDS
                self._keep_once()
        except Closed:
            pass
        finally:
            self.fail_all()
            if self.own_loop is not None:
                self.own_loop.stop()
            self._kept.release()

    def _keep_once(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        with self.lock:
            self._hear()
        while (message := self._control.take_message()) is not None:
            self._obey(message)
        while self.left:
            self.leave(self.left.popleft())
        while self._disposed:
            self._disposed.popleft().close()
        for box in list(self._slow):
            # Out before the look: whoever puts it back while we look is not forgotten.
            self._slow.pop(box, None)
            if not (self._open(box) and box.deliver()):
                self._slow[box] = None

    def _open(self, box: Mailbox) -> bool:
        if box.publisher is None:
            try:
                publisher = self._publisher(box.topic, on_full="error")
            except SharedMemoryError:  # out of descriptors, or of memory: later
                return False
            with self.lock:
                box.publisher = publisher
                if box.is_over:
                    self._dispose(publisher)
        return True

    # ---- its end --------------------------------------------------------------------------------

    def close(self, linger: float) -> None:
        """Calls of this node end with Closed; servers have `linger` seconds to answer what they began."""
        if self.is_interrupted():
            return self.aside(self.close, linger)
        deadline = time.monotonic() + linger
        with self.lock:
            self._end_calls()
            servings = list(self.servings.values())
        for serving in servings:
            serving.stop_taking()
        for serving in servings:
            serving.finish(deadline)
        while self._slow and time.monotonic() < deadline and not self.core.closed:
            time.sleep(RETRY_SECONDS)
        self.fail_all()
        self.ring()
        if self.own_loop is not None:
            self.own_loop.stop()
        if get_ident() != self._keeper and self._kept.acquire(timeout=KEEPER_SECONDS):
            self._kept.release()
        for endpoint in (self._replies, self._control, self._watch):
            endpoint.close()
        return None

    def __del__(self) -> None:
        # Not at close(): whoever rings just then must not find another file under its number.
        bell: int | None = getattr(self, "_bell", None)
        if bell is not None:
            os.close(bell)

    def _subscriber(self, topic: str) -> CoreSubscriber[Any]:
        return subscriber(self.core, topic + self.core.id, "")

    def _publisher(self, topic: str, on_full: str) -> CorePublisher[Any]:
        qos = {"depth": DEPTH, "on_full": on_full}
        return CorePublisher(self.core, topic, shape="", raw=False, encoder=_encoded_before, qos=qos)


class Remote:
    """A server, as its callers know it."""

    __slots__ = (
        "announced",
        "asked",
        "fits",
        "id",
        "is_gone",
        "is_linked",
        "leaving",
        "opening",
        "peer",
        "publisher",
        "queues",
        "salt",
        "suspect_until",
        "timeouts",
        "topic",
        "under_way",
    )

    def __init__(self, id: str, topic: str, peer: PeerTuple, announced: Announced) -> None:
        self.id = id
        self.topic = topic
        self.peer = peer
        self.announced = announced
        self.salt = int.from_bytes(os.urandom(8), "little")
        """Begins the numbers of its calls: whoever was not asked cannot know them, and so cannot answer."""
        self.publisher: CorePublisher[Any] | None = None
        self.opening = RLock()
        self.is_linked = False
        self.is_gone = False
        self.leaving: frozenset[int] | None = None
        """Once it is closing: the calls that it will still answer."""
        self.under_way = 0
        self.asked = 0
        """When it was last chosen among others."""
        self.fits: Contract | None = None
        """One that is known to."""
        self.timeouts = 0
        """Since it last answered."""
        self.suspect_until = 0.0
        self.queues: Queues | None = None
        """Tasks that wait for room at it."""

    def burden(self) -> tuple[int, int, int]:
        """Whom to ask first: whoever answers, has least to do for us, and was not asked for longest."""
        is_suspect = self.timeouts and time.monotonic() < self.suspect_until
        return self.timeouts if is_suspect else 0, self.under_way, self.asked

    def suspect(self) -> None:
        """It did not answer in time: ask others first, for a while that doubles each time."""
        self.timeouts += 1
        seconds = SUSPECT_SECONDS * 2.0 ** min(self.timeouts - 1, 10)
        self.suspect_until = time.monotonic() + min(seconds, LONGEST_SUSPECT_SECONDS)

    def gone_error(self, is_sent: bool) -> Error:
        """Why a call of it ends."""
        name = self.announced.name
        error: Error
        if is_sent:
            error = TransportError(f"the server of {self} went away; the call may have run")
        else:
            error = NoServer(f"the server of {self} went away before the call was sent, so it did not run")
        error.topic = name
        return error

    def __str__(self) -> str:
        _, name, host, pid, *_ = self.peer
        return f"{quote(self.announced.name)} (node {quote(name)}, pid {pid} on {host})"


class Pending:
    """A call that is under way. The exchange keeps it, and nothing else, while nobody waits for it."""

    __slots__ = ("end", "is_over", "is_sent", "is_stream", "items", "number", "remote", "waiter")

    def __init__(self, number: int, remote: Remote, is_stream: bool) -> None:
        self.number = number
        self.remote = remote
        self.is_stream = is_stream
        self.is_sent = False
        self.is_over = False
        self.items: deque[Message] = deque() if is_stream else _NO_ITEMS
        self.end: Message | Error | None = None
        self.waiter: ThreadWaiter | LoopWaiter | None = None

    def has_news(self) -> bool:
        """Whether there is something to take. With the lock held."""
        return self.is_over or bool(self.items)

    def left_error(self) -> Closed:
        """For whoever waits in a stream that another one leaves."""
        return Closed(f"the stream of {quote(self.remote.announced.name)} was left; call again")

    def flooded_error(self) -> TransportError:
        """For a server that keeps to no bound."""
        error = TransportError(
            f"the server of {self.remote} sends more than it may; it runs other software, or is broken"
        )
        error.topic = self.remote.announced.name
        return error

    def timeout_error(self, why: str) -> Timeout:
        """For a call that took too long."""
        error = Timeout(f"no reply from the server of {self.remote} in time: {why}")
        error.topic = self.remote.announced.name
        return error


_NO_ITEMS: deque[Message] = deque()
NUMBERS = (1 << 64) - 1


class ThreadWaiter:
    """A thread that waits for replies; its bell is for when it does not lead."""

    __slots__ = ("bell", "below", "is_over", "thread")

    def __init__(self, thread: int) -> None:
        self.thread = thread
        self.below: ThreadWaiter | None = None
        """Whoever led before, in the same thread, and waits below the handler of a signal."""
        self.is_over = False
        self.bell = allocate_lock()
        self.bell.acquire()

    def ring(self) -> None:
        """With the lock of the exchange held, as all here."""
        with suppress(RuntimeError):  # it rings already
            self.bell.release()


class LoopWaiter:
    """A task that waits for replies."""

    __slots__ = ("_loop", "_thread", "_turn")

    def __init__(self, loop: asyncio.AbstractEventLoop, turn: Turn) -> None:
        self._loop = loop
        self._turn = turn
        self._thread = get_ident()

    def ring(self) -> None:
        """With the lock of the exchange held."""
        if self._thread == get_ident():
            self._turn.wake_soon()
        else:
            with suppress(RuntimeError):  # the loop is closed, and with it the task
                self._loop.call_soon_threadsafe(self._turn.wake)


class Mailbox:
    """A way to a node. What it cannot take at once waits here, in order."""

    __slots__ = ("_is_linked", "_lock", "_waiting", "is_over", "is_told", "node", "publisher", "topic")

    def __init__(self, topic: str, node: str) -> None:
        self.topic = topic + node
        self.node = node
        self.publisher: CorePublisher[Any] | None = None
        self.is_over = False
        self.is_told = False
        """Whether the log has that it is full."""
        self._is_linked = False
        self._lock = RLock()
        self._waiting: deque[Outgoing] = deque()

    def deliver(self, outgoing: Outgoing | None = None) -> bool:
        """Send what waits, and then this; False if something is left. TooLarge if this can never be sent."""
        # If this thread is at it, below the handler of a signal, or another whom such a handler keeps, it is
        # left to the keeper.
        is_free = not _is_held(self._lock)
        try:
            if is_free and self._lock.acquire(timeout=RECHECK_SECONDS):
                while self._waiting and self._send_or_fail(self._waiting[0]):
                    self._waiting.popleft()
                if outgoing is None or (not self._waiting and self._send(outgoing)):
                    return not self._waiting
        finally:
            if is_free and _is_held(self._lock):
                self._lock.release()
        if outgoing is not None:
            self._waiting.append(wire.copy(outgoing))
        return False

    @property
    def untaken(self) -> int:
        """How many messages wait."""
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether more waits than anybody leaves waiting who means to take it."""
        return len(self._waiting) >= UNTAKEN

    def _send_or_fail(self, outgoing: Outgoing) -> bool:
        try:
            return self._send(outgoing)
        except Error as error:
            self._waiting[0] = wire.failure_instead_of(outgoing, error)
        with suppress(Error):  # nothing can be said to it: not even that
            return self._send(self._waiting[0])
        return True

    def _send(self, outgoing: Outgoing) -> bool:
        publisher = self.publisher
        if self.is_over:
            return True
        if publisher is None:
            return False
        try:
            if not self._is_linked:
                self._is_linked = publisher.subscribers > 0
                if not self._is_linked:
                    return False
            publisher.publish_message(*outgoing, 0)
        except (Full, SharedMemoryError):
            return False
        except Closed:
            self.is_over = True
        return True


def subscriber(core: CoreNode, topic: str, shape: str) -> CoreSubscriber[Any]:
    """One that takes messages."""
    return CoreSubscriber(core, topic, shape=shape, raw=False, decoder=_read_elsewhere, spin=None, qos={})


def _is_held(lock: Any) -> bool:
    """Whether this thread holds it."""
    is_held: bool = lock._is_owned()
    return is_held


def _encoded_before(value: Any) -> Any:
    raise TypeError(f"what is sent here was encoded before, not {quote(value)}")


def _read_elsewhere(_encoding: str, _payload: memoryview, _meta: bytes) -> None:
    """What comes here is taken as messages."""
