# SPDX-License-Identifier: Apache-2.0
"""prepare.chestxray14 on a tiny folder of the same layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_labelfx.data import check_datalist, load_datalist
from monai_labelfx.data.class_names import load_class_names
from monai_labelfx.data.prepare.chestxray14 import prepare

TITLE = "Image Index,Finding Label,Bbox [x,y,w,h],,,"  # as it is: one title over four columns, and more commas
ENTRIES = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)


def name_of(patient: int, number: int) -> str:
    return f"{patient:08d}_{number:03d}.png"


def film(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    grey = np.random.default_rng(list(name.encode())).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(grey).save(folder / name)


@pytest.fixture
def source(tmp_path):
    """10 patients with a box each, two more on a second film; 14 films without finding, one with a finding, no box."""
    raw = tmp_path / "raw"
    rows, entries = [TITLE], [ENTRIES]
    for patient in range(10):
        film(raw / f"images_{1 + patient % 2:03d}" / "images", name_of(patient, 0))
        rows.append(f"{name_of(patient, 0)},{'Nodule' if patient % 2 else 'Infiltrate'},10.5,20.25,30.5,8,,,")
        entries.append(f"{name_of(patient, 0)},Nodule|Infiltration,0,{patient},58,M,PA,2682,2749,0.143,0.143,")
    film(raw / "images_001" / "images", name_of(0, 1))
    rows += [f"{name_of(0, 1)},Mass,0,0,64,64", f"{name_of(0, 1)},Atelectasis,5,6,7,8"]
    for number in range(14):
        film(raw / "images_002" / "images", name_of(5 + number, 7))
        entries.append(f"{name_of(5 + number, 7)},No Finding,0,{5 + number},58,M,PA,2682,2749,0.143,0.143,")
    film(raw / "images_002" / "images", name_of(40, 0))
    entries.append(f"{name_of(40, 0)},Effusion,0,40,58,M,PA,2682,2749,0.143,0.143,")
    entries.append(f"{name_of(41, 0)},No Finding,0,41,58,M,PA,2682,2749,0.143,0.143,")  # not downloaded
    (raw / "BBox_List_2017.csv").write_text("\n".join(rows) + "\n")
    (raw / "Data_Entry_2017_v2020.csv").write_text("\ufeff" + "\n".join(entries) + "\n", encoding="utf-8")
    return raw


def items_of(path: Path) -> list[dict]:
    return [item for items in load_datalist(path).values() for item in items]


def test_boxes_classes_and_films_without_finding(source, tmp_path):
    path = prepare(source, tmp_path / "out")
    items = {Path(item["image"]).name: item for item in items_of(path)}
    assert load_class_names(path)[5] == "Nodule" and len(load_class_names(path)) == 8
    assert items[name_of(1, 0)]["box"] == [[10.5, 20.25, 41.0, 28.25]] and items[name_of(1, 0)]["box_label"] == [5]
    assert items[name_of(0, 1)]["box"] == [[0, 0, 64, 64], [5, 6, 12, 14]] and items[name_of(0, 1)]["box_label"] == [
        4,
        0,
    ]
    assert sum(not item["box"] for item in items.values()) == 11 == sum(bool(item["box"]) for item in items.values())
    assert name_of(40, 0) not in items
    report = check_datalist(path, spatial_dims=2)
    assert report["faults"] == []
    original = source / "images_002" / "images" / name_of(1, 0)
    assert (tmp_path / "out" / "images" / name_of(1, 0)).read_bytes() == original.read_bytes()


def test_patients_stay_in_one_split_and_the_seed(source, tmp_path):
    first = prepare(source, tmp_path / "a", empty=None)
    splits = load_datalist(first)
    assert list(splits) == ["training", "validation", "test"] and sum(map(len, splits.values())) == 25
    people = [{item["subject"] for item in items} for items in splits.values()]
    assert not people[0] & people[1] and not (people[0] | people[1]) & people[2]
    assert [len(found) for found in people] == [15, 2, 2]
    assert prepare(source, tmp_path / "b", empty=None).read_text() == first.read_text()
    assert prepare(source, tmp_path / "c", empty=None, seed=1).read_text() != first.read_text()
    assert len(items_of(prepare(source, tmp_path / "d", empty=0))) == 11
    (source / "Data_Entry_2017_v2020.csv").unlink()
    assert len(items_of(prepare(source, tmp_path / "e"))) == 11


def test_malformed_input_gives_one_sentence_and_leaves_nothing(source, tmp_path):
    boxes = source / "BBox_List_2017.csv"
    text = boxes.read_text()

    def refused(match: str, error: type[Exception] = ValueError, content: str = text, **keywords) -> None:
        boxes.write_text(content)
        with pytest.raises(error, match=match) as caught:
            prepare(keywords.pop("source", source), tmp_path / "out", **keywords)
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()

    refused("does not exist", FileNotFoundError, source=tmp_path / "no")
    refused("line 2: unknown finding 'Cold'", content=f"{TITLE}\na.png,Cold,1,2,3,4\n")
    refused("line 2: expected film, finding, x", content=f"{TITLE}\na.png,Mass,1,2,3\n")
    refused("line 2: expected film, finding, x", content=f"{TITLE}\na.png,Mass,1,2,3,wide\n")
    refused("picture 'a.png' is not below", content=f"{TITLE}\na.png,Mass,1,2,3,4\n")
    refused("validation must be a share", validation=-1)
    refused("empty must be", empty=-1)
    path = prepare(source, tmp_path / "lenient", allow_missing=True)
    assert json.loads(path.read_text())["missing_pictures"] == 0
    boxes.write_text(text + "a.png,Mass,1,2,3,4\n")
    assert json.loads(prepare(source, tmp_path / "few", allow_missing=True).read_text())["missing_pictures"] == 1
    (source / "Data_Entry_2017_v2020.csv").write_text("a,b\n")
    refused("has no columns 'Image Index'")
    (source / "copy").mkdir()
    (source / "copy" / "BBox_List_2017.csv").write_text(text)
    refused(r"holds 2 files BBox_List_2017\*.csv")
