# SPDX-License-Identifier: Apache-2.0
"""Anchors against plain loops and torchvision's numbers, their order, and what is kept of them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from monai_labelfx.ops.anchor_grid import anchor_grid, anchor_shapes, grid_points


def test_order_and_shapes_of_torchvision():
    """``AnchorGenerator(((32, 40, 50),), ((0.5, 1.0, 2.0),))`` of torchvision 0.28, image 16 x 24, map 2 x 3 (y, x).

    Rows 0 to 3, 7 to 9, 20 and 53 of its anchors (x, y, x, y); ours are (y, x, y, x).
    """
    rows = [0, 1, 2, 3, 7, 8, 9, 20, 53]
    expected = torch.tensor(
        [
            [-23.0, -11.0, 23.0, 11.0],
            [-28.0, -14.0, 28.0, 14.0],
            [-35.0, -18.0, 35.0, 18.0],
            [-16.0, -16.0, 16.0, 16.0],
            [-14.0, -28.0, 14.0, 28.0],
            [-18.0, -35.0, 18.0, 35.0],
            [-15.0, -11.0, 31.0, 11.0],
            [-19.0, -18.0, 51.0, 18.0],
            [-2.0, -27.0, 34.0, 43.0],
        ]
    )
    shapes = anchor_shapes([32, 40, 50], 2, ratios=[2.0], round=True)
    anchors = anchor_grid(shapes, (2, 3), 8, offset=0)
    assert anchors.shape == (54, 4)
    assert torch.equal(anchors[rows], expected[:, [1, 0, 3, 2]])


def test_aspect_is_first_axis_over_second():
    shapes = anchor_shapes([8, 16], 2, ratios=[3.0, 2.0], scales=[1.0, 1.5])
    aspect = (shapes[:, 0] / shapes[:, 1]).view(5, 4)
    assert aspect.tolist() == [pytest.approx([a] * 4) for a in (1 / 3, 1 / 2, 1, 2, 3)]
    assert shapes.prod(1).sqrt().view(5, 4).tolist() == [pytest.approx([8, 12, 16, 24])] * 5


def test_rods_and_plates():
    rods = anchor_shapes([2], 3, ratios=[8.0])
    assert rods.tolist() == [[1, 1, 8], [1, 8, 1], [2, 2, 2], [8, 1, 1]]
    plates = anchor_shapes([2], 3, ratios=[1 / 8])
    assert plates.tolist() == [[0.5, 4, 4], [2, 2, 2], [4, 0.5, 4], [4, 4, 0.5]]


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_each_form_once(ndim):
    both = anchor_shapes([4], ndim, ratios=[0.5, 1.0, 2.0, 2.0])
    assert len(both) == {1: 1, 2: 3, 3: 7}[ndim]
    torch.testing.assert_close(both.prod(1), torch.full((len(both),), 4.0**ndim))
    assert len(anchor_shapes([4], ndim, ratios=[])) == 1


def test_sizes_of_each_axis():
    found = anchor_shapes([(4, 16, 16)], 3, scales=[1, 2], ratios=[8.0])
    assert found[:2].tolist() == [[2, 8, 64], [4, 16, 128]]


def test_halves_are_rounded_to_even():
    assert anchor_shapes([45, 47, 33], 2, ratios=[], round=True).tolist() == [[44, 44], [48, 48], [32, 32]]


@pytest.mark.parametrize("map_shape", [(5,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("offset", [0.5, 0.0, "each"])
def test_equals_plain_loops(map_shape, offset):
    ndim = len(map_shape)
    stride, offset = [4, 2.5, 8][:ndim], [0.25, 0.5, -1.0][:ndim] if offset == "each" else offset
    shapes = torch.rand(3, ndim, generator=torch.Generator().manual_seed(0)) * 20 + 1
    offsets = offset if isinstance(offset, list) else [offset] * ndim
    boxes, points = [], []
    for place in itertools.product(*map(range, map_shape)):
        centre = [(i + o) * s for i, o, s in zip(place, offsets, stride, strict=True)]
        points.append(centre)
        for shape in shapes.tolist():
            pairs = list(zip(centre, shape, strict=True))
            boxes.append([c - s / 2 for c, s in pairs] + [c + s / 2 for c, s in pairs])
    found = anchor_grid(shapes, map_shape, stride, offset=offset, dtype=torch.float64)
    torch.testing.assert_close(found, torch.tensor(boxes, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    found = grid_points(map_shape, stride, offset=offset)
    torch.testing.assert_close(found, torch.tensor(points))


def test_kept_by_arguments():
    shapes = anchor_shapes([8], 2)
    first = anchor_grid(shapes, (4, 4), 8)
    assert anchor_grid(shapes.tolist(), torch.Size((4, 4)), (8, 8.0)) is first
    assert anchor_grid(shapes, (4, 4), 8, offset=0) is not first
    double = anchor_grid(shapes, (4, 4), 8, dtype=torch.float64)
    assert (first.dtype, double.dtype) == (torch.float32, torch.float64)
    assert anchor_grid(shapes, (4, 5), 8).shape != first.shape
    assert grid_points((4, 4), 8) is grid_points([4, 4], [8, 8])
    assert anchor_grid(shapes, (4, 4), 8, device="meta").device.type == "meta"


def test_made_in_inference_used_in_training():
    with torch.inference_mode():
        anchors, points = anchor_grid([[3.0, 7.0]], (2, 5), 16), grid_points((2, 5), 16)
    assert not anchors.is_inference() and not points.is_inference()
    weight = torch.ones(1, requires_grad=True)
    (weight * anchors).sum().backward()
    assert weight.grad.item() == pytest.approx(anchors.sum().item())


def test_exact_far_away_whatever_autocast_does():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        anchors = anchor_grid([[5.0, 5.0]], (1, 300), 8)
    assert anchors[-1].tolist() == [1.5, 299.5 * 8 - 2.5, 6.5, 299.5 * 8 + 2.5]


def test_no_place_or_shape():
    assert anchor_grid([[3.0, 7.0]], (0, 5), 16).shape == (0, 4)
    assert anchor_grid(torch.zeros(0, 3), (2, 2, 2), 16).shape == (0, 6)
    assert grid_points((0, 5, 1), 2).shape == (0, 3)


def test_bad_input():
    with pytest.raises(ValueError, match="sizes must have one number or 2, one per axis, got"):
        anchor_shapes([(1, 2, 3)], 2)
    with pytest.raises(ValueError, match="sizes and scales must hold a number each"):
        anchor_shapes([], 2)
    with pytest.raises(ValueError, match="ratios must be finite and above 0"):
        anchor_shapes([1], 2, ratios=[-2])
    with pytest.raises(ValueError, match="scales must be finite and above 0"):
        anchor_shapes([1], 2, scales=[math.inf])
    with pytest.raises(ValueError, match="spatial_dims must be at least 1, got 0"):
        anchor_shapes([1], 0)
    with pytest.raises(ValueError, match="shapes must have one number or 2"):
        anchor_grid([[1, 2, 3]], (4, 4), 8)
    with pytest.raises(ValueError, match="stride must be finite and above 0"):
        grid_points((4, 4), 0)
    with pytest.raises(ValueError, match="offset must be finite, one number or 2"):
        grid_points((4, 4), 8, offset=(0, 0, 0))
    with pytest.raises(ValueError, match="map_shape must have one number of places per axis"):
        grid_points((), 8)
    with pytest.raises(ValueError, match="dtype must be torch.float32 or torch.float64, got torch.bfloat16"):
        anchor_grid([[1, 2]], (4, 4), 8, dtype=torch.bfloat16)
