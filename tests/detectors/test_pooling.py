# SPDX-License-Identifier: Apache-2.0
"""Pooling from a pyramid: the level of each box, and what comes of it."""

from __future__ import annotations

import math

import pytest
import torch

from monai_labelfx.detectors._pooling import PyramidPooling, box_levels
from monai_labelfx.ops.roi_align import roi_align

STRIDES = {
    "2d": [(4, 4), (8, 8), (16, 16), (32, 32)],
    "2d anisotropic": [(4, 2), (8, 4), (16, 4)],
    "3d": [(4, 4, 4), (8, 8, 8), (16, 16, 16)],
    "3d anisotropic": [(4, 4, 1), (8, 8, 2), (16, 16, 4), (32, 32, 8)],
}


def some_boxes(axes: int, number: int, largest: float) -> torch.Tensor:
    random = torch.Generator().manual_seed(axes)
    sides = largest ** torch.rand(number, axes, generator=random)
    low = 30 * torch.rand(number, axes, generator=random)
    return torch.cat([low, low + sides], dim=1)


@pytest.mark.parametrize("name", STRIDES)
def test_levels_by_the_formula(name):
    stride, levels = STRIDES[name][0], len(STRIDES[name])
    boxes = some_boxes(len(stride), 300, 2000.0)
    wanted = []
    for box in boxes.double().tolist():
        sides = [(box[len(stride) + axis] - box[axis]) / s for axis, s in enumerate(stride)]
        exact = 1 + math.log2(math.prod(sides) ** (1 / len(stride)) / 28.0)
        assert abs(exact - round(exact)) > 1e-5, "no box of the test lies where rounding decides"
        wanted.append(min(max(math.floor(exact), 0), levels - 1))
    assert set(wanted) == set(range(levels))
    assert box_levels(boxes, stride, levels, 28.0).tolist() == wanted


def test_levels_of_torchvision():
    """``torchvision.ops.poolers.LevelMapper(2, 5)`` gave these numbers; 111.99999 is 112 but for rounding."""
    sides = (1, 55, 56, 111, 111.9, 111.9999, 111.99999, 112, 112.1, 223, 224, 300, 448, 900)
    boxes = torch.tensor([[0.0, 0.0, s, s] for s in sides] + [[0.0, 0, 56, 224], [3, 5, 80, 200], [0, 0, 0, 9]])
    assert box_levels(boxes, (4, 4), 4, 28.0).tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3, 1, 1, 0]


def test_levels_of_cubes_begin_at_28_strides_and_doublings():
    boxes = torch.tensor([[0.0, 0, 0, s * 4, s * 4, s] for s in (27.99, 28, 55.99, 56, 111.99, 112, 1e6)])
    assert box_levels(boxes, (4, 4, 1), 4, 28.0).tolist() == [0, 1, 1, 2, 2, 3, 3]


def test_levels_of_boxes_that_are_none():
    boxes = torch.tensor([[5.0, 5, 5, 9], [9, 9, 2, 2], [math.nan, 0, 500, 500], [0, 0, math.inf, 500]])
    assert box_levels(boxes, (4, 4), 4, 28.0).tolist() == [0, 0, 0, 3]
    assert box_levels(boxes, (4, 4), 1, 28.0).tolist() == [0] * 4
    assert box_levels(boxes[:0], (4, 4), 4, 28.0).shape == (0,)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("name", STRIDES)
def test_rows_are_pooled_from_their_level_in_the_order_of_the_boxes(name, aligned):
    strides = STRIDES[name]
    axes = len(strides[0])
    random = torch.Generator().manual_seed(1)
    maps = [torch.randn(2, 3, *(-(-64 // s) for s in stride), generator=random) for stride in strides]
    boxes, image = some_boxes(axes, 24, 60.0), torch.arange(24) % 2
    bins = (2, 3, 2)[:axes]
    pooling = PyramidPooling(strides, bins, sampling_ratio=2, aligned=aligned, strides_at_second=1.5)
    found = pooling(maps, boxes, image)
    assert found.shape == (24, 3, *bins)
    levels = box_levels(boxes, strides[0], len(strides), 1.5).tolist()
    assert len(set(levels)) > 2 and levels != sorted(levels)
    for row, level in enumerate(levels):
        scale = [1 / s for s in strides[level]]
        options = {"spatial_scale": scale, "sampling_ratio": 2, "aligned": aligned}
        alone = roi_align(maps[level], boxes[row : row + 1], image[row : row + 1], bins, **options)
        assert torch.allclose(found[row], alone[0], atol=1e-6)


def test_no_box_still_reaches_every_map():
    maps = [torch.randn(2, 3, n, n, requires_grad=True) for n in (16, 8, 4, 2)]
    pooling = PyramidPooling(STRIDES["2d"], 3, sampling_ratio=0, aligned=True, strides_at_second=28.0)
    found = pooling(maps, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    assert found.shape == (0, 3, 3, 3)
    found.sum().backward()
    assert all(one.grad is not None and not one.grad.any() for one in maps)
