# SPDX-License-Identifier: Apache-2.0
"""Scores of patch labels against formulas by hand and loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_labelfx.metrics.patch_label_score import PatchLabelScore

SCORES = ("log_likelihood", "average_precision", "balanced_accuracy")


def table(patches: int = 40, classes: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits with many equal ones, and labels of which some are unknown."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, 2, (patches, classes))
    logits = np.round(rng.normal(size=labels.shape) + 0.8 * labels, 1 if seed else 0)
    return torch.as_tensor(logits), torch.as_tensor(labels)


def naive(logits, labels, score: str) -> list[float]:
    result = []
    for column, truth in zip(np.asarray(logits).T, np.asarray(labels).T, strict=True):
        known = [(x, t) for x, t in zip(column.tolist(), truth.tolist(), strict=True) if t >= 0]
        present, absent = [x for x, t in known if t], [x for x, t in known if not t]
        if score == "log_likelihood":
            logs = [math.log(1 / (1 + math.exp(-x if t else x))) for x, t in known]
            result.append(np.mean(logs) if logs else math.nan)
        elif not present or not absent:
            result.append(math.nan)
        elif score == "balanced_accuracy":
            result.append((np.mean([x > 0 for x in present]) + np.mean([x <= 0 for x in absent])) / 2)
        else:  # the area of steps under the curve, one point per different logit
            area, recall = 0.0, 0.0
            for threshold in sorted({x for x, _ in known}, reverse=True):
                hits = sum(x >= threshold for x in present)
                precision = hits / (hits + sum(x >= threshold for x in absent))
                area += (hits / len(present) - recall) * precision
                recall = hits / len(present)
            result.append(area)
    return result


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("seed", range(3))
def test_equals_loops(score, seed):
    logits, labels = table(seed=seed)
    metric = PatchLabelScore(3, score)
    for part in (slice(0, 7), slice(7, 8), slice(8, None)):
        metric(logits[part], labels[part])
    np.testing.assert_allclose(metric.aggregate("mean_batch"), naive(logits, labels, score))
    mean = np.mean(naive(logits, labels, score))
    if score == "log_likelihood":  # of labels, not of classes
        mean = naive(logits.reshape(-1, 1), labels.reshape(-1, 1), score)[0]
    assert metric.aggregate().item() == pytest.approx(mean)


def value(score: str, logits, labels) -> float:
    metric = PatchLabelScore(1, score)
    metric(torch.tensor(logits)[:, None], torch.tensor(labels)[:, None])
    return metric.aggregate().item()


def test_hand_cases():
    assert value("average_precision", [4.0, 3.0, 2.0, 1.0], [1, 0, 1, 0]) == pytest.approx((1 + 2 / 3) / 2)
    assert value("average_precision", [1.0, 1.0, 1.0, 1.0], [1, 0, 0, 0]) == 0.25, "equal logits: the share of present"
    assert value("average_precision", [1.0, 1.0, 0.0], [0, 1, 0]) == value(
        "average_precision", [1.0, 1.0, 0.0], [1, 0, 0]
    )
    assert value("average_precision", [math.inf, math.inf, 0.0], [0, 1, 0]) == 0.5
    assert value("balanced_accuracy", [1.0, -1.0, 2.0, -3.0], [1, 1, 1, 0]) == pytest.approx((2 / 3 + 1) / 2)
    assert value("balanced_accuracy", [9.0, 9.0, 9.0], [1, 1, 0]) == 0.5, "always 'present'"
    assert value("log_likelihood", [0.0, 0.0, 50.0], [1, 0, -1]) == pytest.approx(math.log(0.5))
    assert value("log_likelihood", [math.inf, -200.0], [1, 1]) == -100


def test_is_the_negative_of_cross_entropy():
    logits, labels = table()
    metric = PatchLabelScore(3)
    metric(logits, labels)
    known = labels >= 0
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits[known], labels[known].double())
    assert metric.aggregate().item() == pytest.approx(-loss.item())


def test_details_lists_and_dtypes():
    logits, labels = table()
    metric = PatchLabelScore(3, "average_precision")
    details = metric([MetaTensor(one.half()) for one in logits], [one.numpy().astype(np.int8) for one in labels])
    assert details.shape == (40, 3) and torch.equal(details.isnan(), labels < 0)
    torch.testing.assert_close(metric.get_buffer(), details, equal_nan=True)
    assert not logits.requires_grad and type(details) is torch.Tensor
    trained = PatchLabelScore(3)(logits.requires_grad_(), labels)
    assert not trained.requires_grad


@pytest.mark.parametrize("score", SCORES)
def test_classes_without_what_the_score_needs_are_left_out(score):
    logits, labels = table()
    labels[:, 1] = -1
    metric = PatchLabelScore(3, score)
    metric(logits, labels)
    assert metric.aggregate("mean_batch").isnan().tolist() == [False, True, False] and metric.defined()
    assert torch.isfinite(metric.aggregate())
    metric.reset()
    labels[:] = 1
    metric(logits, labels)
    assert metric.defined() == (score == "log_likelihood")
    if score != "log_likelihood":
        with pytest.raises(ValueError, match=f"{score} needs a class with present and absent labels.* in 40 patches"):
            metric.aggregate()
    metric.reset()
    assert not metric.defined()
    metric(logits, torch.full_like(labels, -1))
    with pytest.raises(ValueError, match=f"{score} needs a .*, but there is none in 40 patches"):
        metric.aggregate()


def test_bad_input():
    with pytest.raises(ValueError, match="1 or above, got 0"):
        PatchLabelScore(0)
    with pytest.raises(ValueError, match="score must be one of .*, got 'auc'"):
        PatchLabelScore(2, "auc")
    metric = PatchLabelScore(2)
    logits, labels = torch.zeros(3, 2), torch.ones(3, 2)
    with pytest.raises(ValueError, match=r"y_pred must have the shape \(B, 2\).*, got \(3, 1\)"):
        metric(logits[:, :1], labels)
    with pytest.raises(ValueError, match=r"y must have the shape \(B, 2\).*, got None"):
        metric(logits)
    with pytest.raises(ValueError, match="each of the 3 patches, got 2"):
        metric(logits, labels[:2])
    with pytest.raises(ValueError, match="y_pred must hold logits, got NaN"):
        metric(logits * torch.nan, labels)
    with pytest.raises(ValueError, match="1 present, 0 absent and -1 unknown, got values from 2 to 2"):
        metric(logits, 2 * labels)
