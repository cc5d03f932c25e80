# SPDX-License-Identifier: Apache-2.0
"""Tests of greedy non-maximum suppression: a naive loop, and results of torchvision 0.28."""

from __future__ import annotations

import math

import pytest
import torch

from monai_labelfx.ops import nms as module
from monai_labelfx.ops.nms import greedy_nms

# Kept by torchvision.ops.nms(grid_boxes(48), grid_scores(48), threshold)
TORCHVISION = {
    0.0: [5, 21, 37, 22, 34, 12, 16, 18, 19, 24, 25, 35, 36, 1, 40, 2, 20, 44, 14, 15, 0, 28, 43, 45, 47, 3, 9, 32]
    + [41, 38],
    0.1: [5, 21, 37, 22, 34, 12, 16, 18, 19, 24, 25, 35, 36, 46, 1, 40, 2, 20, 44, 7, 14, 15, 0, 28, 43, 45, 47, 3, 9]
    + [32, 41, 38],
    1 / 3: [5, 21, 37, 22, 34, 4, 12, 16, 18, 19, 24, 25, 35, 36, 46, 1, 23, 40, 2, 8, 20, 33, 44, 7, 14, 15, 0, 6, 28]
    + [43, 45, 47, 3, 9, 32, 41, 42, 10, 38],
    0.5: [5, 21, 37, 22, 34, 4, 12, 16, 18, 19, 24, 25, 35, 36, 46, 1, 13, 23, 27, 40, 2, 8, 20, 26, 33, 44, 7, 14, 15]
    + [17, 30, 0, 6, 29, 28, 43, 45, 47, 3, 9, 32, 41, 42, 10, 38, 39],
}
# Number and checksum of what it keeps of many_boxes(3000)
TORCHVISION_MANY = {0.1: (623, 281199491), 0.5: (2235, 3731871369), 0.7: (2864, 6163500757)}


@pytest.fixture(params=[(module.BLOCK, module.CHUNK), (5, 3)], ids=["default", "tiny blocks"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", request.param[0])
    monkeypatch.setattr(module, "CHUNK", request.param[1])


def pseudo_random(count: int, modulus: int, seed: int) -> torch.Tensor:
    """Numbers that no version of torch can change."""
    state, numbers = seed, []
    for _ in range(count):
        state = (state * 1103515245 + 12345) % 2**31
        numbers.append((state >> 12) % modulus)
    return torch.tensor(numbers, dtype=torch.float32)


def grid_boxes(count: int) -> torch.Tensor:
    """Whole corners, also negative ones and empty boxes, so that many an overlap lies at a threshold."""
    low = pseudo_random(2 * count, 9, 1).view(-1, 2) - 4
    return torch.cat((low, low + pseudo_random(2 * count, 6, 2).view(-1, 2)), 1)


def grid_scores(count: int) -> torch.Tensor:
    """Many ties, some NaN."""
    scores = pseudo_random(count, 10, 3) / 8
    scores[5::16] = math.nan
    return scores


def many_boxes(count: int) -> torch.Tensor:
    low = pseudo_random(2 * count, 4001, 1).view(-1, 2) / 7
    return torch.cat((low, low + pseudo_random(2 * count, 900, 2).view(-1, 2) / 9), 1)


def random_set(count: int, dims: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes, scores and classes of detections scattered around a dozen objects."""
    draw = torch.Generator().manual_seed(seed)
    low, size = torch.rand(12, dims, generator=draw) * 20 - 10, torch.rand(12, dims, generator=draw) * 8 + 4
    objects = torch.cat((low, low + size), 1)[torch.randint(12, (count,), generator=draw)]
    boxes = objects + torch.randn(count, 2 * dims, generator=draw)
    return boxes, torch.rand(count, generator=draw), torch.randint(7, (count,), generator=draw)


def naive(boxes: list, scores: list, threshold: float, classes: list | None = None) -> list[int]:
    """One box after the other in float64."""
    dims = len(boxes[0]) // 2 if boxes else 0

    def iou(a: list, b: list) -> float:
        shared = math.prod(max(min(a[dims + i], b[dims + i]) - max(a[i], b[i]), 0.0) for i in range(dims))
        sizes = [math.prod(box[dims + i] - box[i] for i in range(dims)) for box in (a, b)]
        return shared / (sum(sizes) - shared)

    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        rivals = [k for k in kept if classes is None or classes[k] == classes[i]]
        if all(iou(boxes[k], boxes[i]) <= threshold for k in rivals):
            kept.append(i)
    return kept


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.6])
@pytest.mark.parametrize("dims", [1, 2, 3, 4])
def test_naive(dims, threshold):
    boxes, scores, classes = random_set(90, dims, seed=dims)
    expected = naive(boxes.tolist(), scores.tolist(), threshold)
    assert 1 < len(expected) < 90
    assert greedy_nms(boxes, scores, threshold).tolist() == expected
    by_class = naive(boxes.tolist(), scores.tolist(), threshold, classes.tolist())
    assert len(by_class) > len(expected)
    assert greedy_nms(boxes, scores, threshold, classes=classes).tolist() == by_class


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("threshold", TORCHVISION)
def test_torchvision(threshold):
    kept = greedy_nms(grid_boxes(48), grid_scores(48), threshold)
    assert kept.dtype == torch.int64
    assert kept.tolist() == TORCHVISION[threshold]


@pytest.mark.parametrize("threshold", TORCHVISION_MANY)
def test_torchvision_many(threshold):
    kept = greedy_nms(many_boxes(3000), pseudo_random(3000, 1500, 3), threshold)
    ranks = torch.arange(1, len(kept) + 1)
    assert (len(kept), (kept * ranks).sum().item()) == TORCHVISION_MANY[threshold]


def test_threshold_is_kept():
    boxes = torch.tensor([[0.0, 0, 2, 1], [0, 0, 1, 1]])  # IoU 1 / 2
    assert greedy_nms(boxes, torch.ones(2), 0.5).tolist() == [0, 1]
    assert greedy_nms(boxes, torch.ones(2), 0.4999999).tolist() == [0]
    tenth = torch.tensor([[0.0, 0, 10, 1], [0, 0, 1, 1]])  # in float32 0.1 is above 0.1, in float64 it is not
    assert greedy_nms(tenth, torch.ones(2), 0.1).tolist() == [0]
    assert greedy_nms(tenth.double(), torch.ones(2), 0.1).tolist() == [0, 1]


def test_order():
    boxes = torch.tensor([[0.0, 0, 0, 2, 2, 2]]) + 10 * torch.arange(5.0)[:, None]
    scores = torch.tensor([0.5, math.nan, 0.5, 0.9, -math.inf])
    assert greedy_nms(boxes, scores, 0.5).tolist() == [1, 3, 0, 2, 4]
    assert greedy_nms(boxes, scores, 0.5, classes=torch.tensor([3, 1, 2, 0, 0])).tolist() == [1, 3, 0, 2, 4]
    assert greedy_nms(boxes[:1].expand(5, 6), scores, 0.5).tolist() == [1]


@pytest.mark.usefixtures("blocks")
def test_chain_of_removals():
    """Each box removes only the next one: every other is kept, whatever the blocks."""
    low = torch.arange(40.0)[:, None]
    boxes = torch.cat((low, low + 3), 1)  # neighbours have 2 / 4
    assert greedy_nms(boxes, -torch.arange(40.0), 0.4).tolist() == list(range(0, 40, 2))


@pytest.mark.usefixtures("blocks")
def test_improper_boxes_are_kept():
    boxes = torch.tensor(
        [
            [0.0, 0, 4, 4],
            [0, 0, 4, 0],  # empty
            [4, 4, 0, 0],  # inverted twice, which gives a positive product
            [4, 0, 0, 4],
            [math.nan, 0, 4, 4],
            [0, 0, math.inf, 4],
            [-math.inf, 0, math.inf, 4],
            [0, 0, 4, 4],
        ]
    )
    for scores in (torch.arange(8.0), -torch.arange(8.0)):
        kept = greedy_nms(boxes, scores, 0.0).tolist()
        assert sorted(kept) == sorted(set(range(8)) - {0 if scores[7] > 0 else 7})


def test_far_and_large():
    far = torch.tensor([[-3e38, 0, -2.9e38, 1], [2.9e38, 0, 3e38, 1], [0, 0, 1e30, 1], [0, 0, 1e30, 1]])
    assert greedy_nms(far, torch.ones(4), 0.5).tolist() == [0, 1, 2]


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("dims", [2, 3])
def test_invariances(dims):
    boxes, scores, classes = random_set(60, dims, seed=3)
    expected = greedy_nms(boxes, scores, 0.3)
    flipped = torch.cat((-boxes[:, dims:], -boxes[:, :dims]), 1)
    assert torch.equal(greedy_nms(flipped, scores, 0.3), expected)
    assert torch.equal(greedy_nms(4 * boxes, scores, 0.3), expected)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert torch.equal(order[greedy_nms(boxes[order], scores[order], 0.3)], expected)
    # one class, however it is called, and all classes apart
    assert torch.equal(greedy_nms(boxes, scores, 0.3, classes=torch.full((60,), -5)), expected)
    assert len(greedy_nms(boxes, scores, 0.3, classes=torch.arange(60))) == 60
    # depth one is one dimension less
    deep = torch.cat((boxes[:, :dims], torch.zeros(60, 1), boxes[:, dims:], torch.ones(60, 1)), 1)
    assert torch.equal(greedy_nms(deep, scores, 0.3), expected)
    each = [(classes == c).nonzero()[:, 0] for c in range(7)]
    apart = torch.cat([rows[greedy_nms(boxes[rows], scores[rows], 0.3)] for rows in each])
    together = greedy_nms(boxes, scores, 0.3, classes=classes)
    assert torch.equal(together, apart[scores[apart].argsort(descending=True)])


def test_classes_at_one_negative_place():
    boxes = torch.tensor([[-30.0, -30, -20, -20]]).expand(3, 4)
    assert greedy_nms(boxes, torch.tensor([0.1, 0.3, 0.2]), 0.5, classes=torch.tensor([0, 1, 1])).tolist() == [1, 0]


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("classes", [None, 3])
def test_max_kept(classes):
    boxes, scores, groups = random_set(120, 2, seed=4)
    boxes[::7, 2:] = boxes[::7, :2]  # improper boxes take their places by score, too
    which = None if classes is None else groups % classes
    every = greedy_nms(boxes, scores, 0.2, classes=which)
    for count in range(len(every) + 2):
        assert torch.equal(greedy_nms(boxes, scores, 0.2, classes=which, max_kept=count), every[:count])


@pytest.mark.parametrize("dims", [2, 3])
def test_few(dims):
    none = torch.zeros(0, 2 * dims)
    assert greedy_nms(none, torch.zeros(0), 0.5).shape == (0,)
    kept = greedy_nms(none, torch.zeros(0), 0.5, classes=torch.zeros(0, dtype=torch.int64))
    assert kept.shape == (0,)
    assert kept.dtype == torch.int64
    one = torch.arange(2.0 * dims)[None]
    assert greedy_nms(one, torch.zeros(1), 0.5).tolist() == [0]
    assert greedy_nms(one, torch.zeros(1), 0.5, classes=torch.zeros(1)).tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_dtypes(dtype):
    boxes = (grid_boxes(40) * 60).to(dtype)  # areas beyond half precision
    expected = greedy_nms(boxes.float(), grid_scores(40), 0.45)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(greedy_nms(boxes, grid_scores(40), 0.45), expected)


def test_leaves_inputs_alone():
    boxes, scores, classes = random_set(20, 2, seed=5)
    given = boxes.clone().requires_grad_(), scores.clone().requires_grad_(), classes.clone()
    assert not greedy_nms(given[0], given[1], 0.3, classes=given[2]).requires_grad
    assert all(torch.equal(a, b) for a, b in zip(given, (boxes, scores, classes), strict=True))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.zeros(2, 5), torch.zeros(2), 0.5), {}, r"boxes has shape \(2, 5\), expected \(N, 2 x spatial_dims\)"),
        ((torch.zeros(4), torch.zeros(2), 0.5), {}, r"boxes has shape \(4,\)"),
        ((torch.zeros(2, 4), torch.zeros(3), 0.5), {}, r"scores has shape \(3,\), expected \(2,\)"),
        ((torch.zeros(2, 4), torch.zeros(2), 0.5), {"classes": torch.zeros(1)}, r"classes has shape \(1,\)"),
        ((torch.zeros(2, 4), torch.zeros(2), 1.5), {}, "iou_threshold is 1.5, expected 0 to 1"),
        ((torch.zeros(2, 4), torch.zeros(2), math.nan), {}, "iou_threshold is nan"),
        ((torch.zeros(2, 4), torch.zeros(2), 0.5), {"max_kept": -1}, "max_kept is -1, expected 0 or more"),
    ],
)
def test_bad_input(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        greedy_nms(*arguments, **options)
