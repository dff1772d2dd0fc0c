"""How encoding and decoding say what went wrong: topic, field, expectation, value."""

from __future__ import annotations

from vbus.errors import DecodeError, EncodeError, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MISSING", "Misfit", "decode_error", "decode_misfit", "dotted", "encode_error"]


class _Missing:
    def __repr__(self) -> str:
        return "missing"


MISSING = _Missing()
"""The value of a field that is not there."""


class Misfit(Exception):
    """A value does not fit a type; collects the path to the place on the way out."""

    def __init__(self, expected: str, value: object) -> None:
        super().__init__(expected, value)
        self.expected = expected
        self.value = value
        # Innermost first: every level adds its own step as the exception passes.
        self.steps: list[str] = []

    def within(self, step: str) -> Misfit:
        """The same, one level further out."""
        self.steps.append(step)
        return self


def encode_error(topic: str, steps: Iterable[str], expected: str, value: object) -> EncodeError:
    """`steps` lead from the innermost place outwards."""
    field = dotted(steps)
    place = f"field {quote(field)}" if field else "the value"
    found = "it is missing" if value is MISSING else f"not {type(value).__name__} {quote(value)}"
    error = EncodeError(f"cannot publish on {quote(topic)}: {place} must be {expected}, {found}")
    error.topic = topic
    error.field = field or None
    return error


def decode_misfit(topic: str, steps: Iterable[str], expected: str, value: object) -> DecodeError:
    """`value` is what arrived, as plain values."""
    field = dotted(steps)
    if value is MISSING:
        found = f"has no field {quote(field)}"
    else:
        place = f"has in field {quote(field)}" if field else "is"
        found = f"{place} {type(value).__name__} {quote(value)}"
    error = decode_error(topic, f"{found}, expected {expected}; compare the types of both sides")
    error.field = field or None
    return error


def decode_error(topic: str, what: str) -> DecodeError:
    """`what` follows "a sample of …"."""
    error = DecodeError(f"a sample of {quote(topic)} {what}")
    error.topic = topic
    return error


def dotted(steps: Iterable[str]) -> str:
    """The path as people write it: `boxes[3].label`."""
    path = ""
    for step in reversed(list(steps)):
        path += step if step.startswith("[") or not path else f".{step}"
    return path
