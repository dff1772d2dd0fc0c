"""`vbus call`: one request, or one for each line, and what comes back."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from vbus.service.meeting import meet

from .joining import join
from .output import for_json, for_people, print_json
from .pub import value_of

if TYPE_CHECKING:
    import argparse

    import vbus

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """A stream of replies is shown as it comes, one value per line."""
    with join(options, "call") as node:
        meet(node._calls(), options.service, None, time.monotonic() + options.wait)  # pyright: ignore[reportPrivateUsage]
        if options.value == "-":
            for line in sys.stdin:
                _call(node, options, value_of(line.rstrip("\r\n")))
        else:
            _call(node, options, value_of(options.value))
    return 0


def _call(node: vbus.Node, options: argparse.Namespace, value: Any) -> None:
    for reply in node.call_stream(options.service, value, timeout=options.timeout):
        if options.json:
            print_json({"value": for_json(reply, full=options.full)})
        else:
            print(for_people(reply, full=options.full), flush=True)
