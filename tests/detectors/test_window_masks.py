# SPDX-License-Identifier: Apache-2.0
"""Masks of windows in the image, whole and as the blocks of their boxes."""

from __future__ import annotations

import pytest
import torch

from monai_labelfx.detectors._window_masks import crops_of, united


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3)])
def test_crops_are_what_is_not_empty(shape):
    masks = torch.zeros(3, *shape, dtype=torch.bool)
    masks[0, 1:4, 2] = masks[2, 4, 3] = True
    crops = crops_of(masks, torch.zeros(3, 2 * len(shape)))
    rest = shape[2:]
    assert [low for low, _ in crops] == [(1, 2, *[0] * len(rest)), (0,) * len(shape), (4, 3, *[0] * len(rest))]
    assert [tuple(crop.shape) for _, crop in crops] == [(3, 1, *rest), (0,) * len(shape), (1, 1, *rest)]
    assert torch.equal(united([[crop] for crop in crops], shape, torch.zeros(3, 2 * len(shape)), blocks=False), masks)


def test_blocks_begin_with_their_boxes():
    blocks = [torch.ones(2, 3), torch.ones(1, 2)]
    crops = crops_of(blocks, torch.tensor([[1.5, 0.0, 3.0, 2.5], [-2.0, 7.9, 0.5, 9.5]]))
    assert [low for low, _ in crops] == [(1, 0), (0, 7)] and crops[0][1] is blocks[0]
    assert crops_of([], torch.zeros(0, 4)) == []


def test_parts_are_united():
    left, right = torch.ones(3, 2, dtype=torch.bool), torch.zeros(3, 2, dtype=torch.bool)
    right[:, 1] = True  # says nothing of the column that both windows show
    objects = [[((1, 0), left), ((1, 1), right)], []]
    whole = united(objects, (5, 4), torch.zeros(2, 4), blocks=False)
    assert whole[0].sum(1).tolist() == [0, 3, 3, 3, 0] and whole[0].any(0).tolist() == [True, True, True, False]
    assert not whole[1].any()
    boxes = torch.tensor([[1.0, 0, 3.3, 2.8], [2.2, 2.2, 2.4, 9.0]])
    block, empty = united(objects, (5, 4), boxes, blocks=True)
    assert torch.equal(block, whole[0, 1:4, :3]) and empty.shape == (1, 2) and not empty.any()


def test_what_reaches_out_of_a_block_is_cut_off():
    crop = ((1, 1), torch.ones(3, 3, dtype=torch.bool))
    (inside,) = united([[crop]], (9, 9), torch.tensor([[2.0, 0, 3, 9]]), blocks=True)
    assert inside.shape == (1, 9) and inside[0].tolist() == [False] + 3 * [True] + 5 * [False]
    (outside,) = united([[crop]], (9, 9), torch.tensor([[6.0, 0, 12, 9]]), blocks=True)
    assert outside.shape == (3, 9) and not outside.any()
    (gone,) = united([[crop]], (9, 9), torch.tensor([[9.0, 0, 12, 9]]), blocks=True)
    assert gone.shape == (0, 9)
    (low,) = united([[crop]], (9, 9), torch.tensor([[2.0, 2, 2, 2]]), blocks=True)
    assert low.tolist() == [[True]], "a box without extent has the voxel that it lies in"
