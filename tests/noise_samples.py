# SPDX-License-Identifier: Apache-2.0
"""CT slices with noise of a known strength and texture."""

from __future__ import annotations

import numpy as np
import torch


def ct_noise(size: int, std: float, seed: int, *, peak: float = 0.25, spacing: float = 1.0) -> np.ndarray:
    """Noise (size, size) with the power spectrum ``f exp(-f^2 / (2 peak^2))``, highest at ``peak`` / mm."""
    frequency = np.fft.fftfreq(2 * size, spacing)
    radius = np.hypot(*np.meshgrid(frequency, frequency, indexing="ij"))
    gain = np.sqrt(radius * np.exp(-((radius / peak) ** 2) / 2))
    white = np.random.default_rng(seed).normal(size=(2 * size, 2 * size))
    noise = np.fft.ifft2(np.fft.fft2(white) * gain).real
    return std * (noise / noise.std())[:size, :size]


def ct_slice(size: int = 128) -> np.ndarray:
    """A body of 40 HU in air, with a bone and an air-filled cavity."""
    x, y = np.meshgrid(*(np.arange(size) / size - 0.5,) * 2, indexing="ij")
    hu = np.full((size, size), -1000.0)
    hu[(x / 0.46) ** 2 + (y / 0.42) ** 2 < 1] = 40
    hu[(x - 0.32) ** 2 + y**2 < 0.06**2] = 900
    hu[(x + 0.32) ** 2 + y**2 < 0.07**2] = -850
    return hu


def as_image(hu: np.ndarray) -> torch.Tensor:
    """(1, \\*spatial) float32."""
    return torch.as_tensor(hu, dtype=torch.float32)[None]
