"""Stories through the public door, between nodes of one process and between processes."""

import asyncio
import copy
import gc
import logging
import os
import pickle
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import vbus

WAIT = 10.0


@dataclass
class Pose:
    x: float
    y: float = 0.0


@dataclass
class Frame:
    number: int
    image: np.ndarray


POSE = vbus.Channel("robot/pose", Pose, depth=8)


# ---- channel ------------------------------------------------------------------------------------


@pytest.mark.contract("frozen, hashable, picklable")
def test_a_channel_is_frozen_hashable_and_picklable():
    channel = vbus.Channel("robot/pose", Pose, depth=8)
    assert channel == POSE
    assert hash(channel) == hash(POSE)
    assert channel != vbus.Channel("robot/pose", Pose)
    assert pickle.loads(pickle.dumps(channel)) == copy.deepcopy(channel) == POSE  # noqa: S301
    assert (channel.topic, channel.type, channel.qos) == ("robot/pose", Pose, {"depth": 8})
    assert repr(channel) == "Channel('robot/pose', Pose, depth=8)"
    with pytest.raises(AttributeError, match="frozen"):
        channel.topic = "else"


@pytest.mark.contract("Generic throughout: `Publisher[T]`")
def test_generics_can_be_written_at_run_time():
    for generic in (vbus.Channel, vbus.Publisher, vbus.Subscriber, vbus.Sample):
        assert generic[int] is not None


def test_keywords_override_the_channel(node):
    with node.publisher(POSE, depth=3) as publisher, node.subscriber(POSE, int | None):
        (topic,) = node.topics()
        assert publisher.topic == "robot/pose"
        assert topic.publishers[0].qos["depth"] == 3


# ---- samples ------------------------------------------------------------------------------------


@pytest.mark.contract(
    "`Sample`: `value payload nbytes topic",
    "A Sample is always true and has no length",
    "`source` is a `Peer`",
)
def test_a_sample_has_everything_the_documentation_promises(node):
    with node.subscriber(POSE) as subscriber, node.publisher(POSE) as publisher:
        sequence = publisher.publish(Pose(1.0, 2.0), headers={"frame": "map"})
        sample = subscriber.receive(WAIT)
        assert sample.value == Pose(1.0, 2.0)
        assert sample.value is sample.value
        assert (sample.topic, sample.sequence, sample.lost) == ("robot/pose", sequence, 0)
        assert (sample.encoding, sample.via) == ("msgpack", "shm")
        assert sample.publisher == publisher.id
        assert dict(sample.headers) == {"frame": "map"}
        assert sample.nbytes == len(sample.payload)
        assert sample.payload.readonly
        assert sample.source == vbus.Peer(node.id, "", "", 0, (), None, None, 0, "")
        assert sample.source.name == node.name
        assert sample.timestamp_ns > 0
        assert sample
        with pytest.raises(TypeError):
            len(sample)


@pytest.mark.contract(
    "`sequence` counts from 0 per publisher", "encodes, sends, returns the sample's `sequence`"
)
def test_sequences_count_from_zero_and_samples_come_in_order(node):
    with node.subscriber("a/b") as subscriber, node.publisher("a/b") as publisher:
        assert [publisher.publish(n) for n in range(5)] == [0, 1, 2, 3, 4]
        assert [(s.sequence, s.value) for s in subscriber.receive_many(timeout=WAIT)] == [
            (n, n) for n in range(5)
        ]


@pytest.mark.parametrize("value", [b"bytes", "text", 5, {"a": [1, None]}, [1.5], None, True])
def test_without_a_type_values_arrive_as_they_are(node, value):
    with node.subscriber("a/b") as subscriber, node.publisher("a/b") as publisher:
        publisher.publish(value)
        assert subscriber.receive(WAIT).value == value


@pytest.mark.contract("are views: no copy at any size", "They stay valid and unchanged for as long as")
def test_arrays_are_views_of_the_buss_memory_and_outlive_everything(join):
    node = join()
    with (
        node.subscriber("camera/image", np.ndarray) as subscriber,
        node.publisher("camera/image") as publisher,
    ):
        image = np.random.default_rng(7).integers(0, 255, (480, 640, 3), "u1")
        publisher.publish(image)
        sample = subscriber.receive(WAIT)
        view = sample.value[10:20]
        assert np.shares_memory(sample.value, np.frombuffer(sample.payload, "u1"))
        assert not view.flags.writeable
        del sample
    node.close()
    gc.collect()
    assert (view == image[10:20]).all()


@pytest.mark.contract("are views: no copy at any size")
def test_arrays_inside_a_dataclass_are_views_too(node):
    with node.subscriber("frames", Frame) as subscriber, node.publisher("frames", Frame) as publisher:
        publisher.publish(Frame(7, np.arange(1000.0)))
        sample = subscriber.receive(WAIT)
        assert sample.value.number == 7
        assert sample.value.image.ctypes.data % 64 == 0
        assert np.shares_memory(sample.value.image, np.frombuffer(sample.payload, "u1"))
        assert (sample.value.image == np.arange(1000.0)).all()


def test_a_released_sample_has_no_value(node):
    with node.subscriber("a/b") as subscriber, node.publisher("a/b") as publisher:
        for _ in range(2):
            publisher.publish(b"x")
        sample = subscriber.receive(WAIT)
        sample.release()
        sample.release()
        with pytest.raises(vbus.Closed):
            _ = sample.payload
        with pytest.raises(vbus.Closed):
            _ = sample.value
        with subscriber.receive(WAIT) as second:
            assert second.value == b"x"


@pytest.mark.contract("`value` decodes on first use and may raise")
def test_receiving_never_raises_for_a_value_that_cannot_be_read(node):
    with node.subscriber("a/b", int) as subscriber, node.publisher("a/b") as publisher:
        publisher.publish("text")
        publisher.publish(5)
        bad, good = subscriber.receive(WAIT), subscriber.receive(WAIT)
        with pytest.raises(vbus.DecodeError) as caught:
            _ = bad.value
        assert caught.value.topic == "a/b"
        assert good.value == 5


@pytest.mark.contract("All or nothing: on `Timeout`, `Full`")
def test_a_refused_value_uses_no_sequence_number(node):
    with node.subscriber(POSE) as subscriber, node.publisher(POSE, max_size=1000) as publisher:
        with pytest.raises(vbus.EncodeError) as caught:
            publisher.publish(Pose("left"))
        assert (caught.value.topic, caught.value.field) == ("robot/pose", "x")
        with pytest.raises(vbus.EncodeError):
            publisher.publish(Pose(1.0), headers={"a": 1})
        with pytest.raises(vbus.TooLarge):
            publisher.publish(Pose(1.0), headers={"a": "x" * 5000})
        assert publisher.publish(Pose(1.0)) == 0
        assert subscriber.receive(WAIT).lost == 0


@pytest.mark.contract("`max_size` | largest sample accepted")
def test_a_value_beyond_max_size_is_too_large(node):
    with node.publisher("a/b", bytes, max_size=10) as publisher:
        with pytest.raises(vbus.TooLarge) as caught:
            publisher.publish(bytes(11))
        assert caught.value.limit == 10
        assert publisher.publish(bytes(10)) == 0


# ---- loans --------------------------------------------------------------------------------------


@pytest.mark.contract(
    "leaving the block publishes, an exception in it discards", "Afterwards `buffer` raises `ValueError`"
)
@pytest.mark.parametrize("type_", [None, bytes])
def test_a_loan_is_published_on_leaving_and_discarded_on_an_exception(node, type_):
    with node.subscriber("a/b", bytes) as subscriber, node.publisher("a/b", type_) as publisher:
        with publisher.loan(8, headers={"k": "v"}) as loan:
            loan.buffer[:5] = b"hello"
            loan.truncate(5)
        with pytest.raises(ValueError, match=r"."):
            _ = loan.buffer
        with pytest.raises(KeyError), publisher.loan(8):
            raise KeyError
        publisher.publish(b"after")
        first, second = subscriber.receive(WAIT), subscriber.receive(WAIT)
        assert (first.value, first.headers, first.encoding) == (b"hello", {"k": "v"}, "raw")
        assert (second.value, second.sequence) == (b"after", 1)


@pytest.mark.contract("gives the ndarray itself", "Afterwards `buffer` raises `ValueError`")
@pytest.mark.parametrize("type_", [None, np.ndarray])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((3, 4), "f4"), (7, "u1"), ((), "i8"), ((0, 2), "f8"), ((2,), [("a", "<i4"), ("b", "u1")])],
)
def test_a_loaned_array_is_the_bus_s_memory_and_read_only_afterwards(node, type_, shape, dtype):
    with node.subscriber("a/b") as subscriber, node.publisher("a/b", type_) as publisher:
        with publisher.loan_array(shape, dtype) as array:
            array[...] = np.ones(shape, dtype)
            assert array.flags.writeable
        assert not array.flags.writeable
        value = subscriber.receive(WAIT).value
        assert (value.shape, value.dtype) == (np.zeros(shape, dtype).shape, np.dtype(dtype))
        assert (value == np.ones(shape, dtype)).all()


@pytest.mark.contract("Only for types `None`, `bytes`, `ndarray`")
def test_loans_are_only_for_types_whose_memory_is_the_value(node):
    with node.publisher("a/b", Pose) as typed, node.publisher("a/c", bytes) as raw:
        with pytest.raises(vbus.ConfigError):
            typed.loan(5)
        with pytest.raises(vbus.ConfigError):
            raw.loan_array(5, "u1")
        with pytest.raises(vbus.TooLarge):
            node.publisher("a/d", bytes, max_size=3).loan(4)
    with node.publisher("a/e", np.ndarray) as arrays:
        with pytest.raises(vbus.ConfigError):
            arrays.loan(5)
        with pytest.raises(vbus.EncodeError), arrays.loan_array(3, object):
            pass
        with pytest.raises(ValueError, match="shape"), arrays.loan_array(-3, "u1"):
            pass


# ---- receiving ----------------------------------------------------------------------------------


@pytest.mark.contract("Everywhere: `timeout` in float seconds", "with nothing in time it raises `Timeout`")
def test_timeouts_mean_what_they_say(node):
    with node.subscriber("a/b") as subscriber:
        with pytest.raises(vbus.Timeout) as caught:
            subscriber.receive(0)
        assert isinstance(caught.value, TimeoutError)
        with pytest.raises(vbus.Timeout):
            subscriber.receive_many(timeout=0.01)
        assert subscriber.receive_nowait() is None
        assert subscriber.wait_for_publishers(1, 0) is False
        for call in (
            subscriber.receive,
            lambda timeout: subscriber.receive_many(5, timeout),
            node.wait_for_peers,
        ):
            with pytest.raises(ValueError, match="-1"):
                call(timeout=-1)


@pytest.mark.contract("then returns what already waits, up to `max`")
def test_receive_many_takes_what_waits(node):
    with node.subscriber("a/b") as subscriber, node.publisher("a/b") as publisher:
        for number in range(5):
            publisher.publish(number)
        assert [sample.value for sample in subscriber.receive_many(2, WAIT)] == [0, 1]
        assert [sample.value for sample in subscriber.receive_many(timeout=WAIT)] == [2, 3, 4]
        with pytest.raises(ValueError, match="0"):
            subscriber.receive_many(0)


@pytest.mark.contract("`fileno()`: readable while a sample waits")
def test_fileno_is_readable_while_a_sample_waits_and_after_closing(node):
    with node.subscriber("a/b") as subscriber, node.publisher("a/b") as publisher:
        fd = subscriber.fileno()
        assert subscriber.receive_nowait() is None
        assert select.select([fd], [], [], 0)[0] == []
        publisher.publish(1)
        assert select.select([fd], [], [], WAIT)[0] == [fd]
        assert subscriber.receive_nowait().value == 1
        assert subscriber.receive_nowait() is None
        assert select.select([fd], [], [], 0)[0] == []
    assert select.select([fd], [], [], 0)[0] == [fd]


@pytest.mark.contract("A subscriber may use `*` (exactly one segment)")
def test_patterns_match_by_segments(node):
    with (
        node.subscriber("a/*/c") as one,
        node.subscriber("a/**") as any_number,
        node.publisher("a/b/c") as publisher,
    ):
        publisher.publish(1)
        assert one.receive(WAIT).topic == any_number.receive(WAIT).topic == "a/b/c"
        with node.publisher("a") as short:
            short.publish(2)
            assert any_number.receive(WAIT).topic == "a"
            assert one.receive_nowait() is None


def test_types_that_cannot_agree_are_not_connected_and_topics_shows_it(node):
    with node.publisher("a/b", Pose) as publisher, node.subscriber("a/b", str) as subscriber:
        assert publisher.subscribers == subscriber.publishers == 0
        (topic,) = [topic for topic in node.topics() if topic.topic == "a/b"]
        (mismatch,) = topic.mismatches
        assert (mismatch.publisher, mismatch.subscriber, mismatch.field) == (
            publisher.id,
            subscriber.id,
            "type",
        )
        assert mismatch.asked == "str"
        assert publisher.publish(Pose(1.0)) == 0


# ---- nodes --------------------------------------------------------------------------------------


def test_neighbours_meet_and_are_told_apart_by_id(join):
    left, right = join("left"), join("right")
    assert left.wait_for_peers(1, WAIT)
    assert right.wait_for_peers(1, WAIT)
    (peer,) = left.peers()
    assert (peer.id, peer.name, peer.path, peer.pid) == (right.id, "right", "shm", os.getpid())
    assert left.id != right.id
    assert left.peers() == [peer]


@pytest.mark.contract("Two domains never exchange anything", "only nodes with the same secret join")
def test_domains_and_secrets_keep_nodes_apart(join):
    left = join("left")
    join("elsewhere", domain="another")
    join("guarded", secret="correct horse battery")
    assert left.peers() == []
    guarded = join("guarded too", secret=b"correct horse battery")
    assert [peer.name for peer in guarded.peers()] == ["guarded"]


@pytest.mark.contract("any other publisher or subscriber closes when nothing refers to it")
def test_a_publisher_and_a_subscriber_that_nobody_refers_to_close(node):
    publisher, subscriber = node.publisher("a/b"), node.subscriber("a/b")
    assert publisher.subscribers == 1
    del subscriber
    gc.collect()
    assert publisher.subscribers == 0
    del publisher
    gc.collect()
    assert node.topics() == []


def test_a_publisher_keeps_its_node_and_the_node_goes_with_it(join, domain, meeting):
    watcher = join("watcher")
    publisher = vbus.Node("short", domain=domain, shm=meeting).publisher("a/b")
    with watcher.subscriber("a/b") as subscriber:
        gc.collect()
        publisher.publish(1)
        assert subscriber.receive(WAIT).value == 1
    del publisher
    gc.collect()
    assert [peer.name for peer in watcher.peers()] in ([], ["short"])


@pytest.mark.contract("closing twice is fine", "`stats()` still works after `close()`")
def test_closing_a_node_closes_everything_and_twice_is_fine(join):
    node = join()
    publisher, subscriber = node.publisher("a/b"), node.subscriber("a/c")
    with node:
        pass
    node.close()
    assert node.closed
    assert publisher.closed
    assert subscriber.closed
    for attempt in (
        lambda: publisher.publish(1),
        subscriber.receive,
        node.peers,
        lambda: node.publisher("a/d"),
    ):
        with pytest.raises(vbus.Closed):
            attempt()
    assert publisher.stats().published == 0
    assert node.stats().published == 0
    publisher.close()
    subscriber.close()


@pytest.mark.contract("`sent == delivered + waiting + sum(dropped.values()) + lost` always holds")
def test_counts_are_conserved(node):
    with (
        node.subscriber("a/b", depth=2, on_full="drop_oldest") as subscriber,
        node.publisher("a/b") as publisher,
    ):
        for number in range(10):
            publisher.publish(number)
        subscriber.receive(WAIT)
        for stats in (publisher.stats(), subscriber.stats()):
            (link,) = stats.links
            assert link.sent == link.delivered + link.waiting + sum(link.dropped.values()) + link.lost == 10
            assert link.peer.id == node.id
        assert subscriber.stats().callback_errors == 0
        assert set(subscriber.stats().dropped) <= {
            "drop_oldest",
            "drop_newest",
            "lifespan",
            "memory",
            "closed",
        }
        assert node.stats().published == 10


@pytest.mark.contract('Logger `"vbus"`; each cause warns once')
def test_warnings_come_through_the_logger_vbus(join, caplog):
    caplog.set_level(logging.DEBUG, "vbus")
    node = join()
    with node.publisher("a/b", int), node.subscriber("a/b", str):
        pass
    node.close()
    assert any(record.name == "vbus" and "a/b" in record.getMessage() for record in caplog.records)
    assert not logging.getLogger("vbus").handlers


@pytest.mark.contract("An explicit `shm` that cannot be used", "the one directory where neighbours meet")
def test_a_named_meeting_directory_is_made_and_an_unusable_one_is_named(domain, meeting):
    made = Path(meeting) / "new"
    with vbus.Node(domain=domain, shm=made):
        assert made.is_dir()
    file = Path(meeting) / "file"
    file.touch()
    with pytest.raises(vbus.SharedMemoryError, match=str(file)):
        vbus.Node(domain=domain, shm=file)


# ---- processes ----------------------------------------------------------------------------------


def program(text: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", text],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_program_that_just_ends_closes_its_nodes_and_delivers(node, domain, meeting):
    text = """
import vbus
node = vbus.Node("child")
publisher = node.publisher("a/b")
assert publisher.wait_for_subscribers(1, 10)
for number in range(50):
    publisher.publish(number)
"""
    with node.subscriber("a/b") as subscriber:
        child = program(text, VBUS_DOMAIN=domain, VBUS_SHM=meeting)
        assert [subscriber.receive(WAIT).value for _ in range(50)] == list(range(50))
        out, err = child.communicate(timeout=WAIT)
        assert (child.returncode, out, err) == (0, "", "")


def test_a_program_with_a_blocked_thread_still_ends(domain, meeting):
    text = """
import threading, vbus
node = vbus.Node("child")
subscriber = node.subscriber("a/b")
threading.Thread(target=lambda: list(subscriber), daemon=True).start()
print("ready")
"""
    child = program(text, VBUS_DOMAIN=domain, VBUS_SHM=meeting)
    out, err = child.communicate(timeout=WAIT)
    assert (child.returncode, out, err) == (0, "ready\n", "")


def test_importing_vbus_imports_little():
    text = """
import sys, time
before = set(sys.modules)
import vbus
heavy = set("typing dataclasses inspect re enum logging threading asyncio json msgspec msgpack numpy".split())
print(sorted(heavy & (set(sys.modules) - before)))
node = vbus.Node(shm=False, discovery=["shm", "peers"])
subscriber, publisher = node.subscriber("a/b", bytes), node.publisher("a/b", bytes)
publisher.publish(b"x")
subscriber.receive(10)
print(sorted(heavy & (set(sys.modules) - before)))
"""
    out, err = program(text).communicate(timeout=WAIT)
    assert (out, err) == ("[]\n[]\n", "")


# ---- asyncio ------------------------------------------------------------------------------------


def test_async_iteration_ends_when_the_subscriber_closes(node):
    async def story():
        values = []
        async with node.subscriber("a/b") as subscriber, node.publisher("a/b") as publisher:

            async def read():
                async for sample in subscriber:
                    values.append(sample.value)
                    if sample.value == 199:
                        subscriber.close()

            reading = asyncio.create_task(read())
            for number in range(200):
                publisher.publish(number)
                await asyncio.sleep(0)
            await asyncio.wait_for(reading, WAIT)
        return values

    assert asyncio.run(story()) == list(range(200))


def test_of_several_receivers_each_sample_goes_to_one_and_cancelling_loses_none(node):
    async def story():
        seen = []
        async with node.subscriber("a/b") as subscriber, node.publisher("a/b") as publisher:
            for number in range(300):
                receivers = [asyncio.create_task(subscriber.receive_async(WAIT)) for _ in range(3)]
                if number % 2:
                    await asyncio.sleep(0)
                publisher.publish(number)
                if number % 3:
                    await asyncio.sleep(0)
                for receiver in receivers:
                    receiver.cancel()
                done = await asyncio.gather(*receivers, return_exceptions=True)
                seen += [sample.value for sample in done if not isinstance(sample, BaseException)]
                # What no receiver took before it was cancelled still waits.
                while (sample := subscriber.receive_nowait()) is not None:
                    seen.append(sample.value)
        return seen

    assert asyncio.run(story()) == list(range(300))


def test_the_twins_time_out_and_refuse_like_their_originals(node):
    async def story():
        async with node.subscriber("a/b") as subscriber, node.publisher("a/c") as publisher:
            for timeout in (0, 0.01):
                with pytest.raises(vbus.Timeout):
                    await subscriber.receive_async(timeout)
                with pytest.raises(vbus.Timeout):
                    await subscriber.receive_many_async(timeout=timeout)
                assert not await subscriber.wait_for_publishers_async(1, timeout)
                assert not await publisher.wait_for_subscribers_async(1, timeout)
                assert not await node.wait_for_peers_async(1, timeout)
            with pytest.raises(ValueError, match="-1"):
                await subscriber.receive_async(-1)
            assert await publisher.flush_async(WAIT)
            waiting = asyncio.create_task(subscriber.receive_async())
            await asyncio.sleep(0)
            subscriber.close()
            with pytest.raises(vbus.Closed):
                await asyncio.wait_for(waiting, WAIT)
        await node.close_async()
        assert node.closed

    asyncio.run(story())
