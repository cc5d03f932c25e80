# SPDX-License-Identifier: Apache-2.0
"""The sparse contingency table against counting pair by pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_labelfx.metrics.overlap import label_overlap

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(1, 40), (1, 9, 8), (1, 4, 5, 6)])
@pytest.mark.parametrize("seed", range(4))
def test_counts(device, shape, seed):
    rng = np.random.default_rng(seed)
    numbers = np.array([0, 3, 70_000, 2**40, 2**62])
    first, second = (numbers[rng.integers(0, 5, shape) * (rng.random(shape) < 0.7)] for _ in range(2))
    overlap = label_overlap(torch.as_tensor(first, device=device), torch.as_tensor(second, device=device))
    rows, columns = (np.unique(labels[labels > 0]) for labels in (first, second))
    assert overlap.predicted_sizes.tolist() == [int((first == a).sum()) for a in rows]
    assert overlap.true_sizes.tolist() == [int((second == b).sum()) for b in columns]
    table = np.zeros((len(rows), len(columns)), int)
    table[overlap.predicted, overlap.true] = overlap.shared
    assert table.tolist() == [[int(((first == a) & (second == b)).sum()) for b in columns] for a in rows]
    assert (overlap.shared > 0).all()
    iou = [((first == rows[p]) & (second == columns[t])).sum() / ((first == rows[p]) | (second == columns[t])).sum()
           for p, t in zip(overlap.predicted, overlap.true, strict=True)]  # fmt: skip
    np.testing.assert_allclose(overlap.iou, iou)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint64, torch.int32, torch.float32, torch.bool])
def test_label_types_may_differ(dtype):
    prediction = torch.tensor([[0, 1, 1, 0]]).to(dtype)
    overlap = label_overlap(prediction, torch.tensor([[0, 1, 1, 1]]))
    assert overlap.shared.tolist() == [2] and overlap.true_sizes.tolist() == [3]


def test_empty_maps():
    empty, full = torch.zeros(1, 4, 4, dtype=torch.int64), torch.ones(1, 4, 4, dtype=torch.int64)
    for first, second, sizes in ((empty, empty, ([], [])), (empty, full, ([], [16])), (full, empty, ([16], []))):
        overlap = label_overlap(first, second)
        assert (overlap.predicted_sizes.tolist(), overlap.true_sizes.tolist()) == sizes
        assert not len(overlap.shared) and not len(overlap.iou)


def test_errors_say_what_is_wrong():
    labels = torch.ones(1, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"one shape, got \(1, 4\) and \(1, 3\)"):
        label_overlap(labels, labels[:, :3])
    with pytest.raises(ValueError, match="reference must hold 0"):
        label_overlap(labels, -labels)
    with pytest.raises(TypeError, match="prediction must be a tensor"):
        label_overlap([1], labels)
