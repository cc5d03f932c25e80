# SPDX-License-Identifier: Apache-2.0
"""Matches of anchors against plain loops over boxes, torchvision's on a golden case, and the guards."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch

from monai_labelfx.ops import box_matching
from monai_labelfx.ops.anchor_grid import anchor_grid, anchor_shapes
from monai_labelfx.ops.box_matching import atss_matches, iou_matches

GOLDEN_ANCHORS = torch.tensor(
    [[x, y, x + s, y + t] for s, t in ((8, 8), (16, 8), (12, 16)) for x in (0, 6, 12, 20) for y in (0, 5, 14)]
).float()
GOLDEN_BOXES = torch.tensor(
    [[1, 0, 9, 9], [7, 4, 20, 14], [13, 13, 30, 31], [6, 5, 14, 13], [20, 1, 24, 4]], dtype=torch.float32
)


def iou(a: list[float], b: list[float]) -> float:
    ndim, shared, first, second = len(a) // 2, 1.0, 1.0, 1.0
    for low, high in zip(range(ndim), range(ndim, 2 * ndim), strict=True):
        shared *= max(min(a[high], b[high]) - max(a[low], b[low]), 0.0)
        first *= a[high] - a[low]
        second *= b[high] - b[low]
    return shared / (first + second - shared)


def naive_iou_matches(boxes, anchors, positive, negative, best_per_box, min_best, one_best) -> list[int]:
    """One image, box by box and anchor by anchor."""
    table = [[iou(box, anchor) for anchor in anchors] for box in boxes]
    matches, own = [], []
    for column in zip(*table, strict=True) if table else [()] * len(anchors):
        best = max(column, default=-1)
        own.append(column.index(best) if column else -1)
        matches.append(own[-1] if best >= positive and column else (-1 if best < negative else -2))
    claims: dict[int, tuple[float, int]] = {}
    for row, values in enumerate(table):
        best = max(values)
        if not best_per_box or best == 0 or best < min_best:
            continue
        if one_best:
            anchor = values.index(best)
            if best > claims.get(anchor, (0.0, 0))[0]:
                claims[anchor] = best, row
            continue
        for anchor, value in enumerate(values):
            if value == best:
                matches[anchor] = own[anchor]
    for anchor, (_, row) in claims.items():
        matches[anchor] = row
    return matches


def batch(ndim: int, numbers: list[int], seed: int, grid: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes of whole numbers, so that many overlaps tie; NaN at the padding."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.full((len(numbers), max(numbers), 2 * ndim), math.nan, dtype=torch.float64)
    valid = torch.zeros(boxes.shape[:2], dtype=torch.bool)
    for row, number in enumerate(numbers):
        low = torch.randint(0, grid, (number, ndim), generator=generator)
        high = low + torch.randint(1, grid // 2, (number, ndim), generator=generator)
        places = torch.randperm(max(numbers), generator=generator)[:number].sort().values
        boxes[row, places], valid[row, places] = torch.cat((low, high), 1).double(), True
    return boxes, valid


def compare(found: torch.Tensor, boxes: torch.Tensor, valid: torch.Tensor, naive) -> None:
    """``naive`` gives rows of the valid boxes."""
    assert found.dtype == torch.int64
    for row, matches in enumerate(found.tolist()):
        places = valid[row].nonzero().flatten().tolist()
        expected = [places[m] if m >= 0 else m for m in naive(boxes[row][valid[row]].tolist())]
        assert matches == expected


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("one_best", [False, True])
@pytest.mark.parametrize("limits", [(0.5, 0.4, True, 0.0), (0.3, 0.3, True, 0.2), (0.25, 0.1, False, 0.0)])
def test_iou_equals_plain_loops(ndim, one_best, limits, monkeypatch):
    for seed, most in itertools.product(range(4), (1 << 25, 1)):
        monkeypatch.setattr(box_matching, "_MOST_PAIRS", most)
        boxes, valid = batch(ndim, [5, 0, 1, 7], seed)
        anchors = batch(ndim, [60], seed + 50)[0][0]
        names = ("positive", "negative", "best_per_box", "min_best")
        found = iou_matches(boxes, valid, anchors, **dict(zip(names, limits, strict=True)), one_best=one_best)
        compare(found, boxes, valid, lambda b, a=anchors: naive_iou_matches(b, a.tolist(), *limits, one_best))
        assert (found[1] == -1).all()
        each = torch.stack([anchors.roll(image, 0) for image in range(4)])
        for image in range(4):
            alone = iou_matches(boxes[image, None], valid[image, None], each[image], positive=0.3, negative=0.2)
            assert torch.equal(iou_matches(boxes, valid, each, positive=0.3, negative=0.2)[image], alone[0])


def golden(**options) -> list[int]:
    every = torch.ones(1, len(GOLDEN_BOXES), dtype=torch.bool)
    return iou_matches(GOLDEN_BOXES[None], every, GOLDEN_ANCHORS, **options)[0].tolist()


def test_numbers_of_torchvision():
    """``Matcher(high, low, allow_low_quality_matches)`` and ``SSDMatcher(0.5)`` of torchvision 0.28."""
    plain = [0, -1, -1, -1, 3, -1, -1, -2, -1, -1, -1, -1, -2, 3, -1, -1, 1, -1, -1, -1, -1, -1, -1, -1]
    plain += [-1, -1, -1, 1, -2, -1, -1, -1, 2, -1, -1, -2]
    assert golden(best_per_box=False) == plain
    assert golden() == [*plain[:9], 4, *plain[10:]]

    strict = [0, -1, -1, -1, 3, -1, -1, -2, -1, -1, -1, -1, -2, -2, -1, -1, -2, -1, -1, -2, -2, -1, -1, -1]
    strict += [-2, -1, -1, -2, -2, -1, -2, -1, -2, -1, -1, -2]
    assert golden(positive=0.7, negative=0.3, best_per_box=False) == strict
    best = [*strict[:9], 4, *strict[10:16], 1, *strict[17:32], 2, *strict[33:]]
    assert golden(positive=0.7, negative=0.3) == best
    without_poor = [*best[:9], -1, *best[10:]]
    assert golden(positive=0.7, negative=0.3, min_best=0.3) == without_poor

    ssd = [max(match, -1) for match in plain]
    assert golden(positive=0.5, negative=0.5, one_best=True) == [*ssd[:9], 4, *ssd[10:]]


def test_a_box_that_overlaps_nothing_has_no_anchor():
    anchors = torch.tensor([[0.0, 0, 4, 4], [8, 8, 12, 12]])
    boxes = torch.tensor([[[20.0, 20, 30, 30], [0, 0, 4, 5]]])
    for one_best in (False, True):
        found = iou_matches(boxes, torch.ones(1, 2, dtype=torch.bool), anchors, one_best=one_best)
        assert found.tolist() == [[1, -1]]


def test_ties_and_contested_anchors():
    anchors = torch.tensor([[0.0, 0, 4, 4], [0, 4, 4, 8], [20, 0, 24, 4]])
    valid = torch.ones(1, 2, dtype=torch.bool)
    between = torch.tensor([[[0.0, 2, 4, 6], [19, 0, 29, 10]]])
    assert iou_matches(between, valid, anchors).tolist() == [[0, 0, 1]]
    assert iou_matches(between, valid, anchors, one_best=True).tolist() == [[0, -1, 1]]
    same = torch.tensor([[[20.0, 0, 30, 4], [20, 0, 26, 4]]])  # both want the last anchor
    assert iou_matches(same, valid, anchors, one_best=True, positive=0.9, negative=0.9).tolist() == [[-1, -1, 1]]
    assert iou_matches(same[:, [1, 1]], valid, anchors, one_best=True).tolist() == [[-1, -1, 0]]


def naive_atss(boxes, anchors, sizes, number, per_place, center_in_box) -> list[int]:
    ndim = len(anchors[0]) // 2
    centres = [[(a[d] + a[d + ndim]) / 2 for d in range(ndim)] for a in anchors]
    wanted: list[list[int]] = []
    candidates: list[list[int]] = []
    for box in boxes:
        near, start = [], 0
        centre = [(box[d] + box[d + ndim]) / 2 for d in range(ndim)]
        for size in sizes:
            places = range(start, start + size, per_place)
            order = sorted(places, key=lambda a: sum((centres[a][d] - centre[d]) ** 2 for d in range(ndim)))
            near += [place + member for place in order[:number] for member in range(per_place)]
            start += size
        values = [iou(box, anchors[a]) for a in near]
        limit = statistics.mean(values) + (statistics.stdev(values) if len(values) > 1 else 0)
        inside = [min(min(centres[a][d] - box[d], box[d + ndim] - centres[a][d]) for d in range(ndim)) for a in near]
        good = zip(near, values, inside, strict=True)
        wanted.append([a for a, v, i in good if v >= limit and v > 0 and (i > 0.01 or not center_in_box)])
        candidates.append(near)
    matches = [-1] * len(anchors)
    for anchor in range(len(anchors)):
        rows = [row for row, near in enumerate(wanted) if anchor in near]
        matches[anchor] = max(rows, key=lambda row, a=anchor: iou(boxes[row], anchors[a]), default=-1)
    while True:
        claims: dict[int, int] = {}
        for row, near in enumerate(candidates):
            free = [a for a in near if matches[a] < 0]
            if row not in matches and free:
                best = max(free, key=lambda a, r=row: iou(boxes[r], anchors[a]))
                if best not in claims or iou(boxes[row], anchors[best]) > iou(boxes[claims[best]], anchors[best]):
                    claims[best] = row
        if not claims:
            return matches
        for anchor, row in claims.items():
            matches[anchor] = row


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("center_in_box", [False, True])
@pytest.mark.parametrize(("number", "per_place"), [(4, 1), (2, 3), (1, 1), (50, 3)])
def test_atss_equals_plain_loops(ndim, center_in_box, number, per_place, monkeypatch):
    grids = [((4,) * ndim, 4), ((2,) * ndim, 8)]
    shapes = anchor_shapes([1.3], ndim, ratios=[])[:, None] * torch.tensor([1.0, 1.7, 2.5])[None, :per_place, None]
    anchors = torch.cat([anchor_grid(shapes[0] * stride, places, stride) for places, stride in grids]).double()
    sizes = [per_place * 4**ndim, per_place * 2**ndim]
    options = (sizes, number, per_place, center_in_box)
    for seed, most in ((0, 1 << 25), (1, 1 << 25), (0, 1)):
        monkeypatch.setattr(box_matching, "_MOST_PAIRS", most)
        boxes, valid = batch(ndim, [4, 0, 1, 6], seed)
        how = {"num_candidates": number, "anchors_per_place": per_place, "center_in_box": center_in_box}
        found = atss_matches(boxes, valid, anchors, sizes, **how)
        compare(found, boxes, valid, lambda b: naive_atss(b, anchors.tolist(), *options))


def test_atss_leaves_no_box_out():
    anchors = anchor_grid([[4, 4]], (4, 4), 4)
    valid = torch.ones(1, 3, dtype=torch.bool)
    tiny = torch.tensor([[[3.9, 3.9, 4.1, 4.1], [8, 8, 9, 9], [40, 40, 50, 50]]])
    assert set(atss_matches(tiny, valid, anchors, [16])[0].tolist()) == {-1, 0, 1, 2}
    loose = atss_matches(tiny[:, 2:], valid[:, 2:], anchors, [16], center_in_box=False)
    assert loose[0].tolist() == [-1] * 15 + [0]  # overlaps none, and has the nearest alone
    same = torch.tensor([[[1.0, 1, 5, 5]] * 3])
    assert sorted(atss_matches(same, valid, anchors, [16], num_candidates=3)[0].tolist())[-4:] == [-1, 0, 1, 2]
    crowded = atss_matches(same, valid, anchors, [16], num_candidates=2)
    assert sorted(crowded[0].tolist())[-3:] == [-1, 0, 1]  # the third finds all candidates taken


def test_single_candidate_goes_to_its_box():
    anchors = torch.tensor([[0.0, 0, 4, 4]])
    boxes = torch.tensor([[[90.0, 90, 94, 94], [0, 0, 4, 4]]])
    assert atss_matches(boxes, torch.tensor([[False, True]]), anchors, [1]).tolist() == [[1]]


def test_no_boxes_and_no_anchors():
    empty, none = torch.zeros(2, 0, 6), torch.zeros(2, 0, dtype=torch.bool)
    anchors = anchor_grid([[4, 4, 4]], (2, 2, 2), 4)
    for found in (iou_matches(empty, none, anchors), atss_matches(empty, none, anchors, [8])):
        assert found.dtype == torch.int64 and found.tolist() == [[-1] * 8] * 2
    one = torch.ones(2, 1, dtype=torch.bool)
    for one_best in (False, True):
        assert iou_matches(torch.zeros(2, 1, 6), one, anchors[:0], one_best=one_best).shape == (2, 0)
    assert atss_matches(torch.zeros(2, 1, 6), one, anchors[:0], [0]).shape == (2, 0)
    padding = torch.full((2, 1, 6), math.nan)
    assert (iou_matches(padding, ~one, anchors) == -1).all() and (atss_matches(padding, ~one, anchors, [8]) == -1).all()


def test_autocast_and_half_precision():
    boxes, valid = batch(2, [6], 0)
    anchors = batch(2, [40], 1)[0][0]
    expected = iou_matches(boxes.float(), valid, anchors.float(), positive=0.3, negative=0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = iou_matches(boxes.bfloat16(), valid, anchors.bfloat16(), positive=0.3, negative=0.2)
    assert torch.equal(found, expected)  # whole numbers below 256 are exact


def test_bad_input():
    boxes, valid, anchors = torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool), torch.zeros(5, 4)
    with pytest.raises(ValueError, match=r"boxes must have the shape \(B, N, 2 \* D\), got \(3, 4\)"):
        iou_matches(boxes[0], valid, anchors)
    with pytest.raises(TypeError, match="valid must be bool, got torch.float32"):
        iou_matches(boxes, valid.float(), anchors)
    with pytest.raises(ValueError, match=r"valid must have the shape \(2, 3\) of the boxes, got \(3, 2\)"):
        atss_matches(boxes, valid.T, anchors, [5])
    with pytest.raises(ValueError, match=r"anchors must have the shape \(A, 4\) or \(2, A, 4\), got \(5, 6\)"):
        iou_matches(boxes, valid, torch.zeros(5, 6))
    with pytest.raises(ValueError, match=r"got \(3, 5, 4\)"):
        iou_matches(boxes, valid, torch.zeros(3, 5, 4))
    with pytest.raises(ValueError, match="negative must not be above positive, got 0.6 and 0.5"):
        iou_matches(boxes, valid, anchors, negative=0.6)
    with pytest.raises(ValueError, match=r"level_sizes must add up to the \(5, 4\) anchors, got \(2, 2\)"):
        atss_matches(boxes, valid, anchors, (2, 2))
    with pytest.raises(ValueError, match="num_candidates and anchors_per_place"):
        atss_matches(boxes, valid, anchors, [3, 2], anchors_per_place=2)
