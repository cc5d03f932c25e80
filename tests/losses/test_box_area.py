# SPDX-License-Identifier: Apache-2.0
"""The area penalty against a loop over boxes."""

from __future__ import annotations

import math

import pytest
import torch

from monai_labelfx.losses._box_area import area_penalty
from monai_labelfx.losses._box_target import read_box_target
from monai_labelfx.ops.box_frames import boxes_to_frames

SHAPES = {2: (8, 9), 3: (7, 8, 6)}


def target_of(boxes, labels, spatial_dims: int, channels: int = 3, framed: bool = False):
    target = {"bags" if framed else "boxes": [boxes_to_frames(b) if framed else b for b in boxes], "labels": labels}
    return read_box_target(target, len(boxes), channels, SHAPES[spatial_dims])


def example(spatial_dims: int) -> tuple[torch.Tensor, list, list]:
    """Two images, boxes of two sizes and two of three classes, the last one cut by the image."""
    axes = [0, 1, 2, 3, 4, 5] if spatial_dims == 3 else [0, 1, 3, 4]
    rows = [[[1, 2, 0, 5, 8, 5], [0, 0, 1, 2, 2, 3]], [[3, 1, 2, 7, 6, 4], [2, -2, 0, 5, 3, 4]]]
    boxes = [torch.tensor(found, dtype=torch.float64)[:, axes] for found in rows]
    logits = torch.randn(2, 3, *SHAPES[spatial_dims], generator=torch.Generator().manual_seed(0)) * 4
    return logits.double(), boxes, [torch.tensor([0, 1]), torch.tensor([0, 1])]


def naive(logits, boxes, labels, lower, upper) -> float:
    """The mean over whole boxes of each class, summed."""
    ndim, total = logits.ndim - 2, 0.0
    for c in range(logits.shape[1]):
        costs = []
        for image, (rows, classes) in enumerate(zip(boxes, labels, strict=True)):
            for box, label in zip(rows.tolist(), classes.tolist(), strict=True):
                low, high = [math.floor(x) for x in box[:ndim]], [math.ceil(x) for x in box[ndim:]]
                inside = all(a >= 0 for a in low) and all(b <= n for b, n in zip(high, logits.shape[2:], strict=True))
                if label != c or not inside:
                    continue
                crop = logits[(image, c, *(slice(a, b) for a, b in zip(low, high, strict=True)))].sigmoid()
                most = upper * math.prod(1 + 0.5 / n for n in crop.shape)
                share = float(crop.mean())
                costs.append(max(share - most, 0) ** 2 + max(lower - share, 0) ** 2)
        total += sum(costs) / max(len(costs), 1)
    return total


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(("lower", "upper"), [(0.1, 0.9), (0.6, 0.8), (0.0, 0.2), (0.0, 1.0), (0.3, 0.3)])
def test_equals_a_plain_loop(spatial_dims, lower, upper):
    logits, boxes, labels = example(spatial_dims)
    boxes[0][0] += torch.tensor([0.25, -0.25] * spatial_dims)[: 2 * spatial_dims]
    found = area_penalty(logits, target_of(boxes, labels, spatial_dims), lower, upper)
    expected = naive(logits, boxes, labels, lower, upper)
    assert found.dtype == torch.float64 and float(found) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert area_penalty(logits.float(), target_of(boxes, labels, spatial_dims), lower, upper).dtype == torch.float32


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_frames_of_boxes_are_the_boxes(spatial_dims):
    logits, boxes, labels = example(spatial_dims)
    bounds = (0.6, 0.8)
    expected = area_penalty(logits, target_of(boxes, labels, spatial_dims), *bounds)
    found = area_penalty(logits, target_of(boxes, labels, spatial_dims, framed=True), *bounds)
    assert expected > 0 and torch.allclose(found, expected, rtol=1e-12)


def test_within_the_bounds_costs_nothing_and_a_filled_box_pays():
    logits, box = torch.full((1, 1, 8, 9), -30.0), [torch.tensor([[2.0, 2.0, 6.0, 6.0]])]
    target = target_of(box, [torch.tensor([0])], 2, channels=1)
    logits[..., 2:6, 2:4] = 30.0
    assert area_penalty(logits, target, 0.4, 0.6) == 0
    assert float(area_penalty(logits, target, 0.7, 0.9)) == pytest.approx(0.04, rel=1e-5)
    logits[..., 2:6, 2:6] = 30.0
    assert float(area_penalty(logits, target, 0.1, 0.6)) == pytest.approx((1 - 0.6 * 1.125**2) ** 2, rel=1e-5)
    assert area_penalty(logits, target, 0.1, 1.0) == 0


@pytest.mark.parametrize("framed", [False, True])
def test_no_boxes_boxes_outside_and_cut_ones_cost_nothing(framed):
    logits = torch.zeros(1, 3, 8, 9, requires_grad=True)
    rows = torch.tensor([[20.0, 20.0, 24.0, 24.0], [-2.0, 1.0, 5.0, 5.0], [4.0, 4.0, 9.0, 9.0]])
    for kept in ([], [0], [0, 1, 2]):
        penalty = area_penalty(logits, target_of([rows[kept]], [torch.zeros(len(kept))], 2, framed=framed), 0.9, 1.0)
        assert penalty.shape == () and penalty.dtype == torch.float32 and penalty == 0


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("framed", [False, True])
def test_gradients(spatial_dims, framed):
    logits, boxes, labels = example(spatial_dims)
    target = target_of(boxes, labels, spatial_dims, framed=framed)
    logits = (logits / 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: area_penalty(z, target, 0.6, 0.7), logits, fast_mode=True)
    (gradient,) = torch.autograd.grad(area_penalty(1e4 * logits.float(), target, 0.9, 1.0), logits)
    assert gradient.isfinite().all()
