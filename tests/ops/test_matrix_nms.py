# SPDX-License-Identifier: Apache-2.0
"""Tests of matrix non-maximum suppression against the formula by loops."""

from __future__ import annotations

import importlib
import math

import pytest
import torch

from monai_labelfx.ops.box_overlap import box_overlap
from monai_labelfx.ops.matrix_nms import MATRIX_KERNELS, mask_iou, matrix_nms

module = importlib.import_module("monai_labelfx.ops.matrix_nms")  # its name is also that of the function


def random_masks(count: int, dims: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    base = torch.rand(3, *[5] * dims, generator=draw) > 0.5
    noise = torch.rand(count, *[5] * dims, generator=draw) > 0.85
    masks = base[torch.randint(3, (count,), generator=draw)] ^ noise
    return masks, torch.randint(2, (count,), generator=draw), torch.rand(count, generator=draw, dtype=torch.float64)


def naive(overlap: list, labels: list, scores: list, kernel: str, sigma: float = 2.0) -> list[float]:
    """Equation 5 of the paper, mask by mask; a divisor of 0 is left out."""

    def f(u: float) -> float:
        return math.exp(-sigma * u * u) if kernel == "gaussian" else 1 - u

    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    result = list(scores)
    for place, j in enumerate(order):
        factor = 1.0
        for before, i in enumerate(order[:place]):
            worst = max([overlap[k][i] for k in order[:before] if labels[k] == labels[i]], default=0.0)
            if labels[i] == labels[j] and f(worst) > 0:
                factor = min(factor, f(overlap[i][j]) / f(worst))
        result[j] *= factor
    return result


def naive_iou(masks: torch.Tensor) -> list:
    sets = [set(mask.flatten().nonzero()[:, 0].tolist()) for mask in masks]
    return [[len(a & b) / len(a | b) if a | b else 0.0 for b in sets] for a in sets]


@pytest.mark.parametrize("kernel", MATRIX_KERNELS)
@pytest.mark.parametrize("dims", [1, 2, 3, 4])
def test_naive(dims, kernel):
    masks, labels, scores = random_masks(14, dims)
    masks[3] = masks[5] = masks[8] = masks[1]  # equal ones
    masks[2] = False
    overlap = naive_iou(masks)
    torch.testing.assert_close(mask_iou(masks), torch.tensor(overlap))
    expected = torch.tensor(naive(overlap, labels.tolist(), scores.tolist(), kernel), dtype=torch.float64)
    assert (expected < scores).sum() > 3
    found = matrix_nms(masks, labels, scores, kernel=kernel)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32, torch.float16])
def test_mask_types(dtype):
    masks, labels, scores = random_masks(6, 2)
    values = torch.arange(1, 26, dtype=dtype).view(5, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = matrix_nms(masks * values, labels, scores)
    assert torch.equal(found, matrix_nms(masks, labels, scores))


def test_counts_are_exact_under_autocast():
    masks = torch.zeros(2, 1000, dtype=torch.bool)  # bfloat16 knows no 301
    masks[0, :301] = True
    masks[1, :1000] = True
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert mask_iou(masks)[0, 1] == torch.tensor(301 / 1000)


def test_parts_of_masks(monkeypatch):
    masks, _, _ = random_masks(7, 3)
    whole = mask_iou(masks)
    monkeypatch.setattr(module, "MOST_NUMBERS", 40)
    assert torch.equal(mask_iou(masks), whole)


def test_equal_masks():
    masks = torch.ones(4, 2, 2, 2)
    scores = torch.tensor([0.7, 0.9, 0.8, 0.6])
    assert (
        matrix_nms(masks, torch.zeros(4), scores, kernel="linear").tolist() == scores.where(scores > 0.85, 0).tolist()
    )
    gaussian = matrix_nms(masks, torch.zeros(4), scores)
    factors = torch.tensor([math.exp(-2), 1.0, math.exp(-2), math.exp(-2)])
    torch.testing.assert_close(gaussian, scores * factors)


@pytest.mark.parametrize("kernel", MATRIX_KERNELS)
def test_ties_go_by_place(kernel):
    masks = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 1, 1]])
    found = matrix_nms(masks, torch.zeros(3), torch.ones(3), kernel=kernel)
    assert found[0] == 1
    assert (found[1:] < 1).all()


@pytest.mark.parametrize("kernel", MATRIX_KERNELS)
def test_invariances(kernel):
    masks, labels, scores = random_masks(12, 3, seed=1)
    expected = matrix_nms(masks, labels, scores, kernel=kernel)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(matrix_nms(masks[order], labels[order], scores[order], kernel=kernel), expected[order])
    assert torch.equal(matrix_nms(masks.flip(1, 3), labels, scores, kernel=kernel), expected)
    assert torch.equal(matrix_nms(masks.flatten(1), labels, scores, kernel=kernel), expected)
    assert torch.equal(matrix_nms(None, labels, scores, kernel=kernel, iou=mask_iou(masks)), expected)
    for label in (0, 1):
        rows = labels == label
        torch.testing.assert_close(matrix_nms(masks[rows], labels[rows], scores[rows], kernel=kernel), expected[rows])
    assert torch.equal(matrix_nms(masks, torch.arange(12), scores, kernel=kernel), scores)


def test_from_boxes():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2], [6, 6, 8, 8]])
    overlap = box_overlap(boxes, boxes)
    found = matrix_nms(None, torch.zeros(3), torch.tensor([0.9, 0.8, 0.7]), kernel="linear", iou=overlap)
    torch.testing.assert_close(found, torch.tensor([0.9, 0.4, 0.7]))
    narrow = matrix_nms(None, torch.zeros(3), torch.tensor([0.9, 0.8, 0.7]), sigma=1e-9, iou=overlap)
    torch.testing.assert_close(narrow, torch.tensor([0.9, 0.8, 0.7]))


def test_few():
    assert matrix_nms(torch.zeros(0, 4, 4), torch.zeros(0), torch.zeros(0)).shape == (0,)
    assert matrix_nms(None, torch.zeros(0), torch.zeros(0), iou=torch.zeros(0, 0)).shape == (0,)
    half = torch.ones(1, dtype=torch.float16)
    assert matrix_nms(torch.ones(1, 2), torch.zeros(1), half).dtype == torch.float32
    masks, labels, scores = random_masks(5, 2)
    before = masks.clone(), scores.clone()
    matrix_nms(masks, labels, scores.requires_grad_())
    assert torch.equal(masks, before[0])
    assert torch.equal(scores, before[1])


@pytest.mark.parametrize(
    ("masks", "labels", "options", "message"),
    [
        (torch.zeros(2, 4), 2, {"kernel": "box"}, "kernel is 'box', expected one of gaussian, linear"),
        (torch.zeros(2, 4), 2, {"sigma": -1.0}, "sigma is -1.0, expected more than 0"),
        (None, 2, {}, "exactly one of masks and iou"),
        (torch.zeros(2, 4), 2, {"iou": torch.zeros(2, 2)}, "exactly one of masks and iou"),
        (torch.zeros(3, 4), 2, {}, r"masks have shape \(3, 4\), expected \(2, \*spatial\)"),
        (torch.zeros(2, 4), 3, {}, r"scores have shape \(2,\), labels \(3,\)"),
        (None, 2, {"iou": torch.zeros(2, 3)}, r"iou has shape \(2, 3\), expected \(2, 2\)"),
    ],
)
def test_bad_input(masks, labels, options, message):
    with pytest.raises(ValueError, match=message):
        matrix_nms(masks, torch.zeros(labels), torch.zeros(2), **options)
