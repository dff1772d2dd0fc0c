"""What a node is told and tells: words of the contract, arguments, environment, meeting, attributes."""

import gc
import inspect
import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers import WATCHDOG, start, until

import vbus

__all__ = ["start"]

SECRET = "correct horse battery staple"


# ---- words --------------------------------------------------------------------------------------


@pytest.mark.contract("UTF-8, 1 to 255 bytes, segments split by `/`")
@pytest.mark.parametrize(
    "topic", ["a", "a/b/c", "日本/ä", "x" * 255, "ä" * 127, "with space/and.dot", "$own/x"]
)
def test_a_topic_within_the_grammar_is_one(node, topic):
    with node.publisher(topic) as publisher, node.subscriber(topic) as subscriber:
        publisher.publish(1)
        assert subscriber.receive(WATCHDOG).topic == publisher.topic == topic


@pytest.mark.contract("A subscriber may use `*` (exactly one segment) and `**` (any number, also none)")
@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("a/*", {"a/b", "a/c"}),
        ("*", {"a", "b"}),
        ("*/b", {"a/b"}),
        ("a/**", {"a", "a/b", "a/c", "a/b/c", "a/b/b/c"}),
        ("**", {"a", "b", "a/b", "a/c", "a/b/c", "a/b/b/c"}),
        ("**/c", {"a/c", "a/b/c", "a/b/b/c"}),
        ("a/**/c", {"a/c", "a/b/c", "a/b/b/c"}),
        ("a/*/**", {"a/b", "a/c", "a/b/c", "a/b/b/c"}),
        ("a/*/*/c", {"a/b/b/c"}),
        ("a/b", {"a/b"}),
    ],
)
def test_a_star_is_one_segment_and_two_are_any_number(node, pattern, matched):
    topics = ["a", "b", "a/b", "a/c", "a/b/c", "a/b/b/c", "$a", "$a/b", "$a/b/c"]
    publishers = [node.publisher(topic) for topic in topics]
    with node.subscriber(pattern) as subscriber:
        for publisher in publishers:
            publisher.publish(publisher.topic)
        assert {sample.topic for sample in subscriber.receive_many(timeout=WATCHDOG)} == matched


@pytest.mark.contract("A first segment that starts with `$` is never matched by wildcards, only by name")
def test_a_first_segment_with_a_dollar_is_matched_by_its_name_alone(node):
    with (
        node.publisher("$mine/a") as hidden,
        node.publisher("a/$b") as plain,
        node.subscriber("**") as everything,
        node.subscriber("*/a") as one,
        node.subscriber("$mine/*") as named,
    ):
        hidden.publish(1)
        plain.publish(2)
        assert named.receive(WATCHDOG).value == 1
        assert [sample.topic for sample in everything.receive_many(timeout=WATCHDOG)] == ["a/$b"]
        assert one.receive_nowait() is None


@pytest.mark.contract('`"shm"` (same memory, also within a process)')
@pytest.mark.parametrize("far", [False, True])
def test_the_path_is_shm_within_a_process_and_between_neighbours(join, far):
    node = join()
    reader = join("reader") if far else node
    with node.publisher("t") as publisher, reader.subscriber("t") as subscriber:
        publisher.publish(1)
        sample = subscriber.receive(WATCHDOG)
        assert sample.via == "shm"
        assert sample.source.path == ("shm" if far else None)


@pytest.mark.contract("`None` waits for ever, `0` tries once, negative is `ValueError`")
def test_none_waits_for_ever_and_zero_tries_once(node):
    with node.publisher("t") as publisher, node.subscriber("t") as subscriber:
        received = []
        waiting = threading.Thread(target=lambda: received.append(subscriber.receive(None).value))
        waiting.start()
        publisher.publish("late")
        waiting.join(WATCHDOG)
        assert received == ["late"]
        publisher.publish("there")
        assert subscriber.receive(0).value == "there"
        assert subscriber.receive_many(timeout=0.0) if publisher.publish(1) else False
        for attempt in (lambda: subscriber.receive(0), lambda: subscriber.receive_many(timeout=0)):
            with pytest.raises(vbus.Timeout):
                attempt()
        assert publisher.flush(0)
        assert publisher.wait_for_subscribers(1, 0)
        assert not publisher.wait_for_subscribers(2, 0)


@pytest.mark.contract("Node, Publisher, Subscriber, Server and Watch work in `with` and in `async with`")
def test_leaving_with_closes_and_closing_twice_is_fine(join):
    with join() as node:
        with node.publisher("t") as publisher, node.subscriber("t") as subscriber:
            assert not publisher.closed
            assert not subscriber.closed
        assert publisher.closed
        assert subscriber.closed
        assert not node.closed
    assert node.closed
    for it in (publisher, subscriber, node):
        it.close()
        it.close()


@pytest.mark.contract(
    "None of them, nor Sample, can be pickled (`TypeError` that says: open a node in the worker)"
)
def test_nothing_that_belongs_to_a_process_can_be_pickled_by_any_protocol(node):
    with node.publisher("t") as publisher, node.subscriber("t") as subscriber:
        publisher.publish(1)
        for it in (
            node,
            publisher,
            subscriber,
            subscriber.receive(WATCHDOG),
            publisher.loan(1),
            publisher.loan_array(1),
        ):
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
                with pytest.raises(TypeError, match="open a node in the worker"):
                    pickle.dumps(it, protocol)


# ---- arguments and environment ------------------------------------------------------------------


@pytest.mark.contract("`vbus.Node(name=None, *, domain=None, secret=None, open=None, peers=None")
def test_a_node_takes_the_arguments_of_the_contract_and_each_may_be_left_out():
    parameters = list(inspect.signature(vbus.Node).parameters.values())
    assert [parameter.name for parameter in parameters] == [
        *("name", "domain", "secret", "open", "peers"),
        *("listen", "interfaces", "discovery", "shm", "memory"),
    ]
    assert {parameter.default for parameter in parameters} == {None}
    assert {parameter.kind for parameter in parameters[1:]} == {inspect.Parameter.KEYWORD_ONLY}


SHOW = """
import json, vbus
with vbus.Node(**json.loads(input())) as node:
    print(json.dumps([node.name, node.domain]))
"""


def shown(arguments: dict[str, object], **environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SHOW],
        input=json.dumps(arguments),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=WATCHDOG,
        check=True,
    )
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.contract("Argument beats environment beats default")
def test_an_argument_beats_the_environment_and_that_beats_the_default(meeting, domain):
    bare = {"VBUS_SHM": meeting}
    named = {**bare, "VBUS_NAME": "of the environment", "VBUS_DOMAIN": domain}
    name, of = shown({}, **bare)
    assert name.startswith("python-")
    assert of == "default"
    assert shown({}, **named) == ["of the environment", domain]
    assert shown({"name": "given", "domain": "mine"}, **named) == ["given", "mine"]


@pytest.mark.contract("lists in the environment are comma-separated, booleans `1/0/true/false`")
@pytest.mark.parametrize(("text", "opened"), [("1", True), ("true", True), ("0", False), ("false", False)])
def test_a_boolean_of_the_environment_is_one_of_four_words(meeting, monkeypatch, text, opened):
    monkeypatch.setenv("VBUS_OPEN", text)
    monkeypatch.setenv("VBUS_DISCOVERY", "shm,mdns")
    if opened:
        with pytest.raises(vbus.ConfigError, match="open and a secret exclude each other"):
            vbus.Node(secret=SECRET, shm=meeting)
    else:
        vbus.Node(secret=SECRET, shm=meeting).close()
    monkeypatch.setenv("VBUS_OPEN", "yes")
    with pytest.raises(vbus.ConfigError, match="1, 0, true or false"):
        vbus.Node(shm=meeting)


@pytest.mark.contract("for people; need not be unique | program name and pid")
def test_two_nodes_may_have_one_name(join):
    left, right = join("twin"), join("twin")
    assert [peer.name for peer in left.peers()] == [peer.name for peer in right.peers()] == ["twin"]
    assert left.id != right.id


@pytest.mark.contract("only nodes with the same secret join, over the network and over shared memory")
@pytest.mark.parametrize("where", ["argument", "bytes", "VBUS_SECRET", "VBUS_SECRET_FILE"])
def test_one_secret_joins_however_it_is_given(join, monkeypatch, tmp_path, where):
    guarded = join("guarded", secret=SECRET)
    given = {}
    if where == "VBUS_SECRET":
        monkeypatch.setenv(where, SECRET)
    elif where == "VBUS_SECRET_FILE":
        (tmp_path / "secret").write_text(SECRET + "\n")
        monkeypatch.setenv(where, str(tmp_path / "secret"))
    else:
        given = {"secret": SECRET if where == "argument" else SECRET.encode()}
    friend = join("friend", **given)
    assert [peer.name for peer in friend.peers()] == ["guarded"]
    assert [peer.name for peer in guarded.peers()] == ["friend"]


@pytest.mark.contract("never logged, never announced")
def test_a_secret_is_in_no_log_no_record_and_no_socket_name(join, meeting, caplog):
    caplog.set_level("DEBUG", "vbus")
    with join("one", secret=SECRET) as one, join("two", secret=SECRET + "!") as two:
        until(lambda: caplog.messages, "the refusal is logged")
        told = [repr(one), repr(two.explain()), repr(one.topics()), repr(one.stats()), *caplog.messages]
        told += [str(path) for path in Path(meeting).rglob("*")]
        assert not any("horse" in text for text in told)


@pytest.mark.contract("A passphrase is stretched, a trivially short one refused")
def test_a_trivially_short_passphrase_is_refused(meeting):
    for short in ("a", "1234567", b"1234567"):
        with pytest.raises(vbus.ConfigError, match="can be guessed"):
            vbus.Node(secret=short, shm=meeting)
    vbus.Node(secret="12345678", shm=meeting).close()


@pytest.mark.contract("Empty, or both variables set, is `ConfigError`")
def test_an_empty_secret_is_an_error_wherever_it_is(meeting, monkeypatch, tmp_path):
    (tmp_path / "empty").touch()
    for empty in ("", b""):
        with pytest.raises(vbus.ConfigError, match="empty"):
            vbus.Node(secret=empty, shm=meeting)
    for variable, value in (("VBUS_SECRET", ""), ("VBUS_SECRET_FILE", str(tmp_path / "empty"))):
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            with pytest.raises(vbus.ConfigError, match="empty"):
                vbus.Node(shm=meeting)


@pytest.mark.contract(
    "without a secret a node talks to neighbours in shared memory and over loopback only",
    "Both sides open, or both with the same secret; everything else is refused",
)
def test_neighbours_without_a_secret_trust_each_other_and_others_stay_apart(join):
    plain, other = join("plain"), join("other")
    assert [peer.name for peer in other.peers()] == ["plain"]
    guarded = join("guarded", secret=SECRET)
    assert guarded.peers() == []
    assert [peer.name for peer in plain.peers()] == ["other"]
    with pytest.raises(vbus.ConfigError, match="exclude each other"):
        join("both", secret=SECRET, open=True)


@pytest.mark.contract("the one directory where neighbours meet (sockets only, no data;")
def test_only_sockets_lie_in_the_meeting_directory(join, meeting):
    node, far = join(), join("far")
    with node.publisher("t") as publisher, far.subscriber("t") as subscriber:
        publisher.publish(bytes(1 << 20))
        assert subscriber.receive(WATCHDOG).nbytes == 1 << 20
        entries = list(Path(meeting).iterdir())
        assert len(entries) == 2
        assert all(entry.is_socket() for entry in entries)


@pytest.mark.contract('`False` or `"off"` for none')
@pytest.mark.parametrize("off", [False, "off"])
def test_a_node_without_a_directory_meets_nobody_but_itself(join, off):
    join("neighbour")
    with join("hermit", shm=off) as hermit:
        assert hermit.peers() == []
        with hermit.publisher("t") as publisher, hermit.subscriber("t") as subscriber:
            publisher.publish(1)
            assert subscriber.receive(WATCHDOG).value == 1


@pytest.mark.contract("a quarter of what the machine or the container has")
def test_the_memory_of_a_node_is_a_quarter_of_what_there_is(join):
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    machine = int(lines["MemTotal"].split()[0]) << 10
    limit = join()._core.memory
    assert limit <= machine // 4
    cgroup = Path("/sys/fs/cgroup/memory.max")
    if not cgroup.exists() or cgroup.read_text().strip() == "max":
        assert limit > machine // 5


@pytest.mark.contract("waiting, held by programs, history")
@pytest.mark.parametrize("where", ["waiting", "held", "history"])
def test_what_waits_what_is_held_and_history_count_against_memory(join, where):
    mebibyte = 1 << 20
    node = join(memory=8 * mebibyte)
    qos = {"history": 100} if where == "history" else {}
    with (
        node.publisher("t", bytes, depth=100, block_timeout=0, **qos) as publisher,
        node.subscriber("t", bytes) as subscriber,
    ):
        held = []

        def publish_more_than_fits() -> None:
            for _ in range(9):
                publisher.publish(bytes(mebibyte))
                if where == "held":
                    held.append(subscriber.receive(WATCHDOG))
                elif where == "history":
                    subscriber.receive(WATCHDOG).release()

        with pytest.raises((vbus.Timeout, vbus.SharedMemoryError), match="memory"):
            publish_more_than_fits()
        assert node.stats().memory <= 8 * mebibyte


# ---- meeting ------------------------------------------------------------------------------------

SPEAKER = """
    with vbus.Node("speaker") as node, node.publisher("up", int) as up, node.subscriber("down", int) as down:
        say("ready", len(node.peers()), up.subscribers, down.publishers)
        hear()
        up.publish(1)
        say("got", down.receive(20).value)
"""


@pytest.mark.contract(
    "`Node()` returns when it has met the neighbours already there",
    "So over shared memory a sample published after both exist is delivered",
)
def test_whatever_is_published_after_both_exist_is_delivered(join, start):
    node = join()
    with node.publisher("down", int) as down, node.subscriber("up", int) as up:
        for turn in range(10):
            speaker = start(SPEAKER)
            speaker.expect("ready", 1, 1, 1)
            assert [peer.name for peer in node.peers()] == ["speaker"], "met when the other's Node() returned"
            assert (down.subscribers, up.publishers) == (1, 1)
            down.publish(turn)
            speaker.tell("go")
            speaker.expect("got", turn)
            assert up.receive(WATCHDOG).value == 1
            speaker.finish()
            until(lambda: not node.peers(), "it left")


@pytest.mark.contract("A node's subscribers also receive its own publishers' samples")
def test_a_nodes_subscribers_receive_its_own_samples(node):
    with node.publisher("t") as publisher, node.subscriber("t") as subscriber:
        publisher.publish("mine")
        sample = subscriber.receive(WATCHDOG)
        assert (sample.value, sample.source.id) == ("mine", node.id)


# ---- attributes and methods ---------------------------------------------------------------------


@pytest.mark.contract(
    "`id` (hex, unique, drawn anew for every Node), `name`, `domain`, `addresses`, `closed`"
)
def test_a_node_tells_who_it_is_and_whom_it_knows(join, domain):
    node = join("me")
    assert int(node.id, 16) >= 0
    assert len({node.id, *(join(f"other {at}").id for at in range(5))}) == 6
    assert (node.name, node.domain, node.closed) == ("me", domain, False)
    assert node.wait_for_peers(5, WATCHDOG) is True
    assert node.wait_for_peers(6, 0) is False
    assert node.wait_for_peers(timeout=0) is True
    peers = node.peers()
    assert sorted(peer.name for peer in peers) == [f"other {at}" for at in range(5)]
    assert {type(peer) for peer in peers} == {vbus.Peer}
    assert node.topics() == node.services() == []
    assert isinstance(node.stats(), vbus.NodeStats)
    assert isinstance(node.explain(topic=None, peer=None), list)


@pytest.mark.contract(
    "flushes reliable publishers for at most `linger` seconds, logs per topic what was not accepted"
)
def test_a_node_that_closes_leaves_nothing_behind_and_says_goodbye(join, start):
    node = join()
    subscriber = node.subscriber("t/*")
    speaker = start("""
        node = vbus.Node("speaker")
        publishers = [node.publisher(f"t/{at}") for at in range(3)]
        for at, publisher in enumerate(publishers):
            for _ in range(10):
                publisher.publish(bytes(100_000))
        node.close()
        say("closed")
        hear()
    """)
    speaker.expect("closed")
    assert speaker.process.poll() is None
    until(lambda: not node.peers(), "it said goodbye, though its process lives")
    samples = subscriber.receive_many(timeout=WATCHDOG)
    assert sorted((sample.topic, sample.sequence) for sample in samples) == [
        (f"t/{at}", sequence) for at in range(3) for sequence in range(10)
    ]


# ---- forks --------------------------------------------------------------------------------------


@pytest.mark.contract("every call raises `vbus.ForkError`")
def test_a_fork_error_is_a_runtime_error_that_says_what_to_do(node):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            node.peers()
        except RuntimeError as error:
            os.write(writing, f"{type(error).__name__}: {error}".encode())
        gc.collect()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    assert (
        said == "ForkError: this node belongs to the parent process; open a node in the child, after the fork"
    )
