# SPDX-License-Identifier: Apache-2.0
"""StandardizeIntensity: the z-score in float64 as reference, and what it must refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from testers import check_transform, picture

from monai_labelfx.transforms import StandardizeIntensity, StandardizeIntensityd


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("keywords", [{}, {"mean": 3.0}, {"std": 2.0}, {"mean": 3.0, "std": 2.0}])
def test_contract_and_reference(spatial_dims, keywords):
    array = picture(spatial_dims, channels=2) * 7 + 100
    check_transform(StandardizeIntensity, StandardizeIntensityd, keywords, array)
    mean = keywords.get("mean", array.mean(dtype=np.float64))
    std = keywords.get("std", array.std(dtype=np.float64))
    result = StandardizeIntensity(**keywords)(array)
    assert np.allclose(result, (array.astype(np.float64) - mean) / std, atol=1e-4)
    assert result.meta["intensity_mean"] == pytest.approx(mean, rel=1e-6)
    assert result.meta["intensity_std"] == pytest.approx(std, rel=1e-5)
    assert type(result.meta["intensity_mean"]) is type(result.meta["intensity_std"]) is float


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float64, torch.float16])
def test_any_dtype_comes_out_float32(dtype):
    image = torch.arange(24).reshape(1, 4, 6).to(dtype)
    result = StandardizeIntensity()(image)
    assert result.dtype == torch.float32 and abs(float(result.mean())) < 1e-6
    assert float(result.std(correction=0)) == pytest.approx(1, rel=1e-5)


def test_a_small_signal_on_a_large_offset():
    image = 60_000 + torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    assert torch.allclose(StandardizeIntensity()(image).as_tensor(), StandardizeIntensity()(image - 60_000).as_tensor())


@pytest.mark.parametrize("value", [0.0, 0.1, 7.0, -3e4])
def test_a_constant_image_becomes_zero(value):
    result = StandardizeIntensity()(torch.full((1, 4, 4), value))
    assert torch.equal(result.as_tensor(), torch.zeros(1, 4, 4)) and result.meta["intensity_std"] == 1.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_values_are_refused_with_the_file_name(bad):
    image = MetaTensor(torch.zeros(1, 4, 4), meta={"filename_or_obj": "cells/a.tif"})
    image[0, 1, 1] = bad
    with pytest.raises(ValueError, match=r"cells/a\.tif of shape \(1, 4, 4\) has NaN or infinite"):
        StandardizeIntensity()(image)
    both = torch.tensor([[float("inf"), -float("inf")]])
    with pytest.raises(ValueError, match="NaN or infinite"):
        StandardizeIntensity()(both)


def test_empty_image_is_refused():
    with pytest.raises(ValueError, match="no voxels"):
        StandardizeIntensity()(torch.zeros(1, 0, 4))


def test_meta_of_the_input_is_untouched_and_the_numbers_collate():
    image = MetaTensor(torch.rand(1, 4, 4))
    StandardizeIntensity()(image)
    assert "intensity_mean" not in image.meta
    data = Dataset([{"image": torch.rand(1, 4, 4)} for _ in range(3)], StandardizeIntensityd("image"))
    batch = next(iter(DataLoader(data, batch_size=3)))["image"]
    assert batch.meta["intensity_mean"].shape == (3,)


@pytest.mark.parametrize("keywords", [{"std": 0.0}, {"std": -1.0}, {"std": float("nan")}, {"mean": float("inf")}])
def test_bad_constants(keywords):
    with pytest.raises(ValueError, match=f"^{next(iter(keywords))} must be"):
        StandardizeIntensity(**keywords)
