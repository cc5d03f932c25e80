# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.color import hed2rgb, rgb2hed
from skimage.color.colorconv import rgb_from_hed

from monai_labelfx.transforms.rand_stain_jitter import RandStainJitter, RandStainJitterd
from tests.testers import check_transform

UNIT = -np.log(1e-6)  # scikit-image counts amounts of stain in this


def stained(shape=(6, 7), seed=0) -> np.ndarray:
    """A picture (3, *shape) from 0 to 255 that the three stains can make."""
    amounts = np.random.default_rng(seed).uniform(0, 0.05, (*shape, 3))
    return np.moveaxis(255 * hed2rgb(amounts), -1, 0).astype(np.float32)


@pytest.mark.parametrize("shape", [(6, 7), (5, 4, 3)])
def test_contract(shape):
    check_transform(RandStainJitter, RandStainJitterd, {"sigma": 0.2, "bias": 0.1}, stained(shape))
    check_transform(RandStainJitter, RandStainJitterd, {"sigma": 0.3}, stained(shape).astype(np.uint8))


def test_scikit_image_agrees():
    """The oracle takes the picture apart and puts it together; the draws are laid down."""
    image, jitter = stained(), RandStainJitter(0.2, bias=0.3)
    draws = iter([np.array([0.1, -0.2, 0.05]), np.array([0.3, 0.1, 0.2])])

    class Fixed:
        def rand(self):
            return 0.0

        def uniform(self, low, high, size):
            return next(draws)

    jitter.R = Fixed()
    found = jitter(image)
    amounts = rgb2hed(np.moveaxis(image, 0, -1) / 255)
    changed = amounts * [1.1, 0.8, 1.05] + np.array([0.3, 0.1, 0.2]) / UNIT
    expected = 255 * np.moveaxis(hed2rgb(changed), -1, 0)
    assert np.allclose(found.numpy(), expected, atol=0.01)


def test_the_absorbances_are_those_of_scikit_image():
    from monai_labelfx.transforms.rand_stain_jitter import _STAINS

    assert np.array_equal(_STAINS, rgb_from_hed)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.float16])
def test_nothing_changes_with_sigma_0_whatever_the_colours(dtype):
    image = (torch.rand(3, 30, 30, generator=torch.Generator().manual_seed(0)) * 255).to(dtype)
    image[:, 0, 0], image[:, 0, 1] = 0, 255
    found = RandStainJitter(0)(image)
    assert found.dtype == dtype
    tolerance = {torch.uint8: 0, torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 0.13}[dtype]
    assert float((found.double() - image.double()).abs().max()) <= tolerance


def test_white_stays_white_and_the_range_is_kept():
    image = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0)) * 255
    image[:, :20] = 255
    for seed in range(20):
        found = RandStainJitter(0.5).set_random_state(seed)(image)
        assert (found[:, :20] == 255).all() and found.min() >= 0 and found.max() <= 255
        assert not torch.allclose(found[:, 20:], image[:, 20:])
    tinted = RandStainJitter(0, bias=0.5).set_random_state(0)(image)
    assert not (tinted[:, :20] == 255).all() and tinted.max() <= 255
    unit = RandStainJitter(0.5, white=1.0).set_random_state(3)(image / 255)
    assert torch.allclose(unit * 255, RandStainJitter(0.5).set_random_state(3)(image), atol=1e-3)


def test_more_stain_is_darker():
    image = torch.from_numpy(stained())
    draws = [RandStainJitter(0.5).set_random_state(seed) for seed in range(30)]
    found = [(jitter(image).mean(), jitter._factors.mean()) for jitter in draws]
    assert np.corrcoef(np.array(found).T)[0, 1] < -0.8


def test_probability():
    jitter = RandStainJitter(0.3, prob=0.3).set_random_state(0)
    image = torch.from_numpy(stained())
    changed = sum(not torch.equal(jitter(image), image) for _ in range(200))
    assert 35 <= changed <= 85
    assert torch.equal(RandStainJitter(0.3, prob=0)(image), image)


def test_bad_input_is_named():
    for options in ({"sigma": -0.1}, {"sigma": 1.1}):
        with pytest.raises(ValueError, match="sigma must be from 0 to 1"):
            RandStainJitter(**options)
    for options in ({"bias": -1}, {"white": 0}):
        with pytest.raises(ValueError, match="bias must be 0 or more and white above 0"):
            RandStainJitter(**options)
    with pytest.raises(
        ValueError, match=r"the image must be \(3, \*spatial\), red, green and blue, got shape \(1, 4, 4\)"
    ):
        RandStainJitter()(torch.zeros(1, 4, 4))
    for value, told in ((300.0, "0 to 300"), (-5.0, "-5 to 0"), (float("nan"), "nan")):
        image = torch.zeros(3, 4, 4)
        image[0, 0, 0] = value
        with pytest.raises(ValueError, match=rf"must hold values from 0 to white=255, got .*{told}"):
            RandStainJitter()(image)


def test_what_interpolation_rounds_beyond_white_is_white():
    image = torch.full((3, 2, 2), 255.0002)
    result = RandStainJitter(0.2).set_random_state(0)(image)
    assert result.max() <= 255 and torch.allclose(result, torch.full((3, 2, 2), 255.0), atol=1e-3)
