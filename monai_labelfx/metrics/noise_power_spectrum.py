# SPDX-License-Identifier: Apache-2.0
"""Noise power spectrum of homogeneous regions, in any number of dimensions, and its radial profile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any, Literal, NamedTuple

import torch


class RadialSpectrum(NamedTuple):
    """Radial profile of a noise power spectrum, see :py:func:`radial_spectrum`.

    Both of its vectors are NaN in a ring that holds no sample of the spectrum.

    Example:
        >>> spectrum = RadialSpectrum(torch.tensor([0.25, 0.5, 0.75]), torch.tensor([1.0, 3.0, 0.0]))
        >>> spectrum.peak_frequency, spectrum.mean_frequency
        (0.5, 0.4375)
    """

    frequency: torch.Tensor
    """Mean frequency of each ring, (bins,) float64, in 1/mm."""
    power: torch.Tensor
    """Mean power of each ring, (bins,) float64, in HU^2 mm^D."""

    @property
    def peak_frequency(self) -> float:
        """Frequency in 1/mm of the ring with the most power."""
        return float(self.frequency[self.power.nan_to_num(-1.0).argmax()])

    @property
    def mean_frequency(self) -> float:
        """``sum(f NPS(f)) / sum(NPS(f))`` over the rings, in 1/mm; NaN for a spectrum without power."""
        known = ~self.power.isnan()
        frequency, power = self.frequency[known], self.power[known]
        return float((frequency * power).sum() / power.sum())


def noise_power_spectrum(
    rois: Any, spacing: float | Sequence[float] = 1.0, *, detrend: Literal["mean", "quadratic"] = "mean"
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Noise power spectrum of N regions of one size: ``NPS(f) = mean_i |DFT(roi_i - trend_i)|^2 prod(p) / prod(n)``.

    With n voxels of p mm along each of the D axes, its integral over frequency, ``NPS.sum() / prod(n p)``, is the mean
    variance of the detrended regions (Parseval), so the unit is HU^2 mm^D.

    Deep denoisers move noise to low frequencies, which a standard deviation does not show. AAPM TG-233 (Samei et al.,
    Med Phys 2019) describes the protocol; regions should lie in one homogeneous medium, many and of 32 voxels or more.
    The difference of two repeated scans may be given in place of regions; its spectrum is then twice that of a scan.

    Args:
        rois: (N, \\*size) regions in HU, a tensor or an array. All that follows the first axis is spatial.
        spacing: voxel size in mm, one number or one per axis. Default 1, so that frequencies are in 1/voxel.
        detrend: what is not noise: ``"mean"`` (default) subtracts the mean of each region, ``"quadratic"`` the
            polynomial of second order that fits best (cupping, slow gradients); it takes the lowest frequencies with
            it: 6 of the ``n^2`` degrees of freedom of a square.

    Returns:
        The spectrum, (\\*size,) float64, with frequency zero first along each axis as ``torch.fft.fftn`` has it; and
        one vector of frequencies in 1/mm per axis, as ``torch.fft.fftfreq`` gives them.

    Raises:
        ValueError: when ``rois`` has no region or no spatial axis, or is not finite; ``spacing`` does not fit or is
            not positive; or ``detrend`` is unknown.

    Example:
        >>> rois = 10 * torch.randn(64, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> nps, frequencies = noise_power_spectrum(rois, spacing=0.5)
        >>> tuple(nps.shape), frequencies[0][:3].tolist()
        ((16, 16), [0.0, 0.125, 0.25])
        >>> round(float(nps.sum() / (16 * 0.5) ** 2), 4) == round(float(rois.var((1, 2), correction=0).mean()), 4)
        True
    """
    rois = plain_hu(rois)
    if rois.ndim < 2 or not rois.numel():
        raise ValueError(f"rois must be at least one region (N, *size), got shape {tuple(rois.shape)}.")
    if not rois.isfinite().all():
        raise ValueError("rois must hold finite HU, got NaN or infinity.")
    size = rois.shape[1:]
    spacing = spacing_of(spacing, len(size))
    residual = detrended(rois, detrend)
    power = torch.fft.fftn(residual, dim=tuple(range(1, rois.ndim))).abs().square().mean(dim=0)
    power *= math.prod(spacing) / math.prod(size)
    axes = zip(size, spacing, strict=True)
    return power, tuple(torch.fft.fftfreq(n, d, dtype=power.dtype, device=power.device) for n, d in axes)


def radial_spectrum(
    nps: torch.Tensor, frequencies: Sequence[torch.Tensor], *, bins: int | None = None, limit: float | None = None
) -> RadialSpectrum:
    """Mean of a noise power spectrum over rings (shells) of frequency.

    Rings of equal width end at the Nyquist frequency of the coarsest axis: beyond it, in the corners, rings are cut
    off and directions are missing. Frequency zero, which detrending has emptied, belongs to no ring. Axes of one voxel
    have no frequencies and are left out.

    Args:
        nps: spectrum (\\*size) as :py:func:`noise_power_spectrum` returns it.
        frequencies: its frequencies in 1/mm, one vector per axis.
        bins: number of rings. Default ``None``: as wide as the widest frequency step of all axes.
        limit: where the last ring ends, in 1/mm. Default ``None``: the Nyquist frequency of the coarsest axis, which
            is also the most there is; a common smaller one makes spectra of several voxel sizes comparable.

    Raises:
        ValueError: when frequencies do not fit the spectrum, all axes have one voxel, ``bins`` is below 1, or
            ``limit`` is not above 0 or is beyond the Nyquist frequency.

    Example:
        >>> nps, frequencies = noise_power_spectrum(torch.randn(8, 16, 32), spacing=(1.0, 0.5))
        >>> radial = radial_spectrum(nps, frequencies)
        >>> len(radial.power), bool(radial.frequency.max() <= 0.5)
        (8, True)
    """
    if tuple(nps.shape) != tuple(len(axis) for axis in frequencies):
        lengths = tuple(len(axis) for axis in frequencies)
        raise ValueError(f"frequencies must have one vector per axis of nps {tuple(nps.shape)}, got lengths {lengths}.")
    used = [axis for axis in frequencies if len(axis) > 1]
    if not used:
        raise ValueError(f"nps must have an axis of two voxels or more, got shape {tuple(nps.shape)}.")
    steps = [float(axis[1]) for axis in used]
    nyquist = min(len(axis) * step / 2 for axis, step in zip(used, steps, strict=True))
    limit = nyquist if limit is None else limit
    if not 0 < limit <= nyquist * (1 + 1e-9):
        raise ValueError(f"limit must be above 0 and at most the Nyquist frequency {nyquist:g} /mm, got {limit:g}.")
    bins = max(1, int(limit / max(steps) + 1e-9)) if bins is None else bins
    if bins < 1:
        raise ValueError(f"bins must be 1 or above, got {bins}.")

    # The sums run on the CPU, where they are deterministic; a spectrum is small.
    square = torch.zeros((1,) * nps.ndim, dtype=torch.float64)
    for number, axis in enumerate(frequencies):
        square = square + axis.cpu().double().square().reshape(-1, *(1,) * (nps.ndim - 1 - number))
    radius = square.sqrt().flatten()
    ring = (radius * (bins / limit) - 1e-9).ceil().long() - 1  # ring k is (k, k + 1] * limit / bins
    inside = (ring >= 0) & (ring < bins)
    ring, radius, power = ring[inside], radius[inside], nps.cpu().double().flatten()[inside]
    count, frequency, total = (
        torch.bincount(ring, weight, bins) for weight in (torch.ones_like(radius), radius, power)
    )
    return RadialSpectrum((frequency / count).to(nps.device), (total / count).to(nps.device))


def spacing_of(spacing: float | Sequence[float], axes: int) -> tuple[float, ...]:
    """Voxel size in mm per axis. Raises ValueError when it does not fit or is not positive."""
    sizes = (float(spacing),) * axes if isinstance(spacing, int | float) else tuple(float(size) for size in spacing)
    if len(sizes) != axes or not all(0 < size < math.inf for size in sizes):
        raise ValueError(f"spacing must be {axes} positive numbers in mm, one per axis, got {spacing}.")
    return sizes


def plain_hu(values: Any) -> torch.Tensor:
    """Values as float64, without meta data; on a device without float64, as float32."""
    values = torch.as_tensor(values).detach().as_subclass(torch.Tensor)
    return values.to(torch.float32 if values.device.type == "mps" else torch.float64)


def detrended(rois: torch.Tensor, detrend: str) -> torch.Tensor:
    """Regions (N, \\*size) without their mean or their best quadratic."""
    if detrend == "mean":
        return rois - rois.mean(dim=tuple(range(1, rois.ndim)), keepdim=True)
    if detrend != "quadratic":
        raise ValueError(f"detrend must be 'mean' or 'quadratic', got {detrend!r}.")
    size = rois.shape[1:]
    # An axis of n voxels tells polynomials up to order n - 1 apart.
    orders = [order for order in product(*(range(min(3, length)) for length in size)) if sum(order) <= 2]
    columns = []
    for order in orders:
        column = torch.ones((1,) * len(size), dtype=rois.dtype, device=rois.device)
        for axis, (length, power) in enumerate(zip(size, order, strict=True)):
            place = torch.linspace(-1, 1, length, dtype=rois.dtype, device=rois.device) ** power
            column = column * place.reshape(-1, *(1,) * (len(size) - 1 - axis))
        columns.append(column.expand(size).flatten())
    basis, _ = torch.linalg.qr(torch.stack(columns, dim=1))
    flat = rois.flatten(start_dim=1)
    return (flat - (flat @ basis) @ basis.mT).reshape(rois.shape)
