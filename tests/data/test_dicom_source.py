# SPDX-License-Identifier: Apache-2.0
"""Back to the DICOM files of an array and to their voxel grid: exact where nothing has to be interpolated."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from dicom_samples import ORIENTATIONS, affine_of, enhanced, phantom, save, series_slices
from monai.data import MetaTensor
from monai.transforms import (
    CenterSpatialCrop,
    Compose,
    Flip,
    Orientation,
    Rotate90,
    Spacing,
    SpatialPad,
)

from monai_labelfx.data._dicom_source import headers, source_array, source_of


def loaded(folder, array=None, *, orientation="axial", grid="source") -> MetaTensor:
    """The image (1, x, y[, z]) as DicomSeriesReader and EnsureChannelFirst leave it, with its files."""
    array = phantom() if array is None else array
    slices = series_slices(np.atleast_3d(array), orientation=orientation)
    save(folder, slices, shuffled=False)
    files = [str(folder / f"{index:04d}.dcm") for index in range(len(slices))]
    affine = affine_of(orientation)
    meta = {
        "original_affine": affine.copy(),
        "spatial_shape": np.array(array.shape),
        "original_channel_dim": float("nan"),
        "dicom_modality": "CT",
        "dicom_values": "rescaled",
        "dicom_source": json.dumps({"files": files, "frames": None, "grid": grid}),
    }
    return MetaTensor(torch.as_tensor(array)[None], affine=torch.as_tensor(affine), meta=meta)


MOVES = {
    "flip": Flip(0),
    "flip all": Flip((0, 1, 2)),
    "orientation": Orientation("RAS", labels=None),
    "other orientation": Orientation("PIL", labels=None),
    "rotation by 90": Rotate90(1, (0, 2)),
    "pad": SpatialPad((20, 20, 20)),
    "several": Compose([Orientation("ASR", labels=None), SpatialPad((9, 30, 30)), Flip(1)]),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("nearest", [True, False])
def test_moves_by_whole_voxels_are_undone_exactly(tmp_path, orientation, move, nearest):
    image = loaded(tmp_path, orientation=orientation)
    moved = MOVES[move](image)
    assert moved.shape != image.shape or not torch.equal(moved.as_tensor(), image.as_tensor())
    back = source_array(moved, moved.meta, resample=True, nearest=nearest)
    assert back.dtype == np.float32 and np.array_equal(back, image.numpy())
    with pytest.raises(ValueError, match="moved.*resample=True"):
        source_array(moved, moved.meta, resample=False, nearest=nearest)


def test_an_unmoved_array_is_returned_as_it_is(tmp_path):
    image = loaded(tmp_path)
    for resample in (True, False):
        assert np.array_equal(source_array(image, image.meta, resample=resample, nearest=False), image.numpy())
    assert np.array_equal(source_array(image.numpy(), image.meta, resample=False, nearest=True), image.numpy())
    labels = (image > 0).to(torch.uint8)
    assert source_array(labels, image.meta, resample=True, nearest=True).dtype == np.uint8


def test_one_slice_with_and_without_its_third_axis(tmp_path):
    image = loaded(tmp_path, phantom((16, 12)), orientation="sagittal")
    flipped = Flip(0)(image)
    assert np.array_equal(source_array(flipped, flipped.meta, resample=True, nearest=False), image.numpy())
    assert np.array_equal(source_array(image[..., None], image.meta, resample=False, nearest=False), image.numpy())


def test_crops_leave_a_marked_outside(tmp_path):
    image = loaded(tmp_path)
    crop = CenterSpatialCrop((6, 6, 4))(Flip(1)(image))
    values = source_array(crop, crop.meta, resample=True, nearest=False)
    inside = np.isfinite(values)
    assert inside.sum() == 6 * 6 * 4 and np.array_equal(values[inside], image.numpy()[inside])
    labels = crop.to(torch.int16)
    back = source_array(labels, crop.meta, resample=True, nearest=True)
    assert back.dtype == np.int16 and np.array_equal(back, np.where(inside, image.numpy(), 0))
    integers = source_array(labels, crop.meta, resample=True, nearest=False)
    assert integers.dtype == np.float64 and np.array_equal(np.isfinite(integers), inside)


def test_several_channels_stay_apart(tmp_path):
    image = loaded(tmp_path)
    both = torch.cat([image, -image])
    for moved, exact in ((Flip(2)(both), True), (Spacing((0.7, 0.9, 5.0))(both), False)):
        back = source_array(moved, moved.meta, resample=True, nearest=False)
        assert np.array_equal(back[1], -back[0])
        assert np.array_equal(back[0], image.numpy()[0]) == exact


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_interpolation_keeps_world_positions(tmp_path, orientation):
    """A linear function of the position survives linear interpolation wherever it lies between two voxels."""
    image = loaded(tmp_path, orientation=orientation)
    fine = affine_of(orientation) @ np.array([[0.5, 0.1, 0, 0.3], [-0.1, 0.5, 0, 1.2], [0, 0, 0.4, 0.1], [0, 0, 0, 1]])
    index = np.stack(np.meshgrid(*(np.arange(n) for n in (30, 30, 22)), [1], indexing="ij"))[..., 0].reshape(4, -1)
    slope = np.array([0.3, -0.2, 0.5, 7.0])
    moved = (slope @ fine @ index).reshape(1, 30, 30, 22)
    back = source_array(moved, {**image.meta, "affine": fine}, resample=True, nearest=False)[0]
    own = np.stack(np.meshgrid(*(np.arange(n) for n in back.shape), [1], indexing="ij"))[..., 0].reshape(4, -1)
    truth = (slope @ affine_of(orientation) @ own).reshape(back.shape)
    current = np.linalg.inv(fine) @ affine_of(orientation) @ own
    between = ((current[:3] >= 0) & (current[:3] <= np.array([[29], [29], [21]]))).all(0).reshape(back.shape)
    assert between.sum() > 100 and np.allclose(back[between], truth[between], rtol=0, atol=1e-9)
    assert np.isnan(back).any(), "part of the source lies outside"


def test_nearest_makes_no_new_labels(tmp_path):
    image = loaded(tmp_path)
    labels = image.clone()
    labels[:] = torch.as_tensor(np.random.default_rng(0).choice([0, 3, 9], image.shape))
    fine = Spacing((0.5, 0.5, 1.1), mode="nearest")(labels).to(torch.uint8)
    back = source_array(fine, fine.meta, resample=True, nearest=True)
    assert back.dtype == np.uint8 and set(np.unique(back)) == {0, 3, 9}
    assert np.mean(back == labels.numpy()) > 0.9
    one = source_array(fine == 3, fine.meta, resample=True, nearest=True)
    assert np.array_equal(one.astype(bool), back == 3)


def test_refusals(tmp_path):
    image = loaded(tmp_path)
    cut = image.as_tensor()[:, :10]
    with pytest.raises(ValueError, match=r"spatial shape \(10, 12, 8\).*source has \(16, 12, 8\)"):
        source_array(cut, image.meta, resample=True, nearest=True)
    with pytest.raises(ValueError, match=r"has shape \(16, 12, 8\), expected \(C, x, y, z\)"):
        source_array(image[0], image.meta, resample=True, nearest=True)
    for rotated in (np.eye(4), np.array([[0.9, 0.1, 0, 0], [-0.1, 0.9, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])):
        away = affine_of("axial") @ rotated
        away[:3, 3] += 1000
        with pytest.raises(ValueError, match="does not overlap"):
            source_array(image, {**image.meta, "affine": away}, resample=True, nearest=True)
    for affine in (np.zeros((4, 4)), np.eye(2), np.full((4, 4), np.nan)):
        with pytest.raises(ValueError, match="affine must be an invertible matrix"):
            source_array(image, {**image.meta, "affine": affine}, resample=True, nearest=True)
    regridded = loaded(tmp_path / "again", grid="resampled")
    with pytest.raises(ValueError, match="resampled to a regular grid.*NIfTI"):
        source_array(regridded, regridded.meta, resample=True, nearest=True)


def test_source_and_headers_in_slice_order(tmp_path):
    image = loaded(tmp_path)
    source = source_of(image.meta)
    assert source.slices == 8 and source.frames is None and source.grid == "source"
    assert source.meta["dicom_modality"] == "CT" and "affine" not in source.meta
    found = headers(source)
    assert [header.InstanceNumber for header in found] == list(range(1, 9))
    assert all("PixelData" not in header for header in found)


def test_collated_strings_are_accepted(tmp_path):
    image = loaded(tmp_path)
    collated = {"dicom_source": [image.meta["dicom_source"]], "dicom_values": ("rescaled",)}
    assert source_of(collated).meta["dicom_values"] == "rescaled" and source_of(collated).slices == 8


def test_a_multi_frame_file_has_one_header(tmp_path):
    save(tmp_path, [enhanced(phantom())])
    facts = {"files": [str(tmp_path / "0000.dcm")], "frames": list(range(8)), "grid": "source"}
    meta = {"dicom_source": json.dumps(facts)}
    assert len(headers(source_of(meta))) == 1 and source_of(meta).slices == 8
    array = phantom()[None]
    assert np.array_equal(source_array(array, meta, resample=True, nearest=False), array)


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        "{}",
        '{"files": [], "frames": null, "grid": "source"}',
        '{"files": [1], "frames": null, "grid": "source"}',
        '{"files": ["a"], "frames": null, "grid": "other"}',
        '{"files": ["a", "b"], "frames": [0, 1], "grid": "source"}',
        '{"files": ["a"], "frames": ["0"], "grid": "source"}',
        '{"files": ["a"], "frames": [], "grid": "source"}',
    ],
)
def test_unusable_meta(text):
    with pytest.raises(ValueError, match="not what DicomSeriesReader writes"):
        source_of({"dicom_source": text})


def test_images_without_a_source_and_files_that_are_gone(tmp_path):
    for meta in (None, {}, {"affine": np.eye(4)}, {"dicom_source": None}):
        with pytest.raises(ValueError, match="does not know its DICOM files.*DicomSeriesReader"):
            source_of(meta)
    image = loaded(tmp_path)
    (tmp_path / "0003.dcm").unlink()
    (tmp_path / "0005.dcm").unlink()
    with pytest.raises(ValueError, match=r"2 of the 8 DICOM files.*0003\.dcm"):
        source_of(image.meta)
    (tmp_path / "0003.dcm").write_bytes(b"no DICOM")
    (tmp_path / "0005.dcm").write_bytes(b"no DICOM")
    with pytest.raises(ValueError, match=r"0003\.dcm.*cannot be read as DICOM"):
        headers(source_of(image.meta))
