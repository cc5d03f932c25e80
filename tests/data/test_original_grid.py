# SPDX-License-Identifier: Apache-2.0
"""Moved arrays come back exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dicom_samples import ORIENTATIONS, affine_of
from monai.data import MetaTensor
from monai.transforms import Compose, Flip, Rotate90, SpatialCrop, SpatialPad, SpatialResample

from monai_labelfx.data._original_grid import moved, on_original_grid, to_current


def image(shape: tuple[int, ...], orientation: str = "axial") -> MetaTensor:
    values = torch.as_tensor(np.random.default_rng(0).normal(size=shape))
    result = MetaTensor(values, affine=torch.as_tensor(affine_of(orientation)))
    result.meta["original_affine"] = result.affine.clone()
    return result


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("nearest", [True, False])
def test_flips_swaps_and_pads_are_undone_bit_by_bit(orientation, nearest):
    before = image((2, 5, 6, 7), orientation)
    change = Compose([Flip(0), Rotate90(1, (0, 2)), SpatialPad((9, 8, 9)), Flip(2)])
    after = change(before)
    assert after.shape != before.shape and moved(to_current(after.meta), np.eye(4), (5, 6, 7))
    back = on_original_grid(after.numpy(), to_current(after.meta), (5, 6, 7), nearest=nearest)
    assert np.array_equal(back, before.numpy())


@pytest.mark.parametrize(("nearest", "outside"), [(True, 0.0), (False, np.nan)])
def test_what_was_cropped_away_is_marked(nearest, outside):
    before = image((1, 5, 6, 7))
    after = SpatialCrop(roi_start=(1, 2, 0), roi_end=(4, 6, 7))(before)
    back = on_original_grid(after.numpy(), to_current(after.meta), (5, 6, 7), nearest=nearest)
    expected = np.full((1, 5, 6, 7), outside)
    expected[:, 1:4, 2:6] = before.numpy()[:, 1:4, 2:6]
    assert np.array_equal(back, expected, equal_nan=True)


def test_other_voxel_sizes_are_interpolated():
    before = image((1, 6, 6, 6))
    smooth = MetaTensor(torch.arange(216.0).reshape(1, 6, 6, 6), meta=before.meta)  # linear in every axis
    half = smooth.affine @ torch.diag(torch.tensor([0.5, 0.5, 0.5, 1.0], dtype=smooth.affine.dtype))
    after = SpatialResample(align_corners=True)(smooth, dst_affine=half, spatial_size=(11, 11, 11))
    back = on_original_grid(after.numpy(), to_current(after.meta), (6, 6, 6), nearest=False)
    assert np.allclose(back, smooth.numpy(), atol=1e-3)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_plane_that_stands_upright(orientation):
    before = image((1, 5, 6), orientation)
    flipped = before.flip(2)
    current = affine_of(orientation) @ np.array([[1, 0, 0, 0], [0, -1, 0, 5], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    meta = {"affine": current[None], "original_affine": affine_of(orientation)}
    back = on_original_grid(flipped.numpy(), to_current(meta), (5, 6), nearest=True)
    assert np.array_equal(back, before.numpy())


def test_affines_of_planes_and_unusable_ones():
    assert np.array_equal(to_current({}), np.eye(4))
    assert np.array_equal(to_current({"affine": np.eye(3), "original_affine": np.eye(3)}), np.eye(4))
    for bad in (np.zeros((4, 4)), np.full((4, 4), np.nan), np.eye(2)):
        with pytest.raises(ValueError, match="affine must be an invertible matrix"):
            to_current({"affine": bad, "original_affine": np.eye(4)})


def test_grids_apart_are_refused():
    far = np.eye(4)
    far[0, 3] = 50
    with pytest.raises(ValueError, match="does not overlap"):
        on_original_grid(np.ones((1, 4, 4, 4)), far, (4, 4, 4), nearest=True)
