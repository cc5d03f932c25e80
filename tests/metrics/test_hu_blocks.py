# SPDX-License-Identifier: Apache-2.0
"""Block means against plain loops, and the error of these means against noise of known kinds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from monai_labelfx.metrics._hu_blocks import BlockMeans, block_noise, block_sums

SIZES = (2, 4, 8, 16)


def noise(kind: str, shape=(256, 256), seed: int = 0) -> np.ndarray:
    """Slices (1, X, Y) of noise with standard deviation 28: white, of a sharp kernel, or smoothed."""
    values = np.random.default_rng(seed).normal(size=shape)
    if kind == "sharp":
        frequency = np.hypot(*np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij"))
        values = np.fft.ifft2(np.fft.fft2(values) * np.sqrt(frequency * np.exp(-((frequency / 0.25) ** 2)))).real
    elif kind == "smooth":
        values = ndimage.gaussian_filter(values, 1.0, mode="wrap")
    return (28 * values / values.std())[None].astype(np.float32)


def means_of(difference: np.ndarray, sizes=SIZES, valid=None) -> BlockMeans:
    return BlockMeans(difference, np.ones(difference.shape, bool) if valid is None else valid, sizes)


@pytest.mark.parametrize("sizes", [(2, 4, 8), (3,), (3, 4, 6), (5, 50)])
def test_equal_plain_loops(sizes):
    generator = np.random.default_rng(0)
    values, valid = generator.normal(size=(2, 21, 17)), generator.random((2, 21, 17)) < 0.7
    values = np.where(valid, values, 0.0)
    means = BlockMeans(values, valid, sizes)
    for size in sizes:
        expected = np.full((2, -(-21 // size), -(-17 // size)), np.nan)
        for index in np.ndindex(expected.shape):
            part = (index[0], *(slice(i * size, (i + 1) * size) for i in index[1:]))
            if valid[part].sum() >= size * size / 2:
                expected[index] = values[part][valid[part]].mean()
        np.testing.assert_allclose(means[size], expected, rtol=1e-12)
    assert block_sums(values, 50).item(0) == pytest.approx(values[0].sum())


def test_half_a_block_counts_and_less_does_not():
    assert means_of(np.ones((1, 4, 2), np.float32), [4])[4].tolist() == [[[1.0]]]
    assert np.isnan(means_of(np.ones((1, 4, 1), np.float32), [4])[4]).all()


@pytest.mark.parametrize(("kind", "low", "high"), [("white", 0.9, 1.1), ("sharp", 0.9, 1.45), ("smooth", 0.9, 1.45)])
def test_the_error_is_that_of_noise(kind, low, high):
    ratios = []
    for seed in range(4):
        means = means_of(noise(kind, seed=seed))
        ratios.append(np.median(block_noise(means, 16)) / means[16].std())
    assert low < np.mean(ratios) < high


def test_the_error_follows_noise_that_differs_from_place_to_place():
    difference = noise("white", (512, 512))
    difference[:, 256:] *= 4
    error = block_noise(means_of(difference), 16)[0]
    assert np.median(error[20:]) / np.median(error[:12]) == pytest.approx(4, rel=0.2)


def test_shifts_slopes_and_single_structures_are_no_noise():
    x, y = np.meshgrid(np.arange(256.0), np.arange(256.0), indexing="ij")
    drift = (5 + 0.1 * x - 0.2 * y)[None].astype(np.float32)
    drift[:, 64:72, 40:48] += 40  # a false structure
    drift[:, 128:, :] += 100  # a border between two tissues
    assert block_noise(means_of(drift), 16).max() < 1e-3
    alone, with_drift = noise("white"), noise("white") + drift
    change = block_noise(means_of(with_drift), 16) / block_noise(means_of(alone), 16)
    assert abs(change - 1).max() < 0.25


def test_waves_of_a_drift_are_no_noise():
    x, y = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
    waves = 20 * np.sin(2 * np.pi * x / 64) * np.sin(2 * np.pi * y / 64)
    assert block_noise(means_of(waves[None]), 16).max() < 0.05 * np.abs(waves).max()


def test_left_out_voxels_and_small_images():
    difference, valid = noise("white"), np.ones((1, 256, 256), bool)
    valid[:, :120] = False
    error = block_noise(means_of(np.where(valid, difference, 0), valid=valid), 16)
    np.testing.assert_allclose(np.median(error[:, 8:]), 28 / 16, rtol=0.2)
    assert error.shape == (1, 16, 16) and not np.isnan(error).any() and (error[:, 0] == 0).all()
    assert block_noise(means_of(np.ones((1, 5, 3), np.float32)), 16).tolist() == [[[0.0]]]
