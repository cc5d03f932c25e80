# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

contrast_to_noise = importlib.import_module("monai_labelfx.metrics.contrast_to_noise").contrast_to_noise


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_equals_numpy(spatial_dims):
    image = np.random.default_rng(0).normal(50, 10, size=(16,) * spatial_dims)
    image[:8] -= 30
    roi, background = image[:8], image[8:]
    expected = (roi.mean() - background.mean()) / background.std(ddof=1)
    assert float(contrast_to_noise(roi, background)) == pytest.approx(expected, rel=1e-12)
    assert expected < 0, "a dark object"
    shifted = contrast_to_noise(MetaTensor(roi + 100), torch.tensor(background + 100))
    assert type(shifted) is torch.Tensor and float(shifted) == pytest.approx(expected, rel=1e-12)


def test_integers_do_not_overflow():
    roi, background = np.full(4, 30000, np.int16), np.array([-30000, -29998], np.int16)
    assert float(contrast_to_noise(roi, background)) == pytest.approx(59999 / 2**0.5)


def test_bad_regions():
    with pytest.raises(ValueError, match="roi must hold at least 1 voxels"):
        contrast_to_noise([], [1.0, 2.0])
    with pytest.raises(ValueError, match="background must hold at least 2 voxels"):
        contrast_to_noise([1.0], [1.0])
    with pytest.raises(ValueError, match="background must hold at least 2 voxels with finite HU"):
        contrast_to_noise([1.0], [1.0, float("nan")])
    with pytest.raises(ValueError, match="background must have noise, got 40 HU"):
        contrast_to_noise([1.0], [40.0, 40.0])
