# SPDX-License-Identifier: Apache-2.0
"""Cropped masks against dense ones."""

from __future__ import annotations

import numpy as np
import pytest

from monai_labelfx.metrics._mask_crops import crop_masks, place_crops, shared_voxels


def random_masks(number: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Sparse blocks, most of them apart from the others."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((number, *shape), bool)
    for mask in masks:
        low = [rng.integers(0, n - 2) for n in shape]
        part = tuple(slice(a, a + rng.integers(1, 5)) for a in low)
        mask[part] = rng.random(mask[part].shape) < 0.7
    return masks


@pytest.mark.parametrize("shape", [(30,), (12, 17), (9, 8, 11)])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64])
def test_shared_voxels_are_those_of_dense_masks(shape, dtype):
    first, second = random_masks(9, shape, 0), random_masks(6, shape, 1)
    first[2] = False
    rows, columns = np.indices((9, 6)).reshape(2, -1)
    dense = (first[:, None] & second).reshape(54, -1).sum(1)
    assert dense.max() > 0
    crops = crop_masks((first * np.uint8(3)).astype(dtype))
    assert np.array_equal(shared_voxels(crops, crop_masks(second), (rows, columns)), dense)
    assert np.array_equal(crops.volumes, first.reshape(9, -1).sum(1))
    assert crops.shape == shape
    chosen = crops.take(np.array([4, 1]))
    assert np.array_equal(
        shared_voxels(chosen, crop_masks(second), (rows[:12], columns[:12])), dense[[*range(24, 30), *range(6, 12)]]
    )


def test_blocks_are_as_small_as_possible_and_know_their_place():
    mask = np.zeros((1, 8, 9), np.uint8)
    mask[0, 2:5, 3:8] = 1
    crops = crop_masks(mask)
    assert crops.low.tolist() == [[2, 3]] and crops.high.tolist() == [[5, 8]] and crops.crops[0].all()
    placed = place_crops([mask[0, 1:7, 2:9]], np.array([[1, 2]]))
    assert placed.low.tolist() == [[2, 3]] and placed.high.tolist() == [[5, 8]] and placed.volumes.tolist() == [15]


def test_a_mask_without_voxels_shares_none():
    empty, full = crop_masks(np.zeros((1, 4, 4), bool)), crop_masks(np.ones((1, 4, 4), bool))
    pair = (np.array([0]), np.array([0]))
    assert shared_voxels(empty, full, pair).tolist() == [0] and shared_voxels(full, full, pair).tolist() == [16]
