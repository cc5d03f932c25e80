# SPDX-License-Identifier: Apache-2.0
"""Which voxels belong to air, fat, bone, ...: told from a smoothed image, so that noise does not choose them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

SMOOTHINGS = (2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
"""Standard deviations of the Gaussian that are tried, in voxels."""
_TRUNCATE = 3.0  # standard deviations at which the Gaussian ends
_PAIRS = 256  # least number of voxel pairs that tell the noise
# Upper quartile of the absolute difference of two voxels two sigma apart, in white noise of standard deviation 1 after
# smoothing: its correlation at a distance r is exp(-r ** 2 / (4 sigma ** 2)).
_APART = 1.1503493803760079 * math.sqrt(2 - 2 * math.exp(-1))
_MARGIN = 2.0  # how many standard deviations of the Gaussian are taken off the regions


def smoothed(values: np.ndarray, valid: np.ndarray, sigma: float) -> np.ndarray:
    """Slices (S, X, Y), each smoothed by a Gaussian over its valid voxels, float32; 0 far from any valid voxel."""

    def blur(array: np.ndarray) -> np.ndarray:
        array = array.astype(np.float32)
        return ndimage.gaussian_filter(array, (0, sigma, sigma), mode="nearest", truncate=_TRUNCATE)

    if valid.all():
        return blur(values)
    weight = blur(valid)
    return np.divide(blur(np.where(valid, values, 0)), weight, out=np.zeros_like(weight), where=weight > 1e-6)


def smoothed_noise(difference: np.ndarray, valid: np.ndarray, regions: np.ndarray, sigma: float) -> float:
    """Standard deviation of the noise that was removed, after smoothing: of differences between voxels two sigma apart.

    Both voxels lie in regions of one class, so that a shift of a class cancels. The upper quartile tells, since air
    often has less noise than tissue. NaN where the regions have few such pairs.

    Args:
        difference: output minus input, (S, X, Y), 0 where not valid.
        valid: bool, (S, X, Y).
        regions: see :py:func:`class_map`.
        sigma: of the Gaussian, in voxels.
    """
    smooth, step = smoothed(difference, valid, sigma), int(np.ceil(2 * sigma))
    apart = []
    for axis in (1, 2):
        values, names = np.moveaxis(smooth, axis, 0), np.moveaxis(regions, axis, 0)
        same = (names[step:] == names[:-step]) & (names[step:] >= 0)
        apart.append(np.abs(values[step:] - values[:-step])[same])
    pairs = np.concatenate(apart)
    return float(np.quantile(pairs, 0.75)) / _APART if len(pairs) >= _PAIRS else math.nan


def choose_smoothing(
    source: np.ndarray,
    difference: np.ndarray,
    valid: np.ndarray,
    ranges: Sequence[tuple[float, float]],
    limit: float,
    sigmas: Sequence[float] = SMOOTHINGS,
) -> tuple[float, float]:
    """The least of ``sigmas`` after which the removed noise is at most ``limit``, and that noise, HU.

    If it stays above, the largest that leaves regions; if none does, the least, with noise 0.
    """
    chosen = (sigmas[0], 0.0)
    for sigma in sigmas:
        regions = class_map(smoothed(source, valid, sigma), valid, sigma, ranges)
        noise = smoothed_noise(difference, valid, regions, sigma)
        if not math.isnan(noise):
            chosen = (sigma, noise)
        if noise <= limit:
            break
    return chosen


def check_classes(classes: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    """Classes as name -> (low, high).

    Raises:
        ValueError: when a range is none, or two overlap.
    """
    checked: dict[str, tuple[float, float]] = {}
    for name, ends in classes.items():
        if len(ends) != 2 or not ends[0] < ends[1]:
            raise ValueError(f"classes[{name!r}] must be a range (low, high) of HU, got {tuple(ends)}.")
        low, high = float(ends[0]), float(ends[1])
        for other, (bottom, top) in checked.items():
            if low < top and bottom < high:
                raise ValueError(
                    f"classes {other!r} and {name!r} overlap: ({bottom:g}, {top:g}) and ({low:g}, {high:g})."
                )
        checked[name] = (low, high)
    return checked


def class_map(smooth: np.ndarray, valid: np.ndarray, sigma: float, ranges: Sequence[tuple[float, float]]) -> np.ndarray:
    """The class of each voxel, (S, X, Y) int16, -1 for none; the regions are eroded by two sigma in the plane.

    Args:
        smooth: smoothed slices (S, X, Y).
        valid: bool, (S, X, Y).
        sigma: of the Gaussian, in voxels: at a border it mixes what lies within some two sigma.
        ranges: [low, high) of each class, in HU.
    """
    found = np.full(smooth.shape, -1, np.int16)
    for number, (low, high) in enumerate(ranges):
        found[(smooth >= low) & (smooth < high) & valid] = number
    return eroded(found, int(np.ceil(_MARGIN * sigma)))


def eroded(regions: np.ndarray, radius: int) -> np.ndarray:
    """A map of classes in which a voxel keeps its own only if all within ``radius`` along x and y have it; else -1.

    Example:
        >>> eroded(np.array([[[0, 0, 0, 1, 1]]]), 1).tolist()
        [[[0, 0, -1, -1, 1]]]
    """
    lowest = highest = regions
    for axis in (1, 2):
        side = 2 * radius + 1
        lowest = ndimage.minimum_filter1d(lowest, side, axis=axis, mode="nearest")
        highest = ndimage.maximum_filter1d(highest, side, axis=axis, mode="nearest")
    return np.where(lowest == highest, regions, -1).astype(regions.dtype)


def gradient_magnitude(smooth: np.ndarray) -> np.ndarray:
    """Of slices (S, X, Y), in HU per voxel, float32; an axis of one voxel has no slope."""
    total = np.zeros_like(smooth)
    for axis in (1, 2):
        if smooth.shape[axis] > 1:
            total += np.square(np.gradient(smooth, axis=axis))
    return np.sqrt(total)
