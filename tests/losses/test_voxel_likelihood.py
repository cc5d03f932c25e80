# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from monai_labelfx.losses._voxel_likelihood import (
    checked_voxels,
    log_likelihood,
    reduce_voxels,
    voxel_class_weights,
)


def example(dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn((2, 3, 4, 5), generator=draw, dtype=dtype)
    return logits.requires_grad_(), torch.randint(0, 3, (2, 1, 4, 5), generator=draw)


def test_log_likelihood_is_minus_cross_entropy_with_its_gradients():
    logits, labels = example()
    ours, theirs = (
        log_likelihood(logits.flatten(2), labels.flatten(1)),
        -F.cross_entropy(logits, labels[:, 0], reduction="none").flatten(1),
    )
    torch.testing.assert_close(ours, theirs)
    upstream = torch.arange(40.0, dtype=torch.float64).view(2, 20)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits, upstream)[0] for x in (ours, theirs)))
    at = labels.flatten(1)
    assert torch.autograd.gradcheck(lambda x: log_likelihood(x.flatten(2), at), logits)
    assert torch.autograd.gradgradcheck(lambda x: log_likelihood(x.flatten(2), at), logits)


def test_log_likelihood_of_huge_logits_is_finite():
    logits = torch.tensor([[[1e4, -1e30], [-1e4, 1e30]]], requires_grad=True)
    found = log_likelihood(logits, torch.tensor([[1, 0]]))
    found.sum().backward()
    assert found.tolist() == [[-2e4, pytest.approx(-2e30)]] and logits.grad.isfinite().all()


@pytest.mark.parametrize("ignore", [0, 2, 255, -100])
def test_ignored_voxels_are_named_and_get_a_safe_class(ignore):
    logits, labels = example()
    mask = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    labels = torch.where(mask, ignore, torch.where(labels == ignore, 1, labels))
    voxels = checked_voxels(logits, labels, ignore)
    assert torch.equal(voxels.ignored, mask.flatten(1)) and (voxels.classes[voxels.ignored] == 0).all()
    assert torch.equal(voxels.classes[~voxels.ignored], labels.flatten(1)[~voxels.ignored])
    assert voxels.shape == (2, 1, 4, 5) and checked_voxels(logits, labels, None).ignored is None


def test_targets_of_any_number_and_half_precision_logits():
    logits, labels = example(torch.float32)
    for dtype in (torch.uint8, torch.float16, torch.float64, torch.bool):
        voxels = checked_voxels(logits.to(torch.bfloat16), labels.to(dtype), None)
        assert voxels.logits.dtype == torch.float32 and voxels.classes.dtype == torch.int64
        assert torch.equal(voxels.classes, labels.to(dtype).long().flatten(1))


def test_reductions_divide_by_the_number_and_survive_none():
    log_p, weights = torch.tensor([[-1.0, -2, -3]]), torch.tensor([[2.0, 0, 1]])
    shape = torch.Size((1, 1, 3))
    assert reduce_voxels(log_p, weights, 3, shape, "none").tolist() == [[[2, 0, 3]]]
    assert reduce_voxels(log_p, weights, 3, shape, "sum") == 5
    assert reduce_voxels(log_p, weights, torch.tensor(4), shape, "mean") == 1.25
    assert reduce_voxels(log_p, 0 * weights, torch.tensor(0), shape, "mean") == 0


def test_class_weights_are_looked_up():
    logits, labels = example()
    voxels = checked_voxels(logits, labels, None)
    for weight in ([1, 2, 5], (1.0, 2.0, 5.0), torch.tensor([1.0, 2, 5])):
        found = voxel_class_weights(weight, voxels)
        assert found.dtype == torch.float64
        assert torch.equal(found, torch.tensor([1.0, 2, 5], dtype=torch.float64)[voxels.classes])
    assert voxel_class_weights(None, voxels) is None
    with pytest.raises(ValueError, match=r"one number for each of 3 classes, got \(4,\)"):
        voxel_class_weights([1, 2, 3, 4], voxels)


@pytest.mark.parametrize(
    ("input", "target", "error", "message"),
    [
        (torch.zeros(1, 2, 3), [[[0, 1, 0]]], TypeError, "target must be a tensor of class indices, got list"),
        (torch.zeros(1, 2, 3), torch.zeros(1, 1, 3, dtype=torch.complex64), TypeError, "got torch.complex64"),
        (torch.zeros(1, 2, 3).int(), torch.zeros(1, 1, 3), TypeError, "input must be .* logits, got torch.int32"),
        (torch.zeros(1, 2), torch.zeros(1, 1), ValueError, r"input must be logits \(B, C, \*spatial\), got \(1, 2\)"),
        (torch.zeros(1, 1, 3), torch.zeros(1, 1, 3), ValueError, r"at least 2 classes, got \(1, 1, 3\)"),
        (torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), ValueError, r"target must be class indices \(1, 1, 3\)"),
        (torch.zeros(1, 2, 0), torch.zeros(1, 1, 0), ValueError, r"at least one voxel, got \(1, 2, 0\)"),
    ],
)
def test_bad_arguments_are_named(input, target, error, message):
    with pytest.raises(error, match=message):
        checked_voxels(input, target, None)
