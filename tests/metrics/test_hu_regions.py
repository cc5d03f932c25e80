# SPDX-License-Identifier: Apache-2.0
"""Shifts of regions against plain means, and whether the bootstrap's intervals hold what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from monai_labelfx.metrics._hu_regions import RegionSums, bootstrap_ratio

OPTIONS = {"replicates": 300, "confidence": 0.95, "seed": 0}


def test_equals_plain_means_over_several_stacks():
    generator = np.random.default_rng(0)
    regions = generator.integers(-1, 3, (5, 30, 21))
    regions[regions == 1] = 70_000  # labels may be large and have gaps
    source, difference = generator.normal(size=(2, 5, 30, 21)).astype(np.float32)
    sums = RegionSums(8)
    for part in (slice(0, 2), slice(2, 5)):
        sums.add(regions[part], source[part], difference[part])
    sums.add(np.full((1, 30, 21), -1), source[:1], difference[:1])
    found = sums.shifts(least=1, **OPTIONS)
    assert list(found) == [0, 2, 70_000]
    for region, shift in found.items():
        inside = regions == region
        assert shift.voxels == inside.sum()
        assert shift.before == pytest.approx(source[inside].mean(dtype=np.float64), abs=1e-9)
        assert shift.shift == pytest.approx(difference[inside].mean(dtype=np.float64), abs=1e-9)
        assert shift.low < shift.shift < shift.high
    assert sums.shifts(least=10**6, **OPTIONS) == {} and RegionSums(8).shifts(least=1, **OPTIONS) == {}


def test_blocks_are_the_units():
    difference = np.random.default_rng(0).normal(size=(2, 20, 12))
    regions = np.random.default_rng(1).integers(-1, 1, difference.shape)
    sums = RegionSums(8)
    sums.add(regions, difference, difference)
    blocks = []
    for number, x, y in np.ndindex(2, 3, 2):
        part = (number, slice(8 * x, 8 * x + 8), slice(8 * y, 8 * y + 8))
        inside = difference[part][regions[part] == 0]
        blocks.append((inside.sum(), inside.size))
    expected = bootstrap_ratio(*np.array(blocks).T, **OPTIONS)
    np.testing.assert_allclose(sums.shifts(least=1, **OPTIONS)[0][3:], expected, rtol=1e-9)


def test_a_region_in_one_block_has_no_interval():
    regions = np.full((1, 16, 16), -1)
    regions[0, :4, :4] = 1
    sums = RegionSums(8)
    sums.add(regions, np.ones((1, 16, 16)), np.full((1, 16, 16), 3.0))
    (shift,) = sums.shifts(least=1, **OPTIONS).values()
    assert shift[:3] == (16, 1.0, 3.0) and math.isnan(shift.low) and math.isnan(shift.high)


def test_the_interval_is_that_of_plain_loops():
    generator = np.random.default_rng(0)
    counts = generator.integers(1, 50, 12).astype(float)
    sums = counts * generator.normal(2, 1, 12)
    drawn = np.random.default_rng(7).integers(12, size=(400, 12))
    mean = sums.sum() / counts.sum()
    replicates = [mean + (sums[row].sum() / counts[row].sum() - mean) * math.sqrt(12 / 11) for row in drawn]
    expected = np.quantile(replicates, [0.05, 0.95])
    found = bootstrap_ratio(sums, counts, replicates=400, confidence=0.9, seed=7)
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("blocks", [8, 40])
def test_intervals_hold_the_mean_as_often_as_they_say(blocks):
    generator = np.random.default_rng(0)
    held = []
    for trial in range(300):
        sums = 16 * generator.normal(5, 2, blocks)
        low, high = bootstrap_ratio(sums, np.full(blocks, 16.0), replicates=400, confidence=0.9, seed=trial)
        held.append(low <= 5 <= high)
    assert 0.82 < np.mean(held) < 0.96


def test_many_blocks_are_joined_with_their_neighbours():
    generator = np.random.default_rng(0)
    independent = generator.normal(0, 1, 20_000)
    alike = np.repeat(generator.normal(0, 1, 2_000), 10)  # ten neighbours have one value
    counts = np.ones(20_000)
    widths = []
    for sums in (independent, alike):
        low, high = bootstrap_ratio(sums, counts, replicates=400, confidence=0.95, seed=0)
        assert low < sums.mean() < high
        widths.append(high - low)
    assert widths[0] == pytest.approx(2 * 1.96 / math.sqrt(20_000), rel=0.2)
    assert widths[1] == pytest.approx(2 * 1.96 / math.sqrt(2_000), rel=0.25)
