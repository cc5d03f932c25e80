# SPDX-License-Identifier: Apache-2.0
"""A COCO data set as items of a datalist."""

from __future__ import annotations

import copy
import json
import warnings

import numpy as np
import pytest
from monai.transforms import LoadImage
from PIL import Image

from monai_labelfx.data.coco_json import load_coco

DOCUMENT = {
    "images": [
        {"id": 3, "file_name": "images/a.png", "width": 64, "height": 48, "patient": "p1"},
        {"id": "x", "file_name": "images/b.png", "width": 64, "height": 48, "patient": ""},
        {"id": 1, "file_name": "c.png"},
    ],
    "categories": [{"id": 9, "name": "mass"}, {"id": 2, "name": "nodule"}, {"id": 5, "name": "cyst"}],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 9, "bbox": [10, 20, 5.5, 4]},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [0, 0, 900, 900]},
        {"id": 3, "image_id": 3, "category_id": 5, "bbox": [-2, 40, 10, 20]},
    ],
}


def write(folder, document) -> str:
    path = folder / "boxes.json"
    path.write_text(json.dumps(document))
    return str(path)


def test_items_names_and_ids(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        items, names, ids, shapes = load_coco(write(tmp_path, DOCUMENT))
    assert names == ["nodule", "cyst", "mass"] and ids == [2, 5, 9] and shapes == [(64, 48), (64, 48), None]
    assert [item["image_id"] for item in items] == [3, "x", 1]
    assert items[0] == {
        "image": str(tmp_path / "images" / "a.png"),
        "box": [[10, 20, 15.5, 24], [0, 40, 8, 48]],
        "box_label": [2, 1],
        "image_id": 3,
        "subject": "p1",
    }
    assert items[1]["box"] == items[1]["box_label"] == [] and "subject" not in items[1]
    assert items[2]["box"] == [[0, 0, 900, 900]] and items[2]["box_label"] == [0]
    assert load_coco(write(tmp_path, DOCUMENT), image_root="/films").items[2]["image"] == "/films/c.png"


def test_x_is_the_first_axis_of_a_loaded_picture(tmp_path):
    picture = np.zeros((30, 20), np.uint8)  # 30 high, 20 wide
    picture[4:9, 11:13] = 255
    Image.fromarray(picture).save(tmp_path / "c.png")
    document = DOCUMENT | {"annotations": [{"image_id": 1, "category_id": 2, "bbox": [11, 4, 2, 5]}]}
    item = load_coco(write(tmp_path, document)).items[2]
    loaded = LoadImage(image_only=True)(item["image"])
    x0, y0, x1, y1 = map(int, item["box"][0])
    assert loaded.shape == (20, 30) and loaded[x0:x1, y0:y1].min() == 255 and loaded.sum() == 255 * 10


def test_odd_boxes_are_dropped_and_counted(tmp_path):
    document = copy.deepcopy(DOCUMENT)
    for image, box, crowd in (
        (3, [1, 1, 0, 4], 0),
        (3, [1, 1, 3, -2], 0),
        ("x", [70, 1, 3, 3], 0),
        ("x", [1, 1, 3, 3], 1),
    ):
        document["annotations"].append({"image_id": image, "category_id": 2, "bbox": box, "iscrowd": crowd})
    with pytest.warns(UserWarning) as caught:
        items = load_coco(write(tmp_path, document)).items
    assert len(caught) == 1 and str(caught[0].message).endswith(
        "dropped 4 boxes (2 without width or height, 1 outside the image, 1 crowds) of 'images/a.png', 'images/b.png'."
    )
    assert [len(item["box"]) for item in items] == [2, 0, 1]
    for number in range(8):
        document["images"].append({"id": 100 + number, "file_name": f"{number}.png"})
        document["annotations"].append({"image_id": 100 + number, "category_id": 2, "bbox": [0, 0, 0, 0]})
    with pytest.warns(UserWarning, match="dropped 12 boxes .* of 'images/a.png', .* '2.png' and 5 more"):
        load_coco(write(tmp_path, document))


def test_bad_files_give_one_sentence(tmp_path):
    def refused(match: str, **changes) -> None:
        with pytest.raises(ValueError, match=match) as caught:
            load_coco(write(tmp_path, DOCUMENT | changes))
        assert "\n" not in str(caught.value) and "boxes.json" in str(caught.value)

    image, annotation = DOCUMENT["images"][0], DOCUMENT["annotations"][0]
    refused(r"images\[1\] has the id 3 of another image", images=[image, image | {"file_name": "d.png"}])
    refused(r"file_name 'images/a.png', which another image has", images=[image, image | {"id": 4}])
    refused("must have a list under 'images', found None", images=None)
    refused(r"annotations\[0\] has the image_id 77", annotations=[annotation | {"image_id": 77}])
    refused(r"annotations\[0\] has the category_id 77", annotations=[annotation | {"category_id": 77}])
    refused("4 finite numbers under 'bbox'", annotations=[annotation | {"bbox": [1, 2, 3]}])
    refused("4 finite numbers under 'bbox'", annotations=[annotation | {"bbox": ["1", 2, 3, 4]}])
    refused("NaN is no JSON value", annotations=[annotation | {"bbox": [float("nan"), 2, 3, 4]}])
    refused(
        "has the id 2 or the name 'other' of another category",
        categories=[*DOCUMENT["categories"], {"id": 2, "name": "other"}],
    )
    refused("of another category", categories=[*DOCUMENT["categories"], {"id": 3, "name": "mass"}])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_coco(tmp_path / "no.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match="must be an object"):
        load_coco(tmp_path / "list.json")


@pytest.mark.sample_data
def test_real_boxes(sample_data):
    items, names, ids, shapes = load_coco(sample_data / "cxr" / "findings.coco.json")
    assert len(items) == 31 and sum(len(item["box"]) for item in items) == 30 and names[0] == "pneumonia"
    assert max(map(max, shapes)) <= 512
    assert ids == list(range(1, 9)) and sum(not item["box"] for item in items) == 6
    lungs = load_coco(sample_data / "cxr" / "lungs_boxes.coco.json").items
    assert {len(item["box"]) for item in lungs} == {2} and sum("subject" in item for item in lungs) > 40
