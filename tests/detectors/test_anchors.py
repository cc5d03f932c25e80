# SPDX-License-Identifier: Apache-2.0
"""Anchors of the levels of a pyramid, and thresholds for further axes."""

from __future__ import annotations

import pytest
import torch
from monai.data.box_utils import box_iou

from monai_labelfx.detectors._anchors import iou_per_axis, level_anchors


@pytest.mark.parametrize("iou", [0.1, 0.4, 0.5, 0.7, 1.0])
def test_the_threshold_is_that_of_the_same_shift_along_each_axis(iou):
    share = (2 * iou / (1 + iou)) ** 0.5  # of the side on which two squares of this IoU overlap
    for dims in (2, 3):
        cube = torch.tensor([[0.0] * dims + [1.0] * dims], dtype=torch.float64)
        assert iou_per_axis(iou, dims) == pytest.approx(float(box_iou(cube, cube + 1 - share)), abs=1e-6)
    assert iou_per_axis(iou, 2) == pytest.approx(iou)


def test_default_sizes_follow_the_strides():
    first, second = level_anchors([(4, 4, 2), (8, 8, 4)], None, 4.0, [1.0, 2.0], [2.0], 3)
    assert first.shape == (8, 3) and torch.allclose(second, 2 * first)
    cubes = first[2:4]
    assert cubes.tolist() == [[16.0, 16.0, 8.0], [32.0, 32.0, 16.0]]
    assert torch.allclose(first[::2].prod(1), torch.full((4,), 16.0 * 16 * 8))
    assert first[0, 0] > 16 and first[4, 1] > 16 and first[6, 2] > 8, "long along the first axis first"


def test_sizes_of_levels_and_whole_voxels():
    levels = level_anchors([(8, 8)], [[10, (20, 12)]], 4.0, [1.0], [2.0], 2, rounded=True)
    assert levels[0][2:4].tolist() == [[10.0, 10.0], [20.0, 12.0]]
    assert (levels[0] % 2 == 0).all()


def test_it_stays_on_the_cpu_where_networks_are_built_on_meta():
    with torch.device("meta"):
        assert level_anchors([(8, 8)], None, 4.0, [1.0], [2.0], 2)[0].device.type == "cpu"


def test_levels_must_have_the_same_number():
    with pytest.raises(ValueError, match="every level must have the same number of anchors"):
        level_anchors([(8, 8), (16, 16)], [[8], [8, 9]], 4.0, [1.0], [2.0], 2)
