"""`vbus shm`: the directories where neighbours meet, and what the dead left in them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vbus._vbus import meeting_collect, meeting_list
from vbus.config import meeting_directories

from .output import print_json, print_table

if TYPE_CHECKING:
    import argparse

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """List, or collect; directories that do not exist are empty."""
    directories = [str(Path(path).absolute()) for path in options.directory]
    if not directories:
        directories = [path for path in meeting_directories() if Path(path).is_dir()]
    if options.action == "ls":
        found = [entry for directory in directories for entry in meeting_list(directory)]
        if options.json:
            for path, state in found:
                print_json({"path": str(path), "state": state})
        else:
            print_table(("STATE", "PATH"), [(state, str(path)) for path, state in found])
        return 0
    for directory in directories:
        for path in meeting_collect(directory):
            if options.json:
                print_json({"path": str(path)})
            else:
                print(f"removed {path}")
    return 0
