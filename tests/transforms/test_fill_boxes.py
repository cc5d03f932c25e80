# SPDX-License-Identifier: Apache-2.0
"""Boxes as masks: filled before or after the image moves, it is the same."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from monai import transforms as mt
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor
from testers import AFFINE, containers, picture

from monai_labelfx.transforms.boxes_to_bags import BoxesToBags, BoxesToBagsd
from monai_labelfx.transforms.fill_boxes import FillBoxes, FillBoxesd


def rows(spatial_dims: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two boxes of class 0 that overlap, one of class 2, and padding."""
    low = torch.tensor([[1.0], [3.0], [0.0], [0.0]]) + torch.arange(spatial_dims)
    boxes = torch.cat([low, low + torch.tensor([[5.0], [4.0], [9.0], [0.0]])], 1)
    boxes[3] = 0
    return boxes, torch.tensor([0, 0, 2, -1])


def painted(boxes, labels, classes: int, shape) -> torch.Tensor:
    mask = torch.zeros(classes, *shape, dtype=torch.uint8)
    for box, label in zip(boxes.long().tolist(), labels.tolist(), strict=True):
        if label >= 0:
            mask[(label, *(slice(a, b) for a, b in zip(box[: len(shape)], box[len(shape) :], strict=True)))] = 1
    return mask


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("container", ["numpy", "tensor", "metatensor"])
def test_every_voxel_of_a_box(spatial_dims, container):
    image = containers(picture(spatial_dims, 2))[container]
    boxes, labels = rows(spatial_dims)
    made = MetaTensor(boxes, affine=AFFINE) if container == "metatensor" else boxes
    out = pickle.loads(pickle.dumps(FillBoxes(4)))(made, labels, image)
    assert type(out) is type(image) and str(out.dtype).endswith("uint8")
    assert np.array_equal(out, painted(boxes, labels, 4, image.shape[1:]))
    assert container != "metatensor" or torch.equal(out.affine, image.affine)
    frames = BoxesToBags()(made, image, labels)
    frames[3] = frames[0]  # padding may hold anything
    assert np.array_equal(FillBoxes(4)(frames, labels, image), out)
    assert not np.asarray(FillBoxes(1)(made[:0], labels[:0], image)).any()


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("lazy", [False, True])
def test_filling_and_moving_commute(spatial_dims, lazy):
    boxes, labels = rows(spatial_dims)
    image = MetaTensor(torch.zeros(1, *[11 + axis for axis in range(spatial_dims)]), affine=AFFINE)
    filled = MetaTensor(painted(boxes, labels, 3, image.shape[1:]), affine=AFFINE)
    moves = [
        mt.Flip(1),
        mt.Rotate90(1, (0, 1)),
        mt.BorderPad(2),
        mt.SpatialCrop(roi_start=[4] * spatial_dims, roi_end=[13] * spatial_dims),
    ]
    moved = image
    for move in moves:
        moved, filled = move(moved, lazy=lazy), move(filled)
    out = FillBoxes(3)(MetaTensor(boxes, affine=AFFINE), labels, moved)
    assert torch.equal(out.as_tensor(), filled.as_tensor()) and out.any()
    assert torch.allclose(out.affine, filled.affine[: len(out.affine), : len(out.affine)])


def test_a_turned_box_stays_turned():
    box = MetaTensor(torch.tensor([[10.0, 14.0, 30.0, 26.0]]))
    image = MetaTensor(torch.zeros(1, 40, 40))
    filled = MetaTensor(FillBoxes(1)(box, torch.tensor([0]), image).float())
    turn = mt.Rotate(0.5, mode="nearest", padding_mode="zeros")
    out, theirs = FillBoxes(1)(box, torch.tensor([0]), turn(image)), turn(filled)
    assert float((out != theirs).sum()) < 6 and abs(int(out.sum()) - 240) < 12


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_twin_takes_bags_before_boxes_and_makes_batches(spatial_dims):
    boxes, labels = rows(spatial_dims)
    image = MetaTensor(torch.zeros(1, *[12] * spatial_dims), affine=AFFINE)
    item = {"image": image, "label_boxes": MetaTensor(boxes, affine=AFFINE), "label_box_labels": labels}
    chain = mt.Compose([mt.RandFlipd("image", 0.5, 0), BoxesToBagsd("label"), FillBoxesd("label", classes=3)])
    batch = next(iter(DataLoader(Dataset([item] * 6, chain.set_random_state(2)), batch_size=6)))
    plain = painted(boxes, labels, 3, image.shape[1:])
    assert batch["label_filled"].shape == (6, *plain.shape) and batch["label_filled"].dtype == torch.uint8
    flipped = [torch.equal(one.as_tensor(), plain.flip(1)) for one in batch["label_filled"]]
    assert {torch.equal(one.as_tensor(), plain) for one in batch["label_filled"]} == {True, False} == set(flipped)
    other = {**item, "label_bags": BoxesToBags()(boxes + 1, image.as_tensor(), labels)}
    assert torch.equal(
        FillBoxesd("label", classes=3)(other)["label_filled"].as_tensor(),
        painted(boxes + 1, labels, 3, [12] * spatial_dims),
    )
    assert set(FillBoxesd(["label", "none"], classes=3, allow_missing_keys=True)(item)) - set(item) == {"label_filled"}
    cached = CacheDataset([item], mt.Compose([FillBoxesd("label", classes=3)]), progress=False)
    assert torch.equal(cached[0]["label_filled"].as_tensor(), plain)
    for missing in item:
        with pytest.raises(KeyError, match=f"has no '{missing}'; keys"):
            FillBoxesd("label", classes=3)({key: value for key, value in item.items() if key != missing})


def test_errors_say_what_is_wrong():
    boxes, labels = rows(2)
    with pytest.raises(ValueError, match="classes must be a number of class channels, 1 or above, got 0"):
        FillBoxes(0)
    with pytest.raises(ValueError, match=r"labels must be class channels from 0 to 1 \(-1 for padding\), got 2"):
        FillBoxes(2)(boxes, labels, torch.zeros(1, 12, 12))
    with pytest.raises(ValueError, match="only the image came with an affine"):
        FillBoxes(3)(boxes, labels, MetaTensor(torch.zeros(1, 12, 12)))
    with pytest.raises(ValueError, match=r"frames must have the shape \(N, 3, 2\)"):
        FillBoxes(3)(boxes[:, None], labels, torch.zeros(1, 12, 12))
