# SPDX-License-Identifier: Apache-2.0
"""Boxes by themselves, and beside a label in which each ought to be the tight box of one object."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from connected_objects import objects

from monai_labelfx.data._check_boxes import box_faults, box_warnings, class_faults
from monai_labelfx.ops.components import component_boxes


def blocks(shape, *places, dtype=np.uint8):
    """A label map with blocks (box, value)."""
    label = np.zeros(shape, dtype)
    for box, value in places:
        label[tuple(slice(a, b) for a, b in zip(box[: len(shape)], box[len(shape) :], strict=True))] = value
    return label


@pytest.mark.parametrize(
    "box,message",
    [
        ([5, 1, 2, 4], "is empty or not inside the image of shape (8, 9)"),
        ([2, 2, 2, 4], "is empty or not inside"),
        ([0, 0, 8.5, 4], "is empty or not inside"),
        ([-1, 0, 8, 4], "is empty or not inside"),
        ([20, 20, 22, 22], "is empty or not inside"),
        ([0, math.nan, 8, 4], "is empty or not inside"),
        ([0, 0, math.inf, 4], "is empty or not inside"),
        ([0, 0, 0, 8, 4, 4], "must be 4 numbers (low corner, then high corner), found"),
        ([0, 0, True, 4], "must be 4 numbers"),
        ([0, 0, "8", 4], "must be 4 numbers"),
        (None, "must be 4 numbers"),
    ],
)
def test_unusable_boxes(box, message):
    faults = box_faults([[0, 0, 8, 9], box, [1.5, 0, 2.5, 9]], (8, 9))
    assert len(faults) == 1 and faults[0].startswith("box[1] ") and message in faults[0]


def test_boxes_and_classes_that_are_no_lists():
    assert box_faults({}, (8, 9)) == ["box must be a list of boxes, found {}"]
    assert box_faults([], (8, 9)) == [] and class_faults([], []) == []
    assert class_faults([], 3) == ["box_label must be a list with a class channel for each box, found 3"]
    assert class_faults("boxes", [0]) == ["box_label must be one for each of 0 boxes, found 1"]


@pytest.mark.parametrize("value", [-1, 0.5, math.nan, math.inf, "0", None, True, [0]])
def test_unusable_classes(value):
    faults = class_faults([[0], [0], [0]], [0, value, 2.0])
    assert faults == [f"box_label[1] must be a whole number of 0 or above, found {value!r}"]


@pytest.mark.parametrize("shape", [(20, 17), (10, 9, 8)])
def test_tight_boxes_have_no_warnings(shape):
    """Not even where the boxes of two objects overlap or one lies in the other."""
    checked = 0
    for seed, masks in enumerate(zip(objects(0, shape, 4), objects(1, shape, 4), strict=True)):
        label = np.where(masks[0], 1, 2 * masks[1]).astype([np.uint8, np.int16, ">i2", np.float32][seed % 4])
        boxes, values = (rows.tolist() for rows in component_boxes(torch.as_tensor(label.astype(np.int64))))
        assert box_warnings(boxes, [value - 1 for value in values], label) == []
        moved = np.array(boxes) + ([-0.9] * len(shape) + [1.0] * len(shape))
        near = moved.clip(0, [*shape, *shape]).tolist()
        assert box_warnings(near, [value - 1 for value in values], label) == []
        checked += len(boxes)
    assert checked > 12


def test_corners_that_reach_into_a_box_are_no_second_component():
    label = np.zeros((12, 12), np.uint8)
    label[1, 1:9] = label[1:9, 1] = 1  # a hook, and another in its open corner
    label[10, 4:11] = label[4:11, 10] = 1
    boxes = component_boxes(torch.as_tensor(label))[0].tolist()
    assert len(boxes) == 2 and box_warnings(boxes, [0, 0], label) == []
    assert box_warnings([[1, 1, 11, 11]], [0], label) == [
        "box[0] holds 2 components of the label value 1, but should be the tight box of one"
    ]


def test_each_misfit_is_named():
    label = blocks((20, 20), ([2, 2, 8, 8], 1), ([2, 11, 8, 19], 1), ([12, 3, 18, 9], 3), ([14, 5, 16, 7], 0))
    boxes = [[2, 2, 8, 8], [1, 1, 9, 20], [2, 2, 8, 5], [0, 2, 10.5, 8], [0, 4, 8, 8], [12, 12, 18, 18], [12, 3, 18, 9]]
    assert box_warnings(boxes, [0, 0, 0, 0, 0, 0, 2], label) == [
        "box[1] holds 2 components of the label value 1, but should be the tight box of one",
        "box[2] is up to 3 voxels tighter than the tight box [2, 2, 8, 8] of its component",
        "box[3] is up to 2.5 voxels looser than the tight box [2, 2, 8, 8] of its component",
        "box[4] is up to 2 voxels looser and tighter than the tight box [2, 2, 8, 8] of its component",
        "box[5] holds no voxel of the label value 1",
    ]
    inside = box_warnings([[14, 5, 16, 7]], [2], label)  # the hole of the ring
    assert inside == ["box[0] holds no voxel of the label value 3"]
    assert box_warnings(boxes[:1], [5], label) == ["box[0] holds no voxel of the label value 6"]


def test_without_classes_a_box_is_of_the_value_that_fills_it():
    label = blocks((20, 20), ([2, 2, 8, 8], 4), ([8, 2, 12, 8], 9), ([3, 3, 5, 5], 7))
    assert box_warnings([[2, 2, 8, 8], [8, 2, 12, 8], [3, 3, 5, 5]], None, label) == []
    assert box_warnings([[2, 2, 12, 8], [15, 15, 18, 18]], None, label) == [
        "box[0] is up to 4 voxels looser than the tight box [2, 2, 8, 8] of its component",
        "box[1] holds no voxel of the label value 1",
    ]
    assert box_warnings([[0, 0, 2, 2]], None, np.zeros((4, 4), bool)) == ["box[0] holds no voxel of the label value 1"]
