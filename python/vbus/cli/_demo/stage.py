"""Where the demo's programs run: in processes, or in containers that share one directory."""

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

IN_CONTAINERS = ("camera", "detector")
MEETING = "/run/vbus"


@dataclass
class Player:
    """One program of the demo, in a process or a container."""

    role: str
    process: subprocess.Popen[str]
    log: IO[str]
    container: _containers.Container | None = None

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
        self.log.close()

    def failure(self) -> str | None:
        """What it said last, if it ended by itself."""
        if self.process.poll() is None:
            return None
        self.log.seek(0)
        return f"the {self.role} ended: {_containers.last_line(self.log.read())}"


@dataclass
class Stage:
    """Where the programs run and how they find each other."""

    domain: str
    source: str
    meeting: str | None = None
    engine: _containers.Engine | None = None
    environment: dict[str, str] = field(default_factory=dict[str, str])

    def start(self, role: str) -> Player:
        """Start one program."""
        arguments = ["-m", "vbus", "demo", "--role", role, "--video", self.source]
        log = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed by its player
        if self.engine and role in IN_CONTAINERS:
            container = self.engine.start(
                arguments, flags=self.container_flags(role), environment=self.environment, output=log
            )
            return Player(role, container.process, log, container)
        environment = {**os.environ, **self.environment, "PYTHONUNBUFFERED": "1"}
        if self.meeting:
            environment["VBUS_SHM"] = self.meeting
        process = subprocess.Popen(
            [sys.executable, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            text=True, env=environment,
        )  # fmt: skip
        return Player(role, process, log)

    def container_flags(self, role: str) -> list[str]:
        """The shared directory is all that joins a container to the others."""
        flags = [f"--volume={self.meeting}:{MEETING}", f"--hostname={role}-container"]
        if self.source.startswith("/dev/"):
            return [*flags, f"--device={self.source}"] if role == "camera" else flags
        flags.append(f"--volume={self.source}:{self.source}:ro")
        if secret := self.environment.get("VBUS_SECRET_FILE"):
            flags.append(f"--volume={secret}:{secret}:ro")
        return flags

    def place(self, role: str) -> str:
        """Where a program runs, in words."""
        return "container" if self.engine and role in IN_CONTAINERS else "process"


def set_stage(
    options: argparse.Namespace, source: str, stack: contextlib.ExitStack, say: Callable[..., None]
) -> Stage:
    """Containers if they can be had and are wanted, else processes; says which and why."""
    stage = Stage(options.domain or f"demo-{secrets.token_hex(4)}", source)
    stage.environment["VBUS_DOMAIN"] = stage.domain
    if options.secret_file:
        stage.environment["VBUS_SECRET_FILE"] = str(Path(options.secret_file).resolve())
        os.environ.update(stage.environment)
    say(f"video: {source}")
    if options.no_containers:
        say("containers: not wanted (--no-containers); camera and detector are processes")
        return stage
    try:
        stage.engine = _containers.find_engine()
    except _containers.NoContainersError as reason:
        say(f"containers: none here, so camera and detector are processes ({reason})")
        return stage
    stack.callback(stage.engine.close)
    stage.meeting = stack.enter_context(meeting_directory())
    name = Path(stage.engine.program).name
    say(
        f"containers: camera and detector each in one of {name}'s, without network, sharing only "
        f"{stage.meeting} as {MEETING}"
    )
    return stage


@contextlib.contextmanager
def meeting_directory() -> Generator[str]:
    """A directory where anyone may leave a socket and nobody may take another's away."""
    path = Path(tempfile.mkdtemp(prefix="vbus-demo-"))
    path.chmod(0o1777)
    try:
        yield str(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)
