"""mDNS in a thread of its own, in a loop of its own, whatever loop the program has.

Nothing waits for it: what it needs is imported there, 60 ms, and a program that ends before is not delayed.
Two modules are imported by whoever makes a node, because they must not come into being in another thread:
`threading`, which before Python 3.13 takes the thread that imports it first for the main one, and `logging`,
which has work to do before and after a fork, and complains if it began to exist in between.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref

from . import CLOSED

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio

    from vbus._vbus import Node as Core
    from vbus.config import Settings
    from vbus.records import Way

    from .heard import Heard
    from .responder import Responder

__all__ = ["Mdns"]


class Mdns:
    """The thread. It begins with the object, and ends by `stop`."""

    def __init__(self, core: Core, settings: Settings, port: int) -> None:
        self._pid = os.getpid()
        # Taken again by its holder, when the collector finds a node within.
        self._lock = threading.RLock()
        self._stopped = False
        self._cancel: tuple[asyncio.AbstractEventLoop, asyncio.Task[None]] | None = None
        self._heard: Heard | None = None
        self._responder: Responder | None = None
        self._loop_descriptor: int | None = None
        self._error: str | None = None
        self._done = threading.Event()
        _forks.know(self)
        arguments = (core, settings.domain, port, tuple(settings.interfaces), settings.listen)
        threading.Thread(target=self._run, args=arguments, name="vbus-mdns", daemon=True).start()

    def stop(self) -> None:
        """Say goodbye and end; does not wait."""
        if os.getpid() != self._pid:
            return  # the child of a fork: nothing here is its own
        with self._lock:
            # Once: cancelled again it would leave what it is just closing.
            is_first, self._stopped = not self._stopped, True
            if is_first and self._cancel is not None:
                loop, task = self._cancel
                loop.call_soon_threadsafe(task.cancel)

    def join(self, seconds: float) -> None:
        """Wait for goodbye, if there is one to say."""
        with self._lock:
            speaks = self._cancel is not None
        if speaks and os.getpid() == self._pid:
            self._done.wait(seconds)

    def status(self) -> Way:
        """How it stands."""
        from vbus.records import Way

        heard, responder = self._heard, self._responder
        reason = CLOSED if self._stopped else ""
        if heard is None or responder is None:
            return Way("mdns", on=not self._stopped, reason=reason, error=self._error)
        return Way(
            "mdns",
            on=not self._stopped,
            reason=reason,
            heard_ns=heard.last_ns,
            error=self._error or responder.error,
            interfaces=responder.spoken,
            deaf=responder.deaf,
            addresses=responder.announced,
            candidates=heard.candidates(),
            ignored={**heard.ignored, **responder.ignored},
        )

    @property
    def descriptors(self) -> set[int]:
        """The files that the child of a fork must let go."""
        found = set(self._responder.descriptors) if self._responder is not None else set[int]()
        if self._loop_descriptor is not None:
            found.add(self._loop_descriptor)
        return found

    def _run(self, core: Core, domain: str, port: int, wanted: tuple[str, ...], listen: str) -> None:
        try:
            with _forks.importing:
                import asyncio
                import selectors
                import signal

                from .announcement import digest
                from .heard import Heard
                from .responder import Responder

            # Signals are for those who would be woken by them.
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            selector = selectors.EpollSelector()
            loop = asyncio.SelectorEventLoop(selector)  # whatever policy the program has set
            loop.set_exception_handler(_note)
            self._loop_descriptor = selector.fileno()
            try:
                heard = Heard(core, digest(domain))
                responder = Responder(core.id, domain, port, heard, wanted, listen)
                self._heard, self._responder = heard, responder
                task = loop.create_task(responder.live())
                with self._lock:
                    self._cancel = (loop, task)
                    if self._stopped:
                        task.cancel()
                try:
                    loop.run_until_complete(task)
                except asyncio.CancelledError:
                    return
            finally:
                with self._lock:
                    self._cancel = None
                self._loop_descriptor = None
                loop.close()
        except Exception as error:
            # No multicast, no zeroconf, no descriptor: the other ways work on, and `status` tells.
            self._error = str(error) or type(error).__name__
            _log(self._error)
        finally:
            self._done.set()


class _Forks:
    """What a fork does to these threads.

    None of them lives on in a child, but their sockets do, and an epoll that is the parent's too. Each
    becomes /dev/null there: the numbers stay taken, so whoever holds one and closes it harms nobody. And a
    fork in the midst of an import would leave the child with modules that nobody ever finishes, so it waits
    for that.
    """

    def __init__(self) -> None:
        self.importing = threading.Lock()
        self._forking: int | None = None
        self._known: weakref.WeakSet[Mdns] = weakref.WeakSet()
        os.register_at_fork(
            before=self._before, after_in_parent=self._after, after_in_child=self._after_in_child
        )

    def know(self, mdns: Mdns) -> None:
        """It may be forked from now on."""
        self._known.add(mdns)

    def _before(self) -> None:
        # Not for ever: the fork may itself be within an import that the other one waits for.
        if self.importing.acquire(timeout=IMPORT_SECONDS):
            self._forking = threading.get_ident()

    def _after(self) -> None:
        if self._forking == threading.get_ident():
            self._forking = None
            self.importing.release()

    def _after_in_child(self) -> None:
        self.importing = threading.Lock()
        self._forking = None
        taken = {descriptor for mdns in self._known for descriptor in mdns.descriptors}
        if taken:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            for descriptor in taken:
                os.dup2(null, descriptor, inheritable=False)
            os.close(null)


IMPORT_SECONDS = 2.0

_forks = _Forks()


def _note(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    """Something failed in the loop, such as a call of a core that was closed meanwhile; the loop goes on."""
    logging.getLogger("vbus").debug("mDNS: %s: %r", context.get("message"), context.get("exception"))


def _log(error: str) -> None:
    logging.getLogger("vbus").warning(
        "nodes are not found by mDNS: %s; name them in `peers`, or leave mdns out of `discovery`", error
    )
