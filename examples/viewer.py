"""Show whatever the other examples publish: python examples/viewer.py"""

import time
from contextlib import suppress

import vbus


def main() -> None:
    # One who only watches never stops those who work.
    with vbus.Node("viewer") as node, node.subscriber("**", on_full="drop_oldest") as everything:
        for sample in everything:
            late_ms = (time.time_ns() - sample.timestamp_ns) / 1e6
            # Arrays are shown by their shape; everything else is small.
            value = getattr(sample.value, "shape", sample.value)
            print(f"{sample.topic:24} {value} after {late_ms:.2f} ms by {sample.via}, {sample.lost} lost")


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):  # Ctrl-C is how it ends
        main()
