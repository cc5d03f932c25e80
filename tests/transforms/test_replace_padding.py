# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from testers import check_transform

from monai_labelfx.transforms.replace_padding import ReplacePadding, ReplacePaddingd


def _ct(*size: int) -> np.ndarray:
    values = np.random.default_rng(0).normal(0, 300, (1, *size)).astype(np.float32)
    values[:, :3] = -2000
    return values


@pytest.mark.parametrize("size", [(8, 9), (8, 9, 4)])
def test_contract(size):
    check_transform(ReplacePadding, ReplacePaddingd, {}, _ct(*size))


def test_replaces_only_padding():
    image = torch.tensor([[-3024.0, -1500.0, -1499.0, -1024.0, 50.0]])
    result = ReplacePadding()(image)
    assert result["_padding"].tolist() == [[True, False, False, False, False]]
    assert result[""].tolist() == [[-1000.0, -1500.0, -1499.0, -1024.0, 50.0]]


@pytest.mark.parametrize(
    ("named", "expected"), [("63536", [0, 1, 0]), ("-5 0", [1, 0, 0]), ("0 -5", [1, 0, 0]), ("", [0, 0, 0])]
)
def test_padding_that_the_file_names(named, expected):
    image = MetaTensor(torch.tensor([[-3.0, 63536.0, 7.0]]), meta={"dicom_pixel_padding": named})
    result = ReplacePadding(below=None)(image)
    assert result["_padding"].int().tolist() == [expected]
    assert isinstance(result["_padding"], MetaTensor)


@pytest.mark.parametrize("dtype", [torch.int16, torch.float64])
def test_keeps_the_type(dtype):
    result = ReplacePadding()(torch.tensor([[-2000, 5]], dtype=dtype))
    assert result[""].dtype == dtype and result[""].tolist() == [[-1000, 5]]


def test_bad_arguments():
    with pytest.raises(ValueError, match="value must be at least below=-1500"):
        ReplacePadding(value=-2000)
    with pytest.raises(ValueError, match="finite number of HU, got nan"):
        ReplacePadding(value=float("nan"))
