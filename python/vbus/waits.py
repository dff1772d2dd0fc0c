"""Until when to wait, for threads and for event loops."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _thread import LockType, RLock

__all__ = ["acquire", "deadline_in", "is_over", "remaining"]


def deadline_in(timeout: float | None) -> float | None:
    """The end of the wait on the monotonic clock. ValueError for a negative timeout."""
    if timeout is None:
        return None
    if not timeout >= 0:
        raise ValueError(f"timeout is {timeout}; give seconds from 0 (try once), or None to wait for ever")
    return time.monotonic() + timeout


def is_over(deadline: float | None) -> bool:
    """Whether it has come."""
    return deadline is not None and time.monotonic() >= deadline


def remaining(deadline: float | None) -> float | None:
    """Seconds until then, from 0 on; None for ever."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def acquire(lock: LockType | RLock, deadline: float | None) -> bool:
    """Take a lock; False if it is not free until the deadline.

    Python wakes whoever waits for a lock when Ctrl-C comes, but only if the kernel gave it to that thread. So
    this one looks up after a while, and then after ever longer whiles.
    """
    nap = FIRST_NAP
    while True:
        left = remaining(deadline)
        if lock.acquire(timeout=nap if left is None else min(left, nap)):
            return True
        if left is not None and left <= nap:
            return False
        nap = min(2 * nap, LONGEST_NAP)


FIRST_NAP = 0.1
LONGEST_NAP = 24 * 60 * 60.0
