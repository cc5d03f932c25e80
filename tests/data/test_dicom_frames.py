# SPDX-License-Identifier: Apache-2.0
"""frames_of: what a header says, and one sentence for files that cannot be used."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from dicom_samples import ORIENTATIONS, ORIGIN, SPACING, enhanced, new_slice, phantom, save, series_slices
from pydicom.dataset import Dataset
from pydicom.fileset import FileSet
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from monai_labelfx.data._dicom_frames import frames_of, kind_of, phase_names

SR, SEG, LABEL_MAP, PR, RTSTRUCT = (
    "1.2.840.10008.5.1.4.1.1.88.11",
    "1.2.840.10008.5.1.4.1.1.66.4",
    "1.2.840.10008.5.1.4.1.1.66.7",
    "1.2.840.10008.5.1.4.1.1.11.1",
    "1.2.840.10008.5.1.4.1.1.481.3",
)


def written(tmp_path, image: Dataset) -> str:
    return str(save(tmp_path, [image]) / "0000.dcm")


def ct(**changes) -> Dataset:
    image = series_slices(phantom((16, 12, 1)))[0]
    for keyword, value in changes.items():
        if value is None:
            delattr(image, keyword)
        else:
            setattr(image, keyword, value)
    return image


def no_image(sop_class: str) -> Dataset:
    image = new_slice(np.zeros((4, 5), np.uint16), sop_class=sop_class, modality="OT")
    if sop_class not in (SEG, LABEL_MAP):
        del image.Rows, image.Columns, image.PixelData
    return image


def test_single_frame(tmp_path):
    image = ct(SeriesDescription="thorax", EchoNumbers=2)
    (frame,) = frames_of(written(tmp_path, image))
    assert (frame.path, frame.index) == (str(tmp_path / "0000.dcm"), None)
    assert (frame.series_uid, frame.study_uid) == (image.SeriesInstanceUID, image.StudyInstanceUID)
    assert (frame.frame_of_reference_uid, frame.sop_class_uid) == (image.FrameOfReferenceUID, image.SOPClassUID)
    assert (frame.modality, frame.description) == ("CT", "thorax")
    assert (frame.rows, frame.columns, frame.samples) == (12, 16, 1)
    assert frame.orientation == (1, 0, 0, 0, 1, 0) and frame.position == ORIGIN
    assert frame.spacing == (SPACING[1], SPACING[0]) and frame.thickness == SPACING[2]
    assert dict(zip(phase_names(), frame.temporal, strict=True))["EchoNumbers"] == "2"
    assert type(frame.series_uid) is str, "no pydicom types, which would be pickled and collated"


def test_every_frame_of_a_multi_frame_file(tmp_path):
    frames = frames_of(written(tmp_path, enhanced(phantom(), orientation="oblique")))
    assert [frame.index for frame in frames] == list(range(8)) and {frame.rows for frame in frames} == {12}
    row, column, step = ORIENTATIONS["oblique"]
    assert np.allclose([frame.orientation for frame in frames], [*row, *column])
    assert {frame.spacing for frame in frames} == {(SPACING[1], SPACING[0])}
    places = np.array(sorted(np.dot(frame.position, step) for frame in frames))
    assert np.allclose(places, np.dot(ORIGIN, step) + SPACING[2] * np.arange(8))


def test_a_multi_frame_file_of_one_frame_keeps_its_number(tmp_path):
    (frame,) = frames_of(written(tmp_path, enhanced(phantom((16, 12, 1)))))
    assert frame.index == 0 and np.allclose(frame.position, ORIGIN)


def test_frames_without_functional_groups(tmp_path):
    cine = new_slice(np.zeros((4, 5), np.uint8), sop_class="1.2.840.10008.5.1.4.1.1.3.1", modality="US")
    cine.BitsAllocated, cine.BitsStored, cine.HighBit, cine.NumberOfFrames = 8, 8, 7, 3
    cine.PixelData = bytes(60)
    frames = frames_of(written(tmp_path, cine))
    assert [frame.index for frame in frames] == [0, 1, 2] and {frame.position for frame in frames} == {None}
    cine.NumberOfFrames, cine.PixelData = 1, bytes(20)
    assert [frame.index for frame in frames_of(written(tmp_path, cine))] == [None]


@pytest.mark.parametrize(
    ("tags", "spacing"),
    [
        ({}, None),
        ({"NominalScannedPixelSpacing": [3, 4]}, (3, 4)),
        ({"NominalScannedPixelSpacing": [3, 4], "ImagerPixelSpacing": [1, 2]}, (1, 2)),
        ({"ImagerPixelSpacing": [1, 2], "PixelSpacing": [5, 6]}, (5, 6)),
    ],
)
def test_pixel_size_of_a_projection(tmp_path, tags, spacing):
    image = new_slice(np.zeros((4, 5), np.uint16), sop_class="1.2.840.10008.5.1.4.1.1.1.1", modality="DX")
    for keyword, value in tags.items():
        setattr(image, keyword, value)
    assert frames_of(written(tmp_path, image))[0].spacing == spacing


def test_the_detector_says_nothing_about_a_slice(tmp_path):
    assert frames_of(written(tmp_path, ct(PixelSpacing=None, ImagerPixelSpacing=[1, 2])))[0].spacing is None


@pytest.mark.parametrize(
    ("between", "thickness", "expected"),
    [(3, 2.5, 3), (None, 2.5, 2.5), (0, 2.5, 2.5), (-3, None, 1), (None, None, 1), ("nan", 2.5, 2.5)],
)
@pytest.mark.filterwarnings("ignore:Invalid value")
def test_thickness(tmp_path, between, thickness, expected):
    image = ct(SpacingBetweenSlices=1, SliceThickness=1)
    for keyword, value in (("SpacingBetweenSlices", between), ("SliceThickness", thickness)):
        setattr(image, keyword, value)
    assert frames_of(written(tmp_path, image))[0].thickness == expected


@pytest.mark.parametrize("sop_class", [SR, SEG, LABEL_MAP, PR, RTSTRUCT])
def test_other_objects_hold_no_image(tmp_path, sop_class):
    path = written(tmp_path, no_image(sop_class))
    assert frames_of(path) == []
    assert kind_of(path) == repr("Label Map Segmentation Storage" if sop_class == LABEL_MAP else UID(sop_class).name)


def test_a_dose_grid_is_no_image(tmp_path):
    """It has rows, pixels and one position, but its frames lie at offsets that no image has."""
    path = written(tmp_path, ct(SOPClassUID="1.2.840.10008.5.1.4.1.1.481.2", Modality="RTDOSE"))
    assert frames_of(path) == [] and "RT Dose" in kind_of(path)


def test_a_directory_of_a_disc_holds_no_image(tmp_path):
    discs = FileSet()
    discs.add(ct(StudyDate="20200101", StudyTime="120000", StudyID="1"))
    discs.write(tmp_path)
    assert frames_of(tmp_path / "DICOMDIR") == [] and "Directory" in kind_of(str(tmp_path / "DICOMDIR"))


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_transfer_syntaxes(tmp_path, syntax):
    image = ct()
    if syntax == ExplicitVRBigEndian:
        image.PixelData = image.pixel_array.astype(">u2").tobytes()
        image["PixelData"].VR = "OW"
    image.file_meta.TransferSyntaxUID = syntax
    image.save_as(tmp_path / "a", enforce_file_format=True)
    assert frames_of(tmp_path / "a")[0].position == ORIGIN


def test_more_pixels_than_bytes_are_right_where_they_are_compressed(tmp_path):
    image = ct(Rows=256, Columns=256)
    image.PixelData = bytes(2 * 256 * 256)
    image.compress(RLELossless)
    path = written(tmp_path, image)
    assert (tmp_path / "0000.dcm").stat().st_size < 2 * 256 * 256 and frames_of(path)[0].rows == 256


def test_a_file_without_preamble(tmp_path):
    image = ct()
    del image.file_meta
    image.save_as(tmp_path / "a", implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert (tmp_path / "a").read_bytes()[128:132] != b"DICM"
    assert frames_of(tmp_path / "a")[0].position == ORIGIN


@pytest.mark.parametrize(
    "content", [b"", b"no picture", b"\x00" * 300, bytes(range(256)) * 8, bytes(128) + b"DICM", b"<html>" * 99]
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_dicom_is_named(tmp_path, content):
    (tmp_path / "a.dcm").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.dcm'.*DICOM") as caught:
        frames_of(tmp_path / "a.dcm")
    assert "\n" not in str(caught.value)


def test_absent_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        frames_of(tmp_path / "absent.dcm")


def test_cut_off_files_are_never_taken_for_something_else(tmp_path):
    path = written(tmp_path, series_slices(phantom((64, 64, 1)))[0])
    whole = (tmp_path / "0000.dcm").read_bytes()
    for length in [*range(0, 1200, 13), len(whole) - 1200]:  # all of the header, and into the pixels
        (tmp_path / "0000.dcm").write_bytes(whole[:length])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = frames_of(path)
            except ValueError as error:
                assert path in str(error) and "\n" not in str(error)
            else:
                raise AssertionError(f"{len(found)} images after a cut at {length} of {len(whole)} bytes")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"Rows": None}, "Rows"),
        ({"Columns": 0}, "0 rows or columns"),
        ({"Rows": 60000, "Columns": 60000}, "announces"),
        ({"NumberOfFrames": 1000000000}, "announces"),
        ({"NumberOfFrames": -2}, "NumberOfFrames"),
        ({"ImagePositionPatient": [1, 2]}, "ImagePositionPatient, expected 3 numbers"),
        ({"ImageOrientationPatient": [1, 0, 0]}, "ImageOrientationPatient, expected 6 numbers"),
        ({"PixelSpacing": 0.7}, "PixelSpacing, expected 2 numbers"),
        ({"SliceThickness": [1, 2]}, "SliceThickness, expected 1 number$"),
    ],
)
def test_unusable_headers_are_named(tmp_path, changes, reason):
    with pytest.raises(ValueError, match=rf"0000\.dcm.*{reason}"):
        frames_of(written(tmp_path, ct(**changes)))


def test_a_number_that_is_text_is_named_but_not_quoted(tmp_path):
    image = ct()
    image.add_new("PixelSpacing", "LO", "Mustermann")
    with pytest.raises(ValueError, match="PixelSpacing, expected 2 numbers") as caught:
        frames_of(written(tmp_path, image))
    assert "Mustermann" not in str(caught.value)


def test_frames_announced_and_described_must_agree(tmp_path):
    image = enhanced(phantom())
    image.NumberOfFrames = 7
    with pytest.raises(ValueError, match="announces 7 frames but describes 8"):
        frames_of(written(tmp_path, image))
