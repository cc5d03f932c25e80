# SPDX-License-Identifier: Apache-2.0
"""What callers hand to a detector."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from monai_labelfx.detectors._targets import batch_images, check_targets, image_names

OPTIONS = {
    "num_classes": 3,
    "class_agnostic": False,
    "box_key": "boxes",
    "label_key": "labels",
    "needs_masks": False,
    "device": torch.device("cpu"),
}


def check(target: dict, size=(10, 12), **options):
    return check_targets([target], [size], ["film"], **OPTIONS | options)


def test_images_are_padded_at_their_high_ends():
    first, second = torch.ones(2, 3, 5), 2 * torch.ones(2, 4, 2)
    batch, sizes = batch_images([first, second], 2, 2)
    assert batch.shape == (2, 2, 4, 5) and sizes == [(3, 5), (4, 2)]
    assert torch.equal(batch[0, :, :3], first) and batch[0, :, 3:].sum() == 0
    assert torch.equal(batch[1, :, :, :2], second) and batch[1, :, :, 2:].sum() == 0
    batch, sizes = batch_images(MetaTensor(torch.rand(2, 1, 3, 4, 5)), 3, 1)
    assert type(batch) is torch.Tensor and sizes == [(3, 4, 5)] * 2


@pytest.mark.parametrize(
    ("images", "error", "reason"),
    [
        (torch.rand(2, 3, 4, 4), ValueError, r"images must have shape \(B, 1, axis 0, axis 1\), got \(2, 3, 4, 4\)"),
        ([torch.rand(1, 4, 4), torch.rand(4, 4)], ValueError, "image 1 must have shape"),
        ([], ValueError, "images is empty"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.uint8), TypeError, "images must be floating point, got torch.uint8"),
    ],
)
def test_images_that_cannot_be_used(images, error, reason):
    with pytest.raises(error, match=reason):
        batch_images(images, 2, 1)


def test_images_are_named_by_their_file():
    meta = MetaTensor(torch.rand(1, 4, 4), meta={"filename_or_obj": "/patients/42/film.png"})
    assert image_names([meta, torch.rand(1, 4, 4)]) == ["film.png", "image 1 of the batch"]


def test_boxes_are_padded_cut_and_left_alone():
    boxes = torch.tensor([[-2.0, 3.0, 4.0, 99.0], [1.0, 1.0, 2.0, 2.0]], dtype=torch.float64)
    before = boxes.clone()
    empty = {"boxes": torch.tensor([]), "labels": torch.tensor([])}
    targets = [{"boxes": boxes, "labels": torch.tensor([2, 0], dtype=torch.int32)}, empty]
    found = check_targets(targets, [(10, 12)] * 2, ["a", "b"], **OPTIONS)
    assert found.boxes.dtype == torch.float32 and found.labels.tolist() == [[2, 0], [-1, -1]]
    assert found.boxes[0].tolist() == [[0, 3, 4, 12], [1, 1, 2, 2]] and found.boxes[1].sum() == 0
    assert found.valid.tolist() == [[True, True], [False, False]] and found.masks is None
    assert torch.equal(boxes, before)
    assert check(empty).boxes.shape == (1, 1, 4), "one row at least, so that nothing has no size"


def test_class_agnostic_labels_are_all_zero():
    target = {"boxes": torch.tensor([[0.0, 0, 4, 4]]), "labels": torch.tensor([7])}
    assert check(target, class_agnostic=True).labels.tolist() == [[0]]


def test_masks_follow_their_boxes():
    masks = torch.zeros(2, 10, 12, dtype=torch.uint8)
    masks[1, 2:5] = 7
    target = {"boxes": torch.tensor([[3.0, 3, 3, 9], [2, 0, 5, 12]]), "labels": torch.tensor([0, 1]), "masks": masks}
    with pytest.warns(UserWarning, match="1 of 2 boxes of film cover nothing"):
        found = check(target, needs_masks=True)
    assert len(found.masks) == 1 and torch.equal(found.masks[0], masks[1:] != 0)
    with pytest.raises(ValueError, match=r"masks of film must have shape \(2, 9, 12\)"):
        check(target, size=(9, 12), needs_masks=True)
    with pytest.raises(ValueError, match="has no 'masks'"):
        check({k: v for k, v in target.items() if k != "masks"}, needs_masks=True)


@pytest.mark.parametrize("dims", [2, 3])
def test_masks_of_every_type(dims):
    size = (10, 12, 8)[:dims]
    boxes = torch.tensor([[2.0] * dims + [5.0] * dims, [4.0] * dims + [8.0] * dims])
    masks = torch.zeros(2, *size, dtype=torch.bool)
    for mask, (low, high) in zip(masks, ((2, 5), (4, 8)), strict=True):
        mask[(slice(low, high),) * dims] = True  # they overlap
    target = {"boxes": boxes, "labels": torch.tensor([0, 1])}
    for given in (
        masks,
        masks.int() * 5,
        masks.float(),
        masks.double() * 0.6 + 0.4 * ~masks,
        MetaTensor(masks * 255.0),
    ):
        found = check(target | {"masks": given}, size=size, needs_masks=True).masks
        assert type(found[0]) is torch.Tensor and found[0].dtype == torch.bool and torch.equal(found[0], masks)
    with pytest.raises(ValueError, match="masks of film must be bool, whole numbers or floats, got torch.complex64"):
        check(target | {"masks": masks * 1j}, size=size, needs_masks=True)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_mask_without_voxels_goes_with_its_box(dims):
    size = (10, 12, 8)[:dims]
    boxes = torch.tensor([[2.0] * dims + [5.0] * dims, [4.0] * dims + [8.0] * dims])
    masks = torch.zeros(2, *size)
    masks[(1, *(slice(5, 7),) * dims)] = 1
    target = {"boxes": boxes, "labels": torch.tensor([0, 1]), "masks": masks}
    with pytest.warns(UserWarning, match="1 of 2 masks of film have no voxel and were dropped with their boxes"):
        found = check(target, size=size, needs_masks=True)
    assert found.labels.tolist() == [[1]] and torch.equal(found.boxes[0], boxes[1:])
    assert torch.equal(found.masks[0], masks[1:] > 0) and len(target["boxes"]) == 2
    with pytest.raises(
        ValueError, match=r"masks of film must be those of its boxes, row by row, got box .* for mask 0"
    ):
        check(target | {"masks": masks.flip(0)}, size=size, needs_masks=True)
    beside = torch.zeros_like(masks)
    beside[(0, *(slice(2, 5),) * (dims - 1))][..., 5:7] = beside[1] = 1
    with pytest.raises(ValueError, match="for mask 0"):  # in common along all axes but the last
        check(target | {"masks": beside}, size=size, needs_masks=True)
    with pytest.warns(UserWarning, match="2 of 2 masks"):
        found = check(target | {"masks": 0 * masks}, size=size, needs_masks=True)
    assert found.masks[0].shape == (0, *size) and not found.valid.any()


def test_no_objects_are_no_masks():
    nothing = {"boxes": torch.tensor([]), "labels": torch.tensor([])}
    for masks in (torch.tensor([]), torch.zeros(0, 10, 12), torch.zeros(0, 10, 12, dtype=torch.bool)):
        found = check(nothing | {"masks": masks}, needs_masks=True).masks
        assert found[0].shape == (0, 10, 12) and found[0].dtype == torch.bool
    with pytest.raises(ValueError, match=r"must have shape \(0, 10, 12\), one mask for each box, got \(1, 10, 12\)"):
        check(nothing | {"masks": torch.zeros(1, 10, 12)}, needs_masks=True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"labels": torch.tensor([3])}, "class numbers 0 to 2, got 3 to 3"),
        ({"labels": torch.tensor([-1])}, "class numbers 0 to 2, got -1 to -1"),
        ({"labels": torch.tensor([0.0])}, "whole numbers, got torch.float32"),
        ({"labels": torch.tensor([True])}, "whole numbers, got torch.bool"),
        ({"labels": torch.tensor([0, 1])}, r"boxes \(N, 4\) and labels \(N,\), got \(1, 4\) and \(2,\)"),
        ({"boxes": torch.tensor([[0.0, 0, 4, torch.inf]])}, "1 box.es. with numbers that are not finite"),
    ],
)
def test_targets_that_cannot_be_used(change, reason):
    with pytest.raises(ValueError, match=reason):
        check({"boxes": torch.tensor([[0.0, 0, 4, 4]]), "labels": torch.tensor([0])} | change)
