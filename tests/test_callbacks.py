"""Callbacks: one thread of the node calls them, in order, whatever they raise, until somebody closes."""

import asyncio
import functools
import gc
import logging
import queue
import threading
import weakref

import pytest
from helpers import WATCHDOG, Survivor, check_conservation, is_asleep, start, until
from test_publish_async import wake_ups

import vbus

__all__ = ["start"]

pytestmark = pytest.mark.paths("shm", "udp")

RECEIVES = {
    "receive": lambda subscriber: subscriber.receive(0),
    "receive_nowait": lambda subscriber: subscriber.receive_nowait(),
    "receive_many": lambda subscriber: subscriber.receive_many(timeout=0),
    "iteration": lambda subscriber: next(iter(subscriber)),
    "next": next,
    "receive_async": lambda subscriber: asyncio.run(subscriber.receive_async(0)),
    "receive_many_async": lambda subscriber: asyncio.run(subscriber.receive_many_async(timeout=0)),
    "async iteration": aiter,
    "fileno": lambda subscriber: subscriber.fileno(),
}


@pytest.mark.contract("is called on one thread of the node, in order; an exception in it is logged")
def test_callbacks_of_a_node_are_called_on_one_thread_in_order(node):
    heard: queue.Queue = queue.Queue()
    for topic in ("a", "b"):
        node.subscriber(topic, callback=lambda sample: heard.put((sample, threading.get_ident())))
    publishers = {topic: node.publisher(topic) for topic in ("a", "b")}
    for number in range(500):
        for publisher in publishers.values():
            publisher.publish(number)
    got = [heard.get(timeout=WATCHDOG) for _ in range(1000)]
    for topic in ("a", "b"):
        assert [sample.value for sample, _ in got if sample.topic == topic] == list(range(500))
    threads = {thread for _, thread in got}
    assert len(threads) == 1
    assert threading.get_ident() not in threads


@pytest.mark.contract(
    "an exception in it is logged with its topic and counted, and the next sample is delivered"
)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, vbus.Closed, GeneratorExit])
def test_whatever_a_callback_raises_is_logged_and_counted_and_the_next_sample_comes(node, error, caplog):
    heard: queue.Queue = queue.Queue()

    def callback(sample):
        heard.put(sample.value)
        if sample.value % 2:
            raise error("of the callback")

    subscriber = node.subscriber("call/*", callback=callback)
    publisher = node.publisher("call/me")
    for number in range(10):
        publisher.publish(number)
    assert [heard.get(timeout=WATCHDOG) for _ in range(10)] == list(range(10))
    subscriber.close()
    assert subscriber.stats().callback_errors == 5
    records = [record for record in caplog.records if record.name == "vbus"]
    assert len(records) == 5
    for record in records:
        assert record.levelno == logging.ERROR
        assert "call/me" in record.getMessage()
        assert record.exc_info[0] is error


def test_a_log_handler_that_raises_stops_no_callback(node, monkeypatch):
    heard: queue.Queue = queue.Queue()

    def break_down(record):
        raise RuntimeError("a handler")

    logger = logging.getLogger("vbus")
    logger.addFilter(break_down)
    try:

        def callback(sample):
            heard.put(sample.value)
            raise ValueError

        subscriber = node.subscriber("t", callback=callback)
        publisher = node.publisher("t")
        for number in range(3):
            publisher.publish(number)
        assert [heard.get(timeout=WATCHDOG) for _ in range(3)] == [0, 1, 2]
        subscriber.close()
        assert subscriber.stats().callback_errors == 3
    finally:
        logger.removeFilter(break_down)


@pytest.mark.contract("A coroutine function is `TypeError`; `receive` on such a subscriber is `ConfigError`.")
def test_a_callback_that_cannot_be_called_plainly_is_refused(node):
    async def coroutine_function(sample):
        pass

    async def generator_function(sample):
        yield

    class Awaited:
        async def __call__(self, sample):
            pass

    partial = functools.partial(coroutine_function)
    for callback in (coroutine_function, generator_function, Awaited(), Awaited().__call__, partial, 5, "f"):
        with pytest.raises(TypeError, match="callback"):
            node.subscriber("t", callback=callback)
    assert node.topics() == []
    with node.publisher("t") as publisher:
        assert publisher.subscribers == 0


@pytest.mark.contract("A coroutine function is `TypeError`; `receive` on such a subscriber is `ConfigError`.")
@pytest.mark.parametrize("way", RECEIVES)
def test_no_way_to_receive_takes_from_a_callback(node, way):
    heard: queue.Queue = queue.Queue()
    subscriber = node.subscriber("t", callback=heard.put)
    with pytest.raises(vbus.ConfigError, match="callback"):
        RECEIVES[way](subscriber)
    node.publisher("t").publish(1)
    assert heard.get(timeout=WATCHDOG).value == 1


@pytest.mark.contract("A node keeps subscribers with a callback, and servers, until closed")
def test_a_node_keeps_a_subscriber_with_a_callback_until_it_is_closed(node):
    heard: queue.Queue = queue.Queue()
    kept = weakref.ref(node.subscriber("t", callback=lambda sample: heard.put(sample.value)))
    publisher = node.publisher("t")
    gc.collect()
    assert kept() is not None
    publisher.publish(1)
    assert heard.get(timeout=WATCHDOG) == 1
    kept().close()
    until(lambda: gc.collect() or kept() is None, "a closed subscriber is let go")
    publisher.publish(2)
    assert publisher.subscribers == 0
    assert heard.empty()


def test_a_subscriber_with_a_callback_that_is_refused_leaves_nothing_behind(node):
    with pytest.raises(vbus.TopicError):
        node.subscriber("no//topic", callback=print)
    with pytest.raises(vbus.ConfigError):
        node.subscriber("t", callback=print, depth=0)


def test_after_close_returned_no_callback_begins(join):
    for _ in range(50):
        node = join()
        closed = threading.Event()
        late = []
        subscriber = node.subscriber(
            "t", callback=lambda _, is_late=closed.is_set, late=late: late.append(is_late())
        )
        publisher = node.publisher("t", on_full="drop_oldest")
        stop = threading.Event()

        def publish(publisher=publisher, stop=stop):
            while not stop.is_set():
                publisher.publish(b"x")

        publishing = Survivor(publish)
        until(lambda late=late: late, "a callback")
        subscriber.close()
        closed.set()
        assert publisher.publish(b"y") is not None
        stop.set()
        publishing.join()
        node.close()
        assert not any(late)
        check_conservation(publisher, subscriber)


def test_a_callback_may_publish_open_and_close_what_it_likes(node):
    heard: queue.Queue = queue.Queue()

    def first(sample):
        with node.publisher("second", history=1) as publisher:
            publisher.publish(sample.value + 1)
            inner.append(node.subscriber("second", callback=second))
        own.close()

    def second(sample):
        heard.put(sample.value)
        node.close()

    inner: list = []
    own = node.subscriber("first", callback=first)
    publisher = node.publisher("first")
    publisher.publish(1)
    assert heard.get(timeout=WATCHDOG) == 2
    until(lambda: node.closed, "the callback closes the node")
    node.close()
    assert own.closed
    assert inner[0].closed


def test_closing_a_node_waits_for_a_callback_that_runs_and_no_other_begins(join):
    node = join()
    began, go_on = threading.Event(), threading.Event()
    heard = []

    def callback(sample):
        heard.append(sample.value)
        began.set()
        go_on.wait(WATCHDOG)

    subscriber = node.subscriber("t", callback=callback)
    publisher = node.publisher("t")
    for number in range(3):
        publisher.publish(number)
    assert began.wait(WATCHDOG)
    closing = Survivor(node.close)
    until(lambda: subscriber.closed, "the node closes")
    go_on.set()
    closing.join()
    assert heard == [0]


def test_who_is_flooded_does_not_keep_others_from_their_samples(node):
    heard: queue.Queue = queue.Queue()
    node.subscriber("flood", callback=lambda sample: None)
    node.subscriber("drop", callback=lambda sample: heard.put(sample.value))
    stop = threading.Event()

    def flood():
        with node.publisher("flood") as publisher:
            while not stop.is_set():
                publisher.publish(b"x")

    flooding = Survivor(flood)
    with node.publisher("drop") as publisher:
        for number in range(20):
            publisher.publish(number)
            assert heard.get(timeout=WATCHDOG) == number
    stop.set()
    flooding.join()


def test_a_node_with_callbacks_sleeps_while_nothing_comes(node):
    threads: queue.Queue = queue.Queue()
    for number in range(100):
        node.subscriber(f"quiet/{number}", callback=lambda _: threads.put(threading.get_native_id()))
    node.publisher("quiet/0").publish(b"x")
    thread = threads.get(timeout=WATCHDOG)
    until(lambda: is_asleep(thread), "the thread sleeps")
    before = wake_ups(thread)
    with pytest.raises(vbus.Timeout):
        node.subscriber("silent").receive(0.2)
    assert wake_ups(thread) == before
    assert sum(its.name == "vbus-callbacks" for its in threading.enumerate()) == 1


def test_memory_of_a_sample_comes_back_when_the_callback_is_over(node):
    heard: queue.Queue = queue.Queue()
    subscriber = node.subscriber("t", callback=lambda sample: heard.put(sample.nbytes))
    publisher = node.publisher("t")
    publisher.publish(bytes(1 << 20))
    assert heard.get(timeout=WATCHDOG) == 1 << 20
    until(lambda: subscriber.stats().held == 0, "nothing is held")


@pytest.mark.parametrize(
    "ending", ["", "sys.exit()", "node.close()", "del node, subscriber", "os.kill(os.getpid(), 2)"]
)
@pytest.mark.parametrize("busy", ["pass", "time.sleep(0.2)", "publisher.publish(1)"])
def test_a_program_with_callbacks_ends_well(start, ending, busy):
    program = start(
        f"""
        node = vbus.Node("ends")
        began = threading.Event()
        def callback(sample):
            began.set()
            {busy}
        subscriber = node.subscriber("t", callback=callback)
        publisher = node.publisher("t", on_full="drop_newest")
        publisher.publish(0)
        began.wait()
        try:
            {ending or "pass"}
            time.sleep(0.01)
        except KeyboardInterrupt:
            pass
        """,
        options=["-X", "dev"],
    )
    program.finish()


def test_the_child_of_a_fork_is_called_back_by_nobody_and_ends_well(start):
    program = start(
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        import queue
        heard = queue.Queue()
        node = vbus.Node("parent")
        subscriber = node.subscriber("t", callback=lambda sample: heard.put((os.getpid(), sample.value)))
        publisher = node.publisher("t")
        publisher.publish(0)
        heard.get()
        pid = os.fork()
        if pid == 0:
            subscriber.close()
            node.close()
            with vbus.Node("child") as own:
                own_heard = queue.Queue()
                own.subscriber("u", callback=lambda sample: own_heard.put(sample.value))
                own.publisher("u").publish("mine")
                assert own_heard.get(timeout=10) == "mine"
            del subscriber, node
            gc.collect()
            sys.exit()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        publisher.publish(1)
        assert heard.get(timeout=10) == (os.getpid(), 1)
        node.close()
        """,
        options=["-X", "dev"],
    )
    program.finish()


def test_ctrl_c_reaches_the_main_thread_while_callbacks_run(start):
    program = start(
        """
        node = vbus.Node("busy")
        subscriber = node.subscriber("t", callback=lambda sample: say(sample.value))
        node.publisher("t").publish("called")
        try:
            node.subscriber("silent").receive()
        except KeyboardInterrupt:
            say("interrupted")
        node.close()
        """
    )
    program.expect("called")
    until(lambda: is_asleep(program.pid, program.pid), "it waits")
    program.signal(2)
    program.expect("interrupted")
    program.finish()
