"""Types as text, and when two of them agree."""

import datetime
import enum
import uuid
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple, NotRequired, TypedDict, TypeVar

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from vbus import ConfigError, _vbus
from vbus.codec import shape_of

T = TypeVar("T")


@dataclass
class Pose:
    x: float
    y: float = 0.0


@dataclass
class Track:
    poses: list[Pose]
    label: str | None = None


@dataclass
class Tree:
    value: int
    children: "list[Tree]" = field(default_factory=list)


@dataclass
class Left:
    right: "Right | None" = None


@dataclass
class Right:
    left: Left


@dataclass
class Box(Generic[T]):
    content: T


class Options(TypedDict):
    a: int
    b: NotRequired[str]


class Point(NamedTuple):
    x: int
    y: int = 0


class Command(msgspec.Struct, rename="camel"):
    full_name: str


class Colour(enum.Enum):
    RED = "red"
    DARK_BLUE = "dark blue"


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        (None, ""),
        (int, "int"),
        (Any, "any"),
        (int | None, "int|none"),
        (bytes, "bytes"),
        (uuid.UUID, "uuid"),
        (datetime.datetime, "datetime"),
        (list[int], "list<int>"),
        (list, "list<any>"),
        (dict[str, float], "dict<str,float>"),
        (tuple[int, str], "tuple<int,str>"),
        (tuple[int, ...], "list<int>"),
        (set[str], "list<str>"),
        (Pose, "{x:float,y?:float}"),
        (Track, "{poses:list<{x:float,y?:float}>,label?:str|none}"),
        (Tree, "{value:int,children?:list<^0>}"),
        (Left, "{right?:{left:^1}|none}"),
        (Box[int], "{content:int}"),
        (Box[Pose], "{content:{x:float,y?:float}}"),
        (Options, "{a:int,b?:str}"),
        (Point, "(x:int,y?:int)"),
        (Command, "{fullName:str}"),
        (Colour, "='red'|='dark%20blue'"),
        (Literal["a", 1, None], "='a'|=1|none"),
        (np.ndarray, "ndarray"),
        (NDArray[np.float32], "ndarray<f4>"),
        (NDArray[Any], "ndarray"),
    ],
)
def test_a_type_is_told_by_shape_and_field_names(type_, text):
    assert shape_of(type_) == text


def test_class_names_do_not_matter():
    @dataclass
    class Position:
        x: float
        y: float = 1.0

    assert shape_of(Position) == shape_of(Pose)


def test_a_type_that_would_be_endless_as_text_is_told_less_precisely():
    previous: type = Pose
    for level in range(40):
        previous = dataclass(type(f"Level{level}", (), {"__annotations__": {"a": previous, "b": previous}}))
    assert len(shape_of(previous)) < 64 * 1024
    assert _vbus.shapes_agree(shape_of(previous), shape_of(previous)) is None


def test_annotations_that_cannot_be_read_are_a_config_error():
    @dataclass
    class Broken:
        part: "NoSuchClass"  # noqa: F821

    with pytest.raises(ConfigError, match="NoSuchClass"):
        shape_of(Broken)


@pytest.mark.parametrize(
    ("offered", "asked"),
    [
        (None, Pose),
        (Pose, None),
        (int, float),
        (int | None, int),
        (Track, Any),
        (Tree, Tree),
        (Options, dict[str, Any]),
        (Point, tuple[int, int]),
        (Colour, str),
        (Literal["red"], Colour),
        (NDArray[np.float32], np.ndarray),
    ],
)
def test_types_agree_if_some_value_fits_both(offered, asked):
    assert _vbus.shapes_agree(shape_of(offered), shape_of(asked)) is None


@pytest.mark.parametrize(
    ("offered", "asked", "where"),
    [
        (int, str, "type"),
        (Pose, Track, "poses"),
        (Track, Box[int], "content"),
        (bytes, np.ndarray, "type"),
        (list[int], list[str], "type"),
        (Box[Pose], Box[Box[int]], "content.content"),
        (Box[int], Box[str], "content"),
        (NDArray[np.float32], NDArray[np.float64], "type"),
        (uuid.UUID, str, "type"),
    ],
)
def test_types_that_cannot_agree_part_at_a_field(offered, asked, where):
    parting = _vbus.shapes_agree(shape_of(offered), shape_of(asked))
    assert parting is not None
    assert parting[0] == where
