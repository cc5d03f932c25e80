# SPDX-License-Identifier: Apache-2.0
"""CT images as stacks of slices, a few of them at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from monai_labelfx.ops._arrays import as_array

_VOXELS = 2_000_000  # of one stack: some tens of MB for each array that is made of it


def hu_slices(image: Any, name: str) -> np.ndarray:
    """The image as (S, X, Y), the slices of its last axis first; the same memory where that is possible.

    Args:
        image: tensor or array (X, Y), (1, X, Y), (X, Y, Z) or (1, X, Y, Z). Three axes of which the first has one
            voxel are a 2-D image with its channel.
        name: of the argument, for messages.

    Raises:
        TypeError: when it holds something else than numbers.
        ValueError: for other shapes and for images without voxels.

    Example:
        >>> hu_slices(np.zeros((1, 5, 4)), "source").shape, hu_slices(np.zeros((5, 4, 3)), "source").shape
        ((1, 5, 4), (3, 5, 4))
    """
    array = as_array(image.detach()) if isinstance(image, torch.Tensor) else np.asarray(image)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold numbers, got {array.dtype}.")
    plain = array[0] if _has_channel(array.shape) else array
    if plain.ndim not in (2, 3) or not plain.size:
        raise ValueError(
            f"{name} must be a slice or a volume of one channel, (X, Y), (1, X, Y), (X, Y, Z) or (1, X, Y, Z), "
            f"got shape {tuple(array.shape)}."
        )
    return np.moveaxis(plain, -1, 0) if plain.ndim == 3 else plain[None]


def is_plane(image: Any) -> bool:
    """Whether an image is a 2-D one, and not a volume that may have one slice only.

    Example:
        >>> is_plane(np.zeros((1, 5, 4))), is_plane(np.zeros((5, 4, 1)))
        (True, False)
    """
    shape = tuple(image.shape)
    return len(shape) - _has_channel(shape) == 2


def _has_channel(shape: Sequence[int]) -> bool:
    return len(shape) in (3, 4) and shape[0] == 1


def same_slices(slices: np.ndarray, image: Any, name: str) -> np.ndarray:
    """Another image as (S, X, Y), which must have the shape of ``slices``.

    Raises:
        TypeError: see :py:func:`hu_slices`.
        ValueError: for another shape.
    """
    other = hu_slices(image, name)
    if other.shape != slices.shape:
        raise ValueError(
            f"{name} must have as many voxels along each axis as the source, "
            f"{_in_order(slices)}, got {_in_order(other)}."
        )
    return other


def _in_order(slices: np.ndarray) -> tuple[int, ...]:
    """(X, Y) or (X, Y, Z) of a stack."""
    return slices.shape[1:] if len(slices) == 1 else (*slices.shape[1:], len(slices))


def stacks(slices: np.ndarray) -> Iterator[slice]:
    """Ranges of slices that together have some two million voxels, in order.

    Example:
        >>> [(part.start, part.stop) for part in stacks(np.zeros((5, 1000, 1000)))]
        [(0, 2), (2, 4), (4, 5)]
    """
    step = max(1, _VOXELS // (slices.shape[1] * slices.shape[2]))
    for begin in range(0, len(slices), step):
        yield slice(begin, min(begin + step, len(slices)))


def compared(
    before: np.ndarray, after: np.ndarray, left_out: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Input and output minus input, float32 and 0 where left out, and which voxels are not left out.

    Args:
        before: some slices of the source, (S, X, Y).
        after: the same of the output.
        left_out: true where a voxel is not to be looked at; ``None``, nowhere.

    Raises:
        ValueError: for NaN or infinity in the other voxels.
    """
    valid = np.ones(before.shape, bool) if left_out is None else left_out == 0
    exact = np.result_type(before, after, np.float32)  # integers of 32 bits and float64 need float64
    difference, values = np.subtract(after, before, dtype=exact), before.astype(np.float32)
    if left_out is not None:
        difference[~valid], values[~valid] = 0, 0
    if not (np.isfinite(difference).all() and np.isfinite(values).all()):
        name = "source" if not np.isfinite(values).all() else "output"
        raise ValueError(f"{name} holds NaN or infinity, expected finite HU.")
    return np.ascontiguousarray(values), np.ascontiguousarray(difference, np.float32), valid


def label_slices(slices: np.ndarray) -> np.ndarray:
    """A map of regions (S, X, Y) as int64.

    Raises:
        ValueError: when it holds fractions or negative numbers.
    """
    labels = slices if slices.dtype.kind in "biu" else np.rint(slices)
    if not np.array_equal(labels, slices) or labels.min() < 0:
        raise ValueError(
            f"roi must hold whole numbers, 0 for no region, got values from {slices.min():g} to {slices.max():g}."
        )
    return labels.astype(np.int64)
