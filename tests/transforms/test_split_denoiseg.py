# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.special import softmax
from testers import AFFINE, check_transform, picture

from monai_labelfx.transforms import SplitDenoiSeg, SplitDenoiSegd
from monai_labelfx.transforms._keyed import Keyed


class WithInput(SplitDenoiSeg):
    """The contract reads the transformed key itself too, which this transform leaves as it is."""

    def __call__(self, img):
        return {"": img, **super().__call__(img)}


class WithInputd(Keyed):
    array = WithInput


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("channels", [3, 4, 5])
def test_contract(spatial_dims, channels):
    check_transform(WithInput, WithInputd, {}, picture(spatial_dims, channels))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_parts(spatial_dims):
    output = picture(spatial_dims, 5) * 50
    parts = SplitDenoiSeg()(output)
    assert set(parts) == {"_denoised", "_probabilities"}
    np.testing.assert_array_equal(parts["_denoised"], output[:2])
    np.testing.assert_allclose(parts["_probabilities"], softmax(output[2:].astype(np.float64), axis=0), atol=1e-6)


def test_no_denoised_channels():
    assert set(SplitDenoiSeg()(picture(2, 3))) == {"_probabilities"}
    assert set(SplitDenoiSeg(num_classes=2)(picture(2, 3))) == {"_denoised", "_probabilities"}


def test_half_precision_gives_float32_probabilities_and_keeps_the_image():
    parts = SplitDenoiSeg()(torch.full((4, 2, 2), 100.0, dtype=torch.float16))
    assert parts["_probabilities"].dtype == torch.float32 and parts["_denoised"].dtype == torch.float16
    torch.testing.assert_close(parts["_probabilities"], torch.full((3, 2, 2), 1 / 3))


def test_twin_writes_both_parts_with_metadata_and_no_view():
    output = MetaTensor(picture(3, 4), affine=AFFINE, meta={"filename_or_obj": "brain.nii"})
    item = SplitDenoiSegd(keys="pred")({"pred": output})
    assert set(item) == {"pred", "pred_denoised", "pred_probabilities"}
    for key in ("pred_denoised", "pred_probabilities"):
        assert item[key].meta["filename_or_obj"] == "brain.nii" and torch.equal(item[key].affine, output.affine)
    assert item["pred"] is output
    before = output.clone()
    item["pred_denoised"] += 1
    assert torch.equal(output, before)


def test_bad_arguments():
    with pytest.raises(ValueError, match="3 or more channels, got \\(2, 16, 17\\)"):
        SplitDenoiSeg()(picture(2, 2))
    with pytest.raises(KeyError):
        SplitDenoiSegd(keys="pred")({})
    assert SplitDenoiSegd(keys="pred", allow_missing_keys=True)({}) == {}
    with pytest.raises(ValueError, match="num_classes must be 1 or more"):
        SplitDenoiSeg(num_classes=0)
