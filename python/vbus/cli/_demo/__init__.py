"""The parts of `vbus demo`: scene (its programs), stage (where they run), viewer (what it measures), show."""

ROLES = ("camera", "detector", "telemetry")
