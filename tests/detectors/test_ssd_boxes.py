# SPDX-License-Identifier: Apache-2.0
"""SSD's levels and default boxes: the published numbers, and sane ones for other sizes."""

from __future__ import annotations

import math

import pytest
import torch

from monai_labelfx.detectors._ssd_boxes import axis_stretch, box_sizes, default_boxes, level_count, level_ratios


def test_the_published_sizes_and_ratios():
    assert box_sizes((512, 512), (8, 8), 7) == [20, 51, 133, 215, 296, 378, 460, 542]
    assert level_ratios(7) == [(2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,)]


def test_the_published_shapes():
    first, second = default_boxes([20, 51, 133], [(2,), (2, 3)], (1.0, 1.0))
    root = math.sqrt
    wanted = [(20, 20), (root(20 * 51),) * 2, (20 / root(2), 20 * root(2)), (20 * root(2), 20 / root(2))]
    assert torch.allclose(first, torch.tensor(wanted))
    wanted = [(51, 51), (root(51 * 133),) * 2]
    wanted += [(51 / root(r) ** s, 51 * root(r) ** s) for r in (2, 3) for s in (1, -1)]
    assert torch.allclose(second, torch.tensor(wanted))


def test_rods_and_plates_of_one_volume_in_3d():
    (shapes,) = default_boxes([8, 18], [(2,)], (1.0, 1.0, 1.0))
    assert shapes[:2].tolist() == [[8] * 3, [12] * 3] and len(shapes) == 8
    rest = shapes[2:]
    assert torch.allclose(rest.prod(dim=1), torch.full((6,), 512.0))
    relative = {tuple((row / row.median()).round(decimals=4).tolist()) for row in rest}
    assert relative == {(2, 1, 1), (1, 2, 1), (1, 1, 2), (0.5, 1, 1), (1, 0.5, 1), (1, 1, 0.5)}
    (more,) = default_boxes([8, 18], [(2, 3)], (1.0, 1.0, 1.0))
    assert len(more) == 14 and len({tuple(row) for row in more.tolist()}) == 14


@pytest.mark.parametrize(
    ("size", "stride", "least", "count"),
    [((512, 512), (8, 8), 2, 7), ((300, 300), (8, 8), 2, 6), ((64, 512), (8, 8), 2, 7), ((128,) * 3, (4,) * 3, 2, 6),
     ((96,) * 3, (4,) * 3, 2, 6), ((32, 32), (8, 8), 2, 3), ((32, 32), (32, 32), 2, 2), ((128, 16), (8, 2), 2, 5)],
)  # fmt: skip
def test_levels_end_with_about_one_place(size, stride, least, count):
    assert level_count(size, stride, least) == count


@pytest.mark.parametrize(
    ("size", "stride", "levels"), [(32, 4, 4), (48, 4, 5), (64, 4, 5), (128, 4, 6), (300, 8, 6), (1024, 8, 8)]
)
@pytest.mark.parametrize("axes", [2, 3])
def test_sizes_of_other_images(size, stride, levels, axes):
    sizes = box_sizes((size,) * axes, (stride,) * axes, levels)
    assert len(sizes) == levels + 1
    assert all(small < large for small, large in zip(sizes, sizes[1:], strict=False))
    assert sizes[0] >= 0.97 * 2 * stride and sizes[1] >= 0.97 * 4 * stride, "boxes too far apart"
    assert 0.6 * size < sizes[-2] <= 0.9 * size
    doubled = box_sizes((2 * size,) * axes, (2 * stride,) * axes, levels)
    assert doubled == pytest.approx([2 * value for value in sizes])


def test_thick_slices_have_flat_boxes():
    stretch = axis_stretch((8, 8, 2))
    assert stretch == [1, 1, 0.25]
    assert box_sizes((512, 512, 128), (8, 8, 2), 7) == pytest.approx([20, 51, 133, 215, 296, 378, 460, 542])
    (shapes,) = default_boxes([20, 51], [(2,)], stretch)
    assert shapes[0].tolist() == [20, 20, 5]
    (cubes,) = default_boxes([20, 51], [(2,)], [1.0, 1.0, 1.0])
    assert torch.equal(shapes, cubes * torch.tensor(stretch))


def test_an_image_that_is_no_square_counts_by_its_area():
    assert box_sizes((256, 1024), (8, 8), 7) == box_sizes((512, 512), (8, 8), 7)


def test_boxes_are_numbers_also_where_networks_are_made_on_no_device():
    with torch.device("meta"):
        (shapes,) = default_boxes([20, 51], [(2,)], (1.0, 1.0))
    assert shapes.device.type == "cpu" and shapes[0].tolist() == [20, 20]
