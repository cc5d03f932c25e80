# SPDX-License-Identifier: Apache-2.0
"""check_item: each fault of one item, found and named; a good item has none."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

from monai_labelfx.data import AutoReader
from monai_labelfx.data._check_item import check_item, paths_of


def nifti(path, array, affine=None):
    nib.save(nib.Nifti1Image(np.asarray(array), np.diag([1.0, 2, 3, 1]) if affine is None else affine), path)
    return str(path)


def png(path, array):
    Image.fromarray(np.asarray(array)).save(path)
    return str(path)


def check(item, spatial_dims=None, allowed_labels=None):
    return check_item(item, spatial_dims=spatial_dims, allowed_labels=allowed_labels)


@pytest.fixture
def good(tmp_path):
    array = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    return {
        "image": nifti(tmp_path / "image.nii.gz", array),
        "label": nifti(tmp_path / "label.nii.gz", (array > 60).astype(np.uint8) + (array > 100)),
    }


def test_a_good_item(good):
    found = check(good | {"clean": good["image"], "box": [[2, 0, 0, 4, 5, 6]]}, spatial_dims=3)
    assert found.faults == [] and found.warnings == []
    assert (found.shape, found.spacing, found.dtype, found.labels) == ([4, 5, 6], [1, 2, 3], "float32", 2)


def test_wrong_dimension(good):
    assert check(good, spatial_dims=2).faults == ["image has 3 spatial axes (4, 5, 6), expected 2"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite(tmp_path, bad):
    array = np.zeros((4, 5), np.float32)
    array[1, 1] = array[2, 2] = bad
    assert check({"image": nifti(tmp_path / "a.nii", array)}).faults == [
        "image holds 2 values that are NaN or infinite"
    ]
    label = nifti(tmp_path / "b.nii", array)
    assert any("label holds 2 values" in fault for fault in check({"image": label, "label": label}).faults)


@pytest.mark.parametrize("key", ["label", "clean"])
def test_other_shape_and_other_place(good, tmp_path, key):
    item = {"image": good["image"]}
    shape = nifti(tmp_path / "shape.nii", np.ones((4, 5, 7), np.uint8))
    assert check(item | {key: shape}).faults == [f"{key} has shape (4, 5, 7), but the image has (4, 5, 6)"]
    moved = np.diag([1.0, 2, 3, 1])
    moved[0, 3] = 0.5
    place = nifti(tmp_path / "place.nii", np.ones((4, 5, 6), np.uint8), moved)
    assert [fault[: len(key) + 15] for fault in check(item | {key: place}).faults] == [f"{key} lies elsewhere"]
    moved[0, 3] = 1e-4
    same = nifti(tmp_path / "same.nii", np.ones((4, 5, 6), np.uint8), moved)
    assert check(item | {key: same}).faults == []


def test_places_of_microscopy_are_compared_in_voxels(tmp_path):
    array = np.ones((3, 4, 5), np.uint8)
    for name, spacing in (("image", 0.2), ("label", 0.3)):
        metadata = {"axes": "ZYX", "spacing": spacing, "unit": "um"}
        tifffile.imwrite(tmp_path / f"{name}.tif", array, imagej=True, resolution=(5, 5), metadata=metadata)
    item = {name: str(tmp_path / f"{name}.tif") for name in ("image", "label")}
    assert "lies elsewhere" in check(item).faults[0]


def test_label_values(tmp_path):
    image = nifti(tmp_path / "i.nii", np.zeros((4, 5), np.uint8))

    def label(values):
        array = np.zeros((4, 5), np.asarray(values).dtype)
        array[0, : len(values)] = values
        return check({"image": image, "label": nifti(tmp_path / "l.nii", array)}, allowed_labels=(1, 2))

    assert label(np.array([1, 2], np.uint8)).faults == []
    assert label(np.array([1.0, 2.0], np.float32)).faults == []
    assert label(np.array([1, 7, 9], np.uint8)).faults == [
        "label holds the unknown values [7, 9], expected 0 and [1, 2]"
    ]
    assert label(np.array([-3, 1], np.int16)).faults[0] == "label holds negative values, the lowest is -3"
    assert label(np.array([0.5], np.float32)).faults == ["label holds values that are no integers, such as 0.5"]
    empty = label(np.array([0], np.uint8))
    assert empty.faults == [] and empty.warnings == ["label is empty: background only"] and empty.labels == 0


def test_colour_label_and_channels(tmp_path):
    image = png(tmp_path / "i.png", np.zeros((4, 5, 4), np.uint8))
    label = png(tmp_path / "l.png", np.zeros((4, 5, 3), np.uint8))
    found = check({"image": image, "label": label}, spatial_dims=2)
    assert found.shape == [5, 4] and found.faults == ["label has 3 channels, expected one"]


def test_boxes(tmp_path):
    image = png(tmp_path / "i.png", np.zeros((4, 5), np.uint8))  # x 5, y 4
    boxes = [
        [0, 0, 5, 4],
        [0, 0, 4, 5],
        [2, 2, 2, 3],
        [-1, 0, 2, 2],
        [0, 0, 1],
        ["a", 0, 1, 1],
        [0, 0, float("nan"), 1],
    ]
    faults = check({"image": image, "box": boxes}).faults
    assert [int(fault[4]) for fault in faults] == [1, 2, 3, 4, 5, 6]
    assert faults[0] == "box[1] = [0, 0, 4, 5] is empty or not inside the image of shape (5, 4)"
    assert "must be 4 numbers" in faults[3]
    assert check({"image": image, "box": 3}).faults == ["box must be a list of boxes, found 3"]


def test_box_labels(good):
    """One class channel for each box; beside an unusable label boxes are still checked by themselves."""
    item = {"image": good["image"], "box": [[0, 0, 0, 4, 5, 6], [1, 1, 1, 2, 2, 2]]}
    assert check(item | {"box_label": [0, 3]}).faults == []
    assert check(item | {"box_label": [0]}).faults == ["box_label must be one for each of 2 boxes, found 1"]
    assert check(item | {"box_label": [0, -1]}).faults == [
        "box_label[1] must be a whole number of 0 or above, found -1"
    ]
    both = check({"image": good["image"], "box": [[0, 0, 0, 9, 9, 9]], "box_label": 0}).faults
    assert [fault.split()[0] for fault in both] == ["box[0]", "box_label"]
    assert check({"image": good["image"], "box_label": [0]}).faults == [
        "box_label needs boxes, under the key box, or a label in which each object has its number"
    ]
    assert check({"image": "absent.png", "box": [], "box_label": [0]}).faults[1:] == [
        "box_label must be one for each of 0 boxes, found 1"
    ]


def test_boxes_beside_a_label(tmp_path):
    label = np.zeros((12, 10, 6), np.uint8)
    label[1:4, 1:4, 1:4] = label[6:11, 2:9, 2:5] = 1
    label[8, 4:6, 3] = 2
    files = {"image": nifti(tmp_path / "i.nii", label), "label": nifti(tmp_path / "l.nii", label)}
    tight = [[1, 1, 1, 4, 4, 4], [6, 2, 2, 11, 9, 5], [8, 4, 3, 9, 6, 4]]
    found = check(files | {"box": tight, "box_label": [0, 0, 1]})
    assert found.faults == [] and found.warnings == []
    found = check(
        files
        | {"box": [[6, 2, 2, 8, 9, 5], tight[0], [0, 0, 0, 12, 10, 6], [1, 1, 1, 4, 6, 4]], "box_label": [0, 1, 0, 0]}
    )
    assert found.faults == []
    assert found.warnings == [
        "box[0] is up to 3 voxels tighter than the tight box [6, 2, 2, 11, 9, 5] of its component",
        "box[1] holds no voxel of the label value 2",
        "box[2] holds 2 components of the label value 1, but should be the tight box of one",
        "box[3] is up to 2 voxels looser than the tight box [1, 1, 1, 4, 4, 4] of its component",
    ]
    broken = nifti(tmp_path / "b.nii", label.astype(np.float32) / 2)
    odd = check(files | {"label": broken, "box": [[0, 0, 0, 12, 10, 6]]})
    assert len(odd.faults) == 1 and odd.warnings == []
    outside = check(files | {"box": [[0, 0, 0, 99, 10, 6], [0, 0, 0, 9, 9, 6]], "box_label": [0, 7]})
    assert len(outside.faults) == 1 and outside.warnings == []
    other = nifti(tmp_path / "o.nii", label[1:])
    assert check(files | {"label": other, "box": [[0, 0, 0, 12, 10, 6]]}).warnings == []


def test_absent_and_unusable_files(tmp_path):
    found = check({"image": str(tmp_path / "absent.png"), "label": str(tmp_path / "gone.png"), "box": [[0, 0, 1, 1]]})
    assert len(found.faults) == 2 and "absent.png' does not exist" in found.faults[0] and found.shape is None
    np.save(tmp_path / "complex.npy", np.zeros((3, 3), complex))
    assert "type complex128" in check({"image": str(tmp_path / "complex.npy")}).faults[0]
    np.save(tmp_path / "empty.npy", np.zeros((0, 3)))
    assert "no voxels" in check({"image": str(tmp_path / "empty.npy")}).faults[0]


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_unusable_affine(monkeypatch, value):
    # MONAI's NIfTI reader mends some of these itself, other readers do not
    affine = np.diag([value, 1.0, 1.0, 1.0])
    monkeypatch.setattr(AutoReader, "get_data", lambda self, names: (np.ones((3, 3, 3)), {"affine": affine}))
    faults = check({"image": "any"}).faults
    assert len(faults) == 1 and faults[0].startswith("image has an unusable affine")


def test_a_nifti_with_a_flat_affine(tmp_path):
    image = nib.Nifti1Image(np.ones((3, 3, 3), np.uint8), np.eye(4))
    image.header["srow_x"] = 0
    image.header["sform_code"], image.header["qform_code"] = 1, 0
    (tmp_path / "a.nii").write_bytes(image.header.binaryblock + bytes(4) + bytes(27))
    faults = check({"image": str(tmp_path / "a.nii")}).faults
    assert len(faults) == 1 and "affine" in faults[0]


def test_paths_of(tmp_path):
    item = {"image": ["a", "b"], "label": str(tmp_path / "c"), "other": "d"}
    assert [key for key, _ in paths_of(item, ("image", "label"))] == ["image", "image", "label"]


def test_a_seg_of_some_slices_fits_and_one_from_elsewhere_does_not(tmp_path):
    """What PlaceOnGridd brings onto the image's grid is no fault."""
    affine = np.diag([-1.0, -1, 2, 1])
    image = nifti(tmp_path / "image.nii", np.zeros((4, 5, 6), np.float32), affine)
    crop = affine.copy()
    crop[2, 3] = 4.0  # starts at the third slice
    label = np.ones((4, 5, 2), np.uint16)
    assert check({"image": image, "label": nifti(tmp_path / "crop.nii", label, crop)}).faults == []
    assert check({"image": image, "label": nifti(tmp_path / "crop.nii", label, crop)}).labels == 1
    flipped = affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 5], [0, 0, 0, 1.0]])
    turned = nifti(tmp_path / "turned.nii", np.ones((4, 5, 6), np.uint8), flipped)
    assert check({"image": image, "label": turned}).faults == []
    crop[2, 3] = 11.0  # beyond the last slice, and between two
    outside = check({"image": image, "label": nifti(tmp_path / "outside.nii", label, crop)}).faults
    assert outside == ["label has shape (4, 5, 2), but the image has (4, 5, 6)"]
