"""Servers that may still be met: over the network nobody is known when `Node()` returns.

Neighbours in memory are met before that. Who is looked for over the network (`peers`, mDNS) is met a moment
later, and the servers there are known another moment later; so a call that knows no server waits for the rest
of the meeting time, half a second from the opening of its node. Later, and where nobody is looked for, it
fails at once.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from vbus.errors import Closed, Timeout

if TYPE_CHECKING:
    from .exchange import Exchange

__all__ = ["may_meet", "meet", "meet_async"]


def may_meet(exchange: Exchange, name: str) -> bool:
    """Whether no server is known, and one may still be met."""
    return exchange.met_by is not None and time.monotonic() < exchange.met_by and not exchange.knows(name)


def meet(exchange: Exchange, name: str, deadline: float | None, until: float | None = None) -> None:
    """Wait for a server, until the end of the meeting time or another; `begin` tells whether there is one."""
    if exchange.met_by is None:
        return
    until = exchange.met_by if until is None else until
    until = until if deadline is None else min(until, deadline)
    if time.monotonic() >= until or exchange.knows(name):
        return
    with suppress(Closed, Timeout):
        watch = exchange.core.watch(endpoints=True)
        try:
            while (left := until - time.monotonic()) > 0 and not exchange.knows(name):
                watch.receive_tuple(left)
        finally:
            watch.close()


async def meet_async(exchange: Exchange, name: str, deadline: float | None) -> None:
    """The same for a task."""
    if may_meet(exchange, name):
        import asyncio

        await asyncio.to_thread(meet, exchange, name, deadline)
