# SPDX-License-Identifier: Apache-2.0
"""PSNR against scikit-image, with the range that is stated."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from testers import picture

from monai_labelfx.metrics import StatedRangePSNR


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
def test_equals_scikit_image(spatial_dims, dtype):
    clean = (100 + 20 * picture(spatial_dims, channels=2, seed=1)).astype(dtype)
    noisy = (100 + 20 * picture(spatial_dims, channels=2, seed=2)).astype(dtype)
    wide = clean.astype(np.float64), noisy.astype(np.float64)
    extent = wide[0].max() - wide[0].min()
    for data_range, stated in (("image", extent), (255, 255)):
        metric = StatedRangePSNR(data_range=data_range)
        score = metric([torch.as_tensor(noisy)], [torch.as_tensor(clean)])
        assert float(score) == pytest.approx(peak_signal_noise_ratio(*wide, data_range=stated), abs=1e-4)


def test_the_range_is_each_clean_images_own():
    clean = torch.tensor([[[0.0, 1.0]], [[0.0, 10.0]]])
    metric = StatedRangePSNR()
    scores = metric(clean + 0.1, clean)
    torch.testing.assert_close(scores.flatten(), torch.tensor([20.0, 40.0], dtype=torch.float64), atol=1e-4, rtol=0)
    assert float(metric.aggregate()) == pytest.approx(30.0, abs=1e-4)


def test_identical_images_are_infinite_and_never_nan():
    clean = torch.tensor([[[0.0, 1.0]], [[0.0, 2.0]]])
    metric = StatedRangePSNR()
    assert metric(torch.stack([clean[0], clean[1] + 1]), clean)[0, 0] == math.inf
    assert metric.aggregate() == math.inf


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_single(dtype):
    clean = torch.linspace(0, 300, 64)[None]
    metric = StatedRangePSNR(data_range=255)
    assert math.isfinite(float(metric([(clean + 290).to(dtype)], [clean.to(dtype)]))), "290 ** 2 overflows float16"


@pytest.mark.parametrize("data_range", [0, -1, float("nan"), float("inf"), "clean"])
def test_bad_ranges(data_range):
    with pytest.raises(ValueError, match="data_range must be 'image' or a number above 0, got"):
        StatedRangePSNR(data_range)


def test_bad_images():
    image = torch.tensor([[0.0, 1.0]])
    with pytest.raises(ValueError, match="constant, so its range is 0"):
        StatedRangePSNR()([image], [torch.ones(1, 2)])
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="NaN or infinity"):
            StatedRangePSNR()([image * value], [image])
