"""What a publisher and its loans promise."""

import threading

import numpy as np
import pytest
from helpers import WATCHDOG, Survivor, check_conservation, is_asleep, start, until

import vbus

__all__ = ["start"]

pytestmark = pytest.mark.paths("shm", "udp")


@pytest.mark.contract(
    "`node.publisher(channel_or_topic, type=None, **qos)`:",
    "and what in it is the publisher's alone is ignored by subscribers",
)
def test_keywords_override_the_channel_on_both_sides(node):
    channel = vbus.Channel("t", int, depth=8, on_full="error", max_size=100, priority=1, block_timeout=3.0)
    with (
        node.publisher(channel, depth=2, max_size=200, on_full="drop_newest") as publisher,
        node.subscriber(channel, depth=1) as subscriber,
    ):
        (topic,) = node.topics()
        offered, asked = topic.publishers[0].qos, topic.subscribers[0].qos
        assert {name: offered[name] for name in ("depth", "max_size", "on_full", "priority")} == {
            "depth": 2,
            "max_size": 200,
            "on_full": "drop_newest",
            "priority": 1,
        }
        assert dict(asked) == {"depth": 1}
        publisher.publish(1)
        assert subscriber.receive(WATCHDOG).value == 1
    with node.publisher(channel, str) as publisher:
        publisher.publish("the type too")


@pytest.mark.contract("Publisher and Subscriber have an `id`, the one in Sample, Endpoint, Link and Mismatch")
def test_ids_are_the_same_wherever_they_are_told(node):
    with (
        node.publisher("t", depth=1) as publisher,
        node.subscriber("t", depth=2) as subscriber,
    ):
        publisher.publish(1)
        sample = subscriber.receive(WATCHDOG)
        (topic,) = node.topics()
        ids = (publisher.id, subscriber.id)
        assert sample.publisher == publisher.id
        assert (topic.publishers[0].id, topic.subscribers[0].id) == ids
        for endpoint in (publisher, subscriber):
            (link,) = endpoint.stats().links
            assert (link.publisher, link.subscriber) == ids
        (mismatch,) = topic.mismatches
        assert (mismatch.publisher, mismatch.subscriber) == ids


@pytest.mark.contract(
    "`publish(value, *, headers=None) -> int`: encodes, sends, returns the sample's `sequence`"
)
@pytest.mark.parametrize("value", [b"raw", {"x": 1}, np.arange(3)])
def test_publish_returns_the_sequence_that_the_sample_has(node, value):
    with node.publisher("t") as publisher, node.subscriber("t") as subscriber:
        for expected in range(3):
            assert publisher.publish(value, headers={"at": str(expected)}) == expected
            sample = subscriber.receive(WATCHDOG)
            assert (sample.sequence, sample.headers) == (expected, {"at": str(expected)})


@pytest.mark.contract("All or nothing: on `Timeout`, `Full`, `TooLarge`, `EncodeError`")
@pytest.mark.parametrize("on_full", ["block", "error"])
def test_if_one_subscriber_is_full_none_gets_the_sample_and_it_may_be_retried(join, on_full):
    node, far = join(), join("far")
    with (
        node.publisher("t", depth=1, on_full=on_full, block_timeout=0.01, max_size=1000) as publisher,
        node.subscriber("t") as full,
        node.subscriber("t") as free,
        far.subscriber("t") as far_free,
    ):
        publisher.publish("first")
        for subscriber in (free, far_free):
            assert subscriber.receive(WATCHDOG).value == "first"
        refusals = [
            (vbus.Timeout if on_full == "block" else vbus.Full, lambda: publisher.publish("second")),
            (vbus.TooLarge, lambda: publisher.publish(bytes(1001))),
            (vbus.TooLarge, lambda: publisher.publish("x", headers={"k": "v" * 5000})),
            (vbus.EncodeError, lambda: publisher.publish(object())),
            (vbus.EncodeError, lambda: publisher.publish("x", headers={"k": 1})),
        ]
        for kind, attempt in refusals:
            with pytest.raises(kind):
                attempt()
            for subscriber in (free, far_free):
                assert subscriber.receive_nowait() is None
        assert full.receive(WATCHDOG).value == "first"
        assert publisher.publish("second") == 1
        for subscriber in (full, free, far_free):
            sample = subscriber.receive(WATCHDOG)
            assert (sample.value, sample.sequence, sample.lost) == ("second", 1, 0)
        check_conservation(publisher, full, free, far_free)


@pytest.mark.contract("With no subscriber it returns at once")
def test_without_a_subscriber_nothing_is_waited_for(node):
    with node.publisher("t", depth=1) as publisher:
        assert [publisher.publish(number) for number in range(1000)] == list(range(1000))
        assert publisher.stats().blocked_seconds == 0
        assert publisher.flush(0)


@pytest.mark.contract("at most 4 KiB (`TooLarge`); anything else is `EncodeError`")
def test_headers_are_texts_of_four_kibibytes(node):
    with node.publisher("t") as publisher, node.subscriber("t") as subscriber:
        whole = {"ä": "x" * 4094}
        publisher.publish(1, headers=whole)
        assert subscriber.receive(WATCHDOG).headers == whole
        with pytest.raises(vbus.TooLarge, match="4097 bytes exceed the limit of 4096") as caught:
            publisher.publish(1, headers={"ä": "x" * 4095})
        assert (caught.value.limit, caught.value.topic) == (4096, "t")
        for wrong in ({"a": 1}, {1: "a"}, {"a": b"b"}, [("a", "b")], "text", 5):
            with pytest.raises(vbus.EncodeError):
                publisher.publish(1, headers=wrong)
        for attempt in (
            lambda: publisher.loan(1, headers={"a": 1}),
            lambda: publisher.loan_array(1, headers={"a": 1}).__enter__(),
        ):
            with pytest.raises(vbus.EncodeError):
                attempt()


# ---- loans --------------------------------------------------------------------------------------


@pytest.mark.contract("`loan.truncate(n)`, `loan.publish()`, `loan.discard()`; leaving the block publishes")
def test_a_loan_is_published_once_or_discarded(node):
    with node.publisher("t", bytes) as publisher, node.subscriber("t") as subscriber:
        with publisher.loan(10, headers={"k": "v"}) as loan:
            assert isinstance(loan.buffer, memoryview)
            assert (loan.buffer.readonly, loan.buffer.nbytes, loan.nbytes) == (False, 10, 10)
            loan.buffer[:] = b"0123456789"
            loan.truncate(4)
            assert loan.publish() == 0
        sample = subscriber.receive(WATCHDOG)
        assert (bytes(sample.payload), sample.headers) == (b"0123", {"k": "v"})
        with publisher.loan(10) as loan:
            loan.discard()
        loan = publisher.loan(3)
        loan.discard()
        loan.discard()
        with pytest.raises(ValueError, match="loan again"):
            loan.publish()
        with pytest.raises(RuntimeError, match="mine"), publisher.loan(10):
            raise RuntimeError("mine")
        assert subscriber.receive_nowait() is None
        with publisher.loan(0):
            pass
        assert (subscriber.receive(WATCHDOG).sequence, publisher.stats().published) == (1, 2)
        for wrong in (-1, 11):
            with publisher.loan(10) as loan, pytest.raises(ValueError, match="from 0 to 10"):
                loan.truncate(wrong)


@pytest.mark.contract("`with pub.loan_array(shape, dtype) as array:` gives the ndarray itself")
def test_a_loaned_array_is_filled_where_readers_see_it(join):
    node, far = join(), join("far")
    with node.publisher("t", np.ndarray) as publisher, far.subscriber("t", np.ndarray) as subscriber:
        with publisher.loan_array((2, 3), np.float32, headers={"k": "v"}) as array:
            assert type(array) is np.ndarray
            assert (array.shape, array.dtype, array.flags.writeable) == ((2, 3), np.float32, True)
            array[:] = [[1, 2, 3], [4, 5, 6]]
        sample = subscriber.receive(WATCHDOG)
        assert sample.value.tolist() == [[1, 2, 3], [4, 5, 6]]
        assert sample.headers == {"k": "v"}
        with pytest.raises(RuntimeError, match="mine"), publisher.loan_array(3):
            raise RuntimeError("mine")
        assert subscriber.receive_nowait() is None


@pytest.mark.contract("`loan.publish() -> int` may be called again after `Full` or `Timeout`")
@pytest.mark.parametrize("on_full", ["block", "error"])
def test_a_loan_that_found_no_room_may_be_published_again(node, on_full):
    with (
        node.publisher("t", bytes, depth=1, on_full=on_full, block_timeout=0.01) as publisher,
        node.subscriber("t") as subscriber,
    ):
        publisher.publish(b"first")
        loan = publisher.loan(6)
        loan.buffer[:] = b"second"
        for _ in range(2):
            with pytest.raises(vbus.Timeout if on_full == "block" else vbus.Full):
                loan.publish()
        assert subscriber.receive(WATCHDOG).value == b"first"
        loan.buffer[0:1] = b"S"
        assert loan.publish() == 1
        assert subscriber.receive(WATCHDOG).value == b"Second"


@pytest.mark.contract("Back-pressure is felt at publishing")
def test_a_loan_is_given_though_the_subscriber_is_full(node):
    with node.publisher("t", bytes, depth=1) as publisher, node.subscriber("t") as subscriber:
        publisher.publish(b"first")
        loan = publisher.loan(6)
        loan.buffer[:] = b"second"
        publishing = Survivor(loan.publish)
        until(lambda: is_asleep(publishing.native_id), "it waits for room")
        assert [subscriber.receive(WATCHDOG).value for _ in range(2)] == [b"first", b"second"]
        publishing.join()


@pytest.mark.contract("Afterwards `buffer` raises `ValueError` and `array` is read-only")
def test_after_a_loan_its_views_are_gone_and_others_harm_no_other_sample(node):
    with node.publisher("t", depth=4) as publisher, node.subscriber("t") as subscriber:
        with publisher.loan(1000) as loan:
            mine = np.frombuffer(loan.buffer, "u1")
            mine[:] = 7
        with pytest.raises(ValueError, match="loan again"):
            _ = loan.buffer
        with publisher.loan_array(1000, "u1") as array:
            array[:] = 8
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 9
        first, second = subscriber.receive(WATCHDOG), subscriber.receive(WATCHDOG)
        for sample in (first, second):
            sample.release()
        others = []
        for _ in range(100):  # slots are used again; not the one that is still seen
            publisher.publish(bytes(1000))
            others.append(subscriber.receive(WATCHDOG))
            mine[:] = 255
            assert not any(others[-1].payload)


@pytest.mark.contract("`loan` for the first two, `loan_array` for the first and last), else `ConfigError`")
@pytest.mark.parametrize(
    ("type_", "loan", "loan_array"),
    [(None, True, True), (bytes, True, False), (np.ndarray, False, True), (int, False, False)],
)
def test_each_loan_is_for_its_types(node, type_, loan, loan_array):
    with node.publisher("t", type_) as publisher:
        for lent, lend in ((loan, lambda: publisher.loan(3)), (loan_array, lambda: publisher.loan_array(3))):
            if lent:
                with lend():
                    pass
            else:
                with pytest.raises(vbus.ConfigError, match=r"publish\(\)"):
                    lend()


@pytest.mark.contract("`TooLarge` comes at `loan()`")
def test_a_loan_beyond_max_size_is_refused_when_it_is_asked_for(node):
    with node.publisher("t", max_size=10) as publisher:
        for attempt in (lambda: publisher.loan(11), lambda: publisher.loan_array(11, "u1").__enter__()):
            with pytest.raises(vbus.TooLarge) as caught:
                attempt()
            assert (caught.value.limit, caught.value.topic) == (10, "t")
        with publisher.loan(10):
            pass


# ---- what it tells ------------------------------------------------------------------------------


@pytest.mark.contract(
    "`subscribers -> int`, `wait_for_subscribers(n=1, timeout=None) -> bool`, `flush(timeout=None)"
)
def test_a_publisher_knows_its_subscribers_and_counts(join):
    node, far = join(), join("far")
    publisher = node.publisher("t", bytes)
    assert publisher.subscribers == 0
    assert publisher.wait_for_subscribers(timeout=0) is False
    waiting = Survivor(lambda: publisher.wait_for_subscribers(2))
    with node.subscriber("t") as near, far.subscriber("t"):
        waiting.join()
        assert publisher.subscribers == 2
        publisher.publish(b"12345")
        assert publisher.flush() is True
        near.receive(WATCHDOG)
        stats = publisher.stats()
        assert isinstance(stats, vbus.PublisherStats)
        assert (stats.topic, stats.published, stats.bytes, len(stats.links)) == ("t", 1, 5, 2)
    until(lambda: publisher.subscribers == 0, "both left")
    publisher.close()
    publisher.close()
    assert publisher.stats().published == 1


@pytest.mark.contract("A publish that has waited 1 s logs one warning naming topic, subscriber and remedy")
def test_a_publish_that_waits_long_warns_once(node, caplog):
    with node.publisher("some/topic", depth=1) as publisher, node.subscriber("some/topic") as subscriber:
        publisher.publish(0)
        publishing = threading.Thread(target=lambda: [publisher.publish(number) for number in (1, 2)])
        publishing.start()
        until(lambda: caplog.records, "it is logged")
        for _ in range(3):
            subscriber.receive(WATCHDOG)
        publishing.join(WATCHDOG)
        (record,) = caplog.records
        assert (record.name, record.levelname) == ("vbus", "WARNING")
        for words in ('"some/topic"', subscriber.id, "1 of 1 samples wait", "on_full"):
            assert words in record.getMessage()


@pytest.mark.contract("Samples of one publisher arrive at each subscriber in the order published")
def test_each_subscriber_sees_the_order_of_the_sequences(join):
    node, far = join(), join("far")
    publisher = node.publisher("t", int)
    subscribers = [node.subscriber("t", int), far.subscriber("t", int)]
    threads = [Survivor(lambda: [publisher.publish(0) for _ in range(300)]) for _ in range(4)]
    for subscriber in subscribers:
        seen = Survivor(
            lambda subscriber=subscriber: seen_in_order(subscriber, 1200),
        )
        threads.append(seen)
    for thread in threads:
        thread.join()


def seen_in_order(subscriber: vbus.Subscriber, count: int) -> None:
    assert [subscriber.receive(WATCHDOG).sequence for _ in range(count)] == list(range(count))
