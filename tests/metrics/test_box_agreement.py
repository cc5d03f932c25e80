# SPDX-License-Identifier: Apache-2.0
"""Agreement of boxes against a brute-force reference that tries every assignment."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from monai_labelfx.metrics.box_agreement import box_agreement


def iou(one: np.ndarray, two: np.ndarray) -> float:
    ndim = len(one) // 2
    shared = np.prod([max(0.0, min(one[ndim + a], two[ndim + a]) - max(one[a], two[a])) for a in range(ndim)])
    sizes = [np.prod(box[ndim:] - box[:ndim]) for box in (one, two)]
    return float(shared / (sum(sizes) - shared))


def weight(box: np.ndarray, weights: str) -> float:
    ndim = len(box) // 2
    return float(np.prod(box[ndim:] - box[:ndim])) if weights == "volume" else 1.0


def naive(probabilities, boxes, labels, threshold, min_size, weights) -> tuple[float, float, float]:
    """Each component and each assignment in plain loops."""
    matched, predicted = 0.0, 0
    for channel, image in enumerate(probabilities.numpy()):
        parts, count = ndimage.label(image > threshold, np.ones((3,) * image.ndim))
        found = []
        for number in range(1, count + 1):
            places = np.argwhere(parts == number)
            if len(places) >= min_size:
                found.append(np.concatenate([places.min(0), places.max(0) + 1]))
        given = boxes.numpy()[labels.numpy() == channel]
        predicted += sum(weight(box, weights) for box in found)
        few, many = (given, found) if len(given) <= len(found) else (found, given)
        matched += max(
            sum(
                iou(a, many[i]) * (weight(a, weights) + weight(many[i], weights)) / 2
                for a, i in zip(few, pick, strict=True)
            )
            for pick in itertools.permutations(range(len(many)), len(few))
        )
    return matched, sum(weight(box, weights) for box in boxes.numpy()), predicted


def scene(shape, classes: int, seed: int):
    """Smooth probabilities with a few components, and a few boxes anywhere."""
    rng = np.random.default_rng(seed)
    noise = np.stack([ndimage.gaussian_filter(rng.normal(size=shape), 1.5) for _ in range(classes)])
    values = 1 / (1 + np.exp(-6 * noise / noise.std()))
    low = np.stack([rng.integers(0, n - 3, 4) for n in shape], 1)
    boxes = np.concatenate([low, low + rng.integers(1, 4, low.shape)], 1).astype(np.float32)
    return torch.tensor(values).float(), torch.tensor(boxes), torch.tensor(rng.integers(0, classes, 4))


@pytest.mark.parametrize("shape", [(24,), (16, 14), (9, 8, 10)])
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("min_size", [0, 4])
@pytest.mark.parametrize("weights", ["volume", "count"])
def test_equals_brute_force(shape, classes, min_size, weights):
    thresholds = [0.9, 0.97, 0.995, 0.999]
    several = 0
    for seed in range(4):
        probabilities, boxes, labels = scene(shape, classes, seed)
        result = box_agreement(probabilities, boxes, labels, thresholds=thresholds, min_size=min_size, weights=weights)
        for row, threshold in zip(result, thresholds, strict=True):
            expected = naive(probabilities, boxes, labels, threshold, min_size, weights)
            assert row.tolist() == pytest.approx(expected), (seed, threshold)
            several += row[2] > 1
    assert several > 1


def agreement(*args, **options) -> torch.Tensor:
    """With all boxes alike, which is easier to count by hand."""
    return box_agreement(*args, weights="count", **options)


def test_a_speck_costs_its_volume():
    mask = torch.zeros(1, 12, 12)
    mask[0, 2:6, 2:6] = 1
    mask[0, 9, 9] = 1
    box, label = torch.tensor([[2.0, 2, 6, 6]]), torch.tensor([0])
    assert box_agreement(mask, box, label)[0].tolist() == [16, 16, 17]


def test_the_assignment_is_the_best_one_not_the_greedy_one():
    boxes = torch.tensor([[0, 0, 1, 10], [0, 10, 1, 14]])
    mask = torch.zeros(1, 1, 20)
    mask[0, 0, 3:10] = 1  # 0.7 with the first box
    mask[0, 0, 11:20] = 1  # 0.3 with the second
    matched, given, predicted = agreement(mask, boxes, torch.tensor([0, 0]))[0].tolist()
    assert (matched, given, predicted) == (pytest.approx(0.7 + 0.3), 2, 2)


def test_specks_and_missed_boxes_cost_and_one_prediction_serves_one_box():
    box = torch.tensor([[2.0, 2, 6, 6]])
    mask = torch.zeros(1, 12, 12)
    mask[0, 2:6, 2:6] = 1
    label = torch.tensor([0])

    def score(mask, boxes):
        matched, given, predicted = agreement(mask, boxes, label.expand(len(boxes)))[0]
        return float(2 * matched / (given + predicted))

    assert score(mask, box) == 1
    assert score(mask, torch.cat([box, box])) == pytest.approx(2 / 3), "the second box has no prediction of its own"
    assert score(mask, torch.cat([box, box + 5])) == pytest.approx(2 / 3)
    mask[0, 9, 9] = 1
    assert score(mask, box) == pytest.approx(2 / 3)
    assert agreement(mask, box, label, min_size=2)[0].tolist() == [1, 1, 1]


def test_classes_do_not_help_each_other():
    mask = torch.zeros(2, 6, 6)
    mask[1, 1:4, 1:4] = 1
    box = torch.tensor([[1, 1, 4, 4]])
    assert agreement(mask, box, torch.tensor([0]))[0].tolist() == [0, 1, 1]
    assert agreement(mask, box, torch.tensor([1]))[0].tolist() == [1, 1, 1]


def test_a_voxel_at_the_threshold_is_not_above_it():
    probabilities = torch.tensor([[[0.5, 0.25]]])
    result = agreement(probabilities, torch.tensor([[0, 0, 1, 1]]), torch.tensor([0]), thresholds=[0.5, 0.25, 0.2])
    assert result[:, 2].tolist() == [0, 1, 1] and result[:, 0].tolist() == [0, 1, 0.5]


def test_connectivity():
    mask = torch.eye(3)[None]
    box, label = torch.tensor([[0, 0, 3, 3]]), torch.tensor([0])
    assert agreement(mask, box, label)[0].tolist() == [1, 1, 1]
    assert agreement(mask, box, label, connectivity=1)[0].tolist() == [pytest.approx(1 / 9), 1, 3]


def test_padding_nothing_and_order():
    probabilities, boxes, labels = scene((16, 14), 2, 7)
    padded = torch.cat([boxes, torch.zeros(3, 4)]), torch.cat([labels, torch.full((3,), -1)])
    thresholds = [0.6, 0.2, 1.0, 0.6]
    result = agreement(probabilities, boxes, labels, thresholds=thresholds)
    assert torch.equal(agreement(probabilities, *padded, thresholds=thresholds), result)
    assert torch.equal(result[0], result[3]) and result[2].tolist() == [0, 4, 0]
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(agreement(probabilities, boxes[order], labels[order], thresholds=thresholds), result)
    none = agreement(torch.zeros(2, 5, 5), torch.zeros(0, 4), torch.zeros(0))
    assert none.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("axis", [1, 2])
def test_flips(axis):
    probabilities, boxes, labels = scene((16, 14), 2, 3)
    thresholds = [0.3, 0.8]
    turned = boxes.clone()
    size = probabilities.shape[axis]
    turned[:, axis - 1], turned[:, axis + 1] = size - boxes[:, axis + 1], size - boxes[:, axis - 1]
    torch.testing.assert_close(
        agreement(probabilities.flip(axis), turned, labels, thresholds=thresholds),
        agreement(probabilities, boxes, labels, thresholds=thresholds),
    )


def test_types_of_tensors():
    probabilities, boxes, labels = scene((16, 14), 2, 3)
    expected = agreement(probabilities > 0.5, boxes, labels)
    found = agreement(MetaTensor((probabilities > 0.5).half()).requires_grad_(), MetaTensor(boxes), labels.int())
    assert torch.equal(found, expected) and type(found) is torch.Tensor and found.dtype == torch.float64


@pytest.mark.parametrize(
    ("boxes", "labels", "words"),
    [
        (torch.zeros(1, 6), torch.tensor([0]), "boxes must be"),
        (torch.zeros(1, 4), torch.tensor([0, 1]), "2 labels"),
        (torch.tensor([[0, 0, 2, 2]]), torch.tensor([1]), "channels from 0 to 0, or -1 for padding, got 1"),
        (torch.tensor([[0, 0, 2, 2]]), torch.tensor([-2]), "got -2"),
        (torch.tensor([[0, 3, 2, 2]]), torch.tensor([0]), r"high corner above its low one, got \[0.0, 3.0, 2.0, 2.0\]"),
        (torch.tensor([[0, 0, 2, torch.nan]]), torch.tensor([0]), "must be finite"),
    ],
)
def test_bad_input_is_named(boxes, labels, words):
    with pytest.raises(ValueError, match=words):
        agreement(torch.zeros(1, 8, 8), boxes, labels)
