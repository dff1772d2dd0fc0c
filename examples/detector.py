"""See what moves in the camera's picture, and publish it: python examples/detector.py"""

from contextlib import suppress
from dataclasses import dataclass

import numpy as np

import vbus


@dataclass
class Motion:
    """What changed from one frame to the next."""

    frame: int
    moving: float  # fraction of the pixels


def main() -> None:
    with (
        vbus.Node("detector") as node,
        node.subscriber("camera/image", np.ndarray, depth=4) as images,
        node.publisher("camera/motion", Motion) as motions,
    ):
        before = None
        for sample in images:
            image = sample.value[..., 1].astype(np.int16)
            if before is not None and before.shape == image.shape:
                changed = np.abs(image - before) > 24
                motions.publish(Motion(sample.sequence, float(changed.mean())))
            before = image


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):  # Ctrl-C is how it ends
        main()
