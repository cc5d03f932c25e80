# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer

from monai_labelfx.inferers import HaloInferer, SlicewiseInferer


def network(channels: int = 1) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Conv2d(channels, 2, 3, padding=1)


@pytest.mark.parametrize("axis", [-1, 0, 1, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_equals_the_network_on_each_slice(axis, batch_size):
    volume = torch.rand(2, 1, 6, 7, 5)
    net = network()
    inferer = SlicewiseInferer(SimpleInferer(), spatial_dims=2, axis=axis, batch_size=batch_size)
    dim = 4 if axis == -1 else axis + 2
    expected = torch.stack([net(part) for part in volume.unbind(dim)], dim)
    assert torch.allclose(inferer(volume, net), expected, atol=1e-6)


def test_images_and_volumes_of_the_right_dimension_pass_through():
    image = torch.rand(2, 1, 6, 7)
    inferer = SlicewiseInferer(HaloInferer(4, halo=1, divisor=1), spatial_dims=2)
    assert torch.allclose(inferer(image, network()), network()(image), atol=1e-6)
    net = torch.nn.Conv3d(1, 2, 1)
    volume = torch.rand(1, 1, 3, 4, 5)
    assert torch.equal(SlicewiseInferer(SimpleInferer(), spatial_dims=3)(volume, net), net(volume))


def test_meta_tensors_work():
    volume = MetaTensor(torch.rand(1, 1, 6, 7, 5))
    found = SlicewiseInferer(SimpleInferer(), spatial_dims=2)(volume, network())
    assert found.shape == (1, 2, 6, 7, 5)


def test_bad_arguments():
    with pytest.raises(ValueError, match="batch_size must be 1 or above, got 0"):
        SlicewiseInferer(SimpleInferer(), spatial_dims=2, batch_size=0)
    with pytest.raises(ValueError, match="a network of 3 spatial axes takes inputs"):
        SlicewiseInferer(SimpleInferer(), spatial_dims=3)(torch.rand(1, 1, 4, 4), network())
