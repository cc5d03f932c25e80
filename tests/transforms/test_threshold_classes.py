# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from testers import check_transform, picture

from monai_labelfx.transforms import ThresholdClasses, ThresholdClassesd


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_contract(spatial_dims):
    probabilities = 1 / (1 + np.exp(-picture(spatial_dims, channels=3)))
    check_transform(ThresholdClasses, ThresholdClassesd, {"threshold": 0.6}, probabilities)


def test_one_class_is_a_comparison():
    probabilities = torch.rand(1, 5, 6)
    assert torch.equal(ThresholdClasses(0.3)(probabilities), (probabilities > 0.3).to(torch.uint8))


def test_a_threshold_is_read_at_each_call():
    class Threshold:
        value = 0.5

        def __float__(self):
            return self.value

    threshold = Threshold()
    transform = ThresholdClasses(threshold)
    probabilities = torch.full((1, 2, 2), 0.4)
    assert transform(probabilities).sum() == 0
    threshold.value = 0.3
    assert transform(probabilities).sum() == 4


def test_many_classes_fit_the_type():
    probabilities = torch.zeros(300, 1, 1)
    probabilities[299] = 1
    assert ThresholdClasses()(probabilities).item() == 300


def test_bad_threshold():
    with pytest.raises(ValueError, match="threshold must lie between 0 and 1, got 1.5"):
        ThresholdClasses(1.5)
