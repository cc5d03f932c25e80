# SPDX-License-Identifier: Apache-2.0
"""AP and AR against pycocotools (golden and live), a naive reference in 3-D, hand cases and invariances."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from coco_reference import (
    GOLDEN,
    GOLDEN_CLASSES,
    coco_json,
    detections,
    golden_items,
    naive_iou,
    peer_results,
    with_masks,
)

from monai_labelfx.metrics.coco_detection import COCO_IOUS, CocoDetectionMetric

ONE = torch.tensor([[0.0, 0, 10, 10]])


def results(predictions: list[dict], targets: list[dict], *args, **options) -> dict[str, float]:
    metric = CocoDetectionMetric(*args, **options)
    metric(predictions, targets)
    return metric.aggregate()


def close(found: dict[str, float], expected: dict[str, float], tolerance: float = 1e-9) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=tolerance, nan_ok=True), name


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("kinds", ["box", "mask", ("box", "mask")])
def test_golden_numbers_of_pycocotools(kinds, agnostic):
    stored = json.loads(GOLDEN.read_text())
    predictions, targets = golden_items(stored)
    assert any(t["iscrowd"].any() for t in targets) and not all(t["iscrowd"].any() for t in targets)
    starts = tuple(
        f"{k}_agnostic_" if agnostic else f"{k}_" for k in ([kinds] if kinds == "box" or kinds == "mask" else kinds)
    )
    expected = {
        name: math.nan if value is None else value
        for name, value in stored["expected"].items()
        if name.startswith(starts) and ("agnostic" in name) == agnostic
    }
    assert 0.1 < expected[f"{starts[0]}mAP"] < 0.9
    close(results(predictions, targets, kinds, class_agnostic=agnostic), expected)


def live_cases(kind: str):
    for seed in range(6):
        # Corners on a coarse grid: overlaps that tie, and that lie at a threshold.
        predictions, targets = detections(5, GOLDEN_CLASSES, seed=seed, objects=5, extra=8, crowd=0.2 * (seed % 2))
        if seed > 2:
            for item in (*predictions, *targets):
                item["boxes"] = (item["boxes"] / 40).round() * 20 + torch.tensor([0.0, 0, 20, 20])
        elif kind == "mask":
            for item in (*predictions, *targets):
                item["boxes"] = item["boxes"] / 2
        if kind == "mask":
            predictions, targets = (with_masks(items, (200, 240)) for items in (predictions, targets))
        yield predictions, targets


@pytest.mark.peer("pycocotools")
@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("kind", ["box", "mask"])
def test_pycocotools_agrees(kind, agnostic):
    for predictions, targets in live_cases(kind):
        expected = peer_results(*coco_json(predictions, targets, kind, GOLDEN_CLASSES), kind, class_agnostic=agnostic)
        close(results(predictions, targets, (kind,), class_agnostic=agnostic), expected)


@pytest.mark.peer("pycocotools", "faster_coco_eval")
@pytest.mark.parametrize("kind", ["box", "mask"])
def test_faster_coco_eval_agrees(kind):
    for predictions, targets in live_cases(kind):
        made = coco_json(predictions, targets, kind, GOLDEN_CLASSES)
        close(results(predictions, targets, (kind,)), peer_results(*made, kind, module="faster_coco_eval"))


def naive(predictions: list[dict], targets: list[dict], threshold: float, cap: int) -> tuple[float, float]:
    """AP and recall of boxes of any number of axes, from the definition, with plain loops."""
    precisions, recalls = [], []
    for label in sorted({k for t in targets for k in t["labels"].tolist()}):
        events, objects = [], 0
        for prediction, target in zip(predictions, targets, strict=True):
            boxes = [b.tolist() for b in target["boxes"].double()[target["labels"] == label]]
            objects += len(boxes)
            own = prediction["labels"] == label
            rows = zip(prediction["scores"][own].tolist(), prediction["boxes"][own].double().tolist(), strict=True)
            free = set(range(len(boxes)))
            for score, box in sorted(rows, key=lambda row: -row[0])[:cap]:
                best = max(free, key=lambda g: naive_iou(box, boxes[g]), default=None)
                hit = best is not None and naive_iou(box, boxes[best]) >= threshold
                free -= {best} if hit else set()
                events.append((score, hit))
        points = []
        for score in sorted({s for s, _ in events}, reverse=True):
            hits = [hit for s, hit in events if s >= score]
            points.append((sum(hits) / objects, sum(hits) / len(hits)))
        levels = [max((p for r, p in points if r >= level), default=0.0) for level in np.linspace(0, 1, 101)]
        precisions.append(sum(levels) / 101)
        recalls.append(max((r for r, _ in points), default=0.0))
    return sum(precisions) / len(precisions), sum(recalls) / len(recalls)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_naive_reference(dims, ties):
    predictions, targets = detections(9, 3, seed=dims, objects=3, extra=4, dims=dims)
    if ties:
        for prediction in predictions:
            prediction["scores"] = (prediction["scores"] * 8).round() / 8
    for ious, cap in itertools.product([(0.1,), (0.5,), COCO_IOUS], [2, 100]):
        options = {"max_detections": (cap,), "ap_max_detections": cap, "area_ranges": {}, "iou_thresholds": ious}
        found = results(predictions, targets, ap_thresholds=(), **options)
        values = np.mean([naive(predictions, targets, iou, cap) for iou in ious], axis=0)
        close(found, {"box_mAP": values[0], f"box_AR_{cap}": values[1]}, 1e-12)
        assert values[0] > 0.02


def test_a_deeper_axis_of_one_extent_changes_nothing():
    flat = golden_items(json.loads(GOLDEN.read_text()))

    def deeper(item: dict) -> dict:
        low, high = item["boxes"].split(2, 1)
        boxes = torch.cat([low, torch.full_like(low[:, :1], 3), high, torch.full_like(low[:, :1], 4)], 1)
        return {**item, "boxes": boxes, "masks": torch.nn.functional.pad(item["masks"][..., None], (1, 2))}

    deep = [[deeper(item) for item in items] for items in flat]
    areas = {"small": (0, 32**2), "big": (32**2, math.inf)}
    expected = results(*flat, ("box", "mask"), area_ranges=areas)
    close(results(*deep, ("box", "mask"), area_ranges=areas), expected, 0)


@pytest.mark.parametrize("agnostic", [False, True])
def test_the_order_of_images_and_batches_is_without_effect_even_with_ties(agnostic):
    predictions, targets = detections(12, 2, seed=3, objects=3, extra=4)
    for prediction in predictions:
        prediction["scores"] = (prediction["scores"] * 3).round() / 3
    expected = results(predictions, targets, class_agnostic=agnostic)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(12)
        metric = CocoDetectionMetric(class_agnostic=agnostic)
        for part in np.array_split(order, 1 + seed):
            metric([predictions[i] for i in part], [targets[i] for i in part])
        assert metric.aggregate() == expected


def test_axes_may_be_swapped_mirrored_and_scaled():
    predictions, targets = detections(6, 2, seed=4, objects=4, extra=4, dims=3)
    expected = results(predictions, targets, area_ranges={})

    def turned(item: dict) -> dict:
        low, high = item["boxes"].double().split(3, 1)
        return {**item, "boxes": torch.cat([1000 - 2 * high[:, [2, 0, 1]], 1000 - 2 * low[:, [2, 0, 1]]], 1)}

    close(results([*map(turned, predictions)], [*map(turned, targets)], area_ranges={}), expected, 1e-12)


def test_a_perfect_detector_gets_one_with_a_class_absent():
    _, targets = detections(5, 3, seed=1, objects=3)
    for target in targets:
        target["labels"] = target["labels"] * 2  # classes 0, 2, 4 of more
    predictions = [{**t, "scores": torch.rand(len(t["labels"]))} for t in targets]
    found = results(predictions, targets, max_detections=(300,), per_class=True)
    defined = {name: value for name, value in found.items() if not math.isnan(value)}
    assert set(defined.values()) == {1.0} and "box_mAP_class_2" in defined and "box_mAP_class_1" not in found
    # Detections of a class without objects are of no class that counts, unless classes are not told apart.
    predictions[0] = {
        key: torch.cat([value, value[:1]])
        for key, value in predictions[0].items()
        if key in ("boxes", "labels", "scores")
    }
    predictions[0]["labels"][-1] = 1
    assert results(predictions, targets)["box_mAP"] == 1.0
    predictions[0]["scores"][-1] = 2
    assert results(predictions, targets, class_agnostic=True)["box_agnostic_mAP"] < 1.0


def test_images_without_objects_add_false_positives():
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    hit = {"boxes": ONE, "labels": torch.tensor([0]), "scores": torch.tensor([0.5])}
    target = {"boxes": ONE, "labels": torch.tensor([0])}
    found = results([hit, {**hit, "scores": torch.tensor([0.9])}], [target, nothing])
    assert found["box_AP50"] == 0.5 and found["box_AR_1"] == 1
    assert results([hit, {**hit, "scores": torch.tensor([0.5])}], [target, nothing])["box_AP50"] == 0.5  # one step
    assert results([hit, {**nothing, "scores": torch.zeros(0)}], [target, nothing])["box_AP50"] == 1
    empty = results([{**nothing, "scores": []}], [nothing])
    assert all(math.isnan(value) for value in empty.values()) and len(empty) == 13


def test_caps_hold_for_image_and_class():
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60], [80, 80, 90, 90]])
    target = {"boxes": boxes[[0, 1, 2]], "labels": torch.tensor([0, 0, 1])}
    prediction = {**target, "scores": torch.tensor([0.9, 0.8, 0.7])}
    options = {"max_detections": (1, 2), "ap_max_detections": 1}
    found = results([prediction], [target], **options)
    assert found["box_AR_1"] == 0.75 and found["box_AR_2"] == 1
    assert found["box_mAP"] == pytest.approx((51 / 101 + 1) / 2)
    found = results([prediction], [target], class_agnostic=True, **options)
    assert found["box_agnostic_AR_1"] == pytest.approx(1 / 3) and found["box_agnostic_AR_2"] == pytest.approx(2 / 3)


def test_areas_are_physical_where_a_spacing_is_given():
    target = {"boxes": torch.tensor([[0.0, 0, 0, 10, 10, 10]]), "labels": torch.tensor([0])}
    prediction = {**target, "scores": torch.tensor([0.5])}
    ranges = {"little": (0, 4000), "much": (4000, math.inf)}  # both ends included
    for spacing, little, much in (((1, 1, 4), 1, 1), ((1, 1, 4.1), None, 1), ((1, 1, 3.9), 1, None)):
        found = results([prediction], [{**target, "spacing": spacing}], area_ranges=ranges)
        assert [found["box_mAP_little"], found["box_AR_300_much"]] == pytest.approx(
            [math.nan if v is None else v for v in (little, much)], nan_ok=True
        )
    found = results([prediction], [target])
    assert found["box_mAP_small"] == 1 and math.isnan(found["box_mAP_large"]), "in 3-D small ends at 32^3 voxels"
    found = results([prediction], [{**target, "spacing": (4, 4, 4)}])
    assert found["box_mAP_medium"] == 1 and math.isnan(found["box_mAP_small"])
    stated = {**target, "spacing": (4, 4, 4), "area": [5]}
    assert results([prediction], [stated])["box_mAP_small"] == 1


def test_crowds_and_ignored_objects_count_neither_way():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 0, 40, 10], [60, 0, 70, 10]])
    target = {"boxes": boxes, "labels": torch.tensor([0, 0, 0])}
    inside = torch.tensor([[20.0, 0, 24, 10], [26, 0, 30, 10]])  # in the second box, with an IoU of 0.2
    prediction = {"boxes": torch.cat([inside, boxes[:1]]), "labels": torch.tensor([0, 0, 0])}
    prediction["scores"] = torch.tensor([0.9, 0.8, 0.7])
    plain = results([prediction], [target])
    crowd = results([prediction], [{**target, "iscrowd": [0, 1, 0], "ignore": [0, 0, 1]}])
    assert crowd["box_AP50"] == 1 and crowd["box_AR_1"] == 0 and crowd["box_AR_10"] == 1
    assert plain["box_AP50"] == pytest.approx(34 / 101 / 3)
    # An ignored object takes one detection, and only by the usual overlap.
    twice = {"boxes": boxes[[1, 1, 0]], "labels": torch.tensor([0, 0, 0]), "scores": torch.tensor([0.9, 0.8, 0.7])}
    assert results([twice], [{**target, "ignore": [0, 1, 1]}])["box_AP50"] == 0.5
    assert results([prediction], [{**target, "ignore": [0, 1, 1]}])["box_AP50"] == pytest.approx(1 / 3)


def test_names():
    predictions, targets = detections(3, 2, seed=0)
    names = list(
        results(predictions, targets, ap_thresholds=(0.05, 0.1, 0.5, 0.125), per_class=True, class_names=("node",))
    )
    assert names[:5] == ["box_mAP", "box_AP05", "box_AP10", "box_AP50", "box_AP12.5"]
    assert {"box_mAP_class_node", "box_AP10_class_1", "box_AR_300_class_node", "box_AR_300_small"} <= set(names)


def test_cropped_masks_give_what_dense_ones_do():
    predictions, targets = golden_items(json.loads(GOLDEN.read_text()))
    expected = results(predictions, targets, ("mask",))

    def cropped(item: dict) -> dict:
        crops, boxes = [], item["boxes"].clone()
        for mask, box in zip(item["masks"], boxes, strict=True):
            at = mask.nonzero()
            low, high = (at.amin(0), at.amax(0) + 1) if len(at) else (torch.zeros(2).long(), torch.ones(2).long())
            box[:2], box[2:] = low + 0.5, high.clamp(min=low + 1)
            crops.append(mask[low[0] : high[0], low[1] : high[1]])
        return {**item, "boxes": boxes, "masks": crops}

    assert results([*map(cropped, predictions)], [*map(cropped, targets)], ("mask",)) == pytest.approx(
        expected, nan_ok=True
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ("boxes",)}, "kinds must be 'box', 'mask' or both, got"),
        ({"iou_thresholds": ()}, "IoU thresholds must be numbers above 0, up to 1"),
        ({"ap_thresholds": (50,)}, "IoU thresholds must be numbers above 0, up to 1, got .*50"),
        ({"iou_thresholds": np.linspace(0.1, 0.9, 70)}, "there may be 64 IoU thresholds in all, got 72"),
        ({"max_detections": (0, 10)}, "must be integers above 0, got"),
        ({"ap_max_detections": 1.5}, "must be integers above 0, got"),
        ({"area_ranges": {"none": (2, 1)}}, "area range 'none' must be .least, most., got"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        CocoDetectionMetric(**options)
