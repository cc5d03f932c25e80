# SPDX-License-Identifier: Apache-2.0
"""SSIM in any number of dimensions against scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity as reference_similarity

from monai_labelfx.metrics._structural_similarity import SSIM_WINDOWS, structural_similarity


def images(size, count=3, dtype=np.float64) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(-200, 300, size=(count, *size)).astype(dtype) for _ in range(2)]


@pytest.mark.parametrize("size", [(20,), (7, 7), (16, 21), (9, 8, 11), (7, 8, 7, 9)])
@pytest.mark.parametrize("data_range", [0.5, 4096.0])
def test_equals_scikit_image(size, data_range):
    first, second = images(size)
    second = 0.7 * first + 0.3 * second
    expected = [reference_similarity(a, b, data_range=data_range) for a, b in zip(first, second, strict=True)]
    given = torch.tensor(first), torch.tensor(second), torch.full((3,), data_range, dtype=torch.float64)
    found = structural_similarity(*given, SSIM_WINDOWS["uniform_7"])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)


def test_each_image_has_its_range():
    first, second = (torch.tensor(image) for image in images((12, 12)))
    ranges = torch.tensor([100.0, 1000.0, 5000.0], dtype=torch.float64)
    window = SSIM_WINDOWS["uniform_7"]
    together = structural_similarity(first, second, ranges, window)
    alone = [structural_similarity(first[k : k + 1], second[k : k + 1], ranges[k : k + 1], window) for k in range(3)]
    assert torch.equal(together, torch.cat(alone)) and len(set(together.tolist())) == 3


@pytest.mark.parametrize("name", SSIM_WINDOWS)
def test_symmetric_one_for_equal_images_and_inputs_kept(name):
    first, second = (torch.tensor(image) for image in images((12, 13)))
    copies, extent = (first.clone(), second.clone()), torch.full((3,), 400.0, dtype=torch.float64)
    forth, back = (
        structural_similarity(*two, extent, SSIM_WINDOWS[name]) for two in ((first, second), (second, first))
    )
    torch.testing.assert_close(forth, back)
    torch.testing.assert_close(structural_similarity(first, first, extent, SSIM_WINDOWS[name]), torch.ones_like(extent))
    assert torch.equal(first, copies[0]) and torch.equal(second, copies[1])


def test_too_small_an_image():
    image = torch.zeros(1, 6, 9)
    with pytest.raises(ValueError, match="7 voxels along each axis for SSIM, got 6 x 9"):
        structural_similarity(image, image, torch.ones(1), SSIM_WINDOWS["uniform_7"])
    assert structural_similarity(image, image, torch.ones(1), SSIM_WINDOWS["gaussian_11"]) == 1
