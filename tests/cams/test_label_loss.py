# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from monai_labelfx.cams._label_loss import label_loss


def naive(logits, labels, weights):
    known = [
        -w * math.log(1 / (1 + math.exp(-z))) if y else -math.log(1 - 1 / (1 + math.exp(-z)))
        for z, y, w in zip(logits.flatten().tolist(), labels.flatten().tolist(), weights, strict=True)
        if y >= 0
    ]
    return sum(known) / len(known)


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 2)])
def test_is_the_mean_over_what_is_known(shape):
    logits = 3 * torch.randn(shape, dtype=torch.float64)
    labels = torch.randint(-1, 2, shape, dtype=torch.int8)
    weights = torch.rand(shape[-1], dtype=torch.float64) + 0.5
    every = weights.expand(shape).flatten().tolist()
    assert label_loss(logits, labels, weights).item() == pytest.approx(naive(logits, labels, every))
    assert label_loss(logits, labels).item() == pytest.approx(naive(logits, labels, [1.0] * len(every)))


def test_what_is_unknown_has_no_gradient():
    logits = torch.tensor([[1.0, -2.0, 1e30]], requires_grad=True)
    label_loss(logits, torch.tensor([[1, -1, -1]])).backward()
    assert logits.grad[0, 0] != 0 and not logits.grad[0, 1:].any()


def test_nothing_known_is_zero_and_stays_attached():
    logits = torch.randn(2, 3, requires_grad=True)
    loss = label_loss(logits, torch.full((2, 3), -1))
    loss.backward()
    assert loss == 0 and logits.grad.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    logits = torch.tensor([[60000.0, -30.0]]).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = label_loss(logits, torch.tensor([[0, 1]]))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, (logits[0, 0].float() + 30) / 2)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"the shape of the logits, \(2, 3\), got \(2, 1\)"):
        label_loss(torch.zeros(2, 3), torch.zeros(2, 1))
