# SPDX-License-Identifier: Apache-2.0
"""Label maps of items: numbers, classes, volumes, listed boxes, and what is refused."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, MetaTensor, set_track_meta
from monai.transforms import Flip, Randomizable

from monai_labelfx.transforms.attach_instances import AttachInstancesd

AFFINE = torch.diag(torch.tensor([-2.0, 3.0, -1.5, 1.0], dtype=torch.float64))


def item_of(ndim: int, **more) -> dict:
    """Two overlapping objects in two channels, gaps in the numbers: 9 voxels of class 2, 4 of class 0, 2 of class 1."""
    affine = AFFINE.clone()
    meta = {"filename_or_obj": "folder/a.nii.gz", "original_affine": affine.numpy().copy()}
    image = MetaTensor(torch.zeros(1, *(8, 9, 3)[:ndim]), affine=affine, meta=meta)
    label = torch.zeros(2, *image.shape[1:])
    label[0, 1:4, 1:4], label[0, 6:8, 5:7], label[1, 3, 3:5] = 4, 11, 3
    label = MetaTensor(label, affine=affine, meta={"filename_or_obj": "folder/label.nii.gz", "space": "RAS"})
    return {"image": image, "label": label, "box_label": [2, 0, 1], "case": "a"} | more


BOXES = {
    2: [[1, 1, 4, 4], [6, 5, 8, 7], [3, 3, 4, 5]],
    3: [[1, 1, 0, 4, 4, 3], [6, 5, 0, 8, 7, 3], [3, 3, 0, 4, 5, 3]],
}


@pytest.mark.parametrize("ndim", [2, 3])
def test_numbers_classes_volumes_and_the_item_stays(ndim):
    item = item_of(ndim, box=BOXES[ndim])
    before = copy.deepcopy(item)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = AttachInstancesd(num_classes=3)(item)
    label = out["label"]
    assert label.dtype == torch.int32 and out["box_label"].dtype == torch.int64 and out["case"] == "a"
    assert sorted(out) == ["box_label", "case", "image", "label"], "listed boxes go: the masks give them"
    whole = before["label"].as_tensor()
    assert torch.equal(label.as_tensor(), (1 * (whole == 4) + 2 * (whole == 11) + 3 * (whole == 3)).int())
    assert out["box_label"].tolist() == [2, 0, 1] and type(out["box_label"]) is torch.Tensor
    assert torch.equal(label.affine, AFFINE) and label.meta["space"] == "RAS"
    voxel = 6 if ndim == 2 else 27  # mm^2; 3 voxels of 9 mm^3 deep
    assert label.meta["instance_volumes"] == pytest.approx([9 * voxel, 4 * voxel, 2 * voxel])
    assert item.keys() == before.keys() and torch.equal(item["label"], before["label"])
    assert item["label"].meta.keys() == before["label"].meta.keys() and item["box_label"] == [2, 0, 1]


@pytest.mark.parametrize("ndim", [2, 3])
def test_containers_and_types_agree(ndim):
    item = item_of(ndim)
    wanted = AttachInstancesd()(item)
    plain = item["label"].as_tensor()
    for label in (plain, plain.numpy(), plain.short(), plain.double().numpy(), plain.numpy().astype(np.uint8)):
        for classes in ([2, 0, 1], np.array([2, 0, 1], np.uint8), torch.tensor([2, 0, 1])):
            out = AttachInstancesd()(item | {"label": label, "box_label": classes})
            assert torch.equal(out["label"].as_tensor(), wanted["label"].as_tensor())
            assert torch.equal(out["label"].affine, AFFINE), "a map without affine lies on the grid of the image"
            assert out["box_label"].tolist() == [2, 0, 1] and out["label"].meta["instance_volumes"]
    out = AttachInstancesd()(item | {"image": torch.zeros(item["image"].shape), "label": plain})
    assert torch.equal(out["label"].affine, torch.eye(4, dtype=torch.float64))
    try:
        set_track_meta(False)
        out = AttachInstancesd()(item | {"label": plain})
    finally:
        set_track_meta(True)
    assert type(out["label"]) is torch.Tensor and torch.equal(out["label"], wanted["label"].as_tensor())


@pytest.mark.parametrize("ndim", [2, 3])
def test_kinds(ndim):
    item = item_of(ndim)
    del item["box_label"]
    out = AttachInstancesd()(item)
    assert out["box_label"].tolist() == [0, 0, 1], "without a list, the channels"
    first = item["label"][:1]
    first[0, 0, 8] = 4
    out = AttachInstancesd(kind="classes")(item | {"label": first, "box_label": [7, 7]})
    assert out["box_label"].tolist() == [3, 3, 10] and out["label"].unique().tolist() == [0, 1, 2, 3]
    assert out["label"][(0, 0, 8, *[0] * (ndim - 2))] == 1, "in scan order"
    out = AttachInstancesd(kind="masks")(item | {"label": torch.cat([first, item["label"][1:]]) > 0})
    assert out["box_label"].tolist() == [0, 0, 0, 1] and out["label"][1].max() == 4


@pytest.mark.parametrize("ndim", [2, 3])
def test_images_without_objects(ndim):
    item = item_of(ndim)
    for change in (
        {"label": 0 * item["label"][:1]},
        {"label": None, "box": []},
        {"label": None, "box": torch.zeros(0, 4)},
    ):
        for classes in ([], None, torch.zeros(0)):
            out = AttachInstancesd()(item | change | {"box_label": classes})
            assert out["label"].shape == (1, *item["image"].shape[1:]) and out["label"].dtype == torch.int32
            assert not out["label"].any() and torch.equal(out["label"].affine, AFFINE) and "box" not in out
            assert out["box_label"].shape == (0,) and out["box_label"].dtype == torch.int64
            assert out["label"].meta["instance_volumes"] == []
    with pytest.raises(
        KeyError, match=r"'folder/a.nii.gz' has no label map 'label': masks are needed; an image without"
    ):
        AttachInstancesd()(item | {"label": None, "box": BOXES[ndim]})
    item.pop("label")
    with pytest.raises(KeyError, match="masks are needed"):
        AttachInstancesd()(item)
    allowing = AttachInstancesd(allow_missing_keys=True)
    assert allowing(item) == item and allowing({"label": 1}) == {"label": 1}
    assert not allowing(item | {"box": [], "box_label": []})["label"].any(), "looked at, and nothing found"
    with pytest.raises(KeyError, match="no 'image'"):
        AttachInstancesd()({"label": 1})


@pytest.mark.parametrize("ndim", [2, 3])
def test_small_objects_become_background_with_one_warning(ndim):
    deep = 1 if ndim == 2 else 3
    with pytest.warns(UserWarning) as caught:
        out = AttachInstancesd(min_size=4 * deep + 1)(item_of(ndim, box=BOXES[ndim]))
    assert [str(one.message) for one in caught] == [
        f"image 'folder/a.nii.gz': dropped 2 of 3 objects (smaller than {4 * deep + 1} voxels)."
    ]
    assert out["label"].unique().tolist() == [0, 1] and out["box_label"].tolist() == [2]
    assert len(out["label"].meta["instance_volumes"]) == 1 and out["label"].sum() == 9 * deep
    with pytest.warns(UserWarning, match="dropped 1 of 3"):
        out = AttachInstancesd(min_size=4 * deep)(item_of(ndim))
    assert out["box_label"].tolist() == [2, 0] and (out["label"] == 2).sum() == 4 * deep
    item = item_of(ndim, box_label=[1, 2, 0])
    with pytest.warns(UserWarning, match="dropped 1 of 3"):
        out = AttachInstancesd(min_size=4 * deep)(item | {"label": item["label"].flip(0)})
    assert out["box_label"].tolist() == [2, 0] and (out["label"] == 1).sum() == 9 * deep


@pytest.mark.parametrize("ndim", [2, 3])
def test_listed_boxes_must_be_those_of_the_masks(ndim):
    within = np.array(BOXES[ndim], float) + [[-1, 0.5] * ndim]
    for boxes in (within, within.tolist(), torch.from_numpy(within)):
        AttachInstancesd()(item_of(ndim, box=boxes))
    loose = within.copy()
    loose[1, 0] -= 0.1
    rest = [0.0] * (ndim - 2)
    text = r"box of image 'folder/a.nii.gz' must lie within 1 voxels of the masks, got \[4.9, .*\] for object 2, whose "
    with pytest.raises(ValueError, match=text + rf"mask has the box \{[6.0, 5.0, *rest, 8.0, 7.0]}"[:-1]):
        AttachInstancesd()(item_of(ndim, box=loose))
    AttachInstancesd(tolerance=1.2)(item_of(ndim, box=loose))
    AttachInstancesd(tolerance=None)(item_of(ndim, box=loose[:1]))
    reaching = np.array(BOXES[ndim], float)
    reaching[1, ndim] = 50
    AttachInstancesd(tolerance=0)(item_of(ndim, box=reaching))  # cut at the image
    for wrong, match in (
        (
            BOXES[ndim][:2],
            rf"box of image .* must be {2 * ndim} numbers for each of 3 objects of 'label', got the shape",
        ),
        ([[0] * 5] * 3, r"got the shape \(3, 5\)"),
        ([], rf"got the shape \(0, {2 * ndim}\)"),
        ([[0], [1, 2]], "must be lists of numbers"),
        (np.array(BOXES[ndim]) + np.nan, r"got \[nan"),
        (BOXES[ndim][::-1], "for object 1"),
    ):
        with pytest.raises(ValueError, match=match) as caught:
            AttachInstancesd()(item_of(ndim, box=wrong))
        assert "\n" not in str(caught.value)
    moved = item_of(ndim, box=BOXES[ndim])
    moved |= {"image": Flip(0)(moved["image"]), "label": Flip(0)(moved["label"])}
    with pytest.raises(ValueError, match="moved since it was loaded, .*: put AttachInstancesd directly behind loading"):
        AttachInstancesd()(moved)


@pytest.mark.parametrize("ndim", [2, 3])
def test_boxes_of_components_are_listed_in_any_order(ndim):
    attach = AttachInstancesd(kind="classes")
    item = item_of(ndim)
    item["label"] = (item["label"][:1] > 0) * 1.0
    boxes, classes = [BOXES[ndim][1], BOXES[ndim][0]], {"box_label": [0, 0]}
    assert attach(item | classes | {"box": boxes})["box_label"].tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"within 1 voxels of the masks, got \[6.0, .* for object 1|for object 2"):
        attach(item | classes | {"box": [BOXES[ndim][1]] * 2})
    with pytest.raises(ValueError, match="must agree with 'label', got class 3 for the box of object 2, .* of class 0"):
        attach(item | {"box": boxes, "box_label": [3, 0]})
    twice = torch.cat([item["label"], item["label"]])  # each object in both channels, of two classes
    both = {"label": twice, "box": boxes * 2, "box_label": [1, 1, 0, 0]}
    assert AttachInstancesd(kind="masks")(item | both)["box_label"].tolist() == [0, 0, 1, 1]


def test_boxes_that_fit_are_found_where_the_nearest_ones_do_not():
    label = torch.zeros(2, 12, 12)
    label[0, 4:7, 4:7] = label[1, 5:8, 4:7] = 1
    item = {"image": torch.zeros(1, 12, 12), "label": label, "box": [[4, 4, 7, 7], [3.5, 4.9, 6.5, 7.9]]}
    AttachInstancesd(kind="masks", tolerance=1)(item)  # the other way round: 0 and 1.5 voxels, a smaller sum
    with pytest.raises(ValueError, match="within 0.9 voxels"):
        AttachInstancesd(kind="masks", tolerance=0.9)(item)


def test_bad_input():
    def refused(match: str, error: type[Exception] = ValueError, keywords=None, **change) -> None:
        with pytest.raises(error, match=match) as caught:
            AttachInstancesd(**(keywords or {}))(item_of(2, **change))
        assert "\n" not in str(caught.value)

    label = item_of(2)["label"]
    refused(r"whole number for each of 3 objects of 'label', got int64 of the shape \(2,\)", box_label=[0, 1])
    refused("for each of 3 objects of 'label', got float64", box_label=[0, 1, 0.5])
    refused("a.nii.gz' must have objects of the classes 0 to 1, got 2 for object 1", keywords={"num_classes": 2})
    refused("classes 0 to 0, got 1 for object 3", keywords={"num_classes": 1}, box_label=None)
    refused("classes 0 or above, got -1 for object 2", box_label=[0, -1, 0])
    refused("label of image 'folder/a.nii.gz' must hold whole numbers", label=label * 0.5)
    refused("label of image 'folder/a.nii.gz' must hold whole numbers", label=label * torch.nan)
    refused("must hold 0 .background. and positive labels, got -11", label=-label)
    refused(r"must have the grid of the image \(8, 9\), got \(7, 9\)", label=label[:, 1:])
    refused(r"must have the grid of the image \(8, 9\), got the same with another affine", label=Flip(0)(label))
    refused(r"shape \(C, \*spatial\) and 2 spatial axes, got \(8, 9\)", label=label[0])
    refused(r"shape \(C, \*spatial\) and 2 spatial axes, got \(0, 8, 9\)", label=label[:0])
    refused(r"shape \(1, \*spatial\)", keywords={"kind": "classes"})
    refused("pending operations: call AttachInstancesd in a Compose", label=Flip(0, lazy=True)(label))
    refused(
        "numbers up to 16777230, and torch.float32 tells neighbours apart up to 16777216 only", label=label + 2**24 + 2
    )
    refused("torch.float16 tells neighbours apart up to 2048 only", label=label.half() + 4096)
    refused("kind must be one of", keywords={"kind": "boxes"})
    refused("min_size must be a number of voxels, 0 or above, got -1", keywords={"min_size": -1})
    refused("num_classes must be", keywords={"num_classes": 0})
    refused("tolerance must be voxels, 0 or above, or None to compare nothing, got nan", keywords={"tolerance": np.nan})
    refused("keys must be one key", keywords={"keys": ("a", "b")})


def test_numbers_beyond_the_type_become_small():
    label = item_of(2)["label"].as_tensor().to(torch.int64)
    label[label == 11] = 2**40
    out = AttachInstancesd()(item_of(2, label=label))
    assert out["label"].unique().tolist() == [0, 1, 2, 3] and out["label"].dtype == torch.int32


def test_cached_and_pickled():
    attach = pickle.loads(pickle.dumps(AttachInstancesd(min_size=1)))
    assert not isinstance(attach, Randomizable)
    out = CacheDataset([item_of(3)], attach, progress=False)[0]
    assert torch.equal(out["label"], attach(item_of(3))["label"])
