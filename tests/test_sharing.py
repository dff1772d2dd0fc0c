"""Several publishers and subscribers of one node: none is overlooked, and none starves the others."""

import select
import threading

import pytest

import vbus

MIB = 1 << 20


@pytest.fixture
def node(tmp_path):
    with vbus.Node("sharing", domain="sharing", shm=tmp_path / "meet", memory=32 * MIB) as node:
        yield node


def test_a_receiver_that_sleeps_already_gets_what_the_first_publisher_sends(node):
    got = []
    with node.subscriber("late", bytes) as subscriber:
        poller = select.poll()
        poller.register(subscriber.fileno(), select.POLLIN)
        thread = threading.Thread(target=lambda: got.append(subscriber.receive(10).value))
        thread.start()
        with node.publisher("late", bytes) as publisher:
            publisher.publish(b"first")
            thread.join(10)
        assert got == [b"first"]


def test_a_watched_file_becomes_readable_for_a_publisher_that_came_later(node):
    with node.subscriber("late", bytes) as subscriber:
        poller = select.poll()
        poller.register(subscriber.fileno(), select.POLLIN)
        assert subscriber.receive_nowait() is None
        assert poller.poll(0) == []
        with node.publisher("late", bytes) as publisher:
            publisher.publish(b"first")
            assert poller.poll(10_000)
            assert subscriber.receive_nowait().value == b"first"


def test_nothing_is_overlooked_when_two_publishers_take_turns(node):
    with (
        node.subscriber("turn/*", bytes) as subscriber,
        node.publisher("turn/a", bytes) as a,
        node.publisher("turn/b", bytes) as b,
    ):
        for _ in range(100):
            for publisher in (a, b, b, a):
                publisher.publish(publisher.topic.encode())
                assert subscriber.receive_nowait().value == publisher.topic.encode()
            assert subscriber.receive_nowait() is None


def test_memory_that_one_publisher_does_not_use_goes_to_another(node):
    with node.subscriber("big/*", bytes) as subscriber:
        for name in ("one", "two", "three", "one"):
            with node.publisher(f"big/{name}", bytes, block_timeout=5) as publisher:
                publisher.publish(bytes(20 * MIB))
                subscriber.receive(5).release()
        first, second = (
            node.publisher("big/1", bytes, block_timeout=5),
            node.publisher("big/2", bytes, block_timeout=5),
        )
        for publisher in (first, second, first, second):
            publisher.publish(bytes(20 * MIB))
            subscriber.receive(5).release()


def test_a_hoarder_that_drops_does_not_cost_a_reliable_neighbour_a_sample(node):
    with (
        node.publisher("shared", bytes, block_timeout=0.3) as publisher,
        node.subscriber("shared", bytes) as reliable,
        node.subscriber("shared", bytes, on_full="drop_oldest") as hoarder,
    ):
        held, sequences = [], []
        for number in range(20):
            try:
                publisher.publish(number.to_bytes(4, "little") * (2 * MIB))
            except vbus.Timeout as error:
                assert "memory" in str(error)  # noqa: PT017 - the loop goes on
                held.pop()
                continue
            if (sample := hoarder.receive_nowait()) is not None:
                held.append(sample)
            with reliable.receive(5) as sample:
                sequences.append(sample.sequence)
                assert sample.lost == 0
        assert sequences == list(range(len(sequences)))
        assert len(sequences) > 4


@pytest.mark.parametrize("far", [False, True])
def test_samples_released_after_their_subscriber_closed_free_their_slots(node, tmp_path, far):
    reader = vbus.Node("reader", domain="sharing", shm=tmp_path / "meet") if far else node
    with node.publisher("many", bytes, depth=1000) as publisher:
        for _ in range(5):
            subscriber = reader.subscriber("many", bytes)
            for _ in range(600):
                publisher.publish(b"x")
            held = [subscriber.receive(10) for _ in range(600)]
            subscriber.close()
            del subscriber
            held.clear()
        # They come back when somebody looks for them.
        with reader.subscriber("many", bytes):
            assert publisher.stats().held == 0
    if far:
        reader.close()


@pytest.mark.contract("delivered even beyond `depth`, against which it does not count")
def test_history_does_not_count_against_depth_and_is_not_pushed_out(node):
    with node.publisher("kept", bytes, history=10, depth=2, on_full="drop_oldest") as publisher:
        for number in range(10):
            publisher.publish(bytes([number]))
        with node.subscriber("kept", bytes) as subscriber:
            for number in range(10, 20):
                publisher.publish(bytes([number]))
            samples = subscriber.receive_many(timeout=5)
            assert [sample.value[0] for sample in samples] == [*range(10), 18, 19]
            assert [sample.lost for sample in samples] == [0] * 10 + [8, 0]
            (link,) = publisher.stats().links
            assert link.sent == link.delivered + link.waiting + sum(link.dropped.values()) + link.lost
            assert (link.sent, link.delivered, dict(link.dropped)) == (20, 12, {"drop_oldest": 8})
            (link,) = subscriber.stats().links
            assert (link.sent, link.delivered, dict(link.dropped)) == (20, 12, {"drop_oldest": 8})
