# SPDX-License-Identifier: Apache-2.0
"""The synthetic images: one or two separate objects inside the image, seeded, with the stated contrast and noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from monai_labelfx.data._blob_image import blob_image, largest_part


def draw(seed: int, axes: int, size: int = 24, two: float = 0.0, noise: float = 0.1):
    return blob_image(np.random.default_rng(seed), (size,) * axes, two, noise)


@pytest.mark.parametrize("axes", [2, 3])
def test_one_object_inside_the_image(axes):
    for seed in range(8):
        image, mask = draw(seed, axes)
        assert image.dtype == np.float32 and mask.dtype == bool and image.shape == mask.shape == (24,) * axes
        assert ndimage.label(mask)[1] == 1, "joined by faces, so by any neighbours"
        assert np.array_equal(mask, ndimage.binary_fill_holes(mask))
        assert mask[(slice(1, -1),) * axes].sum() == mask.sum() > 0


@pytest.mark.parametrize("axes", [2, 3])
def test_two_objects_are_apart(axes):
    for seed in range(6):
        parts, count = ndimage.label(draw(seed, axes, two=1.0)[1], np.ones((3,) * axes))
        assert count == 2
        assert ndimage.distance_transform_cdt(parts != 1, "chessboard")[parts == 2].min() > 2


def test_contrast_noise_and_seed():
    image, mask = draw(3, 2, size=96, noise=0.05)
    inside, outside = ndimage.binary_erosion(mask, iterations=2), ~ndimage.binary_dilation(mask, iterations=2)
    assert 0.3 < image[inside].mean() - image[outside].mean() < 1.7, "1, and a slow background of deviation 0.3"
    rough = (image - ndimage.gaussian_filter(image, 2))[inside | outside]
    assert 0.03 < rough.std() < 0.07
    assert np.array_equal(image, draw(3, 2, size=96, noise=0.05)[0])
    assert not np.array_equal(image, draw(4, 2, size=96, noise=0.05)[0])


def test_a_box_around_it_is_clearly_wrong():
    fills = []
    for seed in range(40):
        mask = draw(seed, 2, size=96)[1]
        fills.append(mask[ndimage.find_objects(mask.astype(int))[0]].mean())
    assert 0.6 < np.mean(fills) < 0.75 and np.quantile(fills, 0.9) < 0.8


def test_largest_part():
    mask = np.array([[1, 0, 1, 1], [1, 0, 0, 1], [0, 1, 0, 0]], bool)
    assert largest_part(mask).astype(int).tolist() == [[0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
    assert not largest_part(np.zeros((3, 3), bool)).any()
