# SPDX-License-Identifier: Apache-2.0
"""Batches of images and boxes: lists of items, collated batches, and what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from monai.data.utils import no_collation

from monai_labelfx.engines.detection_prepare_batch import DetectionPrepareBatch, detection_items


def item(shape=(8, 9), boxes=2, **more):
    rows = np.arange(boxes * 2 * len(shape)).reshape(boxes, 2 * len(shape)) / 2
    image = MetaTensor(torch.rand(1, *shape), meta={"filename_or_obj": "/secret/folder/film.png"})
    return {"image": image, "box": rows, "box_label": list(range(boxes)), **more}


@pytest.mark.parametrize("shape", [(8, 9), (6, 5, 4)])
def test_images_and_targets_of_a_list(shape):
    items = no_collation([item(shape), item(tuple(n + 1 for n in shape), 0), item(shape, 1)])
    images, targets = DetectionPrepareBatch()(items, "cpu")
    assert [image.shape[1:] for image in images] == [entry["image"].shape[1:] for entry in items]
    for entry, target in zip(items, targets, strict=True):
        assert sorted(target) == ["boxes", "labels", "spacing"]
        assert all(type(part) is torch.Tensor for part in target.values())
        assert target["boxes"].dtype == torch.float32 and target["labels"].dtype == torch.int64
        assert target["boxes"].shape == (len(entry["box"]), 2 * len(shape))
        assert np.allclose(target["boxes"], entry["box"].reshape(target["boxes"].shape))
    assert targets[0]["labels"].tolist() == [0, 1]


@pytest.mark.parametrize("boxes", [[], np.zeros((0, 4)), torch.zeros(0, 4), torch.tensor([])])
def test_no_objects_are_no_boxes(boxes):
    target = DetectionPrepareBatch()([{"image": torch.zeros(1, 8, 8), "box": boxes, "box_label": []}])[1][0]
    assert target["boxes"].shape == (0, 4) and target["labels"].shape == (0,) and target["labels"].dtype == torch.int64


def test_nobody_annotated_is_none():
    items = [item(), {"image": torch.zeros(1, 8, 8)}, item(box=None)]
    assert [target is None for target in DetectionPrepareBatch()(items)[1]] == [False, True, True]


def test_rows_that_fill_a_batch_are_dropped_with_their_masks():
    masks = torch.zeros(3, 8, 9, dtype=torch.uint8)
    masks[0, 0, 0], masks[1] = 1, 7
    entry = item(boxes=3, box_label=torch.tensor([4, 2, -1]), mask=masks)
    before = entry["box"].copy()
    target = DetectionPrepareBatch(mask_key="mask")([entry])[1][0]
    assert target["labels"].tolist() == [4, 2] and target["boxes"].shape == (2, 4)
    assert target["masks"].dtype == torch.bool and target["masks"].flatten(1).sum(1).tolist() == [1, 72]
    assert np.array_equal(entry["box"], before) and entry["box_label"].tolist() == [4, 2, -1], "the batch is not edited"
    assert "masks" not in DetectionPrepareBatch()([entry])[1][0], "only where they are wanted"
    assert "masks" not in DetectionPrepareBatch(mask_key="mask")([item()])[1][0], "nor where there are none"


def test_meta_boxes_become_plain_and_images_keep_their_names():
    boxes = MetaTensor(torch.tensor([[1.0, 2, 3, 4]]), affine=torch.eye(4))
    images, (target,) = DetectionPrepareBatch()([item(box=boxes, box_label=torch.tensor([1]))])
    assert type(target["boxes"]) is torch.Tensor and images[0].meta["filename_or_obj"].endswith("film.png")


def test_flattens_samples_of_random_crops():
    assert [len(entry["box"]) for entry in detection_items([[item(boxes=1), item(boxes=2)], item(boxes=3)])] == [
        1,
        2,
        3,
    ]


def test_takes_collated_batches_apart():
    padded = [item(boxes=2, box=torch.rand(3, 4), box_label=torch.tensor([0, 1, -1]), n=k) for k in range(2)]
    collated = list_data_collate(padded)
    items = detection_items(collated)
    assert [entry["image"].meta["filename_or_obj"][-8:] for entry in items] == ["film.png"] * 2
    assert torch.equal(items[1]["image"], padded[1]["image"]) and [int(entry["n"]) for entry in items] == [0, 1]
    images, targets = DetectionPrepareBatch()(collated)
    assert len(images) == 2 and [len(target["boxes"]) for target in targets] == [2, 2]
    assert torch.equal(targets[1]["boxes"], padded[1]["box"][:2])
    # lists of different lengths, texts for all, mappings
    mixed = {
        "image": torch.zeros(2, 1, 8, 8),
        "box": [[], [[0, 0, 1, 1]]],
        "site": "A",
        "more": {"a": [1, 2], "b": [3]},
    }
    assert [(entry["box"], entry["site"], entry["more"]) for entry in detection_items(mixed)] == [
        ([], "A", {"a": 1, "b": [3]}),
        ([[0, 0, 1, 1]], "A", {"a": 2, "b": [3]}),
    ]


def test_other_keys_and_dtype_of_images():
    entry = {"film": torch.zeros(1, 8, 8), "b": [[0, 0, 4, 4]], "l": [3]}
    prepare = DetectionPrepareBatch("film", box_key="b", label_key="l")
    images, targets = prepare([entry], torch.device("cpu"), False, dtype=torch.float64)
    assert images[0].dtype == torch.float64 and targets[0]["boxes"].dtype == torch.float32
    assert targets[0]["labels"].tolist() == [3]


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        ({"box": []}, KeyError, "the batch has no 'image'; it has \\['box'\\]"),
        (item(box_label=None), KeyError, "film.png has 'box' but no 'box_label'"),
        (item(box=np.zeros((2, 6))), ValueError, r"film.png must have 'box' \(N, 4\).* got \(2, 6\) and \(2,\)"),
        (item(box_label=[1]), ValueError, r"got \(2, 4\) and \(1,\)"),
        (item(box_label=[0.5, 1.0]), ValueError, "whole numbers as 'box_label', got torch.float64"),
        (
            item(mask=torch.zeros(1, 8, 9)),
            ValueError,
            r"'mask' of film.png must have shape \(2, 8, 9\), one mask for each box",
        ),
        (3, TypeError, "items of a batch must be mappings, got int"),
    ],
)
def test_refused(entry, error, message):
    with pytest.raises(error, match=message) as caught:
        DetectionPrepareBatch(mask_key="mask")([entry])
    assert "secret" not in str(caught.value)


def test_refuses_what_is_no_batch():
    with pytest.raises(TypeError, match="list of items or a collated mapping, got int"):
        detection_items(3)
    with pytest.raises(KeyError, match="no 'image'"):
        detection_items({"film": torch.zeros(2)})


def test_spacing_is_that_of_the_image_as_it_is_now():
    image = MetaTensor(torch.zeros(1, 8, 8), affine=torch.diag(torch.tensor([-0.5, 2.0, 1.0, 1.0])))
    entry = {"image": image, "box": [], "box_label": []}
    assert DetectionPrepareBatch()([entry])[1][0]["spacing"].tolist() == [0.5, 2.0]
    assert "spacing" not in DetectionPrepareBatch()([entry | {"image": torch.zeros(1, 8, 8)}])[1][0]


def with_masks(ndim: int, **more) -> dict:
    """Two overlapping objects on a grid with an affine, as InstancesToMasksd leaves them."""
    affine = torch.diag(torch.tensor([-0.5, 2.0, 3.0, 1.0]))
    masks = torch.zeros(2, *(8, 9, 7)[:ndim], dtype=torch.bool)
    masks[0, 1:5, 2:6] = masks[1, 4:7, 5:9] = True
    rest = [7.0] * (ndim - 2)
    boxes = [[1.0, 2, *[0] * len(rest), 5, 6, *rest], [4.0, 5, *[0] * len(rest), 7, 9, *rest]]
    image = MetaTensor(torch.rand(1, *masks.shape[1:]), affine=affine, meta={"filename_or_obj": "/secret/film.png"})
    item = {"image": image, "box": MetaTensor(torch.tensor(boxes), affine=affine), "box_label": torch.tensor([1, 0])}
    return item | {"mask": MetaTensor(masks, affine=affine)} | more


@pytest.mark.parametrize("ndim", [2, 3])
def test_masks_of_every_type(ndim):
    entry = with_masks(ndim)
    plain = entry["mask"].as_tensor()
    soft = plain.float() * 0.6 + 0.4 * plain.float().roll(1, 1)  # borders at 0.4 and 0.6
    for masks in (entry["mask"], plain, plain.numpy(), plain.int() * 3, plain.double() * 255, soft, plain.tolist()):
        (target,) = DetectionPrepareBatch(mask_key="mask")([entry | {"mask": masks}])[1]
        assert type(target["masks"]) is torch.Tensor and torch.equal(target["masks"], plain)
        assert target["labels"].tolist() == [1, 0] and torch.equal(target["boxes"], entry["box"].as_tensor())


@pytest.mark.parametrize("ndim", [2, 3])
def test_no_objects_are_no_masks(ndim):
    entry = with_masks(ndim, box=[], box_label=[])
    for masks in ([], torch.tensor([]), entry["mask"][:0], np.zeros((0, *entry["mask"].shape[1:]), bool)):
        (target,) = DetectionPrepareBatch(mask_key="mask")([entry | {"mask": masks}])[1]
        assert target["masks"].shape == (0, *entry["image"].shape[1:]) and target["masks"].dtype == torch.bool
        assert target["boxes"].shape == (0, 2 * ndim)


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_mask_without_voxels_goes_with_its_box(ndim):
    entry = with_masks(ndim)
    masks = entry["mask"].clone()
    masks[0] = False
    with pytest.warns(UserWarning, match="1 of 2 masks of film.png have no voxel and were dropped") as caught:
        (target,) = DetectionPrepareBatch(mask_key="mask")([entry | {"mask": masks}])[1]
    assert len(caught) == 1 and "secret" not in str(caught[0].message)
    assert target["labels"].tolist() == [0] and torch.equal(target["masks"], entry["mask"].as_tensor()[1:])
    assert target["boxes"].tolist() == entry["box"].tolist()[1:] and len(entry["box"]) == 2


@pytest.mark.parametrize("ndim", [2, 3])
def test_masks_of_other_boxes_or_another_grid_are_refused(ndim):
    entry = with_masks(ndim)
    prepare = DetectionPrepareBatch(mask_key="mask")
    apart = entry["box"].clone()
    apart[1, 0], apart[1, ndim] = 0, 3
    with pytest.raises(ValueError, match=r"film.png must be those of its boxes, row by row, got box .* for mask 1"):
        prepare([entry | {"box": apart}])
    flat = entry["box"].clone()
    flat[0, 0] = flat[0, ndim]
    assert len(prepare([entry | {"box": flat}])[1][0]["masks"]) == 2, "the detector drops such boxes, and says so"
    loose = entry["box"].clone()
    loose[:, :ndim] -= 3
    assert len(prepare([entry | {"box": loose}])[1][0]["masks"]) == 2, "boxes may be looser, and reach out"
    moved = MetaTensor(entry["mask"].as_tensor(), affine=torch.diag(torch.tensor([0.5, 2.0, 3.0, 1.0])))
    with pytest.raises(ValueError, match="'mask' of film.png must lie on the grid of the image, got another affine"):
        prepare([entry | {"mask": moved}])
    with pytest.raises(ValueError, match="one mask for each box, got"):
        prepare([entry | {"mask": entry["mask"][:, :4]}])


def test_collated_masks_are_taken_apart():
    batch = list_data_collate([with_masks(2), with_masks(2)])
    targets = DetectionPrepareBatch(mask_key="mask")(batch)[1]
    assert all(torch.equal(target["masks"], with_masks(2)["mask"].as_tensor()) for target in targets)
