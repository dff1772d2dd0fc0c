"""Everything ends well: in any order of destruction, by any exit, whatever is alive and whoever waits.

Programs run with Python's own checks on (`-X dev`), and must end with their own exit status, without a
hang and without a word on stderr.
"""

import signal
import textwrap

import pytest
from helpers import WATCHDOG, start, until

__all__ = ["start"]

SETTLED = """
    import itertools, weakref
    import numpy

    node = vbus.Node("all")
    publisher, subscriber = node.publisher("t"), node.subscriber("t")
    array_subscriber = node.subscriber("array")
    publisher.publish(bytes(range(256)) * 4096)
    node.publisher("array", history=1)
    arrays = node.publisher("array")
    arrays.publish(numpy.arange(100_000))
    sample = subscriber.receive()
    memoryview_ = sample.payload
    array = array_subscriber.receive().value
    loan = publisher.loan(1 << 20)
    buffer = loan.buffer
"""


def run(start, source: str, *, options: list[str] = (), status: int = 0, errors: str = "") -> None:
    program = start(source, options=["-X", "dev", *options])
    program.finish(status, errors)


# ---- orders of destruction ----------------------------------------------------------------------


def test_every_order_of_destruction_is_fine(start):
    # 7! orders take too long one by one; those of what hangs together are all tried.
    run(
        start,
        """
        import itertools, numpy
        whole = bytes(range(256)) * 64
        numbers = numpy.arange(4096)

        def make():
            things = {"node": vbus.Node("all")}
            node = things["node"]
            publisher = things["publisher"] = node.publisher("t")
            subscriber = things["subscriber"] = node.subscriber("t")
            publisher.publish(whole)
            publisher.publish(numbers)
            sample = things["sample"] = subscriber.receive()
            things["view"] = sample.payload
            things["array"] = subscriber.receive().value
            loan = things["loan"] = publisher.loan(len(whole))
            things["buffer"] = loan.buffer
            return things

        def check(things):
            if "view" in things:
                assert things["view"] == whole
            if "array" in things:
                assert (things["array"] == numbers).all()
            if "buffer" in things:
                things["buffer"][:] = whole

        groups = [
            ("node", "publisher", "subscriber", "sample", "view"),
            ("node", "subscriber", "sample", "array"),
            ("node", "publisher", "loan", "buffer"),
        ]
        for group in groups:
            for order in itertools.permutations(group):
                things = make()
                for name in order:
                    del things[name]
                    check(things)
                things.clear()
        gc.collect()
        with vbus.Node("last") as node:
            assert node.peers() == []
        """,
    )


def test_every_order_of_closing_is_fine(start):
    run(
        start,
        """
        import itertools
        whole = bytes(range(256)) * 64
        for order in itertools.permutations(range(5)):
            node = vbus.Node("all")
            publisher, subscriber = node.publisher("t"), node.subscriber("t")
            publisher.publish(whole)
            publisher.publish(whole)
            sample = subscriber.receive()
            view = sample.payload
            loan = publisher.loan(len(whole))
            buffer = loan.buffer
            ends = [node.close, publisher.close, subscriber.close, sample.release, loan.discard]
            for at in order:
                ends[at]()
                assert view == whole
            for end in ends:
                end()
            assert view == whole
        """,
    )


def test_every_order_of_destruction_with_a_loop_that_waits_is_fine(start):
    run(
        start,
        """
        import asyncio, itertools, warnings
        whole = bytes(range(256)) * 64

        async def until_both_wait(tasks):
            for _ in range(3):
                await asyncio.sleep(0)
            assert not any(task.done() for task in tasks)

        def make():
            things = {"node": vbus.Node("all"), "loop": asyncio.new_event_loop()}
            node, loop = things["node"], things["loop"]
            loop.slow_callback_duration = 60  # that a machine is busy is no complaint
            subscriber = things["subscriber"] = node.subscriber("t")
            publisher = things["publisher"] = node.publisher("t", depth=1)
            silent = things["silent"] = node.subscriber("silent")
            heard = node.subscriber("t", callback=lambda sample: None)
            publisher.publish(whole)
            sample = things["sample"] = loop.run_until_complete(subscriber.receive_async())
            things["view"] = sample.payload
            publisher.publish(whole)
            tasks = [loop.create_task(publisher.publish_async(whole)) for _ in range(2)]
            tasks += [loop.create_task(silent.receive_async()), loop.create_task(node.wait_for_peers_async())]
            loop.run_until_complete(until_both_wait(tasks))
            for task in tasks:
                task._log_destroy_pending = False
            return things

        names = ("node", "publisher", "subscriber", "sample", "view", "loop")
        for order in list(itertools.permutations(names))[::17]:
            things = make()
            node = things["node"]
            for name in order:
                thing = things.pop(name)
                if name == "loop":
                    thing.close()
                del thing
                if "view" in things:
                    assert things["view"] == whole
            things.clear()
            node.close()
            del node
            gc.collect()
        """,
    )


@pytest.mark.parametrize(
    "ending", ["return", "sys.exit()", "raise KeyboardInterrupt", "os.kill(os.getpid(), 2)"]
)
def test_a_program_that_ends_amid_awaits_ends_well(start, ending):
    run(
        start,
        f"""
        import asyncio
        node = vbus.Node("waits")
        publisher, subscriber = node.publisher("t", depth=1), node.subscriber("t")
        silent = node.subscriber("silent")

        async def main():
            asyncio.get_running_loop().slow_callback_duration = 60  # that a machine is busy is no complaint
            await publisher.publish_async(0)
            tasks = [asyncio.create_task(wait) for wait in (
                publisher.publish_async(1), publisher.publish_async(2), silent.receive_async(),
                silent.receive_many_async(), node.wait_for_peers_async())]
            for _ in range(3):
                await asyncio.sleep(0)
            {ending}
            await asyncio.sleep(10)

        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            pass
        """,
    )


def test_a_cycle_through_everything_is_collected(start):
    run(
        start,
        """
        import weakref
        class Owner:
            pass
        def make():
            owner = Owner()
            owner.node = vbus.Node("cycle")
            owner.publisher, owner.subscriber = owner.node.publisher("t"), owner.node.subscriber("t")
            owner.publisher.publish(b"x" * 1000)
            owner.sample = owner.subscriber.receive()
            owner.loan = owner.publisher.loan(10)
            owner.self = owner
            return weakref.ref(owner), weakref.ref(owner.node)
        refs = [ref for _ in range(20) for ref in make()]
        gc.collect()
        assert not any(ref() for ref in refs)
        with vbus.Node("alone") as node:
            assert node.peers() == []
        """,
    )


# ---- the end of the interpreter -----------------------------------------------------------------

SCENES = {
    "nothing else": "",
    "a thread blocked in receive": """
        threading.Thread(target=subscriber.receive, daemon=True).start()
    """,
    "a thread blocked in iteration": """
        threading.Thread(target=lambda: list(subscriber), daemon=True).start()
    """,
    "a thread blocked in publish": """
        full, reader = node.publisher("full", depth=1), node.subscriber("full")
        full.publish(1)
        threading.Thread(target=full.publish, args=(2,), daemon=True).start()
    """,
    "a thread blocked in wait_for_peers": """
        threading.Thread(target=node.wait_for_peers, args=(5,), daemon=True).start()
    """,
    "a thread that publishes": """
        fast, slow = node.publisher("fast", on_full="drop_oldest"), node.subscriber("fast")
        def publish():
            while True:
                fast.publish(bytes(1000))
        threading.Thread(target=publish, daemon=True).start()
    """,
    "threads that publish and receive": """
        fast, slow = node.publisher("fast"), node.subscriber("fast")
        def publish():
            while True:
                fast.publish(bytes(100_000))
        threading.Thread(target=publish, daemon=True).start()
        threading.Thread(target=lambda: [None for _ in slow], daemon=True).start()
    """,
    "a thread that opens nodes": """
        def open_nodes():
            while True:
                with vbus.Node("another"):
                    pass
        threading.Thread(target=open_nodes, daemon=True).start()
    """,
    "an object that outlives its module": """
        class Late:
            def __init__(self, **things):
                self.__dict__.update(things)
            def __del__(self):
                for end in ("close", "release", "discard"):
                    for it in list(self.__dict__.values()):
                        if hasattr(it, end):
                            getattr(it, end)()
        late = Late(node=node, publisher=publisher, subscriber=subscriber, sample=sample, loan=loan)
        late.late = late
    """,
    "an exit handler that uses it": """
        import atexit
        def last():
            with vbus.Node("last") as node, node.publisher("t") as publisher:
                publisher.publish(1)
        atexit.register(last)
    """,
}

CLOSED_IS_FINE = """
threading.excepthook = lambda its: its.exc_type is vbus.Closed or threading.__excepthook__(its)
"""

EXITS = {
    "falls off the end": ("", 0, ""),
    "sys.exit": ("sys.exit(7)", 7, ""),
    "os._exit": ("os._exit(8)", 8, ""),
    "sys.exit in a loop": ("publisher.publish(1)\nfor sample in subscriber:\n    sys.exit(9)", 9, ""),
    # Who closes under another's feet wakes it with Closed; at the end of the program nobody is woken.
    "sys.exit in with": (
        CLOSED_IS_FINE + "with node, publisher, subscriber, sample, loan:\n    sys.exit(10)",
        10,
        "",
    ),
}


@pytest.mark.parametrize("exit_", EXITS)
@pytest.mark.parametrize("scene", SCENES)
def test_a_program_ends_with_everything_alive(scene, exit_, start):
    if scene in ("a thread blocked in receive", "a thread blocked in iteration") and "loop" in exit_:
        exit_ = "sys.exit"  # the thread would take the sample
    source, status, errors = EXITS[exit_]
    parts = (SETTLED, SCENES[scene], source)
    run(start, "\n".join(map(textwrap.dedent, parts)), status=status, errors=errors)


@pytest.mark.parametrize("how", ["raise", "in a loop", "in with"])
def test_a_program_that_fails_shows_its_own_error_and_nothing_else(how, start):
    ways = {
        "raise": "raise SystemError('mine')",
        "in a loop": "publisher.publish(1)\nfor sample in subscriber:\n    raise SystemError('mine')",
        "in with": "with node, publisher, subscriber, sample, loan:\n    raise SystemError('mine')",
    }
    hook = "sys.excepthook = lambda kind, error, trace: sys.stderr.write(f'{kind.__name__} {error}')"
    source = "\n".join([textwrap.dedent(SETTLED), hook, ways[how]])
    run(start, source, status=1, errors="SystemError mine")


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_program_ended_by_a_signal_ends_by_it(number, start):
    program = start(
        SETTLED
        + "    signal.signal(signal.SIGINT, signal.SIG_DFL)\n    say('waits')\n    subscriber.receive()"
    )
    program.expect("waits")
    program.signal(getattr(signal, number))
    program.finish(-getattr(signal, number))


@pytest.mark.parametrize("scene", ["blocked", "busy"])
def test_a_neighbour_of_a_program_that_ends_sees_it_leave_and_keeps_what_it_holds(scene, join, start):
    node = join()
    publisher, subscriber = node.publisher("down", on_full="drop_oldest"), node.subscriber("up")
    program = start("""
        node = vbus.Node("leaves")
        up, down = node.publisher("up"), node.subscriber("down")
        up.publish(b"x" * 100_000)
        threading.Thread(target=lambda: [say("got") for _ in down], daemon=True).start()
        hear()
    """)
    sample = subscriber.receive(WATCHDOG)
    if scene == "busy":
        for number in range(100):
            publisher.publish(number)
    program.tell("end")
    program.finish()
    until(lambda: not node.peers(), "it left")
    assert bytes(sample.payload) == b"x" * 100_000
    publisher.publish(b"goes on")


def test_nodes_close_in_any_thread_while_others_use_them(start):
    run(
        start,
        """
        for turn in range(40):
            node, other = vbus.Node("a"), vbus.Node("b")
            publisher, subscriber = node.publisher("t", on_full="drop_oldest"), other.subscriber("t")
            answers = []
            def publish():
                try:
                    while True:
                        publisher.publish(bytes(1000))
                except vbus.Closed:
                    answers.append("publisher")
            def receive():
                try:
                    while True:
                        subscriber.receive()
                except vbus.Closed:
                    answers.append("subscriber")
            def iterate():
                list(subscriber)
                answers.append("iteration")
            threads = [threading.Thread(target=it) for it in (publish, publish, receive, receive, iterate)]
            for thread in threads:
                thread.start()
            ends = [node.close, other.close] if turn % 2 else [publisher.close, subscriber.close]
            closers = [threading.Thread(target=end) for end in ends + ends]
            for closer in closers:
                closer.start()
            for thread in threads + closers:
                thread.join()
            assert sorted(answers) == ["iteration", "publisher", "publisher", "subscriber", "subscriber"]
            node.close(), other.close()
        """,
    )
