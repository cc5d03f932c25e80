# SPDX-License-Identifier: Apache-2.0
"""Terms of bags by plain sums against logarithms, tables against all ways to split, gradients against autograd."""

from __future__ import annotations

import math

import pytest
import torch

from monai_labelfx.ops import _bag_sums
from monai_labelfx.ops._bag_sums import bag_tables, bag_terms, linear_terms
from monai_labelfx.ops.smooth_maxima import add_smooth_max_terms, smooth_max_terms

KINDS = ("softmax", "quasimax", "power_mean")


def random_bags(voxels: int, number: int, longest: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Bags (number, longest) of different voxels, shortest first, and their sizes."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.randint(1, longest + 1, (number,), generator=generator).sort().values
    bags = torch.stack([torch.randperm(voxels, generator=generator)[:longest] for _ in range(number)])
    return bags.masked_fill(torch.arange(longest) >= size[:, None], -1), size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [0.5, 6.0, 30.0])
def test_linear_terms_are_the_exponentials_of_terms(kind, alpha):
    logits = torch.linspace(-20, 20, 41, dtype=torch.float64)
    expected = smooth_max_terms(logits, kind=kind, alpha=alpha).exp()
    torch.testing.assert_close(linear_terms(logits, kind, alpha), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("sizes", [[3], [2, 2, 2], [1, 1, 5], [1, 4, 5, 5], [1, 2, 3, 9, 9], list(range(1, 20))])
def test_tables_hold_all_bags_with_the_least_padding(sizes):
    bags = torch.full((len(sizes), max(sizes) + 2), -1)
    for row, size in enumerate(sizes):
        bags[row, :size] = 100 * row + torch.arange(size)
    tables = bag_tables(bags, torch.tensor(sizes))
    found = [[index - 1 for index in row if index] for table in tables for row in table.tolist()]
    assert found == [[index for index in row if index >= 0] for row in bags.tolist()]
    least = min(n * sizes[n - 1] + (len(sizes) - n) * sizes[-1] for n in range(1, len(sizes) + 1))
    assert sum(table.numel() for table in tables) == least and len(tables) <= 2
    assert bag_tables(bags[:0], torch.tensor(sizes[:0])) == []


@pytest.mark.parametrize("kind", [*KINDS, "max"])
@pytest.mark.parametrize("alpha", [6.0, 1e3])
def test_terms_of_bags_are_those_of_their_voxels(kind, alpha):
    """Twice: plain sums, and with alpha 1,000 logarithms."""
    crops = torch.randn(2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    bags, size = random_bags(40, 12, 9)
    nowhere = torch.zeros(crops.shape, dtype=torch.bool)
    found = bag_terms(crops, nowhere, [(None, bag_tables(bags, size))], kind, alpha)
    terms = smooth_max_terms(crops, kind=kind, alpha=alpha).flatten(1)
    expected = torch.stack([add_smooth_max_terms(terms[:, bag[bag >= 0]]) for bag in bags], 1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    weight = torch.rand(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    gradients = [
        torch.autograd.grad((weight * values).sum(), crops, retain_graph=True)[0] for values in (found, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", [*KINDS, "max"])
@pytest.mark.parametrize("underflow", [1e-30, math.inf])
def test_reduced_maps_leave_padding_out(kind, underflow, monkeypatch):
    monkeypatch.setattr(_bag_sums, "_UNDERFLOW", underflow)  # infinite: always in logarithms
    crops = torch.randn(2, 3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    padding = torch.zeros(crops.shape, dtype=torch.bool)
    padding[1, :, :, 1:] = padding[1, 2:] = True
    crops[padding] = 50.0
    crops.requires_grad_()
    views = []
    for axis, sides in enumerate([[(0, 4), (0, 2)], [(0, 3), (0, 2)], [(0, 3), (0, 4)]]):
        columns = sides[1][1]
        row = torch.arange(columns)  # the first row of the first map, the first voxel of the second
        second = sides[0][1] * columns
        bags = torch.stack((torch.where(row == 0, second, -1), row))
        views.append((axis, bag_tables(bags, torch.tensor([1, columns]))))
    found = bag_terms(crops, padding, views, kind, 5.0)
    terms = smooth_max_terms(crops, kind=kind, alpha=5.0)
    expected = [
        add_smooth_max_terms(terms[:, 1, :2, 0, 0]),
        add_smooth_max_terms(terms[:, 0, :, 0], dim=(0, 1)),
        add_smooth_max_terms(terms[:, 1, 0, :, 0]),
        add_smooth_max_terms(terms[:, 0, 0], dim=(0, 1)),
        terms[:, 1, 0, 0, 0],
        add_smooth_max_terms(terms[:, 0, 0], dim=(0, 1)),
    ]
    torch.testing.assert_close(found, torch.stack(expected, 1), rtol=1e-9, atol=1e-9)
    (gradient,) = torch.autograd.grad(found.sum(), crops)
    assert (gradient[padding] == 0).all() and gradient.isfinite().all()


@pytest.mark.parametrize("kind", [*KINDS, "max"])
def test_gradients_to_the_second_order(kind):
    crops = torch.randn(1, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_()
    tables = bag_tables(*random_bags(12, 7, 6))

    def values(crops):
        return bag_terms(crops, torch.zeros(crops.shape, dtype=torch.bool), [(None, tables)], kind, 4.0)

    assert torch.autograd.gradcheck(values, crops) and torch.autograd.gradgradcheck(values, crops)


def test_one_of_equal_maxima_has_the_gradient():
    crops = torch.zeros(1, 2, 3).requires_grad_()
    tables = bag_tables(torch.tensor([[1, -1, -1], [3, 4, 5]]), torch.tensor([1, 3]))
    bag_terms(crops, torch.zeros(crops.shape, dtype=torch.bool), [(None, tables)], "max", 1.0).sum().backward()
    assert crops.grad.flatten().tolist() == [0, 1, 0, 1, 0, 0]


@pytest.mark.parametrize("kind", [*KINDS, "max"])
def test_no_bags(kind):
    crops = torch.zeros(1, 2, 3).requires_grad_()
    found = bag_terms(crops, torch.zeros(crops.shape, dtype=torch.bool), [(None, [])], kind, 4.0)
    assert found.shape == (1 if kind == "max" else 2, 0)
    found.sum().backward()
    assert (crops.grad == 0).all()
