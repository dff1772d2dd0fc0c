"""A torrent of numbered samples, and who looks at each: it is the next, or says what is missing."""

import threading
import time

import vbus


class Torrent:
    """Publishes the numbers from 0 on until it is stopped."""

    def __init__(self, publisher):
        self.publisher = publisher
        self.count = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stopped.is_set():
            assert self.publisher.publish(self.count) == self.count
            self.count += 1

    def stop(self):
        """How many there were."""
        self._stopped.set()
        self._thread.join()
        return self.count


class Receiver:
    """Takes all that comes and looks at it."""

    def __init__(self, subscriber, pause=0.0, ordered=True):
        self.subscriber, self.pause, self.ordered = subscriber, pause, ordered
        self.mistakes = []
        self.seen = set()
        self.counts = {"udp": 0, "shm": 0}
        self.next = self.lost = 0
        self.may_go_back = False
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        for sample in self.subscriber:
            self._look(sample)
            if self.pause:
                time.sleep(self.pause)

    def _look(self, sample):
        self.counts[sample.via] += 1
        if sample.value != sample.sequence:
            self.mistakes.append(f"{sample.sequence} says {sample.value}")
        if sample.sequence in self.seen:
            self.mistakes.append(f"{sample.sequence} came twice")
        self.seen.add(sample.sequence)
        if self.ordered and sample.sequence != self.next + sample.lost:
            self.mistakes.append(
                f"{sample.sequence} with {sample.lost} lost, after {self.next}, by {sample.via}"
            )
        if sample.via == "udp" and self.counts["shm"] and not self.may_go_back:
            self.mistakes.append(f"{sample.sequence} came late, by the old path")
        self.lost += sample.lost
        self.next = max(self.next, sample.sequence + 1)

    def is_through(self, count):
        """Whether all of so many came, or are known to be missing."""
        return len(self.seen) + self.lost == count or self.mistakes


class Echo:
    """Calls a service that doubles numbers, and another that counts, as long as it is let."""

    def __init__(self, node, calls=1):
        self.node = node
        self.mistakes = []
        self.answers = 0
        self._stopped = threading.Event()
        jobs = [self._call] * calls + [self._count] * calls
        self._threads = [threading.Thread(target=job, daemon=True) for job in jobs]
        for thread in self._threads:
            thread.start()

    def _call(self):
        number = 0
        while not self._stopped.is_set():
            try:
                answer = self.node.call("double", number, timeout=10)
            except vbus.Error as error:
                self.mistakes.append(repr(error))
                return
            if answer != 2 * number:
                self.mistakes.append(f"twice {number} is {answer}")
            number += 1
            self.answers += 1

    def _count(self):
        while not self._stopped.is_set():
            try:
                got = list(self.node.call_stream("count", 50, timeout=10))
            except vbus.Error as error:
                self.mistakes.append(repr(error))
                return
            if got != list(range(50)):
                self.mistakes.append(f"counted {got}")
            self.answers += 1

    def stop(self):
        """How many answers there were."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        return self.answers


def serve(node):
    """The services that `Echo` calls."""

    def count(most):
        yield from range(most)

    return node.serve("double", lambda number: 2 * number), node.serve("count", count)
