"""Bad paths between nodes: what a slow link sends first, and what a lossy one may lose."""

import contextlib

import pytest
from helpers import WATCHDOG, check_conservation, until
from relay import Relay

import vbus


@pytest.fixture
def over(join):
    """Opens two nodes that meet over such a path."""
    with contextlib.ExitStack() as relays:

        def over(**path: float) -> tuple[vbus.Node, vbus.Node]:
            alone = {"shm": False, "listen": "127.0.0.1:0"}
            there = join("there", **alone)
            relay = Relay(there.addresses[0], **path)
            relays.callback(relay.close)
            here = join("here", peers=[relay.address], **alone)
            assert here.wait_for_peers(1, WATCHDOG)
            assert there.wait_for_peers(1, WATCHDOG)
            return here, there

        yield over


def take(subscriber, last):
    """Samples up to the one with this value."""
    got = []
    while not got or got[-1].value != last:
        got.append(subscriber.receive(WATCHDOG))
    return got


@pytest.mark.contract("`0` (first) to `7`; strict: low ones may starve")
def test_over_a_slow_link_what_is_urgent_overtakes_what_is_not(over):
    here, there = over(rate=4e6)
    bulk, urgent = there.subscriber("bulk", bytes), there.subscriber("urgent", bytes)
    last = here.publisher("bulk", bytes, priority=7, depth=1000)
    first = here.publisher("urgent", bytes, priority=0)
    assert last.wait_for_subscribers(1, WATCHDOG)
    assert first.wait_for_subscribers(1, WATCHDOG)
    for _ in range(100):
        last.publish(bytes(50_000))
    bulk.receive(WATCHDOG)
    for _ in range(10):
        first.publish(bytes(1000))
    for _ in range(10):
        urgent.receive(WATCHDOG)
    assert bulk.stats().sent < 50, "the ten were behind a hundred and came before most of them"
    for _ in range(99):
        bulk.receive(WATCHDOG)
    check_conservation(first, last, bulk, urgent)


def test_who_asks_for_less_is_sent_less_and_counts_what_the_network_took(over):
    """What a lossy path takes from it is not sent again, though the publisher offers that."""
    here, there = over(loss=0.2)
    publisher = here.publisher("t", int, depth=2000)
    subscriber = there.subscriber("t", int, reliability="best_effort")
    assert publisher.wait_for_subscribers(1, WATCHDOG)
    for number in range(1000):
        publisher.publish(number)
    until(lambda: sum(subscriber.stats().dropped.values()) + subscriber.stats().lost > 20, "some are lost")
    got = subscriber.receive_many(timeout=WATCHDOG)
    assert [sample.value for sample in got] == sorted({sample.value for sample in got})
    before = 0
    for sample in got:
        assert sample.lost == sample.sequence - before
        before = sample.sequence + 1
    until(lambda: publisher.stats().links[0].waiting == subscriber.stats().waiting, "all is known")
    assert publisher.stats().lost == subscriber.stats().lost > 20
    check_conservation(publisher, subscriber)


@pytest.mark.contract("every sample, once, in order, over any path, across loss, reordering and duplication")
def test_a_stronger_subscriber_that_joins_a_weaker_one_gets_all_that_was_promised(over):
    here, there = over(loss=0.1)
    publisher = here.publisher("t", int, history=50, depth=1000)
    weak = there.subscriber(
        "t", int, reliability="best_effort", ordered=False, history=0, on_full="drop_oldest"
    )
    assert publisher.wait_for_subscribers(1, WATCHDOG)
    for number in range(100):
        publisher.publish(number)
    strong = there.subscriber("t", int)
    assert publisher.wait_for_subscribers(2, WATCHDOG)
    for number in range(100, 300):
        publisher.publish(number)
    got = take(strong, 299)
    assert [sample.value for sample in got] == list(range(got[0].value, 300))
    assert got[0].value <= 50
    assert all(sample.lost == 0 for sample in got[1:])
    seen = weak.receive_many(timeout=WATCHDOG)
    assert len({sample.value for sample in seen}) == len(seen)
    check_conservation(publisher, weak, strong)


def test_weaker_subscribers_share_the_stream_of_a_stronger_one(over):
    """The wire carries a sample once for all who are there."""
    here, there = over()
    publisher = here.publisher("t", bytes, depth=1000)
    strong = there.subscriber("t", bytes)
    assert publisher.wait_for_subscribers(1, WATCHDOG)
    weak = there.subscriber("t", bytes, reliability="best_effort", ordered=False)
    assert publisher.wait_for_subscribers(2, WATCHDOG)
    for _ in range(100):
        publisher.publish(bytes(10_000))
    assert publisher.flush(WATCHDOG)
    for subscriber in (strong, weak):
        assert [subscriber.receive(WATCHDOG).lost for _ in range(100)] == [0] * 100
    check_conservation(publisher, weak, strong)


@pytest.mark.contract("`False` gives each sample as soon as it is whole")
def test_unordered_samples_come_as_soon_as_they_are_whole_and_none_is_lost(over):
    here, there = over(loss=0.2)
    publisher = here.publisher("t", int, ordered=False, depth=2000)
    subscriber = there.subscriber("t", int)
    assert publisher.wait_for_subscribers(1, WATCHDOG)
    for number in range(500):
        publisher.publish(number)
    got = [subscriber.receive(WATCHDOG) for _ in range(500)]
    assert sorted(sample.value for sample in got) == list(range(500))
    assert [sample.value for sample in got] != list(range(500))
    assert {sample.lost for sample in got} == {0}
    check_conservation(publisher, subscriber)


def test_what_an_unordered_best_effort_path_takes_is_told_by_those_that_come(over):
    here, there = over(loss=0.2)
    publisher = here.publisher("t", int, ordered=False, reliability="best_effort", depth=2000)
    subscriber = there.subscriber("t", int)
    assert publisher.wait_for_subscribers(1, WATCHDOG)
    lost = taken = 0
    number = 0
    while lost < 50:
        publisher.publish(number)
        number += 1
        if sample := subscriber.receive_nowait():
            lost += sample.lost
            taken += 1
    assert lost + taken <= number
    check_conservation(publisher, subscriber)
