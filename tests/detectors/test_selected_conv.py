# SPDX-License-Identifier: Apache-2.0
"""A convolution at chosen places: the numbers and the gradients of the whole convolution."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_labelfx.detectors._selected_conv import convolution_at

CASES = {
    "2d": (nn.Conv2d, (3, 3), (6, 5)),
    "2d anisotropic": (nn.Conv2d, (1, 5), (4, 3)),
    "3d": (nn.Conv3d, (3, 3, 3), (4, 3, 5)),
    "3d anisotropic": (nn.Conv3d, (5, 3, 1), (3, 4, 2)),
    "one voxel": (nn.Conv3d, (3, 3, 3), (1, 1, 1)),
}


def case(name, **options):
    torch.manual_seed(0)
    kind, kernel, size = CASES[name]
    convolution = kind(3, 4, kernel, padding=tuple(n // 2 for n in kernel), **options).double()
    return convolution, torch.randn(2, 3, *size, dtype=torch.double, requires_grad=True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_every_place(name, bias):
    convolution, maps = case(name, bias=bias)
    places = maps[0, 0].numel()
    image, place = torch.arange(2).repeat_interleave(places), torch.arange(places).repeat(2)
    order = torch.randperm(2 * places)
    found = convolution_at(convolution, maps, image[order], place[order])
    wanted = convolution(maps).flatten(2).transpose(1, 2).flatten(0, 1)[order]
    assert torch.allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_convolution(name):
    """At some places, one of them twice."""
    convolution, maps = case(name)
    places = maps[0, 0].numel()
    image, place = torch.tensor([1, 0, 1, 1]), torch.tensor([0, places - 1, places // 2, 0])
    weights = torch.randn(4, 4, dtype=torch.double)
    inputs = (maps, convolution.weight, convolution.bias)
    found = torch.autograd.grad((convolution_at(convolution, maps, image, place) * weights).sum(), inputs)
    wanted = torch.autograd.grad((convolution(maps).flatten(2)[image, :, place] * weights).sum(), inputs)
    assert all(torch.allclose(one, two, atol=1e-12) for one, two in zip(found, wanted, strict=True))


@pytest.mark.parametrize("name", ["2d", "3d"])
def test_no_place_still_reaches_every_parameter(name):
    convolution, maps = case(name)
    none = torch.zeros(0, dtype=torch.long)
    found = convolution_at(convolution, maps, none, none)
    assert found.shape == (0, 4) and found.dtype == torch.double
    found.sum().backward()
    assert not maps.grad.any() and not convolution.weight.grad.any() and not convolution.bias.grad.any()


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(3, 4, 2, padding=1),
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(3, 4, 3, padding=1, stride=2),
        nn.Conv2d(3, 4, 3, padding=1, dilation=2),
        nn.Conv2d(3, 3, 3, padding=1, groups=3),
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
    ],
)
def test_other_convolutions_are_refused(convolution):
    with pytest.raises(ValueError, match="convolution must have an odd kernel, stride 1 and zeros around, got Conv2d"):
        convolution_at(convolution, torch.zeros(1, 3, 5, 5), torch.tensor([0]), torch.tensor([3]))
