# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from monai_labelfx.cams._pixel_correlation import PixelCorrelation, correlate


def naive(scores, embeddings):
    """Voxel by voxel."""
    out = torch.zeros_like(scores)
    for x, e, y in zip(scores.flatten(2), embeddings.flatten(2), out.flatten(2), strict=True):
        for q in range(x.shape[1]):
            weights = []
            for k in range(x.shape[1]):
                cosine = (e[:, k] @ e[:, q]) / (e[:, k].norm() * e[:, q].norm())
                weights.append(max(float(cosine), 0.0))
            y[:, q] = sum(w * x[:, k] for k, w in enumerate(weights)) / (sum(weights) + 1e-5)
    return out


@pytest.mark.parametrize("shape", [(7,), (4, 5), (3, 2, 4)])
def test_is_the_weighted_mean(shape):
    scores = torch.randn(2, 3, *shape, dtype=torch.float64)
    embeddings = torch.randn(2, 4, *shape, dtype=torch.float64)
    torch.testing.assert_close(correlate(scores, embeddings), naive(scores, embeddings))


@pytest.mark.parametrize("rows", [1, 3, 7, 23, 24])
def test_blocks_change_neither_result_nor_gradient(rows):
    scores = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    embeddings = torch.randn(2, 5, 4, 6, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    found = []
    for mebibytes in (256.0, (rows + 0.5) * 8 * 2 * 24 / 2**20):
        refined = correlate(scores, embeddings, mebibytes=mebibytes)
        found.append([refined, *torch.autograd.grad(refined, [scores, embeddings], cotangent)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_gradient_is_that_of_differences():
    scores = torch.randn(1, 2, 5, dtype=torch.float64, requires_grad=True)
    embeddings = torch.randn(1, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, e: correlate(x, e, mebibytes=1e-4), (scores, embeddings))


class _Largest(TorchDispatchMode):
    """The largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(one, torch.Tensor):
                self.elements = max(self.elements, one.numel())
        return result


def test_memory_is_bounded_forward_and_backward():
    scores, embeddings = torch.randn(2, 2, 10, 10, 10), torch.randn(2, 4, 10, 10, 10, requires_grad=True)
    with _Largest() as whole:
        correlate(scores, embeddings).sum().backward()
    assert whole.elements == 2 * 1000**2
    kept = []
    with (
        _Largest() as blocks,
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t),
    ):
        refined = correlate(scores, embeddings, mebibytes=0.1)
    with _Largest() as back:
        refined.sum().backward()
    assert max(blocks.elements, back.elements) <= 0.1 * 2**20 / 4
    assert max(kept) <= 10000


def test_voxels_alike_share_their_scores_and_strangers_keep_theirs():
    embeddings = torch.eye(3).repeat(1, 2)[None]  # six voxels, three pairs
    scores = torch.arange(6.0)[None, None]
    torch.testing.assert_close(
        correlate(scores, embeddings), torch.tensor([[[1.5, 2.5, 3.5, 1.5, 2.5, 3.5]]]), atol=1e-4, rtol=0
    )
    assert correlate(torch.ones(1, 1, 6), torch.zeros(1, 3, 6)).tolist() == [[[0.0] * 6]]  # nothing looks like nothing


def test_float32_under_autocast():
    scores, embeddings = torch.randn(1, 2, 4, 4), torch.randn(1, 3, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = correlate(scores.bfloat16(), embeddings)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, correlate(scores.bfloat16().float(), embeddings))


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 5)])
def test_the_module_learns_and_nothing_before_it(shape):
    module = PixelCorrelation(len(shape), 4, 2, width=8)
    scores, features, image = (torch.randn(2, c, *shape, requires_grad=True) for c in (3, 4, 2))
    refined = module(scores, features, image)
    assert refined.shape == scores.shape
    refined.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in module.parameters())
    assert scores.grad is features.grad is image.grad is None
    assert not torch.equal(module(scores, features, image + image.flip(2)), refined)
