# SPDX-License-Identifier: Apache-2.0
"""Boxes of a processed image back in the voxels of its file."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Flipd, LoadImaged, Orientationd, Resized, Rotate90d, Spacingd, SpatialPadd
from PIL import Image

from monai_labelfx.transforms.attach_boxes import AttachBoxesd
from monai_labelfx.transforms.boxes_to_original import BoxesToOriginald
from monai_labelfx.transforms.place_boxes_on_image import PlaceBoxesOnImaged


@pytest.fixture(params=["png", "nii.gz"])
def image(request, tmp_path):
    path = tmp_path / f"image.{request.param}"
    if request.param == "png":
        Image.fromarray(np.arange(30 * 20, dtype=np.uint8).reshape(30, 20)).save(path)  # 20 wide, 30 high
        return str(path), [[2.0, 3, 9, 27], [0, 0, 20, 30], [15, 20, 18, 22]]
    affine = np.diag([-1.5, 2, -4, 1])
    affine[:3, 3] = 10, -30, 5
    nibabel.save(nibabel.Nifti1Image(np.zeros((20, 30, 12), np.float32), affine), path)
    return str(path), [[2.0, 3, 1, 9, 27, 8], [0, 0, 0, 20, 30, 12], [15, 20, 3, 18, 22, 4]]


def chain(ndim: int, lazy: bool) -> Compose:
    steps = [
        LoadImaged("image", ensure_channel_first=True),
        AttachBoxesd(),
        Flipd("image", 0),
        Resized("image", (60, 60, 24)[:ndim], mode="nearest"),
        Rotate90d("image", 1, (0, 1)),
        SpatialPadd("image", (80, 64, 40)[:ndim]),
    ]
    steps += [Orientationd("image", "PIR", labels=None), Spacingd("image", (1, 2, 3))] if ndim == 3 else []
    return Compose([*steps, PlaceBoxesOnImaged()], lazy=lazy)


@pytest.mark.parametrize("lazy", [False, True])
def test_there_and_back_through_files(image, lazy):
    path, boxes = image
    ndim = len(boxes[0]) // 2
    item = chain(ndim, lazy)({"image": path, "box": boxes, "box_label": [0, 1, 2]})
    moved = item["box"].as_subclass(torch.Tensor)
    assert not torch.allclose(moved, torch.tensor(boxes), atol=1)
    beside = torch.tensor([[-9.0] * ndim + [-8.0] * ndim])
    for given in (torch.cat((moved, beside)), torch.cat((moved, beside)).numpy(), item["box"]):
        number = len(given)
        labels = {"box_label": torch.arange(number), "scores": np.linspace(0, 1, number)}
        out = BoxesToOriginald("box", label_keys=("box_label", "scores"))(item | labels | {"box": given})
        found = out["box"].as_subclass(torch.Tensor)
        torch.testing.assert_close(found, torch.tensor(boxes), rtol=0, atol=1e-3)
        assert out["box_label"].tolist() == [0, 1, 2] and len(out["scores"]) == 3
        assert out["box"].meta["spatial_shape"] == (20, 30, 12)[:ndim]
    assert item["box"] is not out["box"] and torch.equal(item["box"].as_subclass(torch.Tensor), moved)


def test_pending_operations_count_as_done():
    image = MetaTensor(torch.zeros(1, 20, 30), affine=torch.eye(4), meta={"spatial_shape": [20, 30]})
    moved = Rotate90d("image", 1, (0, 1), lazy=True)(Flipd("image", 0, lazy=True)({"image": image}))
    done = Rotate90d("image", 1, (0, 1))(Flipd("image", 0)({"image": image}))
    boxes = {"box": torch.tensor([[1.0, 2, 5, 9], [20, 10, 29, 20]])}
    found = [BoxesToOriginald(label_keys=())(one | boxes)["box"].tolist() for one in (moved, done)]
    assert moved["image"].pending_operations and found[0] == found[1] != boxes["box"].tolist()


def test_what_reaches_out_is_cut_and_small_rests_are_dropped():
    image = MetaTensor(torch.zeros(1, 20, 20), affine=torch.eye(4), meta={"spatial_shape": [10, 10]})
    image.affine[:2, 3] = -5.0  # padded by 5 on each side
    item = {
        "image": image,
        "box": torch.tensor([[0.0, 0, 10, 10], [5, 5, 25, 25], [4, 4, 6, 6]]),
        "box_label": [0, 1, 2],
    }
    out = BoxesToOriginald()(item)
    assert out["box"].tolist() == [[0, 0, 5, 5], [0, 0, 10, 10], [0, 0, 1, 1]] and out["box_label"] == [0, 1, 2]
    assert BoxesToOriginald(min_visible=0.25)(item)["box_label"] == [0, 1, 2]
    assert BoxesToOriginald(min_visible=0.3)(item)["box_label"] == []
    assert BoxesToOriginald()(item | {"box": torch.zeros(0, 4), "box_label": []})["box"].shape == (0, 4)


def test_bad_input():
    boxes = torch.zeros(1, 4)
    for image in (torch.zeros(1, 4, 4), MetaTensor(torch.zeros(1, 4, 4))):
        with pytest.raises(ValueError, match="does not know its original grid"):
            BoxesToOriginald(label_keys=())({"image": image, "box": boxes})
    with pytest.raises(KeyError, match="no 'box_label'"):
        BoxesToOriginald()({"image": MetaTensor(torch.zeros(1, 4, 4)), "box": boxes})
    with pytest.raises(ValueError, match="keys must be one key"):
        BoxesToOriginald(("a", "b"))
    assert BoxesToOriginald("other", allow_missing_keys=True)({"box": boxes})["box"] is boxes
