"""`publish_async` and `Loan.publish_async`: waiting for room in the loop, all or nothing, in order."""

import asyncio
import gc
import logging
import os
import threading
from pathlib import Path

import numpy
import pytest
from helpers import WATCHDOG, Survivor, check_conservation, is_asleep, start, until

import vbus

__all__ = ["start"]

pytestmark = pytest.mark.paths("shm", "udp")

FULL = {"depth": 1, "on_full": "block"}


def run(story):
    """A story, which must not hang."""

    async def bounded():
        async with asyncio.timeout(WATCHDOG):
            return await story

    return asyncio.run(bounded())


def wake_ups(thread: int) -> int:
    """How often a thread that went to sleep went on; 0 for one that ended."""
    try:
        status = Path(f"/proc/self/task/{thread}/status").read_text()
    except FileNotFoundError:
        return 0
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


async def turns(count: int = 3) -> None:
    """Everyone who can go on does."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.contract(
    "Every method that can wait has a twin `..._async` with the same arguments",
    "encodes, sends, returns the sample's `sequence`",
)
def test_publish_async_returns_the_sequence_and_waits_while_a_subscriber_is_full(node):
    async def story():
        with node.subscriber("t", int) as subscriber, node.publisher("t", int, **FULL) as publisher:
            assert await publisher.publish_async(0, headers={"a": "b"}) == 0
            waiting = asyncio.create_task(publisher.publish_async(1))
            await turns()
            assert not waiting.done()
            assert subscriber.receive(0).headers == {"a": "b"}
            assert await waiting == 1
            assert subscriber.receive(0).value == 1
            assert publisher.stats().blocked_seconds > 0

    run(story())


@pytest.mark.contract("With no subscriber it returns at once.")
def test_publish_async_without_a_subscriber_returns_at_once(node):
    async def story():
        with node.publisher("t", **FULL) as publisher:
            assert [await publisher.publish_async(b"x") for _ in range(200)] == list(range(200))

    run(story())


@pytest.mark.contract(
    "All or nothing: on `Timeout`, `Full`, `TooLarge`, `EncodeError` or cancellation nobody got the sample"
)
def test_whatever_ends_publish_async_early_nobody_got_it_and_no_sequence_is_used(node):
    async def story():
        with (
            node.subscriber("t", int, depth=1) as subscriber,
            node.subscriber("t", int) as other,
            node.publisher("t", int, block_timeout=0.01, max_size=100) as publisher,
        ):
            assert await publisher.publish_async(0) == 0
            with pytest.raises(vbus.Timeout) as timeout:
                await publisher.publish_async(1)
            assert (timeout.value.topic, timeout.value.subscriber) == ("t", subscriber.id)
            assert "1 of 1 samples wait" in str(timeout.value)
            with pytest.raises(vbus.EncodeError):
                await publisher.publish_async("no int")
            with pytest.raises(vbus.TooLarge):
                await publisher.publish_async(1, headers={"long": "x" * 5000})
            task = asyncio.create_task(publisher.publish_async(1))
            await turns()
            task.cancel()
            assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)
            assert [sample.value for sample in subscriber.receive_many()] == [0]
            assert await publisher.publish_async(2) == 1
            assert [sample.value for sample in other.receive_many()] == [0, 2]
            with node.subscriber("e") as full_one, node.publisher("e", depth=1, on_full="error") as strict:
                await strict.publish_async(0)
                with pytest.raises(vbus.Full) as full:
                    await strict.publish_async(1)
                assert full.value.subscriber == full_one.id
                assert strict.stats().published == 1

    run(story())


def test_the_first_try_counts_even_without_time(node):
    async def story():
        with node.subscriber("t") as subscriber, node.publisher("t", block_timeout=0, **FULL) as publisher:
            for number in range(200):
                assert await publisher.publish_async(number) == number
                with pytest.raises(vbus.Timeout):
                    await publisher.publish_async(number)
                assert subscriber.receive(0).value == number

    run(story())


@pytest.mark.contract("Samples of one publisher arrive at each subscriber in the order published")
def test_samples_of_several_tasks_go_in_the_order_of_the_calls(node):
    async def story():
        with node.subscriber("t", int) as subscriber, node.publisher("t", int, depth=4) as publisher:
            tasks = [asyncio.create_task(publisher.publish_async(number)) for number in range(500)]
            got = [(await subscriber.receive_async()).value for _ in tasks]
            assert got == list(range(500))
            assert [await task for task in tasks] == got

    run(story())


def test_those_that_wait_behind_one_that_gives_up_move_up(node):
    async def story():
        with node.subscriber("t", int) as subscriber, node.publisher("t", int, **FULL) as publisher:
            await publisher.publish_async(0)
            tasks = [asyncio.create_task(publisher.publish_async(number)) for number in range(1, 7)]
            await turns()
            for task in tasks[::2]:
                task.cancel()
            got = [(await subscriber.receive_async()).value for _ in range(4)]
            assert got == [0, 2, 4, 6]
            assert await asyncio.gather(*tasks[1::2]) == [1, 2, 3]

    run(story())


def test_all_that_wait_too_long_name_the_subscriber_that_is_full(node):
    async def story():
        with (
            node.subscriber("t", int) as subscriber,
            node.publisher("t", int, block_timeout=0.02, **FULL) as publisher,
        ):
            await publisher.publish_async(0)
            calls = [publisher.publish_async(number) for number in range(5)]
            errors = await asyncio.gather(*calls, return_exceptions=True)
            assert [error.subscriber for error in errors] == [subscriber.id] * 5
            assert subscriber.stats().waiting == 1

    run(story())


@pytest.mark.contract("A publish that has waited 1 s logs one warning naming topic, subscriber and remedy.")
def test_a_publish_async_that_waits_a_second_says_so_once(node, caplog):
    async def story():
        with node.subscriber("slow/one") as subscriber, node.publisher("slow/one", **FULL) as publisher:
            await publisher.publish_async(0)
            with caplog.at_level(logging.WARNING, "vbus"):
                waiting = asyncio.create_task(publisher.publish_async(1))
                while not caplog.records:
                    await asyncio.wait([waiting], timeout=0.01)
                subscriber.receive(0)
                assert await waiting == 1
            (record,) = caplog.records
            for word in ("slow/one", subscriber.id, "raise `depth`"):
                assert word in record.getMessage()

    run(story())


def test_closing_ends_every_publish_async(node):
    async def story():
        with node.subscriber("t"), node.publisher("t", **FULL) as publisher:
            await publisher.publish_async(0)
            tasks = [asyncio.create_task(publisher.publish_async(number)) for number in range(5)]
            await turns()
            publisher.close()
            errors = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(error) for error in errors} == {vbus.Closed}

    run(story())


def test_a_subscriber_that_closes_makes_room(node):
    async def story():
        with node.publisher("t", **FULL) as publisher:
            subscriber = node.subscriber("t")
            await publisher.publish_async(0)
            waiting = asyncio.create_task(publisher.publish_async(1))
            await turns()
            subscriber.close()
            assert await waiting == 1

    run(story())


def test_a_loop_goes_on_while_its_tasks_publish_without_end(node):
    async def story():
        with node.subscriber("t", depth=1, on_full="drop_oldest"), node.publisher("t") as publisher:
            rounds = 0

            async def publish_for_ever():
                while True:
                    await publisher.publish_async(b"x")

            tasks = [asyncio.create_task(publish_for_ever()) for _ in range(3)]
            while rounds < 10:
                await asyncio.sleep(0)
                rounds += 1
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    run(story())


@pytest.mark.parametrize("size", [10, 20_000, 200_000])
def test_large_samples_are_whole_and_encoded_once(node, size):
    async def story():
        with node.subscriber("t") as subscriber, node.publisher("t", **FULL) as publisher:
            arrays = [numpy.full(size, number, "u1") for number in range(4)]
            tasks = [asyncio.create_task(publisher.publish_async(array)) for array in arrays]
            for array in arrays:
                assert ((await subscriber.receive_async()).value == array).all()
            await asyncio.gather(*tasks)

    run(story())


def test_memory_that_comes_back_lets_a_publish_async_go_on(join):
    async def story():
        node = join(memory=3 << 20)
        with node.subscriber("t", bytes) as subscriber, node.publisher("t", bytes) as publisher:
            held = []
            while True:
                try:
                    async with asyncio.timeout(0.05):
                        await publisher.publish_async(bytes(1 << 18))
                except TimeoutError:
                    break
                held.append(await subscriber.receive_async())
            waiting = asyncio.create_task(publisher.publish_async(bytes(1 << 18)))
            await turns()
            assert not waiting.done()
            held.clear()
            assert await waiting == publisher.stats().published - 1

    run(story())


# ---- loans --------------------------------------------------------------------------------------


def test_a_loan_is_published_when_there_is_room_and_is_as_it_was_if_cancelled(node):
    async def story():
        with node.subscriber("t", bytes) as subscriber, node.publisher("t", bytes, **FULL) as publisher:
            await publisher.publish_async(b"first")
            with publisher.loan(5) as loan:
                loan.buffer[:] = b"loan1"
                waiting = asyncio.create_task(loan.publish_async())
                await turns()
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
                loan.buffer[:] = b"loan2"
                waiting = asyncio.create_task(loan.publish_async())
                await turns()
                assert subscriber.receive(0).value == b"first"
                assert await waiting == 1
                with pytest.raises(ValueError, match="loan again"):
                    loan.buffer  # noqa: B018
            assert subscriber.receive(0).value == b"loan2"
            assert publisher.stats().published == 2

    run(story())


@pytest.mark.contract("`loan.publish() -> int` may be called again after `Full` or `Timeout`")
def test_a_loan_that_timed_out_may_be_published_again(node):
    async def story():
        with (
            node.subscriber("t", bytes) as subscriber,
            node.publisher("t", bytes, block_timeout=0.01, **FULL) as publisher,
        ):
            publisher.publish(b"first")
            loan = publisher.loan(3)
            loan.buffer[:] = b"abc"
            with pytest.raises(vbus.Timeout) as timeout:
                await loan.publish_async()
            assert timeout.value.subscriber == subscriber.id
            assert subscriber.receive(0).value == b"first"
            assert await loan.publish_async() == 1
            assert subscriber.receive(0).value == b"abc"

    run(story())


def test_a_loan_that_ends_while_it_waits_is_not_published(node):
    async def story():
        with node.subscriber("t", bytes) as subscriber, node.publisher("t", bytes, **FULL) as publisher:
            await publisher.publish_async(b"first")
            loan = publisher.loan(3)
            waiting = asyncio.create_task(loan.publish_async())
            await turns()
            loan.discard()
            subscriber.receive(0)
            with pytest.raises(ValueError, match="loan again"):
                await waiting
            assert publisher.stats().published == 1

    run(story())


# ---- together -----------------------------------------------------------------------------------


def test_two_loops_and_threads_publish_together_and_nothing_is_lost(node):
    each, publisher = 400, node.publisher("t", depth=2)
    subscriber = node.subscriber("t")

    async def tasks(name):
        async def one(part):
            for number in range(each // 4):
                await publisher.publish_async((f"{name}.{part}", number))

        await asyncio.gather(*(one(part) for part in range(4)))

    def thread(name):
        for number in range(each):
            publisher.publish((name, number))

    workers = [Survivor(lambda name=name: asyncio.run(tasks(name))) for name in ("loop1", "loop2")]
    workers += [Survivor(lambda name=name: thread(name)) for name in ("thread1", "thread2")]
    seen: dict[str, int] = {}
    for sequence in range(4 * each):
        sample = subscriber.receive(WATCHDOG)
        name, number = sample.value
        assert sample.sequence == sequence
        assert number == seen.get(name, -1) + 1
        seen[name] = number
    for worker in workers:
        worker.join()
    check_conservation(publisher, subscriber)


def test_who_waits_for_long_beside_others_is_quiet(node):
    """Two threads and two loops are full together: none wakes another again and again."""
    publisher, subscriber = node.publisher("t", depth=1), node.subscriber("t")
    publisher.publish(b"first")
    threads, asleep = [], []

    def block():
        asleep.append(threading.get_native_id())
        publisher.publish(b"x")

    async def wait():
        asleep.append(threading.get_native_id())
        await publisher.publish_async(b"y")

    threads = [Survivor(block), Survivor(block)]
    threads += [Survivor(lambda: asyncio.run(wait())) for _ in range(2)]
    until(lambda: len(asleep) == 4 and all(is_asleep(thread) for thread in asleep), "all wait")
    for _ in range(2):
        subscriber.receive(WATCHDOG)
        # One of them published; the others have looked, and wait again.
        until(lambda: subscriber.stats().waiting == 1, "the next is there")
    before = sum(wake_ups(thread) for thread in asleep)
    with pytest.raises(vbus.Timeout):
        node.subscriber("silent").receive(0.2)
    assert sum(wake_ups(thread) for thread in asleep) < before + 100
    for _ in range(3):
        subscriber.receive(WATCHDOG)
    for thread in threads:
        thread.join()


def test_who_waits_for_a_subscriber_of_its_own_node_does_not_look_now_and_then(node):
    """Seen in the field: for want of a bell of another process, it looked fifty times a second."""
    publisher, subscriber = node.publisher("t", depth=1), node.subscriber("t")
    publisher.publish(b"first")
    asleep = []

    def block():
        asleep.append(threading.get_native_id())
        publisher.publish(b"x")

    async def wait():
        asleep.append(threading.get_native_id())
        await publisher.publish_async(b"y")

    for number, waits in enumerate((block, lambda: asyncio.run(wait()))):
        thread = Survivor(waits)
        until(lambda number=number: len(asleep) > number and is_asleep(asleep[-1]), "it waits")
        before = wake_ups(asleep[-1])
        with pytest.raises(vbus.Timeout):
            node.subscriber("silent").receive(0.3)
        assert wake_ups(asleep[-1]) < before + 5
        subscriber.receive(WATCHDOG)
        thread.join()


def test_the_time_behind_others_counts_as_blocked(node):
    async def story():
        with node.subscriber("t") as subscriber, node.publisher("t", depth=2) as publisher:
            for number in range(2):
                await publisher.publish_async(number)
            tasks = [asyncio.create_task(publisher.publish_async(number)) for number in range(2)]
            done, _ = await asyncio.wait(tasks, timeout=0.02)
            assert not done
            # Two go at once: the second never met a full subscriber itself.
            subscriber.receive_many(timeout=0)
            await asyncio.gather(*tasks)
            assert publisher.stats().blocked_seconds > 0.03

    run(story())


def test_a_publisher_that_goes_leaves_no_file_to_the_garbage_collector(node):
    """A program that switched it off had two files more for each publisher that a task had waited for."""

    async def wait_for_room():
        publisher, subscriber = node.publisher("t", bytes, **FULL), node.subscriber("t", bytes)
        await publisher.publish_async(b"0")
        waiting = asyncio.create_task(publisher.publish_async(b"1"))
        await turns()
        subscriber.receive(0)
        assert await waiting == 1

    async def story():
        await wait_for_room()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            await wait_for_room()
        # A closed publisher's file is readable, and the loop lets it go.
        while len(os.listdir("/proc/self/fd")) > before + 10:  # noqa: ASYNC110
            await asyncio.sleep(0)

    gc.collect()
    gc.disable()
    try:
        run(story())
    finally:
        gc.enable()


def test_a_loan_is_published_at_once_where_there_is_room(node):
    async def story():
        with node.subscriber("t", bytes) as subscriber, node.publisher("t", bytes) as publisher:
            with publisher.loan(3) as loan:
                loan.buffer[:] = b"now"
                with pytest.raises(StopIteration) as end:
                    loan.publish_async().send(None)
                assert end.value.value == 0
            assert subscriber.receive(0).value == b"now"

    run(story())


@pytest.mark.paths("shm")  # a silent peer is gone after 15 s
def test_a_subscriber_in_another_process_makes_room_and_its_death_too(node, start):
    program = start(
        """
        node = vbus.Node("reader")
        subscriber = node.subscriber("t", bytes)
        say("ready")
        while (word := hear()) != "end":
            say(subscriber.receive(5).sequence)
        """
    )
    program.expect("ready")

    async def story():
        with node.publisher("t", bytes, **FULL) as publisher:
            await publisher.publish_async(b"0")
            for number in range(20):
                waiting = asyncio.create_task(publisher.publish_async(b"x"))
                await turns()
                assert not waiting.done()
                program.tell("take")
                program.expect(number)
                assert await waiting == number + 1
            waiting = asyncio.create_task(publisher.publish_async(b"x"))
            await turns()
            assert not waiting.done()
            program.kill()
            assert await waiting == 21

    run(story())
