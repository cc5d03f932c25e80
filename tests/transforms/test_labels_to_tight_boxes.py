# SPDX-License-Identifier: Apache-2.0
"""Tight boxes as a transform: containers, kinds of labels, padding, margins, and what has no box."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.apps.detection.transforms.box_ops import convert_box_to_mask, convert_mask_to_box
from monai.data import DataLoader, Dataset, MetaTensor
from testers import AFFINE, check_transform

from monai_labelfx.ops.components import component_boxes, small_components
from monai_labelfx.transforms.labels_to_tight_boxes import LabelsToTightBoxes, LabelsToTightBoxesd


def blocks(spatial_dims: int, channels: int = 1, dtype=np.int32) -> np.ndarray:
    """Random blocks of the labels 0 to 2, (channels, 16, 17[, 18])."""
    shape = tuple(16 + axis for axis in range(spatial_dims))
    coarse = np.random.default_rng(4).integers(0, 3, [channels, *(n // 4 + 1 for n in shape)])
    fine = np.kron(coarse, np.ones([1] + [4] * spatial_dims, int))
    return fine[(slice(None), *(slice(n) for n in shape))].astype(dtype)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(
    ("keywords", "channels"),
    [
        ({}, 1),
        ({"max_boxes": 100, "first_class": 1}, 1),
        ({"connectivity": 1, "margin": 2, "min_size": 40}, 1),
        ({"kind": "masks"}, 3),
        ({"kind": "instances", "min_size": 2}, 2),
    ],
    ids=["default", "padded", "margin", "masks", "instances"],
)
def test_contract(spatial_dims, keywords, channels):
    check_transform(LabelsToTightBoxes, LabelsToTightBoxesd, keywords, blocks(spatial_dims, channels))


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, np.float32])
def test_boxes_and_class_channels(spatial_dims, dtype):
    label = blocks(spatial_dims, dtype=dtype)
    boxes, classes = component_boxes(torch.as_tensor(label[0].astype(np.int64)))
    out = LabelsToTightBoxes()(label)
    assert out.keys() == {"_boxes", "_box_labels"}
    assert out["_boxes"].dtype == torch.float32 and out["_box_labels"].dtype == torch.int64
    assert torch.equal(out["_boxes"], boxes.float()) and torch.equal(out["_box_labels"], classes - 1)
    assert torch.equal(LabelsToTightBoxes(first_class=1)(label)["_box_labels"], classes)
    assert set(out["_box_labels"].tolist()) == {0, 1}


@pytest.mark.parametrize("max_boxes", [None, 30])
def test_boxes_are_in_voxels_whatever_the_affine_and_carry_it(max_boxes):
    label = MetaTensor(torch.as_tensor(blocks(3)), affine=AFFINE, meta={"filename_or_obj": "patient.nii.gz"})
    out = LabelsToTightBoxes(min_size=2, max_boxes=max_boxes)(label)
    plain = LabelsToTightBoxes(max_boxes=max_boxes)(label.as_tensor())
    assert type(plain["_boxes"]) is torch.Tensor and type(out["_box_labels"]) is torch.Tensor
    assert torch.equal(out["_boxes"].as_tensor(), plain["_boxes"])
    assert isinstance(out["_boxes"], MetaTensor) and torch.equal(out["_boxes"].affine, label.affine)
    assert out["_boxes"].affine is not label.affine and "filename_or_obj" not in out["_boxes"].meta
    assert isinstance(out["_box_ignore"], MetaTensor) and torch.equal(out["_box_ignore"].affine, label.affine)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_one_object_per_channel_is_the_box_of_monai(spatial_dims):
    """MONAI has one box for a whole channel: the same where the channel holds one component."""
    mask = np.zeros((2, *(12 + axis for axis in range(spatial_dims))), np.uint8)
    mask[(0, *[slice(2, 7)] * (spatial_dims - 1), 3)] = 1
    mask[(1, *[slice(5, 12)] * (spatial_dims - 1), slice(0, 9))] = 1
    theirs, _ = convert_mask_to_box(mask.astype(np.int16), bg_label=0)
    out = LabelsToTightBoxes("masks")(mask)
    np.testing.assert_array_equal(out["_boxes"], theirs)
    np.testing.assert_array_equal(out["_box_labels"], [0, 1])


def test_masks_may_overlap_and_instances_may_fall_apart():
    masks = torch.zeros(2, 6, 6)
    masks[0, 1:5, 1:5] = masks[1, 2:6, 2:4] = 1
    masks[0, 1:3, 1] = 7  # in masks, every number above 0 is the same
    out = LabelsToTightBoxes("masks")(masks)
    assert out["_boxes"].tolist() == [[1, 1, 5, 5], [2, 2, 6, 4]] and out["_box_labels"].tolist() == [0, 1]
    parts = torch.zeros(2, 6, 6)
    parts[0, 0, 0] = parts[0, 5, 5] = 3
    parts[1, 1, 1], parts[1, 1, 2] = 1, 2
    out = LabelsToTightBoxes("instances", first_class=1)(parts)
    assert out["_boxes"].tolist() == [[0, 0, 6, 6], [1, 1, 2, 2], [1, 2, 2, 3]]
    assert out["_box_labels"].tolist() == [1, 2, 2]


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_padding_lets_the_default_collate_make_a_batch(spatial_dims):
    full = torch.as_tensor(blocks(spatial_dims))
    one = torch.zeros_like(full)
    one[(0, *[4] * spatial_dims)] = 1
    count = len(LabelsToTightBoxes()(full)["_boxes"])
    twin = LabelsToTightBoxesd("label", max_boxes=count)
    items = [{"label": label} for label in (full, one, torch.zeros_like(full))]
    batch = next(iter(DataLoader(Dataset(items, twin), batch_size=3)))
    assert batch["label_boxes"].shape == (3, count, 2 * spatial_dims)
    assert (batch["label_box_labels"] >= 0).sum(dim=1).tolist() == [count, 1, 0]
    assert torch.equal(batch["label_boxes"][0], LabelsToTightBoxes()(full)["_boxes"])
    assert batch["label_boxes"][1, 0].tolist() == [4] * spatial_dims + [5] * spatial_dims
    assert batch["label_box_labels"][1:].tolist() == [[0] + [-1] * (count - 1), [-1] * count]
    assert not batch["label_boxes"][1, 1:].any() and not batch["label_boxes"][2].any()
    with pytest.raises(ValueError, match=f"{count} components, more than max_boxes={count - 1}"):
        LabelsToTightBoxes(max_boxes=count - 1)(full)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_an_empty_label_has_no_boxes(spatial_dims):
    out = LabelsToTightBoxes(margin=1)(np.zeros((1,) + (5,) * spatial_dims))
    assert out["_boxes"].shape == (0, 2 * spatial_dims) and out["_boxes"].dtype == torch.float32
    assert out["_box_labels"].shape == (0,) and out["_box_labels"].dtype == torch.int64


def test_margins_end_at_the_image():
    label = torch.zeros(1, 10, 20)
    label[0, 1:3, 10:12] = 1
    assert LabelsToTightBoxes(margin=3)(label)["_boxes"].tolist() == [[0, 7, 6, 15]]
    assert LabelsToTightBoxes(margin=(0, 9))(label)["_boxes"].tolist() == [[1, 1, 3, 20]]


def test_dropped_components_are_to_be_ignored():
    label = torch.as_tensor(blocks(2))
    label[0, 15, 16] = 0
    label[0, :3] = 0
    label[0, 1, 1:3] = 2
    out = LabelsToTightBoxes(min_size=3)(label)
    assert [1, 1, 2, 3] in LabelsToTightBoxes()(label)["_boxes"].tolist()
    assert [1, 1, 2, 3] not in out["_boxes"].tolist()
    assert torch.equal(out["_box_ignore"][0].as_tensor(), small_components(label[0], 3))
    assert out["_box_ignore"].dtype == torch.bool and out["_box_ignore"][0, 1, 1:3].all()
    two = torch.cat([label, torch.zeros_like(label)])
    two[1, 0, 0] = 1
    ignore = LabelsToTightBoxes("instances", min_size=2)(two)["_box_ignore"]
    assert ignore.shape == (1, 16, 17) and ignore[0].nonzero().tolist() == [[0, 0]]


def test_a_filled_box_is_the_mask_that_monai_paints():
    label = torch.zeros(1, 9, 11)
    label[0, 2:6, 3:8] = 1
    out = LabelsToTightBoxes()(label)
    assert torch.equal(convert_box_to_mask(out["_boxes"], out["_box_labels"], (9, 11)) == 0, label > 0)


@pytest.mark.parametrize(
    ("keywords", "array", "words"),
    [
        ({"kind": "boxes"}, np.ones((1, 4, 4)), "kind must be one of 'classes', 'masks', 'instances', got 'boxes'"),
        ({}, np.ones((2, 4, 4)), r"kind 'classes' must have shape \(1, \*spatial\), got \(2, 4, 4\)"),
        ({"kind": "masks"}, np.ones((0, 4, 4)), r"must have shape \(C, \*spatial\), got \(0, 4, 4\)"),
        ({}, np.ones(1), r"got \(1,\)"),
        ({}, np.full((1, 4, 4), -1), "positive labels, got -1"),
        ({"kind": "masks"}, np.full((1, 4, 4), np.nan), "whole numbers"),
        ({"kind": "masks"}, np.full((1, 4, 4), 0.5), "whole numbers"),
        ({"connectivity": 3}, np.ones((1, 4, 4)), "connectivity"),
        ({"margin": 0.5}, np.ones((1, 4, 4)), "margin must be a whole number of voxels, got 0.5"),
        ({"margin": -1}, np.ones((1, 4, 4)), "margin must be one number of 0 or above"),
        ({"margin": (1, 2, 3)}, np.ones((1, 4, 4)), "each of 2 axes"),
        ({"min_size": -1}, np.ones((1, 4, 4)), "min_size must be a number of voxels"),
        ({"max_boxes": 0}, np.ones((1, 4, 4)), "max_boxes must be 1 or above"),
        ({"first_class": -1}, np.ones((1, 4, 4)), "first_class must be a channel"),
    ],
)
def test_errors_say_what_is_wrong(keywords, array, words):
    with pytest.raises(ValueError, match=words):
        LabelsToTightBoxes(**keywords)(array)
