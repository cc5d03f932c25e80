# SPDX-License-Identifier: Apache-2.0
"""Task transfer function: how an imaging chain passes on the edge of a round insert."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from monai_labelfx.metrics.noise_power_spectrum import plain_hu, spacing_of

_BINS_PER_VOXEL = 10  # of the edge profile


class EdgeTransfer(NamedTuple):
    """Result of :py:func:`edge_transfer`.

    Example:
        >>> EdgeTransfer._fields
        ('frequency', 'transfer', 'f50', 'f10', 'contrast', 'distance', 'edge')
    """

    frequency: torch.Tensor
    """(F,) float64, in 1/mm, from 0 to the Nyquist frequency of the finest axis."""
    transfer: torch.Tensor
    """(F,) float64, task transfer function; 1 at frequency 0."""
    f50: float
    """Frequency in 1/mm where it first falls to 50 %; NaN if it never does."""
    f10: float
    """Likewise to 10 %."""
    contrast: float
    """HU inside minus HU outside, far from the edge. State it with the frequencies."""
    distance: torch.Tensor
    """(R,) float64, distance to the centre in mm."""
    edge: torch.Tensor
    """(R,) float64, mean HU at that distance."""


def edge_transfer(
    image: Any,
    centre: Sequence[float],
    radius: float,
    *,
    spacing: float | Sequence[float] = 1.0,
    margin: float | None = None,
    points: int = 128,
) -> EdgeTransfer:
    """Task transfer function (TTF) from the edge of a circular insert (2-D) or a sphere (3-D), as in AAPM TG-233.

    The voxels within ``margin`` of the edge are sorted by their distance r to the centre, which samples the edge far
    more finely than the grid. Their means in bins of a tenth of a voxel are the edge spread function ESF(r); then
    ``LSF = d ESF / dr`` and ``TTF(f) = |FT(LSF)(f)| / |FT(LSF)(0)|``. Bins and differences lower it
    by 0.8 % at the Nyquist frequency, less below.

    For a linear system that is its MTF. Denoisers are not linear: their TTF falls with the contrast of the insert and
    with the noise, so measure it on inserts of several contrasts, at the dose in question, and state both.

    Args:
        image: (..., \\*spatial) HU, a tensor or an array; axes before the spatial ones (slices of a cylinder,
            repeated scans) are averaged, which noise calls for.
        centre: centre of the insert in voxels, one number per spatial axis; voxel centres have whole numbers.
        radius: radius of the insert in mm.
        spacing: voxel size in mm, one number or one per axis. Default 1: everything is in voxels.
        margin: reach of the profile on both sides of the edge in mm, within which there must be nothing else. Default
            ``None``, half the radius.
        points: number of frequencies.

    Returns:
        See :py:class:`EdgeTransfer`; its tensors are on the CPU.

    Raises:
        ValueError: when ``image`` has fewer axes than ``centre``, ``radius``, ``margin``, ``spacing`` or ``points``
            are impossible, the ring around the edge is not inside the image or is not finite, or there is no edge.

    Notes:
        The edge is taken as straight, which needs a radius of several widths of the blur. A centre that is off by d
        blurs the profile: find it to a tenth of a voxel.

    Example:
        >>> x = torch.arange(64.0)
        >>> distance = ((x[:, None] - 31.3) ** 2 + (x - 32.4) ** 2) ** 0.5
        >>> image = 100 * torch.special.ndtr((20 - distance) / 1.5)  # blurred by a Gaussian of 1.5 voxels
        >>> result = edge_transfer(image, (31.3, 32.4), 20)
        >>> f"{result.f50:.3f} {0.18739 / 1.5:.3f} {result.contrast:.1f}"
        '0.125 0.125 100.0'
    """
    image = plain_hu(image)
    axes = len(centre)
    if not 1 <= axes <= image.ndim:
        raise ValueError(f"centre must have one number per spatial axis of image {tuple(image.shape)}, got {axes}.")
    sizes = spacing_of(spacing, axes)
    margin = radius / 2 if margin is None else margin
    if not 0 < margin <= radius < math.inf:
        raise ValueError(f"margin must be above 0 and at most the radius in mm, got {margin:g} and {radius:g}.")
    if points < 2:
        raise ValueError(f"points must be 2 or above, got {points}.")
    shape = image.shape[image.ndim - axes :]
    for place, size, length in zip(centre, sizes, shape, strict=True):
        reach = (radius + margin) / size
        if place - reach < -0.5 or place + reach > length - 0.5:
            raise ValueError(
                f"the ring of {radius + margin:g} mm around centre {tuple(centre)} must lie inside the image of "
                f"{tuple(shape)} voxels."
            )
    # From here on the CPU: there sums are deterministic, and what is left is small.
    image = image.reshape(-1, *shape).mean(dim=0).cpu().double()
    square = torch.zeros((1,) * axes, dtype=torch.float64)
    for axis, (place, size, length) in enumerate(zip(centre, sizes, shape, strict=True)):
        offset = (torch.arange(length, dtype=torch.float64) - place) * size
        square = square + offset.square().reshape(-1, *(1,) * (axes - 1 - axis))
    distance = square.sqrt()
    near = (distance - radius).abs() <= margin
    distance, values = distance[near], image[near]
    if not values.isfinite().all():
        raise ValueError("image must hold finite HU around the edge, got NaN or infinity.")

    width = min(sizes) / _BINS_PER_VOXEL
    grid, edge = _edge_spread(distance, values, radius, margin, width)
    tail = max(1, len(edge) // 5)
    contrast = float(edge[:tail].mean() - edge[-tail:].mean())
    line = edge.diff()
    if contrast == 0 or line.sum() == 0:
        raise ValueError(f"there must be an edge at {radius:g} mm from the centre, got a contrast of {contrast:g} HU.")
    frequency = torch.linspace(0, 0.5 / min(sizes), points, dtype=torch.float64)
    middle = (grid[1:] + grid[:-1]) / 2 - radius
    phase = 2 * math.pi * frequency[:, None] * middle
    transfer = ((line * phase.cos()).sum(1).square() + (line * phase.sin()).sum(1).square()).sqrt() / line.sum().abs()
    return EdgeTransfer(
        frequency, transfer, _falls_to(frequency, transfer, 0.5), _falls_to(frequency, transfer, 0.1),
        contrast, grid, edge,
    )  # fmt: skip


def _edge_spread(
    distance: torch.Tensor, values: torch.Tensor, radius: float, margin: float, width: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean HU on a regular grid of distances; bins without voxel are interpolated."""
    count = int(2 * margin / width)
    bins = ((distance - (radius - margin)) / width).long().clamp(0, count - 1)
    voxels, where, total = (
        torch.bincount(bins, weight, count) for weight in (torch.ones_like(distance), distance, values)
    )
    full = voxels > 0
    # A bin's mean belongs to the mean distance of its voxels, which is not the middle of the bin.
    where, mean = where[full] / voxels[full], total[full] / voxels[full]
    first, last = float(where[0]), float(where[-1])
    grid = torch.arange(int((last - first) / width) + 1, dtype=torch.float64) * width + first
    right = torch.searchsorted(where, grid).clamp(1, len(where) - 1)
    share = (grid - where[right - 1]) / (where[right] - where[right - 1])
    return grid, mean[right - 1] + share * (mean[right] - mean[right - 1])


def _falls_to(frequency: torch.Tensor, transfer: torch.Tensor, level: float) -> float:
    """First frequency where the transfer is at the level, interpolated; NaN if it stays above."""
    below = (transfer <= level).nonzero()
    if not len(below):
        return math.nan
    right = int(below[0])
    high, low = float(transfer[right - 1]), float(transfer[right])
    start, end = float(frequency[right - 1]), float(frequency[right])
    return start + (end - start) * (high - level) / (high - low)
