"""What tests found out about the places where vbus runs: the rows of `docs/where-it-works.md`.

`VBUS_SITUATIONS=target/situations.jsonl` has each test that stages a situation append what it saw, one JSON
object per line; without it nothing is written. A situation that is staged again counts as it was last.
"""

import json
import os
from pathlib import Path

# Read at import: tests begin without settings from outside.
WRITTEN_TO = os.environ.get("VBUS_SITUATIONS")


def situation(
    name: str, found_by: str | None, path: str | None, first_sample_s: float | None, remedy: str = ""
) -> None:
    """A situation in words, and what came of it.

    `found_by` is the way of discovery ("shm", "mdns", "peers"), `path` the one of its samples (`sample.via`),
    `first_sample_s` the seconds from when the later of both opened its node to the first sample. Where they
    do not talk these are None, and `remedy` is what helps.
    """
    if WRITTEN_TO:
        row = {
            "name": name,
            "found_by": found_by,
            "path": path,
            "first_sample_s": None if first_sample_s is None else round(first_sample_s, 3),
            "remedy": remedy,
        }
        # One write of one line: others append at the same time.
        with Path(WRITTEN_TO).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
