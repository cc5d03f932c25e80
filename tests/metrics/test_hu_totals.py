# SPDX-License-Identifier: Apache-2.0
"""Line, structure, low band and profile of an audit against numpy and PyWavelets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import pywt

from monai_labelfx.metrics._hu_totals import HUTotals

OPTIONS = {"ranges": [(20.0, 150.0)], "sigma": 2.0, "block_sizes": (8, 16), "block_size": 8, "wavelet": "db3"}


def totals_of(source, output, valid=None, *, parts=None, level=(2, 2)) -> HUTotals:
    """Slices (S, X, Y), in stacks that end at ``parts``."""
    source, difference = np.asarray(source, np.float32), np.asarray(output - source, np.float32)
    valid = np.ones(source.shape, bool) if valid is None else valid
    totals = HUTotals(**OPTIONS, level=level)
    for begin, end in zip([0, *(parts or [])], [*(parts or []), len(source)], strict=True):
        part = slice(begin, end)
        totals.add(np.where(valid, source, 0)[part], np.where(valid, difference, 0)[part], valid[part], None)
    return totals


def images(seed: int = 0, shape=(3, 48, 40)):
    generator = np.random.default_rng(seed)
    source = generator.normal(0, 300, shape)
    return source, 1.02 * source - 7 + generator.normal(0, 20, shape)


def test_line_is_the_least_squares_fit_of_block_means():
    source, output = images()
    totals = totals_of(source, output, parts=[1])
    blocks = [image.reshape(3, 6, 8, 5, 8).mean(axis=(2, 4)).ravel() for image in (source, output)]
    np.testing.assert_allclose(totals.line(totals.maps()[8]), np.polyfit(*blocks, 1), rtol=1e-4)
    flat = totals_of(np.zeros((1, 32, 32)), np.ones((1, 32, 32)))
    assert all(map(math.isnan, flat.line(flat.maps()[8])))


def test_structure_is_a_correlation():
    source, output = images()
    valid = np.random.default_rng(1).random(source.shape) < 0.9
    whole, parts = totals_of(source, output, valid), totals_of(source, output, valid, parts=[1, 2])
    assert whole.structure() == pytest.approx(parts.structure(), abs=1e-9)
    assert abs(whole.structure()) < 0.1
    step = np.zeros((1, 64, 64))
    step[:, 32:] = 1000
    blurred = step.copy()
    blurred[:, 31], blurred[:, 32] = 200, 800
    assert totals_of(step, blurred).structure() > 0.4
    assert totals_of(step, step).structure() == 0 == totals_of(step, step + 5).structure()


def waves(size: int, level: int) -> np.ndarray:
    """What unit coefficients of the coarsest level look like, by PyWavelets: (size, coefficients)."""
    coarse, *details = pywt.wavedec(np.zeros(size), "db3", level=level)
    units = [pywt.waverec([unit, *details], "db3")[:size] for unit in np.eye(len(coarse))]
    return np.stack(units, axis=1)


def test_low_band_is_the_nearest_image_of_coarse_waves():
    source, output = images()
    expected = 0.0
    for before, after in zip(source, output, strict=True):
        difference = (after - before).astype(np.float64)
        along_x, along_y = (waves(size, 2) for size in difference.shape)
        rows = along_x @ np.linalg.lstsq(along_x, difference, rcond=None)[0]
        low = (along_y @ np.linalg.lstsq(along_y, rows.T, rcond=None)[0]).T
        expected = max(expected, np.abs(low).max())
    assert totals_of(source, output, parts=[2]).low_band == pytest.approx(expected, rel=1e-3)
    without = totals_of(source, output, level=(0, 0))
    assert without.low_band == pytest.approx(np.abs(output - source).max(), rel=1e-5)


def test_profile_over_slices():
    source, output = images(shape=(4, 48, 40))
    valid = np.random.default_rng(1).random(source.shape) < 0.7
    valid[2] = False  # a slice without any voxel has no mean
    means = np.array([[image[n][valid[n]].mean() for n in (0, 1, 3)] for image in (source, output)])
    expected = (*means.std(axis=1), (means[1] - means[0]).std())
    np.testing.assert_allclose(totals_of(source, output, valid, parts=[1]).profile(), expected, rtol=1e-4)
    assert totals_of(source[:1], output[:1]).profile() is None


def test_maps_of_stacks_are_joined():
    source, output = images()
    whole, parts = totals_of(source, output), totals_of(source, output, parts=[1, 2])
    for size, blocks in whole.maps().items():
        np.testing.assert_allclose(parts.maps()[size], blocks)
        assert blocks.shape == (3, -(-48 // size), -(-40 // size))
    assert parts.noise().shape == whole.noise().shape == (3, 6, 5)
