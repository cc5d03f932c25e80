# SPDX-License-Identifier: Apache-2.0
"""What the adapters of pictures with boxes share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dicom_samples import write_series
from PIL import Image

from monai_labelfx.data import check_datalist, load_datalist
from monai_labelfx.data.class_names import load_class_names
from monai_labelfx.data.prepare._films import Film, Pictures, picture_shape, thinned, write_films
from monai_labelfx.ops.run_length import encode_run_lengths

OPTIONS = {"validation": 0.1, "test": 0.1, "seed": 0, "copy": True, "notes": {"name": "films"}}


def picture(path: Path, width: int = 20, height: int = 30) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.random.default_rng(list(str(path).encode())).integers(0, 255, (height, width), dtype=np.uint8)
    Image.fromarray(grey).save(path)
    return path


def films_of(folder: Path, number: int = 20, per_subject: int = 2) -> list[Film]:
    return [
        Film(
            picture(folder / f"{index:02d}.png"),
            f"p{index // per_subject}",
            [[1, 2, 8, 9]] * (index % 3),
            [0] * (index % 3),
        )
        for index in range(number)
    ]


def test_pictures_by_the_end_of_their_path(tmp_path):
    for name in ("train/a.png", "test/a.png", "imgs/tb/b.PNG", "c.txt", "masks/c.png", "images/c.png"):
        picture(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).write_text("")
    pictures = Pictures(tmp_path)
    assert pictures.find("tb/b.PNG") == tmp_path / "imgs" / "tb" / "b.PNG" == pictures.find("b.PNG")
    assert pictures.find("images/c.png") == tmp_path / "images" / "c.png"
    assert pictures.find("a.png", inside="test") == tmp_path / "test" / "a.png"
    with pytest.raises(ValueError, match=r"picture 'a.png' is at .* and at .*, expected one"):
        pictures.find("a.png")
    for name in ("c.txt", "sick/b.PNG", "", "../../etc/passwd"):
        with pytest.raises(ValueError, match="is not below .* allow_missing=True"):
            pictures.find(name)
    lenient = Pictures(tmp_path, allow_missing=True)
    assert lenient.find("no.png") is None and lenient.missing == 1


def test_sizes_from_headers(tmp_path):
    assert picture_shape(picture(tmp_path / "a.png")) == (20, 30)
    write_series(tmp_path / "series", np.zeros((7, 5, 2), np.int16))
    assert picture_shape(sorted((tmp_path / "series").rglob("*.dcm"))[0]) == (7, 5)
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(ValueError, match="b.png"):
        picture_shape(tmp_path / "b.png")


def test_thinned(tmp_path):
    films = films_of(tmp_path, 20)
    boxed = sum(bool(film.boxes) for film in films)
    assert thinned(films, None, 0) == films
    for share, wanted in ((0.0, 0), (0.25, 3), (100, 20 - boxed)):
        found = thinned(films, share, 0)
        assert sum(not film.boxes for film in found) == wanted and sum(bool(film.boxes) for film in found) == boxed
    draws = [[film.path.name for film in thinned(films, 0.25, seed)] for seed in (0, 1, 2, 3, 0)]
    assert draws[0] == draws[4] and len({tuple(draw) for draw in draws}) > 1
    with pytest.raises(ValueError, match="empty must be"):
        thinned(films, -1, 0)


@pytest.mark.parametrize("copy", [True, False])
def test_the_datalist(tmp_path, copy):
    films = films_of(tmp_path / "raw")
    path = write_films(tmp_path / "out", films, ["a", "b"], **OPTIONS | {"copy": copy})
    report = check_datalist(path, spatial_dims=2)
    assert report["faults"] == [] and load_class_names(path) == ["a", "b"]
    splits = load_datalist(path)
    assert {name: len(items) for name, items in splits.items()} == {"training": 16, "validation": 2, "test": 2}
    people = [{item["subject"] for item in items} for items in splits.values()]
    assert not people[0] & people[1] and not people[0] & people[2] and not people[1] & people[2]
    assert all(
        item["subject"] == f"p{int(Path(item['image']).stem) // 2}" for items in splits.values() for item in items
    )
    paths = {Path(item["image"]) for items in splits.values() for item in items}
    assert all(one.is_file() for one in paths)
    assert {one.parent for one in paths} == {tmp_path / "out" / "images" if copy else tmp_path / "raw"}
    other = write_films(tmp_path / "other", films, ["a", "b"], **OPTIONS | {"copy": copy, "seed": 1})
    assert load_datalist(other) != splits


def test_same_names_in_two_folders_and_given_splits(tmp_path):
    films = [
        Film(
            picture(tmp_path / "raw" / f"{part}" / f"{n}.png"),
            f"{part}{n}",
            [],
            [],
            None,
            "test" if part == "b" else None,
        )
        for part in "ab"
        for n in range(4)
    ]
    splits = load_datalist(write_films(tmp_path / "out", films, ["x"], **OPTIONS | {"test": 0.0}))
    assert {name: len(items) for name, items in splits.items()} == {"training": 3, "validation": 1, "test": 4}
    assert {Path(item["image"]).parent.name for item in splits["test"]} == {"b"}


def test_boxes_are_cut_and_odd_ones_counted(tmp_path):
    boxes = [[-3, 4, 5, 40], [4, 4, 4, 9], [9, 9, 3, 12], [20, 0, 25, 5], [float("nan"), 0, 1, 1], [0, 0, 20, 30]]
    films = [*films_of(tmp_path / "raw", 10)]
    films[0] = films[0]._replace(boxes=boxes, labels=[0, 1, 0, 1, 0, 1])
    with pytest.warns(UserWarning, match="dropped 4 boxes without volume or outside the image, of '00.png'"):
        path = write_films(tmp_path / "out", films, ["a", "b"], **OPTIONS)
    item = next(i for items in load_datalist(path).values() for i in items if i["image"].endswith("00.png"))
    assert item["box"] == [[0, 4, 5, 30], [0, 0, 20, 30]] and item["box_label"] == [0, 1]
    assert json.loads(path.read_text())["dropped_boxes"] == 4


def test_masks_that_have_no_pixel_or_another_size(tmp_path):
    masks = np.zeros((3, 20, 30), bool)
    masks[0, 2:5, 3:9] = masks[2, 10:12, 1:3] = True
    lengths = encode_run_lengths(masks)
    films = films_of(tmp_path / "raw", 10)
    films[0] = films[0]._replace(boxes=[[0, 0, 20, 30]] * 3, labels=[0, 1, 1], masks=lengths)
    with pytest.warns(UserWarning, match="dropped 1 boxes without volume or outside the image, of '00.png'"):
        path = write_films(tmp_path / "out", films, ["a", "b"], **OPTIONS | {"copy": False})
    items = [item for part in load_datalist(path).values() for item in part]
    item = next(item for item in items if item["image"].endswith("00.png"))
    assert item["box"] == [[2, 3, 5, 9], [10, 1, 12, 3]] and item["box_label"] == [0, 1]
    assert Path(item["label"]) == tmp_path / "out" / "labels" / "00.png"
    assert sum("label" in item for item in items) == 1
    films[0] = films[0]._replace(masks=[{"size": [20, 30], "counts": [600]}] * 3)
    with pytest.raises(
        ValueError, match=r"00.png' has the size \[height, width\] \[20, 30\], but the image \[30, 20\]"
    ):
        write_films(tmp_path / "no", films, ["a", "b"], **OPTIONS)
    assert not (tmp_path / "no").exists()


def test_label_maps_of_pictures_of_one_name(tmp_path):
    raw, films = tmp_path / "raw", []
    for number, name in enumerate(("a/1.png", "b/1.png", "b/1.bmp")):
        mask = np.zeros((1, 20, 30), bool)
        mask[0, number] = True
        film = Film(picture(raw / name), name, [[0, 0, 1, 1]], [0], masks=encode_run_lengths(mask))
        films.append(film)
    path = write_films(tmp_path / "out", films, ["x"], **OPTIONS | {"test": 0.0})
    for item in (item for part in load_datalist(path).values() for item in part):
        number = [film.subject for film in films].index(item["subject"])
        assert item["box"] == [[number, 0, number + 1, 30]]
        assert np.array(Image.open(item["label"]))[:, number].all()


def test_refused_and_nothing_left(tmp_path):
    films = films_of(tmp_path / "raw", 10)
    for match, changed in (
        ("has 20 x 30 pixels, but its boxes are of one of 40 x 60", [*films[1:], films[0]._replace(shape=(40, 60))]),
        ("in the annotations more than once", [*films, films[0]]),
        ("no picture to prepare", []),
        ("images leave none for training", films[:1]),
    ):
        with pytest.raises(ValueError, match=match):
            write_films(tmp_path / "out", changed, ["a"], **OPTIONS)
        assert [path.name for path in tmp_path.iterdir() if path.name != "raw"] == []
