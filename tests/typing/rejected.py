"""Wrong uses of the public face, each of which strict pyright and strict mypy report.

Nothing here runs: `./dev check` has both checkers read it. Every wrong line says that it is one; a line that a
checker did not report would be an unnecessary comment, which is an error.
"""

from dataclasses import dataclass

import vbus


@dataclass
class Detection:
    label: str
    score: float


@dataclass
class Command:
    speed: int


DETECTIONS = vbus.Channel("vision/detections", Detection)
NUMBERS = vbus.Channel("numbers", int | None)


def on_command(sample: vbus.Sample[Command]) -> None:
    sample.release()


def channels() -> None:
    vbus.Channel(5)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    vbus.Channel("a", 5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    vbus.Channel("a", int, depht=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    vbus.Channel("a", int, depth="1")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    vbus.Channel("a", int, on_full="wait")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    wrong: vbus.Channel[str] = vbus.Channel("a", int)  # type: ignore[arg-type]  # pyright: ignore[reportAssignmentType]
    DETECTIONS.topic = "b"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    DETECTIONS.type = Detection  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    del wrong


def publishers(node: vbus.Node) -> None:
    detections = node.publisher(DETECTIONS)
    detections.publish("cat")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    detections.publish(Command(1))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    detections.publish()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    detections.publish(Detection("cat", 1), {"a": "b"})  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    detections.publish(Detection("cat", 1), headers={"a": 1})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    node.publisher(NUMBERS).publish("5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    node.publisher("a", int).publish(1.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    node.publisher("a", on_full="never")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    node.publisher("a", deep=5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    node.publisher(5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    wrong: vbus.Publisher[Command] = node.publisher(DETECTIONS)  # type: ignore[arg-type]  # pyright: ignore[reportAssignmentType]
    with node.publisher("a", bytes).loan(10) as loan:
        loan.buffer = memoryview(b"")  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    del wrong


def subscribers(node: vbus.Node) -> None:
    node.subscriber(DETECTIONS, priority=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    node.subscriber("a", max_size=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    node.subscriber("a", on_full="error")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    node.subscriber(DETECTIONS, callback=on_command)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    sample = node.subscriber(DETECTIONS).receive()
    sample.value.speed  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    number: int = node.subscriber(NUMBERS).receive().value  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    sample.value = Detection("dog", 1)  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    node.subscriber("a", int).receive("soon")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    node.subscriber("a", int).receive_nowait().value  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
    del number


async def on_event(sample: vbus.Sample[Detection]) -> None:
    sample.release()


def callbacks(node: vbus.Node) -> None:
    node.subscriber(DETECTIONS, callback=on_event)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]


def codecs() -> None:
    vbus.register_codec(int, encode=str.encode, decode=bytes)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    vbus.register_codec(Command, name="c", encode=str, decode=Command)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


COUNT = vbus.Service("count", int, Detection)


def on_text(text: str) -> Detection:
    return Detection(text, 1)


def wrong_reply(number: int) -> str:
    return str(number)


async def services(node: vbus.Node) -> None:
    node.call(COUNT, "text")  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    node.call_stream(COUNT, "text")  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await node.call_async(COUNT, "text")  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    node.serve(COUNT, on_text)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    node.serve(COUNT, wrong_reply)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    node.serve("count", on_text, request=int)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    reply: str = node.call(COUNT, 1)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    COUNT.name = "other"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    del reply
