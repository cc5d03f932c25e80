# SPDX-License-Identifier: Apache-2.0
"""Masks of parallelotopes: what the masks of frames do not test already."""

from __future__ import annotations

import pytest
import torch

from monai_labelfx.ops import _parallelotopes
from monai_labelfx.ops._parallelotopes import filled_parallelotopes

DIAMOND = torch.tensor([[2.5, 0.0]]).double(), torch.tensor([[[2.5, 2.5], [-2.5, 2.5]]]).double()
ONE = torch.tensor([0])


def test_a_diamond_by_hand():
    found = filled_parallelotopes(*DIAMOND, ONE, 1, (5, 5))[0]
    places = torch.arange(5) - 2
    assert torch.equal(found, places.abs()[:, None] + places.abs() <= 2)


@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_written_in_parts_it_is_the_same(monkeypatch, chunk):
    generator = torch.Generator().manual_seed(2)
    corner = torch.rand(6, 3, generator=generator).double() * 6
    edges = torch.eye(3).double() * 4 + torch.rand(6, 3, 3, generator=generator).double()
    image = torch.tensor([0, 1, 1, 0, 2, 0])
    whole = filled_parallelotopes(corner, edges, image, 3, (9, 8, 7))
    monkeypatch.setattr(_parallelotopes, "_CHUNK", chunk)
    assert whole.any() and torch.equal(filled_parallelotopes(corner, edges, image, 3, (9, 8, 7)), whole)


@pytest.mark.parametrize("shift", [0.25, 0.5, 0.75])
def test_two_that_share_a_side_share_no_voxel(shift):
    corner = torch.tensor([[shift, 0.0], [shift + 2, 0.0]]).double()
    edges = torch.diag(torch.tensor([2.0, 3.0])).double().repeat(2, 1, 1)
    left, right = filled_parallelotopes(corner, edges, torch.tensor([0, 1]), 2, (6, 3))
    assert not (left & right).any() and left.sum() == right.sum() == 6
    turned = filled_parallelotopes(corner.flip(1), edges.flip(1, 2), torch.tensor([0, 1]), 2, (3, 6))
    assert torch.equal(turned, torch.stack([left.T, right.T]))


def test_nothing_is_empty():
    none = torch.zeros(0, 2).double(), torch.zeros(0, 2, 2).double(), torch.zeros(0, dtype=torch.int64)
    assert not filled_parallelotopes(*none, 2, (3, 4)).any()
    far = DIAMOND[0] + 100, DIAMOND[1]
    assert not filled_parallelotopes(*far, ONE, 1, (5, 5)).any()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_what_runs_along_an_axis_is_a_stack_of_slices(axis):
    flat = filled_parallelotopes(*DIAMOND, ONE, 1, (5, 5))[0]
    others = [a for a in range(3) if a != axis]
    corner, edges = torch.zeros(1, 3).double(), torch.zeros(1, 3, 3).double()
    corner[0, others], corner[0, axis] = DIAMOND[0][0], 1.0
    edges[0][others] = edges[0][others].index_copy(1, torch.tensor(others), DIAMOND[1][0])
    edges[0, axis, axis] = 2.0
    expected = torch.zeros(4, 5, 5, dtype=torch.bool)
    expected[1:3] = flat
    shape = [4 if a == axis else 5 for a in range(3)]
    assert torch.equal(filled_parallelotopes(corner, edges, ONE, 1, shape)[0], expected.movedim(0, axis))


@pytest.mark.parametrize("off", [-1e-4, 1e-4])
def test_rounding_does_not_move_a_side_between_two_centres(off):
    corner, edges = torch.tensor([[1.5, 0.5]]).double(), torch.diag(torch.tensor([2.0, 3.0])).double()[None]
    exact = filled_parallelotopes(corner, edges, ONE, 1, (6, 6))
    assert exact[0, 1:3, :3].all() and exact.sum() == 6
    assert torch.equal(filled_parallelotopes(corner + off, edges, ONE, 1, (6, 6)), exact)
