# SPDX-License-Identifier: Apache-2.0
"""Patches against plain loops, their choice without the noise, circles in mm."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from monai_labelfx.metrics.homogeneous_patches import (
    circle_statistics,
    find_homogeneous_patches,
    patch_statistics,
    ranked_patches,
)


def anatomy(shape=(70, 60), seed: int = 0) -> np.ndarray:
    """Smooth tissue around 40 HU with an edge to air."""
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 6)
    image = 40 + 20 * smooth / np.abs(smooth).max()
    image[:18] = -1000
    return image


@pytest.mark.parametrize("stride", [None, 1, 5])
def test_equals_plain_loops(stride):
    image, size, sigma = anatomy(), 12, 1.5
    smooth = ndimage.gaussian_filter(image.astype(np.float32), sigma, mode="nearest", truncate=3).astype(np.float64)
    step = stride or size // 4
    expected = {}
    for x, y in itertools.product(range(0, 70 - size + 1, step), range(0, 60 - size + 1, step)):
        patch = smooth[x : x + size, y : y + size]
        if patch.min() >= 25 and patch.max() <= 50:
            expected[x, y] = patch.std()
    places, deviations = ranked_patches(image, low=25, high=50, size=size, count=1000, stride=stride)
    assert len(places) == len(expected) > 10 and places.dtype == np.int64
    np.testing.assert_allclose(deviations, [expected[tuple(place)] for place in places.tolist()], rtol=1e-5, atol=1e-6)
    assert (np.diff(deviations) >= 0).all()
    best = find_homogeneous_patches(image, low=25, high=50, size=size, count=7, stride=stride)
    assert np.array_equal(best, places[:7])


def test_noise_does_not_choose():
    """The medium's mean lies near a limit, and noise of 200 HU is around it: means of the patches stay unbiased."""
    clean = np.full((200, 200), 30.0)
    noisy = clean + np.random.default_rng(0).normal(0, 200, clean.shape)
    places = find_homogeneous_patches(noisy, low=-40, high=100, size=60, count=50)
    assert len(places) == 50
    before, after = (patch_statistics(image, places) for image in (noisy, clean))
    assert before.std == pytest.approx(200, rel=0.02) and abs(before.mean - 30) < 5
    assert after == (30.0, 0.0, 50)


def test_the_best_of_all_slices():
    volume = np.stack([anatomy(seed=seed) for seed in range(3)], axis=-1)
    ranked = []
    for number in range(3):
        places, deviations = ranked_patches(volume[..., number], low=0, high=80, size=12, count=40)
        ranked += [(d, *place, number) for d, place in zip(deviations, places.tolist(), strict=True)]
    expected = [list(row[1:]) for row in sorted(ranked, key=lambda row: row[0])[:40]]
    for image in (volume, torch.as_tensor(volume)[None], MetaTensor(torch.as_tensor(volume))):
        places = find_homogeneous_patches(image, low=0, high=80, size=12, count=40)
        assert places.tolist() == expected
        patches = [volume[x : x + 12, y : y + 12, z] for x, y, z in expected]
        found = patch_statistics(image, places, 12)
        np.testing.assert_allclose(found[:2], np.mean([(p.mean(), p.std()) for p in patches], axis=0))
        assert found.number == 40 == patch_statistics(image, torch.as_tensor(places), 12).number


def test_padding_and_media_that_are_not_there():
    image, exclude = anatomy(), np.zeros((70, 60), bool)
    exclude[:, 30:] = True
    places = find_homogeneous_patches(np.where(exclude, np.nan, image), low=0, high=80, size=12, exclude=exclude)
    assert len(places) and (places[:, 1] + 12 <= 30).all()
    nothing = find_homogeneous_patches(image, low=300, high=400, size=12)
    assert nothing.shape == (0, 2) and find_homogeneous_patches(image, low=0, high=80).shape[1] == 2
    found = patch_statistics(image, nothing, 12)
    assert found.number == 0 and math.isnan(found.mean) and math.isnan(found.std)
    assert find_homogeneous_patches(np.zeros((9, 9, 2)), low=-1, high=1, size=10).shape == (0, 3)


def test_circles_in_mm_and_in_voxels():
    volume = np.random.default_rng(0).normal(size=(20, 16, 4))
    spacing = (0.5, 0.8, 3.0)
    inside = [
        (x, y) for x, y in itertools.product(range(20), range(16))
        if math.hypot((x - 9.5) * 0.5, (y - 7) * 0.8) <= 2.4
    ]  # fmt: skip
    values = np.array([volume[x, y, 2] for x, y in inside])
    expected = (pytest.approx(values.mean()), pytest.approx(values.std()), len(values))
    assert circle_statistics(volume, (9.5, 7, 2), 2.4, spacing=spacing) == expected
    assert circle_statistics(volume, (4.75, 5.6, 6.9), 2.4, spacing=spacing, unit="mm") == expected
    meta = MetaTensor(torch.as_tensor(volume)[None], affine=torch.diag(torch.tensor([-0.5, 0.8, 3.0, 1.0])))
    assert circle_statistics(meta, (9.5, 7, 2), 2.4) == expected
    plane = MetaTensor(torch.as_tensor(volume[..., 2])[None], affine=torch.diag(torch.tensor([0.5, -0.8, 1.0])))
    assert circle_statistics(plane, (9.5, 7), 2.4) == expected
    assert circle_statistics(volume[..., 2], (9.5, 7), 100).number == 320


def test_bad_input_is_named():
    image = np.zeros((20, 16, 4))
    for keywords in ({"size": 0}, {"count": 0}, {"stride": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(keywords))} must be a number above 0"):
            find_homogeneous_patches(image, low=0, high=1, **keywords)
    for low, high, sigma in ((1, 1, None), (0, 1, 0)):
        with pytest.raises(ValueError, match="expected low < high and sigma above 0"):
            find_homogeneous_patches(image, low=low, high=high, size=4, sigma=sigma)
    with pytest.raises(ValueError, match="image holds NaN"):
        find_homogeneous_patches(image * np.nan, low=0, high=1, size=4)
    with pytest.raises(ValueError, match=r"positions must have the shape \(K, 3\)"):
        patch_statistics(image, [[0, 0]], 4)
    for place in ([17, 0, 0], [0, 0, 4], [-1, 0, 0]):
        with pytest.raises(ValueError, match=r"leaves the image: positions must be at most \(16, 12, 3\)"):
            patch_statistics(image, [place], 4)
    for centre, keywords, message in (
        ((5, 5), {}, "centre and spacing must have 3 numbers"),
        ((5, 16, 0), {}, r"lies outside of the image of \(20, 16, 4\)"),
        ((5, 5, 0), {"spacing": (0, 1, 1)}, "radius and spacing must be above 0"),
        ((5, 5, 0), {"unit": "cm"}, "unit must be"),
        ((5.5, 5.5, 0), {"radius": 0.5}, "holds no centre of a voxel"),
    ):
        with pytest.raises(ValueError, match=message):
            circle_statistics(image, centre, **{"radius": 2.0, **keywords})
