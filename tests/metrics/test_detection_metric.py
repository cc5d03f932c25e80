# SPDX-License-Identifier: Apache-2.0
"""The life of a detection metric: batches, refusals, reset, and several processes."""

from __future__ import annotations

import math
import os
import socket

import numpy as np
import pytest
import torch
from coco_reference import detections
from ignite import distributed as idist
from monai.data import MetaTensor

from monai_labelfx.metrics._detection_metric import mean_of_defined
from monai_labelfx.metrics._detection_tables import join
from monai_labelfx.metrics.coco_detection import CocoDetectionMetric
from monai_labelfx.metrics.froc_detection import FrocDetectionMetric

# Without ranges that no object is in, whose NaN would equal nothing.
FINE: dict = {CocoDetectionMetric: {"area_ranges": {}}, FrocDetectionMetric: {}}
METRICS = {"coco": CocoDetectionMetric, "froc": FrocDetectionMetric}


@pytest.mark.parametrize("build", METRICS.values(), ids=METRICS)
def test_batches_reset_and_what_comes_after_aggregate(build):
    predictions, targets = detections(6, 2, extra=6)
    whole, parts = build(**FINE[build]), build(**FINE[build])
    whole(predictions, targets)
    assert len(whole) == 6
    parts(predictions[:4], targets[:4])
    first = parts.aggregate()
    parts.update([], [])
    assert parts.aggregate() == first == parts.aggregate()
    parts.update(predictions[4:], tuple(targets[4:]))
    assert parts.aggregate() == whole.aggregate() != first and len(parts) == 6
    assert all(type(value) is float for value in first.values())
    parts.reset()
    assert len(parts) == 0
    with pytest.raises(ValueError, match=f"{build.__name__} has no image to aggregate: none was added since reset"):
        parts.aggregate()
    parts(predictions, targets)
    assert parts.aggregate() == whole.aggregate(), "after a reset an image_id may come again"


@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_devices_and_containers_and_inputs_are_left_alone(device):
    predictions, targets = detections(3, 2, extra=6)
    expected, metric = CocoDetectionMetric(area_ranges={}), CocoDetectionMetric(area_ranges={})
    expected(predictions, targets)
    moved = [{key: MetaTensor(value).to(device) for key, value in p.items()} for p in predictions]
    moved[0]["scores"].requires_grad_()
    plain = [{key: np.asarray(value) for key, value in t.items()} for t in targets]
    copies = [{key: value.copy() for key, value in t.items()} for t in plain]
    metric(moved, plain)
    assert metric.aggregate() == expected.aggregate()
    assert all(np.array_equal(a[key], b[key]) for a, b in zip(plain, copies, strict=True) for key in a)


def test_an_image_that_comes_twice_is_refused_and_nothing_of_its_batch_is_kept():
    predictions, targets = detections(4, 2)
    metric = CocoDetectionMetric(area_ranges={})
    metric(predictions[:2], targets[:2])
    before = metric.aggregate()
    for again in (1, torch.tensor(1), np.int64(1)):
        with pytest.raises(ValueError, match="image_id 1 came twice since reset"):
            metric(predictions[2:], [targets[2], {**targets[3], "image_id": again}])
    assert metric.aggregate() == before and len(metric) == 2
    metric(predictions[2:], targets[2:])
    assert len(metric) == 4
    anonymous = CocoDetectionMetric()
    anonymous(predictions * 2, [{k: v for k, v in t.items() if k != "image_id"} for t in targets] * 2)
    assert len(anonymous) == 8


def test_images_must_fit_together():
    predictions, targets = detections(3, 2)
    deep, deep_targets = detections(2, 2, dims=3)
    metric = CocoDetectionMetric(("box", "mask"))
    masks = [{**item, "masks": torch.ones(len(item["labels"]), 4, 5).bool()} for item in (predictions[0], targets[0])]
    with pytest.raises(ValueError, match=r"must have one spatial shape, got \(4, 5\) and \(5, 4\)"):
        metric(masks[:1], [{**masks[1], "masks": masks[1]["masks"].mT}])
    with pytest.raises(ValueError, match="target 0 of the batch has no 'masks'"):
        metric(masks[:1], targets[:1])
    metric = CocoDetectionMetric()
    metric(predictions[:1], targets[:1])
    with pytest.raises(ValueError, match="prediction and target 1 of the batch must have 2 spatial axes .*, got 3"):
        metric([predictions[1], deep[0]], [targets[1], deep_targets[0]])
    with pytest.raises(ValueError, match="either all targets must have a 'spacing' or none, but target 0"):
        metric(predictions[1:2], [{**targets[1], "spacing": (1, 1)}])
    with pytest.raises(ValueError, match="one target for each of the 2 predictions, got 1"):
        metric(predictions[:2], targets[:1])
    with pytest.raises(TypeError, match="must be lists with one dictionary per image, got dict and list"):
        metric(predictions[0], targets[:1])
    with pytest.raises(ValueError, match="'scores' of prediction 1 of the batch must be finite, got nan"):
        metric([predictions[1], {**predictions[2], "scores": predictions[2]["scores"] * math.nan}], targets[1:])
    assert len(metric) == 1


def test_names_must_be_known():
    metric = CocoDetectionMetric()
    metric(*detections(2, 2))
    chosen = metric.weighted(np.ones((3, 2)), ["box_AP50"])
    assert chosen.keys() == {"box_AP50"} and chosen["box_AP50"].shape == (3,)
    with pytest.raises(ValueError, match="'box_AP10' is no result of this metric; it has box_AP50, "):
        metric.weighted(np.ones((1, 2)), ["box_AP10"])


def test_mean_of_defined():
    nan = math.nan
    assert mean_of_defined(np.array([[[1, nan], [3, nan]], [[nan, nan], [nan, nan]]])) == pytest.approx(
        [2, nan], nan_ok=True
    )


@pytest.mark.parametrize("build", METRICS.values(), ids=METRICS)
def test_images_of_another_process_count(build, monkeypatch):
    predictions, targets = detections(5, 2, extra=6)
    whole, own, other = build(**FINE[build]), build(**FINE[build]), build(**FINE[build])
    whole(predictions, targets)
    expected = whole.aggregate()
    own(predictions[:2], targets[:2])
    other(predictions[2:], targets[2:])
    rest = other.tables()["box"]
    monkeypatch.setattr("monai_labelfx.metrics._detection_metric.gather", lambda tables: join([tables, rest]))
    assert own.aggregate() == expected and len(own) == 5
    own(predictions[4:], targets[4:])
    with pytest.raises(ValueError, match="image_id 4 came twice since reset.*also across processes"):
        own.aggregate()
    own.reset()
    deep = [
        {**item, "boxes": item["boxes"][:, [0, 1, 1, 2, 3, 3]], "image_id": "deep"}
        for item in (predictions[0], targets[0])
    ]
    own(deep[:1], deep[1:])
    with pytest.raises(ValueError, match="the processes must see images of one number of axes"):
        own.aggregate()


def _share(rank: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK="0")
    torch.set_num_threads(1)
    with idist.Parallel(backend="gloo"):
        predictions, targets = detections(5, 2, extra=6)
        for build in METRICS.values():
            for cut in (0, 2):  # a process without images, and a share each
                metric = build(**FINE[build])
                part = slice(0, cut) if rank == 0 else slice(cut, 5)
                metric(predictions[part], targets[part])
                found = metric.aggregate()
                assert len(metric) == 5
                whole = build(**FINE[build])
                if rank == 0:
                    whole(predictions, targets)
                assert whole.aggregate() == found
        metric = CocoDetectionMetric()
        metric(predictions[:1], targets[:1])
        with pytest.raises(ValueError, match="image_id 0 came twice"):
            metric.aggregate()


@pytest.mark.slow
def test_two_processes_see_one_result():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_share, args=(port,), nprocs=2)
