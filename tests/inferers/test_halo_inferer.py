# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from monai_labelfx.inferers import HaloInferer
from monai_labelfx.networks import DenoiSegUNet


@pytest.mark.parametrize(
    ("spatial_dims", "shape", "strides"),
    [(2, (97, 61), 2), (2, (64, 128), (2, 2)), (3, (41, 30, 9), (2, 2, 1)), (3, (1, 40, 40), 2)],
)
@pytest.mark.parametrize("blur_pool", [False, True])
def test_tiled_equals_whole(spatial_dims, shape, strides, blur_pool):
    network = DenoiSegUNet(spatial_dims, features=4, depth=2, strides=strides, blur_pool=blur_pool).double().eval()
    for module in network.modules():  # statistics that make normalisation matter
        if hasattr(module, "running_mean") and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    image = torch.rand(2, 1, *shape, dtype=torch.float64)
    with torch.no_grad():
        whole, tiled = network(image), HaloInferer(16)(image, network)
        assert torch.allclose(whole, tiled, atol=1e-9)
        short = HaloInferer(16, halo=2)(image, network)
    assert not torch.allclose(whole, short, atol=1e-9), "a halo that is too short must show: else this proves nothing"


def test_small_image_runs_whole_and_keeps_meta():
    network = torch.nn.Conv2d(1, 2, 3, padding=1)
    image = MetaTensor(torch.rand(1, 1, 20, 24), affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])))
    whole = HaloInferer(32, halo=1, divisor=1)(image, network)
    tiled = HaloInferer((8, 32), halo=1, divisor=1)(image, network)
    assert torch.allclose(whole, tiled, atol=1e-6)
    assert isinstance(tiled, MetaTensor) and torch.equal(tiled.affine, image.affine)


def test_settings_are_checked():
    network = torch.nn.Conv2d(1, 2, 3, padding=1)
    with pytest.raises(ValueError, match="divisor must be given: Conv2d has no attribute 'divisor'"):
        HaloInferer(8)(torch.rand(1, 1, 20, 20), network)
    with pytest.raises(ValueError, match="tile_size must be at least the divisor"):
        HaloInferer(2, halo=1, divisor=4)(torch.rand(1, 1, 20, 20), network)
