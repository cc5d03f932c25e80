# SPDX-License-Identifier: Apache-2.0
"""Contrast-to-noise ratio of two regions."""

from __future__ import annotations

from typing import Any

import torch

from monai_labelfx.metrics.noise_power_spectrum import plain_hu


def contrast_to_noise(roi: Any, background: Any) -> torch.Tensor:
    """``CNR = (mean(roi) - mean(background)) / std(background)``, without unit.

    Args:
        roi: HU of the voxels of the object, of any shape; for instance ``image[mask]``.
        background: HU of the voxels beside it, likewise. Its standard deviation is that of a sample (n - 1).

    Returns:
        A float64 number, negative for an object that is darker than its background.

    Raises:
        ValueError: when ``roi`` is empty, ``background`` has fewer than two voxels or is constant, or one of them
            holds NaN or infinity.

    Notes:
        A denoiser raises it by smoothing alone, whatever happens to edges and to the texture of noise. Read it beside
        the noise power spectrum and the edge transfer.

    Example:
        >>> contrast_to_noise([120.0, 124.0], [48.0, 50.0, 52.0])
        tensor(36., dtype=torch.float64)
    """
    values = []
    for name, region, least in (("roi", roi, 1), ("background", background, 2)):
        region = plain_hu(region)
        if region.numel() < least or not region.isfinite().all():
            raise ValueError(f"{name} must hold at least {least} voxels with finite HU, got {region.numel()} voxels.")
        values.append(region)
    noise = values[1].std()
    if noise == 0:
        raise ValueError(f"background must have noise, got {float(values[1].mean()):g} HU in all its voxels.")
    return (values[0].mean() - values[1].mean()) / noise
