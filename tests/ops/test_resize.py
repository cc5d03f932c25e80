# SPDX-License-Identifier: Apache-2.0
"""Linear interpolation of maps, against PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from monai_labelfx.ops._resize import resize_linear

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


@pytest.mark.parametrize("size", [(5,), (9,), (6, 10), (11, 4), (5, 4, 12), (8, 5, 3)])
def test_numbers_and_gradients_are_those_of_pytorch(size):
    maps = torch.randn(2, 3, *(5, 4, 3)[: len(size)], dtype=torch.float64, requires_grad=True)
    found = resize_linear(maps, size)
    wanted = interpolate(maps, size=size, mode=MODES[len(size)], align_corners=False)
    assert torch.allclose(found, wanted, atol=1e-12)
    weight = torch.randn_like(wanted)
    gradients = [torch.autograd.grad((result * weight).sum(), maps)[0] for result in (found, wanted)]
    assert torch.allclose(*gradients, atol=1e-12)


@pytest.mark.parametrize("size", [(6, 9), (3, 30), (1, 1)])
def test_smaller_maps_are_those_of_pytorch_with_wide_triangles(size):
    maps = torch.randn(2, 3, 15, 21, dtype=torch.float64)
    wanted = interpolate(maps, size=size, mode="bilinear", antialias=True)
    assert torch.allclose(resize_linear(maps, size), wanted, atol=1e-12)
    assert torch.equal(resize_linear(maps, size), resize_linear(maps, size, [15 / size[0], 21 / size[1]]))


@pytest.mark.parametrize("dims", [2, 3])
def test_each_axis_has_its_step(dims):
    maps = torch.randn(1, 2, *[6] * dims)
    sizes, steps = [6, 12, 4][:dims], [1.0, 0.5, 1.5][:dims]
    one = maps
    for axis in range(dims):
        size, step = list(one.shape[2:]), [1.0] * dims
        size[axis], step[axis] = sizes[axis], steps[axis]
        one = resize_linear(one, size, step)
    assert torch.allclose(resize_linear(maps, sizes, steps), one, atol=1e-6)
    assert torch.equal(resize_linear(maps, [6] * dims, [1.0] * dims), maps)
    assert torch.equal(resize_linear(maps, [4] * dims, [1.0] * dims), maps[(..., *[slice(0, 4)] * dims)])


def test_places_beyond_the_map_count_on():
    assert resize_linear(torch.arange(3.0), [5], [1.0]).tolist() == [0, 1, 2, 2, 2]


def test_any_number_of_axes_and_of_channels():
    maps = torch.randn(2, 3, 2, 4, 3, 5)
    assert resize_linear(maps, (4, 4, 6, 5)).shape == (2, 3, 4, 4, 6, 5)
    assert resize_linear(maps, maps.shape[2:]) is maps
    assert resize_linear(torch.zeros(0, 4, 7, 7), (28, 28)).shape == (0, 4, 28, 28)


def test_voxels_stay_where_they_are():
    fine, coarse = torch.arange(12) + 0.5, (torch.arange(4) + 0.5) * 3
    assert torch.allclose(resize_linear(coarse, (12,))[1:-1], fine[1:-1])


def test_half_precision_stays():
    maps = torch.tensor([0.0, 1.0], dtype=torch.bfloat16)
    found = resize_linear(maps, (4,))
    assert found.dtype == torch.bfloat16 and found.tolist() == [0.0, 0.25, 0.75, 1.0]
