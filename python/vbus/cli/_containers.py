"""Run this very Python in real containers, without an image from anywhere.

The image is a few empty directories; the host's own files are mounted over it, read-only: `/usr`, this
Python, its virtual environment, the packages. So a container starts in a fraction of a second, holds
exactly what the host runs, and nothing is downloaded. Namespaces, seccomp, limits and the private
64 MiB `/dev/shm` are those of any other container.

`find_engine()` starts one to see whether it can, and says why not if it cannot.
"""

import io
import os
import secrets
import shutil
import site
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

EMPTY = ("dev", "etc", "home", "proc", "root", "run", "run/vbus", "sys", "tmp", "var")
SYSTEM = ("bin", "lib", "lib32", "lib64", "libx32", "sbin", "usr")
LINKER = ("/etc/ld.so.cache", "/etc/alternatives")

# Engines refuse to start anything where the machine withholds what their defaults ask for: no right to
# raise limits, no systemd, cgroups of both versions at once. Each list is one way round; plain goes first.
PODMAN_WAYS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    ((), ()),
    ((), ("--ulimit=nofile=1024:4096", "--ulimit=nproc=1024:1024")),
    (
        ("--runtime=runc", "--cgroup-manager=cgroupfs", "--events-backend=file"),
        ("--log-driver=k8s-file", "--ulimit=nofile=1024:4096", "--ulimit=nproc=1024:1024"),
    ),
)
DOCKER_WAYS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    ((), ()),
    ((), ("--ulimit=nofile=1024:4096", "--ulimit=nproc=1024:1024")),
)
PROBE_LIMIT_S = 60


class NoContainersError(Exception):
    """No container can be started here; the text says what was tried and what it answered."""


@dataclass
class Container:
    """One that was started: its engine's handle on it."""

    engine: "Engine"
    name: str
    process: subprocess.Popen[str]

    def pause(self) -> None:
        """Freeze all its processes."""
        self.engine.call("pause", self.name)

    def unpause(self) -> None:
        """Let them go on."""
        self.engine.call("unpause", self.name)

    def kill(self) -> None:
        """SIGKILL its first process, and with it all others."""
        self.engine.call("kill", "--signal=KILL", self.name)

    def remove(self) -> None:
        """End it, whatever state it is in; nothing of it is left."""
        # A first process ignores what it does not handle, and `rm` would ask it nicely for 10 s.
        self.engine.call("kill", "--signal=KILL", self.name, check=False)
        self.engine.call("rm", "--force", self.name, check=False)
        self.process.kill()
        self.process.communicate()


@dataclass
class Engine:
    """A container program that was seen to work, and the flags it needs here."""

    program: str
    image: str
    global_flags: Sequence[str] = ()
    run_flags: Sequence[str] = ()
    mounts: Sequence[str] = field(default_factory=list[str])

    def call(self, *command: str, check: bool = True) -> str:
        """One command of the engine; what it printed."""
        done = subprocess.run(
            [self.program, *self.global_flags, *command],
            capture_output=True, text=True, check=False, timeout=PROBE_LIMIT_S,
        )  # fmt: skip
        if check and done.returncode:
            raise NoContainersError(f"{Path(self.program).name} {command[0]}: {last_line(done.stderr)}")
        return done.stdout

    def command(
        self,
        arguments: Sequence[str],
        *,
        name: str,
        flags: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        network: str = "none",
    ) -> list[str]:
        """The command that runs this Python with `arguments` in a new container."""
        settings = {
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join(map(str, package_directories())),
            **(environment or {}),
        }
        return [
            *(self.program, *self.global_flags, "run", "--rm", f"--name={name}", f"--network={network}"),
            *self.run_flags,
            *(f"--volume={path}:{path}:ro" for path in self.mounts),
            *(f"--env={key}={value}" for key, value in settings.items()),
            *flags,
            *(self.image, sys.executable, *arguments),
        ]

    def start(
        self,
        arguments: Sequence[str],
        *,
        flags: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        network: str = "none",
        output: int | IO[str] = subprocess.PIPE,
    ) -> Container:
        """Start a container; its output is `container.process.stdout`, its input `...stdin`.

        `network` is "none", "host", or what else the engine takes for `--network`.
        """
        name = f"vbus-{secrets.token_hex(4)}"
        command = self.command(
            arguments, name=name, flags=("--interactive", *flags), environment=environment, network=network
        )
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, text=True
        )
        return Container(self, name, process)

    @property
    def takes_namespaces(self) -> bool:
        """Whether `network` may be "ns:PATH", a namespace that was made by others."""
        return Path(self.program).name == "podman" and not os.geteuid()

    def make_network(self) -> str:
        """A network of the engine's own, which leads nowhere; its name. It was seen to work."""
        # Podman without plugins makes networks that it can neither use nor remove.
        self.probe("bridge")
        name = f"vbus-{secrets.token_hex(4)}"
        self.call("network", "create", "--internal", name)
        try:
            self.probe(name)
        except BaseException:
            self.remove_network(name)
            raise
        return name

    def probe(self, network: str = "none") -> None:
        """Run a container that imports vbus, or NoContainersError with what was said."""
        command = self.command(
            ["-c", "import vbus"], name=f"vbus-probe-{secrets.token_hex(4)}", network=network
        )
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PROBE_LIMIT_S)
        if done.returncode:
            raise NoContainersError(last_line(done.stderr))

    def remove_network(self, name: str) -> None:
        """Nothing of it is left."""
        self.call("network", "rm", name, check=False)

    def close(self) -> None:
        """Remove the image."""
        self.call("rmi", "--force", self.image, check=False)


def find_engine(also_mounted: Sequence[Path] = ()) -> Engine:
    """An engine that has just run a container, or NoContainersError with the reasons."""
    refusals: list[str] = []
    for name, ways in (("podman", PODMAN_WAYS), ("docker", DOCKER_WAYS)):
        program = shutil.which(name)
        if program is None:
            refusals.append(f"{name} is not installed")
            continue
        try:
            return first_that_works(program, ways, also_mounted)
        except (NoContainersError, OSError, subprocess.TimeoutExpired) as refusal:
            refusals.append(f"{name} cannot start a container: {refusal}")
    raise NoContainersError("; ".join(refusals))


def first_that_works(
    program: str,
    ways: Sequence[tuple[Sequence[str], Sequence[str]]],
    also_mounted: Sequence[Path],
) -> Engine:
    """The engine with the first set of flags that starts a container."""
    image = import_image(program)
    label = ("--security-opt=label=disable",) if program.endswith("podman") else ()
    refusal = "no way was tried"
    for global_flags, run_flags in ways:
        engine = Engine(program, image, global_flags, (*label, *run_flags), host_mounts(also_mounted))
        try:
            engine.probe()
        except NoContainersError as error:
            refusal = str(error)
        else:
            return engine
    Engine(program, image).close()
    raise NoContainersError(refusal)


def import_image(program: str) -> str:
    """Give the engine the image of empty directories; its name."""
    # A name of its own: who comes at the same time, and goes first, takes away his own.
    tag = f"vbus-skeleton:{secrets.token_hex(4)}"
    # Docker's own names have no host; podman's must, or it asks where to look.
    image = f"localhost/{tag}" if program.endswith("podman") else tag
    done = subprocess.run(
        [program, "import", "-", image],
        input=skeleton(),
        capture_output=True,
        check=False,
        timeout=PROBE_LIMIT_S,
    )
    if done.returncode:
        raise NoContainersError(last_line(done.stderr.decode(errors="replace")))
    return image


def skeleton() -> bytes:
    """A tar of empty directories, and of the links that lead into `/usr` on merged systems."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in (*EMPTY, *SYSTEM):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            host = Path("/", name)
            if name in SYSTEM and host.is_symlink():
                entry.type, entry.linkname = tarfile.SYMTYPE, str(host.readlink())
            archive.addfile(entry)
    return buffer.getvalue()


def host_mounts(also: Sequence[Path] = ()) -> list[str]:
    """The host's directories that this Python needs, none inside another."""
    wanted = [Path("/", name) for name in SYSTEM if not Path("/", name).is_symlink()]
    wanted += [Path(name) for name in (*LINKER, sys.base_prefix, sys.prefix)]
    wanted += [*package_directories(), *also]
    chosen: list[Path] = []
    for path in sorted({path.resolve() for path in wanted if path.exists()}):
        if not any(path.is_relative_to(above) for above in chosen):
            chosen.append(path)
    return [str(path) for path in chosen]


def package_directories() -> list[Path]:
    """Where vbus and its dependencies lie, when not in this Python's own directories."""
    places = [str(Path(__file__).parents[2]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    if site.ENABLE_USER_SITE:
        places.append(site.getusersitepackages())
    return [Path(place).resolve() for place in places if place and Path(place).is_dir()]


def last_line(text: str) -> str:
    """The line that says it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
