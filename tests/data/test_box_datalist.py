# SPDX-License-Identifier: Apache-2.0
"""Boxes in a datalist: which image they belong to, what the check says of them, and class channels by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from samples import discs, write_image

from monai_labelfx.data import check_datalist, load_datalist, load_detections, save_datalist, save_detections
from monai_labelfx.data.box_datalist import add_boxes_to_datalist
from monai_labelfx.data.box_files import load_boxes
from monai_labelfx.ops.components import component_boxes


def entry(*boxes, labels=None, **more) -> dict:
    dims = len(boxes[0]) if boxes else 4
    return {
        "boxes": np.array(boxes, dtype=np.float64).reshape(len(boxes), dims),
        "labels": np.array([0] * len(boxes) if labels is None else labels, dtype=np.int64),
        **more,
    }


BOX = (0, 1, 4, 2)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_datalist_passes_its_check(tmp_path, dims):
    """Tight boxes of real images, written, read again and checked against the images."""
    shape = (20, 24, 6)[:dims]
    image, label = discs(shape)
    path = write_image(tmp_path / "images" / "a", image, "tiff" if dims == 2 else "nifti")
    boxes, _ = component_boxes(torch.as_tensor(label), instances=True)
    items = add_boxes_to_datalist([{"image": str(path)}], {path.name: entry(*boxes.tolist())})
    save_datalist(tmp_path / "datalist.json", {"training": items})
    report = check_datalist(tmp_path / "datalist.json", spatial_dims=dims)
    assert report["faults"] == [] and len(boxes) > 0
    (item,) = load_datalist(tmp_path / "datalist.json")["training"]
    assert item["box"] == boxes.tolist() and item["box_label"] == [0] * len(boxes)
    items[0]["box"][0][-1] += 100
    save_datalist(tmp_path / "datalist.json", {"training": items})
    (fault,) = check_datalist(tmp_path / "datalist.json")["faults"]
    assert "not inside the image" in fault


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("/data/images/a.png", "images/a.png"),
        ("/data/images/a.png", "a.png"),
        ("a.png", "images/a.png"),
        ("./images/../images/a.png", "images/a.png"),
        ("series/a", "series/a/"),
        (["x/a.png", "x/b.png"], "a.png"),
    ],
)
def test_names_and_images_meet_at_the_end_of_their_paths(image, name):
    (item,) = add_boxes_to_datalist([{"image": image, "label": "l.png"}], {name: entry(BOX), "x/zz.png": entry()})
    assert item == {"image": image, "label": "l.png", "box": [[0.0, 1.0, 4.0, 2.0]], "box_label": [0]}
    assert all(type(value) is float for value in item["box"][0]) and type(item["box_label"][0]) is int


def test_other_images_do_not_meet():
    for image, name in (("images/a.png", "labels/a.png"), ("xa.png", "a.png"), ("a.png", "b.png")):
        with pytest.raises(ValueError, match="has no boxes entry.*allow_missing"):
            add_boxes_to_datalist([{"image": image}], {name: entry(BOX)})


def test_no_object_is_not_the_same_as_not_looked_at():
    items = [{"image": "a.png"}, {"image": "b.png"}]
    result = add_boxes_to_datalist(items, {"a.png": entry()}, allow_missing=True)
    assert result == [{"image": "a.png", "box": [], "box_label": []}, {"image": "b.png"}]
    assert items == [{"image": "a.png"}, {"image": "b.png"}], "the given items are not edited"


def test_class_channels_by_name():
    first = entry(BOX, BOX, labels=[1, 90], names={1: "right_lung", 90: "left_lung"})
    second = entry(BOX, labels=[5], names={5: "right_lung"})
    boxes = {"a.png": first, "b.png": second}
    items = [{"image": "a.png"}, {"image": "b.png"}]
    result = add_boxes_to_datalist(items, boxes, classes=["left_lung", "right_lung"])
    assert [item["box_label"] for item in result] == [[1, 0], [1]]
    assert [item["box_label"] for item in add_boxes_to_datalist(items, boxes)] == [[1, 90], [5]]
    with pytest.raises(
        ValueError, match=r"'a.png' hold the unknown classes \['right_lung'\], expected \['left_lung'\]"
    ):
        add_boxes_to_datalist(items, boxes, classes=["left_lung"])
    with pytest.raises(ValueError, match=r"unknown classes \['label 3'\]"):
        add_boxes_to_datalist([{"image": "a.png"}], {"a.png": entry(BOX, labels=[3])}, classes=["left_lung"])


def test_detections_of_one_image_are_boxes_too(tmp_path):
    path = save_detections(tmp_path / "a.json", [BOX], labels=[3], scores=[0.5], affine=np.eye(4), names={3: "x"})
    (item,) = add_boxes_to_datalist([{"image": "a.png"}], {"a.png": load_detections(path)}, classes=["x"])
    assert item["box"] == [list(BOX)] and item["box_label"] == [0]


@pytest.mark.parametrize(
    ("items", "boxes", "message"),
    [
        ([{"label": "a.png"}], {}, "must have an image path under 'image', found None"),
        ([{"image": []}], {}, r"must have an image path under 'image', found \[\]"),
        ([{"image": "x/a.png"}], {"a.png": entry(), "x/a.png": entry()}, "several boxes entries: 'a.png', 'x/a.png'"),
        (
            [{"image": "x/a.png"}, {"image": "y/a.png"}],
            {"a.png": entry()},
            "'a.png' belong to several images: 'x/a.png'",
        ),
        ([{"image": "a.png"}], {"a.png": entry((4, 0, 0, 1))}, r"hold an unusable one, \[4.0, 0.0, 0.0, 1.0\]"),
        ([{"image": "a.png"}], {"a.png": entry((0, 0, np.nan, 1))}, "hold an unusable one"),
        ([{"image": "a.png"}], {"a.png": entry((0, 0, 0, 1))}, "hold an unusable one"),
        ([{"image": "a.png"}], {"a.png": entry((0, 0, 4, np.inf))}, "hold an unusable one"),
        ([{"image": "a.png"}], {"a.png": entry((0, 0, 1))}, r"must be \(N, 4\) or \(N, 6\)"),
        ([{"image": "a.png"}], {"a.png": entry(BOX, labels=[])}, r"got \(1, 4\) and \(0,\)"),
        ([{"image": "a.png"}], {"a.png": entry(labels=[1])}, r"got \(0, 4\) and \(1,\)"),
        ([{"image": "a.png"}], {"a.png": {"boxes": [BOX], "labels": [0.5]}}, "whole numbers, got float64"),
    ],
)
def test_errors_say_what_is_wrong(items, boxes, message):
    with pytest.raises(ValueError, match=message) as caught:
        add_boxes_to_datalist(items, boxes)
    assert "\n" not in str(caught.value)


@pytest.mark.sample_data
def test_real_chest_x_rays(tmp_path, sample_data):
    boxes = load_boxes(sample_data / "cxr" / "lungs_boxes.coco.json")
    items = [{"image": str(sample_data / "cxr" / name)} for name in list(boxes)[:4]]
    items = add_boxes_to_datalist(items, boxes, classes=["right_lung", "left_lung"])
    save_datalist(tmp_path / "datalist.json", {"training": items})
    assert check_datalist(tmp_path / "datalist.json", spatial_dims=2)["faults"] == []
    assert all(sorted(item["box_label"]) == [0, 1] for item in items)
    for item in items:
        left = dict(zip(item["box_label"], item["box"], strict=True))
        assert left[0][0] < left[1][0], "the patient's right is seen at the left, so x comes first"
