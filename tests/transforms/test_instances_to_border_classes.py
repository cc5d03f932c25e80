# SPDX-License-Identifier: Apache-2.0
"""Border classes as a transform: containers, voxel sizes, voxels without annotation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from skimage.segmentation import find_boundaries
from testers import check_transform

from monai_labelfx.ops import border_classes
from monai_labelfx.transforms import InstancesToBorderClasses, InstancesToBorderClassesd


def blocks(spatial_dims: int, dtype=np.int32) -> np.ndarray:
    """Touching random blocks, (1, 16, 17[, 18])."""
    shape = tuple(16 + axis for axis in range(spatial_dims))
    coarse = np.random.default_rng(4).integers(0, 4, [n // 4 + 1 for n in shape])
    return np.kron(coarse, np.ones([4] * spatial_dims, int))[tuple(slice(n) for n in shape)][None].astype(dtype)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(
    "keywords",
    [{}, {"border_width": 2, "connectivity": 2}, {"spacing": [1.5] * 2}, {"ignore_label": 3}],
    ids=["default", "wide", "spacing", "ignore"],
)
def test_contract(spatial_dims, keywords):
    if "spacing" in keywords:
        keywords = {"spacing": [1.5] * spatial_dims}
    check_transform(InstancesToBorderClasses, InstancesToBorderClassesd, keywords, blocks(spatial_dims))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64, np.int64, np.float32])
def test_every_array_type_gives_int64_like_scikit_image(dtype):
    labels = blocks(2, dtype)
    result = InstancesToBorderClasses()(labels)
    assert result.dtype == torch.int64
    expected = np.where(find_boundaries(labels[0].astype(np.int32), mode="outer"), 2, labels[0] > 0)
    np.testing.assert_array_equal(result[0], expected)


def test_spacing_of_each_image():
    labels = torch.as_tensor(blocks(3))
    affine = torch.diag(torch.tensor([4.0, 1.0, 1.0, 1.0]))
    result = InstancesToBorderClasses(2.0, spacing="image")(MetaTensor(labels, affine=affine))
    assert torch.equal(result.as_tensor(), border_classes(labels, (1, 2, 2)))
    flat = InstancesToBorderClasses(8.0, spacing="image")(MetaTensor(labels[:, 0], affine=affine))
    assert torch.equal(flat.as_tensor(), border_classes(labels[:, 0], (2, 8))), "a picture takes the first two sizes"


@pytest.mark.parametrize(("number", "dtype"), [(-1, np.int32), (255, np.uint8), (65535, np.uint16), (-1, np.float32)])
def test_voxels_without_annotation(number, dtype):
    labels = blocks(2, dtype)
    unknown = np.zeros(labels.shape, bool)
    unknown[:, :5] = True
    item = InstancesToBorderClassesd("label", ignore_label=number)(
        {"label": np.where(unknown, np.array(number).astype(dtype), labels)}
    )
    assert item["label_ignore"].dtype == torch.bool
    np.testing.assert_array_equal(item["label_ignore"], unknown)
    expected = border_classes(torch.as_tensor(np.where(unknown, 0, labels).astype(np.int64)))
    assert torch.equal(item["label"].as_tensor(), expected)


@pytest.mark.parametrize(
    ("keywords", "array", "words"),
    [
        ({}, np.ones((2, 4, 4)), r"must have shape \(1, \*spatial\), got \(2, 4, 4\)"),
        ({}, np.ones(1), r"got \(1,\)"),
        ({}, np.full((1, 4, 4), -1), "positive labels, got -1"),
        ({}, np.full((1, 4, 4), 0.5), "whole numbers"),
        ({"border_width": 1.5}, np.ones((1, 4, 4)), "border_width"),
        ({"connectivity": 3}, np.ones((1, 4, 4)), "connectivity"),
    ],
)
def test_errors_say_what_is_wrong(keywords, array, words):
    with pytest.raises(ValueError, match=words):
        InstancesToBorderClasses(**keywords)(array)


def test_spacing_errors(monkeypatch):
    with pytest.raises(ValueError, match="spacing must be None, 'image' or .*, got 'voxel'"):
        InstancesToBorderClasses(spacing="voxel")
    monkeypatch.setattr("monai_labelfx.transforms.instances_to_border_classes.get_track_meta", lambda: False)
    with pytest.raises(ValueError, match="needs a MetaTensor"):
        InstancesToBorderClasses(spacing="image")(torch.ones(1, 4, 4))
