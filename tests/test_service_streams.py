"""Streams of replies: in order, no faster than they are taken, and stopped when nobody wants more."""

import asyncio
import gc
import threading

import numpy as np
import pytest
from helpers import WATCHDOG, until

import vbus

pytestmark = [pytest.mark.timeout(60), pytest.mark.paths("shm", "udp")]

KINDS = ["generator", "asynchronous generator"]


class Counting:
    """A stream of numbers that tells how far it got, and when it was stopped."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.given = 0
        self.stopped = threading.Event()

    def handler(self):
        return self._numbers if self.kind == "generator" else self._numbers_later

    def _numbers(self, n):
        try:
            for at in range(n):
                self.given = at + 1
                yield at
        finally:
            self.stopped.set()

    async def _numbers_later(self, n):
        try:
            for at in range(n):
                self.given = at + 1
                yield at
                await asyncio.sleep(0)
        finally:
            self.stopped.set()

    def has_stopped(self) -> bool:
        return self.stopped.wait(WATCHDOG)


@pytest.fixture(params=KINDS)
def counting(request):
    return Counting(request.param)


@pytest.fixture
def caller(join, counting):
    """Calls "count" of another node."""
    join("server").serve("count", counting.handler(), concurrency=2)
    return join("caller")


FOR_EVER = 10**12


@pytest.mark.contract("or a generator of either kind for a stream of replies")
def test_a_generator_of_either_kind_is_a_stream_of_replies(caller):
    assert list(caller.call_stream("count", 1000)) == list(range(1000))
    assert list(caller.call_stream("count", 0)) == []

    async def main():
        return [item async for item in caller.call_stream("count", 1000)]

    assert asyncio.run(main()) == list(range(1000))


def test_a_stream_is_stepped_by_next_and_anext(caller):
    stream = caller.call_stream("count", 2)
    assert [next(stream), next(stream), next(stream, "over"), next(stream, "over")] == [0, 1, "over", "over"]

    async def main():
        stream = caller.call_stream("count", 1)
        return [await anext(stream), await anext(stream, "over"), await anext(stream, "over")]

    assert asyncio.run(main()) == [0, "over", "over"]


@pytest.mark.contract("(iterable, async-iterable, context manager; leaving it early stops the generator)")
@pytest.mark.parametrize("held", [True, False])
def test_breaking_out_of_the_loop_stops_the_generator(caller, counting, held):
    stream = caller.call_stream("count", FOR_EVER)
    if held:
        for item in stream:
            if item == 100:
                break
    else:
        del stream
        for item in caller.call_stream("count", FOR_EVER):
            if item == 100:
                break
    assert counting.has_stopped()


@pytest.mark.parametrize("held", [True, False])
def test_breaking_out_of_an_async_loop_stops_the_generator(caller, counting, held):
    async def main():
        if held:
            stream = caller.call_stream("count", FOR_EVER)
            async for item in stream:
                if item == 100:
                    break
        else:
            async for item in caller.call_stream("count", FOR_EVER):
                if item == 100:
                    break
        assert await asyncio.to_thread(counting.has_stopped)

    asyncio.run(main())


@pytest.mark.parametrize("how", ["with", "exception", "close", "forgotten", "async with"])
def test_a_stream_that_is_left_stops_the_generator(caller, counting, how):
    async def leave_async_with():
        async with caller.call_stream("count", FOR_EVER) as stream:
            assert await anext(stream) == 0

    stream = caller.call_stream("count", FOR_EVER)
    assert next(stream) == 0
    match how:
        case "with":
            with stream:
                assert next(stream) == 1
        case "exception":
            with pytest.raises(ZeroDivisionError), stream:
                _ = 1 / 0
        case "close":
            stream.close()
            stream.close()
        case "forgotten":
            del stream
            gc.collect()
        case "async with":
            stream.close()
            assert counting.has_stopped()
            counting.stopped.clear()
            asyncio.run(leave_async_with())
    assert counting.has_stopped()
    if how in ("with", "close"):
        with pytest.raises(vbus.Closed, match="was left"):
            next(stream)


def test_cancelling_the_task_that_takes_a_stream_stops_the_generator(caller, counting):
    async def main():
        taken = asyncio.Event()

        async def take():
            async for _ in caller.call_stream("count", FOR_EVER):
                taken.set()

        task = asyncio.ensure_future(take())
        await asyncio.wait_for(taken.wait(), WATCHDOG)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(counting.has_stopped)

    asyncio.run(main())


def test_a_stream_that_is_taken_slowly_is_produced_slowly_and_holds_up_no_other_call(caller, counting):
    stream = caller.call_stream("count", FOR_EVER)
    assert next(stream) == 0
    until(lambda: counting.given >= 64, "all that may wait was given")
    other = caller.call_stream("count", 1000)
    assert list(other) == list(range(1000))
    asked = 500
    assert [next(stream) for _ in range(asked)] == list(range(1, asked + 1))
    until(lambda: counting.given >= asked, "the generator went on")
    assert counting.given <= asked + 1 + 64 + 1
    stream.close()
    assert counting.has_stopped()


def test_many_streams_that_nobody_takes_hold_up_no_other_call(join):
    server, caller = join("server"), join("caller")

    async def numbers(n):
        for at in range(n):
            yield at

    server.serve("count", numbers, concurrency=100)
    server.serve("echo", lambda value: value)
    streams = [caller.call_stream("count", 200) for _ in range(50)]
    assert caller.call("echo", "through") == "through"
    assert [list(stream) for stream in streams] == [list(range(200))] * 50


def test_the_timeout_of_a_stream_is_for_each_next_item(join):
    server, caller = join("server"), join("caller")
    go_on = threading.Semaphore(1)

    def slow(n):
        for at in range(n):
            go_on.acquire(timeout=WATCHDOG)
            yield at

    server.serve("slow", slow)
    stream = caller.call_stream("slow", 3, timeout=0.05)
    # The first request may take its time to be begun.
    assert next_in_time(stream) == 0
    with pytest.raises(vbus.Timeout, match=r"no item of the stream of 'slow' in 0\.05 s"):
        next(stream)
    go_on.release()
    assert next_in_time(stream) == 1

    async def step():
        with pytest.raises(vbus.Timeout):
            await anext(stream)
        go_on.release()
        while True:
            try:
                return await anext(stream)
            except vbus.Timeout:
                continue

    assert asyncio.run(step()) == 2
    assert next(stream, "over") == "over"


def next_in_time(stream):
    while True:
        try:
            return next(stream)
        except vbus.Timeout:
            continue


def test_an_exception_in_the_middle_of_a_stream_comes_after_the_items_before_it(join):
    server, caller = join("server"), join("caller")

    def breaks(n):
        yield from range(n)
        raise ValueError("enough")

    server.serve("breaks", breaks)
    got = []
    with pytest.raises(vbus.RemoteError, match="ValueError: enough"):
        got.extend(caller.call_stream("breaks", 200))
    assert got == list(range(200))


def test_an_item_of_the_wrong_type_is_a_remote_error_and_closes_the_generator(join):
    server, caller = join("server"), join("caller")
    closed = threading.Event()

    def wrong(value):
        try:
            yield 1
            yield "two"
        finally:
            closed.set()

    server.serve("wrong", wrong, reply=int)
    stream = caller.call_stream("wrong", None)
    assert next(stream) == 1
    with pytest.raises(vbus.RemoteError) as caught:
        next(stream)
    assert caught.value.type == "EncodeError"
    assert closed.wait(WATCHDOG)


def test_a_stream_that_is_called_for_one_reply_says_what_to_use(caller, counting):
    with pytest.raises(vbus.RemoteError, match="use call_stream"):
        caller.call("count", 3)


def test_one_reply_that_is_called_as_a_stream_is_a_stream_of_one(join):
    server, caller = join("server"), join("caller")
    server.serve("one", lambda value: value)
    assert list(caller.call_stream("one", "reply")) == ["reply"]


def test_a_function_may_return_a_generator(join):
    server, caller = join("server"), join("caller")
    server.serve("squares", lambda n: (at * at for at in range(n)))
    assert list(caller.call_stream("squares", 5)) == [0, 1, 4, 9, 16]


def test_items_that_are_arrays_are_views_that_stay(join):
    server, caller = join("server"), join("caller")

    def frames(n):
        frame = np.empty(100_000, dtype="u1")
        for at in range(n):
            frame[:] = at  # the same memory again: what was yielded is sent
            yield frame

    server.serve("frames", frames, reply=np.ndarray)
    kept = list(caller.call_stream("frames", 200))
    assert [int(frame[0]) for frame in kept] == [int(frame[-1]) for frame in kept] == list(range(200))
    assert not kept[0].flags.owndata


def test_several_threads_share_a_stream(caller):
    stream = caller.call_stream("count", 1000)
    got = []

    def take():
        while (item := next(stream, None)) is not None:
            got.append(item)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WATCHDOG)
        assert not thread.is_alive()
    assert sorted(got) == list(range(1000))


def test_streams_are_stopped_when_their_server_closes(join, counting):
    server, caller = join("server"), join("caller")
    serving = server.serve("count", counting.handler())
    stream = caller.call_stream("count", FOR_EVER)
    assert next(stream) == 0
    serving.close(linger=0)
    with pytest.raises(vbus.TransportError):
        list(stream)
    assert counting.has_stopped()


@pytest.mark.parametrize("way", ["next", "anext"])
def test_closing_a_stream_wakes_whoever_waits_in_it(join, way):
    server, caller = join("server"), join("caller")
    begun, go_on, errors = threading.Event(), threading.Event(), []

    def silent(value):
        begun.set()
        go_on.wait(WATCHDOG)
        yield value

    server.serve("silent", silent)
    stream = caller.call_stream("silent", 1)

    async def step():
        return await anext(stream)

    def take():
        try:
            next(stream) if way == "next" else asyncio.run(step())
        except vbus.Closed as error:
            errors.append(error)

    thread = threading.Thread(target=take)
    thread.start()
    assert begun.wait(WATCHDOG)
    until(lambda: stream.pending.waiter is not None, "it waits")
    stream.close()
    thread.join(WATCHDOG)
    assert "the stream of 'silent' was left" in str(errors[0])
    go_on.set()
