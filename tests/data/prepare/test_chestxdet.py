# SPDX-License-Identifier: Apache-2.0
"""prepare.chestxdet on a tiny folder of the same layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_labelfx.data import check_datalist, load_datalist
from monai_labelfx.data.class_names import load_class_names
from monai_labelfx.data.polygon_masks import polygons_to_mask
from monai_labelfx.data.prepare.chestxdet import prepare


def entry(folder: Path, number: int) -> dict:
    """A film and its entry; every third has no finding."""
    folder.mkdir(parents=True, exist_ok=True)
    grey = np.random.default_rng(number).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(grey).save(folder / f"{number}.png")
    count = number % 3
    polygons = [[[1, 2], [30, 2], [30, 44]]] * count
    names = ["Pleural Thickening", "Effusion"][:count]
    return {"file_name": f"{number}.png", "syms": names, "boxes": [[1, 2, 30, 44]] * count, "polygons": polygons}


@pytest.fixture
def source(tmp_path):
    raw = tmp_path / "raw"
    for part, numbers in (("train", range(36200, 36220)), ("test", range(36300, 36306))):
        entries = [entry(raw / f"{part}_data" / part, number) for number in numbers]
        (raw / f"ChestX_Det_{part}.json").write_text(json.dumps(entries))
    return raw


def test_boxes_classes_and_splits(source, tmp_path):
    path = prepare(source, tmp_path / "out")
    splits = load_datalist(path)
    assert {name: len(items) for name, items in splits.items()} == {"training": 20, "validation": 3, "test": 3}
    assert load_class_names(path) == ["Effusion", "Pleural Thickening"]
    assert check_datalist(path, spatial_dims=2)["faults"] == []
    items = {item["subject"]: item for part in splits.values() for item in part}
    for name, item in items.items():
        count = int(name) % 3
        assert item["box"] == [[1, 2, 30, 44]] * count and item["box_label"] == [1, 0][:count]
    assert len(load_datalist(prepare(source, tmp_path / "few", empty=0))["training"]) < 20


def test_the_test_of_the_authors(source, tmp_path):
    splits = load_datalist(prepare(source, tmp_path / "out", official_test=True))
    assert {name: len(items) for name, items in splits.items()} == {"training": 18, "validation": 2, "test": 6}
    assert {item["subject"][:3] for item in splits["test"]} == {"363"}
    (source / "ChestX_Det_test.json").unlink()
    assert sum(map(len, load_datalist(prepare(source, tmp_path / "train")).values())) == 20
    with pytest.raises(ValueError, match="does not hold the lists ChestX_Det_train.json and ChestX_Det_test.json"):
        prepare(source, tmp_path / "no", official_test=True)


def test_label_maps_of_the_polygons(source, tmp_path):
    """The two findings of a film have the same outline here, so each has a label map of its own."""
    splits = load_datalist(prepare(source, tmp_path / "out", masks=True))
    report = check_datalist(tmp_path / "out" / "datalist.json", spatial_dims=2)
    assert report["faults"] == [] and all("label is empty" in line for line in report["warnings"])
    triangle = polygons_to_mask([[1, 2, 30, 2, 30, 44]], (64, 64))
    for item in (item for part in splits.values() for item in part):
        count = int(item["subject"]) % 3
        paths = [item["label"]] if isinstance(item["label"], str) else item["label"]
        assert len(paths) == max(count, 1) and item["box"] == [[1, 2, 30, 43]] * count  # of a sharp corner
        assert item["box_label"] == [1, 0][:count]
        for number, path in enumerate(paths, start=1):
            assert np.array_equal(np.array(Image.open(path)).T, triangle * number * (count > 0))


def test_malformed_polygons(source, tmp_path):
    file = source / "ChestX_Det_train.json"
    entries = json.loads(file.read_text())
    number = next(index for index, one in enumerate(entries) if len(one["syms"]) == 2)
    good = entries[number]["polygons"][0]
    for polygons, message in (
        (None, "must have one of polygons for each of 2 findings, found None"),
        ([good], "must have one of polygons for each of 2 findings"),
        ([good, good[:2]], r"finding 1: polygons\[0\] must be .* three points or more"),
        ([good, [*good, [1, 2, 3]]], r"finding 1: polygons\[0\] must be"),
        ([good, 7], r"finding 1: polygons\[0\] must be"),
        ([good, [*good, [1, "x"]]], r"finding 1: polygons\[0\] must be"),
    ):
        entries[number] |= {"polygons": polygons}
        file.write_text(json.dumps(entries))
        with pytest.raises(ValueError, match=message) as caught:
            prepare(source, tmp_path / "out", masks=True)
        assert entries[number]["file_name"] in str(caught.value) and not (tmp_path / "out").exists()
    prepare(source, tmp_path / "out")


def test_malformed_input_gives_one_sentence_and_leaves_nothing(source, tmp_path):
    file = source / "ChestX_Det_train.json"
    entries = json.loads(file.read_text())

    def refused(match: str, content: object = entries, error: type[Exception] = ValueError, **keywords) -> None:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(error, match=match) as caught:
            prepare(keywords.pop("source", source), tmp_path / "out", **keywords)
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()

    refused("does not exist", error=FileNotFoundError, source=tmp_path / "no")
    refused("is not a JSON file", "{")
    refused("must be a list of films, found dict", {})
    for changes in ({"syms": ["Mass"]}, {"boxes": [[1, 2, 3]], "syms": ["Mass"]}, {"file_name": 3}, {"syms": None}):
        refused("entry 0: expected file_name, and in syms", [entries[0] | {"syms": [], "boxes": []} | changes])
    refused("picture '1.png' is not below", [entries[0] | {"file_name": "1.png"}])
    refused("in the annotations more than once", [entries[0], entries[0]])
    refused("validation must be a share", validation=2)
    (source / "more").mkdir()
    (source / "more" / "ChestX_Det_train.json").write_text("[]")
    refused("is at .* and at .*, expected one")
    with pytest.raises(ValueError, match="does not hold the lists .* .or one."):
        prepare(source / "train_data", tmp_path / "out")
