# SPDX-License-Identifier: Apache-2.0
"""prepare.coco on tiny folders of COCO's layout, and on real films."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from monai.transforms import LoadImaged
from PIL import Image

from monai_labelfx.cli import main
from monai_labelfx.data import check_datalist, load_datalist
from monai_labelfx.data._coco_masks import tight_box
from monai_labelfx.data.class_names import load_class_names
from monai_labelfx.data.coco_json import load_coco
from monai_labelfx.data.polygon_masks import polygons_to_mask
from monai_labelfx.data.prepare.coco import prepare
from monai_labelfx.ops.run_length import encode_run_lengths

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


OUTLINES = [[[2, 3, 9, 3, 9, 20, 2, 8]], [[6, 10, 14, 10, 14, 28, 6, 28]], [[12, 5, 16, 5, 16, 9, 12, 9]]]
"""Of objects in pictures of 20 x 30; the first two overlap, the third lies apart."""


def write_masks(folder: Path, objects: list[int]) -> Path:
    """The data set of ``write`` with these objects in every other picture, the first as run lengths."""
    path = write(folder, "annotations.json", FILMS)
    rows = []
    for image, index in itertools.product(range(1, 31, 2), objects):
        mask = polygons_to_mask(OUTLINES[index], (20, 30))
        x0, y0, x1, y1 = tight_box(mask)
        segmentation = OUTLINES[index] if index else encode_run_lengths(mask[None])[0]
        row = {"image_id": image, "category_id": (18, 7, 18)[index], "bbox": [x0, y0, x1 - x0, y1 - y0]}
        rows.append(row | {"segmentation": segmentation})
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": rows}))
    return path


@pytest.mark.parametrize("objects,channels", [([0, 2], [[0, 2]]), ([0, 1, 2], [[0, 2], [1]])])
def test_masks(tmp_path, objects, channels):
    """In pictures that are not square, so that a mask cannot be turned unnoticed."""
    path = write_masks(tmp_path / "raw", objects)
    assert main(["prepare", "coco", str(path), str(tmp_path / "out"), "--masks", "true"]) == 0
    report = check_datalist(tmp_path / "out" / "datalist.json", spatial_dims=2)
    assert report["faults"] == [] and all("label is empty" in line for line in report["warnings"])
    load = LoadImaged(["image", "label"], reader="monai_labelfx.data.AutoReader", ensure_channel_first=True)
    masks = {index: polygons_to_mask(OUTLINES[index], (20, 30)) for index in objects}
    items = [item for part in load_datalist(tmp_path / "out" / "datalist.json").values() for item in part]
    assert len(items) == 30 and sum(bool(item["box"]) for item in items) == 15
    for item in items:
        loaded = load(item)
        image, label = loaded["image"].numpy(), loaded["label"].numpy()
        wanted = channels if image.max() % 2 else [[]]  # pictures are filled with their number
        assert image.shape == (1, 20, 30) and label.shape == (len(wanted), 20, 30)
        assert isinstance(item["label"], str) == (len(wanted) == 1)
        order = [index for channel in wanted for index in channel]
        expected = np.zeros(label.shape)
        for channel, index in ((number, index) for number, part in enumerate(wanted) for index in part):
            expected[channel][masks[index]] = order.index(index) + 1
        assert np.array_equal(label, expected)
        assert item["box"] == [tight_box(masks[index]) for index in order]
        assert item["box_label"] == [(1, 0, 1)[index] for index in order]


def test_masks_that_are_not_there(tmp_path):
    path = write(tmp_path / "raw", "annotations.json", FILMS)
    with pytest.raises(ValueError, match=r"annotations\[0\] of 'films/00000000_000.png' has no segmentation"):
        prepare(path, tmp_path / "out", masks=True)
    assert not (tmp_path / "out").exists()


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


@pytest.mark.sample_data
def test_real_lungs(sample_data, tmp_path):
    source = sample_data / "cxr" / "lungs_instances.coco.json"
    datalist = prepare(source, tmp_path / "out", masks=True)
    report = check_datalist(datalist, spatial_dims=2)
    assert report["faults"] == report["warnings"] == []
    boxes = {Path(item["image"]).name: item for item in load_coco(source).items}
    for items in load_datalist(datalist).values():
        for item in items:
            name = Path(item["image"]).name
            assert item["box"] == boxes[name]["box"] and item["box_label"] == boxes[name]["box_label"] == [0, 1]
            label, drawn = (
                np.array(Image.open(path)) for path in (item["label"], source.parent / "lungs/masks" / name)
            )
            assert label.shape == drawn.shape and (label != drawn).mean() < 0.002
