# SPDX-License-Identifier: Apache-2.0
"""Edge transfer on discs and spheres whose blur is known."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, median_filter
from scipy.special import erf, i0e

edge_transfer = importlib.import_module("monai_labelfx.metrics.edge_transfer").edge_transfer


def distances(shape, centre, spacing=1.0) -> np.ndarray:
    sizes = np.broadcast_to(spacing, len(shape))
    grid = np.meshgrid(*((np.arange(n) - c) * s for n, c, s in zip(shape, centre, sizes, strict=True)), indexing="ij")
    return np.sqrt(sum(axis**2 for axis in grid))


def blurred_disc(distance, radius, sigma) -> np.ndarray:
    """A disc of 1 convolved with a Gaussian, by quadrature of its exact radial profile."""
    grid = np.linspace(0, distance.max(), 600)
    inner = np.linspace(0, radius, 4001)
    kernel = i0e(grid[:, None] * inner / sigma**2) * np.exp(-((grid[:, None] - inner) ** 2) / (2 * sigma**2))
    profile = np.trapezoid(kernel * inner / sigma**2, inner, axis=1)
    return np.interp(distance, grid, profile)


def blurred_sphere(distance, radius, sigma) -> np.ndarray:
    r = np.maximum(distance, 1e-9)
    root = math.sqrt(2) * sigma
    edges = (erf((radius - r) / root) + erf((radius + r) / root)) / 2
    tails = np.exp(-((radius + r) ** 2) / root**2) - np.exp(-((radius - r) ** 2) / root**2)
    return edges + sigma / (r * math.sqrt(2 * math.pi)) * tails


def assert_gaussian(result, sigma, tolerance=0.01) -> None:
    """The MTF of a Gaussian is exp(-2 pi^2 sigma^2 f^2)."""
    expected = np.exp(-2 * np.pi**2 * sigma**2 * result.frequency.numpy() ** 2)
    np.testing.assert_allclose(result.transfer.numpy(), expected, atol=tolerance)
    assert result.f50 == pytest.approx(math.sqrt(math.log(2) / 2) / (math.pi * sigma), rel=0.02)
    assert result.f10 == pytest.approx(math.sqrt(math.log(10) / 2) / (math.pi * sigma), rel=0.02)


@pytest.mark.parametrize("sigma", [1.0, 1.5, 2.5])
@pytest.mark.parametrize("spacing", [1.0, (0.8, 0.5)])
def test_blurred_disc(sigma, spacing):
    sizes = np.broadcast_to(spacing, 2)
    mm = float(sizes.max())
    shape, centre = tuple(int(90 * mm / s) for s in sizes), tuple(44.6 * mm / s for s in sizes)
    image = -95 + 215 * blurred_disc(distances(shape, centre, spacing), 25 * mm, sigma * mm)
    result = edge_transfer(image, centre, 25 * mm, spacing=spacing)
    assert_gaussian(result, sigma * mm)
    assert result.contrast == pytest.approx(215, rel=1e-3)
    assert result.frequency[-1] == 0.5 / sizes.min() and result.transfer[0] == 1


def test_blurred_sphere():
    spacing, centre = (1.0, 1.0, 2.0), (20.2, 19.7, 10.1)
    image = 1000 * blurred_sphere(distances((40, 40, 21), centre, spacing), 12.0, 1.5)
    assert_gaussian(edge_transfer(image, centre, 12.0, spacing=spacing), 1.5, 0.03)


def test_slices_of_a_cylinder_are_averaged():
    clean = 100 * blurred_disc(distances((70, 70), (34.4, 34.7)), 20, 1.5)
    noisy = clean + np.random.default_rng(0).normal(0, 20, size=(60, *clean.shape))
    result = edge_transfer(noisy.reshape(6, 10, 70, 70), (34.4, 34.7), 20)
    single = edge_transfer(noisy.mean(0), (34.4, 34.7), 20)
    torch.testing.assert_close(result.transfer, single.transfer, atol=1e-9, rtol=0)
    expected = math.sqrt(math.log(2) / 2) / (math.pi * 1.5)
    assert result.f50 == pytest.approx(expected, rel=0.1)


def test_dark_inserts_and_offsets_have_the_same_transfer():
    disc = blurred_disc(distances((60, 60), (29.5, 29.5)), 15, 1.5)
    bright, dark = (edge_transfer(image, (29.5, 29.5), 15) for image in (100 * disc, 1000 - 300 * disc))
    torch.testing.assert_close(bright.transfer, dark.transfer, rtol=0, atol=1e-9)
    assert dark.contrast == pytest.approx(-300, rel=1e-3)


def test_blur_lowers_it_and_a_sharp_edge_never_falls_to_half():
    disc = (distances((80, 80), (39.5, 39.5)) <= 22).astype(float)
    sharp, soft = (edge_transfer(image, (39.5, 39.5), 22) for image in (disc, gaussian_filter(disc, 1.2)))
    assert math.isnan(sharp.f50) and math.isnan(sharp.f10) and sharp.transfer.min() > 0.5
    assert 0.1 < soft.f50 < soft.f10 < 0.4


def test_a_median_filter_keeps_strong_edges_better_than_weak_ones():
    """Why contrast belongs beside the number: on noise, a non-linear filter treats them differently."""
    distance = distances((64, 64), (31.5, 31.5))
    noise = np.random.default_rng(0).normal(0, 20, size=(150, 64, 64))
    f50 = []
    for contrast in (20, 500):
        noisy = contrast * blurred_disc(distance, 18, 1.0) + noise
        f50.append(edge_transfer(median_filter(noisy, (1, 3, 3)), (31.5, 31.5), 18).f50)
    assert f50[0] < 0.92 * f50[1], f50


def test_bad_input():
    image = np.zeros((40, 40))
    with pytest.raises(ValueError, match="there must be an edge at 10 mm"):
        edge_transfer(image, (20, 20), 10)
    with pytest.raises(ValueError, match="must lie inside the image of \\(40, 40\\) voxels"):
        edge_transfer(image, (8, 20), 10)
    with pytest.raises(ValueError, match="centre must have one number per spatial axis"):
        edge_transfer(image, (20, 20, 20), 10)
    for margin in (0, 11):
        with pytest.raises(ValueError, match="margin must be above 0 and at most the radius"):
            edge_transfer(image, (20, 20), 10, margin=margin)
    with pytest.raises(ValueError, match="points must be 2 or above"):
        edge_transfer(image, (20, 20), 10, points=1)
    with pytest.raises(ValueError, match="image must hold finite HU"):
        edge_transfer(image * math.nan, (20, 20), 10)
    with pytest.raises(ValueError, match="spacing must be 2 positive numbers"):
        edge_transfer(image, (20, 20), 10, spacing=-1)
