# SPDX-License-Identifier: Apache-2.0
"""check_images: every image and series of a folder, each with its faults."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from dicom_export import write_export
from dicom_samples import CASES, new_slice, phantom, save, write_series
from pydicom import dcmread

from monai_labelfx.data import check_images

DX = "1.2.840.10008.5.1.4.1.1.1.1"


def test_an_export_of_everything(tmp_path):
    write_series(tmp_path / "good", phantom())
    CASES["two series in one folder"](tmp_path / "two")
    CASES["localizer of another size in the folder"](tmp_path / "scout")
    save(tmp_path / "rays", [new_slice(np.full((6, 5), n, np.uint16), sop_class=DX, modality="DX") for n in range(2)])
    nibabel.save(nibabel.Nifti1Image(phantom(), np.eye(4)), tmp_path / "a.nii.gz")
    (tmp_path / "report.txt").write_text("not an image")
    report = check_images(tmp_path)
    assert not report["faults"]
    shapes = {}
    for row in report["rows"]:
        assert row["split"] == "images"
        shapes.setdefault(row["item"].split("/")[0], []).append(row["shape"])
    assert sorted(shapes) == ["a.nii.gz", "good", "rays", "scout", "two"]
    assert shapes["good"] == [[16, 12, 8]] and sorted(shapes["two"]) == [[16, 12, 5], [16, 12, 8]]
    assert sorted(shapes["scout"]) == [[16, 12, 8], [24, 20]] and shapes["rays"] == [[5, 6], [5, 6]]
    assert [row["index"] for row in report["rows"]] == list(range(8))


@pytest.mark.parametrize(
    ("case", "words"),
    [("one slice missing", "gap of 5 mm"), ("triple gap", "2 slices seem to be missing"), ("RGB ultrasound", None)],
)
def test_faults_of_dicom_are_rows(case, words, tmp_path):
    CASES[case](tmp_path / "series")
    report = check_images(tmp_path)
    assert len(report["rows"]) == 1
    if words is None:
        assert not report["faults"]
    else:
        assert len(report["faults"]) == 1 and words in report["faults"][0]
        assert report["rows"][0]["item"].startswith("series/0000.dcm")


def test_a_cut_off_file_is_a_fault_and_the_others_are_checked(tmp_path):
    write_series(tmp_path / "good", phantom())
    write_series(tmp_path / "bad", phantom())
    file = min((tmp_path / "bad").iterdir(), key=lambda f: abs(dcmread(f).InstanceNumber - 4))
    file.write_bytes(file.read_bytes()[:200])
    report = check_images(tmp_path)
    assert [row["shape"] for row in report["rows"]] == [None, None, [16, 12, 8]]
    broken, gap = report["faults"]
    assert broken.startswith(f"bad/{file.name}: ") and "gap of 5 mm" in gap


def test_a_seg_is_a_row(tmp_path):
    export = write_export(tmp_path / "export", patients=1)
    rows = {row["item"].split(" ")[0]: row for row in check_images(export)["rows"]}
    assert rows["0/study/seg.dcm"]["shape"] == [16, 12, 8] and rows["0/study/seg.dcm"]["dtype"] == "uint16"
    (export / "0" / "study" / "seg.dcm").write_bytes((export / "0" / "study" / "seg.dcm").read_bytes()[:-400])
    (fault,) = check_images(export)["faults"]
    assert "seg.dcm" in fault


def test_dimensions_one_file_and_nothing(tmp_path):
    write_series(tmp_path / "good", phantom())
    assert "expected 2" in check_images(tmp_path, spatial_dims=2)["faults"][0]
    np.save(tmp_path / "a.npy", np.zeros((4, 5)))
    assert check_images(tmp_path / "a.npy")["rows"][0]["shape"] == [4, 5]
    assert check_images(tmp_path / "a.npy", spatial_dims=3)["faults"]
    with pytest.raises(FileNotFoundError, match="nothing to check"):
        check_images(tmp_path / "absent")
