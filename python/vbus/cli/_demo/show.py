"""The show: start the programs, watch them for a while, say what came."""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence

import vbus
from vbus.cli._demo import ROLES
from vbus.cli._demo.stage import Player, Stage, set_stage
from vbus.cli._demo.viewer import Viewer, caption, milliseconds, plain, table

START_LIMIT_S = 30.0
REFRESH_S = 0.25
LINE_S = 1.0


def show(options: argparse.Namespace, source: str) -> int:
    """Start the programs, watch them, end them; 0 if all that should flow did."""
    say = silent if options.json else print
    with contextlib.ExitStack() as stack:
        stage = set_stage(options, source, stack, say)
        players = [stack.enter_context(stage.start(role)) for role in ROLES]
        node = stack.enter_context(vbus.Node("viewer", domain=stage.domain, shm=stage.meeting))
        viewer = Viewer(node)
        stack.callback(viewer.close)
        failure = watch(viewer, players, options)
        if not options.json:
            print_summary(viewer, stage)
    failure = failure or viewer.what_is_missing()
    if failure:
        print(f"vbus demo: {failure}", file=sys.stderr)
    return 1 if failure else 0


def silent(*_words: object) -> None:
    """For JSON: nothing but objects is printed."""


def watch(viewer: Viewer, players: Sequence[Player], options: argparse.Namespace) -> str | None:
    """Show the table until the time is over, counted from the first detection; what went wrong."""
    if options.json or not sys.stdout.isatty():
        return follow(viewer, players, options.seconds, LINE_S, printer(viewer, as_json=options.json))
    from rich.live import Live

    with Live(table(viewer), refresh_per_second=4) as live:
        return follow(viewer, players, options.seconds, REFRESH_S, lambda: live.update(table(viewer)))


def follow(
    viewer: Viewer, players: Sequence[Player], seconds: float, every: float, refresh: Callable[[], None]
) -> str | None:
    """Receive and refresh; the reason if a program ended or nothing came."""
    now = time.monotonic()
    end, shown, flowing = now + START_LIMIT_S, now, False
    while now < end:
        viewer.wait(min(end, shown + every) - now)
        now = time.monotonic()
        if not flowing and viewer.flows():
            flowing, end = True, now + seconds
        if now >= shown + every:
            refresh()
            shown = now
            if failure := next(filter(None, (player.failure() for player in players)), None):
                return failure
    return None if flowing else viewer.what_is_missing()


def printer(viewer: Viewer, *, as_json: bool) -> Callable[[], None]:
    """Prints the rows as lines, for pipes and files."""

    def lines() -> None:
        for row in viewer.rows():
            print(json.dumps(row) if as_json else plain(row), flush=True)

    return lines


def print_summary(viewer: Viewer, stage: Stage) -> None:
    """What came, in all."""
    print("\nsummary")
    for role, meter in viewer.meters.items():
        row = meter.row()
        print(
            f"  {row['topic']:12} {row['samples']:5} samples, {meter.nbytes / 1e6:8.1f} MB from the {role} "
            f"({stage.place(role)}), p50 {milliseconds(row['p50_ms'])}, p99 {milliseconds(row['p99_ms'])}, "
            f"path {row['path'] or '-'}, {row['drops']} dropped, zero-copy: {row['zero_copy'] or '-'}"
        )
    for line in caption(viewer).splitlines():
        print(f"  {line}")
    print(
        "  zero-copy yes: value and payload are the publisher's memory, mapped read-only (checked by address)"
    )
    print("  zero-copy payload: so is the payload; the value is a dataclass made from it")
