# SPDX-License-Identifier: Apache-2.0
"""Noise power spectrum: its integral, its shape for known noise, and its radial profile."""

from __future__ import annotations

import importlib
import itertools
import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

module = importlib.import_module("monai_labelfx.metrics.noise_power_spectrum")
noise_power_spectrum, radial_spectrum = module.noise_power_spectrum, module.radial_spectrum

CASES = {"line": ((64,), (0.5,)), "square": ((32, 32), (0.7, 0.7)), "odd": ((31, 24), (0.43, 0.7))}
CASES["volume"] = (16, 12, 10), (0.7, 0.7, 3.0)


def gain_of(size, spacing, peak) -> np.ndarray:
    """Square root of the spectrum of a ramp with a Gaussian window: it is highest at ``peak``."""
    grid = np.meshgrid(*(np.fft.fftfreq(n, d) for n, d in zip(size, spacing, strict=True)), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in grid))
    return np.sqrt(radius * np.exp(-((radius / peak) ** 2) / 2))


def white(count, size, std=20.0, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(40.0, std, size=(count, *size))


def coloured(count, size, spacing, peak, std=20.0, seed=0) -> np.ndarray:
    """Regions cut out of twice as large periodic fields."""
    field = tuple(2 * n for n in size)
    gain = gain_of(field, spacing, peak)
    axes = tuple(range(1, len(size) + 1))
    noise = np.fft.ifftn(np.fft.fftn(white(count, field, 1.0, seed), axes=axes) * gain, axes=axes).real
    noise *= std / math.sqrt((gain**2)[gain > 0].sum() / gain.size)
    return noise[(slice(None), *(slice(n) for n in size))]


def integral(nps, spacing) -> float:
    return float(nps.sum()) / math.prod(n * d for n, d in zip(nps.shape, spacing, strict=True))


def naive(rois, spacing) -> np.ndarray:
    """The formula, with a sum over voxels for each frequency."""
    size = rois.shape[1:]
    voxels = list(itertools.product(*map(range, size)))
    result = np.zeros(size)
    for place in voxels:
        for roi in rois:
            total = 0
            for voxel in voxels:
                turns = sum(k * x / n for k, x, n in zip(place, voxel, size, strict=True))
                total += (roi[voxel] - roi.mean()) * np.exp(-2j * np.pi * turns)
            result[place] += abs(total) ** 2 / len(rois) * math.prod(spacing) / math.prod(size)
    return result


@pytest.mark.parametrize(("size", "spacing"), [((5, 4), (0.5, 2.0)), ((3, 2, 4), (1.0, 0.5, 3.0))])
def test_equals_the_formula(size, spacing):
    rois = white(2, size)
    nps, frequencies = noise_power_spectrum(rois, spacing)
    np.testing.assert_allclose(nps.numpy(), naive(rois, spacing), atol=1e-9)
    for axis, n, d in zip(frequencies, size, spacing, strict=True):
        np.testing.assert_allclose(axis.numpy(), np.fft.fftfreq(n, d))


@pytest.mark.parametrize(("size", "spacing"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("colour", ["white", "coloured"])
def test_integral_is_the_variance_within_2_percent(size, spacing, colour):
    count = 300_000 // math.prod(size)
    rois = white(count, size) if colour == "white" else coloured(count, size, spacing, 0.25 / min(spacing))
    nps, _ = noise_power_spectrum(rois, spacing)
    assert integral(nps, spacing) == pytest.approx(400, rel=0.02)
    assert integral(nps, spacing) == pytest.approx(rois.var(tuple(range(1, rois.ndim))).mean(), rel=1e-12), "Parseval"
    nps, _ = noise_power_spectrum(rois, spacing, detrend="quadratic")
    assert integral(nps, spacing) == pytest.approx(400, rel=0.02 if math.prod(size) > 500 else 0.06)


def test_white_noise_is_flat():
    nps, _ = noise_power_spectrum(white(2000, (16, 16)), 0.7)
    flat = nps.flatten()[1:] / (400 * 0.7**2)
    assert nps[0, 0] < 1e-20
    assert float(flat.mean()) == pytest.approx(1, rel=0.01) and flat.min() > 0.85 and flat.max() < 1.15


@pytest.mark.parametrize("peak", [0.12, 0.25, 0.4])
def test_coloured_noise_has_its_spectrum(peak):
    size, spacing = (64, 64), (0.7, 0.7)
    radial = radial_spectrum(*noise_power_spectrum(coloured(150, size, spacing, peak), spacing))
    assert radial.peak_frequency == pytest.approx(peak, abs=0.04)
    frequency = radial.frequency.numpy()
    expected = frequency * np.exp(-((frequency / peak) ** 2) / 2)
    inside = (expected > 0.2 * expected.max()) & (frequency > 0.08)  # below, regions of 45 mm leak
    shape = radial.power.numpy()[inside] / expected[inside]
    np.testing.assert_allclose(shape / shape.mean(), 1, atol=0.12)
    mean = (frequency * expected).sum() / expected.sum()
    assert radial.mean_frequency == pytest.approx(mean, rel=0.03)


@pytest.mark.parametrize("size", [(24, 20), (10, 9, 8), (24, 20, 1), (16, 2)])
def test_quadratic_removes_every_quadratic_and_nothing_else(size):
    noise = white(3, size)
    place = np.meshgrid(*(np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in size), indexing="ij")
    trend = 30 + sum((5 + k) * axis for k, axis in enumerate(place)) + 12 * place[0] * place[1] - 9 * place[0] ** 2
    wanted, _ = noise_power_spectrum(noise, detrend="quadratic")
    found, _ = noise_power_spectrum(noise + trend, detrend="quadratic")
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)
    basis = np.stack([np.ones(size), *place, *(a * b for a, b in itertools.combinations_with_replacement(place, 2))])
    flat = basis.reshape(len(basis), -1).T
    left = [roi.ravel() - flat @ np.linalg.lstsq(flat, roi.ravel(), rcond=None)[0] for roi in noise]
    assert integral(wanted, (1,) * len(size)) == pytest.approx(np.var(left), rel=1e-9)


def test_radial_rings_end_at_nyquist_of_the_coarsest_axis():
    nps, frequencies = noise_power_spectrum(white(4, (16, 32)), (1.0, 0.25))
    radial = radial_spectrum(nps, frequencies)
    assert len(radial.power) == 4, "0.5 / mm in steps of 1 / 8 mm, the wider of two"
    radius = np.hypot(*np.meshgrid(*(axis.numpy() for axis in frequencies), indexing="ij"))
    for k, (frequency, power) in enumerate(zip(*radial, strict=True)):
        ring = (radius > k / 8 + 1e-9) & (radius <= (k + 1) / 8 + 1e-9)
        assert float(power) == pytest.approx(nps.numpy()[ring].mean())
        assert float(frequency) == pytest.approx(radius[ring].mean())
    lower = radial_spectrum(nps, frequencies, bins=2, limit=0.25)
    torch.testing.assert_close(lower.power, radial.power[:2])
    empty = radial_spectrum(nps, frequencies, bins=400)
    assert empty.power.isnan().any() and 0 < empty.peak_frequency <= 0.5 and 0 < empty.mean_frequency < 0.5


def test_single_voxel_axes_count_for_nothing():
    rois = white(5, (16, 16))
    flat = noise_power_spectrum(rois, 0.5)
    deep = noise_power_spectrum(rois[..., None], (0.5, 0.5, 1.0))
    torch.testing.assert_close(deep[0][..., 0], flat[0])
    for left, right in zip(radial_spectrum(*flat), radial_spectrum(*deep), strict=True):
        torch.testing.assert_close(left, right)


def test_kinds_of_input():
    rois = white(3, (8, 8)).round()
    expected, _ = noise_power_spectrum(rois)
    for given in (rois.astype(np.int16), torch.tensor(rois, dtype=torch.float32), MetaTensor(torch.tensor(rois))):
        nps, _ = noise_power_spectrum(given)
        assert type(nps) is torch.Tensor and nps.dtype == torch.float64
        torch.testing.assert_close(nps, expected)
    constant, frequencies = noise_power_spectrum(torch.full((2, 8, 8), -1000.0))
    assert constant.abs().max() == 0 and math.isnan(radial_spectrum(constant, frequencies).mean_frequency)


def test_bad_input():
    rois = torch.zeros(2, 8, 8)
    for bad in (torch.zeros(8), torch.zeros(0, 8, 8)):
        with pytest.raises(ValueError, match="rois must be at least one region"):
            noise_power_spectrum(bad)
    with pytest.raises(ValueError, match="rois must hold finite HU"):
        noise_power_spectrum(rois * math.nan)
    for spacing in (0, -1, (1.0,), (1.0, math.inf)):
        with pytest.raises(ValueError, match="spacing must be 2 positive numbers in mm"):
            noise_power_spectrum(rois, spacing)
    with pytest.raises(ValueError, match="detrend must be 'mean' or 'quadratic', got 'linear'"):
        noise_power_spectrum(rois, detrend="linear")
    nps, frequencies = noise_power_spectrum(rois)
    with pytest.raises(ValueError, match="frequencies must have one vector per axis"):
        radial_spectrum(nps, frequencies[:1])
    with pytest.raises(ValueError, match="bins must be 1 or above, got 0"):
        radial_spectrum(nps, frequencies, bins=0)
    for limit in (0, 0.6):
        with pytest.raises(ValueError, match="limit must be above 0 and at most the Nyquist frequency 0.5"):
            radial_spectrum(nps, frequencies, limit=limit)
    with pytest.raises(ValueError, match="an axis of two voxels or more"):
        radial_spectrum(torch.zeros(1, 1), [torch.zeros(1)] * 2)
