# SPDX-License-Identifier: Apache-2.0
"""Instance AP against a naive Hungarian reference, and its conventions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from monai_labelfx.metrics import IOU_THRESHOLDS, InstanceAveragePrecision

THRESHOLDS = (0.05, 0.2, 0.3, 1 / 3, 0.5, 0.55, 0.75, 1.0)


def naive(prediction: np.ndarray, reference: np.ndarray, threshold: float, strict: bool = False) -> float:
    """Dense IoU of all pairs, Hungarian assignment with the number of pairs first."""
    rows, columns = (np.unique(labels[labels > 0]) for labels in (prediction, reference))
    if not len(rows) and not len(columns):
        return 1.0
    reached = np.zeros((len(rows), len(columns)))
    for i, a in enumerate(rows):
        for j, b in enumerate(columns):
            both, either = ((prediction == a) & (reference == b)).sum(), ((prediction == a) | (reference == b)).sum()
            reached[i, j] = both / either > threshold if strict else both / either >= threshold
    hits = reached[linear_sum_assignment(-reached)].sum()
    return hits / (len(rows) + len(columns) - hits)


def maps(shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Runs of labels and a copy with some runs merged, shifted or dropped, so that many IoUs lie between 0 and 1."""
    rng = np.random.default_rng(seed)
    first = np.repeat(rng.integers(0, 6, 60), rng.integers(1, 5, 60))[: int(np.prod(shape))]
    second = np.roll(rng.permutation(6)[first], rng.integers(0, 3))
    return first.reshape(shape), np.where(rng.random(first.shape) < 0.9, second, 0).reshape(shape)


@pytest.mark.parametrize("shape", [(60,), (6, 10), (3, 4, 5)])
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("seed", range(15))
def test_equals_the_naive_reference(shape, strict, seed):
    prediction, reference = maps(shape, seed)
    metric = InstanceAveragePrecision(THRESHOLDS, strict=strict)
    scores = metric(torch.as_tensor(prediction)[None, None], torch.as_tensor(reference)[None, None])
    expected = [naive(prediction, reference, threshold, strict) for threshold in THRESHOLDS]
    np.testing.assert_allclose(scores[0], expected, rtol=0, atol=1e-12)
    assert float(metric.aggregate()) == pytest.approx(np.mean(expected))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40),
    st.sampled_from((0.1, 0.25, 0.5, 0.6)),
    st.booleans(),
)
def test_equals_the_naive_reference_on_small_lines(voxels, threshold, strict):
    prediction, reference = np.array(voxels).T
    score = InstanceAveragePrecision(threshold, strict=strict)(
        torch.as_tensor(prediction)[None, None], torch.as_tensor(reference)[None, None]
    )
    assert float(score) == pytest.approx(naive(prediction, reference, threshold, strict))


def test_pooled_counts_over_images():
    cases = [maps((6, 10), seed) for seed in range(5)]
    predictions, references = ([torch.as_tensor(case[k])[None] for case in cases] for k in (0, 1))
    metric = InstanceAveragePrecision(mode="pooled")
    metric(predictions, references)
    # Images side by side, labels made different, are one image with the same counts.
    side = [torch.cat([labels + 10 * k * (labels > 0) for k, labels in enumerate(half)], -1) for half in
            (predictions, references)]  # fmt: skip
    assert float(metric.aggregate()) == pytest.approx(float(InstanceAveragePrecision()([side[0]], [side[1]])))


def test_the_threshold_itself_counts_unless_strict():
    prediction, reference = torch.tensor([[1, 1, 1, 0, 0]]), torch.tensor([[1, 1, 1, 1, 1]])
    for threshold in (0.6, 0.5 + 0.05 * 2):  # 0.6000000000000001 in the second case
        assert float(InstanceAveragePrecision(threshold)([prediction], [reference])) == 1.0
        assert float(InstanceAveragePrecision(threshold, strict=True)([prediction], [reference])) == 0.0


def test_two_halves_at_one_half_match_once():
    prediction, reference = torch.tensor([[1, 1, 2, 2]]), torch.tensor([[3, 3, 3, 3]])
    assert float(InstanceAveragePrecision(0.5)([prediction], [reference])) == 0.5
    assert float(InstanceAveragePrecision(0.5, strict=True)([prediction], [reference])) == 0.0


def test_empty_images():
    empty, one = torch.zeros(1, 4, 4, dtype=torch.int64), torch.zeros(1, 4, 4, dtype=torch.int64)
    one[0, 1, 1] = 7
    metric = InstanceAveragePrecision(IOU_THRESHOLDS)
    scores = metric([empty, one, empty, one], [empty, empty, one, one])
    assert scores.mean(1).tolist() == [1.0, 0.0, 0.0, 1.0], "false positives on an empty image cost all of it"
    pooled = InstanceAveragePrecision(mode="pooled")
    pooled([empty], [empty])
    assert float(pooled.aggregate()) == 1.0
    pooled([one, one], [empty, one])
    assert float(pooled.aggregate()) == 0.5


def test_huge_sparse_labels_and_permutations_change_nothing():
    prediction, reference = (torch.as_tensor(labels)[None] for labels in maps((6, 10), 3))
    huge = torch.tensor([0, 2**62, 5, 2**50, 99, 2**33])
    score = InstanceAveragePrecision(IOU_THRESHOLDS)(
        [huge[prediction], prediction.flip(1)], [huge.flip(0)[5 - reference], reference.flip(1)]
    )
    assert torch.equal(score[0], score[1])


def test_ten_thresholds():
    assert IOU_THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
    assert InstanceAveragePrecision([0.5 + 0.05 * k for k in range(10)]).thresholds == IOU_THRESHOLDS


@pytest.mark.parametrize("thresholds", [0, 1.01, -0.5, [], [0.5, 2.0], float("nan")])
def test_bad_thresholds(thresholds):
    with pytest.raises(ValueError, match="thresholds must be one or more numbers above 0, up to 1, got"):
        InstanceAveragePrecision(thresholds)
