# SPDX-License-Identifier: Apache-2.0
"""Non-local means against the formula in loops, its halo, and CT numbers."""

from __future__ import annotations

import itertools
import math
import struct

import numpy as np
import pytest
import torch
from generator_tester import DIMS, DenoiserContract, image
from skimage.restoration import estimate_sigma

from monai_labelfx.inferers import HaloInferer
from monai_labelfx.networks.non_local_means import NonLocalMeans


class TestContract(DenoiserContract):
    @staticmethod
    def make(spatial_dims, **keywords):
        return NonLocalMeans(spatial_dims, **{"patch_size": 3, "patch_distance": 2, "sigma": 0.8, **keywords})


def rough_exponential(y: float) -> float:
    """Schraudolph's: y / ln 2 as the exponent of a float64, its fraction as the mantissa, less a correction."""
    return struct.unpack("<d", struct.pack("<ii", 0, int(2**20 / math.log(2) * y) + 1023 * 2**20 - 60801))[0]


def formula(x: np.ndarray, size: int, distance: int, strength: float, sigma: float) -> np.ndarray:
    """The docstring's sums, with its notes, for voxels whose neighbours and patches all lie inside; elsewhere nan."""
    out = np.full(x.shape, math.nan)
    half, h = size // 2, strength * sigma
    steps = list(itertools.product(range(-distance, distance + 1), repeat=x.ndim))
    inside = [range(distance + half, n - distance - half) for n in x.shape]

    def patch(centre: tuple[int, ...]) -> np.ndarray:
        return x[tuple(slice(c - half + 1, c + half + 1) for c in centre)]

    for voxel in itertools.product(*inside):
        total = weights = 0.0
        for step in steps:
            other = tuple(v + s for v, s in zip(voxel, step, strict=True))
            apart = ((patch(voxel) - patch(other)) ** 2 - 2 * sigma**2).sum() / size**x.ndim / h**2
            weight = rough_exponential(-max(apart, 0)) if apart <= 5 else 0.0
            total, weights = total + weight * x[other], weights + weight
        out[voxel] = total / weights
    return out


@pytest.mark.parametrize(("size", "patch", "distance"), [((15, 13), 3, 3), ((14, 14), 5, 2), ((9, 8, 8), 3, 2)])
def test_equals_the_formula(size, patch, distance):
    x = 30 * image(*size, dtype=torch.float64)
    x[..., size[-1] // 2 :] += 60
    expected = formula(x[0, 0].numpy(), patch, distance, 0.7, 25.0)
    net = NonLocalMeans(len(size), patch_size=patch, patch_distance=distance, strength=0.7, sigma=25.0)
    inside = ~np.isnan(expected)
    assert inside.any()
    np.testing.assert_allclose(net(x)[0, 0].numpy()[inside], expected[inside], rtol=0, atol=1e-3)


@DIMS
def test_ct_numbers_are_kept_and_noise_is_not(spatial_dims):
    size = (48, 40) if spatial_dims == 2 else (18, 16, 14)
    truth = torch.full((1, 1, *size), -1000.0)
    truth[:, :, size[0] // 2 :] = 40
    noisy = truth + 20 * image(*size)
    net = NonLocalMeans(spatial_dims)
    y = net(noisy)
    assert (y - truth).square().mean() < 0.2 * (noisy - truth).square().mean()
    for part in (slice(None, size[0] // 2), slice(size[0] // 2, None)):
        assert (y - noisy)[:, :, part].mean().abs() < 1, "no class shifts"
    for offset in (1024.0, -3000.0):
        assert (net(noisy + offset) - offset - y).abs().max() < 2e-3  # float32 of HU plus offset
    exact = noisy.double()
    assert (net(exact + 1024) - 1024 - net(exact)).abs().max() < 1e-6


def test_sigma_is_estimated_for_each_image_and_channel():
    noise = image(32, 32, batch=4).reshape(2, 2, 32, 32) * torch.tensor([[5.0, 50], [10, 1]])[:, :, None, None]
    net = NonLocalMeans(2, in_channels=2)
    y = net(noise)
    for b, c in itertools.product((0, 1), repeat=2):
        one = noise[b : b + 1, c : c + 1]
        sigma = float(estimate_sigma(one[0, 0].double().numpy()))
        torch.testing.assert_close(y[b : b + 1, c : c + 1], NonLocalMeans(2, sigma=sigma)(one))


def test_padding_that_became_air_does_not_count_in_the_estimate():
    x = 40 + 20 * image(48, 48)
    padded = torch.full((1, 1, 96, 96), -1000.1)
    padded[:, :, 24:72, 24:72] = x
    y = NonLocalMeans(2)(padded)[:, :, 34:62, 34:62]
    torch.testing.assert_close(y.std(), NonLocalMeans(2)(x)[:, :, 10:38, 10:38].std(), rtol=0.2, atol=0)


def test_tiles_need_a_given_sigma():
    x = image(60, 40, dtype=torch.float64) * torch.linspace(1, 3, 60, dtype=torch.float64)[:, None]
    given, estimated = NonLocalMeans(2, sigma=2.0), NonLocalMeans(2)
    assert given.halo == estimated.halo == (8, 8) and given.divisor == (1, 1)
    assert (HaloInferer(20)(x, given) - given(x)).abs().max() < 1e-9
    assert (HaloInferer(20)(x, estimated) - estimated(x)).abs().max() > 1e-3, "each tile has a sigma of its own"


@pytest.mark.filterwarnings("error")
def test_an_image_without_noise_is_returned():
    x = torch.full((1, 1, 20, 20), 37.0)
    assert torch.equal(NonLocalMeans(2)(x), x)
    assert torch.equal(NonLocalMeans(3)(x[..., None].expand(-1, -1, -1, -1, 3).contiguous()).mean(-1), x)


def test_it_has_nothing_to_train():
    net = NonLocalMeans(2)
    assert not list(net.parameters()) and not net.state_dict()
    assert not net(image(20, 20).requires_grad_()).requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert net(image(20, 20)).dtype == torch.float32


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
        ({"patch_size": 0}, "patch_size must be 1 or more, got 0"),
        ({"patch_size": 4}, "patch_size must be odd, got 4"),
        ({"patch_distance": 0}, "patch_distance must be 1 or more, got 0"),
        ({"strength": 0.0}, "strength must be above 0 and finite, got 0.0"),
        ({"sigma": -1.0}, "sigma must be above 0 and finite, got -1.0"),
        ({"sigma": math.inf}, "sigma must be above 0 and finite, got inf"),
    ],
)
def test_bad_arguments_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        NonLocalMeans(**{"spatial_dims": 2, **keywords})
