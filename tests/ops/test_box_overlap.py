# SPDX-License-Identifier: Apache-2.0
"""Tests of the volumes and overlaps of boxes."""

from __future__ import annotations

import math

import pytest
import torch

from monai_labelfx.ops.box_overlap import OVERLAP_KINDS, box_overlap, box_volume, paired_box_overlap


def random_boxes(count: int, dims: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    low = torch.rand(count, dims, generator=draw, dtype=torch.float64) * 12 - 4
    return torch.cat((low, low + torch.rand(count, dims, generator=draw, dtype=torch.float64) * 8), 1)


def naive(first: list[float], second: list[float], kind: str) -> float:
    """By loops over axes in Python numbers."""
    dims = len(first) // 2
    axes = range(dims)
    own = math.prod(max(first[dims + i] - first[i], 0.0) for i in axes)
    other = math.prod(max(second[dims + i] - second[i], 0.0) for i in axes)
    shared = math.prod(max(min(first[dims + i], second[dims + i]) - max(first[i], second[i]), 0.0) for i in axes)
    hull = math.prod(max(max(first[dims + i], second[dims + i]) - min(first[i], second[i]), 0.0) for i in axes)
    union = own + other - shared
    if kind == "iof":
        return shared / own if own else 0.0
    iou = shared / union if union else 0.0
    return iou if kind == "iou" else iou - ((hull - union) / hull if hull else 0.0)


@pytest.mark.parametrize("kind", OVERLAP_KINDS)
@pytest.mark.parametrize("dims", [1, 2, 3, 4])
def test_naive(kind, dims):
    first, second = random_boxes(7, dims), random_boxes(5, dims, seed=1)
    first[0, dims:] = first[0, :dims]  # empty
    second[0] = first[0]
    second[1] = first[1]
    second[2, dims:] = second[2, :dims] - 1  # inverted
    expected = torch.tensor([[naive(a, b, kind) for b in second.tolist()] for a in first.tolist()], dtype=torch.float64)
    torch.testing.assert_close(box_overlap(first, second, kind=kind), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(paired_box_overlap(first[:5], second, kind=kind), expected.diagonal())


def test_by_hand():
    boxes = torch.tensor([[0, 0, 0, 2, 2, 2], [1, 0, 0, 3, 2, 2], [-4, -4, -4, -2, -2, -2]])
    assert box_volume(boxes).tolist() == [8.0, 8.0, 8.0]
    torch.testing.assert_close(box_overlap(boxes[:1], boxes), torch.tensor([[1.0, 4 / 12, 0.0]]))
    torch.testing.assert_close(box_overlap(boxes[:1], boxes, kind="iof"), torch.tensor([[1.0, 0.5, 0.0]]))
    torch.testing.assert_close(box_overlap(boxes[:1], boxes, kind="giou"), torch.tensor([[1.0, 1 / 3, 16 / 216 - 1]]))


@pytest.mark.parametrize("kind", OVERLAP_KINDS)
def test_leading_axes(kind):
    first, second = random_boxes(12, 2).view(3, 4, 4), random_boxes(5, 2, seed=1)
    together = box_overlap(first, second, kind=kind)
    assert together.shape == (3, 4, 5)
    for one, whole in zip(first, together, strict=True):
        torch.testing.assert_close(box_overlap(one, second, kind=kind), whole, rtol=0, atol=0)
    paired = paired_box_overlap(first, second[0], kind=kind)
    torch.testing.assert_close(paired, together[..., 0], rtol=0, atol=0)


@pytest.mark.parametrize("kind", OVERLAP_KINDS)
def test_invariances(kind):
    first, second = random_boxes(4, 3), random_boxes(6, 3, seed=1)
    expected = box_overlap(first, second, kind=kind)
    swapped, flipped = [1, 2, 0, 4, 5, 3], [3, 4, 5, 0, 1, 2]
    torch.testing.assert_close(box_overlap(first[:, swapped], second[:, swapped], kind=kind), expected)
    torch.testing.assert_close(box_overlap(-first[:, flipped], -second[:, flipped], kind=kind), expected)
    torch.testing.assert_close(box_overlap(3 * first, 3 * second, kind=kind), expected)
    if kind != "iof":
        torch.testing.assert_close(box_overlap(second, first, kind=kind).T, expected)


@pytest.mark.parametrize("kind", OVERLAP_KINDS)
@pytest.mark.parametrize("dims", [2, 3])
def test_gradient(kind, dims):
    first, second = random_boxes(3, dims).requires_grad_(), random_boxes(4, dims, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: box_overlap(a, b, kind=kind), (first, second))
    assert torch.autograd.gradcheck(lambda a, b: paired_box_overlap(a, b, kind=kind), (first, second[:3]))


def test_gradient_of_disjoint_boxes():
    box = torch.tensor([[0.0, 0.0, 2.0, 2.0]], requires_grad=True)
    other = torch.tensor([[5.0, 5.0, 7.0, 7.0]])
    (iou,) = torch.autograd.grad(paired_box_overlap(box, other).sum(), box)
    (giou,) = torch.autograd.grad(paired_box_overlap(box, other, kind="giou").sum(), box)
    assert not iou.any()
    assert (giou[:, 2:] > 0).all()  # growing towards the other box helps


@pytest.mark.parametrize("kind", OVERLAP_KINDS)
def test_empty_boxes_are_finite(kind):
    boxes = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 5], [0, 0, 3, 3], [4, 4, 2, 2]], requires_grad=True)
    overlap = box_overlap(boxes, boxes, kind=kind)
    (gradient,) = torch.autograd.grad(overlap.sum(), boxes)
    assert overlap.isfinite().all()
    assert gradient.isfinite().all()
    assert overlap[0, 0] == 0.0


def test_no_boxes():
    assert box_volume(torch.zeros(0, 6)).shape == (0,)
    assert box_overlap(torch.zeros(0, 6), torch.zeros(3, 6)).shape == (0, 3)
    assert box_overlap(torch.zeros(2, 4), torch.zeros(0, 4), kind="giou").shape == (2, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.float32, torch.float64])
def test_dtype(dtype):
    boxes = torch.tensor([[0, 0, 300, 300], [100, 0, 400, 300]], dtype=dtype)  # volumes beyond half precision
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        overlap = box_overlap(boxes, boxes.to(torch.float32))
    assert overlap.dtype == expected
    assert overlap[0, 1].item() == pytest.approx(0.5, abs=1e-2)


def test_inputs_stay():
    first, second = random_boxes(3, 2), random_boxes(3, 2, seed=1)
    before = first.clone(), second.clone()
    for kind in OVERLAP_KINDS:
        box_overlap(first, second, kind=kind)
        paired_box_overlap(first, second, kind=kind)
    assert torch.equal(first, before[0])
    assert torch.equal(second, before[1])


@pytest.mark.parametrize(
    ("first", "second", "kind", "message"),
    [
        ((2, 4), (2, 4), "dice", "kind is 'dice', expected one of iou, giou, iof"),
        ((2, 4), (2, 6), "iou", "first has 4 numbers a box, second 6"),
        ((2, 5), (2, 5), "iou", r"first has shape \(2, 5\)"),
        ((2, 4), (2, 0), "iou", r"second has shape \(2, 0\)"),
    ],
)
def test_bad_input(first, second, kind, message):
    with pytest.raises(ValueError, match=message):
        box_overlap(torch.zeros(first), torch.zeros(second), kind=kind)
    with pytest.raises(ValueError, match=message):
        paired_box_overlap(torch.zeros(first), torch.zeros(second), kind=kind)
    with pytest.raises(ValueError, match=r"boxes has shape \(3,\)"):
        box_volume(torch.zeros(3))
