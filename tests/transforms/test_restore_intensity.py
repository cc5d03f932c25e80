# SPDX-License-Identifier: Apache-2.0
"""RestoreIntensity: exactly back, from the tensor's own meta, once."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from testers import AFFINE, picture

from monai_labelfx.transforms import RestoreIntensity, RestoreIntensityd, StandardizeIntensity, StandardizeIntensityd


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("keywords", [{}, {"mean": 10.0, "std": 3.0}])
def test_round_trip(spatial_dims, keywords):
    array = picture(spatial_dims, channels=2) * 30 + 500
    image = MetaTensor(torch.as_tensor(array), affine=AFFINE)
    standard = StandardizeIntensity(**keywords)(image)
    before = standard.clone()
    restored = RestoreIntensity()(standard)
    assert np.allclose(restored, array, rtol=1e-6) and torch.equal(restored.affine, image.affine)
    assert "intensity_mean" not in restored.meta
    assert torch.equal(standard.as_tensor(), before.as_tensor()) and "intensity_mean" in standard.meta


def test_constant_image_comes_back():
    assert RestoreIntensity()(StandardizeIntensity()(torch.full((1, 3, 3), 7.0))).as_tensor().eq(7).all()


def test_through_a_batch_and_back():
    items = [{"image": picture(2, seed=seed) * (seed + 1) + 10 * seed} for seed in range(3)]
    batch = next(iter(DataLoader(Dataset(items, StandardizeIntensityd("image")), batch_size=3)))
    batch["pred"] = batch["image"] * 1.0
    twin = pickle.loads(pickle.dumps(RestoreIntensityd("pred")))
    for item, original in zip(decollate_batch(batch), items, strict=True):
        assert np.allclose(twin(item)["pred"], original["image"], atol=1e-5)
    assert twin.backend == RestoreIntensity.backend


def test_twin_skips_or_demands_keys():
    image = StandardizeIntensity()(torch.rand(1, 3, 3))
    item = {"image": image, "other": 1}
    out = RestoreIntensityd(["image", "absent"], allow_missing_keys=True)(item)
    assert torch.equal(out["image"].as_tensor(), RestoreIntensity()(image).as_tensor()) and out["other"] == 1
    assert item["image"] is image
    with pytest.raises(KeyError):
        RestoreIntensityd("absent")(item)


def test_without_the_numbers_there_is_one_sentence():
    for bad in (np.zeros((1, 3, 3)), torch.zeros(1, 3, 3), MetaTensor(torch.zeros(1, 3, 3))):
        with pytest.raises(ValueError, match="intensity_mean and intensity_std.*found"):
            RestoreIntensity()(bad)
    restored = RestoreIntensity()(StandardizeIntensity()(torch.rand(1, 3, 3)))
    with pytest.raises(ValueError, match="nothing restored yet"):
        RestoreIntensity()(restored)
