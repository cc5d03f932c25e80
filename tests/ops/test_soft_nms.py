# SPDX-License-Identifier: Apache-2.0
"""Tests of soft non-maximum suppression against a loop over single boxes."""

from __future__ import annotations

import math

import pytest
import torch

from monai_labelfx.ops.nms import greedy_nms
from monai_labelfx.ops.soft_nms import SOFT_METHODS, soft_nms


def detections(count: int, dims: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes (float64), scores and classes of detections scattered around eight objects."""
    draw = torch.Generator().manual_seed(seed)
    low = torch.rand(8, dims, generator=draw, dtype=torch.float64) * 16 - 8
    objects = torch.cat((low, low + 5), 1)[torch.randint(8, (count,), generator=draw)]
    boxes = objects + torch.randn(count, 2 * dims, generator=draw, dtype=torch.float64)
    return boxes, torch.rand(count, generator=draw, dtype=torch.float64), torch.randint(3, (count,), generator=draw)


def naive(boxes, scores, classes=None, *, threshold=0.3, sigma=0.5, min_score=0.001, method="gaussian"):
    """The best box leaves, the others of its class decay; Python numbers."""
    boxes, left = boxes.tolist(), dict(enumerate(scores.tolist()))
    classes = [0] * len(boxes) if classes is None else classes.tolist()
    dims, found = len(boxes[0]) // 2, []

    def iou(a, b):
        shared = math.prod(max(min(a[dims + i], b[dims + i]) - max(a[i], b[i]), 0) for i in range(dims))
        return shared / (sum(math.prod(box[dims + i] - box[i] for i in range(dims)) for box in (a, b)) - shared)

    while left:
        best = max(left, key=lambda i: left[i])
        score = left.pop(best)
        if score < min_score:
            break
        found.append((best, score))
        for other in left:
            overlap = iou(boxes[best], boxes[other]) if classes[other] == classes[best] else 0.0
            if method == "gaussian":
                left[other] *= math.exp(-overlap * overlap / sigma)
            elif overlap > threshold:
                left[other] *= 1 - overlap
    return [i for i, _ in found], torch.tensor([score for _, score in found], dtype=torch.float64)


@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("method", SOFT_METHODS)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_naive(dims, method, by_class):
    boxes, scores, classes = detections(40, dims)
    given = classes if by_class else None
    expected, values = naive(boxes, scores, given, method=method, min_score=0.05)
    indices, found = soft_nms(boxes, scores, method=method, classes=given, min_score=0.05)
    assert 3 < len(expected) < 40
    assert indices.tolist() == expected
    torch.testing.assert_close(found, values, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("method", "factor"), [("linear", 0.5), ("gaussian", math.exp(-0.25 / 0.2))])
@pytest.mark.parametrize("dims", [2, 3])
def test_by_hand(dims, method, factor):
    boxes = torch.tensor([[0.0] * dims + [4.0] * dims] * 3)
    boxes[1, dims] = 2  # half of the first
    boxes[2] += 10
    indices, scores = soft_nms(boxes, torch.tensor([0.8, 0.6, 0.5]), sigma=0.2, method=method)
    assert indices.tolist() == [0, 2, 1]
    torch.testing.assert_close(scores, torch.tensor([0.8, 0.5, 0.6 * factor]))


def test_linear_threshold_is_kept():
    boxes = torch.tensor([[0.0, 0, 2, 1], [0, 0, 1, 1]])  # IoU 1 / 2
    assert soft_nms(boxes, torch.ones(2), iou_threshold=0.5, method="linear")[1].tolist() == [1.0, 1.0]
    assert soft_nms(boxes, torch.ones(2), iou_threshold=0.49, method="linear")[1].tolist() == [1.0, 0.5]


def test_limits():
    boxes, scores, _ = detections(40, 2, seed=1)
    # A gaussian without width removes whatever overlaps: greedy suppression at 0. A wide one touches nothing.
    indices, kept = soft_nms(boxes, scores, sigma=1e-12)
    assert torch.equal(indices, greedy_nms(boxes, scores, 0.0))
    assert torch.equal(kept, scores[indices])
    indices, kept = soft_nms(boxes, scores, sigma=1e12, min_score=0.0)
    assert torch.equal(indices, scores.argsort(descending=True))
    torch.testing.assert_close(kept, scores[indices])


@pytest.mark.parametrize("method", SOFT_METHODS)
def test_invariances(method):
    boxes, scores, classes = detections(30, 3, seed=2)
    indices, kept = soft_nms(boxes, scores, method=method, classes=classes)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    again, same = soft_nms(boxes[order], scores[order], method=method, classes=classes[order])
    assert torch.equal(order[again], indices)
    torch.testing.assert_close(same, kept)
    flipped = torch.cat((-boxes[:, 3:], -boxes[:, :3]), 1)
    torch.testing.assert_close(soft_nms(flipped, scores, method=method, classes=classes), (indices, kept))
    for group in range(3):  # a class does not feel the others
        rows = (classes == group).nonzero()[:, 0]
        alone, values = soft_nms(boxes[rows], scores[rows], method=method)
        mine = classes[indices] == group
        assert torch.equal(rows[alone], indices[mine])
        torch.testing.assert_close(values, kept[mine])


@pytest.mark.parametrize("method", SOFT_METHODS)
@pytest.mark.parametrize("by_class", [False, True])
def test_max_kept(method, by_class):
    boxes, scores, classes = detections(30, 2, seed=3)
    given = {"method": method, "classes": classes if by_class else None}
    indices, kept = soft_nms(boxes, scores, **given)
    for count in (0, 1, 7, 99):
        some, values = soft_nms(boxes, scores, max_kept=count, **given)
        assert torch.equal(some, indices[:count])
        assert torch.equal(values, kept[:count])


@pytest.mark.parametrize("method", SOFT_METHODS)
def test_equal_and_odd_boxes(method):
    boxes = torch.tensor([[0.0, 0, 4, 4]] * 3 + [[1, 1, 1, 1]] * 2 + [[0, 0, math.inf, 4], [math.nan, 0, 4, 4]])
    scores = torch.tensor([0.5, 0.5, 0.5, 0.5, math.nan, 0.5, 0.5])
    indices, kept = soft_nms(boxes, scores, method=method, min_score=0.0)
    assert kept.isfinite().all()
    assert indices.tolist() == [0, 3, 5, 6, 1, 2]  # the first of equals leaves first
    factors = (0.0, 0.0) if method == "linear" else (math.exp(-2), math.exp(-4))
    torch.testing.assert_close(kept, 0.5 * torch.tensor([1, 1, 1, 1, *factors]))


def test_classes_of_different_sizes():
    """The class of the last box is through first."""
    boxes = 9.0 * torch.arange(4)[:, None] + torch.tensor([0.0, 0, 4, 4])
    indices, kept = soft_nms(boxes, torch.tensor([0.2, 0.3, 0.4, 0.9]), classes=torch.tensor([5, 5, 5, 2]))
    assert indices.tolist() == [3, 2, 1, 0]
    torch.testing.assert_close(kept, torch.tensor([0.9, 0.4, 0.3, 0.2]))


def test_few():
    assert soft_nms(torch.zeros(0, 4), torch.zeros(0), max_kept=5)[0].shape == (0,)
    indices, kept = soft_nms(torch.zeros(0, 6), torch.zeros(0), classes=torch.zeros(0))
    assert indices.shape == kept.shape == (0,)
    assert indices.dtype == torch.int64
    indices, kept = soft_nms(torch.ones(2, 4), torch.full((2,), 0.0001))
    assert indices.shape == kept.shape == (0,)
    boxes = torch.tensor([[0, 0, 4, 4]], dtype=torch.float16)
    indices, kept = soft_nms(boxes, torch.ones(1, dtype=torch.float16))
    assert (indices.tolist(), kept.dtype) == ([0], torch.float32)


def test_leaves_inputs_alone():
    boxes, scores, classes = detections(20, 2)
    before = boxes.clone(), scores.clone(), classes.clone()
    soft_nms(boxes.requires_grad_(), scores.requires_grad_(), classes=classes)
    assert all(torch.equal(a, b) for a, b in zip((boxes, scores, classes), before, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "hard"}, "method is 'hard', expected one of gaussian, linear"),
        ({"sigma": 0.0}, "sigma is 0.0, expected more than 0"),
        ({"iou_threshold": 2.0}, "iou_threshold is 2.0"),
        ({"classes": torch.zeros(3)}, r"classes has shape \(3,\)"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        soft_nms(torch.zeros(2, 4), torch.zeros(2), **options)
