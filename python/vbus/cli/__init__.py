"""The command line: `vbus COMMAND`. Each command is a module with `run`, imported when it is asked for.

Exit status: 0 ok, 1 failed, 2 wrong usage, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from vbus._vbus import __version__
from vbus.errors import Error, quote

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    N = TypeVar("N", int, float)

__all__ = ["main", "parsers"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; what it returns is the exit status of the process."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(errors="backslashreplace")  # whatever others say, in whatever locale
    try:
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read has enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as leaving:  # argparse: help, version, usage
        return leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 2
    except (Error, OSError) as error:
        print(f"vbus: {error}", file=sys.stderr)
        return 1


# Commands that read their own arguments.
FREE_COMMANDS = {"bench": "measure this machine", "demo": "see vbus at work"}

# Commands that the documentation promises and a later version brings.
LATER_COMMANDS = ("top", "record", "play")


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] in FREE_COMMANDS:
        return _run_free(arguments[0], arguments[1:])
    if arguments and arguments[0] in LATER_COMMANDS:
        print(f"vbus: `vbus {arguments[0]}` is not in this version", file=sys.stderr)
        return 2
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = import_module(f".{options.module}", __name__).run
    return run(options)


def _run_free(command: str, arguments: list[str]) -> int:
    try:
        run: Callable[[list[str]], int] = import_module(f".{command}", __name__).run
    except ModuleNotFoundError as error:
        missing = error.name or ""
        hint = (
            "is not in this version"
            if missing.startswith("vbus.")
            else f"needs {missing}; `pip install vbus[demo]`"
        )
        print(f"vbus: `vbus {command}` {hint}", file=sys.stderr)
        return 1
    return run(arguments)


def parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of `vbus`, and that of each command."""
    parser = _parser()
    commands: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):  # pyright: ignore[reportPrivateUsage]
            commands = dict(action.choices)  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    for name in FREE_COMMANDS:
        commands[name] = import_module(f".{name}", __name__).parser()
    return parser, commands


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vbus", description="Look at a bus, publish on it, measure it.", parents=[_common_options()]
    )
    parser.add_argument("--version", action="version", version=f"vbus {__version__}")
    parser.set_defaults(domain=None, secret_file=None, json=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    common = _common_options()

    def command(name: str, help: str, module: str | None = None) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=help, description=help[0].upper() + help[1:] + ".", parents=[common]
        )
        added.set_defaults(module=module or name)
        return added

    def looks_on(name: str, help: str, count: str) -> argparse.ArgumentParser:
        added = command(name, help)
        added.add_argument("topic", metavar="TOPIC", help="a topic, or a pattern with * and **")
        added.add_argument("--count", type=_number, metavar="N", help=count)
        added.add_argument(
            "--timeout", type=_seconds, metavar="S", help="stop after S seconds, with exit status 1"
        )
        return added

    def looks_around(name: str, help: str, wait: float = 1.0) -> argparse.ArgumentParser:
        added = command(name, help)
        added.add_argument(
            "--wait", type=_seconds, default=wait, metavar="S", help=f"seconds to look (default {wait})"
        )
        return added

    looks_around("nodes", "list the nodes of the domain")
    looks_around("topics", "list the topics of the domain")
    looks_around("services", "list the services of the domain")

    echo = looks_on("echo", "show the samples of a topic or pattern", "stop after N samples")
    echo.add_argument("--full", action="store_true", help="show all of long values and arrays")

    looks_on("hz", "measure how often a topic is published", "stop after N samples, two at least")
    looks_on("bw", "measure how many bytes a topic carries", "stop after N samples, two at least")

    explain = looks_around("explain", "say which ways to whom work, and what would help where none does")
    explain.add_argument(
        "topic",
        metavar="TOPIC",
        nargs="?",
        help="and who has to do with this topic, or with those of this pattern",
    )

    looks_around("doctor", "examine this machine and the bus around it, and say what would help", wait=3.0)

    pub = command("pub", "publish on a topic")
    pub.add_argument("topic", metavar="TOPIC")
    pub.add_argument(
        "value", metavar="VALUE", nargs="?", help="JSON, else a str; - reads a VALUE from each line"
    )
    pub.add_argument("--file", metavar="PATH", help="publish the bytes of a file (- for standard input)")
    pub.add_argument("--rate", type=_rate, metavar="HZ", help="repeat so often per second")
    pub.add_argument(
        "--count", type=_number, metavar="N", help="samples (default 1; with --rate, until Ctrl-C)"
    )
    pub.add_argument(
        "--wait", type=_seconds, default=1.0, metavar="S", help="wait so long for a subscriber (default 1.0)"
    )

    call = command("call", "call a service and show the reply")
    call.add_argument("service", metavar="SERVICE")
    call.add_argument("value", metavar="VALUE", help="JSON, else a str; - reads a VALUE from each line")
    call.add_argument(
        "--timeout", type=_seconds, metavar="S", help="wait so long for the reply, then exit with status 1"
    )
    call.add_argument(
        "--wait", type=_seconds, default=1.0, metavar="S",
        help="wait so long for a server over the network (default 1.0)"
    )  # fmt: skip
    call.add_argument("--full", action="store_true", help="show all of long values and arrays")

    shm = command("shm", "look at the directories where neighbours meet")
    shm.add_argument(
        "action", choices=("ls", "gc"), help="ls: list what is there; gc: remove what the dead left"
    )
    shm.add_argument(
        "directory", nargs="*", metavar="DIRECTORY", help="default: VBUS_SHM, else the usual ones"
    )

    command("keygen", "make a secret")

    completion = command("completion", "print a script that makes a shell complete vbus's commands")
    completion.add_argument(
        "shell", choices=("bash", "zsh", "fish", "topics"), help="or the topics that the scripts complete"
    )
    for name, help in FREE_COMMANDS.items():
        commands.add_parser(name, help=help, add_help=False)
    return parser


def _common_options() -> argparse.ArgumentParser:
    """Made anew for each use: argparse shares options with the parsers that they are lent to."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--domain", metavar="NAME", help="the domain to join (VBUS_DOMAIN)")
    common.add_argument("--secret-file", metavar="PATH", help="a file with its secret (VBUS_SECRET_FILE)")
    common.add_argument("--json", action="store_true", help="one JSON object per line")
    return common


def _seconds(text: str) -> float:
    return _checked(text, float, lambda value: 0 <= value < float("inf"), "give seconds from 0")


def _rate(text: str) -> float:
    return _checked(text, float, lambda value: 0 < value < float("inf"), "give samples per second above 0")


def _number(text: str) -> int:
    return _checked(text, int, lambda value: value >= 1, "give a whole number from 1")


def _checked(text: str, make: Callable[[str], N], is_right: Callable[[N], bool], remedy: str) -> N:
    try:
        if is_right(value := make(text)):
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{quote(text)} is not possible; {remedy}")
