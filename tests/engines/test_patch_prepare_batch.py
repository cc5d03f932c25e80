# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from monai_labelfx.engines.patch_prepare_batch import PatchPrepareBatch


def batch():
    return {
        "image": MetaTensor(torch.rand(2, 3, 4, 4)),
        "patch_label": MetaTensor(torch.tensor([[1, 0], [-1, 1]], dtype=torch.int8)),
        "sub_label": torch.tensor([[3, -1], [-1, 0]]),
    }


def test_target_holds_what_the_batch_has():
    given = batch()
    images, target = PatchPrepareBatch()(given, "cpu", True)
    assert type(images) is torch.Tensor and torch.equal(images, given["image"].as_tensor())
    assert sorted(target) == ["labels", "sub_labels"]
    assert all(type(one) is torch.Tensor for one in target.values())
    assert torch.equal(target["labels"], given["patch_label"].as_tensor())
    assert torch.equal(target["sub_labels"], given["sub_label"])
    del given["sub_label"]
    assert PatchPrepareBatch()(given)[1].tolist() == [[1, 0], [-1, 1]]
    del given["patch_label"]
    assert PatchPrepareBatch()(given)[1] is None


def test_keys_and_keywords_are_used():
    given = {name: value for name, value in zip("abc", batch().values(), strict=True)}
    images, target = PatchPrepareBatch("a", label_key="b", sub_key="c")(given, dtype=torch.float64)
    assert images.dtype == torch.float64 and target["sub_labels"].tolist() == [[3, -1], [-1, 0]]


def test_wrong_batches_are_refused():
    with pytest.raises(KeyError, match="the batch has no 'image'"):
        PatchPrepareBatch()({})
    with pytest.raises(ValueError, match="'patch_label' must hold one row of class labels for each of the 2 images"):
        PatchPrepareBatch()({**batch(), "patch_label": torch.zeros(1, 2)})
