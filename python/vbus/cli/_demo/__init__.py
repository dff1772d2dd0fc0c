"""The parts of `vbus demo`: scene (its programs), viewer (the one that measures), stage (where they run),
hosts (namespaces with a switch between them), show.

The cast are two groups. Those of one share a directory, as programs of a host do, and containers with one
volume; between the groups is only a network.
"""

ROLES = ("camera", "detector", "viewer", "telemetry")

CAST: dict[str, dict[str, str]] = {
    "here": {"camera": "camera", "detector": "detector", "viewer": "viewer"},
    "there": {"telemetry": "telemetry", "far-viewer": "viewer"},
}
"""Who is in which group, and what it does."""
