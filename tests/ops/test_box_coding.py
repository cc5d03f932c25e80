# SPDX-License-Identifier: Apache-2.0
"""Box codes against plain arithmetic and torchvision's numbers, and that decoding undoes encoding."""

from __future__ import annotations

import math

import pytest
import torch

from monai_labelfx.ops.box_coding import (
    MAX_LOG_SIZE,
    boxes_to_deltas,
    boxes_to_distances,
    deltas_to_boxes,
    distances_to_boxes,
)

SWAPPED = [1, 0, 3, 2]  # (x, y, x, y) of torchvision from (y, x, y, x)


def random_boxes(number: int, ndim: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(number, ndim, generator=generator, dtype=dtype) * 50 - 10
    return torch.cat((low, low + 1 + 30 * torch.rand(number, ndim, generator=generator, dtype=dtype)), 1)


def naive_codes(box: list[float], anchor: list[float], weights: list[float]) -> list[float]:
    ndim, shifts, growths = len(box) // 2, [], []
    for axis in range(ndim):
        size, anchor_size = box[axis + ndim] - box[axis], anchor[axis + ndim] - anchor[axis]
        centre, anchor_centre = (box[axis + ndim] + box[axis]) / 2, (anchor[axis + ndim] + anchor[axis]) / 2
        shifts.append(weights[axis] * (centre - anchor_centre) / anchor_size)
        growths.append(weights[axis + ndim] * math.log(size / anchor_size))
    return shifts + growths


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_equals_plain_arithmetic_and_comes_back(ndim):
    boxes, anchors = random_boxes(20, ndim), random_boxes(20, ndim, 1)
    every = [2.0 + 0.5 * number for number in range(2 * ndim)]
    for weights, full in (((10.0, 5.0), [10.0] * ndim + [5.0] * ndim), (every, every)):
        if ndim == 1:
            full = list(weights)
        codes = boxes_to_deltas(boxes, anchors, weights)
        expected = [naive_codes(b, a, full) for b, a in zip(boxes.tolist(), anchors.tolist(), strict=True)]
        torch.testing.assert_close(codes, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(deltas_to_boxes(codes, anchors, weights), boxes, rtol=1e-12, atol=1e-12)


def test_numbers_of_torchvision():
    """``BoxCoder((10, 10, 5, 5))`` of torchvision 0.28 on these rows; ours with columns 1, 0, 3, 2."""
    boxes = torch.tensor([[10.0, 20.0, 50.0, 35.0], [3.0, 4.0, 5.0, 60.0]])[:, SWAPPED]
    anchors = torch.tensor([[12.0, 15.0, 44.0, 39.0], [0.0, 0.0, 16.0, 32.0]])[:, SWAPPED]
    codes = torch.tensor(
        [
            [0.625, 0.2083333283662796, 1.1157177686691284, -2.350018262863159],
            [-2.5, 5.0, -10.397207260131836, 2.798079013824463],
        ]
    )[:, SWAPPED]
    assert torch.equal(boxes_to_deltas(boxes, anchors, (10, 5)), codes)
    deltas = torch.tensor([[0.5, -1.0, 2.0, 30.0], [3.0, 4.0, -5.0, 1.0]])[:, SWAPPED]
    decoded = torch.tensor(
        [
            [5.730804443359375, -725.4000854492188, 53.46919631958008, 774.6000366210938],
            [9.856964111328125, 9.25755500793457, 15.743036270141602, 48.342445373535156],
        ]
    )[:, SWAPPED]
    torch.testing.assert_close(deltas_to_boxes(deltas, anchors, (10, 5)), decoded, rtol=1e-6, atol=0)


def test_centres_come_first_in_axis_order():
    anchor = torch.tensor([0.0, 0.0, 0.0, 1.0, 10.0, 100.0])
    box = torch.tensor([1.0, 0.0, 0.0, 2.0, 10.0, 300.0])
    assert boxes_to_deltas(box, anchor).tolist() == pytest.approx([1, 0, 1, 0, 0, math.log(3)])


def test_large_sizes_are_cut():
    anchors = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    found = deltas_to_boxes(torch.tensor([[0.0, 0.0, 88.0, 0.0]]), anchors)
    assert (found[0, 2] - found[0, 0]).item() == pytest.approx(1000)
    assert math.exp(MAX_LOG_SIZE) == pytest.approx(62.5)
    wide = deltas_to_boxes(torch.tensor([[0.0, 0.0, 9.0, 0.0]]), anchors, max_log_size=1.0)
    assert (wide[0, 2] - wide[0, 0]).item() == pytest.approx(16 * math.e)


def test_classes_broadcast():
    anchors, deltas = random_boxes(5, 3), torch.randn(5, 4, 6, dtype=torch.float64)
    found = deltas_to_boxes(deltas, anchors[:, None])
    for number in range(4):
        assert torch.equal(found[:, number], deltas_to_boxes(deltas[:, number], anchors))


def test_padding_is_finite():
    padding, anchors = torch.zeros(3, 4), random_boxes(3, 2, dtype=torch.float32)
    assert boxes_to_deltas(padding, anchors).isfinite().all()
    assert boxes_to_deltas(anchors, padding).isfinite().all()
    assert boxes_to_deltas(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)


@pytest.mark.parametrize("ndim", [2, 3])
def test_distances(ndim):
    boxes, points = random_boxes(12, ndim), torch.rand(12, ndim, dtype=torch.float64) * 40
    found = boxes_to_distances(boxes, points)
    for axis in range(ndim):
        assert torch.equal(found[:, axis], points[:, axis] - boxes[:, axis])
        assert torch.equal(found[:, ndim + axis], boxes[:, ndim + axis] - points[:, axis])
    torch.testing.assert_close(distances_to_boxes(found, points), boxes)
    every = boxes_to_distances(boxes[:, None], points)
    assert every.shape == (12, 12, 2 * ndim) and torch.equal(every.diagonal().T, found)


def test_precision():
    boxes, anchors = random_boxes(4, 2), random_boxes(4, 2, 1)
    points = torch.rand(4, 2)
    assert boxes_to_deltas(boxes, anchors).dtype == torch.float64
    for cast in (torch.bfloat16, torch.float16, torch.float32, torch.int64):
        assert boxes_to_deltas(boxes.to(cast), anchors.to(cast)).dtype == torch.float32
        assert boxes_to_distances(boxes.to(cast), points).dtype == torch.float32
        assert distances_to_boxes(boxes.to(cast), points).dtype == torch.float32
    deltas = torch.full((1, 4), 0.01, dtype=torch.bfloat16)
    far = torch.tensor([[1023.0, 2047.0, 1053.0, 2095.0]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = deltas_to_boxes(deltas, far)
    torch.testing.assert_close(found, deltas_to_boxes(deltas.float(), far), rtol=0, atol=0)


def test_gradients():
    boxes, anchors = random_boxes(3, 3).requires_grad_(), random_boxes(3, 3, 1)
    deltas = (torch.rand(3, 6, dtype=torch.float64) - 0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda b: boxes_to_deltas(b, anchors, (10, 5)), boxes)
    assert torch.autograd.gradcheck(lambda d: deltas_to_boxes(d, anchors, (10, 5)), deltas)
    assert torch.autograd.gradcheck(lambda d: distances_to_boxes(d, anchors[:, :3]), deltas)


def test_bad_input():
    boxes = torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"boxes must have the shape .* got \(2, 4\) and \(2, 6\)"):
        boxes_to_deltas(boxes, torch.zeros(2, 6))
    with pytest.raises(ValueError, match=r"deltas must have the shape .* got \(2, 3\)"):
        deltas_to_boxes(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"points \(\.\.\., D\)"):
        boxes_to_distances(boxes, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="distances must have the shape"):
        distances_to_boxes(torch.zeros(()), torch.zeros(2))
    with pytest.raises(TypeError, match="anchors must be a tensor of real numbers, got list"):
        boxes_to_deltas(boxes, [[0, 0, 1, 1]])
    with pytest.raises(TypeError, match="boxes must be a tensor of real numbers, got torch.bool"):
        boxes_to_deltas(boxes.bool(), boxes)
    for weights in ((1.0,), (1.0, 0.0), (1.0, math.nan), (1.0,) * 6):
        with pytest.raises(ValueError, match="weights must be 2 or 4 finite numbers above 0"):
            boxes_to_deltas(boxes, boxes, weights)
