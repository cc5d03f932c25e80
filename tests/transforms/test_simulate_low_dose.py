# SPDX-License-Identifier: Apache-2.0
"""SimulateLowDose: noise of the right size, of mean zero, the same for the same image everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Randomizable
from testers import check_transform, picture

from monai_labelfx.transforms.simulate_low_dose import SimulateLowDose, SimulateLowDosed

SIDE = 96
X, Y = np.indices((SIDE, SIDE)) - SIDE // 2
CENTRE = np.hypot(X, Y) < 20


def scan(depth: int | None = None) -> torch.Tensor:
    """A disc of water of 230 mm with a rod of bone, HU (1, x, y[, z])."""
    hu = np.where(np.hypot(X, Y) < 36, 0.0, -1000.0)
    hu[np.hypot(X - 26, Y) < 4] = 800
    image = torch.as_tensor(hu, dtype=torch.float32)[None]
    return image if depth is None else image[..., None] + torch.arange(depth)


def noise(image: torch.Tensor, dose: float = 0.25, **options) -> np.ndarray:
    options = {"photons": 1e6, "spacing": 3.2, **options}
    return (SimulateLowDose(dose, **options)(image) - image).numpy()


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("keywords", [{"spacing": 1.0}, {"spacing": 0.7, "source": "clean", "seed": 4, "angles": 20}])
def test_contract(spatial_dims, keywords):
    check_transform(SimulateLowDose, SimulateLowDosed, keywords, 100 * picture(spatial_dims, channels=2))


def test_a_quarter_of_the_dose_doubles_the_noise():
    stack = scan(depth=10)
    spread = {dose: noise(stack, dose, source="clean")[0][CENTRE].std() for dose in (1.0, 0.25)}
    assert spread[0.25] / spread[1.0] == pytest.approx(2.0, rel=0.05)
    # from a full-dose scan that is noisy itself: the variances add up to the same
    full = SimulateLowDose(1.0, photons=1e6, spacing=3.2, source="clean")(stack)
    total = (SimulateLowDose(0.25, photons=1e6, spacing=3.2)(full) - stack).numpy()[0][CENTRE].std()
    assert total / spread[1.0] == pytest.approx(2.0, rel=0.05)
    assert total == pytest.approx(spread[0.25], rel=0.05)


def test_the_difference_of_doses_with_electronic_noise():
    # few photons, so that the electronic term counts: var(a) - var(1) of e^p / I + s^2 e^2p / I^2
    stack, options = scan(depth=10), {"photons": 1e5, "electronic_sigma": 80.0}
    spread = {dose: noise(stack, dose, source="clean", **options)[0][CENTRE].std() for dose in (1.0, 0.5)}
    extra = noise(stack, 0.5, **options)[0][CENTRE].std()
    assert spread[0.5] / spread[1.0] > 1.8, "more than the root of 2"
    assert np.hypot(spread[1.0], extra) == pytest.approx(spread[0.5], rel=0.05)


def test_full_dose_of_a_full_dose_scan_is_the_scan():
    image = scan()
    result = SimulateLowDose(1.0, spacing=3.2)(image)
    assert torch.equal(result, image)
    result[0, 0, 0] = 5
    assert image[0, 0, 0] == -1000


def test_added_noise_shifts_no_hu_unless_asked():
    body = np.hypot(X, Y) < 34
    assert abs(noise(scan(), photons=1e12)[0][body]).max() <= 0.2, "without noise there is no bias"
    samples = [noise(scan(), 0.25, photons=2e4, source="clean", seed=seed)[0] for seed in range(40)]
    means = np.array([one[body].mean() for one in samples])
    assert abs(means.mean()) <= 0.2 and abs(means.mean()) <= 4 * means.std() / 40**0.5
    # what it would be otherwise: the logarithm of few counts is too small, HU are too high
    biased = [
        noise(scan(), 0.25, photons=2e4, source="clean", log_bias=True, seed=s)[0][body].mean() for s in range(10)
    ]
    assert 1 < np.mean(biased) < 10


def test_one_realisation_per_image_dose_and_seed():
    image = scan()
    base = noise(image)
    assert np.array_equal(base, noise(image))
    others = [noise(image, seed=1), noise(image + 1), noise(image, 0.5), noise(image, 0.25, source="clean")]
    for other in others:
        assert abs(np.corrcoef(base[0][CENTRE], other[0][CENTRE])[0, 1]) < 0.15


def test_same_noise_for_every_dtype_and_memory_order():
    image = scan()
    expected = SimulateLowDose(spacing=3.2)(image)
    for other in (image.to(torch.int16), image.to(torch.float64), image.mT.contiguous().mT):
        result = SimulateLowDose(spacing=3.2)(other)
        assert result.dtype == (torch.float64 if other.dtype == torch.float64 else torch.float32)
        np.testing.assert_allclose(result, expected, atol=1e-3)


def test_slices_are_scanned_one_by_one():
    image = scan()
    assert np.array_equal(noise(image[..., None])[..., 0], noise(image)), "depth one is 2-D"
    stack = noise(torch.stack([image, image], dim=-1))
    assert abs(np.corrcoef(stack[0, ..., 0][CENTRE], stack[0, ..., 1][CENTRE])[0, 1]) < 0.15, "alike, but not in noise"
    thick = scan(depth=2)
    thick[..., 1] = -1000  # air: nothing attenuates
    spread = noise(thick)[0][CENTRE].std(axis=0)
    assert spread[0] > 3 * spread[1]


def test_nothing_outside_the_circle_and_noise_of_the_stated_filter():
    result = noise(scan())[0]
    assert (result[np.hypot(X, Y) > SIDE // 2 + 1] == 0).all() and (result[np.hypot(X, Y) < SIDE // 2 - 1] != 0).all()
    smooth = noise(scan(), filter_name="hann")[0]
    assert smooth[CENTRE].std() < 0.6 * result[CENTRE].std()


def test_the_affine_gives_the_pixel():
    image = scan()
    affine = torch.diag(torch.tensor([3.2, 3.2, 5.0, 1.0]))  # float32: not quite 3.2
    meta = MetaTensor(image, affine=affine)
    result = SimulateLowDose(photons=1e6)(meta)
    assert np.array_equal((result - meta).numpy(), noise(image))
    assert torch.equal(result.affine.float(), affine)
    # longer paths, fewer photons, more noise (in spite of the lower noise of larger pixels)
    assert noise(image, spacing=6.4)[0][CENTRE].std() > noise(image)[0][CENTRE].std()
    with pytest.raises(ValueError, match="expected square pixels for the rotation of the scan, got 3.2 x 2 mm"):
        SimulateLowDose()(MetaTensor(image, affine=torch.diag(torch.tensor([3.2, 2.0, 5.0, 1.0]))))
    with pytest.raises(ValueError, match="expected a MetaTensor, whose affine gives the size of a pixel, got Tensor"):
        SimulateLowDose()(image)


def test_the_same_in_every_worker_and_not_random_for_monai():
    assert not issubclass(SimulateLowDosed, Randomizable)
    data = Dataset([{"image": scan() + n} for n in range(4)], SimulateLowDosed("image", spacing=3.2, angles=16))
    runs = [next(iter(DataLoader(data, batch_size=4, num_workers=workers)))["image"] for workers in (0, 2)]
    assert torch.equal(torch.as_tensor(runs[0]), torch.as_tensor(runs[1]))


@pytest.mark.parametrize(
    ("keywords", "name"),
    [
        ({"dose_fraction": 0.0}, "dose_fraction"),
        ({"photons": 0}, "photons"),
        ({"source": "raw"}, "source"),
        ({"spacing": 0.0}, "spacing"),
        ({"water": float("inf")}, "water"),
        ({"filter_name": "boxcar"}, "filter_name"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_arguments(keywords, name):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        SimulateLowDose(**keywords)


def test_bad_images():
    with pytest.raises(
        ValueError, match=r"expected an image \(C, x, y\) or \(C, x, y, z\) in HU, got the shape \(9, 9\)"
    ):
        SimulateLowDose(spacing=1.0)(torch.zeros(9, 9))
    with pytest.raises(ValueError, match="expected an image of finite HU"):
        SimulateLowDose(spacing=1.0)(torch.full((1, 9, 9), torch.nan))
