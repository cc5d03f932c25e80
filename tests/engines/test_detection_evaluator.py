# SPDX-License-Identifier: Apache-2.0
"""DetectionEvaluator: what handlers, metrics and postprocessing see of a detector's output."""

from __future__ import annotations

import gc
import inspect
import weakref

import pytest
import torch
from ignite.metrics import Average
from instance_samples import blocks_of
from monai.data import DataLoader, Dataset, MetaTensor
from monai.data.utils import no_collation
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.handlers import ValidationHandler

from monai_labelfx.detectors.window_inferer import WindowDetectionInferer
from monai_labelfx.engines.detection_evaluator import DetectionEvaluator
from monai_labelfx.engines.detection_metric_handler import DetectionMetricHandler
from monai_labelfx.engines.detection_prepare_batch import DetectionPrepareBatch
from monai_labelfx.engines.detection_trainer import DetectionTrainer
from monai_labelfx.metrics.coco_detection import CocoDetectionMetric


class Detector(torch.nn.Module):
    """Finds the bright voxels of an image as one box."""

    def __init__(self) -> None:
        super().__init__()
        self.network = torch.nn.Conv2d(1, 1, 1)
        self.seen: list[tuple] = []

    def forward(self, images, targets=None):
        kind = images[0].device.type
        self.seen.append((self.training, torch.is_grad_enabled(), torch.is_autocast_enabled(kind), len(images)))
        if self.training:
            return {"classification": self.network(images[0][None]).mean()}
        found = []
        for image in images:
            bright = (image.as_subclass(torch.Tensor)[0] > 0.5).nonzero()
            rows = [torch.cat([bright.amin(0), bright.amax(0) + 1]).float()] if len(bright) else []
            boxes = torch.stack(rows) if rows else torch.zeros(0, 2 * (image.ndim - 1))
            found.append({"boxes": boxes, "labels": torch.zeros(len(rows)).long(), "scores": torch.ones(len(rows))})
        return found


def item(box=(2, 3, 6, 9), shape=(10, 12), annotated=True) -> dict:
    axes = len(shape)
    image = torch.zeros(1, *shape)
    image[(0, *(slice(a, b) for a, b in zip(box[:axes], box[axes:], strict=True)))] = 1
    known = {"box": [list(box)], "box_label": [0]} if annotated else {}
    return {"image": MetaTensor(image, affine=2 * torch.eye(4)), "name": str(box), **known}


ITEMS = [item(), item((0, 0, 4, 4), (8, 8)), item((1, 1, 3, 2), (8, 8), annotated=False)]


def run(detector, items=ITEMS, batch=2, **options):
    loader = DataLoader(Dataset(items), batch_size=batch, collate_fn=no_collation)
    outputs: list = []
    evaluator = DetectionEvaluator("cpu", loader, detector, **options)
    evaluator.add_event_handler(IterationEvents.MODEL_COMPLETED, lambda engine: outputs.append(engine.state.output))
    evaluator.run()
    return evaluator, outputs


@pytest.mark.parametrize("items", [ITEMS, [item((1, 2, 3, 5, 6, 7), (8, 9, 8))]], ids=["2-D", "3-D"])
def test_one_dictionary_for_each_image(items):
    _, outputs = run(Detector(), items)
    results = [result for output in outputs for result in output]
    assert len(results) == len(items)
    for result, one in zip(results, items, strict=True):
        assert isinstance(result["image"], MetaTensor) and result["image"].shape == one["image"].shape
        assert torch.equal(result["image"].affine, 2 * torch.eye(4).double())
        assert result["pred"]["boxes"].shape == (1, 2 * (one["image"].ndim - 1))
        assert ("target" in result) == ("box" in one)
        if "box" in one:
            assert torch.equal(result["target"]["boxes"], result["pred"]["boxes"])


def test_evaluation_mode_without_gradients_and_back():
    detector = Detector().train()
    evaluator, _ = run(detector)
    assert detector.seen == [(False, False, False, 2), (False, False, False, 1)] and detector.training
    assert isinstance(evaluator.state.batch, list) and evaluator.state.batch[0]["name"] == "(1, 1, 3, 2)"
    run(detector, amp=True)
    assert detector.seen[-1] == (False, False, True, 1)


def test_postprocessing_and_metrics_see_items():
    def shifted(data):
        assert {"name", "image", "pred"} <= set(data)
        return {**data, "pred": {**data["pred"], "boxes": data["pred"]["boxes"] + 1}, "extra": 1}

    metric = {
        "boxes": Average(output_transform=lambda output: sum(len(one["pred"]["boxes"]) for one in output) / len(output))
    }
    evaluator, _ = run(Detector(), postprocessing=shifted, key_val_metric=metric)
    assert evaluator.state.metrics["boxes"] == 1 and evaluator.state.output[0]["extra"] == 1
    assert evaluator.state.output[0]["pred"]["boxes"].tolist() == [[2, 2, 4, 3]]


def test_windows():
    whole, windows = (run(Detector(), batch=1, inferer=inferer)[1] for inferer in (None, WindowDetectionInferer(7)))
    for (one,), (other,) in zip(whole, windows, strict=True):
        assert torch.equal(one["pred"]["boxes"], other["pred"]["boxes"])


class Masked(Detector):
    """Masks of what is bright, whole or as blocks; the label map of an item is its truth."""

    def __init__(self, form) -> None:
        super().__init__()
        self.form = form
        self.made: list[weakref.ref] = []

    def forward(self, images, targets=None):
        found = super().forward(images)
        for image, one in zip(images, found, strict=True):
            whole = (image.as_subclass(torch.Tensor) > 0.5)[: len(one["boxes"])]
            one["masks"] = whole if self.form is torch.as_tensor else self.form(whole, one["boxes"])
            self.made += [weakref.ref(mask) for mask in ([whole] if one["masks"] is whole else one["masks"])]
        return found


@pytest.mark.parametrize("form", [torch.as_tensor, blocks_of])
@pytest.mark.parametrize("shape", [(10, 12), (8, 9, 8)])
@pytest.mark.parametrize("inferer", [None, WindowDetectionInferer(7)])
def test_masks_in_both_forms_are_measured_and_not_kept(form, shape, inferer):
    boxes = [(1, 2, 4, 5), (3, 1, 6, 4), (0, 0, 3, 4), (4, 5, 8, 8)]
    boxes = boxes if len(shape) == 2 else [(*box[:2], 3, *box[2:], 5) for box in boxes]
    items = [item(box, shape) for box in boxes]
    for one in items:
        one["mask"] = (one["image"] > 0.5).as_tensor()
    kinds = CocoDetectionMetric(("box", "mask"), area_ranges={}, max_detections=(1,))
    metric = {"mask_mAP": DetectionMetricHandler(kinds, bootstrap=5)}
    detector = Masked(form)
    options = {"prepare_batch": DetectionPrepareBatch(mask_key="mask"), "inferer": inferer, "key_val_metric": metric}
    loader = DataLoader(Dataset(items), batch_size=1, collate_fn=no_collation)
    evaluator = DetectionEvaluator("cpu", loader, detector, **options)
    evaluator.run()
    names = ("box_mAP", "mask_mAP", "mask_AP50", "mask_AR_1", "mask_mAP_low", "mask_mAP_high")
    assert all(evaluator.state.metrics[name] == 1 for name in names)
    assert isinstance(evaluator.state.output[0]["pred"]["masks"], list) == (form is blocks_of)
    gc.collect()
    assert len(detector.made) >= 4 and sum(mask() is not None for mask in detector.made) <= 1, "that of the last image"


def test_not_decollated():
    evaluator, _ = run(Detector(), decollate=False)
    output = evaluator.state.output
    assert sorted(output) == ["image", "pred", "target"] and output["target"] == [None] and len(output["pred"]) == 1


def test_names_of_the_detector_become_the_usual_ones():
    class Renamed(Detector):
        target_box_key, target_label_key, pred_score_key = "box", "label", "label_scores"

        def forward(self, images):
            names = {"boxes": "box", "labels": "label", "scores": "label_scores"}
            return [{names[key]: value for key, value in one.items()} for one in super().forward(images)]

    evaluator, _ = run(Renamed())
    assert sorted(evaluator.state.output[0]["pred"]) == ["boxes", "labels", "scores"]


def test_validation_within_a_training():
    detector = Detector()
    loader = DataLoader(Dataset(ITEMS[:2]), batch_size=1, collate_fn=no_collation)
    metric = {"boxes": Average(output_transform=lambda output: len(output))}
    evaluator = DetectionEvaluator("cpu", loader, detector, key_val_metric=metric)
    optimizer = torch.optim.SGD(detector.parameters(), 0.1)
    handlers = [ValidationHandler(1, evaluator)]
    DetectionTrainer("cpu", 2, loader, detector, optimizer, train_handlers=handlers).run()
    assert [seen[0] for seen in detector.seen] == [True, True, False, False] * 2
    assert evaluator.state.epoch == 2 and evaluator.state.best_metric == 1


def test_refused():
    class Short(Detector):
        def forward(self, images):
            return super().forward(images)[1:]

    with pytest.raises(ValueError, match="one prediction for each of 2 images, got 1"):
        run(Short())
    with pytest.raises(ValueError, match="None instead of a batch"):
        DetectionEvaluator("cpu", [None], Detector()).run()


def test_vocabulary_of_the_supervised_evaluator():
    own, theirs = (inspect.signature(kind).parameters for kind in (DetectionEvaluator, SupervisedEvaluator))
    assert set(theirs) - set(own) == {"network", "mode", "compile", "compile_kwargs"}
    assert set(own) - set(theirs) == {"detector"}
    assert {n for n in set(own) & set(theirs) if own[n].default != theirs[n].default} == {"prepare_batch"}
