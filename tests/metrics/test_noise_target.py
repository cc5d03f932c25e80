# SPDX-License-Identifier: Apache-2.0
"""Noise of images against the noise of others that match none of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from noise_samples import as_image, ct_noise, ct_slice

from monai_labelfx.metrics.noise_target import NoiseTarget, evenly_spaced


def noisy(std, seed, size=128, **keywords) -> torch.Tensor:
    return as_image(ct_slice(size) + ct_noise(size, std, seed, **keywords))


def built(*images, **keywords) -> NoiseTarget:
    target = NoiseTarget(**keywords)
    for image in images:
        assert target.add(image)
    return target


HIGH = [noisy(15, seed) for seed in range(4)]


def test_strength_and_texture_of_the_target():
    target = built(*HIGH)
    assert len(target) == 4
    assert target.deviation == pytest.approx(15, rel=0.1)
    frequency, power = target.spectrum
    assert len(power) == 8 and frequency[-1] <= 0.5
    expected = (frequency * torch.exp(-((frequency / 0.25) ** 2) / 2)).numpy()
    shape = power.numpy()[2:] / expected[2:]
    np.testing.assert_allclose(shape / shape.mean(), 1, atol=0.25)


@pytest.mark.parametrize("ratio", [0.25, 1.0, 2.0, 5.0])
def test_ratio_of_strengths(ratio):
    image = noisy(15 * ratio, 9)
    found = built(*HIGH).compare(image, image)
    assert found.log_ratio == pytest.approx(math.log(ratio), abs=0.12)
    assert found.nps_distance < 0.25 and found.patches >= 1


def test_distance_of_textures_does_not_depend_on_strength():
    target = built(*HIGH)
    source = noisy(30, 9)
    same, fine, coarse = (target.compare(noisy(15, 9, peak=peak), source) for peak in (0.25, 0.5, 0.1))
    assert same.nps_distance < min(fine.nps_distance, coarse.nps_distance) / 2
    twice = target.compare(40 + 2 * (noisy(15, 9, peak=0.1) - 40), source)
    assert twice.nps_distance == pytest.approx(coarse.nps_distance, rel=1e-3)
    assert twice.log_ratio == pytest.approx(coarse.log_ratio + math.log(2), abs=1e-3)


def test_offsets_and_gradients_are_no_noise():
    target, image = built(*HIGH), noisy(15, 9)
    ramp = torch.linspace(-20, 20, 128)[None, :, None] + torch.linspace(-10, 10, 128)
    plain, moved = target.compare(image, image), target.compare(image + 7 + ramp, image)
    assert moved.log_ratio == pytest.approx(plain.log_ratio, abs=1e-5)
    assert moved.nps_distance == pytest.approx(plain.nps_distance, abs=1e-5)


def test_patches_are_those_of_the_source():
    """A model that wipes out the noise of one half must not be judged by that half alone."""
    target, source = built(*HIGH, patch_size=16), noisy(30, 9)
    image = noisy(15, 9)
    half = image.clone()
    half[:, :64] = as_image(ct_slice())[:, :64]
    whole, part = target.compare(image, source), target.compare(half, source)
    assert part.patches == whole.patches
    assert part.log_ratio < whole.log_ratio - 0.02 or part.nps_distance > whole.nps_distance


def test_no_noise_is_far_away_and_finite():
    found = built(*HIGH).compare(as_image(ct_slice()), noisy(30, 9))
    assert found.log_ratio == pytest.approx(math.log(1e-3)) and 1 < found.nps_distance < 20


def test_frequencies_are_in_mm():
    """The noise of one kernel has one texture on fine and coarse grids: in 1/mm, not in 1/voxel."""

    def spaced(image: torch.Tensor, mm: float) -> MetaTensor:
        return MetaTensor(image, affine=torch.diag(torch.tensor([mm, mm, 1.0, 1.0])))

    target = built(*(spaced(noisy(15, seed, peak=0.2, spacing=0.8), 0.8) for seed in range(4)))
    for mm in (1.0, 1.3, 0.6):
        image = noisy(15, 9, peak=0.2, spacing=mm)
        right, wrong = (target.compare(image, spaced(image, told)) for told in (mm, 0.8))
        assert right.nps_distance < 0.2
        if mm > 1:
            assert wrong.nps_distance > right.nps_distance + 0.1
    target.add(spaced(noisy(15, 9, peak=0.2, spacing=2.0), 2.0))
    assert target.spectrum.frequency.max() <= 0.25, "rings end at the Nyquist frequency of the coarsest image"


def test_volumes_are_slices_of_the_last_axis():
    volume = torch.stack([noisy(15, seed) for seed in range(4)], dim=-1)
    target = built(volume)
    assert target.deviation == pytest.approx(built(*HIGH).deviation, rel=0.1)
    found = target.compare(2 * volume, volume)
    assert found.log_ratio == pytest.approx(math.log(2), abs=0.1) and found.patches <= 32
    assert built(volume, slices=1).compare(volume, volume).log_ratio == pytest.approx(0, abs=1e-6)


def test_images_without_the_medium():
    target = built(*HIGH)
    air = torch.full((1, 64, 64), -1000.0)
    assert target.compare(air, air) is None
    assert target.add(air) is False and len(target) == 4
    assert NoiseTarget().add(torch.full((1, 64, 64), 40.0)) is False, "an image without noise tells nothing"
    empty = NoiseTarget((200, 300), patch_size=16)
    with pytest.raises(ValueError, match="homogeneous patch of 200 to 300 HU with a side of 16"):
        empty.compare(air, air)


@pytest.mark.parametrize("size", [12, 40, 64])
def test_small_images(size):
    generator = torch.Generator().manual_seed(0)
    images = [40 + 10 * torch.randn(1, size, size, generator=generator) for _ in range(4)]
    target = built(*images)
    assert target.deviation == pytest.approx(10, rel=0.2)
    assert abs(target.compare(images[0], images[0]).log_ratio) < 0.3


def test_evenly_spaced():
    assert evenly_spaced(5, 9) == [0, 1, 2, 3, 4] and evenly_spaced(100, 3) == [0, 50, 99]
    assert evenly_spaced(1, 1) == [0]


def test_bad_input():
    for medium in ((120, -20), (1,)):
        with pytest.raises(ValueError, match="medium must be a range"):
            NoiseTarget(medium)
    for name in ("patch_size", "patches", "slices", "bins"):
        with pytest.raises(ValueError, match=f"{name} must be 1 or above, got 0"):
            NoiseTarget(**{name: 0})
    with pytest.raises(ValueError, match="image must have as many voxels"):
        built(*HIGH).compare(HIGH[0][:, 1:], HIGH[0])
    target, coarse = built(*HIGH), MetaTensor(noisy(15, 9), affine=torch.diag(torch.tensor([9.0, 9, 1, 1])))
    with pytest.raises(ValueError, match="voxels of 9 mm, too large to compare"):
        target.compare(coarse, coarse)
