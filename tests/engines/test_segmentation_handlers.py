# SPDX-License-Identifier: Apache-2.0
"""Metrics of patch labels and objects in engines: pairs, dropped items, key metrics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import AsDiscreted

from monai_labelfx.engines.metric_handlers import PairedMetricHandler, from_instances
from monai_labelfx.engines.segmentation_handlers import PatchLabelHandler, from_components, from_patches
from monai_labelfx.metrics.object_scores import ObjectF1, ObjectHausdorff
from monai_labelfx.metrics.patch_consistency import PatchConsistency
from monai_labelfx.metrics.patch_label_score import PatchLabelScore
from monai_labelfx.metrics.segmentation_overlap import SegmentationOverlap

LABEL = torch.tensor([[[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]])
PATCHES = torch.tensor([[0, 0, 4, 2], [0, 2, 4, 2]])
TICKS = torch.tensor([[1, 1], [1, 0]], dtype=torch.int8)


def item(**others) -> dict:
    return {"pred": LABEL, "patches": PATCHES, "patch_labels": TICKS, **others}


def test_from_patches_drops_items_and_reads_batches():
    pairs = from_patches("pred", "where", "what")
    full = {"pred": 1, "where": 2, "what": 3}
    assert pairs([full, {"pred": 1, "where": 2}, {**full, "what": None}, full]) == ([1, 1], [(2, 3), (2, 3)])
    predictions, references = from_patches("pred")({key: torch.stack([part] * 2) for key, part in item().items()})
    assert len(predictions) == 2 and torch.equal(predictions[1], LABEL)
    assert torch.equal(references[1][0], PATCHES) and torch.equal(references[1][1], TICKS)
    assert from_patches("pred")([]) == ([], [])


def test_from_components():
    affine = torch.diag(torch.tensor([2.0, 2.0, 1.0]))
    prediction = LABEL.clone()
    prediction[0, 0, 3] = 1
    reference = MetaTensor(LABEL, affine=affine)
    (found,), (true,) = from_components("pred", "label", min_size=2)([{"pred": prediction, "label": reference}, {}])
    assert torch.equal(found, LABEL.int()) and torch.equal(true, LABEL.int()) and torch.equal(true.affine, affine)
    (_,), (true,) = from_components("pred", "label", min_size=2)([{"pred": LABEL, "label": prediction}])
    assert true.max() == 2, "the reference keeps its small objects"
    ringed = 2 * torch.ones(1, 3, 3)
    ringed[0, 1, 1] = 0
    case = [{"pred": ringed, "label": 40 * LABEL}]
    (found,), (true,) = from_components("pred", "label", class_index=2, fill_holes=True, label_instances=True)(case)
    assert found.eq(1).all() and true.max() == 40
    diagonal = {"pred": torch.eye(3)[None], "label": np.eye(3)[None]}
    (found,), (true,) = from_components("pred", "label", connectivity=1)([diagonal])
    assert found.max() == 3 and true.max() == 3
    with pytest.raises(ValueError, match=r"'pred' must be a class map \(1, \*spatial\), got shape \(2, 4, 4\)"):
        from_components("pred", "label")([{"pred": LABEL.expand(2, -1, -1), "label": LABEL}])


def evaluator(items: list[dict], key_metric: dict, additional: dict) -> SupervisedEvaluator:
    """Logits that are the label where it is given, in MONAI's evaluator with its postprocessing."""
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(items, batch_size=2),
        network=torch.nn.Identity(),
        postprocessing=AsDiscreted("pred", argmax=True),
        key_val_metric=key_metric,
        additional_metrics=additional,
        prepare_batch=lambda batch, *_, **__: (batch["image"], batch["image"]),
    )


def test_in_an_evaluator_of_monai():
    image = torch.cat([1.0 - LABEL, LABEL])
    items = [item(image=image, reference=LABEL), item(image=1 - image, reference=LABEL)]
    for one in items:
        del one["pred"]
    engine = evaluator(
        items,
        {"consistency": PatchLabelHandler(PatchConsistency(2), from_patches("pred"))},
        {
            "mIoU": PairedMetricHandler(SegmentationOverlap(2), output_transform=from_instances("pred", "reference")),
            "object_f1": PairedMetricHandler(ObjectF1(), output_transform=from_components("pred", "reference")),
            "hausdorff": PairedMetricHandler(ObjectHausdorff(), output_transform=from_components("pred", "reference")),
        },
    )
    engine.run()
    right, inverted = engine.state.metric_details["consistency"]
    # the inverted one has gland in both patches and no class that all labels of both kinds agree with
    assert right[1] == 1 and inverted[1] == 0.5 and right[0].isnan()
    assert engine.state.best_metric == engine.state.metrics["consistency"] == 0.75
    assert engine.state.metrics["mIoU"] == pytest.approx((12 / 28 + 4 / 20) / 2)
    assert engine.state.metrics["object_f1"] == pytest.approx(0.5)
    assert engine.state.metrics["hausdorff"] > 0


def attached(handler) -> Engine:
    engine = Engine(lambda engine, batch: batch)
    handler.attach(engine, "score")
    return engine


def test_without_enough_labels_the_metric_is_left_out():
    engine = attached(PatchLabelHandler(PatchConsistency(2), from_patches("pred")))
    assert engine.run([[item()]]).metrics == {"score": 1.0}
    with pytest.warns(UserWarning, match="'score' is left out: the patch labels do not suffice"):
        state = engine.run([[item(patch_labels=-torch.ones(2, 2))]])
    assert state.metrics == {} and "score" not in state.metric_details
    with pytest.warns(UserWarning, match="'score' is left out: no item had a prediction and a reference"):
        assert engine.run([[{"pred": LABEL}]]).metrics == {}
    engine.state.key_metric_name = "score"
    with pytest.raises(ValueError, match="PatchConsistency needs a class with present and absent patch labels"):
        engine.run([[item(patch_labels=-torch.ones(2, 2))]])


def test_scores_of_classifiers():
    engine = attached(
        PatchLabelHandler(
            PatchLabelScore(2, "average_precision"), from_instances("pred", "patch_label"), save_details=False
        )
    )
    batch = {"pred": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "patch_label": torch.tensor([[1, -1], [0, -1]])}
    assert engine.run([batch]).metrics == {"score": 1.0}
    assert not getattr(engine.state, "metric_details", {})
