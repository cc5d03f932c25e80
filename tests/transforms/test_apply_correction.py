# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_labelfx.ops.wavelet import high_pass_split
from monai_labelfx.transforms.apply_correction import ApplyCorrectiond
from monai_labelfx.transforms.high_pass_split import HighPassSplitd

AFFINE = torch.diag(torch.tensor([-0.5, 0.7, 3.0, 1.0], dtype=torch.float64))


def _item(size=(40, 36), seed=0):
    generator = torch.Generator().manual_seed(seed)
    hu = torch.randint(-1000, 2000, (1, *size), generator=generator).float()
    image = hu / 2000
    return {"hu": hu, "image": image, "pred": image + 0.05 * torch.randn(1, *size, generator=generator)}


@pytest.mark.parametrize("size", [(40, 36), (24, 26, 20)])
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_formula(size, strength):
    item = _item(size)
    result = ApplyCorrectiond(strength=strength)(item)["pred"]
    expected = item["hu"].double() + strength * 2000 * (item["pred"].double() - item["image"].double())
    assert torch.allclose(result.double(), expected, atol=1e-3)
    assert result.dtype == torch.float32


def test_identity_changes_no_bit():
    item = _item()
    item["hu"] = item["hu"] * 1.0000001 + 0.3
    item["pred"] = item["image"].clone()
    project = {"wavelet": "db3", "level": 2}
    for options in ({}, {"project": project}):
        assert torch.equal(ApplyCorrectiond(**options)(item)["pred"], item["hu"])


def test_equals_low_band_plus_prediction():
    split = HighPassSplitd(keys="image", wavelet="db3", level=2)
    hu = _item()["hu"]
    item = {"hu": hu, **split({"image": hu})}
    low = item["image_low"].clone()
    item["image"] = item["image"] / 2000
    item["pred"] = 0.5 * item["image"]
    expected = low + 2000 * item["pred"]
    assert torch.allclose(ApplyCorrectiond()(item)["pred"], expected, atol=1e-3)


def test_projection_keeps_the_low_band():
    item = _item((64, 64))
    item["pred"] = item["image"] + 0.01  # the network lifts everything by 20 HU
    project = {"wavelet": "db3", "level": 3, "mode": "orthogonal"}
    assert ApplyCorrectiond()(item)["pred"].mean() - item["hu"].mean() > 19
    result = ApplyCorrectiond(project=project)(item)["pred"]
    assert torch.allclose(result, item["hu"], atol=1e-2)
    noisy = _item((64, 64))
    result = ApplyCorrectiond(project=project)(noisy)["pred"]
    low = high_pass_split(result - noisy["hu"], wavelet="db3", level=3, mode="orthogonal", axes=(1, 2))[1]
    assert low.abs().max() < 1e-2 and (result - noisy["hu"]).std() > 10


def test_projection_of_slices():
    volume = _item((40, 36, 3))
    project = {"wavelet": "db3", "level": 2}
    result = ApplyCorrectiond(project=project, spatial_dims=2)(volume)["pred"]
    for index in range(3):
        one = {key: value[..., index] for key, value in volume.items()}
        assert torch.allclose(result[..., index], ApplyCorrectiond(project=project)(one)["pred"], atol=1e-3)


def test_padding_comes_back_bit_for_bit():
    item = _item()
    item["image_padding"] = torch.zeros(1, 40, 36, dtype=torch.bool)
    item["image_padding"][:, :5] = True
    item["original"] = torch.where(item["image_padding"], torch.tensor(-2000.3), item["hu"])
    result = ApplyCorrectiond(padding_key="image_padding", original_key="original")(item)["pred"]
    assert torch.equal(result[:, :5], item["original"][:, :5])
    assert not torch.equal(result[:, 5:], item["original"][:, 5:])


def test_containers_and_meta():
    item = _item()
    expected = ApplyCorrectiond()(item)["pred"]
    arrays = {key: value.numpy() for key, value in item.items()}
    result = ApplyCorrectiond()(arrays)["pred"]
    assert isinstance(result, np.ndarray) and np.array_equal(result, expected.numpy())
    item["pred"] = MetaTensor(item["pred"], affine=AFFINE)
    result = ApplyCorrectiond()(item)["pred"]
    assert isinstance(result, MetaTensor) and torch.equal(result.affine, AFFINE)
    assert torch.equal(result.as_tensor(), expected)


def test_half_precision_prediction_and_double_reference():
    item = _item()
    item["pred"] = item["pred"].half()
    item["hu"] = item["hu"].double()
    assert ApplyCorrectiond()(item)["pred"].dtype == torch.float64


def test_bad_arguments():
    with pytest.raises(ValueError, match="strength must be 0 to 1, got 1.5"):
        ApplyCorrectiond(strength=1.5)
    with pytest.raises(ValueError, match="scale must be a positive number of HU, got 0"):
        ApplyCorrectiond(scale=0)
    with pytest.raises(ValueError, match="original_key must name the image"):
        ApplyCorrectiond(padding_key="image_padding")
    item = _item()
    with pytest.raises(ValueError, match="must have one shape, got"):
        ApplyCorrectiond()({**item, "pred": item["pred"][:, :5]})
    with pytest.raises(KeyError, match="the item has no 'hu'"):
        ApplyCorrectiond()({"pred": item["pred"], "image": item["image"]})
    assert "other" not in ApplyCorrectiond("other", allow_missing_keys=True)(item)
