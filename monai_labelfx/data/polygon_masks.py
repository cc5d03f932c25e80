# SPDX-License-Identifier: Apache-2.0
"""The pixels inside polygons, such as those of COCO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["polygons_to_mask"]

_FAR = 2.0**31  # pixels: coordinates beyond are no picture's, and would overflow


def polygons_to_mask(polygons: Sequence[Sequence[float]], shape: Sequence[int]) -> np.ndarray:
    r"""Mask of the pixels whose centres lie inside one of several polygons.

    Pixel (i, j) reaches from (i, j) to (i + 1, j + 1), as in the boxes of this package and of COCO, and has its centre
    at (i + 1/2, j + 1/2). A polygon is closed from its last point to its first; where it crosses itself, a point is
    inside if a ray from it crosses the outline an odd number of times. A centre exactly on an outline belongs to the
    polygon at its left or above, so that two polygons with a common side share no pixel and leave none out.

    Args:
        polygons: outlines of one object, each ``[x0, y0, x1, y1, ...]`` with three points or more. The object is all of
            them together: COCO's polygons have no holes. What lies outside the picture is cut off.
        shape: (x, y) size of the picture.

    Returns:
        Bool mask of ``shape``, x first.

    Raises:
        ValueError: an outline of less than three points or of something else than finite numbers, or a shape that is
            not two whole numbers above 0.

    Notes:
        The code of COCO walks along the outline at five times the resolution instead; the two differ in some pixels
        that the outline passes close to the centre of.

    Example:
        >>> polygons_to_mask([[1, 0, 4, 0, 4, 2, 1, 2]], (5, 3)).astype(int).tolist()
        [[0, 0, 0], [1, 1, 0], [1, 1, 0], [1, 1, 0], [0, 0, 0]]
    """
    size = np.asarray(shape)
    if size.shape != (2,) or size.dtype.kind not in "iu" or size.min() < 1:
        raise ValueError(f"shape must be two whole numbers above 0, (x, y), got {shape}.")
    mask = np.zeros(tuple(size.tolist()), bool)
    for number, polygon in enumerate(polygons):
        points = _points(polygon, number)
        low, high = np.floor(points.min(axis=0)), np.ceil(points.max(axis=0))
        low, high = (np.clip(corner, 0, size).astype(np.int64) for corner in (low, high))
        if (low < high).all():
            mask[low[0] : high[0], low[1] : high[1]] |= _inside(points, low, high)
    return mask


def _points(polygon: Any, number: int) -> np.ndarray:
    """(N, 2) float64."""
    try:
        values = np.array(polygon, dtype=object)
        kinds = (int, float, np.integer, np.floating)
        numbers = values.ndim == 1 and all(isinstance(one, kinds) and not isinstance(one, bool) for one in values)
        array = values.astype(np.float64) if numbers else np.empty(0)
    except (ValueError, OverflowError):
        array = np.empty(0)
    if len(array) < 6 or len(array) % 2 or not (np.abs(array) < _FAR).all():
        found = repr(polygon)
        raise ValueError(
            f"polygons[{number}] must be [x0, y0, x1, y1, ...] of three points or more, finite numbers, found "
            f"{found if len(found) <= 100 else found[:100] + '...'}"
        )
    return array.reshape(-1, 2)


def _inside(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Whether the centre of each pixel from ``low`` to ``high`` lies inside one polygon (N, 2)."""
    ends = np.roll(points, -1, axis=0)
    # from left to right, so that a side has the same crossings in the polygons on both of its sides, to the last bit
    forward = (points[:, 0] <= ends[:, 0])[:, None]
    left, right = np.where(forward, points, ends), np.where(forward, ends, points)
    # the sides cross the lines of pixel centres x = k + 1/2 for k = first ... last - 1
    first, last = (np.clip(np.floor(side[:, 0] + 0.5), low[0], high[0]).astype(np.int64) for side in (left, right))
    counts = last - first
    columns = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts - first, counts)
    left, right = np.repeat(left, counts, axis=0), np.repeat(right, counts, axis=0)
    share = (columns + 0.5 - left[:, 0]) / (right[:, 0] - left[:, 0])
    y = left[:, 1] + share * (right[:, 1] - left[:, 1])
    rows = np.clip(np.floor(y + 0.5), low[1], high[1]).astype(np.int64)
    # all centres from a crossing on change sides
    size = high - low + [0, 1]
    crossings = np.bincount((columns - low[0]) * size[1] + rows - low[1], minlength=size.prod()).reshape(size)
    return np.logical_xor.accumulate(crossings[:, :-1] % 2 == 1, axis=1)
