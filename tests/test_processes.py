"""Frozen processes, forked ones, and Ctrl-C: everyone else follows the contract."""

import multiprocessing
import os
import signal
import sys
import threading
import time

import pytest
from helpers import PROGRAMS, WATCHDOG, Survivor, check_conservation, is_asleep, start, until

sys.path.insert(0, str(PROGRAMS))
from patterns import is_whole, pattern

import vbus

__all__ = ["start"]

PROMPT = 5.0
"""A watchdog for what takes half a second at most."""

COUNTER = """
    subscriber = vbus.Node(hear()).subscriber("t", bytes, **eval(hear()))
    say("ready")
    for sample in subscriber:
        if not is_whole(sample):
            say("torn")
        if sample.nbytes == 0:
            break
    stats = subscriber.stats()
    say("took", stats.delivered, "lost", stats.lost + sum(stats.dropped.values()))
    hear()
"""


def counter(start, name: str, **asked: object):
    program = start(COUNTER)
    program.tell(name)
    program.tell(asked)
    program.expect("ready")
    return program


# ---- frozen -------------------------------------------------------------------------------------


@pytest.mark.contract(
    'blocks only if its contract is `"block"`, and then only this publisher',
    "naming the subscriber that is full",
)
def test_a_frozen_subscriber_blocks_its_publisher_by_contract_and_nobody_else(join, start):
    node = join()
    publisher = node.publisher("t", bytes, depth=4, block_timeout=0.1)
    faithful = counter(start, "faithful")
    loose = counter(start, "loose", on_full="drop_oldest")
    dropper = join("other").publisher("t", bytes, on_full="drop_newest", depth=4)
    sequence = 0

    def publish(nbytes: int = 1000) -> None:
        nonlocal sequence
        publisher.publish(pattern(publisher.id, sequence, nbytes))
        sequence += 1

    publish()
    until(lambda: publisher.stats().waiting == 0, "both took it")
    faithful.stop()
    for _ in range(4):
        publish()
    for _ in range(2):
        with pytest.raises(vbus.Timeout, match='"faithful" has no room for "t": 4 of 4 samples wait') as info:
            publish()
    links = {link.peer.name: link for link in publisher.stats().links}
    assert (info.value.topic, info.value.subscriber) == ("t", links["faithful"].subscriber)
    assert sequence == publisher.stats().published, "no sequence number was used"

    # Other publishers of the same node, other topics, and subscribers that drop, go on.
    aside, listener = node.publisher("aside", int), node.subscriber("aside", int)
    aside.publish(7)
    assert listener.receive(WATCHDOG).value == 7
    for at in range(10):
        dropper.publish(pattern(dropper.id, at, 100))
    until(lambda: link_to(dropper, "loose").waiting == 0, "the other subscriber goes on")
    assert link_to(dropper, "faithful").dropped == {"drop_newest": 6}
    check_conservation(dropper)
    faithful.go_on()
    until(lambda: dropper.stats().waiting == 0, "it goes on")
    until(lambda: publisher.stats().waiting == 0, "it goes on")
    for _ in range(20):
        publish()
    publish(0)
    faithful.expect("took", sequence + 4, "lost", 6)
    assert loose.hear().startswith("took")
    check_conservation(publisher)


def link_to(publisher: vbus.Publisher, name: str) -> vbus.Link:
    return next(link for link in publisher.stats().links if link.peer.name == name)


def test_a_publisher_blocked_by_a_frozen_subscriber_goes_on_with_it_and_loses_nothing(join, start):
    publisher = join().publisher("t", bytes, depth=4)
    faithful = counter(start, "faithful")
    faithful.stop()

    def publish_all() -> None:
        for sequence in range(500):
            publisher.publish(pattern(publisher.id, sequence, 1000))
        publisher.publish(b"")

    publishing = Survivor(publish_all)
    until(lambda: publisher.stats().published == 4 and is_asleep(publishing.native_id), "it waits")
    faithful.go_on()
    faithful.expect("took", 501, "lost", 0)
    publishing.join()
    assert publisher.stats().blocked_seconds > 0
    check_conservation(publisher)


@pytest.mark.contract("a frozen neighbour is skipped")
def test_a_frozen_bystander_delays_the_others_half_a_second_at_most(join, start):
    bystander = start("""
        node = vbus.Node("bystander")
        endpoints = [node.publisher("t"), node.subscriber("t")]
        say("ready")
        hear()
        node.wait_for_peers(2)
        say("alive", len(node.peers()))
        hear()
    """)
    bystander.expect("ready")
    early = join("early")
    bystander.stop()
    start_time = time.monotonic()
    late = join("late")
    endpoints = [node.publisher("x", int) for node in (early, late)]
    endpoints += [node.subscriber("x", int) for node in (early, late)]
    for node in (early, late):
        for _ in range(20):  # a frozen one is waited for once, not every time
            node.publisher("y").close()
            node.subscriber("y").close()
    assert time.monotonic() - start_time < PROMPT
    endpoints[0].publish(1)
    assert [subscriber.receive(WATCHDOG).value for subscriber in endpoints[2:]] == [1, 1]
    bystander.go_on()
    until(lambda: len(late.peers()) == 2, "it meets whom it missed")
    bystander.tell("go")
    bystander.expect("alive", 2)


def test_a_subscriber_frozen_while_it_joins_gets_everything_from_then_on(join, start):
    publisher = join().publisher("t", bytes, depth=8)
    frozen = start("""
        node = vbus.Node("late")
        say("ready")
        subscriber = node.subscriber("t", bytes)
        sample = subscriber.receive()
        say("got", sample.sequence, sample.lost)
        hear()
    """)
    frozen.expect("ready")
    frozen.stop()
    for _ in range(3):
        publisher.publish(b"nobody, or it, is there")
    frozen.go_on()
    assert publisher.wait_for_subscribers(1, WATCHDOG)
    publisher.publish(b"now")
    first = int(frozen.hear().split()[1])
    assert first <= 3


# ---- forked -------------------------------------------------------------------------------------


def in_child(run) -> None:
    """Runs in a forked child, which must end well; what it raises is the test's."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            run()
        except BaseException as error:
            os.write(writing, repr(error).encode()[:4000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    assert os.waitpid(child, 0)[1] == 0
    assert said == ""


@pytest.mark.contract("every call raises `vbus.ForkError`")
def test_every_call_in_a_forked_child_is_refused_but_the_harmless(join):
    node, other = join("mother"), join("other")
    publisher, subscriber = node.publisher("t"), node.subscriber("t")
    late = other.subscriber("t")
    publisher.publish(b"one")
    publisher.publish(b"two")
    sample = subscriber.receive(WATCHDOG)
    view = sample.payload
    loan = publisher.loan(10)
    refused = {
        "node.publisher": lambda: node.publisher("x"),
        "node.subscriber": lambda: node.subscriber("x"),
        "node.peers": node.peers,
        "node.topics": node.topics,
        "node.services": node.services,
        "node.explain": node.explain,
        "node.stats": node.stats,
        "node.wait_for_peers": lambda: node.wait_for_peers(0, 0),
        "node.closed": lambda: node.closed,
        "node.addresses": lambda: node.addresses,
        "publisher.publish bytes": lambda: publisher.publish(b"x"),
        "publisher.publish value": lambda: publisher.publish({"x": 1}),
        "publisher.loan": lambda: publisher.loan(1),
        "publisher.loan_array": lambda: publisher.loan_array(1).__enter__(),
        "publisher.subscribers": lambda: publisher.subscribers,
        "publisher.wait_for_subscribers": lambda: publisher.wait_for_subscribers(0, 0),
        "publisher.flush": lambda: publisher.flush(0),
        "publisher.stats": publisher.stats,
        "loan.publish": loan.publish,
        "subscriber.receive": lambda: subscriber.receive(0),
        "subscriber.receive_nowait": subscriber.receive_nowait,
        "subscriber.receive_many": lambda: subscriber.receive_many(timeout=0),
        "subscriber.next": lambda: next(subscriber),
        "subscriber.publishers": lambda: subscriber.publishers,
        "subscriber.wait_for_publishers": lambda: subscriber.wait_for_publishers(0, 0),
        "subscriber.fileno": subscriber.fileno,
        "subscriber.stats": subscriber.stats,
    }

    def child() -> None:
        for name, call in refused.items():
            with pytest.raises(vbus.ForkError, match="after the fork"):
                assert call() is None, f"{name} is not refused"
        assert all([node.id, node.name, publisher.id, subscriber.id])
        assert all([repr(node), repr(publisher), repr(subscriber)])
        assert view == b"one"
        for it in (subscriber, publisher, node):
            it.close()
            with it:
                pass

    in_child(child)
    assert subscriber.receive(0).value == b"two"
    loan.buffer[:] = b"from a loan"[:10]
    loan.publish()
    assert bytes(subscriber.receive(0).payload) == b"from a loan"[:10]
    assert [s.sequence for s in late.receive_many(timeout=0)] == [0, 1, 2]
    assert len(node.peers()) == 1
    check_conservation(publisher, subscriber, late)


@pytest.mark.contract("its exit and its garbage collection included, disturbs the parent")
def test_a_child_that_frees_everything_and_exits_disturbs_nothing(join, start):
    # In a process of its own, which ends as Python ends: finalizers, atexit, gc.
    mother = start("""
        node = vbus.Node("mother")
        publisher, subscriber = node.publisher("t", bytes), node.subscriber("t", bytes)
        publisher.publish(bytes(1 << 20))
        publisher.publish(b"second")
        held = subscriber.receive()
        loan = publisher.loan(1 << 20)
        for way in ("del", "exit", "nothing"):
            child = os.fork()
            if child == 0:
                if way == "del":
                    del node, publisher, subscriber, held, loan
                    gc.collect()
                if way == "exit":
                    with node, publisher, subscriber:
                        pass
                sys.exit(0)
            assert os.waitpid(child, 0)[1] == 0, way
        assert bytes(held.payload) == bytes(1 << 20)
        loan.publish()
        assert bytes(subscriber.receive().payload) == b"second"
        assert subscriber.receive().sequence == 2
        say("fine", subscriber.stats().held)
    """)
    mother.expect("fine", 1)
    mother.finish()


@pytest.mark.contract("A view of a sample stays valid in the child")
def test_a_view_stays_valid_in_the_child_as_long_as_the_parent_holds_it(join):
    node = join()
    publisher, subscriber = node.publisher("t", bytes, depth=2), node.subscriber("t", bytes)
    publisher.publish(pattern(publisher.id, 0, 1 << 20))
    sample = subscriber.receive(WATCHDOG)
    view = sample.payload
    go, wait = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(go[1], b"!")
        os.read(wait[0], 1)
        whole = view == pattern(sample.publisher, 0, 1 << 20)
        os._exit(0 if whole else 1)
    os.read(go[0], 1)
    for sequence in range(1, 9):  # the slots of others are used again and again
        publisher.publish(pattern(publisher.id, sequence, 1 << 20))
        assert is_whole(subscriber.receive(WATCHDOG))
    os.write(wait[1], b"!")
    assert os.waitpid(child, 0)[1] == 0
    for end in go + wait:
        os.close(end)


def test_a_forked_child_opens_its_own_node_while_the_parents_threads_are_busy(join, domain, meeting):
    # Locks that other threads of the parent hold at the fork are held for ever in the child.
    node = join("mother")
    publisher, subscriber = node.publisher("up", int), node.subscriber("down", int)
    loops = [node.publisher("loop", bytes, on_full="drop_oldest"), node.subscriber("loop", bytes)]
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            loops[0].publish(bytes(100))
            loops[1].receive_nowait()
            node.subscriber("come/and/go").close()  # hears from its neighbours, so it cannot flood them

    threads = [Survivor(busy) for _ in range(3)]

    def child() -> None:
        nonlocal node, publisher, subscriber
        with vbus.Node("child", domain=domain, shm=meeting) as own:
            assert own.wait_for_peers(1, WATCHDOG)
            mother = next(peer for peer in own.peers() if peer.name == "mother")
            assert mother.pid == os.getppid()
            down, up = own.publisher("down", int), own.subscriber("up", int)
            assert down.wait_for_subscribers(1, WATCHDOG)
            assert up.wait_for_publishers(1, WATCHDOG)
            down.publish(os.getpid())
            assert up.receive(WATCHDOG).value == os.getpid()
            # The parent's go while the child's own live.
            node = publisher = subscriber = None
            loops.clear()

    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            signal.alarm(30)
            try:
                child()
                os._exit(0)
            except BaseException as error:
                os.write(2, repr(error).encode())
                os._exit(1)
        value = subscriber.receive(WATCHDOG).value
        assert value == pid
        assert publisher.wait_for_subscribers(1, WATCHDOG)
        publisher.publish(value)
        assert os.waitpid(pid, 0)[1] == 0
    stop.set()
    for thread in threads:
        thread.join()
    until(lambda: not node.peers(), "the children left")


def work(connection, domain: str, meeting: str) -> None:
    """What a worker of multiprocessing does."""
    with (
        vbus.Node("worker", domain=domain, shm=meeting) as node,
        node.subscriber("tasks", int) as tasks,
        node.publisher("results", int) as results,
    ):
        connection.send("ready")
        for sample in tasks:
            if sample.value < 0:
                break
            results.publish(sample.value**2)
    connection.send("done")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_multiprocessing_work(method, join, domain, meeting):
    node = join("boss")
    tasks, results = node.publisher("tasks", int), node.subscriber("results", int)
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    worker = context.Process(target=work, args=(there, domain, meeting))
    worker.start()
    assert here.poll(WATCHDOG)
    assert here.recv() == "ready"
    for number in range(100):
        tasks.publish(number)
        assert results.receive(WATCHDOG).value == number**2
    tasks.publish(-1)
    worker.join(WATCHDOG)
    assert worker.exitcode == 0
    assert here.recv() == "done"
    until(lambda: not node.peers(), "the worker left")
    check_conservation(tasks, results)
    worker.close()
    for end in (here, there):
        end.close()


# ---- Ctrl-C -------------------------------------------------------------------------------------

WAITS = {
    "receive": "subscriber.receive()",
    "receive with timeout": "subscriber.receive(1000)",
    "receive_many": "subscriber.receive_many()",
    "iteration": "next(iter(subscriber))",
    "publish": "full.publish(b'x')",
    "publish value": "full_any.publish({'x': 1})",
    "loan": "full.loan(10).publish()",
    "wait_for_subscribers": "publisher.wait_for_subscribers(5)",
    "wait_for_publishers": "subscriber.wait_for_publishers(5)",
    "wait_for_peers": "node.wait_for_peers(5)",
}


@pytest.mark.contract("Ctrl-C works at once")
@pytest.mark.parametrize("threads", [0, 3], ids=["alone", "beside other threads"])
@pytest.mark.parametrize("wait", WAITS)
def test_ctrl_c_ends_a_wait_at_once_and_all_is_as_before(wait, threads, start):
    program = start(f"""
        node = vbus.Node("waiter")
        publisher, subscriber = node.publisher("t"), node.subscriber("t")
        full, reader = node.publisher("full", bytes, depth=1), node.subscriber("full")
        full_any, reader_any = node.publisher("full/any", depth=1), node.subscriber("full/any")
        full.publish(b"first")
        full_any.publish(b"first")
        for _ in range({threads}):
            threading.Thread(target=threading.Event().wait, daemon=True).start()
        for turn in range(20):
            try:
                say("waits")
                {WAITS[wait]}
            except KeyboardInterrupt:
                say("interrupted")
            hear()
        publisher.publish("still works")
        assert subscriber.receive(0).value == "still works"
        for it in (reader, reader_any):
            assert (it.receive(0).sequence, it.receive_nowait()) == (0, None)
        assert full.publish(b"second") == full_any.publish(2) == 1
        assert reader.receive(0).sequence == 1
        say("fine")
        node.close()
    """)
    for turn in range(20):
        program.expect("waits")
        if turn % 2:  # at once, wherever it is; else when it sleeps
            until(lambda: is_asleep(program.pid, program.pid), "it sleeps")
        program.signal(signal.SIGINT)
        program.expect("interrupted", seconds=PROMPT)
        program.tell("on")
    program.expect("fine")
    program.finish()


def test_ctrl_c_during_the_flow_loses_and_repeats_nothing(start, tmp_path):
    program = start("""
        node = vbus.Node("flow")
        publisher, subscriber = node.publisher("t", depth=4), node.subscriber("t")
        stop = threading.Event()
        published = 0
        def publish():
            global published
            while not stop.is_set():
                published = publisher.publish(published) + 1
        thread = threading.Thread(target=publish)
        thread.start()
        stop_file = hear()
        inside = False
        def on_signal(*_):
            global inside
            say("interrupted")
            if inside:
                inside = False
                raise KeyboardInterrupt
        signal.signal(signal.SIGINT, on_signal)
        say("flows")
        due = taken_away = 0
        while not os.path.exists(stop_file):
            try:
                inside = True
                sample = subscriber.receive()
                inside = False
            except KeyboardInterrupt:
                taken_away += 1
                continue
            # Between the return and the name a signal may take a sample away: that is Python's, not ours.
            if not due <= sample.sequence <= due + taken_away:
                say("expected", due, "got", sample.sequence)
            due, taken_away = sample.sequence + 1, 0
            if sample.lost:
                say("lost", sample.lost)
        stop.set()
        while thread.is_alive() or subscriber.stats().waiting:
            subscriber.receive_nowait()
        stats = subscriber.stats()
        assert stats.sent == published and not stats.lost and not stats.dropped, stats
        say("fine")
        node.close()
    """)
    program.tell(tmp_path / "stop")
    program.expect("flows")
    for _ in range(100):
        program.signal(signal.SIGINT)
        program.expect("interrupted", seconds=PROMPT)
    (tmp_path / "stop").touch()
    program.expect("fine")
    program.finish()
