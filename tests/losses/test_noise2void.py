# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_labelfx.losses.denoiseg import denoiseg_loss
from monai_labelfx.losses.noise2void import Noise2VoidLoss
from monai_labelfx.ops.blind_spots import blind_spot_mask

SHAPES = {1: (2, 1, 40), 2: (2, 3, 16, 12), 3: (2, 1, 6, 7, 8)}


def noisy(spatial_dims: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(SHAPES[spatial_dims], generator=torch.Generator().manual_seed(0), dtype=dtype)


def seeded(loss: Noise2VoidLoss, network, image, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return loss(network, image)


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"fraction": 0.1, "strategy": "median", "window": 5}])
def test_value_is_the_squared_error_at_the_blind_spots(spatial_dims, options):
    image = noisy(spatial_dims)
    found = seeded(Noise2VoidLoss(**options), lambda x: 0.5 * x + 1, image)
    torch.manual_seed(0)
    masked, spots = blind_spot_mask(image, **options)
    output = 0.5 * masked.numpy() + 1
    channels = []
    for c in range(image.shape[1]):
        places = np.argwhere(spots[:, c].numpy())
        errors = [(output[(b, c, *place)] - image[(b, c, *place)].item()) ** 2 for b, *place in places.tolist()]
        channels.append(sum(errors) / len(errors))
    assert found.item() == pytest.approx(sum(channels) / len(channels))


def test_it_is_denoiseg_with_alpha_1():
    image = noisy(2)
    found = seeded(Noise2VoidLoss(0.05), lambda x: x.roll(1, 2), image)
    torch.manual_seed(0)
    masked, spots = blind_spot_mask(image, 0.05)
    output = torch.cat((masked.roll(1, 2), masked[:, :3]), 1)  # its three channels of classes
    assert torch.equal(found, denoiseg_loss(output, image, spots, alpha=1))


def test_the_network_does_not_see_the_hidden_voxels():
    image, seen = noisy(2), []
    loss = seeded(Noise2VoidLoss(0.1), lambda x: seen.append(x) or x, image)
    assert loss.item() > 0.1 and not torch.equal(seen[0], image)
    assert torch.equal(image, noisy(2))
    assert seeded(Noise2VoidLoss(0.1, "identity"), lambda x: x, image).item() == 0


def test_structure_hides_the_neighbours_of_a_spot_as_well():
    image, seen = noisy(2), {}
    for name, structure in (("spot", None), ("arms", np.ones((1, 5)))):
        seeded(Noise2VoidLoss(0.02, structure=structure), lambda x, n=name: seen.setdefault(n, x), image)
    changed = {name: (masked != image).sum().item() for name, masked in seen.items()}
    assert changed["arms"] > 3 * changed["spot"]


def test_averaging_neighbours_beats_copying_the_image():
    image = noisy(2)
    kernel = torch.full((3, 1, 3, 3), 1 / 8, dtype=image.dtype)
    kernel[..., 1, 1] = 0

    def smooth(x):
        return torch.nn.functional.conv2d(x, kernel, padding=1, groups=3)

    loss = Noise2VoidLoss(0.1)
    assert seeded(loss, smooth, image) < 0.8 * seeded(loss, lambda x: x, image)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_network_gets_a_gradient_and_the_image_none(spatial_dims):
    image = noisy(spatial_dims, torch.float32)[:, :1].requires_grad_()
    torch.manual_seed(1)
    network = (torch.nn.Conv2d, torch.nn.Conv3d)[spatial_dims - 2](1, 1, 3, padding=1)
    seeded(Noise2VoidLoss(0.1), network, image).backward()
    assert network.weight.grad.abs().max() > 0 and image.grad is None


def test_the_global_generator_decides_the_spots():
    image, loss = noisy(2), Noise2VoidLoss(0.05)
    first = seeded(loss, torch.zeros_like, image)
    assert torch.equal(seeded(loss, torch.zeros_like, image), first)
    assert not torch.equal(seeded(loss, torch.zeros_like, image, seed=1), first)


def test_half_precision_autocast_and_metadata():
    image, network = noisy(2, torch.float32)[:, :1], torch.nn.Conv2d(1, 1, 3, padding=1)
    expected = seeded(Noise2VoidLoss(0.1), network, image)
    assert torch.equal(seeded(Noise2VoidLoss(0.1), network, MetaTensor(image)), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = seeded(Noise2VoidLoss(0.1), network, image)
    assert found.dtype == torch.float32 and found.item() == pytest.approx(expected.item(), rel=0.02)


def test_bad_input():
    image = noisy(2)
    with pytest.raises(ValueError, match="fraction must be between 0 and 1, got 1"):
        Noise2VoidLoss(1)
    with pytest.raises(ValueError, match="strategy must be one of"):
        Noise2VoidLoss(strategy="zero")
    with pytest.raises(ValueError, match="window must be one odd number"):
        Noise2VoidLoss(window=4)(lambda x: x, image)
    with pytest.raises(ValueError, match=r"shape of the image, \(2, 3, 16, 12\), got \(2, 1, 16, 12\)"):
        Noise2VoidLoss()(lambda x: x[:, :1], image)
    with pytest.raises(TypeError, match="the network must return a floating-point tensor, got list"):
        Noise2VoidLoss()(lambda x: [x], image)
    with pytest.raises(TypeError, match="got torch.int64"):
        Noise2VoidLoss()(lambda x: x, image.long())
    assert repr(Noise2VoidLoss(0.05, "median")).startswith("Noise2VoidLoss(fraction=0.05, strategy='median', window=11")
