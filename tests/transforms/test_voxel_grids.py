# SPDX-License-Identifier: Apache-2.0
"""Grids of voxels: shapes, affines, pending operations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Flip, Spacing, Zoom

from monai_labelfx.transforms._voxel_grids import check_applied, is_moved, one_grid, voxel_volume

AFFINE = torch.tensor([[0.0, -0.7, 0.0, 3.0], [0.9, 0.0, 0.0, -2.0], [0.0, 0.0, 2.5, 1.0], [0.0, 0.0, 0.0, 1.0]])


@pytest.mark.parametrize("ndim", [2, 3])
def test_one_grid(ndim):
    image = MetaTensor(torch.zeros(1, *(10, 12, 8)[:ndim]), affine=AFFINE)
    rounded = MetaTensor(image[[0, 0, 0]].as_tensor(), affine=AFFINE + 1e-3)
    elsewhere = AFFINE.clone()
    elsewhere[1, 3] += 0.4  # mm, of voxels of 0.7
    shifted = MetaTensor(image.as_tensor(), affine=elsewhere)
    assert one_grid(image, rounded) and one_grid(rounded, image) and one_grid(image, np.zeros(image.shape))
    assert not one_grid(image, shifted) and not one_grid(image, Flip(0)(image))
    assert not one_grid(image, image[:, 1:]) and not one_grid(image.numpy(), np.zeros((1, 3, 3)))
    assert not one_grid(image, MetaTensor(image.as_tensor(), affine=AFFINE * torch.nan))
    lazy = Zoom(2.0, keep_size=False, lazy=True)(image)
    assert lazy.shape == image.shape and not one_grid(image, lazy) and one_grid(Zoom(2.0, keep_size=False)(image), lazy)


def test_a_picture_whose_lazy_resampling_left_a_smaller_affine():
    affine = torch.eye(4)
    affine[2, 3] = 5  # a slice of a volume
    picture = MetaTensor(torch.zeros(1, 8, 8), affine=affine)
    smaller = MetaTensor(torch.zeros(1, 8, 8))
    smaller.affine = torch.eye(3)
    assert len(smaller.affine) == 3 and one_grid(picture, smaller) and one_grid(smaller, picture)
    turned = Compose([Flip(0), Zoom(2.0, keep_size=False)], lazy=True)(picture)
    same = MetaTensor(torch.zeros(1, 16, 16), affine=Zoom(2.0, keep_size=False)(Flip(0)(picture)).affine)
    assert one_grid(turned, same) and one_grid(same, turned)


def test_is_moved():
    image = MetaTensor(torch.zeros(1, 8, 9), affine=AFFINE, meta={"original_affine": AFFINE.numpy().astype(np.float64)})
    assert not is_moved(image) and not is_moved(torch.zeros(1, 8, 9)) and not is_moved(MetaTensor(torch.zeros(1, 8, 9)))
    assert is_moved(Flip(0)(image)) and is_moved(Flip(0, lazy=True)(image))


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_voxel_volume(ndim):
    sides = (0.7, 0.9, 2.5)[:ndim] if ndim != 1 else (0.9,)
    assert voxel_volume(AFFINE, ndim) == pytest.approx(np.prod(sides))
    sheared = torch.eye(4)
    sheared[0, 1] = 0.5
    assert voxel_volume(sheared, ndim) == pytest.approx(1.0)
    image = MetaTensor(torch.zeros(1, *(8,) * ndim), affine=AFFINE)
    if ndim > 1:
        assert voxel_volume(Spacing((1.5,) * ndim)(image).affine, ndim) == pytest.approx(1.5**ndim)


def test_a_picture_in_any_plane_and_affines_without_volume():
    sagittal = torch.tensor([[0.0, 0, 1, 0], [2, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 1]])
    assert voxel_volume(sagittal, 2) == pytest.approx(6)
    for affine in (torch.diag(torch.tensor([1.0, 0, 1, 1])), torch.eye(4) * torch.nan):
        with pytest.raises(ValueError, match="must be finite and give voxels a volume"):
            voxel_volume(affine, 3)


def test_pending_operations_are_refused():
    image = MetaTensor(torch.zeros(1, 8, 9))
    check_applied(image, "label", "This")
    check_applied(np.zeros((1, 8, 9)), "label", "This")
    with pytest.raises(ValueError, match="label has 1 pending operations: call This in a Compose"):
        check_applied(Flip(0, lazy=True)(image), "label", "This")
