# SPDX-License-Identifier: Apache-2.0
"""Masks of objects cropped to what they cover, and the voxels that pairs of them share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class MaskCrops(NamedTuple):
    """N masks, each cropped to the smallest block of voxels that holds it."""

    low: np.ndarray  # (N, D) int64, first voxel of the block
    high: np.ndarray  # (N, D) int64, one after its last voxel
    volumes: np.ndarray  # (N,) int64, voxels of the mask
    crops: list[np.ndarray]  # N boolean arrays of shape high - low
    shape: tuple[int, ...]  # of the image, () where it is not known

    def take(self, rows: np.ndarray) -> MaskCrops:
        """The masks of ``rows``, in their order."""
        crops = [self.crops[row] for row in rows]
        return MaskCrops(self.low[rows], self.high[rows], self.volumes[rows], crops, self.shape)


def crop_masks(masks: np.ndarray) -> MaskCrops:
    """Crop masks (N, \\*spatial), boolean or integer; a mask without voxels becomes a block without voxels."""
    masks = masks if masks.dtype == bool else masks != 0
    return place_crops(list(masks), np.zeros((len(masks), masks.ndim - 1), np.int64), masks.shape[1:])


def place_crops(masks: Sequence[np.ndarray], low: np.ndarray, shape: tuple[int, ...] = ()) -> MaskCrops:
    """Masks whose first voxels lie at ``low`` (N, D), cropped further to what they cover."""
    low, high = low.copy(), low.copy()
    crops, volumes = [], np.zeros(len(masks), np.int64)
    for row, mask in enumerate(masks):
        block = mask if mask.dtype == bool else mask != 0
        for axis in range(block.ndim):  # the first axis reads the whole mask, the next ones what is left of it
            others = tuple(a for a in range(block.ndim) if a != axis)
            covered = np.flatnonzero(block.any(axis=others))
            first, end = (int(covered[0]), int(covered[-1]) + 1) if len(covered) else (0, 0)
            block = block[(slice(None),) * axis + (slice(first, end),)]
            low[row, axis] += first
        high[row] = low[row] + block.shape
        crops.append(np.ascontiguousarray(block))
        volumes[row] = np.count_nonzero(block)
    return MaskCrops(low, high, volumes, crops, tuple(shape))


def shared_voxels(first: MaskCrops, second: MaskCrops, pairs: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Voxels (P,) int64 that mask ``pairs[0]`` of ``first`` and mask ``pairs[1]`` of ``second`` both cover.

    Only blocks that meet are compared, on the block they share: memory stays at one mask, whatever N and P.
    """
    rows, columns = pairs
    low = np.maximum(first.low[rows], second.low[columns])
    high = np.minimum(first.high[rows], second.high[columns])
    found = np.zeros(len(rows), np.int64)
    meet = np.flatnonzero((low < high).all(1))
    starts = np.stack([low - first.low[rows], low - second.low[columns]], 1)[meet].tolist()
    ends = np.stack([high - first.low[rows], high - second.low[columns]], 1)[meet].tolist()
    for pair, begin, end in zip(meet.tolist(), starts, ends, strict=True):
        here, there = (tuple(map(slice, b, e)) for b, e in zip(begin, end, strict=True))
        block = first.crops[rows[pair]][here] & second.crops[columns[pair]][there]
        found[pair] = np.count_nonzero(block)
    return found
