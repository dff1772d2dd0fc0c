"""Calls between processes: those that die, freeze, fork, end or come again."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from helpers import WATCHDOG, Belongings, start, until

import vbus
from vbus.service.exchange import LONGEST_SUSPECT_SECONDS

__all__ = ["start"]  # a fixture
pytestmark = pytest.mark.timeout(90)

SERVER = """
node = vbus.Node("server")
def work(value):
    if value == "sleep":
        say("sleeping")
        time.sleep(1000)
    if value == "die":
        os._exit(9)
    return value
def numbers(n):
    try:
        yield from range(n)
    finally:
        say("stopped")
node.serve("work", work, concurrency=4)
node.serve("numbers", numbers, concurrency=4)
say("ready")
while hear() != "end":
    pass
node.close()
"""


class Calling(threading.Thread):
    """A call in a thread; `error` is what came of it."""

    def __init__(self, call) -> None:
        super().__init__(daemon=True)
        self._call, self.error, self.result = call, None, None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._call()
        except BaseException as error:
            self.error = error

    def outcome(self):
        self.join(WATCHDOG)
        assert not self.is_alive(), "the call hangs"
        return self.error


def start_server(node, start, source=SERVER, *, others=0):
    """A server besides `others`, once the node knows it."""
    program = start(source)
    program.expect("ready")
    until_served(node, others + 1)
    return program


def until_served(node, count):
    """The node knows so many servers of "work": on a busy machine it learns late who came, and who died."""

    def known():
        return sum(len(service.servers) for service in node.services() if service.name == "work")

    until(lambda: known() == count, f"it knows {count} servers")


@pytest.fixture
def server(node, start):
    return start_server(node, start)


@pytest.mark.contract("`TransportError` that the server went away and it may have")
@pytest.mark.parametrize("how", ["call", "call_async", "stream"])
def test_a_server_that_is_killed_in_the_middle_of_a_call_fails_it_at_once(node, server, how):
    def call():
        if how == "call":
            return node.call("work", "sleep")
        if how == "call_async":
            return asyncio.run(node.call_async("work", "sleep"))
        return list(node.call_stream("work", "sleep"))

    calling = Calling(call)
    server.expect("sleeping")
    server.kill()
    error = calling.outcome()
    assert isinstance(error, vbus.TransportError)
    assert isinstance(error, OSError)
    assert "may have run" in str(error)
    assert error.topic == "work"
    with pytest.raises(vbus.NoServer):
        node.call("work", 1)


def test_a_server_that_dies_of_a_call_fails_it_and_no_call_is_made_twice(node, server, start):
    other = start_server(node, start, others=1)
    with pytest.raises(vbus.TransportError):
        node.call("work", "die")
    assert [node.call("work", at) for at in range(10)] == list(range(10))
    assert sorted(program.process.poll() is None for program in (server, other)) in (
        [False, True],
        [True, True],
    )
    until(lambda: len(node.peers()) == 1, "one of them is left")


def test_items_that_came_before_a_server_was_killed_are_still_there(node, server):
    stream = node.call_stream("numbers", 10**12)
    assert next(stream) == 0
    exchange = node._exchange

    def waiting():
        exchange.take()
        return len(stream.pending.items) == 63

    until(waiting, "all that may be on its way is there")
    server.kill()
    got = []
    with pytest.raises(vbus.TransportError):
        got.extend(stream)
    assert got == list(range(1, 64))


def test_a_reply_that_came_before_its_server_was_killed_counts(node, server):
    assert node.call("work", "the way is open") == "the way is open"
    calling = asyncio.new_event_loop()
    try:
        future = calling.create_task(node.call_async("work", "reply"))
        # Sent, and nobody looks for the reply until the server is dead.
        calling.call_soon(calling.stop)
        calling.run_forever()
        calling.call_soon(calling.stop)
        calling.run_forever()
        until(lambda: node._exchange._replies.stats_dict()["sent"] == 2, "the reply is there")
        server.kill()
        assert calling.run_until_complete(future) == "reply"
    finally:
        calling.close()


def test_a_frozen_server_is_waited_for_as_long_as_the_timeout_says_and_others_are_called(
    node,
    server,
    start,
    monkeypatch,
):
    # Whoever timed out is spared for longer than the other one may take to start.
    monkeypatch.setattr("vbus.service.exchange.SUSPECT_SECONDS", LONGEST_SUSPECT_SECONDS)
    assert node.call("work", 1) == 1
    server.stop()
    with pytest.raises(vbus.Timeout):
        node.call("work", 2, timeout=0.05)
    with pytest.raises(vbus.Timeout):
        asyncio.run(node.call_async("work", 2, timeout=0.05))
    with pytest.raises(vbus.Timeout):
        next(node.call_stream("work", 2, timeout=0.05))
    other = start_server(node, start, SERVER.replace("return value", "return 'other'"), others=1)
    assert [node.call("work", at) for at in range(5)] == ["other"] * 5
    server.go_on()
    other.kill()
    # Until it is known to be dead it is asked, as the one that answered in time.
    until_served(node, 1)
    assert node.call("work", 3) == 3


def test_a_frozen_server_that_was_never_called_is_given_up_in_time(node, server):
    server.stop()
    with pytest.raises(vbus.Timeout):
        node.call("work", 1, timeout=0.05)
    with pytest.raises(vbus.Timeout):
        asyncio.run(node.call_async("work", 1, timeout=0.05))
    server.go_on()
    assert node.call("work", 2) == 2


def test_a_frozen_server_that_is_full_is_given_up_in_time(node, server):
    assert node.call("work", 1) == 1
    server.stop()
    stuck = [Calling(lambda at=at: node.call("work", at)) for at in range(8)]

    async def many():
        calls = [node.call_async("work", at, timeout=0.3) for at in range(3000)]
        return await asyncio.gather(*calls, return_exceptions=True)

    assert {type(result) for result in asyncio.run(many())} == {vbus.Timeout}
    server.go_on()
    for calling in stuck:
        assert calling.outcome() is None
    assert node.call("work", 2) == 2


def test_a_server_that_comes_again_is_called_again(node, server, start):
    for _ in range(3):
        assert node.call("work", 1) == 1
        server.kill()
        until_served(node, 0)
        server = start_server(node, start)
        assert [node.call("work", at) for at in range(3)] == [0, 1, 2]


def test_a_caller_that_is_killed_stops_its_streams_and_leaves_nothing(node, start):
    stopped, waiting = threading.Semaphore(0), threading.Semaphore(0)

    def numbers(n):
        try:
            yield from range(n)
        finally:
            stopped.release()

    async def later(n):
        try:
            for at in range(n):
                yield at
                await asyncio.sleep(0)
        finally:
            stopped.release()

    async def waits(value):
        waiting.release()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.release()

    node.serve("numbers", numbers)
    node.serve("later", later)
    node.serve("waits", waits)
    before = None
    for _ in range(5):
        program = start("""
            node = vbus.Node("caller")
            streams = [node.call_stream(name, 10**12) for name in ("numbers", "later", "waits")]
            next(streams[0]), next(streams[1])
            say("begun")
            hear()
        """)
        program.expect("begun")
        assert waiting.acquire(timeout=WATCHDOG)
        program.close()
        for _ in range(3):
            assert stopped.acquire(timeout=WATCHDOG)
        until(lambda: not node._exchange.running and not node.peers(), "it is forgotten")
        until(lambda: not node._exchange._mailboxes and not node._exchange._disposed, "so is the way to it")
        now = Belongings.of(os.getpid())
        before = before or now
        assert now.at_most(before)


def test_replies_that_a_frozen_caller_does_not_take_hold_up_no_other(node, start):
    node.serve("big", bytes)
    program = start("""
        node = vbus.Node("caller")
        import asyncio
        async def main():
            calls = [asyncio.ensure_future(node.call_async("big", 100)) for _ in range(3000)]
            await asyncio.sleep(0)
            say("asked")
            hear()
            say(sum(len(reply) for reply in await asyncio.gather(*calls)))
        asyncio.run(main())
    """)
    program.expect("asked")
    program.stop()
    assert len(node.call("big", 10, timeout=WATCHDOG)) == 10
    program.go_on()
    program.tell("go on")
    program.expect(300_000)


@pytest.mark.contract(
    "After `os.fork()` the child cannot use the parent's objects: every call raises `vbus.ForkError`"
)
def test_the_child_of_a_fork_can_use_none_of_it_and_disturbs_nothing(start):
    program = start("""
        node = vbus.Node("both")
        server = node.serve("echo", lambda value: value)
        async def later(value):
            return value
        node.serve("later", later)
        stream = node.call_stream("echo", 1)
        assert node.call("echo", 1) == node.call("later", 1) == 1
        child = os.fork()
        if child == 0:
            import asyncio
            refused = 0
            for attempt in (
                lambda: node.call("echo", 1),
                lambda: asyncio.run(node.call_async("echo", 1)),
                lambda: node.call_stream("echo", 1),
                lambda: next(stream),
                lambda: node.serve("more", len),
                lambda: node.services(),
                lambda: server.stats(),
            ):
                try:
                    attempt()
                except vbus.ForkError:
                    refused += 1
            server.close()
            repr(server)
            with server:
                pass
            stream.close()
            del stream
            node.close()
            gc.collect()
            say("refused", refused)
            sys.exit(0)
        os.waitpid(child, 0)
        say(next(stream), node.call("echo", 2), node.call("later", 3))
        node.close()
    """)
    program.expect("refused", 7)
    program.expect(1, 2, 3)
    program.finish()


@pytest.mark.parametrize("what", ["call", "stream", "async", "serve", "serve in a loop", "nothing closed"])
def test_a_program_may_end_with_calls_under_way(start, what):
    program = start(f"""
        what = {what!r}
        import asyncio
        node = vbus.Node("ends")
        begun = threading.Event()
        def sleep(value):
            begun.set()
            time.sleep(1000)
        async def sleep_later(value):
            begun.set()
            await asyncio.sleep(1000)
        node.serve("sleep", sleep)
        node.serve("later", sleep_later)
        def run(call):
            def quietly():
                try:
                    call()
                except vbus.Closed:
                    pass
            threading.Thread(target=quietly, daemon=True).start()
            begun.wait()
        if what == "call":
            run(lambda: node.call("sleep", 1))
        elif what == "stream":
            stream = node.call_stream("sleep", 1)
            begun.wait()
        elif what == "async":
            async def main():
                asyncio.ensure_future(node.call_async("later", 1))
                await asyncio.to_thread(begun.wait)
            asyncio.run(main())
        elif what == "serve":
            run(lambda: node.call("later", 1))
        elif what == "serve in a loop":
            async def main():
                node.serve("here", sleep_later)
                await asyncio.sleep(0)
            asyncio.run(main())
        node.close(linger=0) if what != "nothing closed" else None
        say("over")
    """)
    program.expect("over")
    program.process.stdin.close()
    assert program.process.wait(WATCHDOG) == 0
    assert program.errors() == ""


def test_ctrl_c_ends_a_call_at_once_and_the_node_is_as_before(start):
    program = start("""
        node = vbus.Node("both")
        begun = threading.Semaphore(0)
        go_on = threading.Event()
        node.serve("wait", lambda value: (begun.release(), go_on.wait()), concurrency=9)
        def tell():
            begun.acquire()
            say("begun")
        for call in (lambda: node.call("wait", 1), lambda: next(node.call_stream("wait", 1))):
            threading.Thread(target=tell).start()
            try:
                call()
            except KeyboardInterrupt:
                say("interrupted")
        go_on.set()
        node.call("wait", 1)
        say("well")
        node.close()
    """)
    for _ in range(2):
        program.expect("begun")
        program.signal(signal.SIGINT)
        program.expect("interrupted")
    program.expect("well")
    program.finish()


@pytest.mark.parametrize("others", [0, 2])
def test_the_handler_of_a_signal_may_call_in_the_midst_of_a_call(start, others):
    program = start(f"""
        node = vbus.Node("both")
        begun = threading.Semaphore(0)
        go_on = threading.Event()
        node.serve("wait", lambda value: (begun.release(), go_on.wait())[1], concurrency=9)
        node.serve("echo", lambda value: value)
        def handle(number, frame):
            say(node.call("echo", "handled"))
            if hear() == "enough":
                go_on.set()
        signal.signal(signal.SIGUSR1, handle)
        def tell():
            for _ in range({others} + 1):
                begun.acquire()
            say("begun")
        threading.Thread(target=tell).start()
        threads = [threading.Thread(target=node.call, args=("wait", 1)) for _ in range({others})]
        for thread in threads:
            thread.start()
        say(node.call("wait", 1))
        for thread in threads:
            thread.join()
        say(node.call("echo", "well"))
        node.close()
    """)
    program.expect("begun")
    for word in ("again", "again", "enough"):
        program.signal(signal.SIGUSR1)
        program.expect("handled")
        program.tell(word)
    program.expect("True")
    program.expect("well")
    program.finish()


@pytest.mark.parametrize("others", [0, 2])
@pytest.mark.parametrize(
    "work",
    [
        'assert node.call("echo", 1) == 1',
        'assert list(node.call_stream("count", 5)) == list(range(5))',
        'with node.serve("new", lambda value: value): assert node.call("new", 1) == 1',
    ],
    ids=["call", "stream", "first call"],
)
def test_the_handler_of_a_signal_may_call_at_every_step_of_a_call(start, work, others):
    program = start(f"""
        import dis, functools
        node = vbus.Node("both")
        node.serve("echo", lambda value: value)
        node.serve("count", lambda count: (i for i in range(count)))
        handled = reached = wanted = 0
        def handle(number, frame):
            global handled
            assert node.call("echo", "handled") == "handled"
            handled += 1
        signal.signal(signal.SIGUSR1, handle)

        @functools.cache
        def steps(code):
            # Where Python looks for signals: after calls, at the begin of functions and of rounds.
            found, before = set(), ""
            for it in dis.get_instructions(code):
                if before.startswith(("RESUME", "CALL", "JUMP_BACKWARD", "BEFORE_WITH")):
                    found.add(it.offset)
                before = it.opname
            return found
        def trace(frame, event, argument):
            global reached
            if "service" not in frame.f_code.co_filename:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode" and frame.f_lasti in steps(frame.f_code):
                reached += 1
                if reached == wanted:
                    signal.raise_signal(signal.SIGUSR1)
            return trace
        def work():
            {work}

        over = False
        def call():
            while not over:
                node.call("echo", 1)
        threads = [threading.Thread(target=call) for _ in range({others})]
        for thread in threads:
            thread.start()
        node.call("echo", 1)
        while handled == wanted:
            wanted, reached = wanted + 1, 0
            sys.settrace(trace)
            work()
            sys.settrace(None)
            if wanted % 10 == 0:
                say("on")
        say("done" if handled > 40 else handled)
        over = True
        for thread in threads:
            thread.join()
        node.close()
    """)
    while (said := program.hear()) == "on":
        pass
    assert said == "done"
    program.finish()


def test_ctrl_c_in_a_call_that_follows_another_threads_ends_that_alone(start):
    program = start("""
        node = vbus.Node("both")
        begun = threading.Semaphore(0)
        go_on = threading.Event()
        node.serve("wait", lambda value: (begun.release(), go_on.wait()), concurrency=9)
        leading = threading.Thread(target=lambda: say(node.call("wait", 1)))
        leading.start()
        begun.acquire()
        def tell():
            begun.acquire()
            say("begun")
        threading.Thread(target=tell).start()
        try:
            node.call("wait", 2)
        except KeyboardInterrupt:
            say("interrupted")
        go_on.set()
        leading.join()
        node.close()
    """)
    program.expect("begun")
    program.signal(signal.SIGINT)
    program.expect("interrupted")
    program.expect("[None, True]")
    program.finish()


def test_importing_vbus_imports_nothing_of_services():
    code = "import sys, vbus; print([name for name in sys.modules if name.startswith('vbus.service')])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


# ---- the command line ---------------------------------------------------------------------------


@pytest.fixture
def command(domain, meeting):
    def run(*arguments, heard=""):
        environment = {**os.environ, "VBUS_DOMAIN": domain, "VBUS_SHM": meeting}
        done = subprocess.run(
            [sys.executable, "-m", "vbus", *arguments],
            input=heard,
            capture_output=True,
            text=True,
            env=environment,
            timeout=WATCHDOG,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.contract('`call SERVICE VALUE` (JSON `{"value": ...}`)')
def test_vbus_call_calls_a_service_and_shows_the_reply(node, command):
    node.serve("echo", lambda value: value)
    assert command("call", "echo", '{"a": [1, null]}', "--json") == (0, '{"value": {"a": [1, null]}}\n', "")
    assert command("call", "echo", "just text", "--json") == (0, '{"value": "just text"}\n', "")
    assert command("call", "echo", "[1, 2]") == (0, "[1, 2]\n", "")
    status, shown, _ = command("call", "echo", "-", "--json", heard="1\ntwo\n")
    assert (status, [json.loads(line)["value"] for line in shown.splitlines()]) == (0, [1, "two"])


def test_vbus_call_shows_a_stream_as_it_comes(node, command):
    node.serve("count", iter_numbers)
    assert command("call", "count", "3", "--json") == (0, '{"value": 0}\n{"value": 1}\n{"value": 2}\n', "")


def iter_numbers(n):
    yield from range(n)


def test_vbus_call_says_what_went_wrong_and_exits_with_1(node, command):
    go_on = threading.Event()
    node.serve("divide", lambda value: 1 / value)
    node.serve("slow", lambda value: go_on.wait(WATCHDOG))
    status, shown, told = command("call", "divide", "0")
    assert (status, shown) == (1, "")
    assert told.startswith("vbus: ZeroDivisionError: division by zero, in the server of 'divide'")
    status, _, told = command("call", "nobody", "1")
    assert status == 1
    assert "nobody serves 'nobody'" in told
    status, _, told = command("call", "slow", "1", "--timeout", "0.05")
    assert status == 1
    assert told
    go_on.set()
    assert command("call", "slow")[0] == 2
