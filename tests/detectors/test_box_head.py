# SPDX-License-Identifier: Apache-2.0
"""The head of R-CNN: its numbers against matrices, and the order of its outputs."""

from __future__ import annotations

import pytest
import torch

from monai_labelfx.detectors._box_head import BoxHead
from monai_labelfx.networks.torchvision_weights import load_torchvision_weights


@pytest.mark.parametrize("bins", [(3, 2), (2, 3, 1)])
def test_logits_and_numbers_of_each_class(bins):
    torch.manual_seed(0)
    head, pooled = BoxHead(4, bins, 6, 2).double(), torch.randn(5, 4, *bins, dtype=torch.double)
    logits, numbers = head(pooled)
    sides = 2 * len(bins)
    assert logits.shape == (5, 3) and numbers.shape == (5, 3, sides)
    for row in range(5):
        hidden = (head.fc6.weight @ pooled[row].reshape(-1) + head.fc6.bias).clamp(min=0)
        hidden = (head.fc7.weight @ hidden + head.fc7.bias).clamp(min=0)
        assert torch.allclose(logits[row], head.cls_score.weight @ hidden + head.cls_score.bias)
        for label in range(3):
            own = slice(label * sides, (label + 1) * sides)
            assert torch.allclose(numbers[row, label], head.bbox_pred.weight[own] @ hidden + head.bbox_pred.bias[own])


def test_weights_at_the_start():
    torch.manual_seed(0)
    head = BoxHead(8, (4, 4), 512, 30)
    assert head.cls_score.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert head.bbox_pred.weight.std().item() == pytest.approx(0.001, rel=0.05)
    assert not head.cls_score.bias.any() and not head.bbox_pred.bias.any()


def test_no_box_still_reaches_every_parameter():
    head = BoxHead(4, (3, 2), 6, 2)
    logits, numbers = head(torch.zeros(0, 4, 3, 2))
    assert logits.shape == (0, 3) and numbers.shape == (0, 3, 4)
    (logits.sum() + numbers.sum()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_half_precision_gives_the_dtype_of_what_was_pooled():
    logits, numbers = BoxHead(4, (3, 2), 6, 2).bfloat16()(torch.ones(2, 4, 3, 2))
    assert logits.dtype == numbers.dtype == torch.float32


@pytest.mark.parametrize("transpose", [True, False])
def test_published_weights_see_pictures_with_rows_first(transpose):
    torch.manual_seed(0)
    published, own = BoxHead(4, (2, 3), 6, 2), BoxHead(4, (3, 2) if transpose else (2, 3), 6, 2)
    assert load_torchvision_weights(own, published.state_dict(), transpose=transpose) == []
    pooled = torch.randn(5, 4, 2, 3)  # rows, columns
    for one, two in zip(own(pooled.transpose(2, 3) if transpose else pooled), published(pooled), strict=True):
        assert torch.allclose(one, two, atol=1e-6)
