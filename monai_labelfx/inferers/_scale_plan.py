# SPDX-License-Identifier: Apache-2.0
"""The sizes of an image and of its windows at one scale."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple


class ScalePlan(NamedTuple):
    """Sizes at one scale, a number of voxels for each axis.

    Attributes:
        size: of the image that windows are laid over.
        window: of a window there, at most ``size``.
        tile: of what the network is given for a window.
    """

    size: tuple[int, ...]
    window: tuple[int, ...]
    tile: tuple[int, ...]


def scale_plan(
    shape: Sequence[int],
    factors: Sequence[float],
    *,
    roi_size: Sequence[int],
    divisor: Sequence[int],
    native: bool,
) -> ScalePlan:
    """Resize the image and lay windows over it, or lay windows over the image and resize them (``native``).

    Args:
        shape: of the image.
        factors: of its size, for each axis.
        roi_size: the largest tile; -1: as large as the resized image.
        divisor: a tile that is smaller than ``roi_size`` has a multiple of this number as its size.
        native: whether windows lie over the image as it is.

    Raises:
        ValueError: if ``roi_size`` is no multiple of the divisor.

    Example:
        >>> scale_plan((512, 768), (0.75, 0.75), roi_size=(400, 400), divisor=(1, 1), native=False)
        ScalePlan(size=(384, 576), window=(384, 400), tile=(384, 400))
        >>> scale_plan((512, 768), (3, 3), roi_size=(320, 320), divisor=(1, 1), native=True)
        ScalePlan(size=(512, 768), window=(107, 107), tile=(320, 320))
    """
    columns = []
    for length, factor, roi, divides in zip(shape, factors, roi_size, divisor, strict=True):
        if roi != -1 and roi % divides:
            raise ValueError(f"roi_size must be a multiple of the divisor {divides}, got {roi}.")
        resized = int(length * factor + 0.5)
        if roi == -1 or resized < roi:
            resized = max(1, int(resized / divides + 0.5)) * divides
        tile = resized if roi == -1 else min(roi, resized)
        if not native:
            columns.append((resized, tile, tile))
        elif tile == resized:
            columns.append((length, length, tile))
        else:
            columns.append((length, min(length, max(1, int(roi / factor + 0.5))), tile))
    return ScalePlan(*zip(*columns, strict=True))


def numbers(value: Any) -> tuple[Any, ...]:
    """A number or several as a tuple.

    Example:
        >>> numbers(3), numbers([3, 4])
        ((3,), (3, 4))
    """
    return (value,) if isinstance(value, Real | str) else tuple(value)


def per_axis(value: Any, name: str, dims: int) -> tuple[Any, ...]:
    """One number for each axis.

    Raises:
        ValueError: if there are several, but not as many as axes.

    Example:
        >>> per_axis(3, "roi_size", 2)
        (3, 3)
    """
    found = numbers(value)
    if len(found) not in (1, dims):
        raise ValueError(f"{name} must be one number or {dims}, one for each spatial axis, got {value!r}.")
    return found * dims if len(found) == 1 else found
