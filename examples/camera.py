"""Publish the frames of a video: python examples/camera.py clip.mp4 (or /dev/video0).

Needs PyAV: pip install av
"""

import sys
import time
from contextlib import suppress

import av
import numpy as np

import vbus


def main(source: str) -> None:
    device = source.startswith("/dev/")
    with (
        vbus.Node("camera") as node,
        node.publisher("camera/image", np.ndarray, on_full="drop_oldest") as images,
    ):
        while True:
            with av.open(source, format="v4l2" if device else None) as video:
                rate = video.streams.video[0].average_rate
                for frame in video.decode(video=0):
                    pixels = frame.to_ndarray(format="rgb24")
                    # The array is the bus's memory: no reader copies what is written here.
                    with images.loan_array(pixels.shape, pixels.dtype) as image:
                        image[:] = pixels
                    if not device and rate:
                        time.sleep(float(1 / rate))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with suppress(KeyboardInterrupt):  # Ctrl-C is how it ends
        main(sys.argv[1])
