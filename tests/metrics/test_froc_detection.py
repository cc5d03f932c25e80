# SPDX-License-Identifier: Apache-2.0
"""FROC by hand, against a naive curve, and against MONAI's numbers where these are made for points."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from coco_reference import detections, naive_iou, with_masks
from monai.metrics import compute_froc_curve_data, compute_froc_score

from monai_labelfx.metrics.froc_detection import FROC_RATES, FrocDetectionMetric


def results(predictions: list[dict], targets: list[dict], *args, **options) -> dict[str, float]:
    metric = FrocDetectionMetric(*args, **options)
    metric(predictions, targets)
    return metric.aggregate()


def scene(scores: list[float], at: list[float], objects: list[float]) -> tuple[dict, dict]:
    """Cubes of side 4 on a line: centres of detections and of objects."""

    def boxes(centres: list[float]) -> torch.Tensor:
        middle = torch.tensor([[c, 2.0, 2.0] for c in centres]).reshape(-1, 3)
        return torch.cat([middle - 2, middle + 2], 1)

    found = {"boxes": boxes(at), "labels": torch.zeros(len(at)).long(), "scores": torch.tensor(scores)}
    return found, {"boxes": boxes(objects), "labels": torch.zeros(len(objects)).long()}


def test_hand_case():
    first = scene([0.9, 0.8, 0.7], [10, 50, 30], [10, 30])  # hit, false, hit
    second = scene([0.6], [10], [])  # an image without objects
    found = results([first[0], second[0]], [first[1], second[1]], rates=(0.25, 0.5, 1), interpolate=False)
    assert found == pytest.approx({"box_CPM": 2.5 / 3, "box_FROC_0.25": 0.5, "box_FROC_0.5": 1, "box_FROC_1": 1})
    assert list(results([first[0]], [first[1]])) == ["box_CPM", *(f"box_FROC_{rate:g}" for rate in FROC_RATES)]


def test_repeats():
    item = scene([0.9, 0.8, 0.7], [10, 11, 30], [10, 30])
    kept = results([item[0]], [item[1]], rates=(0.5,), interpolate=False)
    counted = results([item[0]], [item[1]], rates=(0.5,), interpolate=False, repeats="false_positive")
    assert kept["box_CPM"] == 1 and counted["box_CPM"] == 0.5


def test_centres_are_compared_to_the_radius_in_any_spacing():
    for distance, hit in ((1.9, 1), (2.1, 0)):
        found, target = scene([0.5], [10 + distance], [10])
        found["boxes"] = found["boxes"] / 2 + torch.tensor([10 + distance, 2, 2] * 2) / 2  # smaller: only centres count
        for stretch in (1, 5):
            scale = torch.tensor([1.0, stretch, 1] * 2)
            items = ({**found, "boxes": found["boxes"] * scale}, {**target, "boxes": target["boxes"] * scale})
            assert results([items[0]], [items[1]], "center")["center_CPM"] == hit


def test_ignored_objects_and_absent_classes():
    found, target = scene([0.9, 0.8, 0.7], [10, 30, 31], [10, 30])
    options = {"rates": (0.5,), "interpolate": False}
    assert results([found], [{**target, "ignore": [1, 0]}], **options)["box_CPM"] == 1
    assert results([found], [{**target, "iscrowd": [0, 1]}], **options)["box_CPM"] == 1
    other = {**found, "labels": torch.tensor([0, 3, 3])}
    assert results([other], [target], **options)["box_CPM"] == 0.5, "class 3 has no object"
    assert results([other], [target], class_agnostic=True, **options) == {
        "box_agnostic_CPM": 1,
        "box_agnostic_FROC_0.5": 1,
    }
    empty = {"boxes": torch.zeros(0, 6), "labels": torch.zeros(0).long()}
    assert all(math.isnan(value) for value in results([found], [empty]).values())


def naive(predictions: list[dict], targets: list[dict], rate: float, threshold: float) -> float:
    """Highest sensitivity at a score threshold with at most ``rate`` false positives per image, one class."""
    events, objects = [], 0
    for prediction, target in zip(predictions, targets, strict=True):
        boxes = target["boxes"].double().tolist()
        objects += len(boxes)
        free = set(range(len(boxes)))
        rows = zip(prediction["scores"].tolist(), prediction["boxes"].double().tolist(), strict=True)
        for score, box in sorted(rows, key=lambda row: -row[0]):
            overlaps = [naive_iou(box, other) for other in boxes]
            best = max(free, key=lambda g: overlaps[g], default=None)
            if best is not None and overlaps[best] >= threshold:
                free.remove(best)
                events.append((score, 1, 0))
            elif max(overlaps, default=0) < threshold:
                events.append((score, 0, 1))
    levels = [[sum(e[i] for e in events if e[0] >= s) for i in (1, 2)] for s in {e[0] for e in events}]
    return max((hits for hits, false in levels if false <= rate * len(targets)), default=0) / objects


@pytest.mark.parametrize("dims", [2, 3])
def test_naive_curve(dims):
    predictions, targets = detections(8, 1, seed=dims, objects=4, dims=dims)
    for prediction in predictions:
        prediction["scores"] = (prediction["scores"] * 20).round() / 20
    found = results(predictions, targets, interpolate=False)
    for rate in FROC_RATES:
        assert found[f"box_FROC_{rate:g}"] == pytest.approx(naive(predictions, targets, rate, 0.1))
    assert found["box_CPM"] == pytest.approx(np.mean([found[f"box_FROC_{rate:g}"] for rate in FROC_RATES]))
    assert 0.1 < found["box_CPM"] < 0.9


def test_lines_between_the_points_are_those_of_monai():
    rng = np.random.default_rng(0)
    hits = rng.random(40) < 0.5
    scores = (rng.permutation(40) + 1) / 41
    # Hits at objects 0, 10, 20, ..., everything else far away.
    places = [10.0 * i if hit else 10.0 * i + 5 for i, hit in enumerate(hits)]
    item = scene(scores.tolist(), places, [10.0 * i for i in range(40)])
    curve = compute_froc_curve_data(scores[~hits], scores[hits], 40, 4)
    empty = scene([], [], [])
    expected = compute_froc_score(*curve, eval_thresholds=FROC_RATES)
    found = results([item[0], *[empty[0]] * 3], [item[1], *[empty[1]] * 3])
    assert found["box_CPM"] == pytest.approx(expected, abs=1e-12)


def test_masks_and_caps():
    predictions, targets = detections(4, 2, objects=3, extra=5)
    for item in (*predictions, *targets):
        item["boxes"] = item["boxes"] / 8
    predictions, targets = (with_masks(items, (72, 72)) for items in (predictions, targets))
    assert 0 < results(predictions, targets, "mask")["mask_CPM"] < 1
    few, many = (results(predictions, targets, "mask", max_detections=n)["mask_FROC_8"] for n in (1, 100))
    assert few < many


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap": "point"}, "overlap must be one of .*, got 'point'"),
        ({"threshold": 0}, "threshold must be a number above 0, up to 1, got 0"),
        ({"rates": ()}, "rates must be numbers of false positives per image above 0"),
        ({"rates": (0, 1)}, "rates must be numbers of false positives per image above 0"),
        ({"repeats": "no"}, "repeats must be 'ignore' or 'false_positive', got 'no'"),
        ({"max_detections": 0}, "max_detections must be above 0, or None for all, got 0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        FrocDetectionMetric(**options)
