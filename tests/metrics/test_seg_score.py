# SPDX-License-Identifier: Apache-2.0
"""SEG against its definition, object by object."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_labelfx.metrics import SegScore


def ious(prediction: np.ndarray, reference: np.ndarray) -> list[float]:
    """IoU of each reference object with the predicted object that holds more than half of its voxels, else 0."""
    result = []
    for number in np.unique(reference[reference > 0]):
        true = reference == number
        best = 0.0
        for other in np.unique(prediction[prediction > 0]):
            predicted = prediction == other
            if (predicted & true).sum() > 0.5 * true.sum():
                best = (predicted & true).sum() / (predicted | true).sum()
        result.append(best)
    return result


def maps(seed: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.repeat(rng.integers(0, 5, 30), 6)[: int(np.prod(shape))].reshape(shape)
    return np.where(rng.random(shape) < rng.uniform(0.5, 1), labels, rng.integers(0, 5)), labels


@pytest.mark.parametrize("shape", [(90,), (9, 10), (5, 6, 6)])
def test_equals_the_definition_in_both_modes(shape):
    cases = [maps(seed, shape) for seed in range(10)]
    objects = [ious(prediction, reference) for prediction, reference in cases]
    tensors = [[torch.as_tensor(case[k])[None] for case in cases] for k in (0, 1)]
    per_image, pooled = SegScore(), SegScore("pooled")
    scores = per_image(*tensors)
    np.testing.assert_allclose(scores[:, 0], [np.mean(values) for values in objects])
    assert 0.1 < scores.mean() < 0.9, "cases between nothing and all"
    assert float(per_image.aggregate()) == pytest.approx(np.mean([np.mean(values) for values in objects]))
    pooled(*tensors)
    assert float(pooled.aggregate()) == pytest.approx(np.mean(np.concatenate(objects)))


def test_half_is_not_more_than_half():
    reference = torch.tensor([[1, 1, 1, 1]])
    metric = SegScore()
    scores = metric([torch.tensor([[5, 5, 0, 0]]), torch.tensor([[5, 5, 5, 0]])], [reference, reference])
    assert scores.flatten().tolist() == [0.0, 0.75]


def test_one_object_may_cover_several():
    assert float(SegScore()([torch.tensor([[5, 5, 5, 5]])], [torch.tensor([[1, 1, 2, 2]])])) == 0.5


def test_empty_images():
    empty, one = torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.int64)
    per_image, pooled = SegScore(), SegScore("pooled")
    cases = [empty, one, empty, one], [empty, empty, one, one]
    assert per_image(*cases).flatten().tolist() == [1.0, 0.0, 0.0, 1.0]
    assert pooled(*cases).flatten().tolist() == [1.0, 0.0, 0.0, 1.0]
    assert float(per_image.aggregate()) == 0.5
    assert float(pooled.aggregate()) == 0.5, "one of two objects; images without objects add none"
    pooled.reset()
    pooled([empty], [empty])
    assert float(pooled.aggregate()) == 1.0
