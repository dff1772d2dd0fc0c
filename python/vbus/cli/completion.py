"""`vbus completion`: a script by which a shell completes commands, options and the topics that are there.

    eval "$(vbus completion bash)"       in ~/.bashrc
    eval "$(vbus completion zsh)"        in ~/.zshrc, after compinit
    vbus completion fish | source        in ~/.config/fish/config.fish

The scripts are made from the parsers of the commands, so they know what this version knows.
"""

from __future__ import annotations

import argparse
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .joining import join
from .output import print_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["run", "script"]

FILES = ("PATH", "FILE", "DIRECTORY")
"""What options and arguments call a name of a file."""
TOPICS = "vbus completion topics 2>/dev/null"


def run(options: argparse.Namespace) -> int:
    """The script of a shell, or, for the scripts, the topics of the domain."""
    if options.shell == "topics":
        with join(options, "completion") as node:
            names = [info.topic for info in node.topics()]
        for name in names:
            # Shells expand what they complete: nothing from others that they could read as more than a name.
            if all(letter.isalnum() or letter in "/_-." for letter in name):
                print_line(name)
        return 0
    from . import parsers

    print_line(script(options.shell, *parsers()), end="")
    return 0


def script(
    shell: str, parser: argparse.ArgumentParser, commands: Mapping[str, argparse.ArgumentParser]
) -> str:
    """The script for one of "bash", "zsh" and "fish"."""
    told = [Command.of(name, of) for name, of in commands.items()]
    make = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]
    return "\n".join(make(Command.of("", parser), told)) + "\n"


@dataclass
class Option:
    """One option of a command."""

    names: list[str]
    help: str
    value: str
    """What its value is called; empty if it takes none."""


@dataclass
class Command:
    """What a shell has to know of a command."""

    name: str
    help: str
    options: list[Option]
    choices: list[str]
    """Of its first argument, where there are only so many."""
    argument: str
    """What its first argument is called."""

    @classmethod
    def of(cls, name: str, parser: argparse.ArgumentParser) -> Command:
        """Read from its parser."""
        options: list[Option] = []
        choices: list[str] = []
        argument = ""
        for action in parser._actions:
            if action.help is argparse.SUPPRESS:
                continue
            if action.option_strings:
                value = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
                options.append(Option(list(action.option_strings), action.help or "", value))
            elif name and not argument:
                argument = str(action.metavar or action.dest.upper())
                choices = [str(choice) for choice in action.choices or ()]
        return cls(name, (parser.description or "").rstrip("."), options, choices, argument)


# ---- bash ---------------------------------------------------------------------------------------


def _bash(top: Command, commands: list[Command]) -> Iterator[str]:
    everything = [option for command in (top, *commands) for option in command.options]
    valued = {name for option in everything if option.value for name in option.names}
    files = {name for option in everything if option.value in FILES for name in option.names}
    yield "_vbus() {"
    yield "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command= words= files= i"
    yield "    for ((i = 1; i < COMP_CWORD; i++)); do"
    yield "        case ${COMP_WORDS[i]} in"
    yield f"            {'|'.join(sorted(valued))}) ((i++)) ;;"
    yield "            -*) ;;"
    yield "            *) command=${COMP_WORDS[i]}; break ;;"
    yield "        esac"
    yield "    done"
    yield "    case $prev in"
    yield f'        {"|".join(sorted(files))}) mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;'
    yield f"        {'|'.join(sorted(valued - files))}) return ;;"
    yield "    esac"
    yield "    case $command in"
    names = " ".join(command.name for command in commands)
    yield f"        '') words='{_names(top)} {names}' ;;"
    for command in commands:
        yield f"        {command.name})"
        yield f"            words='{' '.join([_names(command), *command.choices])}'"
        if command.argument == "TOPIC":
            yield f'            [[ $cur == -* ]] || words="$words $({TOPICS})"'
        if command.argument in FILES:
            yield "            files=yes"
        yield "            ;;"
    yield "    esac"
    yield '    mapfile -t COMPREPLY < <(compgen -W "$words" ${files:+-f} -- "$cur")'
    yield "}"
    yield "complete -F _vbus vbus"


def _names(command: Command) -> str:
    return " ".join(name for option in command.options for name in option.names)


# ---- zsh ----------------------------------------------------------------------------------------


def _zsh(top: Command, commands: list[Command]) -> Iterator[str]:
    yield "#compdef vbus"
    yield "_vbus_topics() {"
    yield f'    local -a topics=("${{(@f)$({TOPICS})}}")'
    yield "    compadd -a topics"
    yield "}"
    yield "_vbus() {"
    yield "    local curcontext=$curcontext state line"
    yield "    local -a commands=("
    for command in commands:
        yield f"        {shlex.quote(f'{command.name}:{command.help}')}"
    yield "    )"
    yield "    _arguments -C \\"
    for option in top.options:
        yield f"        {_zsh_option(option)} \\"
    yield "        '1:command:->command' '*::argument:->argument'"
    yield "    case $state in"
    yield "        command) _describe command commands ;;"
    yield "        argument) case $words[1] in"
    for command in commands:
        parts = [_zsh_option(option) for option in command.options]
        if command.argument:
            parts.append(shlex.quote(f"1:{command.argument}:{_zsh_values(command)}"))
        yield f"            {command.name}) _arguments {' '.join(parts)} ;;"
    yield "        esac ;;"
    yield "    esac"
    yield "}"
    yield "compdef _vbus vbus"


def _zsh_option(option: Option) -> str:
    help = "".join(f"\\{letter}" if letter in "[]:\\" else letter for letter in option.help)
    action = "_files" if option.value in FILES else " "
    value = f":{option.value}:{action}" if option.value else ""
    return " ".join(shlex.quote(f"{name}[{help}]{value}") for name in option.names)


def _zsh_values(command: Command) -> str:
    if command.choices:
        return f"({' '.join(command.choices)})"
    return "_vbus_topics" if command.argument == "TOPIC" else "_files" if command.argument in FILES else " "


# ---- fish ---------------------------------------------------------------------------------------


def _fish(top: Command, commands: list[Command]) -> Iterator[str]:
    yield "complete -c vbus -f"
    for option in top.options:
        yield _fish_option("__fish_use_subcommand", option)
    for command in commands:
        here = shlex.quote(f"__fish_seen_subcommand_from {command.name}")
        said = shlex.quote(command.help)
        yield f"complete -c vbus -n __fish_use_subcommand -a {command.name} -d {said}"
        for option in command.options:
            yield _fish_option(here, option)
        if command.choices:
            yield f"complete -c vbus -n {here} -a {shlex.quote(' '.join(command.choices))}"
        elif command.argument == "TOPIC":
            yield f"complete -c vbus -n {here} -a '({TOPICS})'"
        elif command.argument in FILES:
            yield f"complete -c vbus -n {here} -F"


def _fish_option(condition: str, option: Option) -> str:
    names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
    value = " -r -F" if option.value in FILES else " -x" if option.value else ""
    return f"complete -c vbus -n {condition} {names}{value} -d {shlex.quote(option.help)}"
