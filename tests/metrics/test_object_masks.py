# SPDX-License-Identifier: Apache-2.0
"""Masks of an image's objects in both forms become the same crops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_labelfx.metrics._mask_crops import MaskCrops
from monai_labelfx.metrics._object_masks import object_masks

BOXES = {
    (9, 8): [[1, 2, 5, 6], [0, 0, 9, 8], [6.5, 3.2, 9, 7.9]],
    (7, 6, 5): [[1, 0, 2, 4, 6, 5], [2.5, 1.5, 0, 7, 5, 3]],
}


def made(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Boxes, masks within them, and the blocks of the boxes."""
    boxes, rng = np.array(BOXES[shape], np.float32), np.random.default_rng(0)
    low, high = np.floor(boxes[:, : len(shape)]).astype(int), np.ceil(boxes[:, len(shape) :]).astype(int)
    masks = np.zeros((len(boxes), *shape), bool)
    where = [tuple(map(slice, *ends)) for ends in zip(low, high, strict=True)]
    for mask, block in zip(masks, where, strict=True):
        mask[block] = rng.random(mask[block].shape) < 0.4
    masks[1] = False
    return boxes, masks, [mask[block] for mask, block in zip(masks, where, strict=True)]


def whole(found: MaskCrops) -> np.ndarray:
    masks = np.zeros((len(found.crops), *found.shape), bool)
    for mask, low, high, crop in zip(masks, found.low, found.high, found.crops, strict=True):
        mask[tuple(map(slice, low, high))] = crop
    return masks


@pytest.mark.parametrize("shape", BOXES)
@pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray, lambda value: torch.as_tensor(value).to(torch.int32)])
def test_both_forms_are_the_same(shape, kind):
    boxes, masks, blocks = made(shape)
    for given in (kind(masks), [kind(block) for block in blocks]):
        found = object_masks(given, torch.as_tensor(boxes), shape, "a")
        assert np.array_equal(whole(found), masks) and found.shape == shape
        assert found.volumes.tolist() == masks.reshape(len(masks), -1).sum(1).tolist()
        assert found.crops[1].size == 0, "an empty mask has an empty block"


def test_a_block_of_a_box_that_begins_outside_begins_with_the_image():
    found = object_masks([torch.ones(2, 3) > 0], [[-1.5, 2.0, 2.0, 5.0]], (4, 6), "a")
    assert found.low.tolist() == [[0, 2]] and found.high.tolist() == [[2, 5]]


@pytest.mark.parametrize("none", [[], torch.zeros(0, 4, 6), np.zeros((0, 4, 6)), torch.zeros(0)])
def test_no_objects(none):
    found = object_masks(none, torch.zeros(0, 4), (4, 6), "a")
    assert found.crops == [] and found.low.shape == (0, 2) and found.shape == (4, 6)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (torch.zeros(1, 4, 5, dtype=torch.bool), r"the masks of 'a' must be \(1, \*\(4, 6\)\) .* got \(1, 4, 5\)"),
        (np.zeros((2, 4, 6), bool), r"got \(2, 4, 6\)"),
        ([], r"a list of 1 blocks of 2 axes, got 0 blocks"),
        ([np.zeros((2, 2, 2), bool)], r"got 1 blocks of \[3\] axes"),
        (torch.full((1, 4, 6), 0.5), "must be boolean or integer, got float32: compare with a threshold"),
        ([np.ones((2, 2))], "must be boolean or integer, got float64"),
        ([np.ones((2, 5), bool)], r"mask 0 of 'a' is a block of \(2, 5\) voxels from \[1, 2\] on.*\(4, 6\)"),
    ],
)
def test_refused(masks, message):
    with pytest.raises(ValueError, match=message):
        object_masks(masks, [[1.0, 2.0, 3.0, 4.0]], (4, 6), "'a'")
