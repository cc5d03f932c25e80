# SPDX-License-Identifier: Apache-2.0
"""Levels of SOLOv2: how large cells are, and which sizes of objects each level looks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

_CELLS = {2: (40, 36, 24, 16, 12, 8), 3: (12, 10, 8, 6, 4, 3)}  # along an axis; in 2-D five levels as in the paper
_FIRST_HIGH = 96 / 800  # of the image: the largest object of the finest level; twice as large on each coarser one
_LEAST_HIGH = 6  # strides, or the map of a level has too few voxels of an object to tell what it is
_OVERLAP = 4  # the largest object of a level is so many times the smallest
_IMAGE_SIZE = {2: (800.0, 200.0), 3: (96.0, 48.0)}  # with five levels or more (paper), and with fewer
_DEEP = 5
_LEAST_SHARE = 0.05  # of the voxels of the smallest object of a level


class Levels(NamedTuple):
    """Size of the cells of each level in voxels, for each axis, and the sizes of objects that it looks for."""

    cells: list[tuple[float, ...]]
    ranges: list[tuple[float, float]]


def usual_image_size(spatial_dims: int, levels: int) -> float:
    """Length of an axis that a pyramid is used for."""
    return _IMAGE_SIZE[spatial_dims][levels < _DEEP]


def plan_levels(
    strides: Sequence[Sequence[int]],
    image_size: float,
    *,
    cells: Sequence[float | Sequence[float]] | None = None,
    ranges: Sequence[Sequence[float]] | None = None,
) -> Levels:
    """Cells and ranges as they are given, or for images of a size, in the proportions of the paper.

    The finest level looks for objects of up to 96 / 800 of the image (paper), and of six of its strides at least.

    Args:
        strides: of each level, for each axis. Where the finest one is finer than along other axes, so are all cells.
        image_size: in voxels along an axis.
        cells: for each level a size, or one for each axis.
        ranges: for each level the smallest and largest size.

    Raises:
        ValueError: for an image size, or sizes of cells, that are not above 0, another number of them than levels, or
            ranges with a gap.

    Example:
        >>> plan = plan_levels([(s, s) for s in (4, 8, 16, 32, 64)], 800)
        >>> [round(cell[0], 1) for cell in plan.cells]
        [20.0, 22.2, 33.3, 50.0, 66.7]
        >>> plan.ranges
        [(1.0, 96.0), (48.0, 192.0), (96.0, 384.0), (192.0, 768.0), (384.0, inf)]
    """
    if not 0 < image_size < math.inf:
        raise ValueError(f"image_size must be a number of voxels above 0, got {image_size}")
    levels, finest = len(strides), strides[0]
    for name, given in (("cell_sizes", cells), ("scale_ranges", ranges)):
        if given is not None and len(given) != levels:
            raise ValueError(f"{name} must have one entry for each of the {levels} levels, got {len(given)}")
    return Levels(
        _cells(len(finest), cells) if cells is not None else _usual_cells(levels, image_size, finest),
        _ranges(ranges) if ranges is not None else _usual_ranges(levels, image_size, finest),
    )


def least_voxels(
    strides: Sequence[Sequence[int]], mask_stride: Sequence[int], ranges: Sequence[tuple[float, float]]
) -> list[float]:
    """How many voxels of the map of mask features a mask of each level must exceed.

    That is the stride of the level, or a twentieth of the smallest object that it looks for, whichever is less.

    Example:
        >>> strides = [(4, 4), (8, 8), (16, 16)]
        >>> [round(least, 2) for least in least_voxels(strides, (4, 4), [(1, 96), (48, 192), (96, 384)])]
        [0.0, 7.2, 16.0]
    """
    voxel, axes = math.prod(mask_stride), len(mask_stride)
    return [
        min(_mean(stride), _LEAST_SHARE * smallest**axes / voxel)
        for stride, (smallest, _) in zip(strides, ranges, strict=True)
    ]


def _usual_cells(levels: int, image_size: float, finest: Sequence[int]) -> list[tuple[float, ...]]:
    counts = _CELLS[len(finest)]
    along = [counts[min(level, len(counts) - 1)] for level in range(levels)]
    return [tuple(image_size / count * (stride / _mean(finest)) for stride in finest) for count in along]


def _usual_ranges(levels: int, image_size: float, finest: Sequence[int]) -> list[tuple[float, float]]:
    first = max(image_size * _FIRST_HIGH, _LEAST_HIGH * _mean(finest))
    highs = [first * 2**level for level in range(levels)]
    lows = [1.0, *(high / _OVERLAP for high in highs[1:])]
    return list(zip(lows, [*highs[:-1], math.inf], strict=True))


def _mean(stride: Sequence[int]) -> float:
    return round(math.prod(stride) ** (1 / len(stride)), 9)  # 4, not 3.9999999999999996, for (4, 4, 4)


def _cells(axes: int, cells: Sequence[float | Sequence[float]]) -> list[tuple[float, ...]]:
    each = [(float(one),) * axes if isinstance(one, (int, float)) else tuple(map(float, one)) for one in cells]
    if any(len(one) != axes or not all(0 < size < math.inf for size in one) for one in each):
        raise ValueError(f"cell_sizes must be numbers above 0, one or {axes} for each level, got {list(cells)}")
    return each


def _ranges(ranges: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    reached = math.inf
    for pair in ranges:
        if len(pair) != 2 or not 0 <= pair[0] < pair[1] or pair[0] > reached:
            raise ValueError(
                "scale_ranges must be pairs of a lower and an upper size, none above the end of that before, "
                f"got {list(ranges)}"
            )
        reached = pair[1]
    return [(float(low), float(high)) for low, high in ranges]
