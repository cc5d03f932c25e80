# SPDX-License-Identifier: Apache-2.0
"""Replicates against metrics of copied images, seeds, and coverage."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch
from coco_reference import detections

from monai_labelfx.metrics.coco_detection import CocoDetectionMetric
from monai_labelfx.metrics.detection_bootstrap import detection_bootstrap
from monai_labelfx.metrics.froc_detection import FrocDetectionMetric


def filled(build, predictions: list[dict], targets: list[dict]):
    metric = build()
    metric(predictions, targets)
    return metric


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("build", [CocoDetectionMetric, FrocDetectionMetric])
def test_a_weighting_is_the_metric_of_copied_images(build, ties):
    predictions, targets = detections(6, 3, seed=1, objects=2, extra=5)
    targets = [{k: v for k, v in t.items() if k != "image_id"} for t in targets]
    if ties:
        for prediction in predictions:
            prediction["scores"] = (prediction["scores"] * 4).round()
    metric = filled(build, predictions, targets)
    drawn = np.random.default_rng(0).integers(6, size=(8, 6))
    weights = np.stack([np.bincount(row, minlength=6) for row in drawn]).astype(float)
    weights[0] = 1
    values = metric.weighted(weights)
    assert {name: value[0] for name, value in values.items()} == pytest.approx(metric.aggregate(), nan_ok=True)
    for b in range(1, 8):
        expected = filled(build, [predictions[i] for i in drawn[b]], [targets[i] for i in drawn[b]]).aggregate()
        assert {name: value[b] for name, value in values.items()} == pytest.approx(expected, nan_ok=True, abs=1e-12)


def test_seeds_chunks_and_order(monkeypatch):
    predictions, targets = detections(7, 2, seed=2)
    metric = filled(CocoDetectionMetric, predictions, targets)
    names = ["box_AP50", "box_AR_10"]
    first = detection_bootstrap(metric, names, replicates=50)
    assert first == detection_bootstrap(metric, names, replicates=50)
    assert first != detection_bootstrap(metric, names, replicates=50, seed=1)
    assert first["box_AP50"] == detection_bootstrap(metric, "box_AP50", replicates=50)["box_AP50"]
    order = np.random.default_rng(0).permutation(7)
    turned = filled(CocoDetectionMetric, [predictions[i] for i in order], [targets[i] for i in order])
    assert detection_bootstrap(turned, names, replicates=50) == first, "image_ids tell the order"
    # By its module: the package may show the function under this name.
    monkeypatch.setattr(importlib.import_module("monai_labelfx.metrics.detection_bootstrap"), "_CHUNK", 1)
    assert detection_bootstrap(metric, names, replicates=50) == first


def test_the_interval_is_that_of_a_proportion():
    """One object per image, found in 60 of 100: the standard error of a proportion is known."""
    box, label = torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([0])
    metric = CocoDetectionMetric(max_detections=(1,))
    for image in range(100):
        metric(
            [{"boxes": box + 50 * (image >= 60), "labels": label, "scores": torch.rand(1)}],
            [{"boxes": box, "labels": label}],
        )
    found = detection_bootstrap(metric, "box_AR_1", replicates=2000)["box_AR_1"]
    error = math.sqrt(0.6 * 0.4 / 100)
    assert found.mean == pytest.approx(0.6, abs=0.005)
    assert [found.low, found.high] == pytest.approx([0.6 - 1.96 * error, 0.6 + 1.96 * error], abs=0.012)
    narrow = detection_bootstrap(metric, "box_AR_1", replicates=2000, confidence=0.5)["box_AR_1"]
    assert found.low < narrow.low < narrow.high < found.high


def test_undefined_results_and_bad_arguments():
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}
    metric = filled(CocoDetectionMetric, [{**empty, "scores": torch.zeros(0)}], [empty])
    assert all(map(math.isnan, detection_bootstrap(metric, "box_mAP", replicates=3)["box_mAP"]))
    with pytest.raises(ValueError, match="replicates must be above 0, got 0"):
        detection_bootstrap(metric, "box_mAP", replicates=0)
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1, got 95"):
        detection_bootstrap(metric, "box_mAP", confidence=95)
    with pytest.raises(ValueError, match="'mAP' is no result of this metric"):
        detection_bootstrap(metric, "mAP")
    with pytest.raises(ValueError, match="CocoDetectionMetric has no image to resample"):
        detection_bootstrap(CocoDetectionMetric(), "box_mAP")
