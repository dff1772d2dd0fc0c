"""Every error that vbus raises, provoked, and its text kept in tests/errors.txt, to be read as a user does:
what happened, the value, what to do about it.

`./dev docs` writes the file anew; ids, paths and times are replaced by a word. Whatever python/vbus
raises, or an error of the core says, and no story here provokes, is listed below with the reason.
"""

import ast
import asyncio
import contextlib
import os
import re
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import InitVar, dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, Generic, Literal, NamedTuple, TypedDict, TypeVar

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

import vbus
from vbus import config

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(vbus.__file__).parent
TEXTS = Path(__file__).with_name("errors.txt")
# Read before the tests' own environment is made.
REWRITE = os.environ.get("VBUS_REWRITE") == "1"
SECRET = "correct horse battery staple"

HEAD = """Every error of vbus, as a user reads it. Made by `./dev docs` of the stories in test_error_texts.py.
"""


# ---- what may go wrong --------------------------------------------------------------------------


class World:
    """What a story finds: a node, a directory, an environment."""

    def __init__(self, node, join, meeting, path, monkeypatch) -> None:
        self.node: vbus.Node = node
        self.join: Callable[..., vbus.Node] = join
        self.meeting: str = meeting
        self.path: Path = path
        self.monkeypatch: pytest.MonkeyPatch = monkeypatch

    def publish(self, type_: object, value: object, **qos: object) -> None:
        self.node.publisher("robot/pose", type_, **qos).publish(value)

    def read(self, sent: object, type_: object, *, as_type: object = None) -> object:
        """The value of what another type sent, as one of this type."""
        subscriber = self.node.subscriber("robot/pose", type_)
        publisher = self.node.publisher("robot/pose", as_type)
        publisher.publish(sent)
        return subscriber.receive(10).value

    def environment(self, **variables: str) -> object:
        for name, value in variables.items():
            self.monkeypatch.setenv(name, value)
        return config.resolve()


Story = Callable[[World], object]
STORIES: dict[str, dict[str, Story]] = {}


def stories(heading: str, **found: Story) -> None:
    STORIES.setdefault(heading, {}).update(found)


@dataclass
class Pose:
    x: float
    y: float = 0.0


@dataclass
class Track:
    poses: list[Pose]
    labels: dict[str, int]


@dataclass
class Frame:
    image: np.ndarray


@dataclass
class Guarded:
    x: int

    def __post_init__(self) -> None:
        if self.x < 0:
            raise ValueError("x is below zero")


class Colour(Enum):
    RED = "red"


class Options(TypedDict):
    a: int


class Point(NamedTuple):
    x: int


class Command(msgspec.Struct):
    name: str


class Opaque:
    def __repr__(self) -> str:
        return "Opaque()"


class Sealed:
    """Has a codec of its own, which refuses."""

    def __repr__(self) -> str:
        return "Sealed()"


class SealedTwice(Sealed):
    pass


def refuse(value: object) -> bytes:
    raise ValueError("it is sealed")


def codec(**changes: object) -> object:
    register_sealed()
    return vbus.register_codec(
        **{"type": SealedTwice, "name": "sealed twice", "encode": bytes, "decode": bytes, **changes}
    )


stories(
    "Node: arguments",
    domain_with_slash=lambda w: vbus.Node(domain="left/right"),
    domain_empty=lambda w: vbus.Node(domain=""),
    domain_no_text=lambda w: vbus.Node(domain=5),
    domain_long=lambda w: vbus.Node(domain="x" * 300),
    domain_no_unicode=lambda w: vbus.Node(domain="a\udc80"),
    name_with_control_character=lambda w: vbus.Node("line\nbreak"),
    secret_of_wrong_type=lambda w: vbus.Node(secret=5),
    secret_empty=lambda w: vbus.Node(secret=""),
    secret_short=lambda w: vbus.Node(secret="abc"),
    secret_long=lambda w: vbus.Node(secret="x" * 70_000),
    secret_and_open=lambda w: vbus.Node(secret=SECRET, open=True),
    secret_twice=lambda w: w.environment(VBUS_SECRET=SECRET, VBUS_SECRET_FILE="/x"),
    secret_file_missing=lambda w: w.environment(VBUS_SECRET_FILE=str(w.path / "secret")),
    secret_file_not_named=lambda w: w.environment(VBUS_SECRET_FILE=""),
    secret_file_empty=lambda w: (
        (w.path / "secret").touch(),
        w.environment(VBUS_SECRET_FILE=str(w.path / "secret")),
    ),
    open_of_wrong_type=lambda w: vbus.Node(open="yes"),
    open_in_environment=lambda w: w.environment(VBUS_OPEN="perhaps"),
    peers_as_text=lambda w: vbus.Node(peers="robot:7000"),
    peers_of_wrong_type=lambda w: vbus.Node(peers=5),
    peers_entry_of_wrong_type=lambda w: vbus.Node(peers=[5]),
    peers_without_port=lambda w: vbus.Node(peers=["robot"]),
    peers_with_wrong_port=lambda w: vbus.Node(peers=["robot:70000"]),
    listen_without_port=lambda w: vbus.Node(listen="everywhere"),
    discovery_unknown=lambda w: vbus.Node(discovery=["telepathy"]),
    discovery_empty=lambda w: vbus.Node(discovery=[]),
    shm_of_wrong_type=lambda w: vbus.Node(shm=5),
    shm_empty=lambda w: vbus.Node(shm=""),
    shm_with_null=lambda w: vbus.Node(shm="/a\0b"),
    memory_zero=lambda w: vbus.Node(memory=0),
    memory_in_environment=lambda w: w.environment(VBUS_MEMORY="lots"),
)


def shm_is(make: Callable[[Path], object]) -> Story:
    def story(w: World) -> object:
        make(w.path / "meet")
        return vbus.Node(shm=w.path / "meet")

    return story


stories(
    "Node: the meeting directory",
    is_a_file=shm_is(lambda path: path.touch()),
    is_a_link=shm_is(lambda path: path.symlink_to(path.parent)),
    has_no_parent=lambda w: vbus.Node(shm=w.path / "no" / "where"),
    is_below_a_file=lambda w: ((w.path / "file").touch(), vbus.Node(shm=w.path / "file" / "below")),
)


def closed(what: str) -> Story:
    def story(w: World) -> object:
        if what == "watch":
            watch = w.node.watch()
            watch.close()
            return watch.receive()
        if what == "node":
            w.node.close()
            return w.node.peers()
        if what == "publisher":
            publisher = w.node.publisher("robot/pose")
            publisher.close()
            return publisher.publish(1)
        if what == "subscriber":
            subscriber = w.node.subscriber("robot/pose")
            subscriber.close()
            return subscriber.receive()
        subscriber, publisher = w.node.subscriber("robot/pose"), w.node.publisher("robot/pose")
        publisher.publish(1)
        sample = subscriber.receive(10)
        sample.release()
        return sample.value

    return story


def in_a_fork(w: World) -> object:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            w.node.peers()
        except vbus.ForkError as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    raise vbus.ForkError(said)


def receive_what_was_published_before(w: World) -> None:
    publisher = w.node.publisher("robot/pose")
    publisher.publish(1)
    w.node.subscriber("robot/pose").receive(0.001)


def call_in_the_loop_that_answers(w: World) -> None:
    async def answers(request: object) -> object:
        return request

    async def calls() -> None:
        with w.node.serve("math/add", answers):
            await asyncio.sleep(0)
            w.node.call("math/add", 1)

    asyncio.run(calls())


def loan_without_numpy(w: World) -> None:
    w.monkeypatch.setitem(sys.modules, "numpy", None)
    w.monkeypatch.delitem(sys.modules, "vbus.codec.loans", raising=False)
    with w.node.publisher("robot/pose").loan_array(1):
        pass


def watch_a_moment(w: World) -> object:
    with w.node.watch() as watch:
        return watch.receive(0)


stories(
    "Use",
    closed_node=closed("node"),
    closed_publisher=closed("publisher"),
    closed_subscriber=closed("subscriber"),
    closed_watch=closed("watch"),
    released_sample=closed("sample"),
    after_a_fork=in_a_fork,
    callback_of_wrong_type=lambda w: w.node.subscriber("robot/pose", callback=5),
    callback_of_a_coroutine=lambda w: w.node.subscriber("robot/pose", callback=receive_in_a_loop),
    receive_beside_a_callback=lambda w: w.node.subscriber("robot/pose", callback=print).receive(0),
    nothing_came=lambda w: w.node.subscriber("robot/pose").receive(0.001),
    nothing_came_from_a_publisher=receive_what_was_published_before,
    nothing_came_of_many=lambda w: w.node.subscriber("robot/pose").receive_many(timeout=0.001),
    nothing_came_to_a_coroutine=lambda w: asyncio.run(w.node.subscriber("robot/pose").receive_async(0.001)),
    nothing_came_of_many_to_a_coroutine=lambda w: asyncio.run(
        w.node.subscriber("robot/pose").receive_many_async(timeout=0.001)
    ),
    nothing_happened=watch_a_moment,
    negative_timeout=lambda w: w.node.subscriber("robot/pose").receive(-1),
    negative_timeout_of_a_coroutine=lambda w: asyncio.run(w.node.subscriber("robot/pose").receive_async(-1)),
    none_of_many=lambda w: w.node.subscriber("robot/pose").receive_many(0),
    none_of_many_events=lambda w: w.node.watch().receive_many(0),
    fewer_than_none=lambda w: w.node.wait_for_peers(-1),
    pickled_node=lambda w: w.node.__reduce_ex__(4),
    pickled_publisher=lambda w: w.node.publisher("robot/pose").__reduce_ex__(4),
    pickled_subscriber=lambda w: w.node.subscriber("robot/pose").__reduce_ex__(4),
    pickled_watch=lambda w: w.node.watch().__reduce_ex__(4),
    pickled_loan=lambda w: w.node.publisher("robot/pose").loan(1).__reduce_ex__(4),
    pickled_array_loan=lambda w: w.node.publisher("robot/pose").loan_array(1).__reduce_ex__(4),
    pickled_sample=lambda w: a_sample(w).__reduce_ex__(4),
    topic_of_wrong_type=lambda w: w.node.publisher(None),
    channel_changed=lambda w: setattr(vbus.Channel("a"), "topic", "b"),
    channel_deleted=lambda w: delattr(vbus.Channel("a"), "topic"),
    unknown_name=lambda w: vbus.Subscribr,
)


def a_sample(w: World) -> vbus.Sample:
    subscriber = w.node.subscriber("robot/pose")
    w.node.publisher("robot/pose").publish(1)
    return subscriber.receive(10)


stories(
    "Topics",
    empty=lambda w: w.node.publisher(""),
    long=lambda w: w.node.publisher("x" * 300),
    empty_segment=lambda w: w.node.publisher("a//b"),
    control_character=lambda w: w.node.publisher("a\nb"),
    wildcard=lambda w: w.node.publisher("a/*"),
    partial_wildcard=lambda w: w.node.subscriber("a/b*"),
)

stories(
    "Quality of service",
    unknown=lambda w: w.node.publisher("robot/pose", colour="red"),
    reliability=lambda w: w.node.publisher("robot/pose", reliability="sometimes"),
    ordered=lambda w: w.node.publisher("robot/pose", ordered=1),
    depth=lambda w: w.node.publisher("robot/pose", depth=0),
    on_full=lambda w: w.node.publisher("robot/pose", on_full="explode"),
    on_full_of_a_subscriber=lambda w: w.node.subscriber("robot/pose", on_full="error"),
    lifespan=lambda w: w.node.publisher("robot/pose", lifespan="long"),
    priority=lambda w: w.node.publisher("robot/pose", priority=8),
    max_size=lambda w: w.node.publisher("robot/pose", max_size=-1),
    the_publishers_alone=lambda w: w.node.subscriber("robot/pose", priority=1),
    spin=lambda w: w.node.subscriber("robot/pose", spin=-1),
    a_long_value=lambda w: w.node.publisher("robot/pose", on_full="x" * 1000),
)


def fill(w: World, **qos: object) -> object:
    subscriber = w.node.subscriber("robot/pose")
    publisher = w.node.publisher("robot/pose", depth=1, **qos)
    publisher.publish(1)
    assert subscriber.publishers == 1
    return publisher.publish(2)


def fill_in_a_loop(w: World) -> object:
    async def story() -> object:
        publisher = w.node.publisher("robot/pose", depth=1, block_timeout=0.01)
        publisher.publish(1)
        return await publisher.publish_async(2)

    with w.node.subscriber("robot/pose"):
        return asyncio.run(story())


async def receive_in_a_loop(sample: object) -> None:
    """No function that is called plainly."""


def hoard(w: World) -> object:
    node = w.join("small", memory=4 << 20)
    subscriber = node.subscriber("robot/map", bytes)
    publisher = node.publisher("robot/map", bytes, block_timeout=0.001)
    held = []
    while True:
        publisher.publish(bytes(1 << 20))
        held.append(subscriber.receive(10))


def keep(w: World) -> object:
    publisher = w.join("small", memory=4 << 20).publisher("robot/map", bytes, history=100)
    while True:
        publisher.publish(bytes(1 << 20))


def larger_than_memory(w: World) -> object:
    node = w.join("small", memory=4 << 20)
    return node.publisher("robot/map", bytes).loan(8 << 20)


def loan_twice(w: World) -> object:
    loan = w.node.publisher("robot/map").loan(10)
    loan.publish()
    return loan.publish()


stories(
    "Publishing",
    no_room_in_time=lambda w: fill(w, block_timeout=0.001),
    no_room_in_time_for_a_coroutine=fill_in_a_loop,
    no_room=lambda w: fill(w, on_full="error"),
    no_memory_in_time=hoard,
    no_memory_at_all=keep,
    too_large_for_the_node=larger_than_memory,
    too_large=lambda w: w.publish(bytes, bytes(11), max_size=10),
    too_large_a_loan=lambda w: w.node.publisher("robot/pose", max_size=10).loan(11),
    headers_too_large=lambda w: w.node.publisher("robot/pose").publish(1, headers={"k": "v" * 5000}),
    headers_no_mapping=lambda w: w.node.publisher("robot/pose").publish(1, headers="k=v"),
    headers_no_texts=lambda w: w.node.publisher("robot/pose").publish(1, headers={"k": 1}),
    headers_no_unicode=lambda w: w.node.publisher("robot/pose").publish(1, headers={"k": "\udc80"}),
    loan_below_zero=lambda w: w.node.publisher("robot/pose").loan(-1),
    loan_over=loan_twice,
    loan_truncated_to_more=lambda w: w.node.publisher("robot/pose").loan(10).truncate(11),
    loan_of_a_type_without=lambda w: w.node.publisher("robot/pose", Pose).loan(10),
    array_loan_of_a_type_without=lambda w: w.node.publisher("robot/pose", Pose).loan_array(10),
    array_loan_of_objects=lambda w: w.node.publisher("robot/pose").loan_array(10, object).__enter__(),
    array_loan_of_another_dtype=lambda w: (
        w.node.publisher("robot/pose", NDArray[np.float32]).loan_array(10, "f8").__enter__()
    ),
    array_loan_without_numpy=loan_without_numpy,
    array_loan_of_no_shape=lambda w: w.node.publisher("robot/pose").loan_array("long").__enter__(),
    array_loan_below_zero=lambda w: w.node.publisher("robot/pose").loan_array((3, -1)).__enter__(),
)

stories(
    "Values that do not fit",
    without_a_type=lambda w: w.publish(None, Opaque()),
    bytes=lambda w: w.publish(bytes, "text"),
    int=lambda w: w.publish(int, "five"),
    float=lambda w: w.publish(float, "1.5"),
    str=lambda w: w.publish(str, 5),
    bool=lambda w: w.publish(bool, 1),
    a_long_value=lambda w: w.publish(int, "x" * 1000),
    union=lambda w: w.publish(int | str, 1.5),
    literal=lambda w: w.publish(Literal["a", "b"], "c"),
    enum=lambda w: w.publish(Colour, "blue"),
    list=lambda w: w.publish(list[int], [1, "two"]),
    no_list=lambda w: w.publish(list[int], 5),
    dict=lambda w: w.publish(dict[str, int], {"a": "b"}),
    no_dict=lambda w: w.publish(dict[str, int], 5),
    dict_key=lambda w: w.publish(dict[int, int], {"a": 1}),
    tuple=lambda w: w.publish(tuple[int, str], (1, 2)),
    tuple_of_another_length=lambda w: w.publish(tuple[int, str], (1,)),
    dataclass=lambda w: w.publish(Pose, Pose("left")),
    no_dataclass=lambda w: w.publish(Pose, 5),
    nested=lambda w: w.publish(Track, Track([Pose(1.0), Pose("left")], {})),
    typed_dict=lambda w: w.publish(Options, {"a": "b"}),
    typed_dict_without_a_field=lambda w: w.publish(Options, {}),
    named_tuple=lambda w: w.publish(Point, Point("left")),
    struct=lambda w: w.publish(Command, Command(5)),
    datetime=lambda w: w.publish(datetime, "today"),
    array=lambda w: w.publish(np.ndarray, [1, 2]),
    array_of_objects=lambda w: w.publish(np.ndarray, np.array([None])),
    array_with_a_mask=lambda w: w.publish(np.ndarray, np.ma.masked_array([1, 2], [True, False])),
    array_in_a_dataclass=lambda w: w.publish(Frame, Frame("no array")),
    no_encoding_within=lambda w: w.publish(list, [Opaque()]),
    int_too_large=lambda w: w.publish(None, 1 << 80),
    int_too_large_of_a_type=lambda w: w.publish(int, 1 << 80),
)

stories(
    "Samples that do not fit",
    bytes=lambda w: w.read("text", bytes),
    int=lambda w: w.read("text", int),
    list=lambda w: w.read([1, "two"], list[int]),
    dict=lambda w: w.read({"a": "b"}, dict[str, int]),
    dataclass=lambda w: w.read({"y": 1.0}, Pose),
    field=lambda w: w.read({"x": "left"}, Pose),
    nested=lambda w: w.read({"poses": [{"x": 1.0}, {"x": "left"}], "labels": {}}, Track),
    enum=lambda w: w.read("blue", Colour),
    literal=lambda w: w.read("c", Literal["a", "b"]),
    union=lambda w: w.read(1.5, int | str),
    tuple=lambda w: w.read([1], tuple[int, str]),
    array=lambda w: w.read("text", np.ndarray),
    array_in_a_dataclass=lambda w: w.read({"image": 5}, Frame),
    refused_by_the_class=lambda w: w.read({"x": -1}, Guarded),
    raw_for_a_type=lambda w: w.read(b"\x93", Pose),
)


def foreign(encoding: str, payload: bytes, meta: bytes = b"", type_: object = None) -> Story:
    """Reading what no publisher of this version sends, or one of another program."""

    def story(w: World) -> object:
        subscriber, publisher = w.node.subscriber("robot/pose", type_), w.node.publisher("robot/pose")
        register_sealed()
        loan = publisher.raw_loan(len(payload), None, encoding, meta)
        loan.buffer[:] = payload
        loan.publish()
        return subscriber.receive(10).value

    return story


stories(
    "Samples that cannot be read",
    unknown_encoding=foreign("protobuf", b"x"),
    unknown_encoding_for_a_type=foreign("protobuf", b"x", type_=int),
    nonsense=foreign("msgpack", b"\xc1"),
    nonsense_for_a_type=foreign("msgpack", b"\xc1", type_=Pose),
    array_of_another_size=foreign("ndarray", bytes(5), b"3 <f8"),
    array_of_no_shape=foreign("ndarray", bytes(8), b"-1 <f8"),
    array_of_objects=foreign("ndarray", bytes(8), b"1 |O"),
    array_of_endless_kind=foreign("ndarray", bytes(8), b"1 " + b"x" * 100),
    array_of_unknown_kind=foreign("ndarray", bytes(8), b"1 bfloat99"),
    refused_by_a_codec=foreign("sealed", b"x", type_=Sealed),
)


@dataclass
class Broken:
    part: "NoSuchClass"  # noqa: F821


T = TypeVar("T")


@dataclass
class Seeded:
    x: int
    seed: InitVar[int] = 0


@dataclass
class Endless(Generic[T]):
    more: "Endless[list[T]] | None" = None


stories(
    "Types that cannot travel",
    a_class=lambda w: w.node.publisher("robot/pose", Opaque),
    no_type=lambda w: w.node.publisher("robot/pose", 5),
    a_list_of_types=lambda w: w.node.publisher("robot/pose", [int]),
    the_name_of_a_type=lambda w: w.node.publisher("robot/pose", "Pose"),
    a_tuple_of_both=lambda w: w.node.publisher("robot/pose", tuple[int, *tuple[str, ...]]),
    an_argument_that_is_not_kept=lambda w: w.node.publisher("robot/pose", Seeded),
    arguments_of_no_type=lambda w: w.node.publisher("robot/pose", Endless[Annotated[int, []]]),
    an_endless_type=lambda w: w.node.publisher("robot/pose", Endless[int]),
    annotations=lambda w: w.node.publisher("robot/pose", Broken),
    a_class_within=lambda w: w.node.publisher("robot/pose", list[Opaque]),
    a_codec_within=lambda w: (
        register_sealed(),
        w.node.publisher("robot/pose", list[Sealed]),
    ),
)


def register_sealed() -> None:
    # Codecs are the process's: what is registered once stays.
    with contextlib.suppress(vbus.ConfigError):
        vbus.register_codec(Sealed, name="sealed", encode=refuse, decode=refuse)


def publish_sealed(w: World, value: object) -> object:
    register_sealed()
    return w.publish(Sealed, value)


def read_sealed(w: World, sent: object) -> object:
    register_sealed()
    return w.read(sent, Sealed)


class Loose:
    def __repr__(self) -> str:
        return "Loose()"


def publish_with_a_codec_that_gives_no_bytes(w: World) -> object:
    with contextlib.suppress(vbus.ConfigError):
        vbus.register_codec(Loose, name="loose", encode=str, decode=lambda payload: 1 / 0)
    return w.publish(Loose, Loose())


stories(
    "Codecs",
    not_callable=lambda w: codec(encode=5),
    name_of_vbus=lambda w: codec(name="raw"),
    type_of_vbus=lambda w: codec(type=int),
    name_taken=lambda w: codec(name="sealed"),
    type_taken=lambda w: codec(type=Sealed),
    no_class=lambda w: codec(type=5),
    no_name=lambda w: codec(name=""),
    refuses_a_value=lambda w: publish_sealed(w, Sealed()),
    another_value=lambda w: publish_sealed(w, 5),
    another_encoding=lambda w: read_sealed(w, 5),
    gives_no_bytes=publish_with_a_codec_that_gives_no_bytes,
)


def ask(handler: object, *, timeout: float | None = 10, stream: bool = False, **types: object) -> Story:
    """A call of this handler, from a node of its own."""

    def story(w: World) -> object:
        caller = w.join("caller")
        w.node.serve("math/add", handler, **types)
        if stream:
            return list(caller.call_stream("math/add", 1, timeout=timeout))
        return caller.call("math/add", 1, timeout=timeout)

    return story


def wait_for_ever(request: object) -> None:
    threading.Event().wait(1)


def items(request: object) -> Iterator[int]:
    yield 1
    threading.Event().wait(1)


async def async_items(request: object) -> AsyncIterator[int]:
    yield 1


def fail(request: object) -> int:
    raise KeyError("no such number")


def call_in_a_loop(w: World) -> object:
    w.node.serve("math/add", wait_for_ever)
    return asyncio.run(w.join("caller").call_async("math/add", 1, timeout=0.05))


def step_in_a_loop(w: World) -> object:
    async def story() -> object:
        return [item async for item in w.join("caller").call_stream("math/add", 1, timeout=0.05)]

    w.node.serve("math/add", items)
    return asyncio.run(story())


def left_stream(w: World) -> object:
    w.node.serve("math/add", items)
    stream = w.node.call_stream("math/add", 1)
    stream.close()
    return next(stream)


def closed_and_called(w: World) -> object:
    w.node.close()
    return w.node.call("math/add", 1)


stories(
    "Calls",
    in_the_loop_that_answers=call_in_the_loop_that_answers,
    nobody_serves=lambda w: w.node.call("math/add", 1),
    another_type=lambda w: (
        w.node.serve("math/add", abs, request=int, reply=int),
        w.node.call("math/add", "one", request=str, reply=int),
    ),
    no_reply_in_time=ask(wait_for_ever, timeout=0.05),
    no_reply_in_time_to_a_coroutine=call_in_a_loop,
    no_item_in_time=ask(items, timeout=0.05, stream=True),
    no_item_in_time_to_a_coroutine=step_in_a_loop,
    the_handler_raised=ask(fail),
    reply_of_another_type=ask(lambda request: "one", reply=int),
    generator_for_one_reply=ask(items),
    async_generator_for_one_reply=ask(async_items),
    request_of_another_type=lambda w: w.node.call("math/add", "one", request=int),
    handler_that_is_none=lambda w: w.node.serve("math/add", 5),
    concurrency_of_none=lambda w: w.node.serve("math/add", abs, concurrency=0),
    name_of_wrong_type=lambda w: w.node.call(5, 1),
    name_of_the_bus=lambda w: w.node.serve("$vbus/add", abs),
    name_with_wildcard=lambda w: w.node.serve("math/*", abs),
    negative_timeout=lambda w: w.node.call("math/add", 1, timeout=-1),
    left_stream=left_stream,
    closed_node=closed_and_called,
    pickled_server=lambda w: w.node.serve("math/add", abs).__reduce_ex__(4),
    pickled_stream=lambda w: (
        w.node.serve("math/add", items),
        w.node.call_stream("math/add", 1).__reduce_ex__(4),
    ),
    service_changed=lambda w: setattr(vbus.Service("a"), "name", "b"),
    service_deleted=lambda w: delattr(vbus.Service("a"), "name"),
)


# ---- they are provoked, and read ------------------------------------------------------------------


class Provoked(NamedTuple):
    """What is kept of an error: not itself, whose frames hold nodes."""

    text: str
    said: str
    places: set[tuple[str, int]]


@pytest.fixture(scope="module")
def provoked() -> dict[tuple[str, str], Provoked]:
    return {}


EVERYTHING = [(heading, name) for heading, found in STORIES.items() for name in found]


@pytest.mark.contract(
    "A message says what was wrong, with the value (long ones cut after at least 20 characters"
)
@pytest.mark.parametrize(("heading", "name"), EVERYTHING)
def test_an_error_says_what_happened(heading, name, provoked, node, join, meeting, tmp_path, monkeypatch):
    with pytest.raises(Exception, match=r".") as caught:
        STORIES[heading][name](World(node, join, meeting, tmp_path, monkeypatch))
    text = told(caught.value)
    provoked[heading, name] = Provoked(text, str(caught.value), places(caught.value))
    if "long" in name:
        assert len(text) < 300, "long values are cut"
    assert SECRET not in text
    assert not text.endswith(".")
    if not REWRITE:
        assert f"\n{name}\n    {text}\n" in section(heading), "if it reads well: ./dev docs"


def test_the_texts_are_those_of_the_stories(provoked):
    needs_all(provoked)
    if REWRITE:
        lines = [HEAD]
        for heading, found in STORIES.items():
            lines.append(f"\n== {heading}\n")
            lines += [f"{name}\n    {provoked[heading, name].text}\n" for name in found]
        TEXTS.write_text("\n".join(lines))
    titles = re.findall(r"^(\w+)$", TEXTS.read_text(), re.MULTILINE)
    assert titles == [name for _, name in EVERYTHING], "a text without its story: ./dev docs"


def told(error: Exception) -> str:
    """Class and text, without what differs from run to run."""
    text = re.sub(r"/tmp/[^ ]*?/test_an_error_says\w*", "/tmp/here", str(error))
    text = re.sub(r"\b[0-9a-f]{32}\b", "0a1b…", text)
    text = re.sub(r"\b\d+\.\d{3} s\b", "0.001 s", text)
    text = re.sub(r"\b0x[0-9a-f]+\b", "0x1", text)
    text = re.sub(r"\bpid \d+ on [^)]*", "pid 1 on here", text)
    text = re.sub(r"\btest-[0-9a-f]{16}\b", "test", text)
    return f"{type(error).__name__}: {text}"


def section(heading: str) -> str:
    return TEXTS.read_text().partition(f"\n== {heading}\n")[2].partition("\n== ")[0]


def needs_all(provoked: dict[tuple[str, str], Provoked]) -> None:
    if set(provoked) != set(EVERYTHING):
        pytest.skip("only some stories ran")


# ---- none is forgotten ----------------------------------------------------------------------------

NONSENSE = "nonsense of a stranger becomes a DecodeError, in test_codec.py"
RACE = "comes of a close, a death or a crowd at a certain moment: test_service_processes.py"
NOT_PROVOKED = {
    "not_a_stream": "is raised in the server's thread, and told by the RemoteError",
    "over": "ends an iteration",
    "exchange.closed_error()": RACE,
    "self.closed_error()": RACE,
    "pending.timeout_error('it does not answer')": RACE,
    "pending.timeout_error('it takes no request')": RACE,
    "pending.timeout_error(str(error))": RACE,
    "end": RACE,
    "self.timeout_error()": RACE,
    "stream.timeout_error()": RACE,
    "Timeout(f'{remote} could not be reached": RACE,
    "TypeError(f'what is sent here was encoded before": "a promise of our own code",
    "ValueError(f'a head of": NONSENSE,
    "ValueError(f'no array can begin": NONSENSE,
    "ValueError('it refers to an array": NONSENSE,
    "NotImplementedError": "an abstract method",
    "HasArrays": "tells the packer to pack the arrays beside the rest",
    "error": "is the Timeout of a publish_async behind others: test_publish_async.py",
    "asyncio.CancelledError": "is what the loop asked for",
    "StopIteration": "ends an iteration",
    "StopAsyncIteration": "ends an iteration",
    "Misfit": "becomes an EncodeError or a DecodeError, which says it",
    "misfit": "becomes an EncodeError or a DecodeError, which says it",
    "self._misfit": "becomes an EncodeError or a DecodeError, which says it",
    "AssertionError": "a promise of our own code",
}
"""What the text of a `raise` begins with, and why no story comes there."""


def test_every_raise_of_the_package_is_provoked(provoked):
    needs_all(provoked)
    reached = {place for error in provoked.values() for place in error.places}
    forgotten = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if "cli" in path.parts:
            continue  # says its errors on stderr: test_cli.py
        for statement in ast.walk(ast.parse(path.read_text())):
            if not isinstance(statement, ast.Raise) or statement.exc is None:
                continue
            text = ast.unparse(statement.exc)
            if text.startswith(tuple(NOT_PROVOKED)):
                continue
            if not any((str(path), line) in reached for line in lines_of(statement)):
                forgotten.append(f"{path.relative_to(PACKAGE)}:{statement.lineno}: raise {text}")
    assert not forgotten, "\n" + "\n".join(forgotten)


def places(error: BaseException | None) -> set[tuple[str, int]]:
    """Where it, and what it came from, passed by."""
    found: set[tuple[str, int]] = set()
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            found.add((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
            trace = trace.tb_next
        error = error.__cause__ or error.__context__
    return found


def lines_of(statement: ast.Raise) -> range:
    return range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)


TROUBLE = "needs a machine or a container in trouble; test_limits.py and test_containers.py make some"
RIGHTS = "needs a directory of another user or namespace"
EARLIER = "the Python layer looks first, and says it with the name of the setting"
PEER = "ends a connection with a peer that breaks the protocol; no user sees it"
UNREACHED = {
    "nothing more can be opened": TROUBLE,
    "the type's description has": "a type as long is told less precisely, by test_types.py",
    "its process does not answer": TROUBLE,
    "{shortage}; {samples} samples": TROUBLE,
    "the secret is empty": EARLIER,
    "the secret has {len} bytes": EARLIER,
    "does not exist; make it": "one that is missing is made",
    "cannot be made: {cause}": RIGHTS,
    "belongs to uid {owner}": RIGHTS,
    "belongs to somebody outside": RIGHTS,
    "cannot be read by uid": RIGHTS,
    "cannot be written by uid": RIGHTS,
    "is too long for a socket": TROUBLE,
    "no socket can be made": TROUBLE,
    "segments already": TROUBLE,
    "the other side's {word}": "is logged: tests/hostile.rs",
    "was asked for; it must have": "a promise of our own code",
    "a segment of": TROUBLE,
    "the kernel": TROUBLE,
    "a descriptor came": "is logged: tests/hostile.rs",
    "a segment came": "is logged: tests/hostile.rs",
    "malformed at byte": "is counted and logged at debug",
    "there is no interface": "test_network.py provokes it",
    "is taken by another program": "test_network.py provokes it",
    "is none of this host": TROUBLE,
    "is not for this user": TROUBLE,
    "no UDP socket at": TROUBLE,
    "the domain's name has": EARLIER,
    "the packet does not open": PEER,
    "packets did not open": PEER,
    "the key sealed": PEER,
    "packet {number} is acknowledged": PEER,
    "the peer sent": PEER,
    "the peer left": PEER,
    "the peer contradicts": PEER,
    "the peer speaks of": PEER,
    "the peer opened": PEER,
    "bytes of control wait": PEER,
}
"""Texts of the core that no story provokes, by a piece of theirs, and why not."""


def test_every_text_of_the_core_is_provoked(provoked):
    needs_all(provoked)
    said = [error.said for error in provoked.values()]
    forgotten = []
    for path in sorted((ROOT / "crates" / "vbus-core" / "src").rglob("*.rs")):
        templates = re.findall(r'#\[error\(\s*"((?:[^"\\]|\\.)*)"', path.read_text(), re.DOTALL)
        forgotten += [
            f"{path.relative_to(ROOT)}: {template}"
            for template in templates
            if not any(piece in template for piece in UNREACHED) and not spoken(template, said)
        ]
    assert not forgotten, "\n" + "\n".join(forgotten)


def spoken(template: str, said: list[str]) -> bool:
    """Whether one of the texts is made of the template."""
    template = re.sub(r"\\\n\s*", "", template).replace('\\"', '"')
    pattern = ".*".join(map(re.escape, re.split(r"\{[^{}]*\}", template)))
    return any(re.search(pattern, text, re.DOTALL) for text in said)
