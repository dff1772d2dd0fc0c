"""How commands show things: as lines for people, or as one JSON object per line."""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnknownMemberType=false
# The values are anything at all.

from __future__ import annotations

import base64
import json
import math
import os
import sys
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Record = TypeVar("Record")

__all__ = ["for_json", "for_people", "print_json", "print_line", "print_records", "print_table"]


def print_json(members: dict[str, Any]) -> None:
    """One object, one line, out at once."""
    print(json.dumps(members, ensure_ascii=False, allow_nan=False, separators=(", ", ": ")), flush=True)


def print_line(text: str, *, end: str = "\n") -> None:
    """One line for people, out at once; or a text of several, which is ours."""
    print(text if not end else _one_line(text), end=end, flush=True)


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns as wide as what is in them; the last one is not padded."""
    rows = [[_one_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    head, *lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (titles, *rows)]
    print(f"\033[1m{head}\033[0m" if _in_colour() else head)
    for line in lines:
        print(line)


def print_records(
    records: Sequence[Record],
    titles: Sequence[str],
    row: Callable[[Record], Sequence[str]],
    *,
    as_json: bool,
    if_none: str,
) -> None:
    """Records as JSON, or as a table for people; where there is none, they are told where to look."""
    if as_json:
        for record in records:
            print_json(for_json(record))
        return
    print_table(titles, map(row, records))
    if not records:
        print(f"vbus: {if_none}", file=sys.stderr)


def for_json(value: Any, *, full: bool = False) -> Any:
    """What JSON can say of a value: bytes as base64, arrays as dtype and shape, with `full` also their
    data."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"base64": base64.b64encode(value).decode()}
    if hasattr(type(value), "__dataclass_fields__"):
        return {field.name: for_json(getattr(value, field.name), full=full) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): for_json(item, full=full) for key, item in value.items()}
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        described: dict[str, Any] = {"dtype": str(value.dtype), "shape": list(value.shape)}
        if full:
            described["data"] = for_json(value.tolist(), full=full)
        return described
    if isinstance(value, (list, tuple, set, frozenset)):
        return [for_json(item, full=full) for item in value]
    return str(value)


def for_people(value: Any, *, full: bool = False) -> str:
    """A value on one line; cut, unless `full`."""
    if hasattr(value, "dtype") and hasattr(value, "shape") and not full:
        return f"array of {'x'.join(map(str, value.shape)) or 'one'} {value.dtype}"
    text = repr(for_json(value, full=full)) if not isinstance(value, (str, bytes)) else repr(value)
    return (
        text
        if full or len(text) <= SHOWN_CHARS
        else f"{text[:SHOWN_CHARS]}… ({len(text)} characters, see --full)"
    )


SHOWN_CHARS = 500


def _one_line(text: str) -> str:
    """Names come from others; none may move the cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _in_colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
