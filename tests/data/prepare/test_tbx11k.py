# SPDX-License-Identifier: Apache-2.0
"""prepare.tbx11k on a tiny folder of the same layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_labelfx.data import check_datalist, load_datalist
from monai_labelfx.data.class_names import load_class_names
from monai_labelfx.data.prepare.tbx11k import prepare

CATEGORIES = [
    {"id": number, "name": name, "supercategory": "Tuberculosis"}
    for number, name in enumerate(("ActiveTuberculosis", "ObsoletePulmonaryTuberculosis", "PulmonaryTuberculosis"), 1)
]


def write(folder: Path, name: str, numbers: range, *, category: int | None = None) -> None:
    """Of each kind one film per number; the first film of tb has no box."""
    images, annotations = [], []
    for number in numbers:
        for kind, letter in (("health", "h"), ("sick", "s"), ("tb", "tb")):
            file = f"{kind}/{letter}{number:04d}.png"
            path = folder / "imgs" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            grey = np.random.default_rng(list(file.encode())).integers(0, 255, (64, 64), dtype=np.uint8)
            Image.fromarray(grey).save(path)
            images.append({"id": len(images) + 1, "file_name": file, "width": 64, "height": 64})
            if kind == "tb" and number != numbers[0]:
                box = {"bbox": [5, 6.5, 10, 20], "category_id": category or 1 + number % 2}
                annotations.append({"id": len(annotations) + 1, "image_id": len(images), "iscrowd": 0, **box})
    path = folder / "annotations" / "json" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))


@pytest.fixture
def source(tmp_path):
    write(tmp_path / "raw", "TBX11K_train.json", range(1, 9))
    write(tmp_path / "raw", "TBX11K_val.json", range(11, 15))
    (tmp_path / "raw" / "annotations" / "json" / "all_test.json").write_text('{"images": []}')
    return tmp_path / "raw"


def test_boxes_classes_and_splits(source, tmp_path):
    path = prepare(source, tmp_path / "out")
    splits = load_datalist(path)
    assert {name: len(items) for name, items in splits.items()} == {"training": 28, "validation": 3, "test": 3}
    assert load_class_names(path) == ["ActiveTuberculosis", "ObsoletePulmonaryTuberculosis"]
    assert check_datalist(path, spatial_dims=2)["faults"] == []
    assert json.loads(path.read_text())["unmarked_films_left_out"] == 2
    items = {item["subject"]: item for part in splits.values() for item in part}
    assert items["tb0003"]["box"] == [[5, 6.5, 15, 26.5]] and items["tb0003"]["box_label"] == [1]
    assert items["tb0004"]["box_label"] == [0] and items["h0003"]["box"] == [] == items["s0012"]["box"]
    assert "tb0001" not in items and len(items) == 34
    few = load_datalist(prepare(source, tmp_path / "few", empty=0.5))
    assert sum(map(len, few.values())) == 15


def test_the_validation_films_as_test_and_one_list_for_both(source, tmp_path):
    splits = load_datalist(prepare(source, tmp_path / "out", official_test=True))
    assert {name: len(items) for name, items in splits.items()} == {"training": 21, "validation": 2, "test": 11}
    assert all(item["subject"][-2:] > "10" for item in splits["test"])
    raw = tmp_path / "both"
    write(raw, "TBX11K_trainval.json", range(1, 8), category=3)
    path = prepare(raw, tmp_path / "trainval")
    assert len(load_class_names(path)) == 3 and sum(map(len, load_datalist(path).values())) == 20
    with pytest.raises(ValueError, match="holds no annotations/json/TBX11K_train.json and TBX11K_val.json$"):
        prepare(raw, tmp_path / "no", official_test=True)


def test_malformed_input_gives_one_sentence_and_leaves_nothing(source, tmp_path):
    def refused(match: str, error: type[Exception] = ValueError, **keywords) -> None:
        with pytest.raises(error, match=match) as caught:
            prepare(keywords.pop("source", source), tmp_path / "out", **keywords)
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()

    refused("does not exist", FileNotFoundError, source=tmp_path / "no")
    refused("holds no annotations/json/.* .or TBX11K_trainval.json.", source=source / "imgs")
    refused("test must be a share", test=-0.5)
    (source / "imgs" / "tb" / "tb0003.png").unlink()
    refused("picture 'tb/tb0003.png' is not below")
    notes = json.loads(prepare(source, tmp_path / "lenient", allow_missing=True).read_text())
    assert notes["missing_pictures"] == 1
    file = source / "annotations" / "json" / "TBX11K_val.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"categories": CATEGORIES[::-1][:2], "annotations": []}))
    refused("has other categories than the other list", allow_missing=True)
    write(source / "copy", "TBX11K_val.json", range(20, 22))
    refused("holds 3 lists TBX11K_train.json and TBX11K_val.json, expected one each")
