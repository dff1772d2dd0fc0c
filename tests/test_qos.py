"""Quality of service, rule by rule: what is offered, what is asked, and what the two then do."""

import asyncio
import itertools
import threading
import time

import pytest
from helpers import WATCHDOG, check_conservation, is_asleep, until

import vbus

pytestmark = pytest.mark.paths("shm", "udp")

OFFERED = {
    "reliability": "reliable",
    "ordered": True,
    "depth": 64,
    "on_full": "block",
    "history": 0,
    "priority": 4,
    "max_size": 1 << 30,
}


@pytest.fixture(params=["near", "far"])
def two(request, join):
    """The node of the publisher and the node of the subscriber: the same, or neighbours."""
    node = join()
    return node, node if request.param == "near" else join("far")


def mismatches(publisher: vbus.Publisher, node: vbus.Node) -> dict[str, tuple[str, str]]:
    (topic,) = (topic for topic in node.topics() if topic.topic == publisher.topic)
    return {mismatch.field: (mismatch.offered, mismatch.asked) for mismatch in topic.mismatches}


def offer_of(publisher: vbus.Publisher, node: vbus.Node) -> dict[str, object]:
    topics = (topic for topic in node.topics() if topic.topic == publisher.topic)
    return dict(next(topics).publishers[0].qos)


# ---- what is offered and what is asked ----------------------------------------------------------


@pytest.mark.contract(
    'across loss, reordering and duplication; `"best_effort"` | `"reliable"`',
    "gives each sample as soon as it is whole | `True`",
    "(what is on its way is bounded in bytes, besides) | `64`",
    'raises `vbus.Full` | `"block"` if reliable, else `"drop_oldest"`',
    "strict: low ones may starve | `4`",
    "ends with the publisher | `0`",
    "after which an undelivered sample is dropped and counted | `None`",
    "naming the subscriber that is full; `None` for ever | `None`",
    "largest sample accepted, bytes | 1 GiB",
)
def test_what_is_not_given_has_the_default_of_the_table(node):
    with node.publisher("a/b") as reliable, node.publisher("a/c", reliability="best_effort") as loose:
        assert offer_of(reliable, node) == OFFERED  # no block_timeout and no lifespan
        assert offer_of(loose, node) == {**OFFERED, "reliability": "best_effort", "on_full": "drop_oldest"}


@pytest.mark.contract("what the subscriber does not give is taken as offered")
@pytest.mark.paths("shm")  # on its way, more than `depth` may wait
def test_what_the_subscriber_does_not_give_is_as_offered(two):
    there, here = two
    with (
        there.publisher("t", depth=3, on_full="drop_newest", history=2) as publisher,
        here.subscriber("t") as subscriber,
    ):
        assert mismatches(publisher, here) == {}
        for number in range(5):
            publisher.publish(number)
        assert [sample.value for sample in subscriber.receive_many(timeout=WATCHDOG)] == [0, 1, 2]
        assert dict(subscriber.stats().dropped) == {"drop_newest": 2}
        with here.subscriber("t") as late:
            assert [late.receive(WATCHDOG).value for _ in range(2)] == [3, 4]


@pytest.mark.contract("Only an explicit ask for more than is offered is reported as a mismatch")
@pytest.mark.parametrize(
    ("field", "offered", "asked", "told"),
    [
        ("reliability", "best_effort", "reliable", ("best_effort", "reliable")),
        ("reliability", "reliable", "best_effort", None),
        ("ordered", False, True, ("False", "True")),
        ("ordered", True, False, None),
        ("depth", 8, 9, ("8", "9")),
        ("depth", 8, 8, None),
        ("depth", 8, 7, None),
        ("history", 2, 3, ("2", "3")),
        ("history", 3, 2, None),
        ("lifespan", 1.0, 2.5, ("1", "2.5")),
        ("lifespan", 2.0, 1.0, None),
        ("lifespan", None, 1.0, None),
        ("on_full", "drop_oldest", "block", ("drop_oldest", "block")),
        ("on_full", "error", "block", ("error", "block")),
        ("on_full", "block", "drop_newest", None),
        ("on_full", "drop_oldest", "drop_newest", None),
    ],
)
def test_only_who_asks_for_more_than_is_offered_is_told(node, field, offered, asked, told):
    with (
        node.publisher("t", **{field: offered}) as publisher,
        node.subscriber("t", **{field: asked}),
        node.subscriber("t"),
    ):
        assert mismatches(publisher, node) == ({} if told is None else {field: told})
        assert publisher.subscribers == 2, "they are connected all the same"


# ---- if both give one ---------------------------------------------------------------------------


@pytest.mark.contract('a dropping `on_full` beats `"error"`, which beats `"block"`', "when that is reached:")
@pytest.mark.parametrize(
    ("offered", "asked"),
    list(
        itertools.product(
            ["block", "error", "drop_oldest", "drop_newest"], [None, "block", "drop_oldest", "drop_newest"]
        )
    ),
)
@pytest.mark.paths("shm")  # on its way, more than `depth` may wait
def test_a_dropping_one_beats_error_beats_block_and_the_subscriber_chooses_how(two, offered, asked):
    dropping = [it for it in (asked, offered) if it and it.startswith("drop")]
    agreed = dropping[0] if dropping else "error" if offered == "error" else "block"
    there, here = two
    with (
        there.publisher("t", depth=1, on_full=offered, block_timeout=0.01) as publisher,
        here.subscriber("t", on_full=asked) as subscriber,
    ):
        publisher.publish(0)
        if agreed in ("block", "error"):
            with pytest.raises(vbus.Timeout if agreed == "block" else vbus.Full) as caught:
                publisher.publish(1)
            assert (caught.value.topic, caught.value.subscriber) == ("t", subscriber.id)
            assert subscriber.receive(WATCHDOG).value == 0
        else:
            publisher.publish(1)
            kept = {"drop_oldest": 1, "drop_newest": 0}[agreed]
            sample = subscriber.receive(WATCHDOG)
            assert (sample.value, sample.lost) == (kept, kept)
            assert dict(publisher.stats().dropped) == {agreed: 1}
        publisher.publish(2)
        assert subscriber.receive(WATCHDOG).value == 2
        check_conservation(publisher, subscriber)


@pytest.mark.contract(
    "the smaller `history`, `lifespan`, `depth`", "samples of one publisher that may wait at one subscriber"
)
@pytest.mark.parametrize(("offered", "asked"), [(2, 5), (5, 2), (3, 3)])
@pytest.mark.paths("shm")  # on its way, more than `depth` may wait
def test_the_smaller_depth_and_the_smaller_history_count(two, offered, asked):
    there, here = two
    publisher = there.publisher("t", depth=offered, history=offered)
    for number in range(10):
        publisher.publish(number)
    with here.subscriber("t", depth=asked, history=asked, on_full="drop_oldest") as subscriber:
        least = min(offered, asked)
        kept = [sample.value for sample in subscriber.receive_many(timeout=WATCHDOG)]
        assert kept == list(range(10 - least, 10)), "history"
        for number in range(10, 20):
            publisher.publish(number)
        waited = [sample.value for sample in subscriber.receive_many(timeout=WATCHDOG)]
        assert waited == list(range(20 - least, 20)), "depth"


@pytest.mark.contract(
    "the smaller `history`, `lifespan`, `depth`", "seconds after which an undelivered sample is dropped"
)
@pytest.mark.parametrize(("offered", "asked"), [(0.01, None), (None, 0.01), (0.01, 1000.0), (1000.0, 0.01)])
def test_the_smaller_lifespan_ends_a_sample_that_nobody_took(two, offered, asked):
    there, here = two
    with (
        there.publisher("t", lifespan=offered) as publisher,
        here.subscriber("t", lifespan=asked) as subscriber,
        here.subscriber("t", lifespan=1000.0) as patient,
    ):
        publisher.publish("old")
        born = time.monotonic_ns()
        until(lambda: time.monotonic_ns() > born + 20_000_000, "it is too old")

        def is_dropped():
            # A neighbour's first sample can be looked at when its driver has mapped where it lies.
            assert subscriber.receive_nowait() is None
            return dict(subscriber.stats().dropped) == {"lifespan": 1}

        until(is_dropped, "it is dropped")
        publisher.publish("new")
        if offered != 0.01:
            assert [patient.receive(WATCHDOG).value for _ in range(2)] == ["old", "new"]
        check_conservation(publisher, subscriber, patient)


@pytest.mark.contract("seconds after which an undelivered sample is dropped")
@pytest.mark.parametrize("nbytes", [1, 1 << 20])
def test_a_lifespan_takes_nothing_from_who_reads_in_time(two, nbytes):
    there, here = two
    with there.publisher("t", lifespan=1000.0) as publisher, here.subscriber("t") as subscriber:
        for number in range(200):
            publisher.publish(bytes(nbytes))
            with subscriber.receive(WATCHDOG) as sample:
                assert (sample.sequence, sample.lost) == (number, 0)
        check_conservation(publisher, subscriber)


@pytest.mark.contract(
    "seconds after which an undelivered sample is dropped",
    "every drop is counted where it happened, with its reason, and seen by the subscriber as `lost`",
)
def test_samples_that_end_while_they_are_taken_are_taken_or_counted_once(two):
    there, here = two
    count = 2000
    taken = []

    def take():
        while True:
            with subscriber.receive(WATCHDOG) as sample:
                if sample.value == b"":
                    return
                taken.append((sample.sequence, sample.lost))

    with (
        there.publisher("t", lifespan=0.0005, depth=4) as publisher,
        here.subscriber("t") as subscriber,
    ):
        taking = threading.Thread(target=take)
        taking.start()
        for number in range(count):
            publisher.publish(bytes(1 + 5000 * (number % 2)))
        # The last one, until one of them is taken in time.
        while taking.is_alive():
            publisher.publish(b"")
            taking.join(0.001)
        published = publisher.stats().published
        until(lambda: not subscriber.receive_nowait() and subscriber.stats().waiting == 0, "all ended")
        stats = subscriber.stats()
        assert stats.delivered + sum(stats.dropped.values()) == stats.sent == published
        assert set(stats.dropped) <= {"lifespan"}
        expected = 0
        for sequence, lost in taken:
            assert sequence == expected + lost
            expected = sequence + 1
        check_conservation(publisher, subscriber)


@pytest.mark.contract(
    "seconds after which an undelivered sample is dropped", "seconds `publish` may block, then `vbus.Timeout`"
)
@pytest.mark.parametrize("full", ["depth", "memory"])
@pytest.mark.paths("shm")  # on its way, more than `depth` may wait
def test_a_publisher_that_waits_goes_on_when_a_lifespan_makes_room(join, full):
    there, here = join("there", memory=4 << 20), join("here")
    depth, size = (2, 1) if full == "depth" else (64, 1 << 20)
    with (
        # Less than the second after which a publish that waits looks up to tell so.
        there.publisher("t", lifespan=0.05, depth=depth, block_timeout=0.95) as publisher,
        here.subscriber("t") as subscriber,
    ):
        for _ in range(8):
            publisher.publish(bytes(size))
        assert set(publisher.stats().dropped) == {"lifespan"}
        asyncio.run(publisher.publish_async(bytes(size)))
        until(lambda: publisher.stats().waiting == 0, "the publisher counts what ended, whoever looks")
        assert dict(publisher.stats().dropped) == dict(subscriber.stats().dropped) == {"lifespan": 9}
        check_conservation(publisher, subscriber)


@pytest.mark.contract("best effort beats reliable; unordered beats ordered")
@pytest.mark.parametrize("field", ["reliability", "ordered"])
def test_the_weaker_promise_is_taken_without_a_word_and_the_samples_come(two, field):
    weak, strong = {"reliability": ("best_effort", "reliable"), "ordered": (False, True)}[field]
    there, here = two
    with (
        there.publisher("t", **{field: strong}, on_full="block") as publisher,
        here.subscriber("t", **{field: weak}) as subscriber,
    ):
        assert mismatches(publisher, here) == {}
        for number in range(5):
            publisher.publish(number)
        assert [subscriber.receive(WATCHDOG).value for _ in range(5)] == list(range(5))


# ---- each by itself -----------------------------------------------------------------------------


@pytest.mark.contract("seconds `publish` may block, then `vbus.Timeout`, naming the subscriber that is full")
def test_block_timeout_zero_fails_at_once_and_none_waits_for_ever(node):
    with node.publisher("t", depth=1, block_timeout=0) as publisher, node.subscriber("t") as subscriber:
        publisher.publish(0)
        with pytest.raises(vbus.Timeout, match=f"subscriber {subscriber.id}") as caught:
            publisher.publish(1)
        assert caught.value.subscriber == subscriber.id
        assert publisher.stats().blocked_seconds == 0
    with node.publisher("u", depth=1) as patient, node.subscriber("u") as subscriber:
        patient.publish(0)
        publishing = threading.Thread(target=patient.publish, args=(1,))
        publishing.start()
        until(lambda: is_asleep(publishing.native_id), "it waits")
        assert [subscriber.receive(WATCHDOG).value for _ in range(2)] == [0, 1]
        publishing.join(WATCHDOG)
        assert patient.stats().blocked_seconds > 0


@pytest.mark.contract("ends with the publisher | `0`")
def test_history_is_the_last_samples_and_ends_with_the_publisher(two):
    there, here = two
    with there.publisher("t", history=3) as publisher:
        for number in range(7):
            publisher.publish(number)
        with here.subscriber("t") as late:
            samples = [late.receive(WATCHDOG) for _ in range(3)]
            assert [(sample.value, sample.sequence, sample.lost) for sample in samples] == [
                (4, 4, 0),
                (5, 5, 0),
                (6, 6, 0),
            ]
    with here.subscriber("t") as too_late:
        assert too_late.receive_nowait() is None


@pytest.mark.paths("shm")  # on its way, more than `depth` may wait
@pytest.mark.contract(
    "every drop is counted where it happened, with its reason, and seen by the subscriber as `lost`",
    '`dropped: Mapping[str, int]` with keys `"drop_oldest"',
)
@pytest.mark.parametrize("reason", ["drop_oldest", "drop_newest", "lifespan", "closed"])
def test_every_drop_has_its_reason_and_leaves_a_gap(two, reason):
    there, here = two
    asked = {"lifespan": 0.0} if reason == "lifespan" else {}
    if reason.startswith("drop"):
        asked = {"on_full": reason, "depth": 1}
    with there.publisher("t") as publisher, here.subscriber("t", **asked) as subscriber:
        for number in range(3):
            publisher.publish(number)
        if reason == "closed":
            subscriber.close()
            dropped = 3
        elif reason == "lifespan":
            until(lambda: not subscriber.receive_nowait() and subscriber.stats().waiting == 0, "all ended")
            dropped = 3
        else:
            sample = subscriber.receive(WATCHDOG)
            dropped = 2
            assert (sample.value, sample.lost) == ((2, 2) if reason == "drop_oldest" else (0, 0))
            publisher.publish(3)
            assert subscriber.receive(WATCHDOG).lost == (0 if reason == "drop_oldest" else 2)
        until(lambda: sum(publisher.stats().dropped.values()) == dropped, "both sides know")
        assert dict(publisher.stats().dropped) == dict(subscriber.stats().dropped) == {reason: dropped}
        check_conservation(publisher, subscriber)
