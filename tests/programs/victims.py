"""Forks programs that run flat out until they are killed: one per line "role seed" of its own input.

Each says "pid progress" now and then, and "pid WRONG …" when it saw what must not be. The parent has
imported everything and opened nothing, so that a victim lives within milliseconds, and a thousand of them in
minutes.
"""

import ctypes
import itertools
import os
import random
import signal
import sys
from collections import deque

import numpy  # noqa: F401  once for all victims
from patterns import is_whole, pattern

import vbus
import vbus.reports

PR_SET_PDEATHSIG = 1


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, (os.getpid(), *words))) + "\n").encode())


def size(dice: random.Random) -> int:
    """Mostly small, sometimes large."""
    return int(2 ** dice.uniform(0, 18)) - 1


def publisher(dice: random.Random) -> None:
    on_full = dice.choice(["block", "drop_oldest", "drop_newest"])
    history, depth = dice.choice([0, 3]), dice.choice([1, 4, 64])
    with vbus.Node("victim publisher") as node:
        topic = f"up/{dice.randrange(3)}"
        with node.publisher(topic, bytes, on_full=on_full, depth=depth, history=history) as up:
            for sequence in itertools.count():
                if sequence % 64 == 0:
                    say(sequence)
                nbytes = size(dice)
                if dice.random() < 0.5:
                    up.publish(pattern(up.id, sequence, nbytes))
                    continue
                with up.loan(nbytes) as loan:
                    loan.buffer[:] = pattern(up.id, sequence, nbytes)


def subscriber(dice: random.Random) -> None:
    asked = dice.choice([{}, {"on_full": "drop_oldest"}, {"depth": 1}])
    held = deque(maxlen=dice.randrange(1, 16))
    expected: dict[str, int] = {}
    with vbus.Node("victim subscriber") as node, node.subscriber("down", bytes, **asked) as down:
        say(0)
        for taken in itertools.count(1):
            sample = down.receive()
            oldest = held[0] if len(held) == held.maxlen else None
            held.append(sample)
            for it in (sample, oldest):
                if it is not None and not is_whole(it):
                    say("WRONG torn", it)
            due = expected.get(sample.publisher)
            if due is not None and sample.sequence != due + sample.lost:
                say("WRONG sequence", due, sample)
            expected[sample.publisher] = sample.sequence + 1
            if taken % 32 == 0:
                say(taken)


def bystander(dice: random.Random) -> None:
    with vbus.Node("victim bystander") as node:
        endpoints = deque(maxlen=8)
        for turn in itertools.count():
            if turn % 16 == 0:
                say(turn)
            make = dice.choice([node.publisher, node.subscriber])
            endpoints.append(make(f"aside/{dice.randrange(8)}"))
            if dice.random() < 0.1:
                node.topics()


def comer_and_goer(dice: random.Random) -> None:
    for turn in itertools.count():
        say(turn)
        with vbus.Node("victim comer") as node:
            for _ in range(dice.randrange(4)):
                dice.choice([lambda: node.publisher("up/9"), lambda: node.subscriber("down")])()


ROLES = {it.__name__: it for it in (publisher, subscriber, bystander, comer_and_goer)}


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        role, seed = line.split()
        child = os.fork()
        if child == 0:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            try:
                ROLES[role](random.Random(int(seed)))
            except BaseException as error:
                say("WRONG", type(error).__name__, error)
            os._exit(1)
        os.write(1, f"{child} born\n".encode())


if __name__ == "__main__":
    main()
