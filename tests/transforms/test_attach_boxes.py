# SPDX-License-Identifier: Apache-2.0
"""Boxes of items as tensors that know their grid."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Flipd

from monai_labelfx.ops.box_affine import boxes_to_world
from monai_labelfx.transforms.attach_boxes import AttachBoxesd
from monai_labelfx.transforms.place_boxes_on_image import PlaceBoxesOnImaged


def image_of(ndim: int) -> MetaTensor:
    affine = torch.diag(torch.tensor([-2.0, 3.0, -1.5, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([7.0, -3.0, 11.0])
    meta = {"filename_or_obj": "folder/a.nii.gz", "original_affine": affine.numpy().copy()}
    return MetaTensor(torch.zeros(1, *(12, 10, 8)[:ndim]), affine=affine, meta=meta)


BOXES = {2: [[1, 2, 4, 9.5], [0, 0, 12, 10]], 3: [[1, 2, 3, 4, 9.5, 8], [0, 0, 0, 12, 10, 8]]}


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("kind", [list, np.asarray, torch.as_tensor])
def test_lists_become_tensors_and_the_item_stays(ndim, kind):
    item = {"image": image_of(ndim), "box": kind(BOXES[ndim]), "box_label": kind([2, 0]), "case": "a"}
    before = copy.deepcopy({key: item[key] for key in ("box", "box_label")})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = AttachBoxesd(num_classes=3)(item)
    assert out["box"].dtype == torch.float32 and out["box_label"].dtype == torch.int64 and out["case"] == "a"
    assert out["box"].tolist() == BOXES[ndim] and out["box_label"].tolist() == [2, 0]
    assert (
        torch.equal(out["box"].affine, item["image"].affine) and out["box"].meta["spatial_shape"] == (12, 10, 8)[:ndim]
    )
    assert not isinstance(out["box_label"], MetaTensor)
    assert all(np.array_equal(np.asarray(item[key]), np.asarray(before[key])) for key in before)


@pytest.mark.parametrize("ndim", [2, 3])
def test_no_boxes_in_every_way(ndim):
    for item in ({"box": [], "box_label": []}, {"box": []}, {"box": np.zeros((0, 2 * ndim)), "box_label": None}):
        out = AttachBoxesd()({"image": image_of(ndim), **item})
        assert out["box"].shape == (0, 2 * ndim) and out["box_label"].shape == (0,)
        assert out["box_label"].dtype == torch.int64 and isinstance(out["box"], MetaTensor)
        assert PlaceBoxesOnImaged()(out)["box"].shape == (0, 2 * ndim)
    plain = AttachBoxesd()({"image": torch.zeros(1, 4, 4), "box": [[0, 0, 1, 1]], "box_label": [0]})
    assert type(plain["box"]) is torch.Tensor


def test_odd_boxes_are_dropped_counted_and_named():
    nan, inf = float("nan"), float("inf")
    boxes = [
        [1, 2, 4, 9.5],
        [3, 3, 3, 8],  # without volume
        [4, 4, 2, 8],  # inverted
        [12, 0, 15, 4],  # beside the image
        [-5, -5, 0, 3],
        [nan, 0, 1, 1],
        [0, 0, inf, 1],
        [-2, -2, 3, 40],  # reaches out
    ]
    item = {"image": image_of(2), "box": boxes, "box_label": list(range(8))}
    with pytest.warns(UserWarning) as caught:
        out = AttachBoxesd()(item)
    assert [str(one.message) for one in caught] == [
        "image 'folder/a.nii.gz': dropped 6 of 8 boxes "
        "(2 not finite, 2 without volume or inverted, 2 outside the image)."
    ]
    assert out["box"].tolist() == [[1, 2, 4, 9.5], [0, 0, 3, 10]] and out["box_label"].tolist() == [0, 7]


@pytest.mark.parametrize("ndim", [2, 3])
def test_boxes_in_mm(ndim):
    image = image_of(ndim)
    voxels = torch.tensor(BOXES[ndim], dtype=torch.float64)
    world = boxes_to_world(voxels, image.affine)
    turned = torch.cat((world[:1, ndim:], world[:1, :ndim]), 1)
    item = {"image": image, "box": torch.cat((world, turned)).tolist(), "box_label": [0, 1, 2]}
    attach = AttachBoxesd(mode="world")
    with pytest.warns(UserWarning, match="dropped 1 of 3 boxes .1 without volume or inverted"):
        out = attach(item)
    torch.testing.assert_close(out["box"].as_subclass(torch.Tensor).double(), voxels, rtol=0, atol=1e-5)
    moved = Compose([Flipd("image", (0, 1))])(item)
    with pytest.warns(UserWarning, match="dropped 1"):
        late = attach(moved)["box"].as_subclass(torch.Tensor)
        early = Compose([attach, Flipd("image", (0, 1)), PlaceBoxesOnImaged()])(item)["box"]
    torch.testing.assert_close(late, early.as_subclass(torch.Tensor), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="need the affine"):
        attach({"image": torch.zeros(1, *image.shape[1:]), "box": world.tolist(), "box_label": [0, 1]})


def test_an_inverted_box_in_mm_is_not_straightened_by_an_oblique_affine():
    affine = torch.tensor([[1.0, 0.9, 0, 0], [-0.9, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    item = {"image": MetaTensor(torch.zeros(1, 30, 30), affine=affine), "box": [[9.0, 4, 8, 12]], "box_label": [0]}
    with pytest.warns(UserWarning, match="1 without volume or inverted"):
        assert len(AttachBoxesd(mode="world")(item)["box"]) == 0


@pytest.mark.parametrize("ndim", [2, 3])
def test_boxes_of_label_maps(ndim):
    image = image_of(ndim)
    label = torch.zeros_like(image)
    label[0, 1:3, 2:4], label[0, 6:9, 5:6], label[0, 0, 9] = 4, 1, 4
    rest = [slice(None)] * (ndim - 2)
    ends = [8] * (ndim - 2)
    zeros = [0.0] * (ndim - 2)
    assert label[(0, 1, 2, *rest)].eq(4).all()
    first, second = [6.0, 5.0, *zeros, 9.0, 6.0, *ends], [0.0, 2.0, *zeros, 3.0, 10.0, *ends]
    item = {"image": image, "label": label}
    out = AttachBoxesd(mask_key="label")(item | {"box_label": [1, 0]})  # class of each number, by rank
    assert out["box"].tolist() == [first, second] and out["box_label"].tolist() == [1, 0]
    assert AttachBoxesd(mask_key="label")(item)["box_label"].tolist() == [0, 0]
    out = AttachBoxesd(mask_key="label", mask_kind="classes")(item)
    assert out["box_label"].tolist() == [0, 3, 3] and out["box"].tolist()[0] == first
    assert len(AttachBoxesd(mask_key="label", mask_kind="classes", min_size=2 * 8 ** (ndim - 2))(item)["box"]) == 2
    own = AttachBoxesd(mask_key="label")(item | {"box": [], "box_label": []})
    assert len(own["box"]) == 0  # the item's own boxes go first, even if there are none
    with pytest.raises(ValueError, match="for each of 2 boxes, got"):
        AttachBoxesd(mask_key="label")(item | {"box_label": [1]})
    with pytest.raises(ValueError, match="label of image 'folder/a.nii.gz' must have the grid"):
        AttachBoxesd(mask_key="label")(item | {"label": label[:, 1:]})


def test_bad_input():
    image = image_of(2)

    def refused(match: str, item: dict, error: type[Exception] = ValueError, **keywords) -> None:
        with pytest.raises(error, match=match) as caught:
            AttachBoxesd(**keywords)({"image": image, **item})
        assert "\n" not in str(caught.value)

    one = {"box": [[0, 0, 1, 1]]}
    refused("1 boxes and no 'box_label'", one, KeyError)
    assert AttachBoxesd(num_classes=1)({"image": image, **one})["box_label"].tolist() == [0]
    refused("whole number for each of 1 boxes, got int64", one | {"box_label": [0, 1]})
    refused("whole number for each of 1 boxes, got float64", one | {"box_label": [0.5]})
    refused("'folder/a.nii.gz' must be classes of 0 to 1, got 2 for box 0", one | {"box_label": [2]}, num_classes=2)
    refused("classes of 0 or above, got -1", one | {"box_label": [-1]})
    refused(r"4 numbers each .*, got the shape \(1, 6\)", {"box": [[0] * 6], "box_label": [0]})
    refused("must be lists of 4 numbers", {"box": [[0, 0, 1, 1], [0]], "box_label": [0, 1]})
    refused(
        "moved since it was loaded", one | {"image": Flipd("image", 0)({"image": image})["image"], "box_label": [0]}
    )
    refused("mode must be one of 'voxel', 'world', got 'mm'", one, mode="mm")
    refused("num_classes must be", one, num_classes=0)
    refused("keys must be one key", one, keys=("a", "b"))
    with pytest.raises(KeyError, match="no 'image'"):
        AttachBoxesd()(one)
    assert AttachBoxesd(allow_missing_keys=True)(one) == one


@pytest.mark.parametrize("item", [{}, {"box": None}, {"box_label": [0]}])
def test_an_image_that_nobody_looked_at_is_not_empty(item):
    image = MetaTensor(torch.zeros(1, 8, 8), meta={"filename_or_obj": "/somewhere/film.png"})
    with pytest.raises(KeyError, match=r"film.png' has no 'box' or label map 'label': nobody has looked at it"):
        AttachBoxesd(mask_key="label")({"image": image, **item})
    left = AttachBoxesd(allow_missing_boxes=True)({"image": image, **item})
    assert left.keys() == {"image", *item}
