"""Where the demo's programs run, and what joins them: containers, namespaces, or processes.

Whatever it is, the programs of one group share a directory, and so memory; the groups share a network, and
nothing is configured but one secret.
"""

import argparse
import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from vbus.cli import _containers
from vbus.cli._demo import CAST
from vbus.cli._demo.hosts import Hosts, NoHostsError, inside

MEETING = "/run/vbus"
SECRET = "/run/secrets/vbus"


@dataclass
class Player:
    """One program of the demo, in a process or a container."""

    name: str
    process: subprocess.Popen[str]
    log: IO[str] | None
    """What it says; None for a viewer, whose reports are read from its pipe."""
    container: _containers.Container | None = None
    last_words: str = ""

    def __enter__(self) -> "Player":
        return self

    def __exit__(self, *_error: object) -> None:
        if self.container:
            self.container.remove()
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for file in (self.log, self.process.stdin, self.process.stdout):
            if file:
                file.close()

    def failure(self) -> str | None:
        """What it said last, if it ended by itself."""
        if self.process.poll() is None:
            return None
        if self.log:
            self.log.seek(0)
            self.last_words = _containers.last_line(self.log.read())
        return f"the {self.name} ended: {self.last_words or 'no message'}"


@dataclass
class Stage:
    """Where the programs run and how they find each other."""

    domain: str
    source: str
    secret: str
    """The file that has it."""
    directories: dict[str, str]
    """Where the programs of each group meet."""
    engine: _containers.Engine | None = None
    hosts: Hosts | None = None
    network: str = "host"
    """What containers are joined by where there are no hosts."""
    _homes: dict[str, int] = field(default_factory=dict[str, int])

    def start(self, name: str, group: str) -> Player:
        """Start one program."""
        role = CAST[group][name]
        arguments = ["-m", "vbus", "demo", "--role", role, "--video", self.source]
        # Its reports are read; a log is closed by its player.
        log = None if role == "viewer" else tempfile.TemporaryFile("w+")  # noqa: SIM115
        output = subprocess.PIPE if log is None else log
        if self.engine:
            container = self.engine.start(
                arguments, flags=self._flags(name, group), environment=self._environment(name, SECRET),
                network=self._network(name), output=output,
            )  # fmt: skip
            return Player(name, container.process, log, container)
        outside = {key: value for key, value in os.environ.items() if not key.startswith("VBUS_")}
        environment = {**outside, **self._environment(name, self.secret)}
        environment |= {"VBUS_SHM": self.directories[group], "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            [*self._inside(group), sys.executable, *arguments],
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, text=True, env=environment,
        )  # fmt: skip
        return Player(name, process, log)

    def describe(self) -> list[str]:
        """What runs where, and what is between."""
        if self.engine:
            what = f"a container of {Path(self.engine.program).name} each"
        elif self.hosts:
            what = "processes of one host (a network namespace)"
        else:
            what = "processes"
        lines = [
            f"{group + ':':8} {', '.join(CAST[group])}: {what}, with one directory in common"
            for group in CAST
        ]
        if self.hosts:
            between = "a bridge"
        elif self.engine and self.network != "host":
            between = f"a network of {Path(self.engine.program).name}"
        else:
            between = "this machine's own network"
        return [*lines, f"between: {between}; no address is given to anyone, only one secret to all"]

    def _environment(self, name: str, secret: str) -> dict[str, str]:
        return {"VBUS_DOMAIN": self.domain, "VBUS_SECRET_FILE": secret, "VBUS_NAME": name}

    def _flags(self, name: str, group: str) -> list[str]:
        """The shared directory is all that joins a container to the others of its group."""
        flags = [
            f"--volume={self.directories[group]}:{MEETING}",
            f"--volume={self.secret}:{SECRET}:ro",
        ]
        if self.hosts or self.network != "host":
            flags.append(f"--hostname={name}-container")
        if name != "camera":
            return flags
        if self.source.startswith("/dev/"):
            return [*flags, f"--device={self.source}"]
        return [*flags, f"--volume={self.source}:{self.source}:ro"]

    def _network(self, name: str) -> str:
        """A container has a cable of its own to the switch, where there is one."""
        return f"ns:/proc/{self.hosts.add(name)}/ns/net" if self.hosts else self.network

    def _inside(self, group: str) -> list[str]:
        """All processes of a group are on one host."""
        if self.hosts is None:
            return []
        if group not in self._homes:
            self._homes[group] = self.hosts.add(group)
        return inside(self._homes[group])


def set_stage(
    options: argparse.Namespace, source: str, stack: contextlib.ExitStack, say: Callable[..., None]
) -> Stage:
    """Containers if they can be had and are wanted, else hosts, else processes; says which and why."""
    home = Path(stack.enter_context(temporary_directory()))
    directories = {group: str(meeting_directory(home / group)) for group in CAST}
    secret = Path(options.secret_file).resolve() if options.secret_file else new_secret(home / "secret")
    stage = Stage(options.domain or f"demo-{secrets.token_hex(4)}", source, str(secret), directories)
    say(f"video:   {source}")
    if options.no_containers:
        say("without containers, as was asked for")
    else:
        try:
            stage.engine = _containers.find_engine()
            stack.callback(stage.engine.close)
        except _containers.NoContainersError as reason:
            say(f"without containers: {reason}")
    try:
        if stage.engine is None or stage.engine.takes_namespaces:
            stage.hosts = stack.enter_context(Hosts())
    except NoHostsError as reason:
        say(f"without hosts of their own: {reason}")
    if stage.engine and not stage.hosts:
        try:
            stage.network = stage.engine.make_network()
            stack.callback(stage.engine.remove_network, stage.network)
        except (_containers.NoContainersError, subprocess.TimeoutExpired) as reason:
            say(f"without a network of their own: {reason}")
    for line in stage.describe():
        say(line)
    return stage


@contextlib.contextmanager
def temporary_directory() -> Generator[str]:
    """Gone in the end, whatever is in it."""
    path = tempfile.mkdtemp(prefix="vbus-demo-")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def meeting_directory(path: Path) -> Path:
    """A directory where anyone may leave a socket and nobody may take another's away."""
    path.mkdir()
    path.chmod(0o1777)
    return path


def new_secret(path: Path) -> Path:
    """One for this run."""
    path.write_text(secrets.token_urlsafe(32))
    path.chmod(0o600)
    return path
