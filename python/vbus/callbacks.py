"""Callbacks: one thread per node calls them all, in order, and sleeps while nothing comes.

The thread begins with the first callback of a node and ends when the node closes. It takes a few samples of
each subscriber in turn, so none starves. It holds the subscribers, so these live until they, or their node,
are closed.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, TypeVar

from ._vbus import Ears, Sample
from .errors import Closed, ConfigError, quote
from .node import Node, Subscriber

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._vbus import Ear
    from .records import SubscriberStats

T = TypeVar("T")

__all__ = ["CallbackSubscriber", "Callbacks", "begin", "made_for_callback"]


def made_for_callback(callback: object) -> type[Subscriber[Any]]:
    """The class of its subscriber. TypeError for what cannot be called plainly."""
    if not callable(callback):
        raise TypeError(f"callback is {quote(callback)}; give a function that takes a sample")
    for function in (callback, getattr(callback, "__call__", None)):  # noqa: B004
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"callback {quote(callback)} is a coroutine function, which no loop would run; give a plain "
                "function, or use `async for` in a task"
            )
    return CallbackSubscriber[Any]


def begin(node: Node, subscriber: Subscriber[Any], callback: Callable[[Sample[Any]], object]) -> None:
    """From now on `callback` gets what comes."""
    assert isinstance(subscriber, CallbackSubscriber)
    subscriber._begin(callback)  # pyright: ignore[reportPrivateUsage]
    with _beginning:
        callbacks = node._callbacks  # pyright: ignore[reportPrivateUsage]
        if callbacks is None:
            callbacks = node._callbacks = Callbacks()  # pyright: ignore[reportPrivateUsage]
    callbacks.add(subscriber)


class CallbackSubscriber(Subscriber[T]):
    """A subscriber whose samples go to a callback."""

    __slots__ = ("_callback", "_calling", "_errors")

    _callback: Callable[[Sample[T]], object]
    _calling: threading.Lock
    _errors: int

    def call(self) -> bool | None:
        """Take one sample and call with it: True, or None if none waits. False when this is closed."""
        with self._calling:
            sample = super().take()
            if not isinstance(sample, Sample):
                return sample
            try:
                self._callback(sample)
            except BaseException as error:  # whatever it is, the next sample has done nothing wrong
                self._errors += 1
                _log(self, sample, error)
            return True

    def close(self) -> None:
        """Take no more. When this returns, no callback begins any more; one that runs in another thread is
        waited for, for a second at most."""
        super().close()
        if os.getpid() == self._node._pid and not _is_callback_thread(self._node):  # pyright: ignore[reportPrivateUsage]
            _wait_for(self._calling)

    def stats(self) -> SubscriberStats:
        """Counts of this subscriber; still works after close()."""
        return replace(super().stats(), callback_errors=self._errors)

    def _begin(self, callback: Callable[[Sample[T]], object]) -> None:
        self._callback = callback
        self._calling = threading.Lock()
        self._errors = 0

    def _refuse(self) -> NoReturn:
        error = ConfigError(
            f"the samples of {quote(self.topic)} go to its callback; open another subscriber to receive them"
        )
        error.topic = self.topic
        raise error

    def receive(self, timeout: float | None = None) -> Sample[T]:
        """ConfigError, as for every other way to receive: the samples go to the callback."""
        self._refuse()

    def receive_nowait(self) -> Sample[T] | None:
        """ConfigError."""
        self._refuse()

    def receive_many(self, max: int | None = None, timeout: float | None = None) -> list[Sample[T]]:
        """ConfigError."""
        self._refuse()

    def receive_many_nowait(self, max: int | None = None) -> list[Sample[T]]:
        """ConfigError."""
        self._refuse()

    def glance(self) -> Sample[T] | None:
        """ConfigError."""
        self._refuse()

    def take(self) -> Sample[T] | Literal[False] | None:
        """ConfigError."""
        self._refuse()

    async def receive_async(self, timeout: float | None = None) -> Sample[T]:  # noqa: ASYNC109
        """ConfigError."""
        self._refuse()

    async def receive_many_async(
        self,
        max: int | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> list[Sample[T]]:
        """ConfigError."""
        self._refuse()

    def fileno(self) -> int:
        """ConfigError."""
        self._refuse()

    def __iter__(self) -> Self:
        self._refuse()

    def __next__(self) -> Sample[T]:
        self._refuse()

    def __aiter__(self) -> Self:
        self._refuse()


class Callbacks:
    """The thread of one node, and whom it serves."""

    def __init__(self) -> None:
        self._ears = Ears()
        self._served: dict[int, tuple[CallbackSubscriber[Any], Ear]] = {}
        self._tokens = itertools.count()
        self._ended = False
        self._done = threading.Lock()
        self._done.acquire()
        self._thread = threading.Thread(target=self._run, name="vbus-callbacks", daemon=True)
        self._thread.start()

    def add(self, subscriber: CallbackSubscriber[Any]) -> None:
        """Serve it, until it closes."""
        token, ear = next(self._tokens), subscriber.ear()
        self._served[token] = subscriber, ear
        try:
            self._ears.add(ear, token)
        except BaseException:
            del self._served[token]
            raise

    def stop(self) -> None:
        """The node is closed."""
        self._ended = True
        self._ears.ring()

    def end(self) -> None:
        """`stop`, and wait for a callback that runs, for a second at most."""
        self.stop()
        if not self.is_here():
            _wait_for(self._done)

    def is_here(self) -> bool:
        """Whether this is the thread."""
        return threading.get_ident() == self._thread.ident

    def _run(self) -> None:
        try:
            while not self._ended:
                for token in self._ears.wait():
                    self._serve(token)
        finally:
            self._served.clear()
            self._done.release()

    def _serve(self, token: int) -> None:
        """A few samples, so that the others get their turn."""
        subscriber, ear = self._served[token]
        for _ in range(SAMPLES_IN_A_ROW):
            called = subscriber.call()
            if called is False:
                self._ears.remove(ear)
                del self._served[token]
            if not called:
                return


SAMPLES_IN_A_ROW = 16
WAIT_SECONDS = 1.0

_beginning = threading.Lock()


def _is_callback_thread(node: Node) -> bool:
    callbacks = node._callbacks  # pyright: ignore[reportPrivateUsage]
    return callbacks is not None and callbacks.is_here()


def _wait_for(lock: threading.Lock) -> None:
    if lock.acquire(timeout=WAIT_SECONDS):
        lock.release()


def _log(subscriber: Subscriber[Any], sample: Sample[Any], error: BaseException) -> None:
    # One that meets what was closed under it has not failed.
    level = logging.DEBUG if isinstance(error, Closed) and subscriber.closed else logging.ERROR
    try:
        logging.getLogger("vbus").log(
            level,
            "the callback of %s raised %s for sample %d of %s; the next sample is delivered",
            quote(subscriber.topic),
            type(error).__name__,
            sample.sequence,
            quote(sample.topic),
            exc_info=error,
        )
    except Exception:  # a handler that raises stops no delivery
        return
