"""kill -9 at any instruction: nobody else blocks, crashes, reads torn data, or keeps what the dead one had.

`VBUS_SEED` repeats a run of random kills as far as the machine lets it; `VBUS_SOAK=1` makes it a thousand.
"""

import os
import random
import signal
import sys
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from helpers import (
    PROGRAMS,
    SOAK,
    WATCHDOG,
    Belongings,
    Program,
    Survivor,
    chance,
    check_conservation,
    is_asleep,
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


@pytest.mark.contract("A subscriber whose process is gone never blocks a publisher")
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
    for name in os.listdir(meeting):  # some were killed between bind and listen: a minute passes
        os.utime(Path(meeting, name), (0, 0))
    with vbus.Node("newcomer", domain=node.domain, shm=meeting):
        assert len(os.listdir(meeting)) == 2, "the names of the dead are collected"


# ---- each at its moment -------------------------------------------------------------------------


@pytest.mark.contract("`lost` is what a best-effort network or a dead peer took")
def test_slots_of_killed_readers_come_back(join, start):
    # Seen in other buses: a killed reader keeps its slots, and after some crashes the publisher stands still.
    publisher = join(memory=16 << 20).publisher("images", bytes, depth=2, block_timeout=WATCHDOG)
    victims = start("""
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        for line in sys.stdin:
            if os.fork():
                continue
            images = vbus.Node("reader").subscriber("images", bytes)
            say(os.getpid())
            held = [images.receive() for _ in range(3)]
            say("holds", all(map(is_whole, held)), images.stats().held)
            signal.pause()
    """)
    sequence = 0
    for _ in range(50):
        victims.tell("next")
        pid = int(victims.hear())
        assert publisher.wait_for_subscribers(1, WATCHDOG)
        for _ in range(5):  # three are held, two wait
            publisher.publish(pattern(publisher.id, sequence, 1 << 20))
            sequence += 1
        victims.expect("holds", True, 3)
        until(lambda: publisher.stats().held == 3, "the publisher knows")
        os.kill(pid, signal.SIGKILL)
        until(lambda: publisher.subscribers == 0, "the dead subscriber is gone")
        stats = publisher.stats()
        assert (stats.held, stats.waiting) == (0, 0)
    assert publisher.stats().published == sequence
    assert publisher.stats().lost == 2 * 50, "what waited for the dead is lost, and counted"


@pytest.mark.contract("A subscriber whose process is gone never blocks a publisher")
def test_a_publisher_blocked_by_a_subscriber_goes_on_when_that_is_killed(join, start):
    publisher = join().publisher("t", bytes, depth=1)
    reader = start("""
        subscriber = vbus.Node("reader").subscriber("t")
        say("ready")
        hear()
    """)
    reader.expect("ready")
    publisher.publish(b"fills it")
    blocked = Survivor(lambda: publisher.publish(b"waits"))
    until(lambda: is_asleep(blocked.native_id), "publish waits")
    assert publisher.stats().published == 1
    reader.kill()
    blocked.join()
    assert publisher.stats().published == 2


@pytest.mark.contract("Samples accepted before a publisher closed or died are still received")
def test_what_a_publisher_accepted_before_it_was_killed_is_received(join, start):
    node = join()
    subscriber = node.subscriber("t", bytes)
    publisher = start("""
        publisher = vbus.Node("publisher").publisher("t", bytes)
        publisher.wait_for_subscribers()
        for sequence in range(20):
            publisher.publish(pattern(publisher.id, sequence, 100_000))
        say(publisher.id)
        signal.pause()
    """)
    origin = publisher.hear()
    publisher.kill()
    until(lambda: not node.peers(), "the node sees the death")
    for sequence in range(20):
        sample = subscriber.receive(WATCHDOG)
        assert (sample.publisher, sample.sequence, sample.lost) == (origin, sequence, 0)
        assert sample.payload == pattern(origin, sequence, 100_000)
    with pytest.raises(vbus.Timeout):
        subscriber.receive(0)
    assert subscriber.publishers == 0
    check_conservation(subscriber)


@pytest.mark.contract("They stay valid and unchanged for as long as")
def test_held_samples_of_a_killed_publisher_stay_as_they_are(join, start):
    node = join()
    subscriber = node.subscriber("t", bytes)
    publisher = start("""
        publisher = vbus.Node("publisher").publisher("t", bytes, depth=4)
        publisher.wait_for_subscribers()
        for sequence in range(1 << 40):
            publisher.publish(pattern(publisher.id, sequence, 300_000))
    """)
    held = [subscriber.receive(WATCHDOG) for _ in range(16)]
    views = [held[8 + at].payload for at in range(8)]
    origins = [(sample.publisher, sample.sequence) for sample in held]
    del held[8:]
    publisher.kill()
    until(lambda: not node.peers(), "the node sees the death")
    drained = 0
    while (sample := subscriber.receive_nowait()) is not None:
        assert is_whole(sample)
        drained += 1
    assert drained <= 4
    node.close()
    expected = [pattern(*origin, 300_000) for origin in origins]
    assert [sample.payload for sample in held] == expected[:8]
    assert views == expected[8:]
    before = Belongings.of(os.getpid())
    for sample in held:
        sample.release()
    del held, views, sample
    assert Belongings.of(os.getpid()).mappings < before.mappings


def test_a_sample_half_written_when_its_publisher_is_killed_is_never_seen(join, start):
    subscriber = join().subscriber("t", bytes)
    publisher = start("""
        publisher = vbus.Node("publisher").publisher("t", bytes)
        publisher.wait_for_subscribers()
        publisher.publish(b"whole")
        loan = publisher.loan(1000)
        loan.buffer[:500] = bytes(500)
        say("half")
        signal.pause()
    """)
    publisher.expect("half")
    publisher.kill()
    assert bytes(subscriber.receive(WATCHDOG).payload) == b"whole"
    until(lambda: subscriber.publishers == 0, "the publisher is gone")
    assert subscriber.receive_nowait() is None


def test_a_killed_program_works_at_once_when_it_is_started_again(join, start, meeting):
    subscriber = join().subscriber("t", int)
    source = """
        with vbus.Node("robot") as node, node.publisher("t", int) as publisher:
            publisher.publish(int(hear()))
            say("published", publisher.subscribers)
            signal.pause()
    """
    for turn in range(5):
        robot = start(source)
        robot.tell(turn)
        robot.expect("published", 1)
        robot.kill()
        assert subscriber.receive(WATCHDOG).value == turn
    with vbus.Node("next", domain=join().domain, shm=meeting) as node:
        assert len(node.peers()) == 2
        assert len(os.listdir(meeting)) == 3, "the name of the last dead is collected"


# ---- a child of the dead lives on ---------------------------------------------------------------

ORPHANS = {
    "fork": """
        if os.fork() == 0:
            say("child", os.getpid())
            signal.pause()
    """,
    "fork of a fork": """
        if os.fork() == 0:
            if os.fork() == 0:
                say("child", os.getpid())
            signal.pause()
    """,
    "multiprocessing": """
        import multiprocessing
        def child():
            say("child", os.getpid())
            signal.pause()
        multiprocessing.get_context("fork").Process(target=child).start()
    """,
}


@pytest.mark.parametrize("how", ORPHANS)
def test_a_death_is_seen_though_a_forked_child_lives_on(how, join, start, meeting):
    # Seen in the field: the child keeps the dead one's sockets open, so there is no hang-up.
    node = join(memory=16 << 20)
    publisher = node.publisher("down", bytes, depth=2, block_timeout=WATCHDOG)
    subscriber = node.subscriber("up", bytes)
    source = (
        textwrap.dedent("""
        node = vbus.Node("mother")
        up = node.publisher("up", bytes)
        down = node.subscriber("down", bytes)
        held = [down.receive() for _ in range(3)]
    """)
        + textwrap.dedent(ORPHANS[how])
        + textwrap.dedent("""
        up.publish(b"last words")
        say("holds", len(held))
        signal.pause()
    """)
    )
    mother = start(source)
    assert publisher.wait_for_subscribers(1, WATCHDOG)
    for _ in range(5):
        publisher.publish(bytes(1 << 20))
    said = sorted([mother.hear(), mother.hear()])
    assert said[1] == "holds 3", said
    orphan = int(said[0].removeprefix("child "))
    mother.kill()
    try:
        for _ in range(20):  # more than the memory, if the dead one's slots did not return
            publisher.publish(bytes(1 << 20))
        assert bytes(subscriber.receive(WATCHDOG).payload) == b"last words"
        until(lambda: not node.peers(), "the death is seen")
        assert publisher.stats().held == 0
        os.kill(orphan, 0)  # it lives
        with vbus.Node("newcomer", domain=node.domain, shm=meeting) as newcomer:
            assert [peer.id for peer in newcomer.peers()] == [node.id]
            assert len(os.listdir(meeting)) == 2, "the dead one's name refuses, though its child lives"
    finally:
        os.kill(orphan, signal.SIGKILL)


# ---- nothing adds up ----------------------------------------------------------------------------


def churn(what: str, count: int) -> str:
    return f"""
        with vbus.Node("churn") as node:
            say("ready")
            hear()
            for turn in range({count}):
                with {what} as endpoint:
                    if isinstance(endpoint, vbus.Publisher):
                        endpoint.wait_for_subscribers()
                        endpoint.publish(bytes(1000))
                    else:
                        endpoint.wait_for_publishers()
                del endpoint  # and its node, if nobody else has it
                if turn == {count} // 4:
                    say("warm")
                    hear()
            say("done")
            hear()
    """


@pytest.mark.parametrize(
    "what",
    [
        'node.publisher("t")',
        'node.subscriber("t")',
        'vbus.Node("n").publisher("t")',
        'vbus.Node("n").subscriber("t")',
    ],
)
def test_who_opens_and_closes_again_and_again_leaves_nothing(what, join, start):
    node = join()
    publisher, subscriber = node.publisher("t"), node.subscriber("t")
    draining = Survivor(lambda: [None for _ in subscriber])
    program = start(churn(what, 120))
    program.expect("ready")
    program.tell("go")
    program.expect("warm")

    def belongings() -> list[Belongings]:
        return [Belongings.of(os.getpid()), Belongings.of(program.pid)]

    until(lambda: len(node.peers()) == 1, "it is alone")
    before = belongings()
    program.tell("on")
    program.expect("done")
    until(lambda: len(node.peers()) == 1, "it is alone")
    now = belongings()
    assert all(a.at_most(b) for a, b in zip(now, before)), (before, now)
    program.tell("end")
    program.finish()
    subscriber.close()
    draining.join()
    check_conservation(publisher, subscriber)
