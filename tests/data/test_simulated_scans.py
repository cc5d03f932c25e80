# SPDX-License-Identifier: Apache-2.0
"""Simulated scans of one slice: the noise of each dose, independent, and the anatomy of another filter."""

from __future__ import annotations

import numpy as np
import pytest

from monai_labelfx.data._simulated_scans import SimulatedScans

X, Y = np.indices((96, 96)) - 48
CLEAN = np.where(np.hypot(X, Y) < 36, 0.0, -1000.0)
CENTRE = np.hypot(X, Y) < 20
AFFINE = np.array([[0, 3.0, 0, 0], [-3.0, 0, 0, 0], [0, 0, 5, 0], [0, 0, 0, 1]])


def test_doses_have_their_noise_and_share_none():
    scans = SimulatedScans(AFFINE, photons=1e6, seed=1)
    pairs = [[one - CLEAN for one in scans(CLEAN, number, [0.25, 1.0])] for number in range(8)]
    low, full = (np.array([pair[place][CENTRE] for pair in pairs]) for place in (0, 1))
    assert low.std() / full.std() == pytest.approx(2.0, rel=0.05)
    assert abs(low.mean()) < 0.5 and abs(full.mean()) < 0.3
    assert abs(np.corrcoef(low.ravel(), full.ravel())[0, 1]) < 0.05
    assert abs(np.corrcoef(low[0], low[1])[0, 1]) < 0.15
    again = scans(CLEAN, 3, [0.25])[0]
    assert again.dtype == np.float32 and np.array_equal(again - CLEAN, pairs[3][0])
    assert not np.array_equal(again, SimulatedScans(AFFINE, photons=1e6, seed=2)(CLEAN, 3, [0.25])[0])


def test_another_filter_changes_noise_and_edges_and_keeps_hu():
    scans = SimulatedScans(AFFINE, photons=1e6)
    sharp, smooth = (scans(CLEAN, 0, [1.0], filter_name=name)[0] for name in ("ramp", "hann"))
    assert smooth[CENTRE].std() < 0.6 * sharp[CENTRE].std()
    assert smooth[CENTRE].mean() == pytest.approx(0, abs=1)
    outside = np.hypot(X, Y) > 49
    assert outside.any() and (smooth[outside] == CLEAN[outside]).all(), "nothing is reconstructed there"
    steps = [np.abs(np.diff(one[:, 48])).max() for one in (sharp, smooth)]
    assert steps[1] < 0.8 * steps[0], "the edge of the body is softer"


def test_options_are_checked():
    with pytest.raises(ValueError, match="dose_fraction must be above 0 and at most 1, got 2"):
        SimulatedScans(AFFINE, photons=1e6)(CLEAN, 0, [2.0])
    with pytest.raises(ValueError, match="filter_name must be one of ramp"):
        SimulatedScans(AFFINE, photons=1e6)(CLEAN, 0, [1.0], filter_name="none")
