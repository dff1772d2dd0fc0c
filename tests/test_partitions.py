"""What breaks between hosts and heals: partitions, interfaces, addresses, processes that sleep.

Every story is told of many pairs of hosts at once, for each of them takes as long as its partition.
"""

# ruff: noqa: F811 (fixtures are imported, and named as arguments)

import time

import pytest
from helpers import SOAK, start  # noqa: F401
from hosts import NO_MEMORY, Puppet, hosts_can_be_made, switch  # noqa: F401

pytestmark = [pytest.mark.timeout(240), pytest.mark.usefixtures("hosts_can_be_made")]

AT_ONCE = 100
"""Samples in each part of a story."""


class Story:
    """A publisher on one host, a subscriber on another, and what happens between them."""

    depth = 100_000
    """The subscriber's."""
    takes = "before"
    """When it takes what came first: "before" the partition, once that is "healed", or "behind" more."""

    def __init__(self, start, switch, number):
        self.switch = switch
        self.number = number
        self.left, self.right = (
            Puppet(start, f"{side}{number}", environment=NO_MEMORY) for side in ("left", "right")
        )
        switch.plug(self.left, f"{self.address(1)}/16")
        switch.plug(self.right, f"{self.address(2)}/16")

    @property
    def name(self):
        return type(self).__doc__

    def address(self, last):
        return f"10.0.{self.number}.{last}"

    def settings(self):
        """Of the left node and of the right."""
        return {"peers": [f"{self.address(2)}:7000"], "discovery": ["peers"]}, {"discovery": ["peers"]}

    def begin(self):
        for host, settings in zip((self.right, self.left), self.settings()[::-1]):
            host.open_node(**{"listen": "0.0.0.0:7000", "domain": str(self.number), **settings})
            host.do("count = 0")
        self.right.do(f"subscriber = node.subscriber('t', int, depth={self.depth})")
        self.left.do("publisher = node.publisher('t', int, depth=100_000, history=50)")
        assert self.left.ask("publisher.wait_for_subscribers(1, 20)"), self.name

    def publish(self):
        self.left.do(f"for _ in range({AT_ONCE}): publisher.publish(count); count += 1")

    def receives(self, *numbers):
        """The next samples, as (value, lost)."""
        self.right.do(f"got = [subscriber.receive(30) for _ in range({len(numbers)})]")
        assert self.right.ask("[(it.value, it.lost) for it in got]") == list(numbers), self.name

    def takes_what_was_before(self):
        self.receives(*((number, 0) for number in range(AT_ONCE)))

    def receives_until(self, last):
        """Samples until this one, in order, and each with what is missing before it: how many."""
        self.right.do("got = [subscriber.receive(30)]")
        self.right.do(f"while got[-1].value < {last}: got.append(subscriber.receive(30))")
        due = AT_ONCE
        got = self.right.ask("[(it.value, it.lost) for it in got]")
        for value, lost in got:
            assert value == due + lost, (self.name, got)
            due = value + 1
        return len(got)

    def part(self):
        raise NotImplementedError

    def heal(self):
        raise NotImplementedError

    def isolated(self, on):
        for host in (self.left, self.right):
            self.switch.isolate(host, on)

    def moves(self, host, last):
        """Another address, and none besides."""
        host.ip("addr", "flush", "dev", "eth0")
        host.ip("addr", "add", f"{self.address(last)}/16", "dev", "eth0")


class Dialled(Story):
    """the switch drops all; the publisher had named the subscriber"""

    def part(self):
        self.isolated(True)

    def heal(self):
        self.isolated(False)


class Dialling(Dialled):
    """the switch drops all; the subscriber had named the publisher"""

    def settings(self):
        return {"discovery": ["peers"]}, {"peers": [f"{self.address(1)}:7000"], "discovery": ["peers"]}


class Found(Dialled):
    """the switch drops all; they had found each other by mDNS"""

    def settings(self):
        return {"discovery": ["mdns"]}, {"discovery": ["mdns"]}


class Down(Story):
    """the subscriber's interface goes down and up"""

    def part(self):
        self.right.ip("link", "set", "eth0", "down")

    def heal(self):
        self.right.ip("link", "set", "eth0", "up")


class PublisherMoves(Dialled):
    """the publisher has another address afterwards"""

    def heal(self):
        self.moves(self.left, 101)
        self.isolated(False)


class SubscriberMoves(Dialled):
    """the subscriber has another address afterwards, and was named by the old one"""

    def heal(self):
        self.moves(self.right, 102)
        self.isolated(False)


class BothMove(Found):
    """both have other addresses afterwards, and find each other by mDNS"""

    def heal(self):
        self.moves(self.left, 101)
        self.moves(self.right, 102)
        self.isolated(False)


class SubscriberSleeps(Story):
    """the subscriber's process is stopped and goes on"""

    def part(self):
        self.right.program.stop()

    def heal(self):
        self.right.program.go_on()


class PublisherSleeps(Story):
    """the publisher's process is stopped and goes on"""

    def publish(self):
        if not self.sleeps:
            super().publish()

    sleeps = False

    def part(self):
        self.left.program.stop()
        self.sleeps = True

    def heal(self):
        self.sleeps = False
        self.left.program.go_on()


class Behind(Dialled):
    """the subscriber has room for a few, and takes nothing until they are peers again"""

    depth = 8
    takes = "healed"


class FurtherBehind(Behind):
    """the subscriber has room for a few, and takes nothing until there is more again"""

    takes = "behind"


STORIES = [
    Dialled,
    Dialling,
    Found,
    Down,
    PublisherMoves,
    SubscriberMoves,
    BothMove,
    SubscriberSleeps,
    PublisherSleeps,
    Behind,
    FurtherBehind,
]


def told(start, switch, seconds):
    """All stories, each parted for so long; samples are published before, within, and afterwards."""
    stories = [kind(start, switch, number) for number, kind in enumerate(STORIES, 1)]
    for story in stories:
        story.begin()
        story.publish()
        if story.takes == "before":
            story.takes_what_was_before()
        else:
            assert story.left.ask("publisher.flush(20)"), story.name
    for story in stories:
        story.part()
        story.publish()
    time.sleep(seconds)  # the partition itself
    for story in stories:
        story.healed = time.monotonic()
        story.heal()
    return stories


def test_a_partition_of_ten_seconds_heals_by_itself_and_nothing_is_lost(start, switch):
    for story in told(start, switch, 10):
        sleeps = isinstance(story, PublisherSleeps)
        story.publish()
        count = AT_ONCE * (2 if sleeps else 3)
        if story.takes != "before":
            story.takes_what_was_before()
        story.receives(*((number, 0) for number in range(AT_ONCE, count)))
        print(story.name, time.monotonic() - story.healed)
        assert story.left.ask("publisher.flush(20)"), story.name
        for host, its in ((story.left, "publisher"), (story.right, "subscriber")):
            assert all("PeerLeft" not in event for event in host.ask("everything(watch)")), story.name
            assert host.ask(f"conserved({its})") == [], story.name


@pytest.mark.parametrize(
    "seconds",
    [20, pytest.param(60, marks=pytest.mark.skipif(not SOAK, reason="a minute; VBUS_SOAK=1 runs it"))],
)
def test_a_partition_beyond_the_kept_time_heals_by_itself_and_the_counts_are_right(start, switch, seconds):
    stories = told(start, switch, seconds)
    for story in stories:
        assert story.left.ask("node.wait_for_peers(1, 20)"), story.name
        story.left.until("publisher.subscribers == 1")
        print(story.name, time.monotonic() - story.healed)
    for story in stories:
        if story.takes == "healed":
            story.takes_what_was_before()
        story.publish()
        if story.takes == "behind":
            story.takes_what_was_before()
        last = story.left.ask("count")
        assert story.receives_until(last - 1) >= AT_ONCE, story.name
        story.publish()
        story.receives(*((number, 0) for number in range(last, last + AT_ONCE)))
        assert story.left.ask("publisher.flush(20)"), story.name
        for host, its in ((story.left, "publisher"), (story.right, "subscriber")):
            assert host.ask(f"conserved({its})") == [], story.name
