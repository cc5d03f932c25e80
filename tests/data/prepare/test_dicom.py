# SPDX-License-Identifier: Apache-2.0
"""A DICOM export becomes a datalist."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dicom_export import write_export, write_seg

from monai_labelfx.cli import main
from monai_labelfx.data import check_datalist, load_datalist
from monai_labelfx.data.prepare.dicom import prepare


def test_an_export_becomes_a_datalist(tmp_path):
    export = write_export(tmp_path / "export")
    path = prepare(export, tmp_path / "data", modality="ct", min_images=2, validation=0.2, test=0.2, seed=1)
    splits = load_datalist(path)
    assert {name: len(items) for name, items in splits.items()} == {"training": 6, "validation": 2, "test": 2}
    for items in splits.values():
        for item in items:
            folder = item["image"] if isinstance(item["image"], str) else str(Path(item["image"][0]).parent)
            assert ("label" in item) == folder.endswith("/0")
            assert isinstance(item["image"], list) == folder.endswith("/1")  # the scout lies beside it
    subjects = {name: {item["subject"] for item in items} for name, items in splits.items()}
    assert len(set.union(*subjects.values())) == 5 == sum(map(len, subjects.values()))
    assert "Zzyzx" not in path.read_text()
    report = check_datalist(path)
    assert not report["faults"] and {row["labels"] for row in report["rows"]} == {None, 1}
    again = prepare(export, tmp_path / "again", modality="CT", min_images=2, validation=0.2, test=0.2, seed=1)
    assert json.loads(again.read_text()) == json.loads(path.read_text())


def test_the_command(tmp_path, capsys):
    export = write_export(tmp_path / "export", patients=2)
    assert main(["prepare", "dicom", str(export), str(tmp_path / "data"), "--validation", "0.5"]) == 0
    assert "labelfx check" in capsys.readouterr().out
    splits = load_datalist(tmp_path / "data" / "datalist.json")
    assert [len(items) for items in splits.values()] == [3, 3]  # the scouts are series of their own


def test_what_cannot_be_used_is_said(tmp_path):
    export = write_export(tmp_path / "export", patients=2)
    with pytest.raises(FileNotFoundError, match="'absent' does not exist"):
        prepare("absent", tmp_path / "data")
    with pytest.raises(ValueError, match="holds no image series of modality MR"):
        prepare(export, tmp_path / "data", modality="MR")
    with pytest.raises(ValueError, match="leave none for training"):
        prepare(export, tmp_path / "data", validation=0.5, test=0.5)
    write_seg(export / "0" / "study" / "0", export / "0" / "second.dcm")
    with pytest.raises(ValueError, match=r"has two SEGs, .*second\.dcm"):
        prepare(export, tmp_path / "data")
    assert not (tmp_path / "data").exists()
