# SPDX-License-Identifier: Apache-2.0
"""SeededGaussianNoise: one realisation per image, of the stated size, the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Randomizable
from testers import check_transform, picture

from monai_labelfx.transforms import SeededGaussianNoise, SeededGaussianNoised

FROZEN = [0.445148, 0.398226, 0.049491, -0.852308]


def noise(image: torch.Tensor, **keywords) -> torch.Tensor:
    return torch.as_tensor(SeededGaussianNoise(**{"sigma": 1.0, **keywords})(image)).as_subclass(torch.Tensor) - image


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("keywords", [{"sigma": 10.0}, {"sigma": 0.0}, {"sigma": 2.0, "seed": 5}])
def test_contract(spatial_dims, keywords):
    check_transform(SeededGaussianNoise, SeededGaussianNoised, keywords, picture(spatial_dims, channels=2))


def test_mean_deviation_and_independence():
    sample = noise(torch.zeros(1, 64, 64, 16), sigma=20.0)
    count = sample.numel()
    assert abs(float(sample.mean())) < 5 * 20 / count**0.5
    assert float(sample.std()) == pytest.approx(20, rel=5 / (2 * count) ** 0.5)
    assert abs(float((sample[..., 1:] * sample[..., :-1]).mean())) < 5 * 400 / count**0.5


def test_two_images_and_two_seeds_have_different_noise():
    image = torch.zeros(1, 16, 16)
    other = image.clone()
    other[0, 3, 3] = 1
    for first, second in [
        (noise(image), noise(other)),
        (noise(image), noise(image, seed=1)),
        (noise(image), noise(torch.zeros(1, 8, 32)).reshape(1, 16, 16)),
    ]:
        assert abs(np.corrcoef(first.flatten(), second.flatten())[0, 1]) < 0.3 and not torch.allclose(first, second)


def test_same_noise_for_every_dtype_and_memory_order():
    image = torch.arange(48).reshape(1, 6, 8)
    expected = noise(image.float())
    for other in (image.to(torch.uint8), image.to(torch.float64), image.float().transpose(1, 2).contiguous().mT):
        result = SeededGaussianNoise(1.0)(other)
        assert result.dtype == (torch.float64 if other.dtype == torch.float64 else torch.float32)
        assert np.allclose(result - other, expected, atol=1e-5)


def test_sigma_zero_changes_nothing_and_copies():
    image = MetaTensor(torch.ones(1, 3, 3))
    result = SeededGaussianNoise(0)(image)
    assert torch.equal(result, image)
    result[0, 0, 0] = 5
    assert image[0, 0, 0] == 1


def test_the_same_in_every_worker_and_not_random_for_monai():
    assert not issubclass(SeededGaussianNoised, Randomizable)
    items = [{"image": picture(2, seed=seed)} for seed in range(4)]
    data = Dataset(items, SeededGaussianNoised("image", sigma=3.0))
    runs = [next(iter(DataLoader(data, batch_size=4, num_workers=workers)))["image"] for workers in (0, 2)]
    assert torch.equal(runs[0].as_tensor(), runs[1].as_tensor())


def test_realisation_is_frozen():
    # the noisy data set of a run must be the same in a year: these are the first numbers of this very realisation
    values = noise(torch.zeros(1, 2, 2)).flatten().tolist()
    assert values == pytest.approx(FROZEN, abs=1e-6)


@pytest.mark.parametrize(
    ("keywords", "name"), [({"sigma": -1.0}, "sigma"), ({"sigma": float("nan")}, "sigma"), ({"seed": -1}, "seed")]
)
def test_bad_arguments(keywords, name):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        SeededGaussianNoise(**{"sigma": 1.0, **keywords})
