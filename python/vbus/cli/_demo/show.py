"""The show: start the programs, watch what the viewers report for a while, say what came."""

import argparse
import contextlib
import json
import os
import selectors
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

from vbus.cli._demo import CAST
from vbus.cli._demo.stage import Player, set_stage

if TYPE_CHECKING:
    from rich.table import Table

START_LIMIT_S = 30.0
REFRESH_S = 0.25
LINE_S = 2.0


def show(options: argparse.Namespace, source: str) -> int:
    """Start the programs, watch them, end them; 0 if all that should flow did."""
    say = silent if options.json else print
    with contextlib.ExitStack() as stack:
        stage = set_stage(options, source, stack, say)
        players = [
            stack.enter_context(stage.start(name, group)) for group, names in CAST.items() for name in names
        ]
        with Reports(players) as reports:
            failure = watch(reports, options)
            if not options.json:
                print_summary(reports)
    if failure:
        print(f"vbus demo: {failure}", file=sys.stderr)
    return 1 if failure else 0


def silent(*_words: object) -> None:
    """For JSON: nothing but objects is printed."""


class Report(TypedDict):
    """What a viewer says, see `viewer.Viewer.report`."""

    rows: list[dict[str, Any]]
    says: list[str]
    findings: list[str]


class Reports:
    """What the viewers said last, line by line."""

    def __init__(self, players: Sequence[Player]) -> None:
        self.players = players
        self._said: dict[str, Report] = {}
        self._begun: dict[str, bytes] = {}
        self._ready = selectors.DefaultSelector()
        for player in players:
            if player.log is None and player.process.stdout is not None:
                self._said[player.name] = {"rows": [], "says": [], "findings": []}
                self._begun[player.name] = b""
                self._ready.register(player.process.stdout, selectors.EVENT_READ, player)

    def __enter__(self) -> "Reports":
        return self

    def __exit__(self, *_error: object) -> None:
        self._ready.close()

    def wait(self, seconds: float) -> None:
        """Read what they say, for at most so long."""
        for key, _events in self._ready.select(max(seconds, 0.0)):
            player: Player = key.data
            chunk = os.read(key.fd, 1 << 16)
            if not chunk:
                self._ready.unregister(key.fileobj)
            *lines, self._begun[player.name] = (self._begun[player.name] + chunk).split(b"\n")
            for line in lines:
                if line.startswith(b"{"):
                    self._said[player.name] = json.loads(line)
                elif line.strip():
                    player.last_words = line.decode(errors="replace").strip()

    def rows(self) -> list[dict[str, Any]]:
        """One per viewer and topic."""
        return [row for said in self._said.values() for row in said["rows"]]

    def says(self) -> list[str]:
        """What the last typed samples say, as the first viewer has them."""
        for said in self._said.values():
            return said["says"]
        return []

    def failure(self) -> str | None:
        """The first program that ended."""
        return next(filter(None, (player.failure() for player in self.players)), None)

    def what_is_missing(self) -> str | None:
        """Which topic never came to which viewer, and what hinders it, if one did not."""
        for name, said in self._said.items():
            missing = [row["topic"] for row in said["rows"] if not row["samples"]]
            if missing or not said["rows"]:
                why = "; ".join(said["findings"]) or "nobody was found by mDNS; does multicast pass here?"
                return f"{' and '.join(missing) or 'nothing at all'} did not come to the {name}: {why}"
        return None


def watch(reports: Reports, options: argparse.Namespace) -> str | None:
    """Show the table until the time is over, counted from when all came; what went wrong."""
    if options.json or not sys.stdout.isatty():
        return follow(reports, options.seconds, LINE_S, printer(reports, as_json=options.json))
    from rich.live import Live

    with Live(table(reports), refresh_per_second=4) as live:
        return follow(reports, options.seconds, REFRESH_S, lambda: live.update(table(reports)))


def follow(reports: Reports, seconds: float, every: float, refresh: Callable[[], None]) -> str | None:
    """Listen and refresh; the reason if a program ended or something never came."""
    now = time.monotonic()
    end, shown, flowing = now + START_LIMIT_S, now, False
    while now < end:
        reports.wait(min(end, shown + every) - now)
        now = time.monotonic()
        if not flowing and reports.what_is_missing() is None:
            flowing, end = True, now + seconds
        if now >= shown + every:
            if flowing:
                refresh()
            shown = now
            if failure := reports.failure():
                return failure
    return reports.what_is_missing()


# ---- in words -----------------------------------------------------------------------------------


def printer(reports: Reports, *, as_json: bool) -> Callable[[], None]:
    """Prints the rows as lines, for pipes and files."""

    def lines() -> None:
        for row in reports.rows():
            print(json.dumps(row) if as_json else plain(row), flush=True)

    return lines


def plain(row: dict[str, Any]) -> str:
    """A row as words."""
    return (
        f"{row['topic']:11} {row['from'] or '-':9} -> {row['to']:10} {row['path'] or '-':3} "
        f"{row['rate']:5.1f}/s {row['mb_per_second']:7.3f} MB/s  "
        f"p50 {milliseconds(row['p50_ms'])}  p99 {milliseconds(row['p99_ms'])}  drops {row['drops']}"
    )


def milliseconds(value: float | None) -> str:
    """A time as words."""
    return "       -" if value is None else f"{value:5.2f} ms"


def table(reports: Reports) -> "Table":
    """The rows as a table."""
    from rich.table import Table

    result = Table(caption="\n".join(reports.says()), caption_justify="left")
    for title in ("topic", "from", "to", "path", "found by"):
        result.add_column(title)
    for title in ("rate /s", "p50", "p99", "drops"):
        result.add_column(title, justify="right")
    for row in reports.rows():
        result.add_row(
            *(row["topic"], row["from"], row["to"], row["path"], row["found_by"], f"{row['rate']:.1f}"),
            *(milliseconds(row["p50_ms"]), milliseconds(row["p99_ms"]), str(row["drops"])),
        )
    return result


def print_summary(reports: Reports) -> None:
    """What came, in all."""
    print("\nsummary")
    for row in reports.rows():
        print(
            f"  {row['topic']:11} {row['from'] or '-':9} -> {row['to']:10} "
            f"by {row['path'] or '-':3} (found by {row['found_by'] or '-'}): {row['samples']} samples, "
            f"{row['bytes'] / 1e6:.1f} MB, p50 {milliseconds(row['p50_ms']).strip()}, "
            f"{row['drops']} dropped, zero-copy: {row['zero_copy'] or '-'}"
        )
    for line in reports.says():
        print(f"  {line}")
    print(
        "  zero-copy yes: the value is read where the bus has it, mapped read-only (checked by address)\n"
        "  zero-copy payload: so is the payload; the value is a dataclass made from it"
    )
