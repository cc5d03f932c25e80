# SPDX-License-Identifier: Apache-2.0
"""IoU and Dice of classes against plain counting, MONAI's confusion matrix and hand cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.metrics import ConfusionMatrixMetric, DiceMetric, MeanIoU
from monai.networks import one_hot

from monai_labelfx.metrics.segmentation_overlap import SegmentationOverlap

SHAPES = [(40,), (9, 8), (5, 6, 4)]


def maps(shape, classes: int = 3, images: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Class maps (images, 1, *shape) of unlike composition and a disturbed copy of each."""
    rng = np.random.default_rng(seed)
    weights = (0.1 + rng.dirichlet(np.ones(classes), images)) / (1 + 0.1 * classes)
    labels = np.stack([rng.choice(classes, (1, *shape), p=weight) for weight in weights])
    keep = rng.random(labels.shape) < rng.uniform(0.3, 1, (images, *[1] * (len(shape) + 1)))
    return torch.as_tensor(np.where(keep, labels, rng.integers(0, classes, labels.shape))), torch.as_tensor(labels)


def counted(prediction, reference, classes: int, score: str) -> list[float]:
    """The score of each class by a loop over voxels, NaN where it is nowhere."""
    pairs = list(zip(np.ravel(prediction).tolist(), np.ravel(reference).tolist(), strict=True))
    result = []
    for number in range(classes):
        both = sum(p == number and r == number for p, r in pairs)
        predicted, true = sum(p == number for p, _ in pairs), sum(r == number for _, r in pairs)
        below = predicted + true - both if score == "iou" else (predicted + true) / 2
        result.append(both / below if below else math.nan)
    return result


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("score", ["iou", "dice", "f1"])
def test_equals_counting_pooled_and_per_image(shape, score):
    predictions, references = maps(shape)
    expected = np.array([counted(p, r, 3, score) for p, r in zip(predictions, references, strict=True)])
    for mode in ("pooled", "per_image"):
        metric = SegmentationOverlap(3, score, mode=mode)
        np.testing.assert_allclose(metric(predictions, references), expected)
        np.testing.assert_allclose(metric.get_buffer(), expected)
    assert metric.aggregate().item() == pytest.approx(np.mean(expected))
    pooled = SegmentationOverlap(3, score)
    pooled([predictions[0], predictions[1]], [references[0], references[1]])
    pooled(predictions[2:], references[2:])
    expected = counted(predictions, references, 3, score)
    np.testing.assert_allclose(pooled.aggregate("mean_batch"), expected)
    assert pooled.aggregate().item() == pytest.approx(np.mean(expected))
    assert pooled.aggregate() != metric.aggregate(), "images of unlike composition"


@pytest.mark.parametrize(("score", "name"), [("iou", "threat score"), ("f1", "f1 score")])
def test_pooled_equals_the_confusion_matrix_of_monai(score, name):
    predictions, references = maps((12, 11), classes=4)
    theirs = ConfusionMatrixMetric(metric_name=name, compute_sample=False, reduction="sum_batch")
    theirs(one_hot(predictions, 4), one_hot(references, 4))
    ours = SegmentationOverlap(4, score)
    ours(predictions, references)
    np.testing.assert_allclose(ours.aggregate("mean_batch"), theirs.aggregate()[0], rtol=1e-6)


@pytest.mark.parametrize(("score", "theirs"), [("iou", MeanIoU), ("dice", DiceMetric)])
def test_per_image_equals_the_metrics_of_monai(score, theirs):
    predictions, references = maps((12, 11))
    for background in (True, False):
        other = theirs(include_background=background, reduction="mean")
        other(one_hot(predictions, 3), one_hot(references, 3))
        ours = SegmentationOverlap(3, score, mode="per_image", include_background=background)
        ours(predictions, references)
        assert ours.aggregate().item() == pytest.approx(other.aggregate().item(), rel=1e-6)


def test_dice_is_measured():
    """The mean Dice is not what the mean IoU m would give, 2 m / (1 + m)."""
    scores = {}
    for score in ("iou", "dice", "f1"):
        metric = SegmentationOverlap(2, score)
        metric([torch.tensor([[0, 0, 0, 0]])], [torch.tensor([[0, 0, 1, 1]])])
        scores[score] = metric.aggregate().item()
    assert scores == pytest.approx({"iou": 1 / 4, "dice": 1 / 3, "f1": 1 / 3})
    assert 2 * scores["iou"] / (1 + scores["iou"]) == pytest.approx(0.4)


def test_a_missed_class_counts_0_and_an_absent_one_nothing():
    gland, none = torch.tensor([[0, 0, 1, 1]]), torch.zeros(1, 4, dtype=torch.int64)
    for mode, mean, classes in (
        ("pooled", (10 / 12 + 0) / 2, [10 / 12, 0]),
        ("per_image", (0.25 + 1 + 1) / 3, [(0.5 + 1 + 1) / 3, 0]),
    ):
        metric = SegmentationOverlap(2, mode=mode)
        assert metric([none], [gland]).tolist() == [[0.5, 0.0]], "a complete miss"
        empty = metric([none, none], [none, none])
        assert empty[:, 0].tolist() == [1, 1] and empty[:, 1].isnan().all()
        assert metric.aggregate().item() == pytest.approx(mean)
        np.testing.assert_allclose(metric.aggregate("mean_batch"), classes)
        only = SegmentationOverlap(2, mode=mode, include_background=False)
        assert only([none, none], [gland, none])[0].tolist() == [0.0]
        assert only.aggregate().item() == 0
        only.reset()
        only([none], [none])
        assert only.aggregate().isnan(), "no class has a score"
    metric = SegmentationOverlap(2, include_background=False)
    assert metric([gland], [none]).item() == 0, "a false alarm"
    assert MeanIoU(include_background=False)(one_hot(gland[None], 2), one_hot(none[None], 2)).isnan(), "MONAI's is none"


@pytest.mark.parametrize("ignored", [255, -1])
def test_ignored_voxels_count_nowhere(ignored):
    predictions, references = maps((6, 7))
    marked = references.clone()
    marked[..., :3] = ignored
    whole, part = SegmentationOverlap(3, ignore_index=ignored), SegmentationOverlap(3)
    np.testing.assert_array_equal(whole(predictions, marked), part(predictions[..., 3:], references[..., 3:]))
    prediction = predictions.clone()
    prediction[..., :3] = 0
    np.testing.assert_array_equal(whole(prediction, marked), part(predictions[..., 3:], references[..., 3:]))
    undecided = predictions.clone()  # a pseudo mask, scored where it decides
    undecided[..., :3] = ignored
    np.testing.assert_array_equal(whole(undecided, references), part(predictions[..., 3:], references[..., 3:]))
    marked[:] = ignored
    assert whole(predictions, marked).isnan().all()


def test_batches_lists_dtypes_and_metatensors_agree():
    predictions, references = maps((6, 7))
    expected = SegmentationOverlap(3)(predictions, references)
    floats = [MetaTensor(one.float()) for one in predictions]
    assert torch.equal(SegmentationOverlap(3)(floats, [one.numpy().astype(np.uint8) for one in references]), expected)
    swapped = SegmentationOverlap(3)(references, predictions)
    assert torch.equal(swapped, expected), "prediction and reference may change places"
    assert torch.equal(SegmentationOverlap(3)(predictions.flip(-1), references.flip(-1)), expected)
    assert type(expected) is torch.Tensor


def test_bad_input():
    for keywords, found in (
        ({"classes": 1}, "at least one class more, got 1"),
        ({"classes": 2, "score": "accuracy"}, "score must be one of .*, got 'accuracy'"),
        ({"classes": 2, "mode": "all"}, "mode must be one of .*, got 'all'"),
        ({"classes": 3, "ignore_index": 2}, "none of the classes 0 to 2, got 2"),
    ):
        with pytest.raises(ValueError, match=found):
            SegmentationOverlap(**keywords)
    metric = SegmentationOverlap(2)
    ones = torch.ones(1, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="y must hold classes from 0 to 1, got 255"):
        metric([ones], [255 * ones])
    with pytest.raises(ValueError, match="y_pred must hold classes from 0 to 1, got 2"):
        metric([2 * ones], [ones])
    with pytest.raises(ValueError, match="y_pred must hold whole numbers"):
        metric([0.5 * ones], [ones])
    with pytest.raises(ValueError, match=r"shape \(1, \*spatial\), got \(2, 4\)"):
        metric([ones.expand(2, 4)], [ones.expand(2, 4)])
    with pytest.raises(ValueError, match="SegmentationOverlap has no image to aggregate"):
        metric.aggregate()
    metric([ones], [ones])
    with pytest.raises(ValueError, match="got 'sum'"):
        metric.aggregate("sum")
