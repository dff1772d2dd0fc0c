"""`vbus keygen`: a secret for `VBUS_SECRET`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .output import print_json

if TYPE_CHECKING:
    import argparse

__all__ = ["run"]

KEY_PREFIX = "vbus1-"
"""What the core knows a full key by, which it need not stretch."""
KEY_BYTES = 32


def run(options: argparse.Namespace) -> int:
    """Nothing is stored: the line is the only copy."""
    secret = KEY_PREFIX + os.urandom(KEY_BYTES).hex()
    if options.json:
        print_json({"secret": secret})
    else:
        print(secret)
    return 0
