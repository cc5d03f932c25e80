# SPDX-License-Identifier: Apache-2.0
"""prepare.glas on a tiny folder of the same layout."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_labelfx.cli import main
from monai_labelfx.data import AutoReader, check_datalist, load_datalist
from monai_labelfx.data.check_histology import check_histology
from monai_labelfx.data.gland_samples import PATH_KEYS
from monai_labelfx.data.prepare.glas import prepare

TITLE = "name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"
GRADES = (("benign", "adenomatous"), ("malignant", "poorly differentiated"))
NAMES = [f"train_{n}" for n in range(1, 13)] + [f"testA_{n}" for n in range(1, 5)] + ["testB_1", "testB_2"]


def patient(name: str) -> int:
    """Training: two pictures of each of 1 to 6; test: patients 11 and 12, and 1 of part A."""
    part, number = name.split("_")
    return (int(number) + 1) // 2 if part == "train" else 1 if name == "testA_4" else 11 + (part == "testB")


def write_table(folder: Path, *, title: str = TITLE, names=NAMES, end: str = "\r", mark: str = "") -> None:
    lines = [title] + [f"{n},{patient(n)}, {', '.join(GRADES[patient(n) % 2])}" for n in names]
    (folder / "Grade.csv").write_bytes((mark + end.join(lines) + end).encode())


@pytest.fixture
def source(tmp_path) -> Path:
    """Titles with blanks, lines that end with a carriage return, as in the original."""
    folder = tmp_path / "raw" / "Warwick QU Dataset (Released 2016_07_08)"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in NAMES:
        glands = np.zeros((13, 20), np.uint8)
        glands[1:5, 2:8], glands[6:12, 5:18] = 1, 2
        Image.fromarray(generator.integers(0, 255, (13, 20, 3), dtype=np.uint8)).save(folder / f"{name}.bmp")
        Image.fromarray(glands).save(folder / f"{name}_anno.bmp")
    write_table(folder)
    (folder / "readme.txt").write_text("not a picture")
    return folder


def prepared(source: Path, target: Path, **options) -> Path:
    with pytest.warns(UserWarning, match=r"^1 patients \(1\) have pictures in the authors' training and test"):
        return prepare(source, target, **options)


def test_splits_masks_and_keys(source, tmp_path):
    path = prepared(source.parent, tmp_path / "out")
    splits = load_datalist(path, path_keys=PATH_KEYS)
    assert list(splits) == ["training", "validation", "test"] and [len(p) for p in splits.values()] == [8, 4, 6]
    assert check_datalist(path, spatial_dims=2, allowed_labels=[1])["faults"] == []
    notes = json.loads(path.read_text())
    assert notes["patients_in_training_and_test"] == "1"
    every = {"patches": 8, "with_both_labels": 1.0, "entropy_in_bits": [0.0, 0.0]}  # one patch is the whole picture
    assert notes["patch_labels"] == {"112": every, "64": every, "32": every}
    for split, items in splits.items():
        for item in items:
            name = Path(item["image"]).stem
            assert item["part"] == {"train": "train", "testA": "A", "testB": "B"}[name.split("_")[0]]
            assert (split == "test") == (item["part"] != "train"), "no test picture in training"
            grades = GRADES[patient(name) % 2]
            assert (item["patient"], item["grade"], item["differentiation"]) == (str(patient(name)), *grades)
            assert Path(item["image"]).parent == source and item["mpp"] == 0.62
            picture, _ = AutoReader().get_data([item["image"]])
            label, instances = (AutoReader().get_data([item[key]])[0] for key in ("label", "instances"))
            assert picture.shape == (20, 13, 3) and label.shape == instances.shape == (20, 13)
            assert np.unique(instances).tolist() == [0, 1, 2] and ((instances > 0) == label).all()
            assert label[2:8, 1:5].all() and label.sum() == 24 + 78
    patients = [{item["patient"] for item in splits[name]} for name in ("training", "validation")]
    assert not patients[0] & patients[1] and len(set.union(*patients)) == 6
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*of the test")
        facts = check_histology(splits, classes=2, patch=12)
    assert {one.micrometres for one in facts} == {0.62}


def test_patch_labels_by_hand(source, tmp_path):
    """64 x 32 pixels, 24 columns of gland: of the patches at 0, 16 and 32 two have both labels, one has no gland."""
    for path in source.glob("*.bmp"):
        glands = np.zeros((32, 64), np.uint8)
        glands[:, :24] = 3
        Image.fromarray(glands if "anno" in path.name else np.zeros((32, 64, 3), np.uint8)).save(path)
    told = json.loads(prepared(source, tmp_path / "out").read_text())["patch_labels"]["32"]
    gland = -(2 / 3) * np.log2(2 / 3) - (1 / 3) * np.log2(1 / 3)
    assert told == {"patches": 24, "with_both_labels": 0.6667, "entropy_in_bits": [0.0, round(gland, 4)]}


def test_options(source, tmp_path):
    halves = [load_datalist(prepared(source, tmp_path / f"{s}", validation=0.5, seed=s)) for s in (0, 1, 2)]
    for half in halves:
        assert len(half["validation"]) == 4 and {item["grade"] for item in half["validation"]} == {
            "benign",
            "malignant",
        }
    assert len({tuple(item["patient"] for item in half["validation"]) for half in halves}) > 1
    assert "validation" not in load_datalist(prepared(source, tmp_path / "none", validation=0))
    path = prepared(source, tmp_path / "copied", copy=True)
    item = load_datalist(path)["training"][0]
    assert Path(item["image"]).read_bytes() == (source / Path(item["image"]).name).read_bytes()
    assert Path(item["image"]).parent == path.parent / "images"


@pytest.mark.parametrize(
    ("title", "end", "mark"),
    [
        ("name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)", "\r\n", ""),
        ("Name;Patient_ID;Grade (GlaS)", "\n", "\ufeff"),
        ("NAME\tpatient\tgrade", "\n", ""),
    ],
)
def test_tables_as_programs_save_them(source, tmp_path, title, end, mark):
    write_table(source, title=title, end=end, mark=mark)
    delimiter = "," if "," in title else ";" if ";" in title else "\t"
    table = source / "Grade.csv"
    text = table.read_bytes().decode().replace(",", delimiter)
    table.write_bytes((text if delimiter != "," else table.read_bytes().decode()).encode())
    item = load_datalist(prepared(source, tmp_path / "out"))["test"][0]
    assert item["grade"] == "malignant" and item["patient"] == "11"


def test_malformed_input_gives_one_sentence_and_leaves_nothing(source, tmp_path):
    def refused(match: str, error: type[Exception] = ValueError, **keywords) -> None:
        with pytest.raises(error, match=match) as caught, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            prepare(keywords.pop("source", source), tmp_path / "out", **keywords)
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()

    refused("does not exist", FileNotFoundError, source=tmp_path / "no")
    refused("validation must be a share of at least 0 and below 1, got 1", validation=1)
    Image.fromarray(np.zeros((13, 19), np.uint8)).save(source / "train_3_anno.bmp")
    refused(r"annotation '.*train_3_anno.bmp' has \(19, 13\) pixels, but its picture has \(20, 13\)")
    Image.fromarray(np.random.default_rng(0).integers(0, 9, (13, 20, 3), dtype=np.uint8)).save(
        source / "train_3_anno.bmp"
    )
    refused("annotation '.*train_3_anno.bmp' is in colour, expected the number of its gland at each pixel")
    (source / "train_3_anno.bmp").write_bytes(b"BM")
    refused("train_3_anno.bmp' cannot be read as picture")
    (source / "train_3_anno.bmp").unlink()
    refused("picture '.*train_3.bmp' has no annotation, expected train_3_anno.bmp")
    (source / "train_3.bmp").rename(source / "train_3_overlay.bmp")
    refused("unknown picture '.*train_3_overlay.bmp', expected train_<n>.bmp, testA_<n>.bmp")
    (source / "train_3_overlay.bmp").rename(source / "train_3.jpg")
    refused("unknown picture '.*train_3.jpg'")
    (source / "train_3.jpg").rename(source / "train_3")
    refused("picture 'train_3' of '.*Grade.csv' is not below '.*' .1 in all.; with allow_missing=True")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        notes = json.loads(prepare(source, tmp_path / "lenient", allow_missing=True).read_text())
    assert notes["missing_pictures"] == 1
    write_table(source, names=NAMES[:-1])
    refused("picture '.*testB_2.bmp' is not in '.*Grade.csv'", allow_missing=True)
    (source / "testB_2.bmp").unlink()
    refused("annotation '.*testB_2_anno.bmp' has no picture, expected testb_2.bmp", allow_missing=True)
    (source / "more").mkdir()
    (source / "train_1.bmp").rename(source / "train_1.png")
    (source / "train_2.bmp").rename(source / "more" / "train_1.bmp")
    refused("picture 'train_1' is at '.*more.*' and at '.*train_1.png', expected one")


def test_malformed_tables(source, tmp_path):
    def refused(match: str, content: bytes) -> None:
        (source / "Grade.csv").write_bytes(content)
        with pytest.raises(ValueError, match=match) as caught:
            prepare(source, tmp_path / "out")
        assert "\n" not in str(caught.value)

    columns = "expected 'name', 'patient ID' and 'grade .GlaS.', each once"
    refused(r"has the columns \['name', 'grade'\], " + columns, b"name,grade\ntrain_1,benign\n")
    refused(r"has the columns \['name', 'patient', 'patient ID', 'grade'\]", b"name,patient,patient ID,grade\n")
    refused(r"has the columns \[\]", b"")
    refused("line 2: expected name, patient and grade, found .'train_1', '3'.", TITLE.encode() + b"\ntrain_1,3\n")
    refused("line 3: expected name, patient and grade, found .'valid_1'", TITLE.encode() + b"\n\nvalid_1,3,benign,x\n")
    refused("line 3: train_1 is there twice", TITLE.encode() + b"\ntrain_1,3,benign,x\ntrain_1,3,benign,x\n")
    refused("is not a CSV file", b"name,\xff\xfe\x00patient ID")
    (source / "Grade.csv").unlink()
    with pytest.raises(ValueError, match="holds 0 files Grade.csv, expected one"):
        prepare(source, tmp_path / "out")
    write_table(source)
    names = [name for name in NAMES if name.startswith("test")]
    for name in NAMES[:12]:
        for end in (".bmp", "_anno.bmp"):
            (source / f"{name}{end}").unlink()
    write_table(source, names=names)
    with pytest.raises(ValueError, match="holds no picture train_<n>.bmp"):
        prepare(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command(source, tmp_path, capsys):
    with pytest.warns(UserWarning, match="1 patients"):
        assert main(["prepare", "glas", str(source), str(tmp_path / "out"), "--validation", "0.3"]) == 0
    assert "datalist.json" in capsys.readouterr().out
    assert len(load_datalist(tmp_path / "out" / "datalist.json")["validation"]) == 4
