# SPDX-License-Identifier: Apache-2.0
"""Classes of voxels: ranges, erosion, and a smoothing that is as wide as the noise demands."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from monai_labelfx.metrics._hu_classes import (
    SMOOTHINGS,
    check_classes,
    choose_smoothing,
    class_map,
    eroded,
    gradient_magnitude,
    smoothed,
    smoothed_noise,
)

RANGES = [(-1100.0, -900.0), (20.0, 150.0)]


def halves(shape=(1, 128, 128)) -> np.ndarray:
    """Air and, beyond the middle of y, tissue."""
    image = np.full(shape, -1000.0, np.float32)
    image[..., shape[2] // 2 :] = 40
    return image


def test_erosion_equals_plain_loops():
    regions = np.random.default_rng(0).choice([-1, 0, 1], p=[0.02, 0.9, 0.08], size=(2, 14, 11))
    expected = regions.copy()
    for place in np.ndindex(regions.shape):
        around = regions[(place[0], *(slice(max(i - 1, 0), i + 2) for i in place[1:]))]
        expected[place] = regions[place] if (around == regions[place]).all() else -1
    assert np.array_equal(eroded(regions, 1), expected) and (expected >= 0).any() and (expected < 0).any()


def test_slices_are_smoothed_each_for_itself_over_their_valid_voxels():
    image = np.random.default_rng(0).normal(size=(3, 40, 30)).astype(np.float32)
    valid = np.ones(image.shape, bool)
    expected = np.stack([ndimage.gaussian_filter(part, 2, mode="nearest", truncate=3) for part in image])
    np.testing.assert_allclose(smoothed(image, valid, 2), expected, atol=1e-6)
    valid[:, :15] = False
    constant = np.where(valid, 7.0, -2000.0)
    np.testing.assert_allclose(smoothed(constant, valid, 2)[valid], 7, atol=1e-4)
    assert (smoothed(constant, np.zeros_like(valid), 2) == 0).all()


def test_borders_and_padding_are_taken_off():
    image, valid = halves(), np.ones((1, 128, 128), bool)
    valid[:, :10] = False
    found = class_map(smoothed(image, valid, 2), valid, 2, RANGES)
    assert set(np.unique(found)) == {-1, 0, 1}
    inner = np.where(image == 40, 1, 0)
    assert (found[found >= 0] == inner[found >= 0]).all()
    air, tissue = (np.argwhere(found[0] == number) for number in (0, 1))
    assert 54 <= air[:, 1].max() < 62 and 66 <= tissue[:, 1].min() < 76
    assert air[:, 0].min() == 14 and air[:, 0].max() == 127  # 4 voxels off the padding, none off the border


@pytest.mark.parametrize("deviation", [10.0, 40.0, 120.0])
def test_smoothed_noise_is_that_of_white_noise(deviation):
    noise = np.random.default_rng(0).normal(0, deviation, (2, 256, 256)).astype(np.float32)
    valid, regions = np.ones(noise.shape, bool), np.zeros(noise.shape, np.int16)
    for sigma in (2.0, 4.0):
        expected = deviation / (2 * math.sqrt(math.pi) * sigma)
        assert smoothed_noise(noise, valid, regions, sigma) == pytest.approx(expected, rel=0.12)
    assert math.isnan(smoothed_noise(noise, valid, np.full(noise.shape, -1), 2.0))


def test_only_voxels_of_one_class_are_compared():
    x, y = np.meshgrid(np.arange(64) // 2, np.arange(64) // 2, indexing="ij")
    regions = ((x + y) % 2)[None].astype(np.int16)
    shift, valid = 100 * regions.astype(np.float32), np.ones(regions.shape, bool)
    assert smoothed_noise(shift, valid, regions, 0.5) < 1e-3
    assert smoothed_noise(shift, valid, np.zeros_like(regions), 0.5) > 20


def test_the_shift_of_a_class_is_no_noise():
    image, valid = halves((1, 256, 256)), np.ones((1, 256, 256), bool)
    noise = np.random.default_rng(0).normal(0, 10, image.shape).astype(np.float32)
    shifted = noise + np.where(image < -500, -122, 0)
    plain = choose_smoothing(image, noise, valid, RANGES, 2.0)
    assert choose_smoothing(image, shifted, valid, RANGES, 2.0)[0] == plain[0] < 4
    assert choose_smoothing(image, np.zeros_like(noise), valid, RANGES, 2.0) == (SMOOTHINGS[0], 0.0)


def test_stronger_noise_takes_a_wider_gaussian():
    image, valid = halves((1, 256, 256)), np.ones((1, 256, 256), bool)
    noise = np.random.default_rng(0).normal(0, 1, image.shape).astype(np.float32)
    found = [choose_smoothing(image, deviation * noise, valid, RANGES, 2.0) for deviation in (5, 25, 50, 5000)]
    sigmas = [sigma for sigma, _ in found]
    assert sigmas == sorted(set(sigmas)) and sigmas[-1] == SMOOTHINGS[-1]
    assert all(left <= 2 for _, left in found[:3]) and found[-1][1] > 50
    nothing = choose_smoothing(image + 5000, 90 * noise, valid, RANGES, 2.0)
    assert nothing == (SMOOTHINGS[0], 0.0), "without classes there is nothing to smooth for"


def test_gradient():
    x, y = np.meshgrid(np.arange(9.0), np.arange(7.0), indexing="ij")
    np.testing.assert_allclose(gradient_magnitude((3 * x + 4 * y)[None]), 5)
    np.testing.assert_allclose(gradient_magnitude((3 * x[:, :1])[None]), 3)


def test_ranges_are_checked():
    assert check_classes({"a": (0, 1), "b": (1, 2)}) == {"a": (0.0, 1.0), "b": (1.0, 2.0)}
    for wrong in ({"a": (1, 1)}, {"a": (0, 1, 2)}, {"a": (float("nan"), 1)}):
        with pytest.raises(ValueError, match=r"classes\['a'\] must be a range"):
            check_classes(wrong)
    with pytest.raises(ValueError, match=r"classes 'a' and 'b' overlap: \(0, 2\) and \(1, 3\)"):
        check_classes({"a": (0, 2), "b": (1, 3)})
