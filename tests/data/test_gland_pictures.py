# SPDX-License-Identifier: Apache-2.0
"""Synthetic pictures of glands: what is where, and how it looks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from monai_labelfx.data._gland_pictures import Stain, _stamped, draw_stain, gland_picture, smooth

PLAIN = Stain(np.array([[1.0, 1.2, 0.7], [0.15, 0.9, 0.5]]), np.ones(3))


def picture(seed: int, shape=(160, 160), stain=PLAIN, **keywords):
    options = {"malignant": False, "extent": 0.8, "scale": 1.0} | keywords
    return gland_picture(np.random.default_rng(seed), shape, stain, **options)


@pytest.mark.parametrize(("shape", "scale"), [((160, 130), 1.0), ((40, 36, 32), 0.35)])
@pytest.mark.parametrize("malignant", [False, True])
def test_glands_are_numbered_whole_and_apart(shape, scale, malignant):
    image, glands = picture(3, shape, malignant=malignant, scale=scale)
    assert image.shape == (*shape, 3) and image.dtype == np.uint8 and glands.dtype == np.uint16
    numbers = np.unique(glands)
    assert numbers.tolist() == list(range(len(numbers))) and len(numbers) > 3
    for number in numbers[1:]:
        mask = glands == number
        assert ndimage.label(mask)[1] == 1
        assert np.isin(glands[ndimage.binary_dilation(mask)], (0, number)).all(), "stroma lies between two glands"
    again = picture(3, shape, malignant=malignant, scale=scale)
    assert (again[0] == image).all() and (again[1] == glands).all()
    assert (picture(4, shape, malignant=malignant, scale=scale)[0] != image).any()


@pytest.mark.parametrize("malignant", [False, True])
def test_a_gland_is_a_dark_ring_around_a_bright_lumen(malignant):
    rings, middles, stroma = [], [], []
    for seed in range(4):
        image, glands = picture(seed, malignant=malignant)
        depth = ndimage.distance_transform_edt(glands > 0)
        brightness = image.mean(-1)
        rings.append(brightness[(depth > 2) & (depth < 7)].mean())
        middles.append(brightness[depth > 0.9 * depth.max()].mean())
        stroma.append(brightness[ndimage.distance_transform_edt(glands == 0) > 6].mean())
    assert max(rings) < min(middles) and max(rings) < min(stroma)


def test_malignant_glands_are_less_round_and_hold_more_nuclei():
    def figures(malignant: bool) -> tuple[float, float]:
        fills, red = [], []
        for seed in range(8):
            image, glands = picture(seed, malignant=malignant, extent=0.4)
            red.append(image[..., 0][glands > 0].mean())  # haematoxylin takes the red away
            for number, place in enumerate(ndimage.find_objects(glands), start=1):
                if all(p.start > 0 and p.stop < 160 for p in place) and glands[place].size > 1500:
                    mask = glands[place] == number
                    perimeter = (mask & ~ndimage.binary_erosion(mask)).sum()
                    fills.append(mask.sum() / perimeter**2)
        return float(np.mean(fills)), float(np.mean(red))

    (round_fill, round_red), (torn_fill, torn_red) = figures(False), figures(True)
    assert torn_fill < 0.97 * round_fill and torn_red < round_red - 10


def test_extent_is_the_part_with_glands():
    areas = [np.mean([(picture(seed, extent=extent)[1] > 0).mean() for seed in range(6)]) for extent in (0, 0.3, 1.0)]
    assert areas[0] == 0 and 0.02 < areas[1] < 0.35 < areas[2] < 0.85
    assert picture(0, extent=0)[0].std() > 10, "stroma has a texture too"


def test_slides_differ_in_their_stain_more_than_pictures_of_one():
    means = np.array(
        [
            [picture(seed, (64, 64), draw_stain(np.random.default_rng(slide)))[0].mean((0, 1)) for seed in range(4)]
            for slide in range(8)
        ]
    )
    assert (means.mean(1).std(0) > 1.5 * means.std(1).mean(0)).all()
    for slide in range(20):
        stain = draw_stain(np.random.default_rng(slide))
        assert (stain.absorption > 0).all() and (stain.glass <= 1).all() and (stain.glass >= 0.6).all()
        assert stain.absorption[0, 0] > stain.absorption[1, 0], "only haematoxylin takes much of the red"


def test_smooth_noise_has_the_asked_width_on_each_axis():
    field = smooth(np.random.default_rng(0), (128, 96, 64), np.array([4.0, 1.0, 2.0]))
    assert field.mean() == pytest.approx(0, abs=1e-9) and field.std() == pytest.approx(1, abs=1e-6)
    for axis, sigma in enumerate((4.0, 1.0, 2.0)):  # the autocorrelation of a Gaussian has a width of sigma * sqrt(2)
        for lag in (2, 4):
            found = (field * np.roll(field, lag, axis)).mean()
            assert found == pytest.approx(np.exp(-(lag**2) / (4 * sigma**2)), abs=0.06)


def test_stamped_ellipsoids_against_a_loop():
    generator = np.random.default_rng(2)
    shape, number = (20, 17), 6
    points = generator.uniform(0, 17, (number, 2))
    long, short, value = (generator.uniform(*pair, number) for pair in ((2, 5), (1, 2), (0.3, 1.0)))
    angle = generator.uniform(0, np.pi, number)
    direction = np.stack([np.cos(angle), np.sin(angle)], -1)
    expected = np.zeros(shape)
    for n in range(number):
        for x in range(shape[0]):
            for y in range(shape[1]):
                away = np.array([x, y]) - points[n]
                along = away @ direction[n]
                across = away @ away - along**2
                form = 2.2 * (1 - (along / long[n]) ** 2 - across / short[n] ** 2)
                expected[x, y] = max(expected[x, y], min(max(form, 0), 1) * value[n])
    np.testing.assert_allclose(_stamped(shape, points, long, short, direction, value), expected, atol=1e-12)
    assert not _stamped(shape, points[:0], long[:0], short[:0], direction[:0], value[:0]).any()
