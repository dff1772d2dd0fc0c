"""Kernel, memory, descriptors and clock."""

from __future__ import annotations

import fcntl
import mmap
import os
import resource
import time
from pathlib import Path

from . import Check

__all__ = ["clock", "descriptors", "kernel", "memory"]

OLDEST_KERNEL = (5, 10)
ENOUGH_DESCRIPTORS = 1024
SLOW_CLOCK_NS = 1000
CLOCK_READINGS = 1000
BEFORE_VBUS = 1_750_000_000
"""Seconds since 1970, in the middle of 2025: no clock is right that shows less."""
CLOCKS = Path("/sys/devices/system/clocksource/clocksource0")


def kernel() -> Check:
    """Whether it is new enough."""
    system = os.uname()
    looked = f"{system.sysname} {system.release}, {system.machine}, {_processors()} processors"
    digits = system.release.split("-")[0].split(".")[:2]
    if not all(part.isdigit() for part in digits) or tuple(map(int, digits)) >= OLDEST_KERNEL:
        return Check("kernel", "ok", looked)
    return Check("kernel", "failed", looked, "uname -r  # must be 5.10 or newer: update the host's kernel")


def memory() -> Check:
    """Whether memory can be shared and sealed."""
    try:
        seals = _seal_one()
    except OSError as error:
        return Check(
            "memory",
            "failed",
            f"memory cannot be shared: {error.strerror or error}",
            "docker run --security-opt seccomp=unconfined …  # or a profile that allows memfd_create and "
            "seals; outside of containers: Linux 5.10 or newer",
        )
    return Check("memory", "ok", f"a memfd can be mapped and sealed (seals {seals:#x})")


def descriptors() -> Check:
    """Whether a process may open enough files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    looked = f"a process may open {_count(soft)} files, and raise that to {_count(hard)}"
    if hard == resource.RLIM_INFINITY or hard > ENOUGH_DESCRIPTORS:
        return Check("descriptors", "ok", looked)
    remedy = "docker run --ulimit nofile=65536:65536 …  # else: sudo prlimit --nofile=65536:65536 --pid $$"
    return Check("descriptors", "note", f"{looked}; some hundred neighbours need more", remedy)


def clock() -> Check:
    """Whether reading it is cheap, and what it shows possible."""
    begun = time.perf_counter_ns()
    for _ in range(CLOCK_READINGS):
        time.monotonic_ns()
    each = (time.perf_counter_ns() - begun) // CLOCK_READINGS
    source = _read(CLOCKS / "current_clocksource") or "unknown"
    looked = f"source {source}, {each} ns a reading"
    if time.time() < BEFORE_VBUS:
        shown = time.strftime("%Y-%m-%d", time.gmtime())
        return Check("clock", "failed", f"{looked}; it shows {shown}", "sudo timedatectl set-ntp true")
    better = [
        name for name in ("tsc", "kvm-clock") if name in _read(CLOCKS / "available_clocksource").split()
    ]
    if each < SLOW_CLOCK_NS or not better or source in better:
        return Check("clock", "ok", looked)
    remedy = f"echo {better[0]} | sudo tee {CLOCKS}/current_clocksource"
    return Check("clock", "note", f"{looked}: every sample costs that several times", remedy)


def _seal_one() -> int:
    """Does once what every publisher does; which seals the kernel has set."""
    file = os.memfd_create("vbus-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(file, 0, mmap.PAGESIZE)
        with mmap.mmap(file, mmap.PAGESIZE) as mapped:
            mapped[:1] = b"v"
            fcntl.fcntl(file, _ADD_SEALS, _SHRINK | _GROW | _FUTURE_WRITE)
            fcntl.fcntl(file, _ADD_SEALS, _SEAL)
        return fcntl.fcntl(file, _GET_SEALS)
    finally:
        os.close(file)


_ADD_SEALS, _GET_SEALS = 1033, 1034
_SEAL, _SHRINK, _GROW, _FUTURE_WRITE = 0x1, 0x2, 0x4, 0x10


def _processors() -> int:
    return len(os.sched_getaffinity(0))


def _count(limit: int) -> str:
    return "any number of" if limit == resource.RLIM_INFINITY else f"{limit:,}"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
