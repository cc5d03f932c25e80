# SPDX-License-Identifier: Apache-2.0
"""Line integrals of a disc, noise of counting by its theory, and a reconstruction that keeps HU."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from monai_labelfx.transforms._projection_noise import (
    WATER,
    check_scan_options,
    default_angles,
    expected_log,
    line_integrals,
    projection_noise,
    reconstruct,
)

SPACING = 2.0


def disc(side: int = 96, radius: float = 36, hu: float = 0.0, background: float = -1000.0) -> np.ndarray:
    x, y = np.indices((side, side)) - side // 2
    share = np.clip(0.5 + radius - np.hypot(x, y), 0, 1)
    return background + share * (hu - background)


def test_line_integrals_of_a_disc_are_its_chords_in_mm():
    integrals = line_integrals(disc(hu=50.0), spacing=SPACING, angles=24)
    offset = np.arange(96) - 48
    chord = 2 * np.sqrt(np.maximum(36.0**2 - offset**2, 0)) * SPACING * WATER * 1.05
    away = np.abs(np.abs(offset) - 36) > 2
    assert integrals.shape == (96, 24)
    np.testing.assert_allclose(integrals[away], np.broadcast_to(chord[:, None], integrals.shape)[away], atol=0.03)
    # twice the pixel, twice the path
    np.testing.assert_allclose(line_integrals(disc(hu=50.0), spacing=2 * SPACING, angles=24), 2 * integrals)


def test_padding_is_air_and_what_lies_outside_the_circle_does_not_count():
    plain, padded = disc(64, 20), disc(64, 20)
    padded[:8] = -2000
    padded[:3, :3] = 1000
    np.testing.assert_array_equal(*(line_integrals(s, spacing=SPACING, angles=16) for s in (plain, padded)))


@pytest.mark.parametrize("shape", [(96, 80), (80, 96), (96, 77), (77, 96), (95, 96)])
def test_slices_that_are_not_square_lie_in_the_middle_of_theirs(shape):
    whole = disc()
    part = tuple(slice(48 - n // 2, 48 - n // 2 + n) for n in shape)
    cut = whole[part]
    integrals = line_integrals(whole, spacing=SPACING, angles=48)
    np.testing.assert_allclose(line_integrals(cut, spacing=SPACING, angles=48), integrals, atol=1e-12)
    image = reconstruct(integrals, (96, 96), spacing=SPACING)
    np.testing.assert_allclose(reconstruct(integrals, shape, spacing=SPACING), image[part], atol=1e-9)


@pytest.mark.parametrize("hu", [-400.0, 0.0, 300.0])
def test_without_noise_the_loop_keeps_hu(hu):
    integrals = line_integrals(disc(128, 48, hu), spacing=SPACING, angles=180)
    image = reconstruct(integrals, (128, 128), spacing=SPACING) - 1000
    inner = disc(128, 36) > -1
    assert abs(image[inner].mean() - hu) <= 0.2


@pytest.mark.parametrize(
    ("mean", "sigma"), [(0.05, 0.0), (0.7, 0.0), (6.0, 3.0), (40.0, 12.0), (400.0, 3.0), (1e5, 3.0)]
)
def test_expected_log_against_sums_and_draws(mean, sigma):
    if sigma:
        generator = np.random.default_rng(0)
        counts = generator.poisson(mean, 2_000_000) + generator.normal(0, sigma, 2_000_000)
        logs = np.log(np.maximum(counts, 1) / mean)
        assert expected_log(np.array(mean), sigma) == pytest.approx(logs.mean(), abs=5 * logs.std() / 2e6**0.5)
    else:
        counts = np.arange(2000)
        expected = (stats.poisson.pmf(counts, mean) * np.log(np.maximum(counts, 1) / mean)).sum()
        assert expected_log(np.array(mean)) == pytest.approx(expected, abs=1e-4)


def test_series_of_expected_log():
    counts = np.arange(1500)
    expected = (stats.poisson.pmf(counts, 400) * np.log(np.maximum(counts, 1) / 400)).sum()
    assert expected_log(np.array(400.0)) == pytest.approx(expected, abs=3e-7)
    # by the third and fourth central moments of a Gaussian plus Poisson
    v = (400 + 10.0**2) / 400**2
    assert expected_log(np.array(400.0), 10.0) == pytest.approx(-v / 2 + 1 / (3 * 400**2) - 3 * v**2 / 4, abs=1e-9)


def test_expected_log_has_no_step_where_the_series_begins_or_the_table_ends():
    for edge in (300.0, 1e-3):
        below, above = expected_log(np.array([edge * 0.9999, edge * 1.0001]), 3.0)
        assert below == pytest.approx(above, abs=3e-4)
    assert expected_log(np.array(1e-5)) == pytest.approx(-np.log(1e-5), rel=1e-3), "all readings are the floor"


@pytest.mark.parametrize("electronic_sigma", [0.0, 30.0])
def test_variance_of_the_errors_and_their_mean(electronic_sigma):
    integrals = np.full((400, 400), 2.0)
    photons = 4000.0
    options = {"photons": photons, "electronic_sigma": electronic_sigma}
    errors = projection_noise(integrals, np.random.RandomState(0), **options)
    mean = photons * np.exp(-2)
    variance = 1 / mean + electronic_sigma**2 / mean**2
    assert errors.std() == pytest.approx(variance**0.5, rel=0.02)
    assert abs(errors.mean()) < 5 * (variance / errors.size) ** 0.5
    biased = projection_noise(integrals, np.random.RandomState(0), log_bias=True, **options)
    assert biased.mean() - errors.mean() == pytest.approx(variance / 2, rel=0.1)


def test_noise_of_the_image_is_that_of_the_theory():
    # var = (pi / N)^2 * sum over views of var(p) * (2/3 r(0) + 1/3 r(1)), with the autocorrelation r of the ramp's
    # kernel, 1/4 and -1/(pi k)^2 for odd k, and weights of linear interpolation averaged over the pixel
    photons, angles = 2e4, 180
    integrals = line_integrals(disc(128, 48), spacing=SPACING, angles=angles)
    generator = np.random.RandomState(1)
    centre = disc(128, 12) > -1
    noise = [
        reconstruct(projection_noise(integrals, generator, photons=photons), (128, 128), spacing=SPACING)[centre]
        for _ in range(12)
    ]
    r0, r1 = 1 / 12, -1 / (2 * np.pi**2)
    variance = np.exp(integrals[64].mean()) / photons
    expected = np.pi / angles**0.5 * (variance * (2 / 3 * r0 + 1 / 3 * r1)) ** 0.5 * 1000 / (WATER * SPACING)
    assert np.std(noise) == pytest.approx(expected, rel=0.04)


def test_number_of_views():
    assert [default_angles(side) for side in (8, 128, 512)] == [16, 180, 720]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dose_fraction", 0.0),
        ("dose_fraction", 1.5),
        ("dose_fraction", float("nan")),
        ("photons", 0.0),
        ("electronic_sigma", -1.0),
        ("angles", 1),
        ("filter_name", "boxcar"),
    ],
)
def test_options_out_of_range(name, value):
    options = {"dose_fraction": 0.5, "photons": 1e5, name: value}
    with pytest.raises(ValueError, match=f"^{name} must be"):
        check_scan_options(options.pop("dose_fraction"), **options)
