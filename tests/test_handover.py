"""Two programs of one host that met over the network, then meet in memory: nothing is lost or comes twice.

Their meeting directories are two, until a doorman lets through what one of them says to the other.
"""

import ast
import contextlib
import os
import select
import socket
import threading
from pathlib import Path

import pytest
from helpers import WATCHDOG, start, until
from relay import Relay

__all__ = ["start"]

# Two programs that say all they can, on processors that others may have.
pytestmark = pytest.mark.timeout(90)

PACKET = 1 << 18
FILES = 16

OPEN = """
import torrent
node = vbus.Node({name!r}, discovery=["shm", "peers"], listen="127.0.0.1:0", **{settings!r})
watch = node.watch()
"""


class Doorman:
    """Stands in a directory for a node of another one, and lets nobody through before he is told to."""

    def __init__(self, node: Path, here: Path) -> None:
        self.node = node
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(here / node.name))
        self.listener.listen()
        self.is_open, self.is_gone = threading.Event(), threading.Event()
        threading.Thread(target=self._welcome, daemon=True).start()

    def open(self) -> None:
        self.is_open.set()

    def go(self) -> None:
        """Everybody is put out, and nobody comes in any more."""
        self.is_gone.set()
        Path(self.listener.getsockname()).unlink()

    def _welcome(self) -> None:
        while True:
            guest, _ = self.listener.accept()
            threading.Thread(target=self._lead, args=(guest,), daemon=True).start()

    def _lead(self, guest: socket.socket) -> None:
        self.is_open.wait()
        host = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # One of the two may go at any time.
        with guest, host, contextlib.suppress(OSError):
            host.connect(str(self.node))
            while not self.is_gone.is_set():
                ready, _, _ = select.select([guest, host], [], [], 0.01)
                for one in ready:
                    said, files, _, _ = socket.recv_fds(one, PACKET, FILES)
                    if not said:
                        return
                    socket.send_fds(host if one is guest else guest, [said], files)
                    for file in files:
                        os.close(file)


class Party:
    """A program that does what the test says."""

    def __init__(self, start, name: str, **settings) -> None:
        self.program = start("import puppet; puppet.obey(own_network=False)")
        self.program.expect("ready")
        self.do(OPEN.format(name=name, settings=settings))

    def do(self, statement: str):
        return self._say("do", statement)

    def ask(self, expression: str):
        return self._say("ask", expression)

    def until(self, expression: str) -> None:
        until(lambda: self.ask(expression), expression, 2 * WATCHDOG)

    def _say(self, kind: str, text: str):
        self.program.tell(repr((kind, text)))
        kind, value = ast.literal_eval(self.program.hear(2 * WATCHDOG))
        assert kind != "raised", value
        return value


@pytest.fixture
def way():
    """What the network between them is like."""
    return {}


@pytest.fixture
def relay():
    """What carries it, if it is like something."""
    relays = []
    yield relays
    for relay in relays:
        relay.close()


@pytest.fixture
def parties(start, meeting, way, relay):
    """Two programs that have met over the network; and what lets them meet in memory."""
    there, here = Path(meeting, "1"), Path(meeting, "2")
    here.mkdir()
    left = Party(start, "left", shm=str(there))
    (node,) = there.glob("*.sock")
    doorman = Doorman(node, here)
    address = left.ask("node.addresses[0]")
    if way:
        relay.append(Relay(address, **way))
        address = relay[0].address
    right = Party(start, "right", shm=str(here), peers=[address])
    for party in (left, right):
        party.do("assert node.wait_for_peers(1, 20)")
        assert party.ask("[it.path for it in node.peers()]") == ["udp"]
    return left, right, doorman


def begin(party: Party, other: str, publishing: dict, subscribing: dict, pause: float = 0.0) -> None:
    name = party.ask("node.name")
    party.do(f"publisher = node.publisher('numbers/{name}', int, **{publishing!r})")
    party.do(f"subscriber = node.subscriber('numbers/{other}', int, **{subscribing!r})")
    ordered = subscribing.get("ordered", True)
    party.do(f"receiver = torrent.Receiver(subscriber, {pause}, {ordered})")


def begin_both(left: Party, right: Party, publishing=None, subscribing=None, pause: float = 0.0) -> None:
    for party, other in ((left, "right"), (right, "left")):
        begin(party, other, publishing or {}, subscribing or {}, pause)
    for party in (left, right):
        party.do("assert publisher.wait_for_subscribers(1, 20)")
        party.do("flood = torrent.Torrent(publisher)")


def change_over(left: Party, right: Party, doorman: Doorman, enough: int = 100) -> None:
    """They meet in memory in the midst of it, and go on there."""
    for party in (left, right):
        party.until(f"receiver.counts['udp'] >= {enough} or receiver.mistakes")
    doorman.open()
    for party in (left, right):
        party.until(f"receiver.counts['shm'] >= {enough} or receiver.mistakes")


def all_is_well(left: Party, right: Party, lost: bool = False) -> None:
    """Everything that was published was taken, or is known to be missing, and all counts say so."""
    counts = [party.ask("flood.stop()") for party in (left, right)]
    for party, count in ((left, counts[1]), (right, counts[0])):
        party.until(f"receiver.is_through({count})")
        assert party.ask("receiver.mistakes") == []
        if not lost:
            assert party.ask("receiver.lost") == 0
        got = party.ask("(subscriber.stats().sent, subscriber.stats().delivered, subscriber.stats().waiting)")
        assert got == (count, party.ask("len(receiver.seen)"), 0)
        assert party.ask("subscriber.stats().lost") == 0
        assert party.ask("subscriber.publishers") == 1
    for party in (left, right):
        # The last word of the old path is heard by and by.
        party.until("len(publisher.stats().links) == 1 and publisher.stats().links[0].waiting == 0")
        assert party.ask("publisher.stats().lost") == 0
        assert party.ask("publisher.subscribers") == 1
        assert party.ask("conserved(publisher, subscriber)") == []
        assert party.ask("[(it.path, it.name) for it in node.peers()]")[0][0] == "shm"
        assert party.ask("[(it.old, it.new) for it in changes(watch)]") == [("udp", "shm")]
        assert party.ask("[it for it in logged if 'disconnected' in it]") == []
        assert party.ask("[it.reason for it in node.explain() if it.verdict == 'used' and not it.topic]") == [
            "the two share memory"
        ]


@pytest.mark.contract("every sample, once, in order, over any path, across loss, reordering and duplication")
def test_nothing_is_lost_when_two_that_met_over_the_network_meet_in_memory(parties):
    left, right, doorman = parties
    begin_both(left, right)
    change_over(left, right, doorman)
    all_is_well(left, right)
    for party in (left, right):
        assert party.ask("sum(publisher.stats().dropped.values())") == 0


@pytest.mark.parametrize("way", [{"loss": 0.05, "rate": 400_000}])
def test_what_is_under_way_over_a_slow_and_lossy_network_arrives_before_what_comes_in_memory(parties):
    left, right, doorman = parties
    begin_both(left, right)
    change_over(left, right, doorman)
    all_is_well(left, right)


def what_was_lost_was_told(left, right):
    """The floods end; all of them is there, or counted as lost."""
    counts = [party.ask("flood.stop()") for party in (left, right)]
    for party, count in ((left, counts[1]), (right, counts[0])):
        party.until(f"receiver.is_through({count})")
        assert party.ask("receiver.mistakes") == []
        assert party.ask("conserved(publisher, subscriber)") == []
        assert party.ask("subscriber.stats().sent") == count
        assert party.ask("subscriber.stats().lost == receiver.lost")


@pytest.mark.parametrize("way", [{"loss": 0.0}])
def test_if_the_network_dies_before_all_has_arrived_it_is_lost_and_told(parties, relay):
    left, right, doorman = parties
    begin_both(left, right)
    for party in (left, right):
        party.until("receiver.counts['udp'] >= 100 or receiver.mistakes")
    relay[0].loss = 1.0
    change_over(left, right, doorman)
    what_was_lost_was_told(left, right)
    for party in (left, right):
        assert party.ask("publisher.flush(5)")
        assert party.ask("(subscriber.publishers, publisher.subscribers)") == (1, 1)


def test_a_subscriber_without_order_gets_each_once_on_both_paths(parties):
    left, right, doorman = parties
    begin_both(left, right, {"ordered": False}, {"ordered": False})
    change_over(left, right, doorman)
    all_is_well(left, right)


def test_what_a_dropping_subscriber_misses_is_told_over_the_change(parties):
    left, right, doorman = parties
    begin_both(left, right, subscribing={"on_full": "drop_oldest", "depth": 4})
    change_over(left, right, doorman)
    all_is_well(left, right, lost=True)


def test_a_slow_subscriber_makes_its_publisher_wait_on_both_paths(parties):
    left, right, doorman = parties
    begin_both(left, right, {"depth": 8}, pause=0.002)
    change_over(left, right, doorman, enough=50)
    all_is_well(left, right)


def test_history_that_was_had_over_the_network_does_not_come_again(parties):
    left, right, doorman = parties
    begin_both(left, right, {"history": 50})
    change_over(left, right, doorman)
    all_is_well(left, right)


def test_two_subscribers_of_one_publisher_change_over_in_one_step(parties):
    left, right, doorman = parties
    begin_both(left, right)
    right.do("second = node.subscriber('numbers/left', int, ordered=False, on_full='drop_newest')")
    right.do("late = torrent.Receiver(second, ordered=False)")
    change_over(left, right, doorman)
    right.do("second.close()")
    all_is_well(left, right)
    assert right.ask("late.mistakes") == []


def test_calls_and_streams_go_on_over_the_change(parties):
    left, right, doorman = parties
    for party in (left, right):
        party.do("servers = torrent.serve(node)")
    for party in (left, right):
        party.until("[it.name for it in node.services() if len(it.servers) == 2] == ['count', 'double']")
        party.do("echo = torrent.Echo(node, calls=2)")
    for party in (left, right):
        party.until("echo.answers >= 20 or echo.mistakes")
    doorman.open()
    for party in (left, right):
        party.until("[it.path for it in node.peers()] == ['shm']")
        before = party.ask("echo.answers")
        party.until(f"echo.answers >= {before} + 20 or echo.mistakes")
        assert party.ask("(echo.mistakes, echo.stop() > 0)") == ([], True)


def test_who_is_killed_in_the_midst_of_the_change_is_lost_as_ever(parties):
    left, right, doorman = parties
    begin_both(left, right, pause=0.0001)
    for party in (left, right):
        party.until("receiver.counts['udp'] >= 50 or receiver.mistakes")
    doorman.open()
    left.until("[it.path for it in node.peers()] == ['shm']")
    right.program.kill()
    left.until("node.peers() == []")
    left.until("subscriber.stats().waiting == 0")
    left.do("flood.stop()")
    assert left.ask("receiver.mistakes") == []
    assert left.ask("conserved(publisher, subscriber)") == []
    assert left.ask("(publisher.subscribers, subscriber.publishers)") == (0, 0)
    assert left.ask("publisher.flush(5)")


def test_a_topic_whose_publisher_comes_near_does_not_go_in_between(parties):
    left, right, doorman = parties
    begin_both(left, right)
    right.until("'numbers/left' in [it.topic for it in node.topics()]")
    right.do("everything(watch)")
    doorman.open()
    right.until("[it.path for it in node.peers()] == ['shm']")
    right.until("receiver.counts['shm'] > 100 or receiver.mistakes")
    assert right.ask("[it.split('(')[0] for it in everything(watch)]") == ["PathChanged"]


def test_when_all_is_drained_the_connection_over_the_network_is_closed(parties):
    left, right, doorman = parties
    begin_both(left, right)
    change_over(left, right, doorman)
    for party in (left, right):
        party.until("node._core.survey_dict()['connections'] == 0")
    all_is_well(left, right)


def test_two_that_lose_their_memory_meet_over_the_network_and_know_what_they_missed(parties):
    left, right, doorman = parties
    begin_both(left, right)
    change_over(left, right, doorman)
    for party in (left, right):
        party.do("receiver.may_go_back = True; before = receiver.counts['udp']")
    doorman.go()
    for party in (left, right):
        party.until("receiver.counts['udp'] >= before + 100 or receiver.mistakes")
    what_was_lost_was_told(left, right)
    for party in (left, right):
        assert party.ask("[it.path for it in node.peers()]") == ["udp"]


def test_of_a_publisher_that_was_closed_and_forgotten_nothing_stays_over_the_network(parties):
    left, right, doorman = parties
    for here, there, topic in ((left, right, "one"), (right, left, "other")):
        there.do(f"mine = node.subscriber({topic!r})")
        here.do(f"gone = node.publisher({topic!r}); assert gone.wait_for_subscribers(1, 10); gone.publish(1)")
        # It is gone before the subscriber has taken everything.
        here.do("assert gone.flush(10); gone.close(); del gone")
        there.do("assert mine.receive(10).value == 1")
        there.until("mine.receive_nowait() is None and mine.publishers == 0")
    for party in (left, right):
        party.until("not any('vbus-link' in line for line in open('/proc/self/maps'))")
    doorman.open()
    for party in (left, right):
        party.until("[peer.path for peer in node.peers()] == ['shm']")
        party.until("node._core.survey_dict()['connections'] == 0")
