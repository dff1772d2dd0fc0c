"""Where neighbours meet, and what a container has to be given for it."""

from __future__ import annotations

import os
from pathlib import Path

from vbus._vbus import meeting_list
from vbus.errors import SharedMemoryError
from vbus.reports import NO_DIRECTORIES

from . import Check

__all__ = ["directories"]

OPEN_TO_ALL = 0o002


def directories(found: list[tuple[str, str | None]], near: int) -> list[Check]:
    """Which can be used; `near` is how many peers were met there."""
    if not found:
        return [Check("directories", "ok", f"none: {NO_DIRECTORIES}, so nobody is met in memory")]
    usable = [path for path, error in found if error is None]
    errors = [error for _, error in found if error is not None]
    if not usable:
        remedy = f"sudo install -d -m 1777 {found[0][0]}"
        return [Check("directories", "failed", "; ".join(errors), remedy)]
    looked = ", ".join(f"{path} ({_living(path)} there)" for path in usable)
    if errors:
        looked += f"; not {', '.join(path for path, error in found if error is not None)}"
    checks = [Check("directories", "ok", looked), _users(usable)]
    if near == 0 and _is_container() and not any(_is_mounted(path) for path in usable):
        checks.append(_closed_in(usable[0]))
    return checks


def _users(usable: list[str]) -> Check:
    """Who of this machine gets at them. A secret does not keep out a user who passes on what others say."""
    everyone = [path for path in usable if _mode(path) & OPEN_TO_ALL]
    if not everyone:
        return Check("users", "ok", f"only who may write to {', '.join(usable)} meets us in memory")
    one_user = "`install -d -m 700 ~/.vbus; export VBUS_SHM=~/.vbus` is for one user"
    looked = f"all of this machine may enter {', '.join(everyone)}: modes keep users apart, no secret does"
    return Check("users", "ok", f"{looked} ({one_user})")


def _closed_in(path: str) -> Check:
    """A container in which nobody else can be met."""
    looked = f"this is a container, and {path} is its own: no other container, no program outside sees it"
    return Check("container", "note", looked, POD if os.environ.get("KUBERNETES_SERVICE_HOST") else COMPOSE)


COMPOSE = """\
volumes: ["vbus:/run/vbus"]  # compose: of each service that is to meet the others
volumes: {vbus: {driver_opts: {type: tmpfs, device: tmpfs, o: mode=1777}}}  # compose: at the top level
docker run -v /dev/shm/vbus:/run/vbus …  # without compose: of each container"""
POD = """\
volumes: [{name: vbus, emptyDir: {medium: Memory}}]  # of the pod
volumeMounts: [{name: vbus, mountPath: /run/vbus}]  # of each container that is to meet the others"""


def _living(path: str) -> str:
    try:
        states = [state for _, state in meeting_list(path)]
    except SharedMemoryError as error:
        return str(error)
    others = max(0, states.count("alive") - 1)
    return f"{others} other {'node' if others == 1 else 'nodes'}"


def _mode(path: str) -> int:
    try:
        return Path(path).stat().st_mode
    except OSError:
        return 0  # it has just gone


def _is_container() -> bool:
    if any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv")):
        return True
    return "KUBERNETES_SERVICE_HOST" in os.environ


def _is_mounted(path: str) -> bool:
    """Whether something is mounted just there: around it containers have mounts of their own."""
    real = os.path.realpath(path)
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return True  # it is not known, so nothing is said of it
    return any(line.split()[4] == real for line in lines)
