# SPDX-License-Identifier: Apache-2.0
"""Random crops around boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, MetaTensor
from monai.transforms import Flip

from monai_labelfx.transforms import AttachBoxesd, PlaceBoxesOnImaged, RandCropByBoxd

SHAPE = {2: (30, 40), 3: (20, 30, 24)}
ROI = {2: (12, 16), 3: (10, 12, 9)}
LOW = {2: (3, 20), 3: (4, 17, 2)}
HIGH = {2: (9, 31), 3: (9, 25, 10)}


def make(dims: int, boxes: list | None = None) -> dict:
    affine = torch.diag(torch.tensor([-0.5, 2.0, 3.0, 1.0]))
    image = torch.zeros(1, *SHAPE[dims])
    image[(0, *(slice(a, b) for a, b in zip(LOW[dims], HIGH[dims], strict=True)))] = 1
    rows = [[*LOW[dims], *HIGH[dims]]] if boxes is None else boxes
    return {
        "image": MetaTensor(image, affine=affine),
        "mask": MetaTensor(image.clone(), affine=affine),
        "box": MetaTensor(torch.tensor(rows, dtype=torch.float32).reshape(-1, 2 * dims), affine=affine),
        "box_label": torch.zeros(len(rows), dtype=torch.long),
    }


@pytest.mark.parametrize("dims", [2, 3])
def test_a_crop_around_a_box_holds_all_of_it_at_every_place(dims):
    crop = RandCropByBoxd(["image", "mask"], roi_size=ROI[dims], object_probability=1.0).set_random_state(0)
    seen = set()
    for _ in range(60):
        out = PlaceBoxesOnImaged()(crop(make(dims)))
        assert out["image"].shape == (1, *ROI[dims]) and torch.equal(out["image"], out["mask"])
        corners = out["image"][0].nonzero()
        assert out["box"][0].tolist() == [*corners.amin(0).tolist(), *(corners.amax(0) + 1).tolist()]
        assert out["image"].sum() == make(dims)["image"].sum()
        seen.add(tuple(out["box"][0, :dims].tolist()))
    places = [
        min(low, SHAPE[dims][a] - ROI[dims][a]) - max(0, HIGH[dims][a] - ROI[dims][a]) + 1
        for a, low in enumerate(LOW[dims])
    ]
    assert len(seen) > min(60, np.prod(places)) / 3
    assert {row[0] for row in seen} == set(np.arange(places[0]) + min(seen)[0]), "every place of an axis is drawn"


def test_other_crops_lie_anywhere():
    crop = RandCropByBoxd("image", roi_size=12, object_probability=0.0).set_random_state(1)
    image = MetaTensor(torch.arange(30 * 40.0).reshape(1, 30, 40), affine=torch.eye(4))
    corners = {divmod(int(crop(make(2) | {"image": image})["image"][0, 0, 0]), 40) for _ in range(400)}
    assert {row for row, _ in corners} == set(range(19)) and {column for _, column in corners} == set(range(29))


def test_an_item_without_boxes_and_an_image_smaller_than_the_crop():
    item = make(2, boxes=[])
    assert RandCropByBoxd("image", roi_size=(12, 16)).set_random_state(0)(item)["image"].shape == (1, 12, 16)
    out = PlaceBoxesOnImaged()(RandCropByBoxd("image", roi_size=(40, 16), object_probability=1.0)(make(2)))
    assert out["image"].shape == (1, 40, 16) and out["box"][0, :1].tolist() == [3 + 5]


def test_a_box_longer_than_the_crop_fills_it():
    crop = RandCropByBoxd("image", roi_size=4, object_probability=1.0).set_random_state(0)
    starts = set()
    for _ in range(40):
        out = crop(make(2))
        assert out["image"].min() == 1
        starts.add(tuple(out["image"].affine[:2, 3].tolist()))
    assert len(starts) > 10


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["metatensor", "tensor", "numpy"])
@pytest.mark.parametrize("size", [8, 32])
def test_the_objects_of_a_label_map_are_as_good_as_their_boxes(dims, kind, size):
    item = make(dims)
    label = torch.cat([item.pop("mask"), torch.zeros(1, *SHAPE[dims])])
    label[0, :2, -3:], label[1, -3:, :2] = 7, 1
    item["label"] = {"metatensor": label, "tensor": label.as_tensor(), "numpy": label.numpy()}[kind]
    boxes = AttachBoxesd(mask_key="label")({key: item[key] for key in ("image", "label")})["box"]
    keys, counts = ["image", "label"], set()
    for seed in range(12):
        for share in (0.0, 0.7, 1.0):
            crop = {"roi_size": size, "object_probability": share}
            drawn = RandCropByBoxd(keys, instance_key="label", **crop).set_random_state(seed)(item | {"box": None})
            wanted = RandCropByBoxd(keys, **crop).set_random_state(seed)(item | {"box": boxes})
            assert torch.equal(drawn["image"].affine, wanted["image"].affine)
            assert torch.equal(torch.as_tensor(drawn["label"]), torch.as_tensor(wanted["label"]))
            counts |= {tuple(np.unique(np.asarray(drawn["label"])))} if share == 1 else set()
    assert len(counts) > 1 or size > 8, "each object has its turn"


def test_a_label_map_without_objects_and_one_that_cannot_be_used():
    item = make(2)
    crop = RandCropByBoxd(["image", "mask"], instance_key="mask", roi_size=12, object_probability=1.0)
    assert crop(item | {"mask": 0 * item["mask"]})["image"].shape == (1, 12, 12)
    with pytest.raises(KeyError, match="RandCropByBoxd: the item has no 'label' to draw from"):
        RandCropByBoxd("image", instance_key="label", roi_size=4)(item)
    with pytest.raises(KeyError, match="RandCropByBoxd: the item has no 'other' to draw from"):
        RandCropByBoxd("image", box_key="other", roi_size=4)(item)
    with pytest.raises(ValueError, match=r"'mask' must have the grid \(30, 40\) of the first key"):
        RandCropByBoxd("image", instance_key="mask", roi_size=4)(item | {"mask": item["mask"][:, 1:]})
    with pytest.raises(ValueError, match="whole numbers"):
        crop(item | {"mask": item["mask"] * 0.5})
    with pytest.raises(ValueError, match="'mask' has 1 pending operations"):
        crop(item | {"mask": Flip(0, lazy=True)(item["mask"])})


def test_the_seed_decides_and_the_cache_does_not_freeze_it():
    crop = RandCropByBoxd("image", roi_size=(12, 16))
    first, second = ([crop.set_random_state(seed)(make(2))["image"].affine for _ in range(2)] for seed in (3, 3))
    assert torch.equal(first[0], second[0])
    cached = CacheDataset([make(2)], crop.set_random_state(0), progress=False)
    assert len({tuple(cached[0]["image"].affine[:2, 3].tolist()) for _ in range(10)}) > 1
    item = make(2)
    crop(item)
    assert item["image"].shape == (1, 30, 40)


def test_bad_input_is_one_sentence():
    with pytest.raises(ValueError, match="object_probability must be 0 to 1, got 2"):
        RandCropByBoxd("image", roi_size=4, object_probability=2)
    with pytest.raises(ValueError, match="roi_size must be voxels"):
        RandCropByBoxd("image", roi_size=0)(make(2))
    item = make(2)
    item["mask"] = item["mask"][:, :5]
    with pytest.raises(ValueError, match="'mask' must have the grid"):
        RandCropByBoxd(["image", "mask"], roi_size=4)(item)
    with pytest.raises(KeyError, match="absent"):
        RandCropByBoxd("absent", roi_size=4)(make(2))
    assert RandCropByBoxd(["absent", "image"], roi_size=4, allow_missing_keys=True)(make(2))["image"].shape == (1, 4, 4)
