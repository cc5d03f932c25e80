# SPDX-License-Identifier: Apache-2.0
"""labelfx convert: there and back again, in every orientation."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from dicom_samples import CASES, ORIENTATIONS, affine_of, phantom, write_series

from monai_labelfx.cli import main
from monai_labelfx.commands.convert import parse_segments

SHAPE = (16, 12, 8)


def convert(*arguments) -> int:
    return main(["convert", *map(str, arguments)])


def labels(seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4, SHAPE).astype(np.uint8)


def pixels(folder: Path) -> dict[tuple, bytes]:
    """Position -> stored pixels of each file."""
    headers = [pydicom.dcmread(path) for path in folder.iterdir()]
    return {tuple(map(float, h.ImagePositionPatient)): h.PixelData for h in headers}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_series_to_nifti_and_back(orientation, tmp_path):
    series = write_series(tmp_path / "series", phantom(), orientation=orientation)
    assert convert(series, tmp_path / "a.nii.gz") == 0
    image = nibabel.load(tmp_path / "a.nii.gz")
    assert image.get_data_dtype() == np.int16 and np.array_equal(image.get_fdata(), phantom())
    assert np.allclose(image.affine, affine_of(orientation), atol=1e-5)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert (int(image.header["qform_code"]) == 0) is (orientation == "tilted")  # a qform has no shear

    assert convert(tmp_path / "a.nii.gz", tmp_path / "derived", "--like", series) == 0
    assert pixels(tmp_path / "derived") == pixels(series)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_labels_to_seg_and_back(orientation, tmp_path):
    series = write_series(tmp_path / "series", phantom(), orientation=orientation)
    nibabel.save(nibabel.Nifti1Image(labels(), affine_of(orientation)), tmp_path / "label.nii.gz")
    names = ["--segments", "1=tumour,2=left kidney"]
    assert convert(tmp_path / "label.nii.gz", tmp_path / "seg.dcm", "--like", series, *names) == 0
    segments = {int(s.SegmentNumber): s.SegmentLabel for s in pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence}
    assert segments[1] == "tumour" and segments[2] == "left kidney"
    assert convert(tmp_path / "seg.dcm", tmp_path / "again.nii.gz", "--like", series) == 0
    again = nibabel.load(tmp_path / "again.nii.gz")
    assert again.get_data_dtype() == np.uint8 and np.array_equal(again.get_fdata(), labels())
    assert np.allclose(again.affine, affine_of(orientation), atol=1e-5)


def test_a_nifti_with_other_axes_still_fits(tmp_path):
    """Other programs store the same grid turned: axes are swapped and flipped back, nothing is interpolated."""
    series = write_series(tmp_path / "series", phantom())
    turned = nibabel.as_closest_canonical(nibabel.Nifti1Image(phantom(), affine_of("axial")))
    turned = nibabel.Nifti1Image(turned.get_fdata().transpose(2, 0, 1), turned.affine[:, [2, 0, 1, 3]])
    nibabel.save(turned, tmp_path / "turned.nii")
    assert convert(tmp_path / "turned.nii", tmp_path / "derived", "--like", series) == 0
    assert pixels(tmp_path / "derived") == pixels(series)


def test_one_of_several_series(tmp_path, capsys):
    folder = CASES["two series in one folder"](tmp_path / "export")
    assert convert(folder, tmp_path / "a.nii.gz") == 1
    message = capsys.readouterr().err
    uid = pydicom.dcmread(folder / "b0000.dcm").SeriesInstanceUID
    assert uid in message and not (tmp_path / "a.nii.gz").exists()
    assert convert(folder, tmp_path / "a.nii.gz", "--series", uid) == 0
    assert nibabel.load(tmp_path / "a.nii.gz").shape == (16, 12, 5)
    assert convert(tmp_path / "a.nii.gz", tmp_path / "derived", "--like", folder, "--series", uid) == 0


def test_gaps_are_refused_unless_asked(tmp_path, capsys):
    folder = CASES["one slice missing"](tmp_path / "series")
    assert convert(folder, tmp_path / "a.nii.gz") == 1
    assert "gap" in capsys.readouterr().err
    with pytest.warns(UserWarning):
        assert convert(folder, tmp_path / "a.nii.gz", "--on-irregular", "resample") == 0
    assert np.allclose(nibabel.load(tmp_path / "a.nii.gz").affine, affine_of("axial"))


def test_fractions_stay_fractions(tmp_path):
    series = write_series(tmp_path / "series", phantom(), slope=0.25)
    assert convert(series, tmp_path / "a.nii") == 0
    assert nibabel.load(tmp_path / "a.nii").get_data_dtype() == np.int16  # whole HU in spite of the slope
    nibabel.save(nibabel.Nifti1Image(phantom() + 0.25, affine_of("axial")), tmp_path / "fraction.nii")
    assert convert(tmp_path / "fraction.nii", tmp_path / "copy.nii") == 0
    assert np.array_equal(nibabel.load(tmp_path / "copy.nii").get_fdata(), phantom() + 0.25)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["absent", "b.nii"], "absent' does not exist"),
        (["a.nii", "a.nii"], "a.nii exists already"),
        (["a.nii", "b.dcm"], "needs --like SERIES"),
        (["a.nii", "folder"], "needs --like SERIES"),
        (["a.nii", "b.nii", "--segments", "1=x"], "--segments names the segments of a SEG"),
        (["a.nii", "b.nii", "--description", "x"], "--description is for a derived series"),
        (["other.nii", "b.dcm", "--like", "series"], "grid"),
        (["nowhere.nii", "b.dcm", "--like", "series"], "has no position in space"),
        (["nowhere.nii", "b.nii", "--like", "series"], "has no position in space"),
        (["a.nii", "taken.dcm", "--like", "series", "--to", "series"], "taken exists already"),
        (["channels.npy", "b.nii"], "3 channels"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_series(tmp_path / "series", phantom())
    nibabel.save(nibabel.Nifti1Image(labels(), affine_of("axial")), "a.nii")
    nibabel.save(nibabel.Nifti1Image(labels(), affine_of("oblique")), "other.nii")
    nibabel.save(nibabel.Nifti1Image(labels(), np.diag([0.7, 0.9, 2.5, 1.0])), "nowhere.nii")
    (tmp_path / "taken").mkdir()
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 1, 3), np.uint8), np.eye(4)), "channels.nii")
    before = sorted(p.name for p in tmp_path.iterdir())
    arguments = [a.replace("channels.npy", "channels.nii") for a in arguments]
    assert convert(*arguments) == 1
    message = capsys.readouterr().err
    assert sentence in message and "Traceback" not in message and message.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_segments():
    assert parse_segments(None) == {}
    for bad in ("tumour", "1=", "x=y", "1"):
        with pytest.raises(ValueError, match="expected label values with names"):
            parse_segments(bad)
