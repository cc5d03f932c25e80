# SPDX-License-Identifier: Apache-2.0
"""Masks of SOLOv2: kernels at chosen cells, Dice, peaks, comparison and masks at the size of the image."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from monai_labelfx.detectors import _solov2_masks
from monai_labelfx.detectors._solov2_masks import (
    boxed_masks,
    compare_masks,
    image_masks,
    kernels_at,
    peaks,
    squared_dice,
)
from monai_labelfx.ops.matrix_nms import mask_iou

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}


@pytest.fixture(params=[2, 3], ids=["2d", "3d"])
def dims(request):
    torch.manual_seed(0)
    return request.param


def test_kernels_are_those_of_the_convolution_everywhere(dims):
    convolution = CONVOLUTIONS[dims](4, 6, 3, padding=1).double()
    levels = [torch.randn(2, 4, *grid[:dims], dtype=torch.float64) for grid in ((5, 4, 3), (2, 3, 1), (1, 1, 1))]
    every = torch.cat([convolution(level).flatten(2) for level in levels], dim=2)
    image = torch.tensor([1, 0, 1, 0, 0, 1, 1])
    cell = torch.tensor([every.shape[2] - 1, 0, 3, 21 if dims == 2 else 60, 7, 19, every.shape[2] - 2])
    found = kernels_at(convolution, levels, image, cell)
    assert torch.allclose(found, every[image, :, cell])
    found = kernels_at(convolution, levels, image[:0], cell[:0])
    assert found.shape == (0, 6)
    found.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in convolution.parameters())


def test_dice_by_formula(dims):
    logits = torch.randn(5, 3**dims, requires_grad=True)
    masks = torch.rand(5, 3**dims)
    found = squared_dice(logits, masks)
    for row, (one, mask) in enumerate(zip(logits.double().sigmoid(), masks.double(), strict=True)):
        shared = sum((p * t).item() for p, t in zip(one, mask, strict=True))
        squares = sum((p * p + t * t).item() for p, t in zip(one, mask, strict=True))
        assert found[row].item() == pytest.approx(1 - 2 * shared / (squares + 2e-3), abs=1e-6)


def test_dice_is_least_at_the_shares():
    masks = torch.tensor([[0.5, 0.9, 0.1, 0.3]]).double()
    logits = torch.logit(masks).requires_grad_()
    loss = squared_dice(logits, masks, epsilon=1e-12)
    assert loss.item() == pytest.approx(0, abs=1e-9)
    loss.sum().backward()
    assert logits.grad.abs().max() < 1e-9


def test_dice_of_an_empty_mask_is_one():
    logits = torch.tensor([[-50.0, -50.0], [50.0, 50.0]], requires_grad=True)
    loss = squared_dice(logits, torch.zeros(2, 2))
    assert loss.tolist() == [1.0, 1.0]
    loss.sum().backward()
    assert logits.grad.isfinite().all()


def test_peaks(dims):
    scores = torch.rand(3, *(5, 4, 3)[:dims])
    scores[0] = scores[0].round(decimals=1)  # some are equal
    found = peaks(scores)
    for label, *place in product(range(3), *map(range, scores.shape[1:])):
        near = scores[(label, *(slice(max(k - 1, 0), k + 1) for k in place))]
        own = scores[(label, *place)]
        assert found[(label, *place)] == (own if own == near.max() else 0)
    assert (found == 0).any() and (found > 0).any()


def test_peaks_of_one_cell(dims):
    scores = torch.rand(2, *[1] * dims)
    assert torch.equal(peaks(scores), scores)


@pytest.mark.parametrize("most", [2**24, 50, 1])
def test_comparison(dims, most, monkeypatch):
    monkeypatch.setattr(_solov2_masks, "_MOST_NUMBERS", most)
    kernels, features = torch.randn(6, 4), torch.randn(4, *(6, 5, 3)[:dims])
    kernels[4] = kernels[1]
    features[:, 0] = 0.0
    kernels[5], features[3] = torch.tensor([0.0, 0.0, 0.0, -1.0]), features[3].abs()  # empty
    counts, means, iou = compare_masks(kernels, features, 0.5)
    found = torch.einsum("ne,e...->n...", kernels, features).sigmoid()
    masks = found > 0.5
    assert counts.tolist() == masks.flatten(1).sum(1).tolist() and counts[5] == 0 and counts[0] > 0
    assert torch.allclose(iou, mask_iou(masks), atol=1e-6) and iou[1, 4] == 1
    for mean, one, mask in zip(means, found, masks, strict=True):
        assert mean.item() == pytest.approx(one[mask].mean().item() if mask.any() else 0.0, abs=1e-5)


def test_comparison_of_none(dims):
    counts, means, iou = compare_masks(torch.zeros(0, 4), torch.randn(4, *[3] * dims), 0.5)
    assert counts.shape == means.shape == (0,) and iou.shape == (0, 0)


@pytest.mark.parametrize("most", [2**24, 1])
def test_masks_of_the_image_are_interpolated_probabilities(dims, most, monkeypatch):
    monkeypatch.setattr(_solov2_masks, "_MOST_NUMBERS", most)
    kernels, features = torch.randn(5, 4), torch.randn(4, *(6, 5, 3)[:dims])
    size = [4 * n - 3 for n in features.shape[1:]]
    parts = list(image_masks(kernels, features, [4] * dims, size, 0.6))
    assert len(parts) == (1 if most > 1 else 5)
    found = torch.einsum("ne,e...->n...", kernels, features).sigmoid()
    exact = interpolate(found[None], scale_factor=4, mode="bilinear" if dims == 2 else "trilinear")[0]
    exact = exact[(slice(None), *(slice(0, n) for n in size))]
    sure = (exact - 0.6).abs() > 1e-5
    assert torch.equal(torch.cat(parts)[sure], (exact > 0.6)[sure])
    assert not list(image_masks(kernels[:0], features, [4] * dims, size, 0.5))


def test_largest_component_leaves_out_what_is_far_away(dims):
    features = torch.full((1, *[12] * dims), -5.0)
    features[(0, *[slice(1, 5)] * dims)] = 5.0
    features[(0, *[10] * dims)] = 5.0
    kernels = torch.ones(1, 1)
    whole, largest = (
        torch.cat(list(image_masks(kernels, features, [1] * dims, [12] * dims, 0.5, largest=one)))
        for one in (False, True)
    )
    assert whole.sum() == 4**dims + 1 and largest.sum() == 4**dims and not largest[(0, *[10] * dims)]


def test_boxed_masks(dims):
    masks = torch.zeros(4, *[8] * dims, dtype=torch.bool)
    masks[(0, *[slice(2, 5)] * dims)] = True
    masks[(2, *[slice(0, 8)] * (dims - 1), 7)] = True
    masks[(3, *[0] * dims)] = True
    whole = boxed_masks([masks[:2], masks[2:3], masks[3:]], [8] * dims, masks.device, crop=False)
    assert whole[0].tolist() == [0, 2, 3] and torch.equal(whole[2], masks[[0, 2, 3]])
    assert whole[1].tolist() == [
        [2.0] * dims + [5.0] * dims,
        [0.0] * (dims - 1) + [7.0] + [8.0] * dims,
        [0.0] * dims + [1.0] * dims,
    ]
    rows, boxes, blocks = boxed_masks([masks[:3], masks[3:]], [8] * dims, masks.device, crop=True)
    assert torch.equal(rows, whole[0]) and torch.equal(boxes, whole[1])
    assert [tuple(block.shape) for block in blocks] == [(3,) * dims, (8,) * (dims - 1) + (1,), (1,) * dims]
    assert all(block.all() for block in blocks)
    for crop in (False, True):
        rows, boxes, found = boxed_masks([masks[1:2]], [8] * dims, masks.device, crop=crop)
        assert rows.shape == (0,) and boxes.shape == (0, 2 * dims) and len(found) == 0
        assert isinstance(found, list) == crop
