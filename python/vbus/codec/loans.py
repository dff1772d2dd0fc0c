"""An ndarray in memory that is borrowed from the bus."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy

from vbus.errors import EncodeError, quote

from .arrays import array_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vbus._vbus import Loan, Publisher

    from .arrays import Array

__all__ = ["loan_array"]


def loan_array(
    publisher: Publisher[Any],
    shape: int | tuple[int, ...],
    dtype: Any,
    headers: Mapping[str, str] | None,
    takes: Callable[[Any], bool] | None,
) -> tuple[Loan, Array]:
    """The loan and the writable array in it. ValueError for a shape that is none, EncodeError for a dtype
    that cannot travel or is not one that the type `takes`, TooLarge beyond `max_size`."""
    lengths = _lengths(shape)
    element = numpy.dtype(dtype)
    try:
        text = array_text(lengths, element)
        if takes is not None and not takes(element):
            raise ValueError(f"the type of the publisher takes another dtype than {element}")
    except ValueError as error:
        failure = EncodeError(f"cannot publish an array on {quote(publisher.topic)}: {error}")
        failure.topic = publisher.topic
        raise failure from error
    nbytes = element.itemsize
    for length in lengths:
        nbytes *= length
    loan = publisher.raw_loan(nbytes, headers, "ndarray", text)
    array: Array = numpy.ndarray(lengths, element, buffer=loan.buffer if nbytes else bytearray())
    return loan, array


def _lengths(shape: Any) -> tuple[int, ...]:
    try:
        lengths = (
            tuple(map(operator.index, shape)) if hasattr(shape, "__iter__") else (operator.index(shape),)
        )
    except TypeError as error:
        raise ValueError(f"{quote(shape)} is not a shape; give an int or a tuple of them") from error
    if any(length < 0 for length in lengths):
        raise ValueError(f"{quote(shape)} is not a shape; lengths are 0 or more")
    return lengths
