# SPDX-License-Identifier: Apache-2.0
"""Boxes of a datalist: what an item says, what is refused, and that they follow the image from then on."""

from __future__ import annotations

import copy
import pickle

import nibabel as nib
import numpy as np
import pytest
import torch
from monai import transforms as mt
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor
from testers import AFFINE, containers, picture

from monai_labelfx.ops.box_frames import boxes_to_frames
from monai_labelfx.transforms.boxes_to_bags import BoxesToBagsd
from monai_labelfx.transforms.labels_to_tight_boxes import LabelsToTightBoxesd
from monai_labelfx.transforms.pack_boxes import PackBoxesd


def box(spatial_dims: int, low: float = 1, high: float = 5) -> list[float]:
    return [low + axis for axis in range(spatial_dims)] + [high] * spatial_dims


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("container", ["numpy", "tensor", "metatensor"])
def test_lists_become_tensors(spatial_dims, container):
    image = containers(picture(spatial_dims))[container]
    item = {"image": image, "box": [box(spatial_dims), box(spatial_dims, 0.5, 7.25)], "box_label": [2, 0], "other": 1}
    before = copy.deepcopy(item)
    out = pickle.loads(pickle.dumps(PackBoxesd("label", max_boxes=3, classes=3)))(item)
    assert item.keys() == before.keys() and item["box"] == before["box"]
    assert out.keys() == {"image", "other", "label_boxes", "label_box_labels", "has_boxes"} and out["image"] is image
    assert isinstance(out["label_boxes"], MetaTensor) == (container == "metatensor")
    assert out["label_boxes"].dtype == torch.float32 and out["label_box_labels"].dtype == torch.int64
    assert out["label_boxes"].tolist() == [*item["box"], [0] * 2 * spatial_dims]
    assert out["label_box_labels"].tolist() == [2, 0, -1] and type(out["label_box_labels"]) is torch.Tensor
    assert out["has_boxes"].dtype == torch.bool and out["has_boxes"].shape == () and out["has_boxes"]
    if container == "metatensor":
        assert torch.equal(out["label_boxes"].affine, image.affine)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_what_an_item_says(spatial_dims):
    image, pack = torch.zeros(1, *[6] * spatial_dims), PackBoxesd("label")
    empty, unknown = pack({"image": image, "box": [], "box_label": []}), pack({"image": image})
    none = pack({"image": image, "box": None, "box_label": None})
    for out, known in ((empty, True), (unknown, False), (none, False)):
        assert out["label_boxes"].shape == (0, 2 * spatial_dims) and out["label_box_labels"].shape == (0,)
        assert bool(out["has_boxes"]) is known
    assert pack({"image": image, "box": []})["has_boxes"]
    assert not pack({"image": image, "box": [box(spatial_dims)], "box_label": [0], "has_boxes": False})["has_boxes"]
    assert pack({"image": image, "has_boxes": torch.tensor(True)})["has_boxes"]
    label = MetaTensor(torch.zeros(1, *[6] * spatial_dims))
    label[(0, *[slice(2, 4)] * spatial_dims)] = 1
    masked = LabelsToTightBoxesd("label")({"image": MetaTensor(image), "label": label})
    kept = PackBoxesd("label", max_boxes=2)(masked)
    assert kept["has_boxes"] and kept["label_box_labels"].tolist() == [0, -1]
    assert torch.equal(kept["label_boxes"][0], masked["label_boxes"][0]) and isinstance(kept["label_boxes"], MetaTensor)
    assert pack({**masked, "box": [box(spatial_dims)], "box_label": [0]})["label_boxes"].tolist() == [box(spatial_dims)]


def test_what_sticks_out_by_a_voxel_is_cut():
    item = {"image": torch.zeros(1, 6, 8), "box": [[-1, 2.5, 7, 8.75], [0, 0, 6, 8]], "box_label": [0, 1]}
    assert PackBoxesd("label")(item)["label_boxes"].tolist() == [[0, 2.5, 6, 8], [0, 0, 6, 8]]


def test_loaded_boxes_follow_the_image(tmp_path):
    """From a file and a datalist to frames: each item its own, in one batch."""
    chain = mt.Compose(
        [
            mt.LoadImaged("image", ensure_channel_first=True),
            PackBoxesd("label", max_boxes=2),
            mt.Orientationd("image", "LPS", labels=None),
            mt.RandFlipd("image", 1.0, 0),
            BoxesToBagsd("label"),
        ]
    )
    items = []
    for number in range(3):
        name = tmp_path / f"{number}.nii.gz"
        voxels = np.random.default_rng(number).random((8, 9, 10)).astype(np.float32)
        nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 3.0, 1.0])), name)
        items.append({"image": str(name)})
    items[0] |= {"box": [[1, 2, 3, 4, 6, 8], [0, 0, 0, 1, 1, 1]], "box_label": [0, 1]}
    items[1] |= {"box": [], "box_label": []}
    batch = next(iter(DataLoader(Dataset(items, chain), batch_size=3)))
    assert batch["has_boxes"].tolist() == [True, True, False]
    assert batch["label_box_labels"].tolist() == [[0, 1], [-1, -1], [-1, -1]]
    twice = torch.tensor([[1.0, 0, 0, 0], [0, -1, 0, 8], [0, 0, 1, 0], [0, 0, 0, 1]])  # LPS and a flip back of axis 0
    boxes = torch.tensor([items[0]["box"]])[0].float()
    assert torch.equal(batch["label_bags"][0], boxes_to_frames(boxes, twice)) and not batch["label_bags"][1:].any()
    cached = CacheDataset(items, chain, progress=False)
    assert torch.equal(cached[0]["label_bags"], batch["label_bags"][0])


@pytest.mark.parametrize("move", [mt.Flip(0), mt.SpatialCrop(roi_start=(1, 0, 0), roi_end=(8, 8, 8)), mt.Zoom(1.5)])
def test_an_image_that_was_moved_since_loading_is_refused(move):
    far = AFFINE.double().clone()
    far[:3, 3] = torch.tensor([-900.0, 700.0, 1200.0])
    image = MetaTensor(torch.zeros(1, 8, 8, 8), meta={"affine": far, "original_affine": far.numpy().copy()})
    item = {"box": [box(3)], "box_label": [0]}
    assert torch.equal(PackBoxesd("label")({"image": image, **item})["label_boxes"].affine, far)
    with pytest.raises(ValueError, match="moved since it was loaded.*put PackBoxesd directly behind loading"):
        PackBoxesd("label")({"image": move(image), **item})


@pytest.mark.parametrize(
    ("boxes", "labels", "words"),
    [
        ([box(2), [4, 1, 2, 3]], [0, 0], r"box 1 of box is inverted or empty .*, got \[4.0, 1.0, 2.0, 3.0\]"),
        ([[1, 1, 1, 4]], [0], "box 0 of box is inverted or empty"),
        ([[1, 1, float("nan"), 4]], [0], "box 0 of box is not finite"),
        ([[1, 1, float("inf"), 4]], [0], "box 0 of box is not finite"),
        ([[6, 1, 9, 4]], [0], r"box 0 of box lies outside the image of shape \(6, 8\)"),
        ([[-3, 1, 0, 4]], [0], "lies outside the image"),
        ([[-1, 1, 0.0004, 4]], [0], "lies outside the image"),
        ([box(2), [1, 1, 4, 9.5]], [0, 1], r"box 1 of box reaches out of the image of shape \(6, 8\) by more than one"),
        ([box(2), [-1.5, 1, 4, 5]], [0, 1], "box 1 of box reaches out"),
        ([box(3)], [0], r"boxes of 4 numbers each for an image of 2 spatial axes, got the shape \(1, 6\)"),
        (box(2), [0], r"got the shape \(4,\)"),
        ([box(2), box(3)], [0, 0], "box must hold boxes of 4 numbers each"),
        ([["a", 1, 2, 3]], [0], "box must hold boxes of 4 numbers each, got"),
        ([box(2)], [0, 1], "box_label must hold a whole number for each of 1 boxes, got int64 of the shape"),
        ([box(2)], [0.5], "box_label must hold a whole number for each of 1 boxes, got float64"),
        ([box(2)], [-1], "box 0 must have a class channel of 0 to 2 in box_label, got -1"),
        ([box(2), box(2)], [0, 3], "box 1 must have a class channel of 0 to 2 in box_label, got 3"),
        ([box(2)] * 4, [0] * 4, "the item has 4 boxes, more than max_boxes=3"),
    ],
)
def test_unusable_boxes_are_named(boxes, labels, words):
    item = {"image": MetaTensor(torch.zeros(1, 6, 8), meta={"filename_or_obj": "patient.png"})}
    with pytest.raises(ValueError, match=words) as caught:
        PackBoxesd("label", max_boxes=3, classes=3)({**item, "box": boxes, "box_label": labels})
    assert "patient" not in str(caught.value)


def test_unusable_arguments_and_items():
    with pytest.raises(ValueError, match="keys must be one key"):
        PackBoxesd(["label", "second"])
    with pytest.raises(ValueError, match="classes must be a number of class channels, 1 or above, got 0"):
        PackBoxesd("label", classes=0)
    with pytest.raises(ValueError, match="max_boxes must be 1 or above"):
        PackBoxesd("label", max_boxes=0)
    with pytest.raises(ValueError, match="a class channel of 0 or above"):
        PackBoxesd("label")({"image": torch.zeros(1, 6, 8), "box": [box(2)], "box_label": [-1]})
    with pytest.raises(KeyError, match="has no 'image'; keys"):
        PackBoxesd("label")({"box": [], "box_label": []})
    with pytest.raises(KeyError, match="has 'box' and no 'box_label'"):
        PackBoxesd("label")({"image": torch.zeros(1, 6, 8), "box": [box(2)]})
    with pytest.raises(KeyError, match="has 'label_boxes' and no 'label_box_labels'"):
        PackBoxesd("label")({"image": torch.zeros(1, 6, 8), "label_boxes": torch.zeros(0, 4)})
