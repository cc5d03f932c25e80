# SPDX-License-Identifier: Apache-2.0
"""Pairs of masks for MONAI's Dice and the surface distance, with several classes, over whole volumes."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.metrics import DiceMetric
from monai.transforms import Activationsd

from monai_labelfx.engines import PairedMetricHandler
from monai_labelfx.engines.box_threshold import BoxThreshold
from monai_labelfx.engines.from_probabilities import from_probabilities
from monai_labelfx.engines.surface_distance_handler import PhysicalSurfaceDistanceHandler


def dice(one: torch.Tensor, two: torch.Tensor) -> float:
    return float(2 * (one & two).sum() / (one.sum() + two.sum()))


def item(classes: int = 3, seed: int = 0, shape=(6, 5, 4)):
    generator = torch.Generator().manual_seed(seed)
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
    label = torch.randint(0, classes + 1, (1, *shape), generator=generator)
    probabilities = torch.rand(classes, *shape, generator=generator)
    return {"pred": MetaTensor(probabilities), "label": MetaTensor(label, affine=affine)}


def run(handler, batches, name="score"):
    engine = Engine(lambda engine, batch: batch)
    handler.attach(engine, name)
    return engine.run(batches)


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_dice_of_several_classes_is_the_mean_over_classes_and_volumes(threshold):
    items = [item(3, seed) for seed in range(4)]
    expected = [
        [dice(i["pred"][c] > threshold, i["label"][0] == c + 1) for c in range(3)]
        for i in ({k: v.as_tensor() for k, v in i.items()} for i in items)
    ]
    handler = PairedMetricHandler(
        DiceMetric(), output_transform=from_probabilities("pred", "label", threshold, classes=3)
    )
    state = run(handler, [items[:1], items[1:]])
    torch.testing.assert_close(state.metric_details["score"], torch.tensor(expected))
    assert state.metrics["score"] == pytest.approx(torch.tensor(expected).mean().item())


def test_dice_counts_an_empty_prediction_as_0_and_leaves_absent_classes_out():
    label = torch.tensor([[[1, 1, 0, 0]]])
    items = [{"pred": torch.tensor([[[0.1, 0.1, 0.1, 0.1]], [[0.9, 0.1, 0.1, 0.1]]]), "label": label}]
    handler = PairedMetricHandler(DiceMetric(), output_transform=from_probabilities("pred", "label", classes=2))
    assert run(handler, [items]).metrics["score"] == 0, "MONAI drops the class without reference"


def test_the_threshold_is_read_anew_for_each_batch():
    threshold = BoxThreshold(0.9)
    pairs = from_probabilities("pred", "label", threshold)
    one = {"pred": torch.tensor([[0.4, 0.6]]), "label": torch.tensor([[1, 0]])}
    assert pairs([one])[0][0].tolist() == [[0, 0]]
    threshold.value = 0.4
    assert pairs([one])[0][0].tolist() == [[0, 1]], "above the threshold, not at it"


def test_masks_keep_their_metadata_and_are_floats():
    (prediction,), (reference,) = from_probabilities("pred", "label", classes=3)([item()])
    assert prediction.dtype == reference.dtype == torch.float32 and reference.shape == (3, 6, 5, 4)
    assert isinstance(reference, MetaTensor) and reference.pixdim.tolist() == [2, 3, 4]
    assert torch.equal(
        from_probabilities("p", "l")([{"p": torch.tensor([[0.3]]).half(), "l": [[1]]}])[1][0], torch.ones(1, 1)
    )


def test_items_without_reference_are_dropped():
    items = [{**item(), "has_label": False}, {**item(), "has_label": True}, {"pred": item()["pred"], "has_label": True}]
    predictions, references = from_probabilities("pred", "label", classes=3, has_label_key="has_label")(items)
    assert len(predictions) == len(references) == 1


def test_in_monais_evaluator_with_dice_at_both_thresholds_and_the_distance():
    image = torch.full((1, 6, 6), -4.0)
    image[:, 2:4, 2:4] = -1.0  # 0.27
    label = torch.zeros(1, 6, 6)
    label[:, 2:4, 2:4] = 1
    affine = torch.diag(torch.tensor([2.0, 2.0, 1.0]))
    data = [{"image": MetaTensor(image, affine=affine), "label": MetaTensor(label, affine=affine)} for _ in range(3)]
    threshold = BoxThreshold(0.2)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(data), batch_size=2),
        network=torch.nn.Identity(),
        postprocessing=Activationsd("pred", sigmoid=True),
        key_val_metric={
            "Dice": PairedMetricHandler(DiceMetric(), output_transform=from_probabilities("pred", "label", threshold))
        },
        additional_metrics={
            "Dice_at_half": PairedMetricHandler(DiceMetric(), output_transform=from_probabilities("pred", "label")),
            "ASSD": PhysicalSurfaceDistanceHandler(output_transform=from_probabilities("pred", "label", threshold)),
            "ASSD_at_half": PhysicalSurfaceDistanceHandler(output_transform=from_probabilities("pred", "label")),
        },
    )
    evaluator.run()
    metrics = evaluator.state.metrics
    assert metrics["Dice"] == 1 and metrics["Dice_at_half"] == 0 and metrics["ASSD"] == 0
    assert metrics["ASSD_not_computed"] == 0 and metrics["ASSD_at_half_not_computed"] == 3


def test_bad_items_are_named():
    pairs = from_probabilities("pred", "label", classes=2)
    with pytest.raises(ValueError, match=r"'pred' must have one channel per class, 2, got shape \(3, 6, 5, 4\)"):
        pairs([item(3)])
    bad = item(2)
    bad["label"] = bad["label"] + 1
    with pytest.raises(ValueError, match="'label' must hold class indices .* classes=2, got shape .* numbers up to 3"):
        pairs([bad])
    with pytest.raises(ValueError, match="'label' must hold class indices"):
        pairs([{**item(2), "label": torch.zeros(2, 6, 5, 4)}])
    with pytest.raises(KeyError, match="has no flag 'has_label'"):
        from_probabilities("pred", "label", has_label_key="has_label")([item(1)])
