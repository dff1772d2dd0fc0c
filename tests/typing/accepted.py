"""Uses of the public face that strict pyright and strict mypy accept, with the types that they find.

Nothing here runs: `./dev check` has both checkers read it. `assert_type` fails where an inferred type is another
one; what must be refused is in `rejected.py`.
"""

import asyncio
import datetime
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypedDict, TypeVar, assert_type

import numpy as np
from numpy.typing import NDArray

import vbus

T = TypeVar("T")


@dataclass
class Detection:
    label: str
    score: float


class Options(TypedDict):
    speed: int


class Point(NamedTuple):
    x: float
    y: float


@dataclass
class Box(Generic[T]):
    content: T


# ---- channels know their type ---------------------------------------------------------------------

DETECTIONS = vbus.Channel("vision/detections", Detection, history=10)
assert_type(DETECTIONS, vbus.Channel[Detection])
assert_type(vbus.Channel("a"), vbus.Channel[Any])
assert_type(vbus.Channel("a", None, depth=3), vbus.Channel[Any])
assert_type(vbus.Channel("a", int | None), vbus.Channel[int | None])
assert_type(vbus.Channel("a", list[Detection]), vbus.Channel[list[Detection]])
assert_type(vbus.Channel("a", dict[str, float]), vbus.Channel[dict[str, float]])
assert_type(vbus.Channel("a", tuple[int, str]), vbus.Channel[tuple[int, str]])
assert_type(vbus.Channel("a", Annotated[int, "metres"]), vbus.Channel[int])
assert_type(vbus.Channel("a", Options), vbus.Channel[Options])
assert_type(vbus.Channel("a", Point), vbus.Channel[Point])
assert_type(vbus.Channel("a", Box[int]), vbus.Channel[Box[int]])
assert_type(vbus.Channel("a", datetime.datetime | uuid.UUID), vbus.Channel[datetime.datetime | uuid.UUID])
assert_type(vbus.Channel("a", NDArray[np.float32]), vbus.Channel[NDArray[np.float32]])
LEVEL: vbus.Channel[Literal["low", "high"]] = vbus.Channel("level", Literal["low", "high"])
assert_type(LEVEL.topic, str)
assert_type(LEVEL.qos, dict[str, Any])

BYTES: vbus.Channel[bytes] = vbus.Channel(
    "raw",
    bytes,
    reliability="best_effort",
    ordered=False,
    depth=1,
    on_full="drop_oldest",
    block_timeout=0.5,
    history=1,
    lifespan=2.0,
    priority=0,
    max_size=1 << 20,
)


# ---- a node's publishers and subscribers have it from them ------------------------------------------


def publishers(node: vbus.Node) -> None:
    detections = node.publisher(DETECTIONS)
    assert_type(detections, vbus.Publisher[Detection])
    assert_type(detections.publish(Detection("cat", 0.5)), int)
    detections.publish(Detection("cat", 1), headers={"trace": "7"})
    assert_type(node.publisher(DETECTIONS, depth=1, on_full="error"), vbus.Publisher[Detection])
    assert_type(node.publisher("a"), vbus.Publisher[Any])
    assert_type(node.publisher("a", int), vbus.Publisher[int])
    assert_type(node.publisher("a", int | None), vbus.Publisher[int | None])
    assert_type(node.publisher("a", type=Detection), vbus.Publisher[Detection])
    assert_type(node.publisher(DETECTIONS, dict[str, Any]), vbus.Publisher[dict[str, Any]])
    node.publisher("a").publish({"anything": [1, 2.5, None]})
    node.publisher("a", float).publish(1)
    with node.publisher("a", bytes) as raw, raw.loan(64, headers={"a": "b"}) as loan:
        assert_type(raw, vbus.Publisher[bytes])
        assert_type(loan.buffer, memoryview)
        loan.truncate(1)
        assert_type(loan.publish(), int)
    images = node.publisher("a", NDArray[np.uint8])
    with images.loan_array((480, 640), np.uint8) as array:
        array[0, 0] = 1
    images.publish(np.zeros(3, np.uint8))
    assert_type(images.wait_for_subscribers(1, timeout=2.0), bool)
    assert_type(images.stats().links, tuple[vbus.Link, ...])


def subscribers(node: vbus.Node) -> None:
    for sample in node.subscriber(DETECTIONS):
        assert_type(sample, vbus.Sample[Detection])
        assert_type(sample.value, Detection)
        assert_type(sample.value.score, float)
        assert_type(sample.payload, memoryview)
        assert_type(sample.source, vbus.Peer)
        assert_type(sample.headers, dict[str, str])
        with sample as same:
            assert_type(same, vbus.Sample[Detection])
    assert_type(node.subscriber("a"), vbus.Subscriber[Any])
    assert_type(node.subscriber("a", int | str), vbus.Subscriber[int | str])
    assert_type(node.subscriber(LEVEL).receive().value, Literal["low", "high"])
    assert_type(node.subscriber(DETECTIONS, type=float, depth=3, spin=0), vbus.Subscriber[float])
    numbers = node.subscriber("a/*", list[int])
    assert_type(numbers.receive(timeout=1).value, list[int])
    assert_type(numbers.receive_nowait(), vbus.Sample[list[int]] | None)
    assert_type(numbers.receive_many(10), list[vbus.Sample[list[int]]])
    assert_type(numbers.fileno(), int)


def on_detection(sample: vbus.Sample[Detection]) -> None:
    assert_type(sample.value, Detection)


def on_anything(sample: vbus.Sample[Any]) -> None:
    assert_type(sample.value, Any)


def callbacks(node: vbus.Node) -> None:
    node.subscriber(DETECTIONS, callback=on_detection)
    node.subscriber("a", Detection, callback=on_detection)
    node.subscriber("a", callback=on_anything)
    node.subscriber("a", int, callback=lambda sample: print(sample.value.bit_length()))


async def twins(node: vbus.Node) -> None:
    async with node.subscriber(DETECTIONS) as subscriber, node.publisher(DETECTIONS) as publisher:
        assert_type(await publisher.publish_async(Detection("cat", 1.0)), int)
        assert_type(await subscriber.receive_async(1.0), vbus.Sample[Detection])
        assert_type(await subscriber.receive_many_async(), list[vbus.Sample[Detection]])
        async for sample in subscriber:
            assert_type(sample, vbus.Sample[Detection])
        await asyncio.gather(publisher.flush_async(), subscriber.wait_for_publishers_async())


# ---- generic code ---------------------------------------------------------------------------------


def latest(subscriber: vbus.Subscriber[T]) -> T:
    return subscriber.receive().value


def relay(node: vbus.Node, channel: vbus.Channel[T], use: Callable[[T], None]) -> None:
    for sample in node.subscriber(channel):
        use(sample.value)


def use_generic_code(node: vbus.Node) -> None:
    assert_type(latest(node.subscriber(DETECTIONS)), Detection)
    relay(node, vbus.Channel("a", int), lambda value: print(value + 1))


# ---- services know both their types ------------------------------------------------------------------

COUNT = vbus.Service("count", int, Detection)
assert_type(COUNT, vbus.Service[int, Detection])
assert_type(vbus.Service("any"), vbus.Service[Any, Any])
assert_type(vbus.Service("request", int), vbus.Service[int, Any])
assert_type(vbus.Service("reply", reply=int | None), vbus.Service[Any, int | None])


def a_function(number: int) -> Detection:
    return Detection(str(number), 1)


async def a_coroutine(number: int) -> Detection:
    return Detection(str(number), 1)


def a_generator(number: int) -> Iterator[Detection]:
    yield Detection(str(number), 1)


async def an_async_generator(number: int) -> AsyncIterator[Detection]:
    yield Detection(str(number), 1)


def serving(node: vbus.Node) -> None:
    node.serve(COUNT, a_function, concurrency=4)
    node.serve(COUNT, a_coroutine)
    node.serve(COUNT, a_generator)
    node.serve(COUNT, an_async_generator)
    node.serve(COUNT, lambda number: Detection(str(number + 1), 1))
    node.serve("count", a_function, request=int, reply=Detection)
    node.serve("count", a_function)
    with node.serve("count", a_function, request=int) as server:
        assert_type(server, vbus.Server)
        assert_type(server.stats(), vbus.ServerStats)


async def calling(node: vbus.Node) -> None:
    assert_type(node.call(COUNT, 1, timeout=1), Detection)
    assert_type(node.call("count", 1, reply=int | None), int | None)
    assert_type(node.call("count", 1), Any)
    assert_type(await node.call_async(COUNT, 1), Detection)
    assert_type(await node.call_async("count", 1, request=int, reply=str), str)
    for item in node.call_stream(COUNT, 1):
        assert_type(item, Detection)
    async for item in node.call_stream(COUNT, 1):
        assert_type(item, Detection)
    with node.call_stream("count", 1, reply=int) as stream:
        assert_type(next(stream), int)
    try:
        node.call(COUNT, 1)
    except vbus.RemoteError as error:
        assert_type((error.type, error.message, error.traceback), tuple[str, str, str])
        assert_type(error.server, vbus.Peer)
    assert_type(node.services()[0].servers, tuple[vbus.Peer, ...])


# ---- codecs, errors and records ---------------------------------------------------------------------


class Picture:
    def __init__(self, pixels: bytes) -> None:
        self.pixels = pixels


vbus.register_codec(
    Picture,
    name="picture",
    encode=lambda picture: picture.pixels,
    decode=lambda payload: Picture(bytes(payload)),
)


def errors(subscriber: vbus.Subscriber[int]) -> int:
    try:
        return subscriber.receive(0).value
    except vbus.DecodeError as error:
        assert_type(error.topic, str | None)
        assert_type(error.field, str | None)
    except (vbus.Timeout, vbus.Closed) as error:
        assert_type(error.subscriber, str | None)
    return 0


def records(node: vbus.Node) -> None:
    for info in node.topics():
        assert_type(info, vbus.TopicInfo)
        assert_type(info.encoding, str)
        assert_type(info.mismatches, tuple[vbus.Mismatch, ...])
        assert_type(info.publishers[0].peer, vbus.Peer)
    assert_type(node.peers(), list[vbus.Peer])
