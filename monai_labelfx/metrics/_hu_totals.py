# SPDX-License-Identifier: Apache-2.0
"""Everything an audit of CT numbers keeps of the slices that it was shown."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from monai_labelfx.metrics._hu_blocks import BlockMeans, block_noise
from monai_labelfx.metrics._hu_classes import SMOOTHINGS, class_map, gradient_magnitude, smoothed
from monai_labelfx.metrics._hu_regions import RegionSums
from monai_labelfx.metrics._hu_report import HUSlices
from monai_labelfx.ops.wavelet import high_pass_split


class HUTotals:
    """Sums and maps of stacks of slices.

    Args:
        ranges: [low, high) of each class, in HU.
        sigma: of the Gaussian from which classes are told, in voxels.
        block_sizes: sides of the blocks of the maps.
        block_size: the one of them for everything else.
        wavelet: of the low band.
        level: of the low band along x and y.
    """

    def __init__(
        self,
        *,
        ranges: Sequence[tuple[float, float]],
        sigma: float,
        block_sizes: Sequence[int],
        block_size: int,
        wavelet: str,
        level: tuple[int, int],
    ) -> None:
        self.ranges, self.sigma = ranges, sigma
        self.block_size = block_size
        self.wavelet, self.level = wavelet, level
        self.classes, self.rois = RegionSums(block_size), RegionSums(block_size)
        self.low_band = 0.0
        self._maps: dict[int, list[np.ndarray]] = {size: [] for size in block_sizes}
        self._noise: list[np.ndarray] = []
        self._before: list[np.ndarray] = []
        self._slices: list[np.ndarray] = []
        self._moments = np.zeros(6)

    def add(self, values: np.ndarray, difference: np.ndarray, valid: np.ndarray, labels: np.ndarray | None) -> None:
        """Add slices (S, X, Y): source and output minus source, 0 where not valid, and labels of regions."""
        smooth = smoothed(values, valid, self.sigma)
        self.classes.add(class_map(smooth, valid, self.sigma, self.ranges), values, difference)
        if labels is not None:
            self.rois.add(np.where(valid & (labels > 0), labels, -1), values, difference)
        parts = [self.block_size // number for number in (2, 4, 8)]  # for the noise
        means = BlockMeans(difference, valid, [*self._maps, *parts])
        for size, maps in self._maps.items():
            maps.append(means[size])
        self._noise.append(block_noise(means, self.block_size))
        self._before.append(BlockMeans(values, valid, [*parts, self.block_size])[self.block_size])
        self.low_band = max(self.low_band, float(np.abs(self._low(difference)).max()))
        fine = smooth if self.sigma == SMOOTHINGS[0] else smoothed(values, valid, SMOOTHINGS[0])
        a, b = (part[valid].astype(np.float64) for part in (np.abs(difference), gradient_magnitude(fine)))
        self._moments += (a.size, a.sum(), b.sum(), a @ a, b @ b, a @ b)
        counts = valid.sum(axis=(1, 2))
        sums = np.stack([part.sum(axis=(1, 2), dtype=np.float64) for part in (values, difference)])
        self._slices.append((sums / np.maximum(counts, 1))[:, counts > 0])

    def _low(self, difference: np.ndarray) -> np.ndarray:
        """L(difference), which is L(output) - L(source): L is linear."""
        if not any(self.level):
            return difference
        values = torch.from_numpy(difference)[:, None]
        _, low = high_pass_split(values, wavelet=self.wavelet, level=self.level, mode="orthogonal")
        return low.numpy()

    def maps(self) -> dict[int, np.ndarray]:
        """Side of the blocks -> differences of their means (S, BX, BY), NaN where there is no block."""
        return {size: np.concatenate(parts) for size, parts in self._maps.items()}

    def noise(self) -> np.ndarray:
        """Standard errors (S, BX, BY) of the differences of ``block_size``, by the noise that was removed."""
        return np.concatenate(self._noise)

    def line(self, difference: np.ndarray) -> tuple[float, float]:
        """Slope and intercept of the output's block means against the source's; NaN where these are all alike."""
        before = np.concatenate(self._before)
        defined = ~np.isnan(difference)
        x, d = before[defined], difference[defined]
        if len(x) < 2 or np.ptp(x) == 0:
            return math.nan, math.nan
        slope = 1 + float((x - x.mean()) @ d / np.square(x - x.mean()).sum())
        return slope, float(x.mean() + d.mean() - slope * x.mean())

    def structure(self) -> float:
        """Correlation of the absolute difference with the gradient of the source; 0 where one of them is constant."""
        n, a, b, aa, bb, ab = self._moments
        spread = (n * aa - a * a) * (n * bb - b * b)
        return float((n * ab - a * b) / math.sqrt(spread)) if n and spread > 1e-12 * n**4 else 0.0

    def profile(self) -> HUSlices | None:
        """How the means of slices scatter; ``None`` for fewer than two slices."""
        before, shift = np.concatenate(self._slices, axis=1)
        if len(before) < 2:
            return None
        return HUSlices(float(before.std()), float((before + shift).std()), float(shift.std()))
