# SPDX-License-Identifier: Apache-2.0
"""Line integrals of a CT slice, the noise of counting photons, and what filtered back-projection makes of it.

Parallel beam through the scan circle, by scikit-image; lengths in mm, attenuation in 1/mm, images in HU.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

WATER = 0.0192
"""Attenuation of water in 1/mm at about 70 keV; it turns HU into line integrals and cancels on the way back."""

_FILTERS = ("ramp", "shepp-logan", "cosine", "hamming", "hann")
_FLOOR = 1.0  # counts: a reading below one photon has no logarithm that means anything
_MOST = 1e15  # counts of a ray, beyond which its noise is nothing and numpy cannot draw


def check_scan_options(
    dose_fraction: float,
    *,
    photons: float,
    electronic_sigma: float = 0.0,
    angles: int | None = None,
    filter_name: str = "ramp",
) -> None:
    """Refuse options of a simulated scan that are out of range."""
    if not 0 < dose_fraction <= 1:
        raise ValueError(f"dose_fraction must be above 0 and at most 1, got {dose_fraction}")
    if not 1 <= photons <= 1e12:
        raise ValueError(f"photons must be 1 to 1e12 per ray and view, got {photons}")
    if not 0 <= electronic_sigma <= 1e3:
        raise ValueError(f"electronic_sigma must be 0 to 1000 photons, got {electronic_sigma}")
    if angles is not None and angles < 2:
        raise ValueError(f"angles must be at least 2, got {angles}")
    if filter_name not in _FILTERS:
        raise ValueError(f"filter_name must be one of {', '.join(_FILTERS)}, got {filter_name!r}")


def default_angles(side: int) -> int:
    """Views over 180 degrees for a slice of ``side`` pixels: 720 for 512."""
    return max(16, round(side * 720 / 512))


def line_integrals(hu: np.ndarray, *, spacing: float, angles: int, water: float = WATER) -> np.ndarray:
    """Attenuation along the rays through a slice (x, y) in HU, of shape (max(x, y), angles), without unit.

    Counts what lies in the circle inscribed in the square around the slice. Below -1000 HU, as in padding, is air.
    """
    from skimage.transform import radon

    side = max(hu.shape)
    square = np.zeros((side, side))
    square[_inside(hu.shape)] = np.maximum(np.asarray(hu, np.float64) / 1000 + 1, 0) * (water * spacing)
    reach = np.arange(side) - side // 2
    square[reach[:, None] ** 2 + reach**2 > (side // 2) ** 2] = 0
    return radon(square, _degrees(angles), circle=True)


def reconstruct(
    integrals: np.ndarray, shape: tuple[int, int], *, spacing: float, filter_name: str = "ramp", water: float = WATER
) -> np.ndarray:
    """Filtered back-projection of line integrals to a slice of ``shape``, in HU relative to air; 0 outside the circle.

    Linear: of noise it is the noise of the image.
    """
    from skimage.transform import iradon

    square = iradon(integrals, _degrees(integrals.shape[1]), filter_name=filter_name, circle=True)
    return square[_inside(shape)] * (1000 / (water * spacing))


def projection_noise(
    integrals: np.ndarray,
    generator: np.random.RandomState,
    *,
    photons: float,
    electronic_sigma: float = 0.0,
    log_bias: bool = False,
) -> np.ndarray:
    """Errors of measured line integrals: -log(max(N + e, 1) / m), N ~ Poisson(m), e ~ N(0, s^2), m = photons exp(-p).

    The logarithm of a count is smaller than that of its mean in expectation (by 1 / 2m, and much more near one photon),
    so that the error has a positive mean, which is a shift of HU. It is taken off, exactly, unless ``log_bias``.
    """
    mean = np.minimum(photons * np.exp(-integrals), _MOST)
    counts = generator.poisson(mean) + electronic_sigma * generator.standard_normal(mean.shape)
    noise = np.log(mean) - np.log(np.maximum(counts, _FLOOR))
    return noise if log_bias else noise + expected_log(mean, electronic_sigma)


def expected_log(mean: np.ndarray, electronic_sigma: float = 0.0) -> np.ndarray:
    """Expectation of log(max(N + e, 1) / m) for N ~ Poisson(m), e ~ N(0, s^2): exact for few counts, a series for many.

    With v = (m + s^2) / m^2, the series is -v / 2 + 1 / (3 m^2) - 3 v^2 / 4.
    """
    most, logs, values = _table(float(electronic_sigma))
    mean = np.asarray(mean, np.float64)
    variance = (mean + electronic_sigma**2) / mean**2
    series = -variance / 2 + 1 / (3 * mean**2) - 0.75 * variance**2
    logarithm = np.log(mean)
    few = np.interp(logarithm, logs, values) + np.maximum(logs[0] - logarithm, 0)  # below: all readings are the floor
    return np.where(mean < most, few, series)


@lru_cache(maxsize=8)
def _table(electronic_sigma: float) -> tuple[float, np.ndarray, np.ndarray]:
    from scipy.special import gammaln, ndtri

    most = max(300.0, 20 * electronic_sigma)
    counts = np.arange(int(most + 10 * most**0.5 + 20))
    # the normal distribution as the middles of equally likely parts
    error = electronic_sigma * ndtri((np.arange(4001) + 0.5) / 4001) if electronic_sigma else np.zeros(1)
    logarithm = np.array([np.log(np.maximum(count + error, _FLOOR)).mean() for count in counts])
    logs = np.linspace(np.log(1e-3), np.log(most), 600)
    chance = np.exp(counts * logs[:, None] - np.exp(logs)[:, None] - gammaln(counts + 1))
    return most, logs, chance @ logarithm - logs


def _inside(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Where a slice lies in its square: its middle pixel on the axis of rotation."""
    side = max(shape)
    return tuple(slice(side // 2 - length // 2, side // 2 - length // 2 + length) for length in shape)


def _degrees(angles: int) -> np.ndarray:
    return np.linspace(0, 180, angles, endpoint=False)
