"""Calls among neighbours that talk nonsense, pretend, ask for much and take nothing."""

import asyncio
import itertools
import threading

import numpy as np
import pytest
from helpers import WATCHDOG, start, until

import vbus
from vbus._vbus import Publisher as CorePublisher
from vbus._vbus import Subscriber as CoreSubscriber
from vbus.codec.plain import encoder
from vbus.service import exchange as exchange_module
from vbus.service import wire

__all__ = ["start"]  # a fixture
pytestmark = pytest.mark.timeout(60)

encode = encoder("hostile")


class Stranger:
    """A node that speaks the language of calls, and not the truth."""

    def __init__(self, node):
        self._core = node._core
        self._ways = {}

    def way(self, topic):
        if topic not in self._ways:
            way = CorePublisher(self._core, topic, shape="", raw=False, encoder=lambda it: it,
                                qos={"depth": 1024})  # fmt: skip
            assert way.wait_for_subscribers(1, WATCHDOG)
            self._ways[topic] = way
        return self._ways[topic]

    def says(self, topic, kind, call=0, amount=0, value=None):
        self.way(topic).publish_message(kind, call, amount, encode(value), None)

    def serve_topic(self):
        """That of the only server in the domain."""
        [(_, topic, _, _)] = self._core.subscriber_tuples(wire.SERVE)
        return topic


@pytest.fixture
def trio(join):
    return join("server"), join("caller"), Stranger(join("stranger"))


NONSENSE = [
    None, 5, "text", b"raw", [], [1], {}, {"server": 5}, {"server": []}, {"server": "x", "calls": 5},
    {"server": {}, "calls": [[]]}, np.zeros(3), {"type": 5, "message": [], "traceback": {}},
]  # fmt: skip


def test_a_reply_of_whoever_was_not_asked_answers_nothing(trio):
    server, caller, stranger = trio
    begun, go_on, results = threading.Event(), threading.Event(), []

    def handler(value):
        begun.set()
        go_on.wait(WATCHDOG)
        return "true"

    server.serve("slow", handler)
    thread = threading.Thread(target=lambda: results.append(caller.call("slow", None)))
    thread.start()
    assert begun.wait(WATCHDOG)
    for number in range(100):
        stranger.says(wire.REPLY + caller.id, wire.VALUE, number, value="forged")
    go_on.set()
    thread.join(WATCHDOG)
    assert results == ["true"]


def test_nobody_says_of_anothers_server_that_it_leaves(trio):
    server, caller, stranger = trio
    serving = server.serve("echo", lambda value: value)
    assert caller.call("echo", 1) == 1
    stranger.says(wire.REPLY + caller.id, wire.LEAVING, value={"server": serving.id, "calls": []})
    assert [caller.call("echo", at) for at in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("kind", range(14))
def test_nonsense_of_every_kind_disturbs_neither_side(trio, kind):
    server, caller, stranger = trio

    async def later(value):
        return value

    server.serve("echo", lambda value: value, request=int)
    topics = [stranger.serve_topic(), wire.REPLY + caller.id, wire.REPLY + server.id]
    topics += [wire.CONTROL + server.id, wire.CONTROL + caller.id]
    server.serve("later", later, request=int)
    assert caller.call("echo", 1) == server.call("echo", 1) == caller.call("later", 1) == 1
    topics.append(caller._exchange._by_name["later"][0].topic)
    for topic, value in itertools.product(topics, NONSENSE):
        stranger.says(topic, kind, 1, 2**32 - 1, value)
    for topic in topics:
        way = stranger.way(topic)
        way.publish(("raw", (b"",), b""))
        way.publish(("ndarray", (b"12",), b"\x01" * 13 + b"nonsense"))
        way.publish(("unheard of", (b"12",), b"\x01" * 13))
    assert [caller.call("echo", at) for at in range(3)] == [0, 1, 2]
    assert [caller.call("later", at) for at in range(3)] == [0, 1, 2]
    assert asyncio.run(caller.call_async("echo", 3)) == server.call("later", 3) == 3


class Broken:
    pass


def refuse(_payload):
    raise OSError("the codec is broken")


def test_a_codec_that_raises_ends_no_server(trio):
    server, caller, _ = trio

    async def later(value):
        return value

    if not hasattr(Broken, "registered"):
        vbus.register_codec(Broken, name="broken-request", encode=lambda value: b"", decode=refuse)
        Broken.registered = True
    server.serve("echo", lambda value: value)
    server.serve("later", later)
    for name in ("echo", "later"):
        for _ in range(2):
            with pytest.raises(vbus.RemoteError, match="the codec is broken"):
                caller.call(name, Broken())
        assert caller.call(name, 1) == 1


def test_an_exception_whose_class_has_an_endless_name_reaches_the_caller(trio):
    server, caller, _ = trio
    strange = type("X" * 200_000, (Exception,), {})

    def handler(value):
        if value:
            raise strange("message")
        return "fine"

    server.serve("strange", handler)
    with pytest.raises(vbus.RemoteError, match="message") as caught:
        caller.call("strange", 1)
    assert len(caught.value.type) < 70_000
    assert caller.call("strange", 0) == "fine"


def test_a_caller_that_grants_more_than_may_wait_gets_no_more(trio):
    server, _, stranger = trio
    given = []

    def numbers(n):
        for at in range(n):
            given.append(at)
            yield at

    server.serve("numbers", numbers)
    node = stranger._core.id
    CoreSubscriber(stranger._core, wire.REPLY + node, shape="", raw=False, decoder=lambda *_: None,
                   spin=None, qos={})  # fmt: skip
    stranger.says(stranger.serve_topic(), wire.STREAM, 7, 2**32 - 1, 10**6)
    until(lambda: len(given) >= wire.WINDOW, "as many as may wait were given")
    stranger.says(wire.CONTROL + server.id, wire.CREDIT, 7, 2**32 - 1)
    until(lambda: len(given) >= 2 * wire.WINDOW, "and as many again")
    running = server._exchange.running
    until(lambda: running[node, 7].sent == running[node, 7]._allowed, "the stream waits")
    assert len(given) == 2 * wire.WINDOW


def test_a_caller_that_takes_no_replies_is_not_kept_in_memory_for_ever(trio, monkeypatch, caplog):
    server, caller, stranger = trio
    monkeypatch.setattr(exchange_module, "UNTAKEN", 100)
    serving = server.serve("echo", lambda value: value)
    topic = stranger.serve_topic()
    for number in range(1000):
        # Nobody there subscribes to its replies.
        stranger.says(topic, wire.CALL, number)
    until(lambda: serving.stats().begun + serving.stats().refused == 1000, "all were looked at")
    [box] = server._exchange._mailboxes.values()
    assert len(box._waiting) == serving.stats().begun == 100
    assert [record.getMessage() for record in caplog.records if "cannot be answered" in record.message] == [
        f"a call of 'echo' cannot be answered: node {stranger._core.id} has not taken 100 replies before it"
    ]
    assert caller.call("echo", 1) == 1


def test_a_server_that_sends_more_than_it_may_is_left(trio):
    server, caller, stranger = trio
    begun, go_on = threading.Event(), threading.Event()

    def numbers(n):
        begun.set()
        go_on.wait(WATCHDOG)
        yield 0

    server.serve("numbers", numbers)
    stream = caller.call_stream("numbers", None)
    assert begun.wait(WATCHDOG)
    number = stream.pending.number
    for _ in range(wire.WINDOW + 1):
        stranger.says(wire.REPLY + caller.id, wire.ITEM, number, value=1)
    got = []
    with pytest.raises(vbus.TransportError, match="sends more than it may"):
        got.extend(stream)
    assert got == [1] * wire.WINDOW
    go_on.set()


def test_what_a_caller_asked_before_it_died_keeps_no_thread_of_the_server(node, start):
    begun, go_on, ran = threading.Event(), threading.Event(), []

    def numbers(n):
        ran.append(n)
        begun.set()
        go_on.wait(WATCHDOG)
        yield from range(n)

    serving = node.serve("numbers", numbers)
    program = start("""
        node = vbus.Node("caller")
        streams = [node.call_stream("numbers", 10**9 + at) for at in range(3)]
        say("asked")
        hear()
    """)
    program.expect("asked")
    assert begun.wait(WATCHDOG)
    until(lambda: serving.stats().waiting == 2, "the others wait")
    program.process.kill()
    until(lambda: not node.peers(), "it is gone")
    until(lambda: not node._exchange._mailboxes, "and forgotten")
    go_on.set()
    until(lambda: serving.stats().waiting == serving.stats().running == 0, "nothing is left to do")
    assert ran == [10**9]
    assert list(node.call_stream("numbers", 3, timeout=WATCHDOG)) == [0, 1, 2]
