# SPDX-License-Identifier: Apache-2.0
"""Boxes of pictures as COCO JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from monai_labelfx.data.box_files import load_boxes
from monai_labelfx.data.coco_json import load_coco
from monai_labelfx.data.coco_writer import save_coco_dataset, save_coco_detections
from monai_labelfx.ops.run_length import decode_run_lengths

BOXES = [[1.5, 2.0, 4.0, 8.25], [0.0, 0.0, 20.0, 30.0]]


def items_of(folder) -> list[dict]:
    return [
        {"image": str(folder / "a.png"), "box": BOXES, "box_label": [1, 0], "image_id": 4, "subject": "p"},
        {"image": str(folder / "sub" / "b.png"), "box": [], "box_label": [], "image_id": 9},
    ]


@pytest.mark.parametrize("category_ids", [None, [7, 9]])
def test_a_data_set_comes_back(tmp_path, category_ids):
    items = items_of(tmp_path)
    shapes = [(20, 30), (5, 6)]
    path = save_coco_dataset(tmp_path / "x" / "boxes.json", items, ["a", "b"], shapes=shapes, category_ids=category_ids)
    found = load_coco(path)
    assert found.items == items and found.class_names == ["a", "b"] and found.category_ids == (category_ids or [1, 2])
    document = json.loads(path.read_text())
    assert document["images"][1]["file_name"] == "../sub/b.png" and document["images"][0]["height"] == 30
    assert [one["id"] for one in document["annotations"]] == [1, 2] and document["annotations"][0]["area"] == 2.5 * 6.25
    assert load_boxes(path)["../a.png"]["boxes"].tolist() == BOXES  # the strict reader agrees
    rooted = save_coco_dataset(tmp_path / "boxes.json", items, ["a", "b"], image_root=tmp_path / "sub")
    assert json.loads(rooted.read_text())["images"][1] == {"id": 9, "file_name": "b.png"}


def test_numbers_without_ids(tmp_path):
    items = [{"image": "a.png"}, {"image": "b.png", "box": np.asarray(BOXES), "box_label": torch.tensor([0, 0])}]
    document = json.loads(save_coco_dataset(tmp_path / "boxes.json", items, ["a"]).read_text())
    assert [image["id"] for image in document["images"]] == [1, 2]
    assert [one["image_id"] for one in document["annotations"]] == [2, 2]


def test_detections(tmp_path):
    found = {"boxes": torch.tensor(BOXES), "labels": torch.tensor([1, 0]), "scores": torch.tensor([0.5, 0.25])}
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    path = save_coco_detections(tmp_path / "x" / "found.json", [nothing, found], [5, 3], category_ids=[2, 40])
    assert json.loads(path.read_text()) == [
        {"image_id": 3, "category_id": 40, "bbox": [1.5, 2.0, 2.5, 6.25], "score": 0.5},
        {"image_id": 3, "category_id": 2, "bbox": [0.0, 0.0, 20.0, 30.0], "score": 0.25},
    ]
    plain = {key: value.numpy() for key, value in found.items()}
    rows = json.loads(save_coco_detections(tmp_path / "plain.json", [plain], ["name"]).read_text())
    assert [row["category_id"] for row in rows] == [2, 1] and rows[0]["image_id"] == "name"
    assert json.loads(save_coco_detections(tmp_path / "no.json", [], []).read_text()) == []


def test_masks_come_back(tmp_path):
    shapes, generator = [(20, 30), (5, 6)], np.random.default_rng(0)
    masks = generator.random((2, 20, 30)) < 0.3
    items = items_of(tmp_path)
    items[0] |= {"box": [[0.0, 0.0, 20.0, 30.0]] * 2, "masks": torch.from_numpy(masks)}
    path = save_coco_dataset(tmp_path / "masks.json", items, ["a", "b"], shapes=shapes)
    rows = json.loads(path.read_text())["annotations"]
    assert [row["area"] for row in rows] == masks.sum((1, 2)).tolist()
    found = load_coco(path, masks=True)
    assert np.array_equal(decode_run_lengths(found.items[0]["segmentation"]).numpy(), masks)
    assert found.items[1]["segmentation"] == [] and found.items[0]["box"] == items[0]["box"]
    again = save_coco_dataset(tmp_path / "again.json", found.items, found.class_names, shapes=found.shapes)
    assert again.read_text() == path.read_text()
    with pytest.raises(ValueError, match="masks of image 4 must be one for each of 1 boxes, got 2"):
        save_coco_dataset(tmp_path / "no.json", [items[0] | {"box": BOXES[:1], "box_label": [0]}], ["a"])


def test_masks_of_detections(tmp_path):
    found = {"boxes": torch.tensor(BOXES), "labels": torch.tensor([1, 0]), "scores": torch.tensor([0.5, 0.25])}
    masks = torch.zeros(2, 20, 30, dtype=torch.bool)
    masks[0, 1:3, 4:7] = masks[1, 3:, 2:28] = True
    plain = save_coco_detections(tmp_path / "plain.json", [found], [5])
    whole = save_coco_detections(tmp_path / "whole.json", [found | {"masks": masks}], [5])
    rows = json.loads(whole.read_text())
    assert torch.equal(decode_run_lengths([row.pop("segmentation") for row in rows]), masks)
    assert rows == json.loads(plain.read_text())
    crops = {"masks": [masks[0, 1:4, 2:9], masks[1]]}
    cut = save_coco_detections(tmp_path / "cut.json", [found | crops], [5], shapes=[(20, 30)])
    assert cut.read_text() == whole.read_text()
    with pytest.raises(ValueError, match="masks of image 5 are crops and need the size of the image: give shapes"):
        save_coco_detections(tmp_path / "no.json", [found | crops], [5])
    with pytest.raises(ValueError, match="shapes must be one .x, y. for each of 1 images, got 2"):
        save_coco_detections(tmp_path / "no.json", [found], [5], shapes=[(20, 30)] * 2)


def test_bad_input_writes_nothing(tmp_path):
    found = {"boxes": np.array(BOXES), "labels": np.array([1, 0]), "scores": np.array([0.5, 0.2])}

    def refused(match: str, changes: dict | None = None, ids=(3,), **keywords) -> None:
        with pytest.raises(ValueError, match=match):
            save_coco_detections(
                tmp_path / "found.json", [found | (changes or {})] * len(keywords.pop("many", [1])), ids, **keywords
            )
        assert not list(tmp_path.iterdir())

    refused("one for each of 1 images, got 2", ids=(3, 4))
    refused("image ids must differ, got 3 2 times", ids=(3, 3), many=[1, 1])
    refused(r"shape \(N, 4\) in COCO, got \(2, 6\); see save_detections", {"boxes": np.zeros((2, 6))})
    refused("for each of 2 boxes, got int64 .1,. and .2,.", {"labels": np.array([1])})
    refused("for each of 2 boxes, got float64", {"labels": np.array([1.0, 0.0])})
    refused("must be finite", {"scores": np.array([np.nan, 0])})
    refused("high corner above the low one", {"boxes": np.array([BOXES[0], [4, 4, 4, 5.0]])})
    refused("labels of image 3 must be 0 to 0", category_ids=[1])
    refused("labels of image 3 must be 0", {"labels": np.array([-1, 0])})
    items = items_of(tmp_path)
    for match, keywords in (
        ("shapes must be one", {"shapes": [(1, 1)]}),
        ("category_ids must be 2 different numbers", {"category_ids": [1, 1]}),
    ):
        with pytest.raises(ValueError, match=match):
            save_coco_dataset(tmp_path / "boxes.json", items, ["a", "b"], **keywords)
    with pytest.raises(ValueError, match="labels of image 4 must be 0 to 0"):
        save_coco_dataset(tmp_path / "boxes.json", items, ["a"])
    with pytest.raises(ValueError, match="image ids must differ, got 4"):
        save_coco_dataset(tmp_path / "boxes.json", [items[0], items[0]], ["a", "b"])
    assert not list(tmp_path.iterdir())
