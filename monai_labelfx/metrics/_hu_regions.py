# SPDX-License-Identifier: Apache-2.0
"""Mean shifts of regions, gathered block by block, and their bootstrap intervals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

_UNITS = 2048  # what is resampled at most: neighbouring blocks beyond that number are joined
_DRAWS = 2_000_000  # numbers of one array


class HUShift(NamedTuple):
    """How a region was moved.

    Example:
        >>> HUShift(voxels=900, before=40.0, shift=0.5, low=0.2, high=0.8).shift
        0.5
    """

    voxels: int
    before: float
    """Mean of the input, HU."""
    shift: float
    """Mean of output minus input, HU."""
    low: float
    """Ends of the bootstrap interval of the shift; NaN for a region in fewer than two blocks."""
    high: float


class RegionSums:
    """Numbers of voxels and sums of regions in blocks, added stack by stack; only blocks that have voxels are kept."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._parts: list[np.ndarray] = []  # rows of region, voxels, sum of input, sum of difference

    def add(self, regions: np.ndarray, source: np.ndarray, difference: np.ndarray) -> None:
        """Add slices (S, X, Y); ``regions`` holds whole numbers, below 0 for none."""
        inside = regions >= 0
        found = regions[inside]
        if not found.size:
            return
        shape = [-(-extent // self.size) for extent in regions.shape[1:]]
        place = np.arange(len(regions))[:, None, None]
        for axis, count in enumerate(shape, start=1):
            step = np.arange(regions.shape[axis]) // self.size
            place = place * count + (step[:, None] if axis == 1 else step)
        blocks = len(regions) * shape[0] * shape[1]
        names, index = np.unique(found, return_inverse=True)
        rows = index.reshape(-1) * blocks + np.broadcast_to(place, regions.shape)[inside]
        counts, first, second = (
            np.bincount(rows, weights, minlength=len(names) * blocks)
            for weights in (None, source[inside].astype(np.float64), difference[inside].astype(np.float64))
        )
        used = np.flatnonzero(counts)
        self._parts.append(np.stack([names[used // blocks], counts[used], first[used], second[used]], axis=1))

    def shifts(self, *, least: int, replicates: int, confidence: float, seed: int) -> dict[int, HUShift]:
        """Region -> shift, of the regions with at least ``least`` voxels, in rising order."""
        rows = np.concatenate(self._parts) if self._parts else np.zeros((0, 4))
        result = {}
        for region in np.unique(rows[:, 0]):
            counts, before, sums = rows[rows[:, 0] == region, 1:].T
            voxels = counts.sum()
            if voxels >= least:
                low, high = bootstrap_ratio(sums, counts, replicates=replicates, confidence=confidence, seed=seed)
                shift = HUShift(int(voxels), float(before.sum() / voxels), float(sums.sum() / voxels), low, high)
                result[int(region)] = shift
        return result


def bootstrap_ratio(
    sums: np.ndarray, counts: np.ndarray, *, replicates: int, confidence: float, seed: int
) -> tuple[float, float]:
    """Percentile bootstrap interval of ``sum(sums) / sum(counts)`` over blocks, which are drawn with replacement.

    The replicates' distances from the mean are stretched by sqrt(n / (n - 1)) for n blocks, or few blocks would give
    intervals that are too narrow. NaN for fewer than two blocks. Beyond 2048 blocks neighbours are drawn together.

    Example:
        >>> bootstrap_ratio(np.full(9, 32.0), np.full(9, 16.0), replicates=50, confidence=0.95, seed=0)
        (2.0, 2.0)
    """
    if len(sums) < 2:
        return np.nan, np.nan
    if len(sums) > _UNITS:
        edges = np.arange(_UNITS) * len(sums) // _UNITS
        sums, counts = np.add.reduceat(sums, edges), np.add.reduceat(counts, edges)
    number, mean = len(sums), sums.sum() / counts.sum()
    generator = np.random.default_rng(seed)
    step = max(1, _DRAWS // number)
    parts = []
    for begin in range(0, replicates, step):
        drawn = generator.integers(number, size=(min(step, replicates - begin), number))
        parts.append(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    spread = (np.concatenate(parts) - mean) * np.sqrt(number / (number - 1))
    low, high = mean + np.quantile(spread, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
