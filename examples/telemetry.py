"""Publish the load of this machine every second: python examples/telemetry.py"""

import os
import time
from contextlib import suppress
from dataclasses import dataclass

import vbus


@dataclass
class Load:
    """How many programs wanted to run, on average over 1, 5 and 15 minutes."""

    one: float
    five: float
    fifteen: float


def main() -> None:
    topic = f"host/{os.uname().nodename}/load"
    # With history, a viewer that comes later has the last value at once.
    with vbus.Node("telemetry") as node, node.publisher(topic, Load, history=1) as loads:
        while True:
            loads.publish(Load(*os.getloadavg()))
            time.sleep(1)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):  # Ctrl-C is how it ends
        main()
