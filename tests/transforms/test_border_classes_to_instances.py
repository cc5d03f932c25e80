# SPDX-License-Identifier: Apache-2.0
"""Decoding as a transform: containers, keys, and thresholds that change after construction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from testers import check_transform, picture

from monai_labelfx.ops import decode_instances
from monai_labelfx.transforms import BorderClassesToInstances, BorderClassesToInstancesd


def probabilities(spatial_dims: int) -> np.ndarray:
    """Softmax of seeded noise, (3, 16, 17[, 18])."""
    powers = np.exp(picture(spatial_dims, channels=3))
    return powers / powers.sum(0)


class Stored:
    """A threshold that may change later."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __float__(self) -> float:
        return self.value


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(
    "keywords",
    [{}, {"threshold": Stored(0.4), "min_size": 2, "fill_holes": True, "connectivity": 2, "growth": 2}],
    ids=["default", "all"],
)
def test_contract(spatial_dims, keywords):
    check_transform(BorderClassesToInstances, BorderClassesToInstancesd, keywords, probabilities(spatial_dims))


def test_twin_keeps_the_input_and_writes_int32_beside_it():
    array = MetaTensor(torch.as_tensor(probabilities(2)), affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])))
    item = BorderClassesToInstancesd("pred", min_size=2)({"pred": array})
    assert item["pred"] is array
    labels = item["pred_instances"]
    assert labels.dtype == torch.int32 and labels.shape == (1, 16, 17)
    assert torch.equal(labels.affine, array.affine)
    assert torch.equal(labels.as_tensor(), decode_instances(array.as_tensor(), min_size=2))
    labels.meta["note"] = "labels only"
    assert "note" not in array.meta, "meta data are copied, not shared"


def test_threshold_is_read_at_each_call():
    threshold = Stored(0.9)
    transform = BorderClassesToInstances(threshold)
    array = np.array([[[0.3]], [[0.7]], [[0.0]]])
    assert not transform(array)["_instances"].any()
    threshold.value = 0.6
    assert transform(array)["_instances"].all()


def test_keywords_reach_the_decoding():
    array = torch.as_tensor(probabilities(2))
    keywords = {"threshold": 0.3, "min_size": 3, "fill_holes": True, "connectivity": 2, "growth": (1, 2)}
    result = BorderClassesToInstances(**keywords)(array)["_instances"]
    assert torch.equal(result.as_tensor(), decode_instances(array, **keywords))


def test_errors_say_what_is_wrong():
    with pytest.raises(TypeError, match="threshold must be a number or have __float__, got str"):
        BorderClassesToInstances("0.5")
    with pytest.raises(ValueError, match=r"got \(2, 4, 4\)"):
        BorderClassesToInstances()(np.zeros((2, 4, 4)))
    with pytest.raises(ValueError, match="threshold must be a probability between 0 and 1, got 2.0"):
        BorderClassesToInstances(2)(np.zeros((3, 4, 4)))
