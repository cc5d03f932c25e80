# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_labelfx.transforms._patches import checked_patches, image_name, voxel_sizes
from tests.testers import AFFINE

IMAGE = torch.zeros(1, 6, 8)


def test_patches_and_labels_come_out_in_one_form():
    patches, labels = checked_patches(np.array([[0, 0, 6, 8]], np.int32), [[1, -1]], IMAGE)
    assert patches.tolist() == [[0, 0, 6, 8]] and patches.dtype == torch.int64
    assert labels.tolist() == [[1, -1]] and labels.dtype == torch.int8
    assert len(checked_patches(torch.zeros(0, 4, dtype=torch.int64), torch.zeros(0, 2), IMAGE)[0]) == 0


@pytest.mark.parametrize(
    ("patches", "labels", "message"),
    [
        ([[0, 0, 6]], [[1]], r"patches of the image must be \(N, 4\) whole numbers.*shape \(1, 3\)"),
        ([[0.0, 0, 6, 8]], [[1]], "got torch.float32"),
        ([[0, 0, 6, 8]], [1], r"labels of the image must be \(N, K\), a row for each of 1 patches, got shape \(1,\)"),
        ([[0, 0, 6, 8]], [[1, 2]], r"must be 1 \(present\), 0 \(absent\) or -1 \(unknown\), got 2"),
        ([[0, 0, 6, 8], [0, 1, 6, 8]], [[1], [1]], r"patch 1 of the image must lie in the image \(6, 8\), got start"),
        ([[-1, 0, 6, 8]], [[1]], "must lie in the image"),
        ([[0, 0, 0, 8]], [[1]], "must lie in the image"),
    ],
)
def test_bad_patches_are_named(patches, labels, message):
    with pytest.raises(ValueError, match=message):
        checked_patches(patches, labels, IMAGE)


def test_an_image_is_called_by_its_file():
    assert image_name(IMAGE) == "the image"
    assert image_name(MetaTensor(IMAGE, meta={"filename_or_obj": "a/b.png"})) == "image 'a/b.png'"


def test_millimetres_become_whole_voxels():
    image = MetaTensor(torch.zeros(1, 6, 8, 4), affine=AFFINE)  # voxels of 0.9, 0.7 and 2.5 mm
    assert voxel_sizes(9, "mm", image, "size") == (10, 13, 4)
    assert voxel_sizes((1.8, 0.1, 5), "mm", image, "size") == (2, 1, 2)
    assert voxel_sizes((4, 5, 6), "voxels", image, "size") == (4, 5, 6)
    with pytest.raises(ValueError, match="unit='mm' needs an image with an affine, got a plain Tensor"):
        voxel_sizes(9, "mm", IMAGE, "size")
    with pytest.raises(ValueError, match="size must be whole numbers of voxels, got 1.5"):
        voxel_sizes(1.5, "voxels", IMAGE, "size")
    for bad in (0, -1, (4, 4, 4), float("nan")):
        with pytest.raises(ValueError, match="size must be one number above 0, or 2, one per axis"):
            voxel_sizes(bad, "voxels", IMAGE, "size")
