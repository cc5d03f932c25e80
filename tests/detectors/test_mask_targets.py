# SPDX-License-Identifier: Apache-2.0
"""What masks have to learn: shares of the bins of a box, and of the voxels of a coarse grid."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from monai_labelfx.detectors import _mask_targets
from monai_labelfx.detectors._mask_targets import coarse_masks, mask_targets


def shares(mask: torch.Tensor, box: list[int], bins: tuple[int, ...]) -> torch.Tensor:
    """How much of each bin is covered, where a bin is a block of whole voxels; nothing is beyond the image."""
    dims = len(bins)
    result = torch.zeros(bins, dtype=torch.float64)
    for index in torch.cartesian_prod(*map(torch.arange, bins)).view(-1, dims).tolist():
        sides = [(box[dims + a] - box[a]) // n for a, n in enumerate(bins)]
        low = [box[a] + i * side for a, (i, side) in enumerate(zip(index, sides, strict=True))]
        block = mask[tuple(slice(v, v + side) for v, side in zip(low, sides, strict=True))]
        result[tuple(index)] = block.sum() / torch.tensor(sides).prod()
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dims", [2, 3])
def test_targets_of_whole_voxels(dims, dtype):
    draw = torch.Generator().manual_seed(dims)
    sizes, bins = [(12, 9, 8)[:dims], (8, 12, 10)[:dims]], (2, 3, 2)[:dims]
    masks = [torch.rand(n, *size, generator=draw) < 0.5 for n, size in zip((2, 3), sizes, strict=True)]
    boxes = [[1, 0, 2, 5, 9, 6], [2, 3, 0, 8, 9, 4], [0, 0, 0, 2, 3, 2], [3, 1, 1, 7, 7, 7]]
    boxes = [box[:dims] + box[3 : 3 + dims] for box in boxes]
    image, matches = torch.tensor([1, 0, 1, 0]), torch.tensor([2, 1, 0, 0])
    rois = torch.tensor(boxes, dtype=dtype)
    expected = torch.stack([shares(masks[i][m], box, bins) for i, m, box in zip(image, matches, boxes, strict=True)])
    found = mask_targets(masks, rois, image, matches, bins, aligned=True, threshold=None)
    torch.testing.assert_close(found, expected.to(dtype))
    assert len(found.unique()) > 4
    binary = mask_targets(masks, rois, image, matches, bins, aligned=True, threshold=0.5)
    assert torch.equal(binary, (expected >= 0.5 - 1e-9).to(dtype))
    assert ((expected - 0.5).abs() < 1e-9).any()  # half a bin is inside


def test_a_box_beyond_its_own_image_has_nothing_there():
    masks = [torch.ones(1, 8, 8, dtype=torch.bool)]
    roi, only = torch.tensor([[4.0, 0, 20, 8]]), torch.tensor([0])
    found = mask_targets(masks, roi, only, only, (4, 1), aligned=True, threshold=0.5)
    assert found[0, :, 0].tolist() == [1.0, 0.0, 0.0, 0.0]


def test_the_older_alignment_lies_half_a_voxel_aside():
    masks = [torch.zeros(1, 8, 1, dtype=torch.bool)]
    masks[0][0, 4:] = True
    roi, only = torch.tensor([[2.0, 0, 6, 1]]), torch.tensor([0])
    assert mask_targets(masks, roi, only, only, (4, 1), aligned=True, threshold=None)[0, :, 0].tolist() == [0, 0, 1, 1]
    old = mask_targets(masks, roi, only, only, (4, 1), aligned=False, threshold=None)
    assert old[0, :, 0].tolist() == [0, 0.5, 1, 1]


def test_no_boxes():
    masks = [torch.zeros(0, 6, 6, dtype=torch.bool), torch.ones(1, 5, 6, dtype=torch.bool)]
    none = torch.zeros(0, dtype=torch.long)
    for given in (masks, masks[:1]):
        found = mask_targets(given, torch.zeros(0, 4), none, none, (3, 2), aligned=True, threshold=0.5)
        assert found.shape == (0, 3, 2)


@pytest.mark.parametrize("dims", [2, 3])
def test_coarse_masks(dims, monkeypatch):
    image = (21, 21, 21)[:dims]
    masks = torch.rand(5, *image, generator=torch.Generator().manual_seed(2)) < 0.3
    stride = (4, 2, 8)[:dims]
    shape = (6, 12, 3)[:dims]  # more than the image has along some axes
    found = coarse_masks(masks, stride, shape)
    assert found.shape == (5, *shape) and found.dtype == torch.float32
    for place in product(*map(range, shape)):
        block = masks[(slice(None), *[slice(k * s, (k + 1) * s) for k, s in zip(place, stride, strict=True)])]
        wanted = block.flatten(1).double().sum(1) / math.prod(stride)
        assert torch.allclose(found[(slice(None), *place)].double(), wanted)
    monkeypatch.setattr(_mask_targets, "_MOST_NUMBERS", 1)
    assert torch.equal(coarse_masks(masks, stride, shape), found)
    assert coarse_masks(masks[:0], stride, shape).shape == (0, *shape)
