# SPDX-License-Identifier: Apache-2.0
"""Views in step: each voxel beside its partner."""

from __future__ import annotations

import itertools

import pytest
import torch

from monai_labelfx.ops._window import offset_window


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
@pytest.mark.parametrize("shape", [(5,), (4, 5), (3, 4, 5)])
def test_each_voxel_stands_beside_its_partner(leading, shape):
    places = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij"), -1)
    values = places.expand(*leading, *places.shape).movedim(-1, 0)  # coordinates first, the spatial axes last
    for offset in itertools.product(*(range(1 - n, n) for n in shape)):
        here, there = offset_window(values, offset, -1), offset_window(values, offset, 1)
        assert (
            here.shape
            == there.shape
            == (len(shape), *leading, *(n - abs(o) for n, o in zip(shape, offset, strict=True)))
        )
        assert torch.equal(there - here, torch.tensor(offset).view(-1, *[1] * (here.ndim - 1)).expand_as(here))


def test_it_is_a_view():
    values = torch.zeros(2, 3)
    offset_window(values, (1, -1), -1).fill_(1)
    assert values.tolist() == [[0, 1, 1], [0, 0, 0]]
