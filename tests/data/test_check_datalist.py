# SPDX-License-Identifier: Apache-2.0
"""check_datalist: the whole list, repeats across splits, and no traceback whatever the bytes."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from dicom_samples import phantom, write_series
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from monai_labelfx.data import check_datalist, save_datalist


def picture(path: Path, seed: int = 0) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 9), dtype=np.uint8)).save(path)
    return str(path)


def test_a_good_list(tmp_path, capsys):
    splits = {
        "training": [{"image": picture(tmp_path / "a.png", 1), "label": picture(tmp_path / "l.png", 2), "subject": 1}],
        "test": [{"image": picture(tmp_path / "b.png", 3), "subject": 2}],
    }
    report = check_datalist(save_datalist(tmp_path / "datalist.json", splits), spatial_dims=2)
    assert report["faults"] == [] and report["warnings"] == [] and capsys.readouterr().out == ""
    assert [(row["split"], row["index"], row["item"]) for row in report["rows"]] == [
        ("training", 0, "a.png"),
        ("test", 0, "b.png"),
    ]
    assert report["rows"][0]["shape"] == [9, 8] and report["rows"][0]["dtype"] == "uint8"
    assert report["rows"][1]["labels"] is None
    json.dumps(report)


def test_repeats(tmp_path):
    first = picture(tmp_path / "a.png", 1)
    copy = shutil.copy(first, tmp_path / "copy.png")
    splits = {
        "training": [{"image": first, "subject": "s"}, {"image": first, "subject": "s"}],
        "validation": [{"image": str(copy), "subject": "other"}],
        "test": [{"image": picture(tmp_path / "b.png", 2), "subject": "s"}],
    }
    report = check_datalist(save_datalist(tmp_path / "datalist.json", splits))
    assert report["faults"] == [
        "validation[0] (copy.png): the same image is also in another split, at training[0] (a.png)",
        "test[0] (b.png): subject 's' is also in another split, at training[0] (a.png)",
    ]
    assert report["warnings"] == ["training[1] (a.png): the same image is also at training[0] (a.png)"]


@pytest.mark.parametrize("key", ["patient", "slide"])
def test_a_patient_or_slide_in_two_splits(tmp_path, key):
    names = ["training", "training", "validation", "test"]
    splits = {name: [] for name in names}
    for number, name in enumerate(names):
        splits[name].append({"image": picture(tmp_path / f"{number}.png", number), key: 7})
    report = check_datalist(save_datalist(tmp_path / "datalist.json", splits))
    told = f"{key} '7' is also in another split, at training[0] (0.png)"
    assert report["faults"] == [f"validation[0] (2.png): {told}"]
    assert report["warnings"] == [f"test[0] (3.png): {told}"], "published data sets are split so"


def test_files_outside_the_folder_are_a_warning(tmp_path):
    outside = picture(tmp_path / "elsewhere" / "a.png")
    path = save_datalist(tmp_path / "list" / "datalist.json", {"training": [{"image": outside}]})
    report = check_datalist(path)
    assert report["faults"] == [] and report["warnings"] == [
        f"1 files lie outside the folder of the datalist, such as {os.path.realpath(outside)!r}"
    ]


def test_faults_of_files_and_entries_are_lines_that_name_the_item(tmp_path):
    good = picture(tmp_path / "a.png")
    document = {"training": [{"image": good}, {"image": "absent.png"}, {"label": "x"}], "test": 3}
    (tmp_path / "datalist.json").write_text(json.dumps(document))
    report = check_datalist(tmp_path / "datalist.json")
    assert len(report["rows"]) == 2 and len(report["faults"]) == 3
    assert any("training[2] has no 'image'" in fault for fault in report["faults"])
    assert any(fault.startswith("training[1] (absent.png): image:") for fault in report["faults"])
    assert any("test must be a list" in fault for fault in report["faults"])


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"training": 1}'])
def test_unusable_json_is_one_fault(tmp_path, text):
    (tmp_path / "datalist.json").write_text(text)
    report = check_datalist(tmp_path / "datalist.json")
    assert len(report["faults"]) == 1 and report["rows"] == [] and "datalist.json" in report["faults"][0]


def test_absent_json_is_one_fault(tmp_path):
    assert "does not exist" in check_datalist(tmp_path / "absent.json")["faults"][0]


def _samples() -> dict[str, bytes]:
    array = np.random.default_rng(0).integers(0, 255, (6, 7, 8), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Image.fromarray(array[0]).save(folder / "a.png")
        tifffile.imwrite(folder / "a.tif", array, imagej=True, metadata={"axes": "ZYX", "unit": "um", "spacing": 2})
        tifffile.imwrite(folder / "b.tif", array, compression="zlib", ome=True, metadata={"axes": "ZYX"})
        np.save(folder / "a.npy", array)
        for suffix in ("nii", "nii.gz"):
            nib.save(nib.Nifti1Image(array, np.eye(4)), folder / f"a.{suffix}")
        return {path.name: path.read_bytes() for path in folder.iterdir()}


SAMPLES = _samples()


@st.composite
def damage(draw) -> tuple[str, bytes]:
    name = draw(st.sampled_from(sorted(SAMPLES)))
    data = bytearray(SAMPLES[name])
    if draw(st.booleans()):
        return name, bytes(data[: draw(st.integers(0, len(data) - 1))])
    # half of the flips hit the header, where they do most harm
    places = st.integers(0, len(data) - 1) | st.integers(0, min(400, len(data) - 1))
    for place in draw(st.lists(places, min_size=1, max_size=4)):
        data[place] = draw(st.integers(0, 255))
    return name, bytes(data)


def report_of_damaged_file(name: str, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, name).write_bytes(data)
        report = check_datalist(
            save_datalist(Path(folder, "datalist.json"), {"training": [{"image": name, "label": name}]})
        )
        (row,) = report["rows"]
        assert row["faults"] or row["shape"] is not None
        assert all("\n" not in fault for fault in report["faults"])


@settings(max_examples=200, deadline=None)
@given(damage())
def test_damaged_files_are_a_fault_or_a_valid_read(damaged):
    report_of_damaged_file(*damaged)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None)
@given(damage())
def test_damaged_files_at_length(damaged):
    report_of_damaged_file(*damaged)


@pytest.mark.sample_data
def test_real_nuclei(tmp_path):
    source = Path(os.environ["LABELFX_DATA"])
    images = sorted((source / "nuclei2d" / "images").glob("*.png"))[:6]
    items = [{"image": str(path), "label": str(path.parents[1] / "masks" / path.name)} for path in images]
    report = check_datalist(save_datalist(tmp_path / "datalist.json", {"training": items}), spatial_dims=2)
    assert report["faults"] == [] and all(row["labels"] > 0 for row in report["rows"])
    volume = {kind: str(source / "nuclei3d" / f"ovule_nuclei_1135_{kind}.tif") for kind in ("image", "label")}
    report = check_datalist(save_datalist(tmp_path / "volume.json", {"training": [volume]}), spatial_dims=3)
    assert report["faults"] == [] and report["rows"][0]["labels"] == 54


def test_a_copied_dicom_series_in_another_split_is_found(tmp_path):
    series = write_series(tmp_path / "series", phantom())
    shutil.copytree(series, tmp_path / "copy")
    write_series(tmp_path / "other", phantom(seed=1))
    splits = {"training": [{"image": "series"}, {"image": "other"}], "validation": [{"image": "copy"}]}
    (fault,) = check_datalist(save_datalist(tmp_path / "datalist.json", splits))["faults"]
    assert fault.startswith("validation[0] (copy): the same image is also in another split, at training[0]")
