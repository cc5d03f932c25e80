# SPDX-License-Identifier: Apache-2.0
"""prepare.coco on tiny folders of COCO's layout, and on real films."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_labelfx.cli import main
from monai_labelfx.data import check_datalist, load_datalist
from monai_labelfx.data.class_names import load_class_names
from monai_labelfx.data.prepare.coco import prepare

CATEGORIES = [{"id": 18, "name": "mass"}, {"id": 7, "name": "nodule"}]


def write(folder: Path, name: str, files: list[str], *, first_id: int = 1, **extra) -> Path:
    """A data set whose every other picture has a box."""
    images, annotations = [], []
    for number, file in enumerate(files, start=first_id):
        path = folder / "pictures" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((30, 20), number, np.uint8)).save(path)
        images.append({"id": number, "file_name": file, "width": 20, "height": 30} | extra)
        if number % 2:
            annotations.append({"id": number, "image_id": number, "category_id": 18, "bbox": [1, 2, 5.5, 20]})
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))
    return path


FILMS = [f"films/{patient:08d}_{number:03d}.png" for patient in range(10) for number in range(3)]


def patients(splits: dict) -> list[set[str]]:
    return [{item["subject"] for item in items} for items in splits.values()]


@pytest.mark.parametrize("as_file", [True, False])
def test_items_and_patients(tmp_path, as_file):
    path = write(tmp_path / "raw", "annotations.json", FILMS)
    source = path if as_file else path.parent
    splits = load_datalist(prepare(source, tmp_path / "out"))
    assert {name: len(items) for name, items in splits.items()} == {"training": 24, "validation": 3, "test": 3}
    assert sorted(len(found) for found in patients(splits)) == [1, 1, 8]
    assert set.union(*patients(splits)) == {f"{number:08d}" for number in range(10)}
    report = check_datalist(tmp_path / "out" / "datalist.json", spatial_dims=2)
    assert report["faults"] == [] and load_class_names(tmp_path / "out" / "datalist.json") == ["nodule", "mass"]
    items = [item for part in splits.values() for item in part]
    assert {str(item["box"]) for item in items} == {"[]", "[[1.0, 2.0, 6.5, 22.0]]"}
    assert {tuple(item["box_label"]) for item in items} == {(), (1,)} and "image_id" not in items[0]


def test_patient_from_a_field_a_pattern_or_nothing(tmp_path):
    names = [f"case{number // 2}-{number}.png" for number in range(20)]
    path = write(tmp_path / "raw", "annotations.json", names)
    assert all(len(item["subject"]) > 6 for item in load_datalist(prepare(path, tmp_path / "a"))["test"])
    splits = load_datalist(prepare(path, tmp_path / "b", subject=r"(case\d+)-"))
    assert set.union(*patients(splits)) == {f"case{number}" for number in range(10)}
    path = write(tmp_path / "field", "annotations.json", names[:10], patient=3)
    write(tmp_path / "field", "annotations2.json", names[10:], patient="x", first_id=11)
    splits = load_datalist(prepare(tmp_path / "field", tmp_path / "c", annotations="*.json", test=0))
    assert patients(splits) in ([{"3"}, {"x"}], [{"x"}, {"3"}])


def test_the_layout_of_coco_itself(tmp_path):
    raw = tmp_path / "raw"
    write(raw, "annotations/instances_train2017.json", [f"train2017/{n:012d}.jpg" for n in range(12)])
    write(raw, "annotations/instances_val2017.json", [f"val2017/{n:012d}.jpg" for n in range(20, 28)], first_id=13)
    (raw / "annotations" / "captions_train2017.json").write_text('{"annotations": []}')
    with pytest.raises(
        ValueError, match=r"several data sets, name one by annotations: annotations/instances_train2017"
    ):
        prepare(raw, tmp_path / "out")
    splits = load_datalist(prepare(raw, tmp_path / "out", annotations="instances_*2017.json", empty=0.2))
    assert sum(len(items) for items in splits.values()) == 12
    one = load_datalist(prepare(raw, tmp_path / "one", annotations="annotations/instances_val2017.json", copy=False))
    assert sum(len(items) for items in one.values()) == 8 and "/raw/" in one["test"][0]["image"]


def test_the_command(tmp_path, capsys):
    path = write(tmp_path / "raw", "annotations.json", FILMS)
    assert main(["prepare", "coco", str(path), str(tmp_path / "out"), "--seed", "3", "--validation", "0.2"]) == 0
    assert len(patients(load_datalist(tmp_path / "out" / "datalist.json"))[1]) == 2
    assert "datalist.json" in capsys.readouterr().out


def test_malformed_input_gives_one_sentence_and_leaves_nothing(tmp_path):
    path = write(tmp_path / "raw", "annotations.json", FILMS)
    document = json.loads(path.read_text())

    def refused(match: str, error: type[Exception] = ValueError, source: Path = path.parent, **keywords) -> None:
        with pytest.raises(error, match=match) as caught:
            prepare(source, tmp_path / "out", **keywords)
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()

    refused("does not exist", FileNotFoundError, tmp_path / "no")
    refused("holds no JSON file called 'x.json'", annotations="x.json")
    refused("one group", subject=r"\d+")
    refused("test must be a share", test=1.5)
    path.write_text(json.dumps(document | {"images": [document["images"][0] | {"width": 40}]}))
    refused("has the image_id 3, which no image has")
    path.write_text(json.dumps(document | {"images": [document["images"][0] | {"width": 40}], "annotations": []}))
    refused("has 20 x 30 pixels, but its boxes are of one of 40 x 30", validation=0, test=0)
    extra = {"id": 99, "file_name": "no.png"}
    path.write_text(json.dumps(document | {"images": [*document["images"], extra]}))
    refused("picture 'no.png' is not below")
    notes = json.loads(prepare(path, tmp_path / "lenient", allow_missing=True).read_text())
    assert notes["missing_pictures"] == 1
    path.write_text("{}")
    refused("holds no JSON file with images, annotations and categories")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("")
    with pytest.raises(FileExistsError, match="not empty"):
        prepare(path, tmp_path / "full")


@pytest.mark.sample_data
def test_real_films(sample_data, tmp_path):
    source = sample_data / "cxr"
    splits = load_datalist(prepare(source, tmp_path / "a", annotations="findings.coco.json"))
    assert sum(len(items) for items in splits.values()) == 31
    names = [item for items in splits.values() for item in items]
    assert all(item["subject"] == re.search(r"(\d{8})_", item["image"]).group(1) for item in names)
    found = patients(splits)
    assert not found[0] & found[1] and not (found[0] | found[1]) & found[2]
    assert check_datalist(tmp_path / "a" / "datalist.json", spatial_dims=2)["faults"] == []
    lungs = load_datalist(prepare(source / "lungs_boxes.coco.json", tmp_path / "b"))
    assert {len(item["box"]) for items in lungs.values() for item in items} == {2}
    people = patients(lungs)
    assert not people[0] & people[1] and not (people[0] | people[1]) & people[2]
    assert load_class_names(tmp_path / "b" / "datalist.json") == ["right_lung", "left_lung"]
