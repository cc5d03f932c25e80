# SPDX-License-Identifier: Apache-2.0
"""CheckHounsfield: CT passes untouched, anything else is one sentence with the file's name."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from testers import check_transform, picture

from monai_labelfx.transforms.check_hounsfield import CheckHounsfield, CheckHounsfieldd


def ct(spatial_dims: int = 2, **meta) -> MetaTensor:
    values = torch.as_tensor(picture(spatial_dims), dtype=torch.float32)
    values = (values - values.min()) / (values.max() - values.min()) * 2000 - 1000
    return MetaTensor(values, meta={"filename_or_obj": "/data/a.nii.gz", **meta})


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_contract(spatial_dims):
    array = ct(spatial_dims).numpy()
    check_transform(CheckHounsfield, CheckHounsfieldd, {}, array)
    image = ct(spatial_dims)
    assert CheckHounsfield()(image) is image and CheckHounsfieldd("image")({"image": image})["image"] is image


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.float16, torch.float32, torch.float64])
def test_types_that_hold_hu(dtype):
    CheckHounsfield()(ct().to(dtype))


@pytest.mark.parametrize("values", [[-32768.0, 65535.0], [-1000.0, -1000.0], [-2000.0, 0.5], [-1.5, 0.0]])
def test_values_that_are_possible(values):
    CheckHounsfield()(torch.tensor([[values]]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([np.nan, 0.0, np.inf], "the image holds 2 values that are NaN or infinite, expected HU"),
        ([0.0, -np.inf], "holds 1 values"),
        ([-40000.0, 0.0], "between -40000 and 0, expected HU between -32768 and 65535: its slope and intercept"),
        ([-1000.0, 1e6], "between -1000 and 1e.06, expected HU between"),
        ([0.0, 1.0], "between 0 and 1, expected HU, with air near -1000: it seems to be normalised"),
        ([-1.0, 1.0], "it seems to be normalised"),
        ([0.0, 255.0], "between 0 and 255, expected HU, with air near -1000: it seems to be a grey picture"),
        ([3.0, 80.5], "it seems to be a grey picture"),
    ],
)
def test_values_that_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        CheckHounsfield()(torch.tensor([[values]]))


def test_no_value_below_zero_is_a_warning():
    with pytest.warns(UserWarning, match="between 0 and 2048, and none below 0, .*their intercept was lost"):
        CheckHounsfield()(torch.tensor([[[0.0, 2048.0]]]))
    declared = MetaTensor(torch.tensor([[[0.0, 200.0]]]), meta={"dicom_modality": "CT", "dicom_values": "rescaled"})
    with pytest.warns(UserWarning, match="between 0 and 200, and none below 0"):  # a crop; DICOM names its unit
        CheckHounsfield()(declared)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"dicom_modality": "MR"}, "the image '/data/a.nii.gz' has the modality 'MR', expected 'CT'"),
        ({"dicom_modality": ["PT"]}, "has the modality 'PT'"),
        ({"dicom_modality": ""}, "has the modality '', expected 'CT'"),
        ({"dicom_modality": "CT", "dicom_values": "display"}, "was read for display.*display=False"),
        ({"nifti_stored": "uint8 8.0 -1000.0"}, r"stores 8 bits per voxel \(uint8\), expected CT in HU"),
        ({"filename_or_obj": "b.PNG"}, "the image 'b.PNG' is a picture, whose grey values are no HU"),
        ({"filename_or_obj": ["b.jpeg"]}, "the image 'b.jpeg' is a picture"),
    ],
)
def test_sources_that_are_refused(meta, message):
    with pytest.raises(ValueError, match=message):
        CheckHounsfield()(ct(**meta))


@pytest.mark.parametrize(
    "meta", [{"dicom_modality": "CT", "dicom_values": "rescaled"}, {"nifti_stored": "int16 1.0 0.0"}]
)
def test_sources_that_are_ct(meta):
    CheckHounsfield()(ct(**meta))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(2, 4, 4), r"has the shape \(2, 4, 4\), expected one channel and 2 or 3 spatial axes"),
        (torch.zeros(4, 4), "expected one channel"),
        (torch.zeros(1, 2, 2, 2, 2), "expected one channel"),
        (torch.zeros(1, 0, 4), "without voxels"),
        (torch.zeros(1, 4, 4, dtype=torch.uint8), "holds numbers of type uint8, expected CT in HU"),
        (torch.zeros(1, 4, 4, dtype=torch.bool), "of type bool"),
        (torch.zeros(1, 4, 4, dtype=torch.complex64), "of type complex64"),
    ],
)
def test_arrays_that_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        CheckHounsfield()(image)


def test_limits():
    image = torch.tensor([[[-1024.0, 3071.0]]])
    CheckHounsfield(limits=(-1024, 3071))(image)
    with pytest.raises(ValueError, match="expected HU between -1024 and 3070"):
        CheckHounsfieldd("image", limits=[-1024, 3070])({"image": image})
    for limits in ((1.0, 1.0), (0.0,), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="limits must be the least and the greatest HU"):
            CheckHounsfield(limits=limits)
