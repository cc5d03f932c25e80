# SPDX-License-Identifier: Apache-2.0
"""Tests of weighted box clustering against a loop over single clusters."""

from __future__ import annotations

import math

import pytest
import torch

from monai_labelfx.ops import box_clustering as module
from monai_labelfx.ops.box_clustering import box_clusters, weighted_box_clustering
from monai_labelfx.ops.nms import greedy_nms


def detections(count: int, dims: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes (float64), scores and labels of what windows found of eight objects."""
    draw = torch.Generator().manual_seed(seed)
    low = torch.rand(8, dims, generator=draw, dtype=torch.float64) * 30 - 15
    objects = torch.cat((low, low + 5), 1)[torch.randint(8, (count,), generator=draw)]
    boxes = objects + torch.randn(count, 2 * dims, generator=draw, dtype=torch.float64) / 2
    return boxes, torch.rand(count, generator=draw, dtype=torch.float64), torch.randint(2, (count,), generator=draw)


def extras(count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "expected": torch.randint(1, 9, (count,), generator=draw).double(),
        "sources": torch.randint(4, (count,), generator=draw),
        "weights": torch.rand(count, generator=draw, dtype=torch.float64),
    }


def naive(boxes, scores, labels, *, threshold, expected, sources, weights, min_score=0.01):
    """Cluster by cluster, in Python numbers."""
    boxes, scores, labels = boxes.tolist(), scores.tolist(), labels.tolist()
    dims = len(boxes[0]) // 2

    def volume(box):
        return math.prod(box[dims + i] - box[i] for i in range(dims))

    def iou(a, b):
        shared = math.prod(max(min(a[dims + i], b[dims + i]) - max(a[i], b[i]), 0) for i in range(dims))
        return shared / (volume(a) + volume(b) - shared)

    left, found = sorted(range(len(boxes)), key=lambda i: -scores[i]), []
    while left:
        head = left[0]
        members = [i for i in left if labels[i] == labels[head] and iou(boxes[head], boxes[i]) > threshold]
        left = [i for i in left if i not in members]
        weight = [iou(boxes[head], boxes[i]) * volume(boxes[i]) * weights[i].item() for i in members]
        views = sum(expected[i].item() for i in members) / len(members)
        missed = max(views - len({sources[i].item() for i in members}), 0)
        pull = [w * scores[i] for w, i in zip(weight, members, strict=True)]
        score = sum(pull) / (sum(weight) + missed * sum(weight) / len(weight))
        corners = [
            sum(p * boxes[i][a] for p, i in zip(pull, members, strict=True)) / sum(pull) for a in range(2 * dims)
        ]
        if score > min_score:
            found.append((score, corners, labels[head]))
    return sorted(found, key=lambda cluster: -cluster[0])


@pytest.mark.parametrize("threshold", [1e-5, 0.4])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_naive(dims, threshold):
    boxes, scores, labels = detections(50, dims)
    given = extras(50)
    expected = naive(boxes, scores, labels, threshold=threshold, min_score=0.05, **given)
    found = weighted_box_clustering(boxes, scores, labels, iou_threshold=threshold, min_score=0.05, **given)
    assert 3 < len(expected) < 45
    torch.testing.assert_close(found[0], torch.tensor([c for _, c, _ in expected], dtype=torch.float64))
    torch.testing.assert_close(found[1], torch.tensor([s for s, _, _ in expected], dtype=torch.float64))
    assert found[2].tolist() == [label for _, _, label in expected]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("by_class", [False, True])
def test_clusters(dims, by_class, monkeypatch):
    boxes, scores, labels = detections(40, dims, seed=1)
    classes = labels if by_class else None
    heads, clusters = box_clusters(boxes, scores, 0.3, classes=classes)
    assert torch.equal(heads, greedy_nms(boxes, scores, 0.3, classes=classes))
    assert clusters[heads].tolist() == list(range(len(heads)))
    for head, group in enumerate(heads.tolist()):  # a cluster cleared of all better heads gives its own head alone
        rows = (clusters == head).nonzero()[:, 0]
        assert rows[greedy_nms(boxes[rows], scores[rows], 0.3)][0] == group
        assert scores[rows].max() == scores[group]
    monkeypatch.setattr(module, "MOST_PAIRS", 30)
    assert torch.equal(box_clusters(boxes, scores, 0.3, classes=classes)[1], clusters)


def test_by_hand():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2], [10, 10, 12, 12], [0, 0, 4, 4]])
    scores, labels = torch.tensor([0.8, 0.4, 0.5, 0.3]), torch.tensor([1, 1, 1, 0])
    merged, values, kinds = weighted_box_clustering(boxes, scores, labels)
    # weights 1 * 16 and 0.5 * 8; pulls 12.8 and 1.6
    assert kinds.tolist() == [1, 1, 0]
    torch.testing.assert_close(values, torch.tensor([14.4 / 20, 0.5, 0.3]))
    torch.testing.assert_close(merged[0], torch.tensor([0, 0, 4, (12.8 * 4 + 1.6 * 2) / 14.4]))
    torch.testing.assert_close(merged[1:], boxes[2:])


def test_missed_views():
    box = torch.tensor([[0.0, 0, 0, 4, 4, 4]])
    scores, labels = torch.tensor([0.8, 0.4]), torch.zeros(2, dtype=torch.int64)

    def score(**options):
        return weighted_box_clustering(box.expand(2, 6), scores, labels, **options)[1].tolist()

    assert score() == pytest.approx([0.6])
    assert score(expected=2) == pytest.approx([0.6])
    assert score(expected=4) == pytest.approx([0.3])
    assert score(expected=1) == pytest.approx([0.6])  # more than expected: nothing is missed
    assert score(expected=4, sources=torch.tensor([7, 7])) == pytest.approx([1.2 / 5])  # both from one window
    assert score(expected=torch.tensor([3, 5])) == pytest.approx([0.3])
    assert score(expected=4, min_score=0.31) == []


def test_agreeing_views_change_nothing():
    boxes = torch.tensor([[0.0, 0, 4, 4], [10, 10, 14, 18]]).repeat(3, 1)
    scores = torch.tensor([0.9, 0.7]).repeat(3)
    merged, values, labels = weighted_box_clustering(boxes, scores, torch.tensor([2, 5]).repeat(3), expected=3)
    torch.testing.assert_close(merged, boxes[:2])
    torch.testing.assert_close(values, scores[:2])
    assert labels.tolist() == [2, 5]


@pytest.mark.parametrize("dims", [2, 3])
def test_invariances(dims):
    boxes, scores, labels = detections(40, dims, seed=2)
    given = extras(40)
    merged, values, kinds = weighted_box_clustering(boxes, scores, labels, **given)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    mixed = {name: column[order] for name, column in given.items()}
    mixed["weights"] = mixed["weights"] * 7
    mixed["sources"] = 100 - 3 * mixed["sources"]
    again = weighted_box_clustering(boxes[order], scores[order], labels[order], **mixed)
    torch.testing.assert_close(again, (merged, values, kinds))
    flipped = torch.cat((-boxes[:, dims:], -boxes[:, :dims]), 1)
    mirror = weighted_box_clustering(flipped, scores, labels, **given)
    torch.testing.assert_close(mirror[0], torch.cat((-merged[:, dims:], -merged[:, :dims]), 1))
    torch.testing.assert_close(mirror[1:], (values, kinds))


def test_odd_boxes():
    """Boxes that overlap nothing stay; scores and weights of 0 leave finite corners."""
    boxes = torch.tensor([[1.0, 1, 1, 5], [8, 8, 9, 9], [8, 8, 9, 9], [0, 0, 2, 2], [4, 4, 2, 2]])
    scores = torch.tensor([0.5, 0.0, 0.0, 0.7, 0.4])
    weights = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0])
    merged, values, _ = weighted_box_clustering(
        boxes, scores, torch.zeros(5, dtype=torch.int64), weights=weights, min_score=-1.0
    )
    torch.testing.assert_close(values, torch.tensor([0.7, 0.5, 0.4, 0.0]))
    torch.testing.assert_close(merged, boxes[[3, 0, 4, 1]])


def test_few():
    none = weighted_box_clustering(torch.zeros(0, 6), torch.zeros(0), torch.zeros(0, dtype=torch.int64), expected=2)
    assert [tuple(column.shape) for column in none] == [(0, 6), (0,), (0,)]
    heads, clusters = box_clusters(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert heads.shape == clusters.shape == (0,)
    half = torch.tensor([[0, 0, 4, 4]], dtype=torch.float16)
    merged = weighted_box_clustering(half, torch.ones(1, dtype=torch.float16), torch.zeros(1))
    assert [column.dtype for column in merged[:2]] == [torch.float32] * 2
    boxes, scores, labels = detections(10, 2)
    before = boxes.clone(), scores.clone()
    weighted_box_clustering(boxes.requires_grad_(), scores.requires_grad_(), labels)
    assert torch.equal(boxes, before[0])
    assert torch.equal(scores, before[1])


@pytest.mark.parametrize("name", ["expected", "sources", "weights"])
def test_bad_columns(name):
    boxes, scores, labels = detections(4, 2)
    with pytest.raises(ValueError, match=rf"{name} has shape \(3,\), expected \(4,\)"):
        weighted_box_clustering(boxes, scores, labels, **{name: torch.ones(3)})


def test_bad_input():
    boxes, scores, labels = detections(4, 2)
    with pytest.raises(ValueError, match=r"scores has shape \(3,\)"):
        weighted_box_clustering(boxes, scores[:3], labels)
    with pytest.raises(ValueError, match=r"classes has shape \(3,\)"):
        box_clusters(boxes, scores, 0.5, classes=labels[:3])
    with pytest.raises(ValueError, match="iou_threshold is 7"):
        box_clusters(boxes, scores, 7)
