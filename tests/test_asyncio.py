"""The twins for asyncio, and other loops: nothing is lost or repeated by any cancellation."""

import asyncio
import contextlib
import gc
import inspect
import os
import selectors
import threading
import weakref

import pytest
import trio
import uvloop
from helpers import WATCHDOG, Belongings, Survivor, chance, check_conservation, is_asleep, start, until
from test_publish_async import run, turns, wake_ups

import vbus

__all__ = ["chance", "start"]

pytestmark = pytest.mark.paths("shm", "udp")

TWINS = [
    (vbus.Publisher, "publish"),
    (vbus.Publisher, "flush"),
    (vbus.Publisher, "wait_for_subscribers"),
    (vbus.Subscriber, "receive"),
    (vbus.Subscriber, "receive_many"),
    (vbus.Subscriber, "wait_for_publishers"),
    (vbus.Node, "wait_for_peers"),
    (vbus.Node, "close"),
    (vbus.Loan, "publish"),
    (vbus.Watch, "receive"),
    (vbus.Watch, "receive_many"),
]


def arguments(method) -> list[tuple]:
    _self, *others = inspect.signature(method).parameters.values()
    return [(its.name, its.kind, its.default) for its in others]


@pytest.mark.contract(
    "Every method that can wait has a twin `..._async` with the same arguments",
    "They are those of `publish`, `flush`, `receive`, `receive_many`",
)
@pytest.mark.parametrize(("owner", "name"), TWINS, ids=lambda it: getattr(it, "__name__", it))
def test_a_twin_has_the_arguments_of_its_original(owner, name):
    assert arguments(getattr(owner, f"{name}_async")) == arguments(getattr(owner, name))


def test_hundreds_wait_for_somebody_to_come_without_a_thread(join):
    async def story():
        node = join()
        with node.publisher("a") as publisher, node.subscriber("b") as subscriber:
            threads = threading.active_count()
            waits = [
                asyncio.create_task(wait)
                for _ in range(100)
                for wait in (
                    node.wait_for_peers_async(1),
                    publisher.wait_for_subscribers_async(1),
                    subscriber.wait_for_publishers_async(1),
                    publisher.flush_async(),
                )
            ]
            await turns()
            assert threading.active_count() == threads
            assert sum(wait.done() for wait in waits) == 100
            other = join("other")
            with other.subscriber("a"), other.publisher("b"):
                assert await asyncio.gather(*waits) == [True] * 400

    run(story())


def test_waiting_for_somebody_ends_when_it_is_closed_or_cancelled(join):
    async def story():
        node = join()
        publisher, subscriber = node.publisher("a"), node.subscriber("b")
        waits = {
            publisher: publisher.wait_for_subscribers_async(1),
            subscriber: subscriber.wait_for_publishers_async(1),
            node: node.wait_for_peers_async(1),
        }
        for owner, wait in waits.items():
            waiting = asyncio.create_task(wait)
            await turns()
            owner.close()
            with pytest.raises(vbus.Closed):
                await waiting
        cancelled = asyncio.create_task(join().wait_for_peers_async(1))
        await turns()
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled

    run(story())


# ---- cancellation -------------------------------------------------------------------------------


async def cancelled_by_task(calls, dice) -> list:
    """Each call in a task; all are cancelled, some turns later."""
    tasks = [asyncio.create_task(call()) for call in calls]
    await turns(dice.randrange(4))
    for task in dice.sample(tasks, dice.randrange(len(tasks) + 1)):
        task.cancel()
    await turns(dice.randrange(3))
    for task in tasks:
        task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)


async def cancelled_by_timeout(calls, dice) -> list:
    async def one(call):
        async with asyncio.timeout(dice.choice([0, 0.0001, 0.001])):
            return await call()

    return await asyncio.gather(*(one(call) for call in calls), return_exceptions=True)


async def cancelled_by_wait_for(calls, dice) -> list:
    waits = [asyncio.wait_for(call(), dice.choice([0, 0.0001, 0.001])) for call in calls]
    return await asyncio.gather(*waits, return_exceptions=True)


async def cancelled_by_group(calls, dice) -> list:
    results = []

    async def one(call):
        results.append(await call())

    async def fail():
        await turns(dice.randrange(3))
        raise ZeroDivisionError

    with contextlib.suppress(BaseExceptionGroup):
        async with asyncio.TaskGroup() as group:
            for call in calls:
                group.create_task(one(call))
            group.create_task(fail())
    return results


WAYS = [cancelled_by_task, cancelled_by_timeout, cancelled_by_wait_for, cancelled_by_group]


@pytest.mark.contract("cancelling one never loses or repeats a sample")
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_cancelling_a_receiver_anywhere_loses_and_repeats_nothing(node, chance, way):
    async def story():
        seen = []
        with node.subscriber("t", int) as subscriber, node.publisher("t", int, depth=1000) as publisher:

            async def iterate():
                return [await anext(aiter(subscriber))]

            async def receive():
                return [await subscriber.receive_async()]

            async def late():
                return [await subscriber.receive_async(chance.choice([0, 0.0001, 0.001, 5]))]

            kinds = [
                iterate,
                receive,
                late,
                subscriber.receive_many_async,
                lambda: subscriber.receive_many_async(2),
            ]
            sent = 0
            for _ in range(500):
                for _ in range(chance.randrange(4)):
                    publisher.publish(sent)
                    sent += 1
                calls = chance.choices(kinds, k=chance.randrange(1, 5))
                publishing = asyncio.create_task(asyncio.sleep(0))
                publishing.add_done_callback(lambda _, sent=sent: publisher.publish(sent))
                sent += 1
                for got in await way(calls, chance):
                    if isinstance(got, list):
                        seen += [sample.value for sample in got]
                    else:
                        assert isinstance(got, (asyncio.CancelledError, TimeoutError)), repr(got)
                await publishing
                await turns(1)
                if chance.random() < 0.3:
                    seen += [sample.value for sample in subscriber.receive_many_nowait()]
            seen += [sample.value for sample in subscriber.receive_many_nowait()]
            assert sorted(seen) == list(range(sent))

    run(story())


@pytest.mark.contract(
    "cancelling one never loses or repeats a sample", "or cancellation nobody got the sample"
)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_cancelling_a_publisher_anywhere_publishes_all_or_nothing(node, chance, way):
    async def story():
        with node.subscriber("t", bytes) as subscriber, node.publisher("t", bytes, depth=2) as publisher:
            seen, returned, calls_made = [], [], 0

            def publish(number):
                async def call():
                    value = b"%d" % number
                    if number % 3 == 0:
                        loan = publisher.loan(len(value))
                        loan.buffer[:] = value
                        sequence = await loan.publish_async()
                    else:
                        sequence = await publisher.publish_async(value)
                    returned.append((sequence, number))
                    return sequence

                return call

            def take():
                seen.extend(
                    (sample.sequence, int(sample.value)) for sample in subscriber.receive_many_nowait(2)
                )

            for _ in range(500):
                calls = [publish(calls_made + at) for at in range(chance.randrange(1, 6))]
                calls_made += len(calls)
                taking = asyncio.create_task(turns(chance.randrange(3)))
                taking.add_done_callback(lambda _: take())
                for got in await way(calls, chance):
                    assert isinstance(got, (int, asyncio.CancelledError, TimeoutError)), repr(got)
                await taking
                await turns(1)
                if chance.random() < 0.5:
                    take()
            while subscriber.stats().waiting:
                take()
            # What returned was published once; what was cancelled was not.
            assert seen == sorted(returned)
            assert [sequence for sequence, _ in seen] == list(range(publisher.stats().published))

    run(story())


def test_a_loop_that_ends_amid_waits_leaves_everything_whole(node):
    """Loop after loop is left with tasks that wait; the next one finds every sample."""
    subscriber, publisher = node.subscriber("t", int), node.publisher("t", int, depth=2)
    seen = []
    for number in range(60):
        loop = asyncio.new_event_loop()
        tasks = [loop.create_task(subscriber.receive_async()) for _ in range(number % 3)]
        tasks += [loop.create_task(publisher.publish_async(number)) for _ in range(4)]
        tasks += [loop.create_task(node.wait_for_peers_async())]
        loop.run_until_complete(turns(number % 5))
        for task in tasks:
            if number % 2:
                task.cancel()
            elif not task.done():
                task._log_destroy_pending = False
        loop.run_until_complete(turns(2 if number % 2 else 0))
        seen += [task.result() for task in tasks if task.done() and not task.cancelled()]
        loop.close()
        del tasks
        seen += subscriber.receive_many_nowait()
    samples = [it for it in seen if isinstance(it, vbus.Sample)]
    assert sorted(sample.sequence for sample in samples) == list(range(publisher.stats().published))
    check_conservation(publisher, subscriber)

    async def both():
        waiting = asyncio.create_task(subscriber.receive_async())
        await publisher.publish_async(7)
        return (await waiting).value

    assert asyncio.run(both()) == 7


# ---- many, and quiet ----------------------------------------------------------------------------


@pytest.mark.contract("`node.subscriber(channel_or_topic, type=None, *, callback=None, spin=None, **qos)`")
def test_a_hundred_subscribers_in_one_loop_get_everything_without_a_thread_each(node):
    each = 200

    async def count(subscriber):
        got = [sample.value async for sample in subscriber]
        assert got == list(range(each))

    async def story():
        threads = threading.active_count()
        subscribers = [node.subscriber(f"many/{number}", depth=each) for number in range(100)]
        publishers = [node.publisher(f"many/{number}", depth=each) for number in range(100)]
        tasks = [asyncio.create_task(count(subscriber)) for subscriber in subscribers]
        await turns()
        assert threading.active_count() == threads
        for number in range(each):
            for publisher in publishers:
                publisher.publish(number)
            if number % 20 == 0:
                await asyncio.sleep(0)
        async with asyncio.timeout(WATCHDOG):
            while any(subscriber.stats().waiting for subscriber in subscribers):  # noqa: ASYNC110
                await asyncio.sleep(0)
        for subscriber in subscribers:
            subscriber.close()
        await asyncio.gather(*tasks)

    run(story())


def test_a_loop_with_waiting_receivers_sleeps_while_nothing_comes(node):
    subscribers = [node.subscriber(f"quiet/{number}") for number in range(20)]
    publishers = [node.publisher(f"quiet/{number}") for number in range(20)]
    said: list[int] = []

    async def wait(subscriber):
        async for _ in subscriber:
            said.append(threading.get_native_id())  # noqa: PERF401

    async def story():
        await asyncio.gather(*(wait(subscriber) for subscriber in subscribers))

    loop = Survivor(lambda: asyncio.run(story()))
    for publisher in publishers:
        publisher.publish(b"x")
    until(lambda: len(said) == 20, "all were heard")
    until(lambda: is_asleep(said[0]), "the loop sleeps")
    before = wake_ups(said[0])
    with pytest.raises(vbus.Timeout):
        node.subscriber("silent").receive(0.2)
    assert wake_ups(said[0]) <= before + 2
    for subscriber in subscribers:
        subscriber.close()
    loop.join()


def test_loops_in_several_threads_share_a_subscriber(node):
    subscriber, publisher = node.subscriber("t", int), node.publisher("t", int)
    seen: list[int] = []

    async def read():
        async for sample in subscriber:
            seen.append(sample.value)  # noqa: PERF401

    readers = [Survivor(lambda: asyncio.run(read())) for _ in range(3)]
    for number in range(2000):
        publisher.publish(number)
    until(lambda: len(seen) == 2000, "all are seen")
    subscriber.close()
    for reader in readers:
        reader.join()
    assert sorted(seen) == list(range(2000))


def test_a_deleted_subscriber_closes_though_a_loop_watched_it(node):
    async def story():
        publisher = node.publisher("t")
        subscriber = node.subscriber("t")
        publisher.publish(1)
        await subscriber.receive_async(WATCHDOG)
        with pytest.raises(vbus.Timeout):
            await subscriber.receive_async(0.01)
        assert publisher.subscribers == 1
        del subscriber
        assert publisher.subscribers == 0
        await turns()
        # Its file is not watched any more: the number may be another's.
        loop = asyncio.get_running_loop()
        assert sum(1 for _ in loop._selector.get_map()) == 1

    run(story())


def test_a_reader_of_fileno_and_the_twins_do_not_get_in_each_others_way(node):
    async def story():
        loop = asyncio.get_running_loop()
        with node.subscriber("t") as subscriber, node.publisher("t") as publisher:
            for number in range(3):
                publisher.publish(number)
                assert (await subscriber.receive_async(WATCHDOG)).value == number
                with pytest.raises(vbus.Timeout):
                    await subscriber.receive_async(0.001)
                readable = asyncio.Event()
                loop.add_reader(subscriber.fileno(), readable.set)
                publisher.publish("own")
                await readable.wait()
                loop.remove_reader(subscriber.fileno())
                assert subscriber.receive_nowait().value == "own"

    run(story())


class Counted(asyncio.SelectorEventLoop):
    """A loop that counts its rounds."""

    rounds = 0

    def _run_once(self):
        self.rounds += 1
        super()._run_once()

    async def rests(self) -> None:
        """What still happens comes to an end: then only that of the pause does."""
        for _ in range(100):
            before = self.rounds
            await asyncio.sleep(0.05)
            if self.rounds <= before + 4:
                return
        pytest.fail("the loop does not rest")


def test_a_loop_rests_whoever_came_waited_died_or_closed(join, start):
    """Files that stay readable with nothing to do would have a loop turn for ever: at no station of the lives
    of publishers, receivers of all kinds, and subscribers does it."""
    node = join()
    subscribers = [node.subscriber("t/*") for _ in range(4)]
    seen: list[int] = []

    async def read(subscriber):
        async for sample in subscriber:
            seen.append(sample.value)  # noqa: PERF401

    def block(subscriber):
        for sample in subscriber:
            seen.append(sample.value)  # noqa: PERF401

    async def heard(count):
        while len(seen) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert len(seen) == count

    async def story():
        loop = asyncio.get_running_loop()
        tasks = [asyncio.create_task(read(subscriber)) for subscriber in subscribers for _ in range(2)]
        others = [Survivor(lambda its=its: block(its)) for its in subscribers[:2]]
        others += [Survivor(lambda its=its: asyncio.run(read(its))) for its in subscribers[1:3]]
        await loop.rests()
        programs = [
            await asyncio.to_thread(
                start,
                """
                node = vbus.Node("p")
                publishers = [node.publisher(f"t/{number}") for number in range(17)]
                say("ready")
                while hear():
                    for publisher in publishers:
                        publisher.publish(1)
                """,
            )
            for _ in range(2)
        ]
        for program in programs:
            await asyncio.to_thread(program.expect, "ready")
            program.tell("publish")
        await heard(2 * 17 * 4)
        await loop.rests()
        programs[0].kill()
        await loop.rests()
        programs[1].tell("publish")
        await heard(3 * 17 * 4)
        programs[1].kill()
        await loop.rests()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with node.publisher("t/own") as publisher:
            publisher.publish(2)
            await loop.rests()  # nobody waits in this loop, and in none for the last
        assert subscribers[3].receive(0).value == 2
        await heard(3 * 17 * 4 + 3)
        tasks = [asyncio.create_task(read(subscriber)) for subscriber in subscribers]
        await turns()
        subscribers[0].close()
        await loop.rests()
        node.close()
        await asyncio.gather(*tasks)
        await loop.rests()
        for other in others:
            other.join()
        assert len(loop._selector.get_map()) == 1

    with asyncio.Runner(loop_factory=Counted) as runner:
        runner.run(asyncio.wait_for(story(), 3 * WATCHDOG))


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_loop_that_goes_takes_those_who_wait_along(node, new_loop):
    """A subscriber and a publisher outlive many loops; they keep none of them, no task, and no file."""
    subscriber, publisher = node.subscriber("t"), node.publisher("t", depth=1)
    publisher.publish(b"full")
    other = node.subscriber("other")
    gone = []

    def one_loop():
        loop = new_loop()
        tasks = [
            loop.create_task(other.receive_async()),
            loop.create_task(anext(aiter(other))),
            loop.create_task(publisher.publish_async(b"x")),
            loop.create_task(publisher.publish_async(b"y")),
            loop.create_task(node.wait_for_peers_async(1)),
        ]
        loop.run_until_complete(turns())
        for task in tasks:
            assert not task.done()
            task._log_destroy_pending = False
        gone.extend(weakref.ref(it) for it in tasks)
        loop.close()

    one_loop()
    until(lambda: gc.collect() or not any(it() for it in gone), "the tasks go")
    before = Belongings.of(os.getpid())
    for _ in range(10):
        one_loop()
    until(lambda: gc.collect() or not any(it() for it in gone), "the tasks go")
    assert Belongings.of(os.getpid()).at_most(before, slack=2)
    assert subscriber.receive(0).value == b"full"
    assert publisher.publish(b"z") == 1


def test_waiting_tasks_that_nobody_refers_to_go_on(node):
    """asyncio refers to its tasks weakly: whoever can wake them must keep them."""

    async def story():
        subscriber, publisher = node.subscriber("t"), node.publisher("u", depth=1)
        behind = node.subscriber("u")
        publisher.publish(0)
        heard: list = []

        def begin(wait):
            async def step():
                heard.append(await wait)

            asyncio.create_task(step())  # noqa: RUF006

        begin(subscriber.receive_async())
        begin(publisher.publish_async(1))
        begin(publisher.publish_async(2))
        begin(node.wait_for_peers_async(0))
        begin(publisher.wait_for_subscribers_async(2))
        await turns()
        gc.collect()
        assert heard == [True]
        with node.publisher("t") as talks, node.subscriber("u"):
            talks.publish(3)
            assert [(await behind.receive_async()).value for _ in range(2)] == [0, 1]
            while len(heard) < 4:
                await asyncio.sleep(0)
                gc.collect()

    run(story())


def test_a_file_that_a_loop_cannot_watch_is_an_error_each_time(node):
    class Fails(asyncio.SelectorEventLoop):
        fails = True

        def add_reader(self, file, callback, *arguments):
            if self.fails and file != self._ssock.fileno():
                raise OSError("no more")
            return super().add_reader(file, callback, *arguments)

    async def story():
        with node.subscriber("t") as subscriber, node.publisher("t") as publisher:
            for _ in range(2):
                with pytest.raises(OSError, match="no more"):
                    await subscriber.receive_async(WATCHDOG)
            asyncio.get_running_loop().fails = False
            waiting = asyncio.create_task(subscriber.receive_async(WATCHDOG))
            await turns()
            publisher.publish(1)
            assert (await waiting).value == 1

    with asyncio.Runner(loop_factory=Fails) as runner:
        runner.run(story())


def test_a_look_in_a_loop_is_short_whatever_spin_is(node):
    """`spin` is a hint: for an hour, a thread would look for an hour, and a loop has others to serve."""

    async def story():
        with node.subscriber("t", spin=3600.0) as subscriber, pytest.raises(vbus.Timeout):
            await subscriber.receive_async(0.01)

    run(story())


# ---- other loops --------------------------------------------------------------------------------


@pytest.mark.contract("twins run on asyncio, for trio and others there is `fileno()`")
def test_trio_waits_for_the_file_and_loses_nothing_to_a_cancellation(node):
    async def receive(subscriber):
        while (sample := subscriber.receive_nowait()) is None:
            await trio.lowlevel.wait_readable(subscriber.fileno())
        return sample

    async def story():
        seen = []
        with node.subscriber("t") as subscriber, node.publisher("t") as publisher:
            with trio.fail_after(WATCHDOG):
                for number in range(300):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(trio.lowlevel.checkpoint)
                        publisher.publish(number)
                        with trio.move_on_after(0.0001 if number % 2 else 1):
                            seen.append((await receive(subscriber)).value)
                seen += [sample.value for sample in subscriber.receive_many_nowait()]
        assert seen == list(range(300))

    trio.run(story)


def test_a_loop_of_selectors_as_a_gui_has_it_waits_for_files_of_many(node):
    with selectors.DefaultSelector() as selector:
        subscribers = [node.subscriber(f"gui/{number}") for number in range(5)]
        for subscriber in subscribers:
            selector.register(subscriber, selectors.EVENT_READ)
        assert selector.select(0) == []
        publishers = [node.publisher(f"gui/{number}") for number in range(5)]
        while selector.select(0):
            for subscriber in subscribers:
                assert subscriber.receive_nowait() is None
        seen = []
        for publisher in publishers[1:4]:
            publisher.publish(publisher.topic)
        while len(seen) < 3:
            for key, _ in selector.select(WATCHDOG):
                if (sample := key.fileobj.receive_nowait()) is not None:
                    seen.append(sample.value)
        assert sorted(seen) == ["gui/1", "gui/2", "gui/3"]
        assert [subscriber.receive_nowait() for subscriber in subscribers] == [None] * 5
        assert selector.select(0) == []
        subscribers[0].close()
        assert [key.fileobj for key, _ in selector.select(WATCHDOG)] == [subscribers[0]]


def test_the_twins_run_on_uvloop(node):
    async def story():
        with node.subscriber("t", int) as subscriber, node.publisher("t", int, depth=2) as publisher:
            tasks = [asyncio.create_task(publisher.publish_async(number)) for number in range(300)]
            assert [(await subscriber.receive_async()).value for _ in tasks] == list(range(300))
            waiting = asyncio.create_task(subscriber.receive_async())
            await turns()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert await node.wait_for_peers_async(0)
            with pytest.raises(vbus.Timeout):
                await subscriber.receive_async(0.01)
            reading = asyncio.create_task(anext(aiter(subscriber)))
            await turns()
            await publisher.publish_async(1)
            assert (await reading).value == 1

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(story(), WATCHDOG))
