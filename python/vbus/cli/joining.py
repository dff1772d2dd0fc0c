"""How commands join the bus."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import vbus
from vbus.config import secret_from_file

if TYPE_CHECKING:
    import argparse

__all__ = ["join"]


def join(options: argparse.Namespace, command: str) -> vbus.Node:
    """A node in the domain and with the secret that the options name."""
    secret = None if options.secret_file is None else secret_from_file(options.secret_file, "--secret-file")
    return vbus.Node(f"vbus-{command}-{os.getpid()}", domain=options.domain, secret=secret)
