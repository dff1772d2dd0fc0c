"""kill -9 at any instruction: nobody else blocks, crashes, reads torn data, or keeps what the dead one had.

`VBUS_SEED` repeats a run of random kills as far as the machine lets it; `VBUS_SOAK=1` makes it a thousand.
"""

import os
import random
import signal
import sys
import threading
import time
from collections import Counter

import pytest
from helpers import (
    PROGRAMS,
    SOAK,
    WATCHDOG,
    Belongings,
    Program,
    chance,
    check_conservation,
    start,
    until,
)

sys.path.insert(0, str(PROGRAMS))
from patterns import is_whole, pattern

import vbus

__all__ = ["chance", "start"]

KILLS = 1200 if SOAK else 60
WARM_UP = 12


# ---- random kills -------------------------------------------------------------------------------

FAITHFUL = """
    with vbus.Node("faithful") as node, node.subscriber("down", bytes) as down:
        say("ready")
        due = None
        for sample in down:
            if "end" in sample.headers:
                break
            if not is_whole(sample):
                say("torn", sample)
            if due not in (None, sample.sequence) or sample.lost:
                say("expected", due, "not", sample, "after", sample.lost)
            due = sample.sequence + 1
        stats = down.stats()
        say("took", stats.delivered, "of", stats.sent, stats.lost, dict(stats.dropped))
        hear()
"""


class Victims:
    """The program that forks victims, and what they said."""

    def __init__(self, start) -> None:
        self.program: Program = start([str(PROGRAMS / "victims.py")])
        self.alive: dict[int, int] = {}
        """Lines that each said."""

    def start(self, role: str, dice: random.Random) -> int:
        self.program.tell(role, dice.randrange(1 << 32))
        return self.hear_until(lambda pid, words: pid not in self.alive and words == ["born"])

    def hear_until(self, enough) -> int:
        while True:
            first, *words = self.program.hear().split()
            pid = int(first)
            assert "WRONG" not in words, words
            if words == ["born"]:
                self.alive.setdefault(pid, 0)
                found = enough(-1, words)
            elif pid in self.alive:
                self.alive[pid] += 1
                found = enough(pid, words)
            else:
                continue  # last words
            if found:
                return pid

    def kill(self, pid: int) -> None:
        del self.alive[pid]
        os.kill(pid, signal.SIGKILL)


class Survivor(threading.Thread):
    """A thread of this process; what it raises comes out of `join`."""

    def __init__(self, run) -> None:
        super().__init__(daemon=True)
        self._run, self._error = run, None
        self.start()

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self._error = error

    def join(self) -> None:
        super().join(WATCHDOG)
        assert not self.is_alive(), "a survivor hangs"
        self.check()

    def check(self) -> None:
        if self._error is not None:
            raise self._error


@pytest.mark.timeout(3600 if SOAK else 120)
def test_whoever_is_killed_whenever_nobody_else_notices(chance, join, start, meeting):
    node = join("survivor", memory=256 << 20)
    down = node.publisher("down", bytes, depth=16, block_timeout=WATCHDOG)
    up = node.subscriber("up/*", bytes)
    faithful = start(FAITHFUL)
    faithful.expect("ready")
    stop = threading.Event()
    dice = random.Random(chance.randrange(1 << 32))

    def feed() -> None:
        sequence = 0
        while not stop.is_set():
            assert down.publish(pattern(down.id, sequence, int(2 ** dice.uniform(0, 17)))) == sequence
            sequence += 1

    def take() -> None:
        due: dict[str, int] = {}
        for sample in up:
            assert is_whole(sample), sample
            if sample.publisher in due:
                assert sample.sequence == due[sample.publisher] + sample.lost, sample
            due[sample.publisher] = sample.sequence + 1

    survivors = [Survivor(feed), Survivor(take)]
    victims = Victims(start)
    roles = ["publisher", "publisher", "subscriber", "subscriber", "bystander", "comer_and_goer"]
    killed: Counter[str] = Counter()

    def kill_some(count: int) -> None:
        crowd: list[tuple[int, str]] = []
        while count or crowd:
            if count and len(crowd) < 3:
                role = chance.choice(roles)
                crowd.append((victims.start(role, chance), role))
                count -= 1
                if len(crowd) < 3 and count:
                    continue
            pid, role = crowd.pop(chance.randrange(len(crowd)))
            if chance.random() < 0.7:
                lines = victims.alive[pid] + chance.randrange(1, 4)
                victims.hear_until(lambda said_by, _, pid=pid, lines=lines: victims.alive[pid] >= lines)
            time.sleep(chance.uniform(0, 0.005))  # anywhere, not when something is done
            victims.kill(pid)
            killed[role] += 1
            for survivor in survivors:
                survivor.check()
        until(lambda: [peer.name for peer in node.peers()] == ["faithful"], "the dead are gone")

    def belongings() -> list[Belongings]:
        return [Belongings.of(os.getpid()), Belongings.of(faithful.pid, feeder=os.getpid())]

    kill_some(WARM_UP)
    before = belongings()
    kill_some(KILLS - WARM_UP)

    def nothing_is_kept() -> bool:
        return all(now.at_most(then) for now, then in zip(belongings(), before))

    print(f"killed {dict(killed)}; {before} -> {belongings()}; memory {node.stats().memory >> 20} MiB")
    until(nothing_is_kept, "what the dead had is given up", 5)
    assert node.stats().memory <= 64 << 20, "what the dead held came back"

    stop.set()
    survivors[0].join()
    published = down.publish(b"", headers={"end": ""})
    faithful.expect("took", published + 1, "of", published + 1, 0, {})
    check_conservation(down, up)
    faithful.tell("end")
    faithful.finish()
    up.close()
    survivors[1].join()
    with vbus.Node("newcomer", domain=node.domain, shm=meeting):
        assert len(os.listdir(meeting)) == 2, "the names of the dead are collected"
