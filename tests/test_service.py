"""Requests and replies: what a call promises, to whom it goes, and what it says when it fails."""

import _thread
import asyncio
import gc
import pickle
import select
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest
from helpers import WATCHDOG, chance, until

import vbus

__all__ = ["chance"]  # a fixture
pytestmark = [pytest.mark.timeout(60), pytest.mark.paths("shm", "udp")]


@dataclass
class Add:
    a: int
    b: int


ADD = vbus.Service("math/add", Add, int)


def add(request):
    return request.a + request.b


@pytest.fixture
def pair(join):
    """A node that serves and one that calls."""
    return join("server"), join("caller")


# ---- the record ---------------------------------------------------------------------------------


@pytest.mark.contract("is to calls what Channel is to topics, and may stand for the name")
def test_a_service_says_once_for_both_sides_what_is_served(pair):
    server, caller = pair
    server.serve(ADD, add)
    assert (ADD.name, ADD.request, ADD.reply) == ("math/add", Add, int)
    assert caller.call(ADD, Add(1, 2)) == 3
    assert vbus.Service[Add, int] is not None


def test_a_service_is_frozen_hashable_and_picklable():
    same = vbus.Service("math/add", Add, int)
    assert same == ADD
    assert hash(same) == hash(ADD)
    assert vbus.Service("math/add") != ADD
    assert pickle.loads(pickle.dumps(ADD)) == ADD  # noqa: S301
    assert repr(ADD) == "Service('math/add', request=Add, reply=int)"
    with pytest.raises(AttributeError, match="frozen"):
        ADD.name = "other"
    with pytest.raises(AttributeError, match="frozen"):
        del ADD.name


@pytest.mark.contract("Service names follow the same grammar")
@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "a/*", "**", "a\n", "x" * 256])
def test_a_service_name_follows_the_grammar_of_topics(node, name):
    with pytest.raises(vbus.TopicError):
        vbus.Service(name)
    with pytest.raises(vbus.TopicError):
        node.serve(name, add)
    with pytest.raises(vbus.TopicError):
        node.call(name, 1)


def test_a_service_name_may_have_all_of_255_bytes(pair):
    server, caller = pair
    name = "é" * 127 + "x"
    server.serve(name, lambda value: value)
    assert caller.call(name, "hello") == "hello"


@pytest.mark.contract("is never matched by wildcards, only by name; `$vbus/` is the bus's own")
def test_what_begins_with_vbus_is_the_buss_own(node):
    for topic in ("$vbus/serve/x", "$vbus", "$vbus/**"):
        with pytest.raises(vbus.TopicError, match="the bus's own"):
            node.subscriber(topic)
    for what in (lambda: node.publisher("$vbus/x"), lambda: node.serve("$vbus/x", add)):
        with pytest.raises(vbus.TopicError, match="the bus's own"):
            what()
    assert node.publisher("$vbuses/x").topic == "$vbuses/x"


def test_requests_and_replies_are_no_samples_in_the_stats_of_a_node(pair):
    server, caller = pair
    serving = server.serve(ADD, add)
    caller.call(ADD, Add(1, 2))
    serving.close()
    caller.publisher("a").publish(1)
    server.close()
    for stats in (server.stats(), caller.stats()):
        assert (stats.delivered, stats.bytes_received, stats.lost, stats.dropped) == (0, 0, 0, {})
    assert (server.stats().published, caller.stats().published) == (0, 1)


def test_the_buss_own_topics_are_not_shown(pair):
    server, caller = pair
    server.serve(ADD, add)
    caller.call(ADD, Add(1, 2))
    assert server.topics() == caller.topics() == []


# ---- serving and calling ------------------------------------------------------------------------


@pytest.mark.contract('also `node.serve("math/add", handler, request=Add, reply=int)`')
@pytest.mark.contract("with a plain name, `request=` and `reply=` may be given")
def test_a_plain_name_may_come_with_types(pair):
    server, caller = pair
    server.serve("math/add", add, request=Add, reply=int)
    assert caller.call("math/add", Add(1, 2), request=Add, reply=int) == 3
    assert caller.call("math/add", {"a": 1, "b": 2}) == 3
    assert list(caller.call_stream("math/add", Add(1, 2), request=Add, reply=int)) == [3]


def test_a_server_of_the_same_node_is_called_as_any_other(node):
    node.serve(ADD, add)
    assert node.call(ADD, Add(1, 2)) == 3


@pytest.mark.contract("The handler is a function (run on `concurrency` threads)")
def test_as_many_calls_run_at_a_time_as_concurrency_says(pair):
    server, caller = pair
    together = threading.Barrier(3)
    server.serve("meet", lambda value: together.wait(WATCHDOG), concurrency=3)
    threads = [threading.Thread(target=caller.call, args=("meet", None)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WATCHDOG)
        assert not thread.is_alive()


def test_one_at_a_time_is_the_default(pair):
    server, caller = pair
    inside, most = [], []

    def handler(value):
        inside.append(value)
        most.append(len(inside))
        time.sleep(0)
        inside.remove(value)

    server.serve("one", handler)
    threads = [threading.Thread(target=caller.call, args=("one", at)) for at in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WATCHDOG)
    assert most == [1] * 20


@pytest.mark.contract("a coroutine function (run on the loop that was running at `serve`, else on one of")
def test_a_coroutine_runs_on_the_loop_that_ran_at_serve_else_on_one_of_the_nodes(pair):
    server, caller = pair

    async def where(value):
        await asyncio.sleep(0)
        return threading.get_ident()

    server.serve("where", where)
    elsewhere = caller.call("where", None)
    assert elsewhere != threading.get_ident()

    async def main():
        server.serve("here", where)
        assert await caller.call_async("here", None) == threading.get_ident()
        assert await asyncio.to_thread(caller.call, "where", None) == elsewhere

    asyncio.run(main())


def test_coroutines_run_as_many_at_a_time_as_concurrency_says(pair):
    server, caller = pair

    async def main():
        running = 0
        most = 0

        async def handler(value):
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.001)
            running -= 1
            return value

        server.serve("some", handler, concurrency=3)
        values = await asyncio.gather(*[caller.call_async("some", at) for at in range(30)])
        assert values == list(range(30))
        assert most == 3

    asyncio.run(main())


def test_a_server_whose_loop_ends_is_closed_and_says_so_to_who_waits(pair):
    server, caller = pair
    begun = threading.Event()
    failed = []

    def call():
        try:
            caller.call("for ever", None)
        except vbus.TransportError as error:
            failed.append(error)

    async def main():
        async def handler(value):
            begun.set()
            await asyncio.Event().wait()

        server.serve("for ever", handler)
        thread = threading.Thread(target=call)
        thread.start()
        await asyncio.to_thread(begun.wait, WATCHDOG)
        return thread

    thread = asyncio.run(main())
    thread.join(WATCHDOG)
    assert len(failed) == 1
    until(lambda: caller.services() == [], "the caller knows")
    with pytest.raises(vbus.NoServer):
        caller.call("for ever", None)


def test_a_handler_may_be_an_object_that_is_called(pair):
    server, caller = pair

    class Plain:
        def __call__(self, value):
            return "plain", value

    class Waiting:
        async def __call__(self, value):
            await asyncio.sleep(0)
            return "waiting", value

    server.serve("plain", Plain())
    server.serve("waiting", Waiting())
    assert caller.call("plain", 1) == ["plain", 1]
    assert caller.call("waiting", 1) == ["waiting", 1]


def test_what_cannot_be_served_is_refused(node):
    with pytest.raises(TypeError, match="a handler is"):
        node.serve("x", 5)
    with pytest.raises(vbus.ConfigError, match="concurrency is 0"):
        node.serve("x", add, concurrency=0)
    with pytest.raises(vbus.ConfigError):
        node.serve("x", add, request=threading.Thread)
    with pytest.raises(TypeError, match=r"a str or a vbus\.Service"):
        node.call(5, 5)
    assert node.services() == []


def test_a_handler_may_call_its_own_node_and_others(pair):
    server, caller = pair
    server.serve("inner", lambda value: value + 1)
    server.serve("outer", lambda value: server.call("inner", value) + caller.call("outside", value))
    caller.serve("outside", lambda value: value * 10)

    async def waiting(value):
        return await server.call_async("outer", value)

    server.serve("waiting", waiting)
    assert caller.call("outer", 4) == 45
    assert caller.call("waiting", 4) == 45


@pytest.mark.contract("A node keeps subscribers with a callback, and servers, until closed")
def test_a_node_keeps_its_servers_until_closed(pair):
    server, caller = pair
    server.serve(ADD, add)
    gc.collect()
    assert caller.call(ADD, Add(1, 2)) == 3
    server.close()
    until(lambda: caller.services() == [], "the caller knows")
    with pytest.raises(vbus.NoServer):
        caller.call(ADD, Add(1, 2))


@pytest.mark.contract("Server and Watch work in `with` and in `async with`; closing twice is fine")
def test_leaving_with_closes_a_server_and_closing_twice_is_fine(pair):
    server, caller = pair
    with server.serve(ADD, add) as first:
        assert caller.call(ADD, Add(1, 2)) == 3
        assert not first.closed
    first.close()
    assert first.closed

    async def main():
        async with server.serve(ADD, add):
            assert await caller.call_async(ADD, Add(1, 2)) == 3

    asyncio.run(main())
    until(lambda: caller.services() == [], "the caller knows")
    with pytest.raises(vbus.NoServer):
        caller.call(ADD, Add(1, 2))


@pytest.mark.contract("None of them, nor Sample, can be pickled")
def test_a_server_and_a_stream_cannot_be_pickled(pair):
    server, caller = pair
    serving = server.serve(ADD, add)
    with pytest.raises(TypeError, match="open a node in the worker"):
        pickle.dumps(serving)
    with pytest.raises(TypeError, match="open a node in the worker"):
        pickle.dumps(caller.call_stream(ADD, Add(1, 2)))


@pytest.mark.contract("`node.serve(service, handler, *, concurrency=1) -> Server` (`close()`, `stats()`)")
def test_a_server_counts(pair):
    server, caller = pair

    def handler(value):
        if value:
            raise ValueError("no")

    serving = server.serve("counted", handler)
    caller.call("counted", 0)
    with pytest.raises(vbus.RemoteError):
        caller.call("counted", 1)
    # The reply is there a moment before the count.
    until(lambda: serving.stats().running == 0, "the calls are over")
    expected = vbus.ServerStats("counted", begun=2, running=0, waiting=0, errors=1, refused=0)
    assert serving.stats() == expected
    serving.close()
    assert serving.stats() == expected
    assert isinstance(serving, vbus.Server)


# ---- who serves ---------------------------------------------------------------------------------


@pytest.mark.contract("`ServiceInfo`: `name request reply servers`")
def test_services_tells_of_every_service_its_types_and_who_serves_it(pair, join):
    server, caller = pair
    third = join("third")
    assert caller.services() == []
    server.serve(ADD, add)
    third.serve(ADD, add)
    third.serve("any", add)
    expected = [
        vbus.ServiceInfo("any", "", "", tuple(caller.services()[0].servers)),
        vbus.ServiceInfo("math/add", "{a:int,b:int}", "int", tuple(caller.services()[1].servers)),
    ]
    assert caller.services() == expected
    assert [peer.name for peer in expected[0].servers] == ["third"]
    assert sorted(peer.name for peer in expected[1].servers) == ["server", "third"]
    assert {peer.id for peer in server.services()[1].servers} == {server.id, third.id}
    third.close()
    until(
        lambda: (
            [(info.name, [peer.name for peer in info.servers]) for info in caller.services()]
            == [("math/add", ["server"])]
        ),
        "the caller knows that the third is gone",
    )


def test_calls_are_shared_out_among_servers(pair, join):
    server, caller = pair
    third = join("third")
    server.serve("who", lambda value: "server")
    third.serve("who", lambda value: "third")
    assert {caller.call("who", None) for _ in range(4)} == {"server", "third"}


def test_a_call_goes_to_whoever_has_least_to_do(pair, join):
    server, caller = pair
    third = join("third")
    go_on, begun = threading.Event(), threading.Semaphore(0)

    def handler(value):
        begun.release()
        go_on.wait(WATCHDOG)
        return "busy"

    server.serve("who", handler)
    thread = threading.Thread(target=caller.call, args=("who", None))
    thread.start()
    assert begun.acquire(timeout=WATCHDOG)
    third.serve("who", lambda value: "idle")
    assert [caller.call("who", None) for _ in range(5)] == ["idle"] * 5
    go_on.set()
    thread.join(WATCHDOG)


@pytest.mark.contract(
    "`NoServer` means it did not run (at once, when no server is known after the meeting time)"
)
def test_a_call_that_nobody_serves_fails_at_once(node):
    with pytest.raises(vbus.NoServer, match="nobody serves 'math/add'") as caught:
        node.call(ADD, Add(1, 2))
    assert caught.value.topic == "math/add"
    assert isinstance(caught.value, ConnectionError)
    with pytest.raises(vbus.NoServer):
        node.call_stream(ADD, Add(1, 2))
    with pytest.raises(vbus.NoServer):
        asyncio.run(node.call_async(ADD, Add(1, 2)))


def test_a_fresh_node_knows_who_serves(pair, join):
    server, _ = pair
    server.serve(ADD, add)
    assert join("fresh").call(ADD, Add(1, 2)) == 3


def test_types_that_cannot_agree_are_no_server_and_the_field_is_named(pair):
    server, caller = pair
    server.serve(ADD, add)

    @dataclass
    class Other:
        a: int
        b: str

    with pytest.raises(vbus.NoServer, match="another type of request") as caught:
        caller.call("math/add", Other(1, "2"), request=Other)
    assert caught.value.field == "b"
    with pytest.raises(vbus.NoServer, match="another type of reply, int, than the caller, str"):
        caller.call("math/add", Add(1, 2), reply=str)
    assert caller.call("math/add", Add(1, 2), reply=float) == 3.0


def test_a_server_that_fits_is_found_among_those_that_do_not(pair, join):
    server, caller = pair
    server.serve("x", str, request=int, reply=str)
    join("third").serve("x", lambda value: value, request=str, reply=str)
    assert [caller.call("x", "a", request=str) for _ in range(3)] == ["a"] * 3


# ---- what goes wrong ----------------------------------------------------------------------------


class Outer:
    class Inner(Exception):
        pass


@pytest.mark.contract("An exception in the handler reaches the caller as `RemoteError`")
@pytest.mark.parametrize("kind", ["function", "coroutine", "generator", "asynchronous generator"])
def test_an_exception_in_the_handler_reaches_the_caller_and_the_server_lives_on(pair, kind):
    server, caller = pair

    def fail(value):
        if value == "fail":
            raise Outer.Inner("it broke")
        return value

    async def fail_later(value):
        return fail(value)

    def fail_in_stream(value):
        yield fail(value)

    async def fail_in_stream_later(value):
        yield fail(value)

    handlers = [fail, fail_later, fail_in_stream, fail_in_stream_later]
    kinds = ["function", "coroutine", "generator", "asynchronous generator"]
    server.serve("fails", dict(zip(kinds, handlers))[kind])

    def call(value):
        return (
            next(caller.call_stream("fails", value)) if "generator" in kind else caller.call("fails", value)
        )

    with pytest.raises(vbus.RemoteError) as caught:
        call("fail")
    error = caught.value
    assert (error.type, error.message) == ("Outer.Inner", "it broke")
    assert error.traceback.startswith("Traceback (most recent call last):\n")
    assert "in fail\n" in error.traceback
    assert "vbus/service" not in error.traceback
    assert error.server == server.services()[0].servers[0]
    assert isinstance(error.server, vbus.Peer)
    assert error.topic == "fails"
    assert str(error).startswith("Outer.Inner: it broke, in the server of 'fails' (node 'server', pid ")
    assert call("go on") == "go on"


@pytest.mark.contract("A reply of the wrong type is a `RemoteError` of type `EncodeError`")
def test_a_reply_of_the_wrong_type_is_a_remote_error_of_type_encode_error(pair):
    server, caller = pair
    server.serve("wrong", lambda value: "text", reply=int)
    with pytest.raises(vbus.RemoteError, match="must be int, not str 'text'") as caught:
        caller.call("wrong", None)
    assert caught.value.type == "EncodeError"


def test_a_request_that_cannot_be_read_is_a_remote_error_of_type_decode_error(pair):
    server, caller = pair
    server.serve(ADD, add)
    with pytest.raises(vbus.RemoteError, match="field 'a'") as caught:
        caller.call("math/add", {"a": "one", "b": 2})
    assert caught.value.type == "DecodeError"
    assert caller.call(ADD, Add(1, 2)) == 3


def test_a_request_of_the_wrong_type_is_not_sent(pair):
    server, caller = pair
    serving = server.serve(ADD, add)
    with pytest.raises(vbus.EncodeError, match="math/add"):
        caller.call(ADD, "text")
    with pytest.raises(vbus.EncodeError):
        caller.call_stream(ADD, "text")
    assert serving.stats().begun == 0


def test_a_reply_that_cannot_be_read_is_a_decode_error_of_the_caller(pair):
    server, caller = pair
    server.serve("x", lambda value: "text")
    with pytest.raises(vbus.DecodeError):
        caller.call("x", None, reply=int)


def test_whatever_a_handler_raises_reaches_the_caller(pair):
    server, caller = pair

    class Mute(Exception):
        def __str__(self):
            raise RuntimeError("not even that")

    raised = [
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        Mute(),
        ValueError("\udc80" + "x" * 200_000),
    ]

    def handler(at):
        raise raised[at]

    server.serve("raise", handler)
    for at, error in enumerate(raised):
        with pytest.raises(vbus.RemoteError) as caught:
            caller.call("raise", at)
        assert caught.value.type == type(error).__qualname__
    assert len(caught.value.message) <= 70_000


@pytest.mark.contract("`timeout` is for the reply, in a stream for each next item")
def test_the_timeout_of_a_call_is_for_the_reply(pair):
    server, caller = pair
    go_on = threading.Event()
    server.serve("slow", lambda value: go_on.wait(WATCHDOG))
    with pytest.raises(vbus.Timeout, match=r"0\.01 s are over") as caught:
        caller.call("slow", None, timeout=0.01)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.topic == "slow"
    with pytest.raises(vbus.Timeout):
        asyncio.run(caller.call_async("slow", None, timeout=0.01))
    with pytest.raises(vbus.Timeout):
        caller.call("slow", None, timeout=0)
    go_on.set()
    assert caller.call("slow", None, timeout=WATCHDOG) is True
    for call in (caller.call, caller.call_stream):
        with pytest.raises(ValueError, match="timeout is -1"):
            call("slow", None, timeout=-1)


def test_a_request_that_nobody_waits_for_any_more_does_not_run(pair):
    server, caller = pair
    begun, go_on, ran = threading.Event(), threading.Event(), []

    def handler(value):
        ran.append(value)
        begun.set()
        go_on.wait(WATCHDOG)

    serving = server.serve("one", handler)
    thread = threading.Thread(target=caller.call, args=("one", "first"))
    thread.start()
    assert begun.wait(WATCHDOG)
    with pytest.raises(vbus.Timeout):
        caller.call("one", "second", timeout=0.01)
    exchange = server._exchange
    until(lambda: any(exchange._early.values()), "the cancel is there before its call")
    go_on.set()
    thread.join(WATCHDOG)
    caller.call("one", "third")
    assert ran == ["first", "third"]
    until(lambda: serving.stats().running == 0, "all are done")
    assert not any(exchange._early.values())
    assert not exchange.running


# ---- big values ---------------------------------------------------------------------------------


def test_arrays_arrive_as_views_and_their_memory_is_given_back(pair):
    server, caller = pair
    image = np.arange(1_000_000, dtype="u4").reshape(1000, 1000)
    owners = []

    def handler(array):
        owners.append((array.flags.owndata, array.flags.writeable))
        return array.T.copy()

    server.serve("transpose", handler, request=np.ndarray, reply=np.ndarray)
    reply = caller.call("transpose", image)
    assert owners == [(False, False)]
    assert (reply == image.T).all()
    assert not reply.flags.owndata
    assert not reply.flags.writeable

    def held(node):
        exchange = node._exchange
        return exchange._replies.stats_dict()["held"] + sum(
            serving.subscriber.stats_dict()["held"] for serving in exchange.servings.values()
        )

    assert held(caller) == 1
    del reply
    gc.collect()
    until(lambda: held(caller) == held(server) == 0, "the memory is back")


def test_a_request_is_held_no_longer_than_its_handler_runs(pair):
    server, caller = pair
    serving = server.serve("sum", lambda array: int(array.sum()))
    for _ in range(3):
        assert caller.call("sum", np.ones(1000, dtype="u1")) == 1000
    until(lambda: serving._serving.subscriber.stats_dict()["held"] == 0, "nothing is held")


def test_a_reply_larger_than_the_node_may_keep_is_a_remote_error(join):
    server, caller = join("server", memory=4 << 20), join("caller")
    server.serve("zeros", bytes)
    with pytest.raises(vbus.RemoteError) as caught:
        caller.call("zeros", 64 << 20)
    assert caught.value.type == "TooLarge"
    assert len(caller.call("zeros", 1 << 20)) == 1 << 20


# ---- many ---------------------------------------------------------------------------------------


def test_a_thousand_calls_from_many_threads_each_get_their_reply(pair):
    server, caller = pair
    server.serve("echo", lambda value: value, concurrency=4)
    wrong = []

    def work(number):
        for at in range(50):
            value = number * 1000 + at
            if caller.call("echo", value) != value:
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WATCHDOG)
        assert not thread.is_alive()
    assert wrong == []


@pytest.mark.contract("`node.call(service, value, *, timeout=None) -> R`, `call_async`, `call_stream`")
def test_ten_thousand_calls_at_once_in_one_loop_each_get_their_reply(pair):
    server, caller = pair
    server.serve("echo", lambda value: value, concurrency=2)

    async def main():
        return await asyncio.gather(*[caller.call_async("echo", at) for at in range(10_000)])

    assert asyncio.run(main()) == list(range(10_000))


def test_threads_and_loops_call_at_the_same_time(pair):
    server, caller = pair
    server.serve("echo", lambda value: value, concurrency=2)
    failed = []

    def in_thread():
        try:
            assert [caller.call("echo", at) for at in range(300)] == list(range(300))
        except BaseException as error:
            failed.append(error)

    async def some():
        for at in range(300):
            assert await caller.call_async("echo", at) == at

    def in_loop():
        try:
            asyncio.run(some())
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=target) for target in (in_thread, in_loop) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WATCHDOG)
        assert not thread.is_alive()
    assert failed == []


def test_a_blocking_call_in_a_loop_that_awaits_another_call_gets_its_reply(pair):
    server, caller = pair
    go_on = threading.Event()
    server.serve("slow", lambda value: go_on.wait(WATCHDOG))
    server.serve("echo", lambda value: value)

    async def main():
        waiting = asyncio.ensure_future(caller.call_async("slow", None))
        await asyncio.sleep(0)
        assert caller.call("echo", 1) == 1
        go_on.set()
        assert await waiting

    asyncio.run(main())


def test_a_nudge_ends_a_wait_also_after_others_looked(node):
    subscriber = node.subscriber("a")
    subscriber.fileno()
    for _ in range(2):
        subscriber.nudge()
        assert subscriber.receive_nowait() is None
        begin = time.monotonic()
        subscriber.wait(WATCHDOG)
        assert time.monotonic() < begin + WATCHDOG
    subscriber.nudge()
    subscriber.forget_nudge()
    assert subscriber.receive_nowait() is None
    readable, _, _ = select.select([subscriber], [], [], 0)
    assert readable == []
    subscriber.close()
    with pytest.raises(vbus.Closed):
        subscriber.wait(0)


def test_a_server_that_was_too_slow_once_is_asked_again(pair, join):
    server, caller = pair
    go_on = threading.Event()
    server.serve("who", lambda value: go_on.wait(WATCHDOG) and "server")
    with pytest.raises(vbus.Timeout):
        caller.call("who", None, timeout=0.01)
    go_on.set()
    third = join("third")
    third.serve("who", lambda value: "third")
    assert {caller.call("who", None) for _ in range(4)} == {"third"}
    remote = next(it for it in caller._exchange._by_name["who"] if it.peer[0] == server.id)
    assert 0 < remote.suspect_until - time.monotonic() <= 1
    remote.suspect_until = time.monotonic()
    assert {caller.call("who", None) for _ in range(4)} == {"server", "third"}
    assert remote.timeouts == 0


def test_tasks_that_wait_for_room_at_a_server_go_on_as_it_takes_requests(pair):
    server, caller = pair
    begun, go_on = threading.Event(), threading.Event()

    def handler(value):
        begun.set()
        go_on.wait(WATCHDOG)
        return value

    serving = server.serve("slow", handler)

    async def main():
        tasks = [asyncio.ensure_future(caller.call_async("slow", at)) for at in range(3000)]
        await asyncio.to_thread(begun.wait, WATCHDOG)
        remote = caller._exchange._by_name["slow"][0]
        while serving.stats().waiting < 1024:  # noqa: ASYNC110 it is another thread that takes it there
            await asyncio.sleep(0)
        with pytest.raises(vbus.Timeout, match="takes no request"):
            await caller.call_async("slow", "late", timeout=0.01)
        for at in (1500, 2000, 2999):
            tasks[at].cancel()
        go_on.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(
            result == at or (at in (1500, 2000, 2999) and isinstance(result, asyncio.CancelledError))
            for at, result in enumerate(results)
        )
        assert not remote.under_way

    asyncio.run(main())
    assert serving.stats().begun == 2997


# ---- cancellation -------------------------------------------------------------------------------


def test_cancelling_a_call_cancels_the_coroutine_at_the_server_and_no_other(pair):
    server, caller = pair

    async def main():
        begun, cancelled, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def handler(value):
            if value == "wait":
                await go_on.wait()
                return "done"
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        server.serve("wait", handler, concurrency=2)
        other = asyncio.ensure_future(caller.call_async("wait", "wait"))
        task = asyncio.ensure_future(caller.call_async("wait", "for ever"))
        await asyncio.wait_for(begun.wait(), WATCHDOG)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(cancelled.wait(), WATCHDOG)
        go_on.set()
        assert await asyncio.wait_for(other, WATCHDOG) == "done"

    asyncio.run(main())


def test_calls_that_are_cancelled_at_any_moment_disturb_no_other(pair, chance):
    server, caller = pair
    server.serve("echo", lambda value: value, concurrency=2)

    async def main():
        for _ in range(30):
            tasks = [asyncio.ensure_future(caller.call_async("echo", at)) for at in range(30)]
            doomed = set(chance.sample(range(30), 15))
            for at in doomed:
                for _ in range(chance.randrange(3)):
                    await asyncio.sleep(0)
                tasks[at].cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            for at, result in enumerate(results):
                assert result == at or (at in doomed and isinstance(result, asyncio.CancelledError))

    asyncio.run(main())
    until(lambda: not caller._exchange._pending, "nothing is under way")


# ---- closing ------------------------------------------------------------------------------------


def test_calls_of_a_node_that_closes_raise_closed(pair):
    server, caller = pair
    begun, go_on = threading.Semaphore(0), threading.Event()
    server.serve("slow", lambda value: (begun.release(), go_on.wait(WATCHDOG)), concurrency=8)
    errors = []

    def call():
        try:
            caller.call("slow", None)
        except vbus.Error as error:
            errors.append(error)

    def stream():
        try:
            next(caller.call_stream("slow", None))
        except vbus.Error as error:
            errors.append(error)

    def in_loop():
        try:
            asyncio.run(caller.call_async("slow", None))
        except vbus.Error as error:
            errors.append(error)

    threads = [threading.Thread(target=target) for target in (call, call, stream, in_loop)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert begun.acquire(timeout=WATCHDOG)
    caller.close()
    for thread in threads:
        thread.join(WATCHDOG)
        assert not thread.is_alive()
    assert [type(error) for error in errors] == [vbus.Closed] * 4
    go_on.set()
    for what in (lambda: caller.call("slow", None), lambda: caller.serve("x", add), caller.services):
        with pytest.raises(vbus.Closed):
            what()


@pytest.mark.parametrize("whole_node", [False, True])
def test_a_server_that_closes_answers_what_runs_and_refuses_the_rest(pair, whole_node):
    server, caller = pair
    begun, go_on = threading.Event(), threading.Event()

    def handler(value):
        begun.set()
        go_on.wait(WATCHDOG)
        return value

    serving = server.serve("slow", handler)
    results = {}

    def call(value):
        try:
            results[value] = caller.call("slow", value)
        except vbus.Error as error:
            results[value] = error

    first = threading.Thread(target=call, args=("first",))
    first.start()
    assert begun.wait(WATCHDOG)
    second = threading.Thread(target=call, args=("second",))
    second.start()
    until(lambda: serving.stats().waiting == 1, "the second request waits")
    closing = threading.Thread(target=(server if whole_node else serving).close, args=(WATCHDOG,))
    closing.start()
    second.join(WATCHDOG)
    assert isinstance(results["second"], vbus.NoServer)
    assert "is closing" in str(results["second"])
    until(lambda: caller.services() == [], "the server is not there any more")
    with pytest.raises(vbus.NoServer):
        caller.call("slow", "third")
    assert first.is_alive(), results
    go_on.set()
    first.join(WATCHDOG)
    assert results["first"] == "first"
    closing.join(WATCHDOG)
    assert not closing.is_alive()


def test_what_does_not_end_in_time_is_abandoned_and_its_caller_is_told(pair):
    server, caller = pair
    begun, go_on = threading.Event(), threading.Event()

    def handler(value):
        begun.set()
        go_on.wait(WATCHDOG)

    serving = server.serve("slow", handler)
    errors = []

    def call():
        try:
            caller.call("slow", None)
        except vbus.TransportError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert begun.wait(WATCHDOG)
    serving.close(linger=0)
    thread.join(WATCHDOG)
    assert "may have run" in str(errors[0])
    go_on.set()


def test_a_handler_may_close_its_own_server(pair):
    server, caller = pair
    servings = []

    def handler(value):
        servings[0].close()
        return "closed"

    servings.append(server.serve("suicide", handler))
    with pytest.raises(vbus.TransportError):
        caller.call("suicide", None)
    until(lambda: caller.services() == [], "the caller knows")
    with pytest.raises(vbus.NoServer):
        caller.call("suicide", None)


def test_a_node_with_servers_that_is_forgotten_ends_its_threads(join, domain, meeting):
    before = _thread._count()
    node = vbus.Node("forgotten", domain=domain, shm=meeting)
    caller = join("caller")

    async def waiting(value):
        return value

    node.serve("function", lambda value: value, concurrency=3)
    node.serve("coroutine", waiting)
    assert caller.call("function", 1) == caller.call("coroutine", 1) == 1
    del node
    gc.collect()
    until(lambda: caller.services() == [], "its servers are gone")
    # That of the caller's log and its keeper remain.
    until(lambda: _thread._count() <= before + 2, "its threads ended")
