"""How commands join the bus."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import vbus
from vbus.config import secret_from_file
from vbus.errors import quote

if TYPE_CHECKING:
    import argparse

__all__ = ["join", "tell_if_nobody_publishes"]


def join(options: argparse.Namespace, command: str) -> vbus.Node:
    """A node in the domain and with the secret that the options name."""
    secret = None if options.secret_file is None else secret_from_file(options.secret_file, "--secret-file")
    return vbus.Node(f"vbus-{command}-{os.getpid()}", domain=options.domain, secret=secret)


def tell_if_nobody_publishes(subscriber: vbus.Subscriber[Any]) -> None:
    """Whoever misspelt a topic would wait in silence."""
    if subscriber.publishers == 0:
        print(
            f"vbus: nobody publishes {quote(subscriber.topic)} yet; waiting "
            "(`vbus topics` lists what is there, `vbus explain TOPIC` tells why something is not)",
            file=sys.stderr,
        )
