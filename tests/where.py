"""docs/where-it-works.md: what tests saw of the places where vbus runs, as a table.

    python tests/where.py          writes the page of target/situations.jsonl, where `situation()` wrote
    python tests/where.py --anew   forgets the rows that no test wrote down this time

`./dev test --machines` runs all of these tests and then this. Rows of tests that did not run are kept, and so
are times that changed by no more than noise, so that the page changes when what it says does.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "where-it-works.md"
SEEN = HERE.parent / "target" / "situations.jsonl"

HEAD = """# Where it works

Each row was staged for real by a test, which wrote down what it saw; `./dev test --machines` makes this page.
*Found by* is the way on which they learned of each other: a shared directory, mDNS, or `peers`. *Path* is
`sample.via`: `shm` is memory that both have, `udp` the network. *First sample* is the time from when the
later of the two opened its node to the first sample there. Virtual machines were emulated in
software, and are many times slower than real ones. Where they do not talk, the remedy makes them.
"""

SECTIONS = (
    ("Virtual machines", re.compile("virtual machine")),
    ("Containers", re.compile("container|pod")),
    ("Programs of one host", re.compile("process")),
    ("Hosts", re.compile("")),
)
"""The first that matches has it."""
ORDER = ("Programs of one host", "Containers", "Hosts", "Virtual machines")
COLUMNS = ("situation", "found by", "path", "first sample", "remedy")
FOUND = {"shm": "directory", "mdns": "mDNS", "peers": "`peers`", None: "no"}
SPECIAL, ESCAPED = re.compile(r"(\||<(?=\w))"), re.compile(r"\\([|<])")
"""What Markdown would take for the end of a cell, or for HTML."""
BOUNDS_S = (0.5, 2.0, 5.0, 15.0, 60.0)
NOISE = 1.4
"""By this much a time may pass one of its two bounds and is told as before."""


class Row(NamedTuple):
    """One situation, as the page has it."""

    name: str
    found_by: str
    path: str
    first_sample: str
    remedy: str


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--anew"]):
        print("usage: where.py [--anew]", file=sys.stderr)
        return 2
    if not SEEN.exists():
        print("no test has seen anything; run ./dev test --machines", file=sys.stderr)
        return 1
    before = PAGE.read_text() if PAGE.exists() else ""
    PAGE.write_text(renewed(before, SEEN.read_text(), keep=not arguments))
    return 0


def renewed(page: str, seen: str, *, keep: bool = True) -> str:
    """The page with what was seen, and, to keep, what it had of situations that were not."""
    before = {row.name: row for row in rows_of(page)}
    now = {row.name: row for row in rows_seen(seen.splitlines(), before)}
    return page_of([*((before | now) if keep else now).values()])


def rows_of(page: str) -> Iterator[Row]:
    """The rows that a page has."""
    for line in page.splitlines():
        cells = [ESCAPED.sub(r"\1", cell.strip()) for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == len(COLUMNS) and cells[0] != COLUMNS[0] and set(cells[0]) != {"-"}:
            yield Row(*cells)


def rows_seen(lines: list[str], before: dict[str, Row]) -> Iterator[Row]:
    """What tests wrote down, in their order."""
    for seen in map(json.loads, lines):
        old = before.get(seen["name"])
        yield Row(
            seen["name"],
            FOUND[seen["found_by"]],
            seen["path"] or "none",
            time_of(seen["first_sample_s"], old.first_sample if old else ""),
            seen["remedy"],
        )


def time_of(seconds: float | None, before: str) -> str:
    """The bound below which it stayed; that of before, if this is near."""
    if seconds is None:
        return ""
    for lower, bound in zip((0.0, *BOUNDS_S), BOUNDS_S):
        if before == told(bound) and lower / NOISE <= seconds <= bound * NOISE:
            return before
    return next((told(bound) for bound in BOUNDS_S if seconds < bound), "more than a minute")


def told(bound: float) -> str:
    return f"< {bound:g} s"


def page_of(rows: list[Row]) -> str:
    """The page, always in one order."""
    parts = [HEAD]
    for title in ORDER:
        ours = sorted(row for row in rows if section_of(row.name) == title)
        if ours:
            table = [COLUMNS, ["---"] * len(COLUMNS), *ours]
            lines = ["| " + " | ".join(SPECIAL.sub(r"\\\1", cell) for cell in row) + " |" for row in table]
            parts.append("\n".join([f"## {title}", "", *lines, ""]))
    return "\n".join(parts)


def section_of(name: str) -> str:
    return next(title for title, pattern in SECTIONS if pattern.search(name))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
