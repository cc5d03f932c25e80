# SPDX-License-Identifier: Apache-2.0
"""The object scores of GlaS against loops over objects and voxels, and hand cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from monai_labelfx.metrics.object_scores import ObjectDice, ObjectF1, ObjectHausdorff

ANISOTROPIC = {1: (0.5,), 2: (0.5, 2.0), 3: (1.0, 0.7, 3.0)}


def blobs(seed: int, shape: tuple[int, ...], level: float = 0.55) -> np.ndarray:
    """Components of smooth noise, with numbers that have gaps."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.2)
    return 3 * ndimage.label(noise > np.quantile(noise, level))[0]


def pair(seed: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Objects, and a shifted copy with some of them lost and others merged."""
    rng = np.random.default_rng(seed)
    reference = blobs(seed, shape)
    prediction = np.roll(reference, rng.integers(0, 3), axis=0)
    numbers = np.unique(prediction)
    lost = rng.choice(numbers, max(1, len(numbers) // 4))
    prediction = np.where(np.isin(prediction, lost), 0, prediction)
    return np.where(prediction == numbers[-1], numbers[len(numbers) // 2], prediction), reference


def objects(labels: np.ndarray) -> list[set[tuple[int, ...]]]:
    return [set(map(tuple, np.argwhere(labels == number))) for number in np.unique(labels[labels != 0])]


def best(one: set, others: list[set]) -> list[set]:
    """The objects that overlap ``one`` most; none when none does."""
    most = max((len(one & other) for other in others), default=0)
    return [other for other in others if len(one & other) == most] if most else []


def found(predicted: list[set], true: list[set]) -> int:
    """Reference objects that are found; cases of this file have no ties."""
    hits = set()
    for one in predicted:
        for other in best(one, true):
            if 2 * len(one & other) >= len(other):
                hits.add(true.index(other))
    return len(hits)


def hausdorff(one: set, other: set, spacing) -> float:
    def distance(a, b):
        return math.dist(np.multiply(a, spacing), np.multiply(b, spacing))

    return max(max(min(distance(a, b) for b in y) for a in x) for x, y in ((one, other), (other, one)))


def dice(one: set, other: set) -> float:
    return 2 * len(one & other) / (len(one) + len(other))


def naive(cases, kind: str, spacing=None) -> tuple[list[float], float]:
    """Score of each image, and of all objects together."""
    rows = []
    for prediction, reference in cases:
        predicted, true = objects(prediction), objects(reference)
        if kind == "f1":
            rows.append((2 * found(predicted, true), len(predicted) + len(true)))
            continue
        row: list[float] = []
        for side, others in ((true, predicted), (predicted, true)):
            if kind == "dice":
                values = [max((dice(one, two) for two in best(one, others)), default=0.0) for one in side]
            else:
                values = [min(hausdorff(one, two, spacing) for two in best(one, others) or others) for one in side]
            row += [sum(v * len(one) for v, one in zip(values, side, strict=True)), sum(map(len, side))]
        rows.append(tuple(row))

    def score(row):
        return row[0] / row[1] if kind == "f1" else (row[0] / row[1] + row[2] / row[3]) / 2

    return [score(row) for row in rows], score(np.sum(rows, axis=0))


def check(build, cases, expected: tuple[list[float], float], wrap=lambda labels: labels) -> None:
    predictions, references = ([torch.as_tensor(case[side])[None] for case in cases] for side in (0, 1))
    references = [wrap(reference) for reference in references]
    images, together = expected
    for mode, mean in (("per_image", np.mean(images)), ("pooled", together)):
        metric = build(mode)
        np.testing.assert_allclose(metric(predictions, references)[:, 0], images)
        assert metric.aggregate().item() == pytest.approx(mean)
    assert abs(np.mean(images) - together) > 1e-6


@pytest.mark.parametrize("shape", [(80,), (17, 14), (9, 8, 7)])
def test_equal_loops_over_objects_and_voxels(shape):
    cases = [pair(seed, shape) for seed in range(3)]
    assert any(not best(one, objects(p)) for p, r in cases for one in objects(r)), "objects without a partner"
    check(ObjectF1, cases, naive(cases, "f1"))
    check(ObjectDice, cases, naive(cases, "dice"))
    spacing = ANISOTROPIC[len(shape)]
    check(ObjectHausdorff, cases, naive(cases, "hausdorff", np.ones(len(shape))))
    in_mm = naive(cases, "hausdorff", spacing)
    check(lambda mode: ObjectHausdorff(mode, spacing=spacing), cases, in_mm)
    affine = torch.diag(torch.tensor([*spacing, 1.0]))
    check(ObjectHausdorff, cases, in_mm, wrap=lambda labels: MetaTensor(labels, affine=affine))


def test_a_perfect_segmentation_and_numbers_of_labels():
    prediction, reference = (torch.as_tensor(labels)[None] for labels in pair(1, (17, 14)))
    for build, perfect in ((ObjectF1, 1), (ObjectDice, 1), (ObjectHausdorff, 0)):
        assert build()([reference], [reference]).item() == perfect
        value = build()([prediction], [reference])
        renamed = torch.where(prediction > 0, 1000 - prediction, 0)
        assert torch.equal(build()([renamed], [reference * 7]), value)
        assert build()([prediction.mT.contiguous()], [reference.mT.contiguous()]).item() == pytest.approx(value.item())
        deep = build()([prediction[..., None]], [reference[..., None]])
        assert deep.item() == pytest.approx(value.item()), "a volume of one slice is the slice"


def f1(prediction, reference, **keywords) -> float:
    return ObjectF1(**keywords)([torch.tensor([prediction])], [torch.tensor([reference])]).item()


def test_f1_half_an_object_is_enough():
    assert f1([1, 1, 0, 0], [5, 5, 5, 5]) == 1
    assert f1([1, 1, 0, 0], [5, 5, 5, 5], strict=True) == 0
    assert f1([1, 0, 0, 0], [5, 5, 5, 5]) == 0
    assert f1([1, 1, 1, 0], [5, 5, 5, 5], strict=True) == 1


def test_f1_only_the_object_that_is_overlapped_most_counts():
    """1 overlaps 5 most and covers 3 of its 8 voxels; that it covers all of 6 does not matter."""
    assert f1([1, 1, 1, 1, 1, 0, 0, 0, 0, 0], [6, 6, 5, 5, 5, 5, 5, 5, 5, 5]) == 0
    assert f1([1, 1, 1, 1, 1, 0, 0, 0, 0, 0], [6, 6, 5, 5, 5, 5, 5, 0, 0, 0]) == pytest.approx(2 / 3)


def test_f1_each_reference_object_is_found_once():
    assert f1([1, 1, 2, 2], [5, 5, 5, 5]) == pytest.approx(2 / 3), "two halves: one is a false positive"
    assert f1([1, 1, 1, 1], [5, 5, 6, 6]) == pytest.approx(2 / 3), "one prediction over two finds one"
    assert f1([1, 1, 1, 1, 1, 1], [5, 0, 0, 0, 0, 0]) == 1, "a huge prediction still covers it"
    # 1 overlaps 5 and 6 equally and may find either; 2 covers the other half of 5 only
    assert f1([2, 2, 1, 1, 1, 1], [5, 5, 5, 5, 6, 6]) == 1
    assert f1([2, 2, 1, 1, 1, 1], [6, 6, 6, 6, 5, 5]) == 1


def test_merged_objects_have_good_dice_of_voxels_but_bad_object_scores():
    reference = torch.zeros(1, 20, 20, dtype=torch.int64)
    reference[:, 2:18, 2:10] = 1
    reference[:, 2:18, 11:19] = 2
    merged = (reference > 0).long()
    merged[:, 2:18, 10] = 1
    assert ObjectDice()([merged], [reference]).item() < 0.7
    assert f1(merged.flatten().tolist(), reference.flatten().tolist()) == pytest.approx(2 / 3)
    assert ObjectHausdorff()([merged], [reference]).item() == 9


def test_hand_case_of_hausdorff():
    """2 lies 4 from the nearest object; 1 and 5 differ by one voxel."""
    prediction = torch.tensor([[1, 1, 0, 0, 0, 0, 2]])
    reference = torch.tensor([[5, 5, 5, 0, 0, 0, 0]])
    expected = (1 + (2 * 1 + 1 * 6) / 3) / 2
    assert ObjectHausdorff()([prediction], [reference]).item() == pytest.approx(expected)
    assert ObjectHausdorff(spacing=2)([prediction], [reference]).item() == pytest.approx(2 * expected)


def test_images_without_objects():
    empty, one = torch.zeros(1, 4, 5, dtype=torch.int64), torch.zeros(1, 4, 5, dtype=torch.int64)
    one[0, 1, 1:3] = 4
    cases = [empty, one, empty, one], [empty, empty, one, one]
    for build, expected, per_image, pooled in (
        (ObjectF1, [1, 0, 0, 1], 0.5, 0.5),
        (ObjectDice, [1, 0, 0, 1], 0.5, 0.5),
        (ObjectHausdorff, [0, 5, 5, 0], 2.5, 2.5),
    ):
        for mode, mean in (("per_image", per_image), ("pooled", pooled)):
            metric = build(mode)
            assert metric(*cases).flatten().tolist() == expected, "the diagonal is 5"
            assert metric.aggregate().item() == mean
            metric.reset()
            metric([empty], [empty])
            assert metric.aggregate().item() == expected[0]
    flat = ObjectHausdorff(spacing=(2.0, 0.25))([empty], [one])
    assert flat.item() == pytest.approx(math.hypot(6, 1))


def test_bad_input():
    ones = torch.ones(2, 3, 4, dtype=torch.int64)
    for build in (ObjectF1, ObjectDice, ObjectHausdorff):
        with pytest.raises(ValueError, match="mode must be one of .*, got 'all'"):
            build("all")
        with pytest.raises(ValueError, match=r"shape \(1, \*spatial\), got \(2, 3, 4\)"):
            build()([ones], [ones])
        with pytest.raises(ValueError, match="each of the 1 predictions, got None"):
            build()([ones])
        with pytest.raises(ValueError, match="whole numbers"):
            build()([ones[:1] * 0.5], [ones[:1]])
    for spacing in (0, (1, -1), (1, math.inf)):
        with pytest.raises(ValueError, match="spacing must be one voxel size above 0, or one per axis"):
            ObjectHausdorff(spacing=spacing)
    with pytest.raises(ValueError, match=r"one for each of 2 axes, got \(1, 2, 3\)"):
        ObjectHausdorff(spacing=(1, 2, 3))([ones[:1]], [ones[:1]])
