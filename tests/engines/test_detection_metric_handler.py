# SPDX-License-Identifier: Apache-2.0
"""The handler on ignite engines and on MONAI's evaluator."""

from __future__ import annotations

import math

import pytest
import torch
from coco_reference import detections
from ignite.engine import Engine
from monai.engines import SupervisedEvaluator

from monai_labelfx.engines.detection_metric_handler import DetectionMetricHandler, from_detections
from monai_labelfx.metrics.coco_detection import CocoDetectionMetric
from monai_labelfx.metrics.froc_detection import FrocDetectionMetric


def items(images: int, seed: int = 0, key: str = "target") -> list[dict]:
    return [{"pred": p, key: t} for p, t in zip(*detections(images, 2, seed=seed), strict=True)]


def coco(**options) -> CocoDetectionMetric:
    return CocoDetectionMetric(area_ranges={}, **options)  # without NaN: all results can be compared


def expected(made: list[dict]) -> dict[str, float]:
    metric = coco()
    metric([item["pred"] for item in made], [item["target"] for item in made])
    return metric.aggregate()


def test_all_results_of_all_batches_and_again_in_the_next_run():
    engine = Engine(lambda engine, batch: batch)
    DetectionMetricHandler(coco()).attach(engine, "coco")
    for seed in range(2):
        made = items(5, seed)
        assert engine.run([made[:2], made[2:]]).metrics == expected(made)


def test_two_handlers_beside_each_other():
    made = items(4)
    engine = Engine(lambda engine, batch: batch)
    DetectionMetricHandler(coco()).attach(engine, "coco")
    DetectionMetricHandler(coco(class_agnostic=True)).attach(engine, "agnostic")
    DetectionMetricHandler(FrocDetectionMetric(), prefix="val_").attach(engine, "froc")
    metrics = engine.run([made]).metrics
    assert {"box_mAP", "box_agnostic_mAP", "box_AR_300", "val_box_CPM"} <= set(metrics) and "coco" not in metrics
    assert metrics.items() >= expected(made).items()


def test_intervals():
    made = items(6)
    engine = Engine(lambda engine, batch: batch)
    DetectionMetricHandler(coco(), bootstrap=20, prefix="val_").attach(engine, "coco")
    metrics = engine.run([made]).metrics
    for name, value in expected(made).items():
        assert metrics[f"val_{name}"] == value
        assert metrics[f"val_{name}_low"] <= value <= metrics[f"val_{name}_high"]
    assert metrics["val_box_mAP_low"] < metrics["val_box_mAP_high"] and len(metrics) == 3 * len(expected(made))
    with pytest.raises(ValueError, match="bootstrap must be a number of replicates, 0 for none, got -1"):
        DetectionMetricHandler(bootstrap=-1)


@pytest.mark.parametrize("key", ["target", "label"])
def test_evaluator_keeps_the_best(key):
    class Echo(torch.nn.Module):
        def forward(self, x):
            return x

    made = items(4, key=key)

    def step(engine, batch):
        return batch

    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=[made[:3], made[3:]],
        network=Echo(),
        iteration_update=step,
        decollate=False,
        key_val_metric={"box_mAP": DetectionMetricHandler(coco())},
        additional_metrics={"froc": DetectionMetricHandler(FrocDetectionMetric())},
    )
    evaluator.run()
    whole = expected([{"pred": item["pred"], "target": item[key]} for item in made])
    assert evaluator.state.best_metric == whole["box_mAP"] and evaluator.state.metrics["box_AP50"] == whole["box_AP50"]
    assert "box_CPM" in evaluator.state.metrics


def test_targets_may_lie_in_the_batch():
    made = items(3)
    engine = Engine(lambda engine, batch: [{"pred": item["pred"]} for item in made])
    DetectionMetricHandler(coco()).attach(engine, "coco")
    assert engine.run([[{"target": item["target"], "label": 3} for item in made]]).metrics == expected(made)


def test_key_metrics_must_be_defined():
    engine = Engine(lambda engine, batch: batch)
    DetectionMetricHandler(coco()).attach(engine, "coco")
    engine.state.key_metric_name = "coco"
    with pytest.raises(ValueError, match="must be called as one of box_mAP, .*, got 'coco'"):
        engine.run([items(1)])
    engine = Engine(lambda engine, batch: batch)
    DetectionMetricHandler().attach(engine, "box_mAP")
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "scores": torch.zeros(0)}
    assert math.isnan(engine.run([[{"pred": nothing, "target": nothing}]]).metrics["box_mAP"])
    engine.state.key_metric_name = "box_mAP"
    with pytest.raises(ValueError, match="'box_mAP' is not defined: the targets of the run have no such object"):
        engine.run([[{"pred": nothing, "target": nothing}]])
    engine = Engine(lambda engine, batch: batch)
    DetectionMetricHandler().attach(engine, "box_mAP")
    engine.state.key_metric_name = "box_mAP"
    with pytest.raises(ValueError, match="no image to aggregate"):
        engine.run([[]])


def test_a_run_without_images_leaves_the_results_out():
    engine = Engine(lambda engine, batch: batch)
    DetectionMetricHandler(coco()).attach(engine, "coco")
    assert "box_mAP" in engine.run([items(2)]).metrics
    with pytest.warns(UserWarning, match="the results of 'coco' are left out: no image was evaluated"):
        assert not engine.run([[]]).metrics


def test_what_is_no_list_of_detections():
    with pytest.raises(TypeError, match="must be a list with one dictionary per image, got dict"):
        from_detections()({"pred": 1})
    with pytest.raises(
        ValueError, match=r"under 'pred' and under one of \('target', 'label'\); its keys are \['pred'\]"
    ):
        from_detections()([{"pred": {}}])
    assert from_detections("p", ("t",))([{"p": {1: 2}, "t": {3: 4}}]) == ([{1: 2}], [{3: 4}])
