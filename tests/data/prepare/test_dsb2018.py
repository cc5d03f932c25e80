# SPDX-License-Identifier: Apache-2.0
"""prepare.dsb2018 on a tiny folder of the same layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_labelfx.data import check_datalist, load_datalist
from monai_labelfx.data.prepare.dsb2018 import prepare


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def case(folder: Path, name: str, *, rows: int = 12, columns: int = 9, seed: int = 0) -> None:
    """An RGBA grey picture with two nuclei whose masks share one pixel."""
    grey = np.random.default_rng(seed).integers(0, 255, (rows, columns, 1), dtype=np.uint8)
    save(folder / name / "images" / f"{name}.png", np.concatenate([grey, grey, grey, 0 * grey + 255], -1))
    for number, (start, stop) in enumerate(((1, 4), (3, 6))):
        mask = np.zeros((rows, columns), np.uint8)
        mask[start:stop, 2] = 255
        save(folder / name / "masks" / f"{number}.png", mask)


@pytest.fixture
def source(tmp_path):
    for number in range(10):
        case(tmp_path / "raw" / "stage1_train", f"id{number}", rows=12 + number % 2, seed=number)
    return tmp_path / "raw"


def test_layout_values_and_splits(source, tmp_path):
    datalist = prepare(source, tmp_path / "out", labelled=3)
    assert datalist == tmp_path / "out" / "datalist.json"
    splits = load_datalist(datalist)
    assert {name: len(items) for name, items in splits.items()} == {"training": 8, "validation": 1, "test": 1}
    assert sum("label" in item for item in splits["training"]) == 3
    assert all("label" in item for item in splits["validation"] + splits["test"])
    report = check_datalist(datalist, spatial_dims=2)
    assert report["faults"] == [] and report["warnings"] == []
    for number in range(10):
        original = source / "stage1_train" / f"id{number}" / "images" / f"id{number}.png"
        assert (tmp_path / "out" / "images" / f"id{number}.png").read_bytes() == original.read_bytes()
        with Image.open(tmp_path / "out" / "labels" / f"id{number}.png") as image:
            labels = np.asarray(image)
        assert labels.dtype == np.uint16 and labels[:, 2].tolist()[:7] == [0, 1, 1, 1, 2, 2, 0]
    notes = json.loads(datalist.read_text())
    assert notes["overlapping_pixels"] == 10 and notes["colour_images_left_out"] == 0


def test_the_folder_of_cases_itself_and_the_seed(source, tmp_path):
    first = prepare(source / "stage1_train", tmp_path / "a")
    second = prepare(source, tmp_path / "b", seed=1)
    third = prepare(source, tmp_path / "c")
    assert first.read_text() == third.read_text() != second.read_text()


def test_colour_pictures(source, tmp_path):
    colour = np.random.default_rng(0).integers(0, 255, (12, 9, 3), dtype=np.uint8)
    save(source / "stage1_train" / "id4" / "images" / "id4.png", colour)
    notes = json.loads(prepare(source, tmp_path / "grey").read_text())
    assert notes["colour_images_left_out"] == 1 and not (tmp_path / "grey" / "images" / "id4.png").exists()
    prepare(source, tmp_path / "all", grey_only=False)
    assert (tmp_path / "all" / "images" / "id4.png").exists()


def test_malformed_input_gives_one_sentence_and_leaves_nothing(source, tmp_path):
    out = tmp_path / "out"

    def refused(match: str, error: type[Exception] = ValueError, **keywords) -> None:
        with pytest.raises(error, match=match) as caught:
            prepare(keywords.pop("source", source), out, **keywords)
        assert "\n" not in str(caught.value)
        assert not out.exists() and sorted(path.name for path in tmp_path.iterdir()) == ["empty", "raw"]

    (tmp_path / "empty").mkdir()
    refused("holds no case, expected <id>/images", source=tmp_path / "empty")
    refused("absent' does not exist", FileNotFoundError, source=tmp_path / "absent")
    refused("labelled must be 0 to 8", labelled=9)
    refused("validation must be a share", validation=-0.1)
    broken = source / "stage1_train" / "id4"
    save(broken / "masks" / "9.png", np.zeros((3, 3), np.uint8))
    refused(r"masks/9\.png' has \(3, 3\) rows and columns, but its image has \(12, 9\)")
    (broken / "masks" / "9.png").write_bytes(b"no picture")
    refused(r"9\.png' cannot be read as PNG")
    (broken / "masks" / "9.png").unlink()
    save(broken / "images" / "second.png", np.zeros((12, 9), np.uint8))
    refused("id4' has 2 pictures")
    (broken / "images" / "second.png").unlink()
    for path in (broken / "masks").iterdir():
        path.unlink()
    refused("id4' has no masks")


def test_a_full_destination_is_left_alone(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(FileExistsError, match="out' is not empty"):
        prepare(source, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
