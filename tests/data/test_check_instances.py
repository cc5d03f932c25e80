# SPDX-License-Identifier: Apache-2.0
"""Labels whose numbers are objects, by themselves and as items of a datalist."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from monai_labelfx.data import check_datalist
from monai_labelfx.data._check_instances import instance_boxes, instance_faults, instance_misfits, is_full
from monai_labelfx.data._check_item import check_item
from monai_labelfx.data.detection_samples import solids_and_shells


def check(item):
    return check_item(item, spatial_dims=None, allowed_labels=None)


def test_boxes_in_rising_order_channel_after_channel():
    label = np.zeros((2, 6, 5), np.uint16)
    label[0, 1:3, 4], label[0, 5, 0], label[1, 2, 1:4] = 900, 3, 1
    label[0, 5, 4] = 3
    tight, numbers = instance_boxes(label.astype(label.dtype.newbyteorder()))
    assert numbers == [3, 900, 1] and tight.tolist() == [[5, 0, 6, 5], [1, 4, 3, 5], [2, 1, 3, 4]]
    assert instance_boxes(label[:1, :, :1] * 0)[0].shape == (0, 4)
    assert instance_misfits(tight, [[4, 1, 7, 5], [1, 4, 3, 5], [2.5, 1, 3, 4]]) == []
    assert instance_misfits(tight, [[5, 0, 6, 5], [1, 2, 3, 5], [2, 1, 3, 4]]) == [
        "box[1] is up to 2 voxels off the tight box [1, 4, 3, 5] of object 1"
    ]


@pytest.mark.parametrize("dtype,most", [(np.uint8, 255), (np.int8, 127), (bool, 1)])
def test_more_objects_than_the_type_can_number(dtype, most):
    label = np.arange(most + 1).astype(dtype)[None]
    tight, _ = instance_boxes(label)
    assert len(tight) == most and instance_faults(label, tight, most) == [] and not is_full(label, tight, most)
    assert instance_faults(label, tight, 300) == [
        f"label has {most} objects, but box_label has 300, more than its type {np.dtype(dtype).name} can number"
    ]
    assert is_full(label, tight, 300) and not is_full(label[:, :-1], tight[:-1], 300)
    both = np.concatenate([label, label])
    assert instance_faults(both, instance_boxes(both)[0], most) == [
        f"label has {2 * most} objects in 2 channels, but box_label has {most}"
    ]
    assert instance_faults(np.zeros((1, 3), np.float32), tight[:0], 1) == ["label has 0 objects, but box_label has 1"]


def test_a_label_without_boxes(tmp_path):
    label = np.zeros((9, 8, 7), np.int16)
    label[1:3, 1:3, 1:3], label[4:6, 4:6, 4:6] = 7, 4
    for name in ("image", "label"):
        nib.save(nib.Nifti1Image(label, np.eye(4)), tmp_path / f"{name}.nii")
    item = {name: str(tmp_path / f"{name}.nii") for name in ("image", "label")}
    found = check(item | {"box_label": [0, 3]})
    assert found.faults == found.warnings == [] and found.labels == 2
    assert check(item | {"box_label": [0]}).faults == ["label has 2 objects, but box_label has 1"]
    assert check(item | {"box_label": []}).faults == ["label has 2 objects, but box_label has 0"]
    assert check(item | {"box_label": [0, -1]}).faults == [
        "box_label[1] must be a whole number of 0 or above, found -1"
    ]


@pytest.fixture
def channels(tmp_path):
    """Three objects in two pictures of 8 x 6."""
    label = np.zeros((2, 8, 6), np.uint8)
    label[0, 1:4, 1:3], label[0, 6:8, 0:5], label[1, 2:7, 2:4] = 1, 2, 1
    paths = [str(tmp_path / f"{name}.png") for name in ("image", "a", "b")]
    for path, array in zip(paths, (label[0], *label), strict=True):
        Image.fromarray(np.ascontiguousarray(array.T)).save(path)
    boxes = [[1, 1, 4, 3], [6, 0, 8, 5], [2, 2, 7, 4]]
    return {"image": paths[0], "label": paths[1:], "box": boxes, "box_label": [0, 1, 0]}


def test_channels_of_objects_that_overlap(channels, tmp_path):
    found = check(channels)
    assert found.faults == found.warnings == [] and found.labels == 3 and found.shape == [8, 6]
    moved = channels | {"box": [*channels["box"][:2], [2, 2, 7, 6]]}
    assert check(moved).faults == ["box[2] is up to 2 voxels off the tight box [2, 2, 7, 4] of object 2"]
    fewer = {"box": channels["box"][:2], "box_label": [0, 1]}
    assert check(channels | fewer).faults == ["label has 3 objects in 2 channels, but box_label has 2"]
    del moved["box"]
    assert check(moved).faults == []
    del moved["box_label"]
    assert check(moved).faults == ["label has 2 channels, expected one"]
    Image.new("L", (8, 5)).save(tmp_path / "b.png")
    assert "channels of one image must agree" in check(channels).faults[0]
    Image.new("L", (8, 5)).save(tmp_path / "a.png")
    assert check(channels).faults == ["label has shape (8, 5), but the image has (8, 6)"]


def test_numbers_are_what_fits_the_boxes_better(tmp_path):
    """Objects 1 and 2 of the classes 0 and 0: as classes, the second box would hold nothing."""
    label = np.zeros((9, 9), np.uint8)
    label[1:4, 1:4], label[5:8, 5:9] = 1, 2
    path = str(tmp_path / "a.png")
    Image.fromarray(label.T.copy()).save(path)
    item = {"image": path, "label": path, "box": [[1, 1, 4, 4], [5, 5, 8, 9]], "box_label": [0, 0]}
    assert check(item).warnings == check(item).faults == []
    assert check(item | {"box_label": [1, 0]}).warnings == []
    assert check(item | {"box_label": [1, 0], "box": item["box"][::-1]}).warnings == []  # classes 2 and 1
    assert check(item | {"box": [[1, 1, 4, 4], [5, 2, 8, 9]]}).warnings == [
        "box[1] is up to 3 voxels off the tight box [5, 5, 8, 9] of object 1"
    ]
    parts = [[1, 1, 4, 4], [4, 0, 9, 9]]  # of classes 0 and 1, the second around two components
    label[4:9, 0] = 2
    Image.fromarray(label.T.copy()).save(path)
    for order in ([0, 1], [1, 0]):
        boxes = [parts[index] for index in order]
        assert check(item | {"box": boxes, "box_label": order}).warnings == [
            f"box[{order[1]}] holds 2 components of the label value 2, but should be the tight box of one"
        ]
    full = np.arange(1, 257).astype(np.uint8).reshape(16, 16)  # object 256 became 0
    Image.fromarray(full.T.copy()).save(path)
    boxes = [[n // 16, n % 16, n // 16 + 1, n % 16 + 1] for n in range(256)]
    found = check({"image": path, "label": path, "box": boxes, "box_label": [0] * 256})
    assert found.faults == ["label has 255 objects, but box_label has 256, more than its type uint8 can number"]


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_synthetic_data_set(tmp_path, spatial_dims):
    report = check_datalist(solids_and_shells(tmp_path, spatial_dims=spatial_dims, counts=(4, 0, 0), empty=0))
    assert report["faults"] == report["warnings"] == []
