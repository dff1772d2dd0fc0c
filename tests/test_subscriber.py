"""What a subscriber and its samples promise."""

import gc
import select
import threading
import time

import numpy as np
import pytest
from helpers import WATCHDOG, Survivor, check_conservation, is_asleep, start, until

import vbus

__all__ = ["start"]

pytestmark = pytest.mark.paths("shm", "udp")


@pytest.mark.contract("raises `vbus.Timeout`; releases the GIL while it waits")
def test_a_receive_that_waits_lets_other_threads_run(node):
    with node.publisher("t") as publisher, node.subscriber("t") as subscriber:
        waiting = Survivor(lambda: subscriber.receive(WATCHDOG))
        until(lambda: is_asleep(waiting.native_id), "it waits, and this thread runs")
        publisher.publish(1)
        waiting.join()
        with pytest.raises(vbus.Timeout) as caught:
            subscriber.receive(0.001)
        assert "t" in str(caught.value)


@pytest.mark.contract("`receive_nowait() -> Sample | None`")
def test_receive_nowait_is_a_sample_or_none(node):
    with node.publisher("t") as publisher, node.subscriber("t") as subscriber:
        assert subscriber.receive_nowait() is None
        publisher.publish(1)
        assert isinstance(subscriber.receive_nowait(), vbus.Sample)
        assert subscriber.receive_nowait() is None


@pytest.mark.contract("waits for at least one, then returns what already waits, up to `max` (at least 1)")
def test_receive_many_waits_for_one_and_takes_what_is_there(node):
    with node.publisher("t") as publisher, node.subscriber("t") as subscriber:
        taken = []
        waiting = Survivor(lambda: taken.extend(subscriber.receive_many()))
        until(lambda: is_asleep(waiting.native_id), "it waits")
        publisher.publish(0)
        waiting.join()
        assert [sample.value for sample in taken] == [0]
        for number in range(1, 8):
            publisher.publish(number)
        assert [sample.value for sample in subscriber.receive_many(max=3)] == [1, 2, 3]
        assert [sample.value for sample in subscriber.receive_many(100, 0)] == [4, 5, 6, 7]
        for none in (0, -1):
            with pytest.raises(ValueError, match="max"):
                subscriber.receive_many(none)
        with pytest.raises(vbus.Timeout):
            subscriber.receive_many(timeout=0)


@pytest.mark.contract("Iteration ends when subscriber or node closes, not when publishers leave")
@pytest.mark.parametrize("who", ["subscriber", "node"])
def test_iteration_goes_on_without_publishers_and_ends_with_subscriber_or_node(join, who):
    node = join()
    subscriber = node.subscriber("t")
    seen = []
    reading = Survivor(lambda: seen.extend(sample.value for sample in subscriber))
    for number in range(3):
        with join(f"publisher {number}") as other, other.publisher("t") as publisher:
            publisher.publish(number)
        until(lambda number=number: subscriber.publishers == 0 and len(seen) == number + 1, "it came")
    until(lambda: is_asleep(reading.native_id), "it waits on")
    {"subscriber": subscriber, "node": node}[who].close()
    reading.join()
    assert seen == [0, 1, 2]


@pytest.mark.contract("Samples accepted before a publisher closed or died are still received")
@pytest.mark.parametrize("far", [False, True])
def test_what_a_publisher_sent_before_it_closed_is_received(join, far):
    node = join()
    reader = join("reader") if far else node
    with reader.subscriber("t") as subscriber:
        with node.publisher("t") as publisher:
            for number in range(10):
                publisher.publish(number)
        node.close()
        if far:
            assert [subscriber.receive(WATCHDOG).value for _ in range(10)] == list(range(10))
            assert subscriber.publishers == 0
    with join("same") as same, same.subscriber("t") as subscriber:
        with same.publisher("t") as publisher:
            publisher.publish("last")
        assert subscriber.receive(WATCHDOG).value == "last"


@pytest.mark.contract("level-triggered; may be readable with nothing there, but not again after")
def test_fileno_tells_of_samples_and_of_the_end(node):
    subscriber = node.subscriber("t")
    poller = select.poll()
    poller.register(subscriber.fileno(), select.POLLIN)
    assert subscriber.fileno() == subscriber.fileno()
    assert subscriber.receive_nowait() is None
    assert poller.poll(0) == []
    with node.publisher("t") as publisher:
        for number in range(3):
            publisher.publish(number)
        for number in range(3):
            assert poller.poll(WATCHDOG * 1000), "level-triggered: it stays readable while samples wait"
            assert poller.poll(0)
            assert subscriber.receive_nowait().value == number
        assert subscriber.receive_nowait() is None
        assert poller.poll(0) == []
        publisher.publish(3)
        assert poller.poll(WATCHDOG * 1000)
        assert subscriber.receive_nowait().value == 3
    subscriber.close()
    for _ in range(3):
        assert poller.poll(WATCHDOG * 1000), "readable after close"
        with pytest.raises(vbus.Closed):
            subscriber.receive_nowait()


@pytest.mark.contract("`spin`: seconds to look before sleeping; `None` adapts")
@pytest.mark.parametrize("spin", [None, 0, 0.0, 0.001])
def test_spin_is_a_hint_that_changes_no_meaning(node, spin):
    with node.publisher("t") as publisher, node.subscriber("t", spin=spin) as subscriber:
        received = []
        waiting = Survivor(lambda: received.append(subscriber.receive(WATCHDOG).value))
        until(lambda: is_asleep(waiting.native_id), "it sleeps, having looked")
        publisher.publish(1)
        waiting.join()
        assert received == [1]
    for wrong in (-1, float("inf"), float("nan"), "long"):
        with pytest.raises(vbus.ConfigError, match="spin"):
            node.subscriber("t", spin=wrong)


@pytest.mark.contract("idle never does), `0` never; a hint")
def test_an_idle_subscriber_uses_no_processor(node):
    with node.subscriber("t") as subscriber:
        waiting = Survivor(lambda: list(subscriber))
        until(lambda: is_asleep(waiting.native_id), "it sleeps")
        before = time.process_time()
        end = time.monotonic() + 0.3
        while (left := end - time.monotonic()) > 0:
            threading.Event().wait(left)
        assert time.process_time() - before < 0.2
        subscriber.close()
        waiting.join()


@pytest.mark.contract(
    "wakes a blocked `receive`, which raises `vbus.Closed`; what waits is discarded and counted"
)
def test_closing_wakes_who_waits_and_counts_what_waited(node):
    with node.publisher("t") as publisher:
        subscriber = node.subscriber("t")
        outcomes = []

        def wait(receive) -> None:
            with pytest.raises(vbus.Closed) as caught:
                receive()
            outcomes.append(str(caught.value))

        waiting = [Survivor(lambda it=it: wait(it)) for it in (subscriber.receive, subscriber.receive_many)]
        for thread in waiting:
            until(lambda thread=thread: is_asleep(thread.native_id), "it waits")
        subscriber.close()
        for thread in waiting:
            thread.join()
        assert outcomes == ['the subscriber of "t" is closed; open a new one'] * 2

        second = node.subscriber("t")
        for number in range(5):
            publisher.publish(number)
        second.receive(WATCHDOG)
        second.close()
        assert dict(second.stats().dropped) == {"closed": 4}
        until(lambda: dict(publisher.stats().dropped) == {"closed": 4}, "the publisher knows")
        check_conservation(publisher, second)


@pytest.mark.contract("`publishers -> int`, `wait_for_publishers(n=1, timeout=None) -> bool`")
def test_a_subscriber_knows_its_publishers(join):
    node, far = join(), join("far")
    subscriber = node.subscriber("t/*")
    assert subscriber.publishers == 0
    assert subscriber.wait_for_publishers(timeout=0) is False
    waiting = Survivor(lambda: subscriber.wait_for_publishers(2))
    with node.publisher("t/a"), far.publisher("t/b"):
        waiting.join()
        assert subscriber.publishers == 2
        assert isinstance(subscriber.stats(), vbus.SubscriberStats)
    until(lambda: subscriber.publishers == 0, "both left")


# ---- samples ------------------------------------------------------------------------------------


@pytest.mark.contract(
    "`payload` is a read-only memoryview (of an ndarray: its bytes)",
    "`timestamp_ns` is the publisher's `time.time_ns()`",
    '`encoding` is `"raw"`, `"msgpack"`, `"ndarray"` or a codec\'s name',
)
@pytest.mark.parametrize(
    ("value", "encoding"),
    [(b"abc", "raw"), ({"x": 1}, "msgpack"), (np.arange(6, dtype="i4").reshape(2, 3), "ndarray")],
)
def test_a_sample_tells_when_how_and_what_in_bytes(node, value, encoding):
    with node.publisher("t") as publisher, node.subscriber("t") as subscriber:
        before = time.time_ns()
        publisher.publish(value)
        after = time.time_ns()
        sample = subscriber.receive(WATCHDOG)
        assert before <= sample.timestamp_ns <= after
        assert sample.encoding == encoding
        assert isinstance(sample.payload, memoryview)
        assert sample.payload.readonly
        assert (sample.payload.nbytes, sample.payload.format) == (sample.nbytes, "B")
        if encoding == "raw":
            assert sample.payload == value
        if encoding == "ndarray":
            assert bytes(sample.payload) == value.tobytes()
        with pytest.raises(TypeError):
            sample.payload[0] = 0


@pytest.mark.contract("before the first one seen: what was dropped for this subscriber before it")
def test_lost_before_the_first_sample_counts_what_was_dropped_for_this_subscriber_alone(node):
    with node.publisher("t") as publisher:
        for number in range(5):
            publisher.publish(number)
        with node.subscriber("t", depth=2, on_full="drop_oldest") as subscriber, node.publisher("t") as other:
            for number in range(5, 10):
                publisher.publish(number)
            other.publish("other")
            samples = subscriber.receive_many(timeout=WATCHDOG)
            seen = [(sample.publisher, sample.sequence, sample.lost) for sample in samples]
            assert sorted(seen) == sorted([(publisher.id, 8, 3), (publisher.id, 9, 0), (other.id, 0, 0)])
            assert int(samples[0].publisher, 16) > 0


@pytest.mark.contract("`value` decodes on first use and may raise `DecodeError`")
def test_a_value_is_decoded_when_it_is_looked_at_and_once(node):
    with node.publisher("t") as publisher, node.subscriber("t", list[int]) as subscriber:
        publisher.publish([1, 2])
        publisher.publish("not a list")
        publisher.publish([3])
        samples = iter(subscriber)
        first, bad, last = (next(samples) for _ in range(3))
        assert first.value is first.value
        for _ in range(2):
            with pytest.raises(vbus.DecodeError):
                _ = bad.value
        assert bytes(bad.payload)
        assert last.value == [3]


@pytest.mark.contract(
    "gives the memory back at once unless a view of it lives; afterwards `payload` and `value`"
)
@pytest.mark.parametrize("how", ["release", "with"])
def test_release_gives_the_memory_back_unless_a_view_lives(node, how):
    with node.publisher("t") as publisher, node.subscriber("t") as subscriber:
        publisher.publish(np.arange(1000))
        publisher.publish(np.arange(1000))
        free, viewed = subscriber.receive(WATCHDOG), subscriber.receive(WATCHDOG)
        view = viewed.value[10:20]
        assert subscriber.stats().held == publisher.stats().held == 2
        for sample in (free, viewed):
            if how == "release":
                sample.release()
            else:
                with sample:
                    pass
            for attribute in ("payload", "value"):
                with pytest.raises(vbus.Closed):
                    getattr(sample, attribute)
            assert (sample.topic, sample.sequence in (0, 1)) == ("t", True)
        assert subscriber.stats().held == publisher.stats().held == 1
        assert view.tolist() == list(range(10, 20))
        del view
        gc.collect()
        assert subscriber.stats().held == publisher.stats().held == 0


@pytest.mark.contract("leaving `with sample:`, gives the memory back at once unless a view of it lives")
@pytest.mark.parametrize("value", [b"raw", {"a": 1}, np.arange(3)], ids=["raw", "msgpack", "ndarray"])
def test_what_a_sample_says_of_itself_stays_after_release(node, value):
    def said(sample):
        names = "nbytes topic sequence lost publisher timestamp_ns source encoding headers via"
        return [getattr(sample, name) for name in names.split()]

    with node.publisher("t") as publisher, node.subscriber("t") as subscriber:
        publisher.publish(value, headers={"camera": "left"})
        with subscriber.receive(WATCHDOG) as sample:
            before = said(sample)
        assert said(sample) == before
        sample.release()
        assert said(sample) == before
        assert sample.headers == {"camera": "left"}


@pytest.mark.contract(
    "Samples that a program holds do not count against `depth`; `stats().held` shows them",
    "they count against the publisher's memory, so to keep values for long, copy them",
)
def test_held_samples_count_against_memory_but_not_against_depth(join):
    node = join(memory=8 << 20)
    with (
        node.publisher("t", bytes, depth=2, block_timeout=0.01) as publisher,
        node.subscriber("t", bytes) as subscriber,
    ):
        held = []
        for number in range(20):
            publisher.publish(bytes([number]))
            held.append(subscriber.receive(WATCHDOG))
        assert subscriber.stats().held == publisher.stats().held == 20
        assert [sample.payload[0] for sample in held] == list(range(20))
        with pytest.raises(vbus.Timeout, match="memory"):
            hold_mebibytes(publisher, subscriber, held)
        held.clear()
        gc.collect()
        assert subscriber.stats().held == publisher.stats().held == 0
        publisher.publish(bytes(1 << 20))


def hold_mebibytes(publisher: vbus.Publisher, subscriber: vbus.Subscriber, held: list) -> None:
    for _ in range(9):
        publisher.publish(bytes(1 << 20))
        held.append(subscriber.receive(WATCHDOG))


@pytest.mark.contract("They stay valid and unchanged for as long as anything refers to them")
def test_a_view_stays_as_it_is_while_its_publisher_goes_on_and_goes(join, start):
    node = join()
    subscriber = node.subscriber("t", bytes)
    speaker = start("""
        publisher = vbus.Node("speaker").publisher("t", bytes, depth=2)
        for sequence in range(50):
            publisher.publish(bytes([sequence]) * 10_000)
        say("done")
    """)
    view = subscriber.receive(WATCHDOG).payload
    for _ in range(49):
        subscriber.receive(WATCHDOG).release()
    speaker.expect("done")
    speaker.finish()
    until(lambda: not node.peers(), "it is gone")
    subscriber.close()
    node.close()
    gc.collect()
    assert view == bytes(10_000)
