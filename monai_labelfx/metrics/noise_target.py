# SPDX-License-Identifier: Apache-2.0
"""The noise of high-dose images, as what a denoised image should have: a yardstick without pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor

from monai_labelfx.metrics._hu_slices import hu_slices, same_slices
from monai_labelfx.metrics.homogeneous_patches import find_homogeneous_patches
from monai_labelfx.metrics.noise_power_spectrum import RadialSpectrum, detrended, noise_power_spectrum, radial_spectrum

_TINY = 1e-30
_LEAST_SIZE = 8  # of a patch in a small image
_NOISELESS = 1e-6  # HU: below is rounding
_FLOOR = 1e-3  # of a target's noise and peak: below is no more than rounding


class NoiseMatch(NamedTuple):
    """How the noise of an image compares with that of a target.

    Example:
        >>> NoiseMatch(log_ratio=0.0, nps_distance=0.1, patches=16).nps_distance
        0.1
    """

    log_ratio: float
    """Natural logarithm of the standard deviation over the target's; above 0 for too much noise."""
    nps_distance: float
    """See :py:class:`NoiseTarget`."""
    patches: int
    """Number of patches that were compared."""


class NoiseTarget:
    """Standard deviation and texture of the noise in homogeneous patches of images, to compare others with.

    High-dose images that match no low-dose image still tell how a denoised one should look: how much noise is left in
    a homogeneous medium, and of which frequencies. A patch is freed of its best quadratic. The noise of an image is the
    median over its patches of their standard deviations, and the mean of their power spectra, each divided by its
    variance, so that the spectrum tells the texture alone. The target is the geometric mean of the one and the mean of
    the other over all images added.

    :py:meth:`compare` gives the logarithm of the ratio of standard deviations and the distance of the textures, ::

        distance = sum_k w_k |log(NPS_k / target_k)|,      w_k ~ f_k target_k,      sum_k w_k = 1

    over rings k of frequency f: weighted by the target's power in the ring, so that frequencies without noise, which
    hold rounding only, do not matter. Where patches lie is told from the image before denoising, so that all models
    are judged at the same places, and none by the patches that it smoothed most.

    Args:
        medium: (low, high) HU of the mean of a patch. Default -20 to 120, water and soft tissue.
        patch_size: side of the patches in the plane of the slices, in voxels. Default 32. At most a quarter of an
            image's shorter side; half, a quarter, ... of that, down to 8, in an image that has no such patch.
        patches: how many to take from an image at most, over all its slices.
        slices: of a volume, how many evenly spaced slices to look at.
        bins: number of rings.

    Raises:
        ValueError: when ``medium`` is no range or a number is below 1.

    Notes:
        Frequencies are in 1/mm, with the voxel size of ``MetaTensor``; other tensors have voxels of 1 mm. Rings end at
        the Nyquist frequency of the coarsest image added, for an even coarser image at its own.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> high, low = (std * torch.randn(1, 64, 64, generator=generator) + 40 for std in (10, 20))
        >>> target = NoiseTarget()
        >>> target.add(high)
        True
        >>> found = target.compare(low, source=low)
        >>> round(found.log_ratio, 1), found.nps_distance < 0.2
        (0.7, True)
    """

    def __init__(
        self,
        medium: Sequence[float] = (-20.0, 120.0),
        *,
        patch_size: int = 32,
        patches: int = 32,
        slices: int = 16,
        bins: int = 8,
    ) -> None:
        if len(medium) != 2 or not medium[0] < medium[1]:
            raise ValueError(f"medium must be a range (low, high) of HU, got {tuple(medium)}.")
        for name, number in (("patch_size", patch_size), ("patches", patches), ("slices", slices), ("bins", bins)):
            if number < 1:
                raise ValueError(f"{name} must be 1 or above, got {number}.")
        self.medium = float(medium[0]), float(medium[1])
        self.patch_size, self.patches, self.slices, self.bins = patch_size, patches, slices, bins
        self._deviations: list[float] = []
        self._spectra: list[tuple[torch.Tensor, tuple[torch.Tensor, ...]]] = []
        self._spectrum: RadialSpectrum | None = None

    def __len__(self) -> int:
        """Number of images that had a patch."""
        return len(self._deviations)

    def add(self, image: Any) -> bool:
        """Add an image (X, Y), (1, X, Y), (X, Y, Z) or (1, X, Y, Z) in HU; whether it had a patch."""
        found = self._noise(image, image)
        if found is None:
            return False
        deviation, nps, frequencies, _ = found
        if deviation > _NOISELESS:
            self._deviations.append(math.log(deviation))
            self._spectra.append((nps, frequencies))
            self._spectrum = None
        return deviation > _NOISELESS

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise in HU.

        Raises:
            ValueError: when no image with noise in a patch was added.
        """
        self._check()
        return math.exp(sum(self._deviations) / len(self._deviations))

    @property
    def spectrum(self) -> RadialSpectrum:
        """Radial power spectrum for unit variance, in mm^2.

        Raises:
            ValueError: when no image with noise in a patch was added.
        """
        self._check()
        if self._spectrum is None:
            limit = min(_nyquist(frequencies) for _, frequencies in self._spectra)
            radial = [radial_spectrum(*one, bins=self.bins, limit=limit) for one in self._spectra]
            frequency, power = (torch.stack(parts).nanmean(dim=0) for parts in zip(*radial, strict=True))
            self._spectrum = RadialSpectrum(frequency, power)
            self._limit = limit
        return self._spectrum

    def compare(self, image: Any, source: Any) -> NoiseMatch | None:
        """Compare the noise of an image with the target.

        Args:
            image: as in :py:meth:`add`.
            source: the image before denoising, of the same shape, which tells where the patches lie, and whose voxel
                size counts.

        Returns:
            ``None`` when the source has no homogeneous patch of the medium.

        Raises:
            ValueError: when shapes differ, or no image was added to the target.
        """
        target, deviation = self.spectrum, self.deviation
        found = self._noise(image, source)
        if found is None:
            return None
        own, nps, frequencies, count = found
        ratio = math.log(max(own / deviation, _FLOOR))
        rings = min(self.bins, int(_nyquist(frequencies) / self._limit * self.bins + 1e-9))
        if not rings:
            raise ValueError(
                f"an image has voxels of {0.5 / _nyquist(frequencies):g} mm, too large to compare its noise with that "
                f"of images with voxels of {0.5 / self._limit:g} mm."
            )
        power = radial_spectrum(nps, frequencies, bins=rings, limit=self._limit * rings / self.bins).power
        wanted, frequency = target.power[:rings], target.frequency[:rings]
        known = ~(power.isnan() | wanted.isnan())
        power, wanted, frequency = power[known], wanted[known], frequency[known]
        # Shapes within the rings that both have: another voxel size cuts the spectrum off at another place.
        power, wanted = (part / (part * frequency).sum().clamp(min=_TINY) for part in (power, wanted))
        floor = _FLOOR * wanted.max()
        distance = (wanted * frequency * ((power + floor) / (wanted + floor)).log().abs()).sum()
        return NoiseMatch(ratio, float(distance), count)

    def _sizes(self, shortest: int) -> Iterator[int]:
        size = min(self.patch_size, max(shortest // 4, _LEAST_SIZE), shortest)
        yield size
        while size // 2 >= _LEAST_SIZE:
            size //= 2
            yield size

    def _check(self) -> None:
        if not self._deviations:
            low, high = self.medium
            raise ValueError(
                f"no high-dose image has a homogeneous patch of {low:g} to {high:g} HU with a side of "
                f"{self.patch_size}: choose another medium or a smaller patch_size."
            )

    def _noise(self, image: Any, source: Any) -> tuple[float, torch.Tensor, tuple[torch.Tensor, ...], int] | None:
        before = hu_slices(source, "source")
        after = same_slices(before, image, "image")
        chosen = evenly_spaced(len(before), self.slices)
        rois: list[np.ndarray] = []
        for size in self._sizes(min(before.shape[1:])):
            for number in chosen:
                for x, y in _places(before[number], self.medium, size, -(-self.patches // len(chosen))):
                    rois.append(after[number, x : x + size, y : y + size])
            if rois:
                break
        else:
            return None
        residual = detrended(torch.from_numpy(np.stack(rois[: self.patches]).astype(np.float64)), "quadratic")
        deviations = residual.square().mean(dim=(1, 2), keepdim=True).sqrt()
        # A patch without noise has no texture.
        unit = torch.where(deviations > _NOISELESS, residual / deviations, 0.0)
        spacing = source.pixdim[:2].tolist() if isinstance(source, MetaTensor) else 1.0
        nps, frequencies = noise_power_spectrum(unit, spacing)
        return float(deviations.median()), nps, frequencies, len(residual)


def _places(plane: np.ndarray, medium: tuple[float, float], size: int, count: int) -> np.ndarray:
    """First voxels (K, 2) of patches of a slice."""
    low, high = medium
    # Patches that overlap by half at most are best; then any; strong noise hides a medium from little smoothing.
    for stride, sigma in ((max(1, size // 2), size / 8), (max(1, size // 4), size / 8), (max(1, size // 4), size / 3)):
        places = find_homogeneous_patches(plane, low=low, high=high, size=size, count=count, stride=stride, sigma=sigma)
        if len(places):
            break
    return places


def evenly_spaced(length: int, count: int) -> list[int]:
    """At most ``count`` evenly spaced numbers from 0 to ``length - 1``.

    Example:
        >>> evenly_spaced(9, 3), evenly_spaced(2, 3), evenly_spaced(9, 1)
        ([0, 4, 8], [0, 1], [4])
    """
    if count == 1:
        return [length // 2]
    return np.unique(np.linspace(0, length - 1, min(count, length)).round().astype(int)).tolist()


def _nyquist(frequencies: Sequence[torch.Tensor]) -> float:
    return min(len(axis) * float(axis[1]) / 2 for axis in frequencies if len(axis) > 1)
