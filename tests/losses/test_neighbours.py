# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import pytest
import torch

from monai_labelfx.losses._neighbours import (
    checked_logits,
    checked_region,
    fused_gradient,
    neighbour_offsets,
    pair_weights,
    reduce_classes,
    shifted,
)


@pytest.mark.parametrize("shape", [(4,), (3, 5), (1, 4), (4, 2, 3), (1, 1, 1)])
@pytest.mark.parametrize("dilation", [1, 2])
def test_every_pair_of_neighbours_comes_once(shape, dilation):
    places = list(itertools.product(*map(range, shape)))
    numbers = torch.arange(len(places)).view(1, 1, *shape)
    found = []
    for offset in neighbour_offsets(len(shape), dilation):
        first, second = (shifted(numbers, offset, sign).flatten().tolist() for sign in (-1, 1))
        found += [tuple(sorted(pair)) for pair in zip(first, second, strict=True)]
    expected = [
        (i, j)
        for i, j in itertools.combinations(range(len(places)), 2)
        if all(abs(a - b) in (0, dilation) for a, b in zip(places[i], places[j], strict=True))
    ]
    assert sorted(found) == expected


def test_weights_are_inverse_squared_distances_and_one_for_cubes():
    assert pair_weights(None, 2, 2) is None
    assert torch.allclose(pair_weights([0.7] * 3, 2, 3), torch.ones(13, 1).double())
    weights = pair_weights(torch.tensor([[1.0, 1, 1], [0.5, 1.0, 2.0]]), 2, 3)
    for offset, (cube, other) in zip(neighbour_offsets(3), weights.tolist(), strict=True):
        distance = sum((o * s / 0.5) ** 2 for o, s in zip(offset, (0.5, 1.0, 2.0), strict=True))
        assert cube == 1 and other == pytest.approx(sum(map(abs, offset)) / distance)


@pytest.mark.parametrize("spacing", [[1.0], [1.0, 0.0], [1.0, float("nan")], [[1.0, 1.0]] * 3, [1.0, -1.0], 2.0])
def test_bad_spacing(spacing):
    with pytest.raises(ValueError, match=r"spacing must be one size above 0 for each of 2 axes, or \(2, 2\)"):
        pair_weights(spacing, 2, 2)


def test_fused_gradient_is_used_in_first_order_and_the_plain_one_beyond():
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    seen = []

    def fused(z, with_gradient):
        seen.append(with_gradient)
        return z.pow(3).sum((0, 2)), 3 * z.square()

    value = fused_gradient(x, fused, lambda z: z.pow(3).sum((0, 2)))
    (gradient,) = torch.autograd.grad(value @ torch.tensor([1.0, 2, 3]).double(), x)
    assert torch.allclose(gradient, 3 * x.square() * torch.tensor([1.0, 2, 3]).view(3, 1))
    wrong = fused_gradient(x, fused, lambda z: z.sum((0, 2)))
    (second,) = torch.autograd.grad(wrong.sum(), x, create_graph=True)
    assert torch.equal(second, torch.ones_like(x))
    fused_gradient(x.detach(), fused, None)
    assert seen == [True, True, False]


def test_arguments():
    with pytest.raises(TypeError, match="floating-point logits, got torch.int64"):
        checked_logits(torch.zeros(1, 1, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\(B, C, \*spatial\), got \(4, 4\)"):
        checked_logits(torch.zeros(4, 4))
    assert checked_logits(torch.zeros(1, 1, 4, dtype=torch.float16)).dtype == torch.float32
    logits = torch.zeros(2, 3, 4, dtype=torch.float64)
    assert checked_region(None, logits) is None
    assert checked_region(torch.tensor([[[0, 2, 1, 0]]] * 2), logits).tolist() == [[[0.0, 1.0, 1.0, 0.0]]] * 2
    with pytest.raises(ValueError, match=r"region must be \(2, 3, 4\), or \(2, 1, 4\) .*got \(2, 2, 4\)"):
        checked_region(torch.ones(2, 2, 4), logits)
    assert [reduce_classes(torch.tensor([1.0, 3.0]), r).tolist() for r in ("sum", "mean", "none")] == [4, 2, [1, 3]]
