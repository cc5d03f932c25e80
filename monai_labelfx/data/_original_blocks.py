# SPDX-License-Identifier: Apache-2.0
"""Bring a block of an image that was moved since it was read back to the voxels that it was read from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monai_labelfx.data._original_grid import _TOLERANCE, moved

_TIE = 1e-6  # of a voxel: halfway between two voxels, but for rounding, the upper one is the nearest
_AT_ONCE = 1 << 20  # voxels whose places are held at a time, where axes are mixed


def block_on_original_grid(
    block: np.ndarray, low: Sequence[int], size: Sequence[int], current: np.ndarray, shape: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The part of an image ``size`` that begins at ``low``, and is 0 elsewhere, on the grid it was read from.

    Each voxel gets the value of the nearest one, as of :py:func:`on_original_grid`, without the rest of the image.

    Args:
        block: (\\*block).
        low: D numbers, its first voxel.
        size: of the whole image.
        current: voxel as read -> voxel of the image, 4 x 4 (:py:func:`to_current`).
        shape: of the image as it was read.

    Returns:
        The first voxel (D,) and the values of a block as small as can be told beforehand; without voxels, where the
        block lies outside of the image as it was read.
    """
    axes = len(shape)
    keep = [*range(axes), 3]
    matrix = current[np.ix_(keep, keep)]
    first, end = _hull(np.asarray(low), np.asarray(low) + block.shape, np.linalg.inv(matrix), shape)
    result = np.zeros(end - first, block.dtype)
    if not result.size:
        return first, result
    largest = np.abs(matrix[:-1, :-1]).argmax(axis=1)
    straight = np.zeros_like(matrix)
    straight[np.arange(axes), largest] = matrix[np.arange(axes), largest]
    straight[:, -1] = matrix[:, -1]
    if len(set(largest.tolist())) == axes and not moved(_homogeneous(matrix), _homogeneous(straight), shape):
        # each axis alone
        places = [straight[a, j] * np.arange(first[j], end[j]) + straight[a, -1] for a, j in enumerate(largest)]
        chosen = [_inside(*one) for one in zip(places, low, block.shape, size, strict=True)]
        found = np.zeros([len(place) for place in places], block.dtype)
        found[np.ix_(*(there for there, _ in chosen))] = block[np.ix_(*(index for _, index in chosen))]
        return first, np.ascontiguousarray(found.transpose(np.argsort(largest)))
    slab = max(1, _AT_ONCE // max(1, result[..., 0].size))
    for start in range(0, result.shape[-1], slab):
        part = result[..., start : start + slab]
        index = np.indices(part.shape).reshape(axes, -1) + first[:, None]
        index[-1] += start
        places = matrix[:-1, :-1] @ index + matrix[:-1, -1:]
        covered, voxels = np.ones(index.shape[1], bool), []
        for place, begin, length, whole in zip(places, low, block.shape, size, strict=True):
            near = _nearest(place, whole) - begin
            covered &= _covered(place, whole) & (near >= 0) & (near < length)
            voxels.append(near)
        part[covered.reshape(part.shape)] = block[tuple(voxel[covered] for voxel in voxels)]
    return first, result


def _hull(low: np.ndarray, high: np.ndarray, back: np.ndarray, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """First voxel as read, and one after the last, that a block may reach, with one to spare."""
    linear = back[:-1, :-1]
    centre = linear @ ((low + high - 1) / 2) + back[:-1, -1]
    reach = np.abs(linear) @ ((high - low) / 2) + 1
    first = np.floor(centre - reach).clip(0, shape).astype(int)
    return first, np.maximum(np.ceil(centre + reach + 1).clip(0, shape).astype(int), first)


def _inside(place: np.ndarray, low: int, length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of the places along an axis lie in the block, and in which voxel of it."""
    near = _nearest(place, size) - low
    there = np.flatnonzero(_covered(place, size) & (near >= 0) & (near < length))
    return there, near[there]


def _nearest(place: np.ndarray, size: int) -> np.ndarray:
    return np.floor(place + 0.5 + _TIE).clip(0, size - 1).astype(int)


def _covered(place: np.ndarray, size: int) -> np.ndarray:
    return (place >= -0.5 - _TOLERANCE) & (place <= size - 0.5 + _TOLERANCE)


def _homogeneous(matrix: np.ndarray) -> np.ndarray:
    """4 x 4 of (D + 1) x (D + 1)."""
    keep = [*range(len(matrix) - 1), 3]
    whole = np.eye(4)
    whole[np.ix_(keep, keep)] = matrix
    return whole
