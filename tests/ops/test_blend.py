# SPDX-License-Identifier: Apache-2.0
"""The blender of BlendMask: the paper's formula, one bin at a time, and its limits."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from monai_labelfx.ops.blend import blend

SHAPES = [((3,), (8,)), ((2, 3), (5, 7)), ((2, 3, 2), (4, 3, 5))]


def numbers(coarse: tuple[int, ...], fine: tuple[int, ...], objects: int = 2, bases: int = 3):
    generator = torch.Generator().manual_seed(len(fine))
    attention = 2 * torch.randn(objects, bases, *coarse, generator=generator, dtype=torch.float64)
    return attention, torch.randn(objects, bases, *fine, generator=generator, dtype=torch.float64)


def at(values: torch.Tensor, bin_: tuple[int, ...], fine: tuple[int, ...]) -> float:
    """Linear interpolation of coarse values at the middle of a fine bin."""
    ends = []
    for new, full, old in zip(bin_, fine, values.shape, strict=True):
        x = min(max((new + 0.5) * old / full - 0.5, 0.0), old - 1.0)
        low = min(int(x), max(old - 2, 0))
        ends.append([(low, 1 - (x - low)), (min(low + 1, old - 1), x - low)])
    return sum(
        values[tuple(k for k, _ in corner)].item() * math.prod(w for _, w in corner)
        for corner in itertools.product(*ends)
    )


@pytest.mark.parametrize(("coarse", "fine"), SHAPES)
def test_formula(coarse, fine):
    attention, bases = numbers(coarse, fine)
    found = blend(attention, bases)
    assert found.shape == (2, *fine) and found.dtype == torch.float64
    for number in range(2):
        for bin_ in itertools.product(*map(range, fine)):
            powers = [math.exp(at(attention[number, k], bin_, fine)) for k in range(3)]
            wanted = sum(p * bases[(number, k, *bin_)].item() for k, p in enumerate(powers)) / sum(powers)
            assert found[(number, *bin_)].item() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(("coarse", "fine"), SHAPES)
def test_all_attention_to_one_base_gives_that_base(coarse, fine):
    attention, bases = numbers(coarse, fine)
    attention = torch.zeros_like(attention)
    attention[:, 1] = 1000.0
    assert torch.equal(blend(attention, bases), bases[:, 1])


@pytest.mark.parametrize(("coarse", "fine"), SHAPES)
def test_equal_bases_and_equal_attention(coarse, fine):
    attention, bases = numbers(coarse, fine)
    assert torch.allclose(blend(attention, bases[:, :1].expand_as(bases)), bases[:, 0])
    assert torch.allclose(blend(torch.ones_like(attention), bases), bases.mean(dim=1))
    assert torch.allclose(blend(attention + 7, bases), blend(attention, bases))


@pytest.mark.parametrize(("coarse", "fine"), SHAPES)
def test_flips_and_orders(coarse, fine):
    attention, bases = numbers(coarse, fine)
    found = blend(attention, bases)
    for axis in range(2, attention.ndim):
        assert torch.allclose(blend(attention.flip(axis), bases.flip(axis)), found.flip(axis - 1))
    assert torch.allclose(blend(attention.flip(1), bases.flip(1)), found)
    assert torch.allclose(blend(attention.flip(0), bases.flip(0)), found.flip(0))


def test_gradients():
    attention, bases = numbers((2, 3), (3, 4))
    assert torch.autograd.gradcheck(blend, (attention.requires_grad_(), bases.requires_grad_()))


def test_no_object_and_half_precision():
    attention, bases = torch.zeros(0, 4, 7, 7, requires_grad=True), torch.zeros(0, 4, 28, 28)
    blend(attention, bases).sum().backward()
    assert attention.grad is not None and blend(attention, bases).shape == (0, 28, 28)
    attention, bases = (tensor.half() for tensor in numbers((2, 2), (4, 4)))
    found = blend(attention, bases)
    assert found.dtype == torch.float32 and torch.equal(found, blend(attention.float(), bases.float()))


def test_bad_input_is_named():
    with pytest.raises(TypeError, match="floating point, got torch.int64"):
        blend(torch.zeros(1, 2, 3, dtype=torch.int64), torch.zeros(1, 2, 3))
    for shapes in [((2, 4, 7), (2, 3, 9)), ((2, 4, 7), (1, 4, 9)), ((2, 4, 7), (2, 4, 9, 9)), ((2, 4), (2, 4))]:
        with pytest.raises(ValueError, match=r"\(P, K, \*M\)"):
            blend(*map(torch.zeros, shapes))
