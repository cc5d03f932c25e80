# SPDX-License-Identifier: Apache-2.0
"""Structural similarity in any number of dimensions, in the two forms that the CT literature uses."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch


class SSIMWindow(NamedTuple):
    """How local means are taken.

    Attributes:
        weights: of the voxels along each axis; their number is odd and they sum to 1.
        sample: variances are those of a sample, with n / (n - 1).
        border: how much of the map at each border is not counted, per axis; the images are padded with zeros where the
            window reaches over it.
    """

    weights: tuple[float, ...]
    sample: bool
    border: int


def _gaussian(size: int, sigma: float) -> tuple[float, ...]:
    weights = [math.exp(-((k - size // 2) ** 2) / (2 * sigma**2)) for k in range(size)]
    return tuple(weight / sum(weights) for weight in weights)


SSIM_WINDOWS = {
    "uniform_7": SSIMWindow((1 / 7,) * 7, sample=True, border=3),
    "gaussian_11": SSIMWindow(_gaussian(11, 1.5), sample=False, border=0),
}


def structural_similarity(
    first: torch.Tensor, second: torch.Tensor, data_range: torch.Tensor, window: SSIMWindow
) -> torch.Tensor:
    """Mean SSIM (N,) of images (N, \\*spatial) with a range (N,): Wang et al. 2004 with K1 = 0.01 and K2 = 0.03."""
    axes = range(1, first.ndim)
    reach = len(window.weights) // 2
    if min(first.shape[1:]) <= 2 * window.border:
        found = " x ".join(map(str, first.shape[1:]))
        raise ValueError(f"images must have {len(window.weights)} voxels along each axis for SSIM, got {found}.")
    padding = (reach - window.border,) * (2 * len(axes))

    def local(image: torch.Tensor) -> torch.Tensor:
        image = torch.nn.functional.pad(image, padding)
        for axis in axes:
            length = image.shape[axis] - 2 * reach
            shifted = (weight * image.narrow(axis, k, length) for k, weight in enumerate(window.weights))
            total = next(shifted)
            for part in shifted:
                total += part
            image = total
        return image

    voxels = len(window.weights) ** len(axes)
    factor = voxels / (voxels - 1) if window.sample else 1.0
    mean, other = local(first), local(second)
    variances = factor * (local(first.square() + second.square()) - mean.square() - other.square())
    covariance = factor * (local(first * second) - mean * other)
    data_range = data_range.reshape(-1, *(1,) * len(axes))
    c1, c2 = (0.01 * data_range).square(), (0.03 * data_range).square()
    numerator = (2 * mean * other + c1) * (2 * covariance + c2)
    return (numerator / ((mean.square() + other.square() + c1) * (variances + c2))).flatten(start_dim=1).mean(dim=1)
