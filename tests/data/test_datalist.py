# SPDX-License-Identifier: Apache-2.0
"""Datalists: paths relative in the file, absolute in memory; one sentence for what is wrong."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from monai_labelfx.data import load_datalist, require_key, save_datalist


def test_round_trip_with_relative_paths_and_a_move(tmp_path):
    folder = tmp_path / "data"
    splits = {
        "training": [
            {"image": str(folder / "images" / 'ä "1".png'), "label": folder / "labels/1.png", "subject": "s1"},
            {"image": [str(folder / "a.tif"), str(folder / "b.tif")], "box": [[0, 0, 3, 4]], "has_label": True},
        ],
        "validation": [{"image": "images/2.png", "clean": str(tmp_path / "clean.png")}],
    }
    before = json.dumps(splits, default=str)
    path = save_datalist(folder / "datalist.json", splits, notes={"name": "test"})
    assert path == folder / "datalist.json" and json.dumps(splits, default=str) == before
    text = json.loads(path.read_text(encoding="utf-8"))
    assert text["name"] == "test" and text["training"][0]["label"] == "labels/1.png"
    assert text["training"][1]["image"] == ["a.tif", "b.tif"] and text["validation"][0]["clean"] == "../clean.png"
    shutil.move(folder, tmp_path / "moved")
    loaded = load_datalist(tmp_path / "moved" / "datalist.json")
    assert set(loaded) == {"training", "validation"}
    assert loaded["training"][0]["image"] == str(tmp_path / "moved" / "images" / 'ä "1".png')
    assert loaded["training"][1] == {
        "image": [str(tmp_path / "moved/a.tif"), str(tmp_path / "moved/b.tif")],
        "box": [[0, 0, 3, 4]],
        "has_label": True,
    }
    assert loaded["validation"][0]["clean"] == str(tmp_path / "clean.png")


def test_decathlon_style_entries_and_notes_are_understood(tmp_path):
    document = {
        "name": "x",
        "labels": {"0": "background"},
        "numTraining": 1,
        "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
        "test": ["./imagesTs/b.nii.gz"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(document))
    loaded = load_datalist(tmp_path / "dataset.json")
    assert loaded["test"] == [{"image": str(tmp_path / "imagesTs/b.nii.gz")}] and set(loaded) == {"training", "test"}


def test_paths_are_relative_to_the_file_not_to_the_working_directory(tmp_path, monkeypatch):
    save_datalist(tmp_path / "datalist.json", {"training": [{"image": "a.png"}]})
    monkeypatch.chdir(tmp_path)
    (image,) = load_datalist("datalist.json")["training"]
    assert os.path.isabs(image["image"]) and image["image"] == str(Path.cwd() / "a.png")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "not a JSON file"),
        ("[" * 100_000, "not a JSON file"),
        ("[]", "expected an object with the splits, such as 'training', found a list"),
        ('{"name": "x"}', r"no split found.*keys \['name'\]"),
        ('{"training": {"image": "a"}}', "training must be a list of entries, found an object"),
        ('{"training": [{"image": "a"}, 3]}', r"training\[1\] must be an object with at least 'image', found a number"),
        ('{"training": [{"label": "a"}]}', r"training\[0\] has no 'image', found the keys \['label'\]"),
        ('{"test": [{"image": 3}]}', r"test\[0\] has image=3, expected a path"),
        ('{"test": [{"image": ""}]}', r"test\[0\] has image=''"),
        ('{"test": [{"image": []}]}', r"test\[0\] has image=\[\]"),
        ('{"test": [{"image": ["a", 1]}]}', r"test\[0\] has image=\['a', 1\]"),
        ('{"test": ["a\\u0000b"]}', r"test\[0\] has image='a\\x00b'"),
        ('{"test": ["\\ud800"]}', r"test\[0\] has image='\\ud800'"),
        ('{"test": [{"image": "a", "weight": NaN}]}', "not a JSON file .NaN is no JSON value"),
        ('{"test": ["a"], "test": ["b"]}', "not a JSON file .the key 'test' stands twice in one object"),
        ('{"test": [{"image": "a", "image": "b"}]}', "not a JSON file .the key 'image' stands twice"),
        ('{"test": [{"image": "a", "label": null}]}', r"test\[0\] has label=None.*leave the key out"),
    ],
)
def test_bad_files_give_one_sentence(tmp_path, document, message):
    path = tmp_path / "datalist.json"
    path.write_text(document)
    with pytest.raises(ValueError, match=rf"^datalist .*datalist\.json': {message}"):
        load_datalist(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a JSON file"):
        load_datalist(path)
    with pytest.raises(FileNotFoundError, match=r"absent\.json' does not exist"):
        load_datalist(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("splits", "notes", "message"),
    [
        ({"training": [{"label": "a"}]}, None, r"training\[0\] has no 'image'"),
        ({"training": [{"image": 3}]}, None, r"training\[0\] has image=3"),
        ({"training": [{"image": "a", "value": float("nan")}]}, None, "cannot be written as JSON"),
        ({"training": [{"image": "a", "value": object()}]}, None, "cannot be written as JSON"),
        ({"training": [{"image": "a"}]}, {"training": 1}, "note 'training' would be read as a split"),
        ({"training": [{"image": "a"}]}, {"authors": ["x"]}, "note 'authors' would be read as a split"),
    ],
)
def test_what_cannot_be_saved_leaves_no_file(tmp_path, splits, notes, message):
    with pytest.raises(ValueError, match=message):
        save_datalist(tmp_path / "datalist.json", splits, notes=notes)
    assert list(tmp_path.iterdir()) == []


def test_sentences_stay_short_and_a_folder_is_told_from_nothing(tmp_path):
    path = tmp_path / "datalist.json"
    for document in ({"training": [{"image": list(range(5000))}]}, {f"note {n}": n for n in range(5000)}):
        path.write_text(json.dumps(document))
        with pytest.raises(ValueError, match=r"\.\.\.") as caught:
            load_datalist(path)
        assert len(str(caught.value)) < 500
    with pytest.raises(FileNotFoundError, match="is a folder, expected a JSON file"):
        load_datalist(tmp_path)


def test_required_splits_are_asked_for_in_one_sentence(tmp_path):
    path = save_datalist(tmp_path / "d.json", {"training": [{"image": "a.png"}]})
    assert list(load_datalist(path, required=["training"])) == ["training"]
    with pytest.raises(ValueError, match="has no entries under 'validation'; it has training"):
        load_datalist(path, required=["training", "validation"])


def test_entries_without_what_a_training_needs_are_counted_and_the_first_is_named():
    whole, bare = {"image": "a.png", "label": "m.png"}, {"image": "b.png", "label": None}
    require_key({"training": [whole], "validation": []}, "label", "draw one")
    splits = {"training": [whole, bare], "validation": [{"image": "c.png"}]}
    with pytest.raises(ValueError) as caught:
        require_key(splits, "label", "draw one")
    assert str(caught.value) == "2 of 3 images have no 'label', the first is training[1] 'b.png': draw one"
