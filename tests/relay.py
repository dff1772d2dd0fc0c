"""A path between two sockets of this host that is as bad as a test wants it: slow, or lossy."""

import random
import select
import socket
import threading
import time
from collections import deque

MTU = 1500
"""Larger datagrams do not pass."""


class Relay:
    """Passes datagrams on, to and fro, between whoever sends here first and `target`.

    `loss` is a share of them, by dice with a seed; `rate` is in bytes per second, with a queue of `queue`
    bytes in front of it, in each direction.
    """

    def __init__(self, target, *, loss=0.0, rate=None, queue=64 << 10, seed=1):
        self.target = _address(target)
        self.loss, self.rate, self.queue = loss, rate, queue
        self._dice = random.Random(seed)
        self._near, self._far = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
        for side in (self._near, self._far):
            side.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            side.bind(("127.0.0.1", 0))
        self._origin = None
        self._lanes = {side: _Lane() for side in (self._near, self._far)}
        self._over, self._end = socket.socketpair()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def address(self):
        """Where the near side sends to."""
        return "{}:{}".format(*self._near.getsockname())

    def close(self):
        self._end.close()
        self._thread.join()
        for side in (self._near, self._far, self._over):
            side.close()

    def _run(self):
        while True:
            due = [lane.due for lane in self._lanes.values() if lane.waiting]
            pause = max(0.0, min(due) - time.monotonic()) if due else None
            ready, _, _ = select.select([self._near, self._far, self._over], [], [], pause)
            if self._over in ready:
                return
            for side in ready:
                self._take(side)
            for side, lane in self._lanes.items():
                for datagram in lane.leave(self.rate):
                    self._pass_on(side, datagram)

    def _take(self, side):
        datagram, source = side.recvfrom(65536)
        if side is self._near:
            self._origin = source
        if len(datagram) <= MTU and self._dice.random() >= self.loss:
            self._lanes[side].enter(datagram, self.queue)

    def _pass_on(self, side, datagram):
        to, way = (self.target, self._far) if side is self._near else (self._origin, self._near)
        if to:
            way.sendto(datagram, to)


class _Lane:
    """One direction."""

    def __init__(self):
        self.waiting = deque()
        self.bytes = 0
        self.due = 0.0

    def enter(self, datagram, queue):
        if self.bytes + len(datagram) <= queue:
            if not self.waiting:
                self.due = max(self.due, time.monotonic())
            self.waiting.append(datagram)
            self.bytes += len(datagram)

    def leave(self, rate):
        """What has reached the other end."""
        while self.waiting and self.due <= time.monotonic():
            datagram = self.waiting.popleft()
            self.bytes -= len(datagram)
            self.due += len(datagram) / rate if rate else 0.0
            yield datagram


def _address(text):
    host, _, port = text.rpartition(":")
    return host, int(port)
