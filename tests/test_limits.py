"""At the limits: descriptors, sizes, memory, crowds; and what is said about bad input.

After every story here the counts of both sides add up.
"""

import os
import re
import resource
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
from helpers import PROGRAMS, WATCHDOG, Survivor, check_conservation, is_asleep, start, until

sys.path.insert(0, str(PROGRAMS))
from patterns import is_whole, pattern

import vbus

__all__ = ["start"]

MEBIBYTE = 1 << 20


# ---- descriptors --------------------------------------------------------------------------------

OFFICE = """
    import resource
    with vbus.Node(hear()) as node:
        publishers = [node.publisher(f"{node.name}/{at}", int) for at in range(200)]
        subscriber = node.subscriber("*/*", int)
        say("ready")
        hear()
        for publisher in publishers:
            publisher.wait_for_subscribers(3)
        say("linked")
        hear()
        for at, publisher in enumerate(publishers):
            publisher.publish(at)
        seen = {}
        while len(seen) < 600 or sum(seen.values()) < 600:
            sample = subscriber.receive(20)
            seen[sample.topic] = seen.get(sample.topic, 0) + 1
        say("saw", len(seen), sum(seen.values()))
        say(len(os.listdir("/proc/self/fd")), subscriber.stats().delivered)
        hear()
"""


def test_two_hundred_publishers_in_each_of_three_nodes_fit_into_1024_descriptors(start):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))

    offices = [start(OFFICE, preexec_fn=limit) for _ in range(3)]
    for number, office in enumerate(offices):
        office.tell(f"office{number}")
        office.expect("ready")
    for words in ("linked", "saw 600 600"):
        for office in offices:
            office.tell("go")
        for office in offices:
            office.expect(words)
    for office in offices:
        descriptors, delivered = map(int, office.hear().split())
        assert descriptors < 1024
        assert delivered == 600
        office.tell("end")
    for office in offices:
        office.finish()


def test_without_descriptors_the_error_says_so_and_nothing_breaks(start):
    program = start("""
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        node = vbus.Node("poor")
        publishers, subscribers = [], []
        error = None
        for at in range(200):
            try:
                subscribers.append(node.subscriber(f"t/{at}"))
                publishers.append(node.publisher(f"t/{at}", block_timeout=1))
                publishers[-1].publish(at)
            except vbus.SharedMemoryError as caught:
                error = caught
                break
        assert error is not None and isinstance(error, OSError)
        say(error)
        # What was opened works, and closing makes room.
        works = sum(it.receive_nowait() is not None for it in subscribers)
        say(works >= len(publishers) - 1 and works > 5)
        for it in publishers + subscribers:
            it.close()
        publishers.clear(), subscribers.clear()
        with node.publisher("again") as publisher, node.subscriber("again") as subscriber:
            publisher.publish(1)
            say(subscriber.receive(0).value)
        node.close()
        files = []
        try:
            while True:
                files.append(open("/dev/null"))
        except OSError:
            pass
        try:
            vbus.Node("none")
        except vbus.SharedMemoryError as error:
            files.clear()
            say(error)
    """)
    assert "ulimit -n" in program.hear()
    program.expect(True)
    program.expect(1)
    assert "ulimit -n" in program.hear()
    program.process.wait(WATCHDOG)
    assert program.process.returncode == 0
    assert "Traceback" not in program.errors()


def test_a_neighbour_without_descriptors_harms_nobody_else(join, start):
    poor = start("""
        import resource, logging
        logging.basicConfig(level=logging.CRITICAL)
        node = vbus.Node("poor")
        subscriber = node.subscriber("t/**")
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        say("ready")
        hear()
        say("alive")
        hear()
    """)
    poor.expect("ready")
    rich = join("rich")
    with rich.subscriber("t/*", bytes) as subscriber:
        publishers = [rich.publisher(f"t/{at}", bytes, on_full="drop_oldest") for at in range(60)]
        for at, publisher in enumerate(publishers):
            publisher.publish(b"x" * at)
        sizes = sorted(subscriber.receive(WATCHDOG).nbytes for _ in publishers)
        assert sizes == list(range(60))
    poor.tell("go")
    poor.expect("alive")
    poor.tell("end")
    poor.finish()
    check_conservation(*publishers)


# ---- crowds -------------------------------------------------------------------------------------


def test_a_thousand_publishers_and_one_who_listens_to_all(join, start):
    node = join()
    everything = node.subscriber("**", int)
    crowd = start("""
        with vbus.Node("crowd") as node:
            publishers = [node.publisher(f"crowd/{at}", int) for at in range(500)]
            say("ready")
            hear()
            for at in range(0, 500, 7):
                publishers[at].publish(at)
            say("published")
            hear()
    """)
    crowd.expect("ready")
    publishers = [node.publisher(f"here/{at}", int) for at in range(500)]
    assert everything.wait_for_publishers(1000, WATCHDOG)
    crowd.tell("go")
    crowd.expect("published")
    for at in range(0, 500, 7):
        publishers[at].publish(at)
    seen = Counter(everything.receive(WATCHDOG).topic for _ in range(2 * len(range(0, 500, 7))))
    assert set(seen) == {f"{who}/{at}" for who in ("crowd", "here") for at in range(0, 500, 7)}
    assert everything.receive_nowait() is None
    # More than 64 share their bits: the closing of some hides nothing of the others.
    for publisher in publishers[::2]:
        publisher.close()
    for at in range(1, 500, 2):
        publishers[at].publish(at)
    assert sorted(everything.receive(WATCHDOG).value for _ in range(250)) == list(range(1, 500, 2))
    crowd.tell("end")
    crowd.finish()
    until(lambda: everything.publishers == 250, "the others are gone")
    check_conservation(everything, *publishers[::50])


def test_five_hundred_subscribers(join, start):
    node = join()
    publisher = node.publisher("t", int)
    crowd = start("""
        with vbus.Node("crowd") as node:
            subscribers = [node.subscriber("t", int) for _ in range(250)]
            say("ready")
            for turn in range(3):
                values = {subscriber.receive().value for subscriber in subscribers}
                say("got", values)
            hear()
    """)
    crowd.expect("ready")
    subscribers = [node.subscriber(pattern, int) for pattern in ("t", "*") for _ in range(125)]
    assert publisher.wait_for_subscribers(500, WATCHDOG)
    for turn in range(3):
        publisher.publish(turn)
        crowd.expect("got", {turn})
        assert {subscriber.receive(WATCHDOG).value for subscriber in subscribers} == {turn}
    crowd.tell("end")
    crowd.finish()
    until(lambda: publisher.subscribers == 250, "the others are gone")
    check_conservation(publisher, *subscribers[::25])


@pytest.mark.contract(
    "All objects are thread-safe",
    "in the order published, from however many threads",
    "Of several receivers each sample goes to one",
)
def test_twenty_threads_publish_and_receive_each_sample_once_and_in_order(join):
    node = join()
    publisher, subscriber = node.publisher("t", bytes, depth=16), node.subscriber("t", bytes)
    far = join("far").subscriber("t", bytes)
    count = 200
    published: list[list[int]] = [[] for _ in range(20)]
    received: list[list[tuple[int, bytes]]] = [[] for _ in range(20)]
    in_order: list[int] = []

    def publish(at: int) -> None:
        for number in range(count):
            sequence = publisher.publish(f"{at} {number}".encode() + bytes(number * 7))
            published[at].append(sequence)

    def receive(at: int) -> None:
        for sample in subscriber:
            received[at].append((sample.sequence, bytes(sample.payload)))

    def receive_in_order() -> None:
        for sample in far:
            assert sample.lost == 0
            in_order.append(sample.sequence)

    receivers = [Survivor(lambda at=at: receive(at)) for at in range(20)] + [Survivor(receive_in_order)]
    publishers = [Survivor(lambda at=at: publish(at)) for at in range(20)]
    for thread in publishers:
        thread.join()
    until(lambda: subscriber.stats().delivered == far.stats().delivered == 20 * count, "all is taken")
    check_conservation(publisher, subscriber, far)
    for it in (subscriber, far):
        it.close()
    for thread in receivers:
        thread.join()
    assert sorted(chain.from_iterable(published)) == list(range(20 * count))
    assert all(sequences == sorted(sequences) for sequences in published)
    everything = sorted(chain.from_iterable(received))
    assert [sequence for sequence, _ in everything] == list(range(20 * count))
    for sequences in received:
        assert [it for it, _ in sequences] == sorted(it for it, _ in sequences), "each receiver's in order"
    said = {payload.rstrip(b"\0"): sequence for sequence, payload in everything}
    for at, sequences in enumerate(published):
        assert [said[f"{at} {number}".encode()] for number in range(count)] == sequences
    assert in_order == list(range(20 * count))


# ---- sizes --------------------------------------------------------------------------------------


@pytest.mark.contract('`reliability` | `"reliable"`: every sample, once, in order')
def test_every_size_arrives_whole(join):
    node, far = join(), join("far")
    publisher = node.publisher("t", bytes, depth=2)
    near_by, far_off = node.subscriber("t", bytes), far.subscriber("t", bytes)
    powers = [1 << power for power in range(0, 25, 3)]
    sizes = sorted(
        {0, 63, 64, 65, 4095, 4096, 4097, *powers, *(p - 1 for p in powers), *(p + 1 for p in powers)}
    )
    for sequence, nbytes in enumerate(sizes):
        assert publisher.publish(pattern(publisher.id, sequence, nbytes)) == sequence
        for subscriber in (near_by, far_off):
            with subscriber.receive(WATCHDOG) as sample:
                assert (sample.sequence, sample.nbytes, sample.lost) == (sequence, nbytes, 0)
                assert is_whole(sample)
    check_conservation(publisher, near_by, far_off)


def available() -> int:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) << 10
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and limit.read_text().strip().isdigit():
        free = min(free, int(limit.read_text()) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    return free


@pytest.mark.contract("`max_size` | largest sample accepted")
@pytest.mark.timeout(120)
def test_a_sample_of_one_gibibyte(join, start):
    if available() < 4 << 30:
        pytest.skip(f"needs 4 GiB of free memory, there are {available() / 2**30:.1f}")
    gibibyte = 1 << 30
    node = join(memory=3 << 30)
    publisher = node.publisher("t", bytes)
    reader = start("""
        subscriber = vbus.Node("reader").subscriber("t", bytes)
        say("ready")
        with subscriber.receive() as sample:
            words = sample.payload.cast("Q")
            say(sample.nbytes, all(words[at] == at for at in range(0, len(words), 99_991)), words[-1])
            words.release()
        hear()
    """)
    reader.expect("ready")
    with publisher.loan(gibibyte) as loan:
        words = loan.buffer.cast("Q")
        for at in [*range(0, len(words), 99_991), len(words) - 1]:
            words[at] = at
        words.release()
    reader.expect(gibibyte, True, gibibyte // 8 - 1, seconds=60)
    with pytest.raises(vbus.TooLarge, match="1073741825 bytes exceeds the limit of 1073741824") as info:
        publisher.loan(gibibyte + 1)
    assert info.value.limit == gibibyte
    until(lambda: publisher.stats().held == 0, "it came back")
    reader.tell("end")
    reader.finish()
    check_conservation(publisher)


# ---- memory -------------------------------------------------------------------------------------


@pytest.mark.contract("Samples that a program holds do not count against `depth`")
def test_a_hoarder_stops_nobody_else(join, start):
    node = join(memory=64 * MEBIBYTE)
    publisher = node.publisher("t", bytes, block_timeout=WATCHDOG)
    brisk = node.subscriber("t", bytes)
    hoarder = start("""
        subscriber = vbus.Node("hoarder").subscriber("t", bytes)
        say("ready")
        held = []
        while len(held) < 5000:
            held += subscriber.receive_many()
        say("holds", subscriber.stats().held, all(map(is_whole, held)))
        hear()
        say(all(map(is_whole, held)))
        del held
        gc.collect()
        say("released", subscriber.stats().held)
        for sample in subscriber:
            if sample.sequence == 7999:
                break
        del sample
        say("done")
        hear()
    """)
    hoarder.expect("ready")

    def publish(first: int, end: int) -> None:
        for sequence in range(first, end):
            publisher.publish(pattern(publisher.id, sequence, 1000))
            assert brisk.receive(WATCHDOG).sequence == sequence

    publish(0, 5000)
    hoarder.expect("holds", 5000, True)
    until(lambda: publisher.stats().held == 5000, "the publisher knows")
    publish(5000, 5060)  # they wait at the hoarder
    hoarder.tell("go")
    hoarder.expect(True)
    hoarder.expect("released", 0)
    publish(5060, 8000)
    hoarder.expect("done")
    until(lambda: publisher.stats().held == 0, "all came back")
    check_conservation(publisher, brisk)
    hoarder.tell("end")
    hoarder.finish()


@pytest.mark.contract(
    "At the memory limit the subscriber that holds most counts as full",
    "bytes that this node's publishers may keep in all",
)
@pytest.mark.parametrize("where", ["near", "far"])
@pytest.mark.parametrize("on_full", ["block", "error", "drop_oldest", "drop_newest"])
def test_at_the_memory_limit_the_contract_decides(on_full, where, join):
    limit = 8 * MEBIBYTE
    node = join(memory=limit)
    publisher = node.publisher("t", bytes, on_full=on_full, block_timeout=0.05, depth=1000)
    subscriber = (node if where == "near" else join("far")).subscriber("t", bytes)
    errors = []
    for number in range(40):
        try:
            publisher.publish(pattern(publisher.id, number - len(errors), MEBIBYTE))
        except (vbus.Timeout, vbus.Full) as error:
            errors.append(error)
        assert node.stats().memory <= limit
    refused = len(errors)
    for error in errors:
        assert isinstance(error, vbus.Timeout if on_full == "block" else vbus.Full)
        assert "memory" in str(error)
        assert (error.topic, error.subscriber) == ("t", subscriber.id)
    stats = publisher.stats()
    if on_full in ("block", "error"):
        assert refused > 30
        assert stats.published == 40 - refused
        assert stats.dropped == {}
    else:
        assert (refused, stats.published) == (0, 40)
        assert set(stats.dropped) == {"memory"}
        assert stats.dropped["memory"] >= 32
    check_conservation(publisher, subscriber)
    # Taken and given back, there is room again.
    due = lost = 0
    while (sample := subscriber.receive_nowait()) is not None:
        assert is_whole(sample)
        assert sample.sequence == due + sample.lost
        due, lost = sample.sequence + 1, lost + sample.lost
        sample.release()
    publisher.publish(pattern(publisher.id, publisher.stats().published, MEBIBYTE))
    sample = subscriber.receive(WATCHDOG)
    assert sample.lost + lost == sum(publisher.stats().dropped.values())
    check_conservation(publisher, subscriber)
    assert publisher.stats().links[0].dropped == subscriber.stats().dropped == publisher.stats().dropped


def test_a_publisher_that_waits_for_memory_goes_on_when_samples_are_released(join, start):
    node = join(memory=8 * MEBIBYTE)
    publisher = node.publisher("t", bytes, depth=100)
    holder = start("""
        subscriber = vbus.Node("holder").subscriber("t", bytes)
        say("ready")
        held = [subscriber.receive() for _ in range(3)]
        say("holds")
        hear()
        del held[0]
        say("released one")
        hear()
        for _ in range(7):
            with subscriber.receive() as sample:
                if not is_whole(sample):
                    say("torn")
        say("took all")
        hear()
    """)
    holder.expect("ready")

    def publish() -> None:
        for sequence in range(10):
            publisher.publish(pattern(publisher.id, sequence, MEBIBYTE))

    publishing = Survivor(publish)
    holder.expect("holds")
    until(lambda: is_asleep(publishing.native_id), "it waits for memory")
    before = publisher.stats().published
    assert before < 10
    holder.tell("go")
    holder.expect("released one")
    holder.tell("go")
    holder.expect("took all")
    publishing.join()
    check_conservation(publisher)
    holder.tell("end")
    holder.finish()


@pytest.mark.parametrize("what", ["subscriber", "node"])
def test_a_publisher_that_waits_for_what_a_closed_one_holds_goes_on_when_it_is_released(
    what, join, start, caplog
):
    node = join(memory=8 * MEBIBYTE)
    publisher = node.publisher("t", bytes, depth=100)
    holder = start(f"""
        node = vbus.Node("holder")
        subscriber = node.subscriber("t", bytes)
        say("ready")
        held = [subscriber.receive() for _ in range(3)]
        {what}.close()
        say("closed")
        hear()
        del held[0]  # the others stay: it is not the end of the connection that helps
        say("released")
        hear()
    """)
    holder.expect("ready")
    for sequence in range(3):
        publisher.publish(pattern(publisher.id, sequence, MEBIBYTE))
    holder.expect("closed")

    def publish() -> None:
        for loan in [publisher.loan(MEBIBYTE) for _ in range(5)]:
            loan.discard()

    publishing = Survivor(publish)
    until(lambda: publishing.check() or warnings_in(caplog, "publish has waited"), "it waits, and says so")
    until(lambda: is_asleep(publishing.native_id), "it waits on")
    holder.tell("go")
    holder.expect("released")
    publishing.join()
    check_conservation(publisher)
    holder.tell("end")
    holder.finish()


@pytest.mark.contract("bytes that this node's publishers may keep in all")
def test_memory_that_history_and_loans_keep_is_an_error_at_once(join):
    node = join(memory=4 * MEBIBYTE)
    publisher = node.publisher("t", bytes, history=100)
    for _ in range(3):
        publisher.publish(bytes(MEBIBYTE))
    with pytest.raises(vbus.SharedMemoryError, match=r"no memory for a sample of 1048576 bytes.*history"):
        publisher.publish(bytes(MEBIBYTE))
    with pytest.raises(vbus.TooLarge, match="8388608 bytes exceeds what this node may keep"):
        publisher.publish(bytes(8 * MEBIBYTE))


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.contract("no control characters, no `*` in a published topic")
@pytest.mark.parametrize(
    ("topic", "words"),
    [
        ("", "at least one character"),
        ("/a", "slash|empty"),
        ("a/", "slash|empty"),
        ("a//b", "empty"),
        ("a/*", r"\*"),
        ("**", r"\*"),
        ("a\n", "control"),
        ("a/\x00", "control"),
        ("ä" * 128, "256 bytes.*255"),
        ("a\ud800", "surrogate.*UTF-8"),
    ],
)
def test_a_wrong_topic_is_named(node, topic, words):
    with pytest.raises(vbus.TopicError, match=words):
        node.publisher(topic)
    with pytest.raises(ValueError, match=r"."):
        node.publisher(topic)


@pytest.mark.contract("`*` inside a longer segment is `TopicError`")
@pytest.mark.parametrize("pattern_", ["a/b*", "***", "*a", "a/**b"])
def test_a_wrong_pattern_is_named(node, pattern_):
    with pytest.raises(vbus.TopicError, match=re.escape(repr(pattern_)[1:-1])):
        node.subscriber(pattern_)


@pytest.mark.parametrize("topic", [None, 7, b"a/b", ["a"]])
def test_a_topic_that_is_no_text_is_a_type_error_or_a_topic_error(node, topic):
    for make in (node.publisher, node.subscriber):
        with pytest.raises((TypeError, vbus.TopicError)):
            make(topic)


@pytest.mark.contract(
    "`headers`: `Mapping[str, str]`, at most 4 KiB",
    "Attributes `topic`, `subscriber`, `limit`, `field`",
    "`TooLarge` comes at `loan()`",
)
def test_what_is_too_large_says_both_numbers(node):
    publisher = node.publisher("t", max_size=1000)
    subscriber = node.subscriber("t")
    for attempt in (
        lambda: publisher.publish(bytes(1001)),
        lambda: publisher.publish(bytearray(1001)),
        lambda: publisher.loan(1001),
        lambda: publisher.loan_array(1001, "u1").__enter__(),
    ):
        with pytest.raises(
            vbus.TooLarge, match=r"1001 bytes exceeds the limit of 1000; raise `max_size`"
        ) as info:
            attempt()
        assert (info.value.limit, info.value.topic) == (1000, "t")
    with pytest.raises(vbus.TooLarge, match=r"headers of 4097 bytes exceed the limit of 4096") as info:
        publisher.publish(b"", headers={"k": "v" * 4096})
    assert info.value.limit == 4096
    assert publisher.publish(b"fits", headers={"k": "v" * 4095}) == 0
    assert subscriber.receive(0).headers == {"k": "v" * 4095}
    for headers in ({"k": 1}, {1: "v"}, ["k"], "kv", {"k": b"v"}, {"k": None}, {"\ud800": "v"}):
        with pytest.raises(vbus.EncodeError, match="headers"):
            publisher.publish(b"", headers=headers)
    check_conservation(publisher, subscriber)


@pytest.mark.contract("which raises `Closed` once closed", "`stats()` still works after `close()`")
def test_used_after_close_says_so(join):
    node = join("gone")
    publisher, subscriber = node.publisher("t"), node.subscriber("t")
    publisher.close()
    subscriber.close()
    for attempt in (
        lambda: publisher.publish(1),
        lambda: publisher.publish(b"x"),
        lambda: publisher.loan(1),
        publisher.flush,
        publisher.wait_for_subscribers,
    ):
        with pytest.raises(vbus.Closed, match='the publisher of "t" is closed; open a new one') as info:
            attempt()
        assert info.value.topic == "t"
    for attempt in (
        subscriber.receive,
        lambda: subscriber.receive(0),
        subscriber.receive_nowait,
        subscriber.receive_many,
        subscriber.wait_for_publishers,
    ):
        with pytest.raises(vbus.Closed, match='the subscriber of "t" is closed; open a new one'):
            attempt()
    assert list(subscriber) == []
    node.close()
    for attempt in (
        lambda: node.publisher("t"),
        lambda: node.subscriber("t"),
        node.peers,
        node.topics,
        node.wait_for_peers,
        node.explain,
    ):
        with pytest.raises(vbus.Closed, match='the node "gone" is closed; open a new one'):
            attempt()
    for it in (node, publisher, subscriber):
        it.stats()
        it.close()
        repr(it)


@pytest.mark.contract("An explicit `shm` that cannot be used")
def test_an_unusable_directory_is_named_with_what_is_wrong(domain, tmp_path):
    file, link, real = tmp_path / "file", tmp_path / "link", tmp_path / "real"
    file.write_text("")
    real.mkdir()
    link.symlink_to(real)
    cases = {
        file: "is not a directory",
        link: "is a symbolic link",
        f"{link}/": "is a symbolic link",
        tmp_path / "no" / "where": f"{tmp_path / 'no'} does not exist",
        file / "below": "cannot be",
    }
    if os.geteuid() == 0:
        other = tmp_path / "other"
        other.mkdir(mode=0o777)
        os.chown(other, 12345, 12345)
        cases[other] = "belongs to uid 12345"
    for path, words in cases.items():
        with pytest.raises(vbus.SharedMemoryError, match=re.escape(words)) as info:
            vbus.Node("n", domain=domain, shm=path)
        assert str(path).rstrip("/") in str(info.value)
        assert isinstance(info.value, OSError)
    vbus.Node("n", domain=domain, shm=tmp_path / "made").close()
    assert (tmp_path / "made").stat().st_mode & 0o7777 == 0o1777


def test_a_long_directory_works(domain, tmp_path):
    deep = tmp_path
    while len(str(deep)) < 300:
        deep /= "d" * 40
    deep.mkdir(parents=True)
    with vbus.Node("a", domain=domain, shm=deep), vbus.Node("b", domain=domain, shm=deep) as b:
        assert [peer.name for peer in b.peers()] == ["a"]


@pytest.mark.contract("only nodes with the same secret join")
def test_different_secrets_are_told_on_both_sides(join, caplog):
    with join("one", secret="a secret of one") as one, join("two", secret="a secret of two") as two:
        until(lambda: len(warnings_in(caplog, "secret")) >= 2, "both warn")
        assert one.peers() == two.peers() == []
        assert any("one" in text for text in warnings_in(caplog, "secret"))
        assert any("two" in text for text in warnings_in(caplog, "secret"))
        with join("none") as none, join("third", secret="a secret of one") as third:
            assert none.peers() == []
            assert [peer.name for peer in third.peers()] == ["one"]
        assert [finding.verdict for finding in two.explain()].count("refused") >= 1
    assert not any("a secret of" in text for text in caplog.messages), "never logged"


def warnings_in(caplog, word: str) -> list[str]:
    messages = (it.getMessage() for it in caplog.records if it.levelname == "WARNING")
    return [message for message in messages if re.search(word, message)]


@pytest.mark.contract("Everywhere: `timeout` in float seconds")
@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan"), float("-inf")])
def test_a_negative_timeout_is_a_value_error(node, timeout):
    publisher, subscriber = node.publisher("t"), node.subscriber("t")
    for wait in (
        subscriber.receive,
        lambda timeout: subscriber.receive_many(timeout=timeout),
        publisher.flush,
        lambda timeout: publisher.wait_for_subscribers(1, timeout),
        lambda timeout: subscriber.wait_for_publishers(1, timeout),
        lambda timeout: node.wait_for_peers(1, timeout),
    ):
        with pytest.raises(ValueError, match="timeout is"):
            wait(timeout)
    publisher.publish(1)
    with pytest.raises(ValueError, match="timeout is"):
        subscriber.receive(timeout)
    assert subscriber.receive(0).value == 1, "the refused call took nothing"


@pytest.mark.parametrize(
    ("qos", "words"),
    [
        ({"reliability": "sometimes"}, 'reliability is \'sometimes\'; give "reliable" or "best_effort"'),
        ({"depth": 0}, "depth is 0; give a whole number from 1"),
        ({"depth": 2.5}, "depth is 2.5"),
        ({"depth": True}, "depth is True"),
        ({"history": -1}, "history is -1"),
        ({"on_full": "explode"}, "on_full is 'explode'"),
        ({"block_timeout": -1}, "block_timeout is -1"),
        ({"lifespan": "long"}, "lifespan is 'long'"),
        ({"priority": 8}, "priority is 8"),
        ({"max_size": -1}, "max_size is -1"),
        ({"ordered": 1}, "ordered is 1"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_wrong_quality_of_service_is_named_with_its_value(node, qos, words):
    with pytest.raises((vbus.ConfigError, TypeError), match=re.escape(words)):
        node.publisher("t", **qos)


def test_subscribers_that_come_and_go_use_their_places_on_the_boards_again(join):
    def boards() -> int:
        return sum("memfd:vbus-board" in line for line in Path("/proc/self/maps").read_text().splitlines())

    with join("source") as source, join("guests") as guests, source.publisher("t") as publisher:
        for number in range(400):
            with guests.subscriber("t") as subscriber:
                publisher.publish(number)
                assert subscriber.receive(WATCHDOG).value == number
            if number == 60:
                first = boards()
        assert boards() == first
