# SPDX-License-Identifier: Apache-2.0
"""The header of a derived image: whose it is, where it lies, and that it is not its source."""

from __future__ import annotations

import functools
from datetime import UTC, datetime

import numpy as np
import pydicom
import pytest
from dicom_derived_samples import by_position, read, series, write
from dicom_samples import new_slice, phantom, save, series_slices
from monai.transforms import (
    SaveImage,
)

from monai_labelfx._version import __version__
from monai_labelfx.data._dicom_derived_header import Derivation, derive, is_derived_here
from monai_labelfx.data.dicom_derived_series_writer import DicomDerivedSeriesWriter

NOON = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
DERIVATION = Derivation("Denoised", "1.2.3", None, None, NOON)
SECRET = "Planted^Secret"


def _rich(image, index):
    """A slice with everything that must not, or must, get into the derived one."""
    image.SeriesDescription, image.SeriesNumber = "Thorax 1.0 B70f", 4
    image.SpecificCharacterSet = "ISO_IR 100"
    block = image.private_block(0x0029, SECRET, create=True)
    block.add_new(1, "LO", SECRET)
    item = pydicom.Dataset()
    item.private_block(0x0029, SECRET, create=True).add_new(1, "LO", SECRET)
    item.CodeMeaning = "kept"
    image.ProcedureCodeSequence = [item]
    image.add_new(0x60003000, "OW", b"\1" * 24)
    image.add_new(0x60000010, "US", image.Rows)
    image.add_new(0x50000005, "US", 1)
    icon = new_slice(np.zeros((2, 2), np.uint16))
    del icon.file_meta
    image.IconImageSequence = [icon]
    image.SmallestImagePixelValue, image.LargestImagePixelValue = 3, 4
    image.DerivationDescription, image.LossyImageCompression = "JPEG once", "01"
    image.LossyImageCompressionRatio, image.LossyImageCompressionMethod = 10, "ISO_10918_1"
    image.TimezoneOffsetFromUTC = "+0900"
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"]
    image.WindowCenter, image.WindowWidth = [40, 300], [400, 1500]


def test_header_of_a_derived_image(tmp_path):
    source = series(tmp_path / "source", _rich)
    folder = write(read(source), tmp_path / "made")
    olds, news = by_position(source), by_position(folder)
    for old, new in zip(olds, news, strict=True):
        for keyword in (
            *("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID", "SOPClassUID", "InstanceNumber"),
            *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope"),
            *("WindowCenter", "WindowWidth", "LossyImageCompression", "LossyImageCompressionRatio", "StudyDate"),
        ):
            assert new[keyword] == old[keyword]
        assert new.SOPInstanceUID != old.SOPInstanceUID == new.SourceImageSequence[0].ReferencedSOPInstanceUID
        assert new.file_meta.MediaStorageSOPInstanceUID == new.SOPInstanceUID
        assert new.SourceImageSequence[0].ReferencedSOPClassUID == old.SOPClassUID
        assert new.SourceImageSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        assert new.ImageType == ["DERIVED", "SECONDARY", "AXIAL", "CT_SOM5 SPI"]
        assert new.DerivationDescription == f"monai-labelfx {__version__}: Denoised; before: JPEG once"
        assert new.SeriesDescription == "Thorax 1.0 B70f Denoised" and new.SeriesNumber == 401
        equipment = new.ContributingEquipmentSequence[-1]
        assert (equipment.Manufacturer, equipment.SoftwareVersions) == ("monai-labelfx", __version__)
        assert equipment.ContributionDateTime.endswith("+0900") and new.InstanceCreationTime == new.ContentTime
        assert not {"IconImageSequence", "SmallestImagePixelValue", "LargestImagePixelValue"} & set(new.dir())
        assert not [element.tag for element in new.iterall() if element.tag.is_private or element.tag.group >= 0x8000]
        assert not [element.tag for element in new if element.tag.group & 0xFF00 in (0x5000, 0x6000)]
        assert new.ProcedureCodeSequence[0].CodeMeaning == "kept"
    assert len({new.SeriesInstanceUID for new in news}) == 1 != len({new.SOPInstanceUID for new in news})
    assert news[0].SeriesInstanceUID != olds[0].SeriesInstanceUID
    assert not any(SECRET.encode() in path.read_bytes() for path in folder.iterdir())
    assert sorted(path.name for path in folder.iterdir()) == [f"{number:04d}.dcm" for number in range(1, 9)]


def test_a_second_generation_refers_to_the_first(tmp_path):
    source = series(tmp_path / "source")
    first = write(read(source), tmp_path / "first")
    second = write(read(first), tmp_path / "second", description="Registered")
    for old, new in zip(by_position(first), by_position(second), strict=True):
        assert new.SourceImageSequence[0].ReferencedSOPInstanceUID == old.SOPInstanceUID
        assert new.DerivationDescription == (
            f"monai-labelfx {__version__}: Registered; before: monai-labelfx {__version__}: Denoised"
        )
        assert [code.CodeMeaning for code in new.DerivationCodeSequence] == ["Smoothing", "Registered"]
        assert len(new.ContributingEquipmentSequence) == 2 and new.SeriesNumber == 10101


def test_options_and_long_descriptions(tmp_path):
    source = series(tmp_path / "source", lambda image, index: setattr(image, "SeriesDescription", "x" * 64))
    image = read(source)
    (new, *_) = by_position(write(image, tmp_path / "a"))
    assert new.SeriesDescription == "x" * 55 + " Denoised" and len(new.SeriesDescription) == 64
    options = {"description": "Registered", "series_number": 7, "series_description": "mine"}
    writer = functools.partial(DicomDerivedSeriesWriter, **options)
    SaveImage(tmp_path, output_ext=".dcm", writer=writer, print_log=False)(image, filename=tmp_path / "b")
    (new, *_) = by_position(tmp_path / "b")
    assert (new.SeriesNumber, new.SeriesDescription) == (7, "mine") and "Registered" in new.DerivationDescription
    assert new.DerivationCodeSequence[0].CodingSchemeDesignator == "99LABELFX"
    for bad in (
        {"scale": 255},
        {"description": ""},
        {"description": "a\\b"},
        {"description": "ä"},
        {"description": " "},
    ):
        with pytest.raises(ValueError, match="scale must be None|description must be"):
            DicomDerivedSeriesWriter(**bad)
    for bad in ({"series_number": -1}, {"series_number": 2**31}, {"series_description": "x" * 65}):
        with pytest.raises(ValueError, match="series_number must|series_description must"):
            DicomDerivedSeriesWriter(**bad)


def test_a_name_in_a_broken_character_set_survives_as_bytes(tmp_path):
    source = series(tmp_path / "source", lambda image, index: image.add_new(0x00104000, "LT", "marker####"))
    for path in source.iterdir():
        path.write_bytes(path.read_bytes().replace(b"marker####", b"M\xfcller\xff\xfe##"))
    for path in write(read(source), tmp_path / "made").iterdir():
        assert b"M\xfcller\xff\xfe##" in path.read_bytes()


@pytest.mark.parametrize("syntax", ["ImplicitVRLittleEndian", "ExplicitVRBigEndian"])
def test_other_encodings_of_the_source(tmp_path, syntax):
    plain = by_position(series(tmp_path / "plain"))
    (tmp_path / "source").mkdir()
    uid = getattr(pydicom.uid, syntax)
    order = "<" if uid.is_little_endian else ">"
    for index, image in enumerate(series_slices(phantom())):
        table = pydicom.Dataset()
        table.LUTDescriptor, table.LUTData = [3, 0, 16], np.array([1, 258, 3], f"{order}u2").tobytes()
        table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "OW"
        image.VOILUTSequence = [table]
        image.PixelData = np.frombuffer(image.PixelData, "<u2").astype(f"{order}u2").tobytes()
        image.SpecificCharacterSet, image.PatientName, image.PixelPaddingValue = "ISO_IR 100", "Ä^b", 7
        image.file_meta.TransferSyntaxUID = uid
        image.save_as(tmp_path / f"source/{index}.dcm", enforce_file_format=True)
    made = by_position(write(read(tmp_path / "source"), tmp_path / "made"))
    for old, new in zip(plain, made, strict=True):
        assert new.PixelData == old.PixelData and new.PatientName == "Ä^b" and new.PixelPaddingValue == 7
        assert new["PixelPaddingValue"].VR == "US"
        assert np.frombuffer(new.VOILUTSequence[0].LUTData, "<u2").tolist() == [1, 258, 3]


@pytest.mark.parametrize(
    ("syntax", "before", "after"),
    [
        ("JPEGBaseline8Bit", None, ("01", "ISO_10918_1")),
        ("JPEGLSNearLossless", "00", ("01", "ISO_14495_1")),
        ("JPEG2000Lossless", "00", ("00", None)),
        ("ExplicitVRLittleEndian", "01", ("01", None)),
        ("ExplicitVRLittleEndian", None, (None, None)),
    ],
)
def test_a_lossy_past_stays_on_record(syntax, before, after):
    image = new_slice(np.zeros((2, 2), np.uint16))
    image.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
    if before is not None:
        image.LossyImageCompression = before
    derive(image, DERIVATION)
    assert (image.get("LossyImageCompression"), image.get("LossyImageCompressionMethod")) == after
    assert image.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian


@pytest.mark.parametrize(("number", "expected"), [(None, 1), (3, 301), (0, 1), (30_000_000, 1)])
def test_series_number(number, expected):
    image = new_slice(np.zeros((2, 2), np.uint16))
    image.SeriesNumber = number
    derive(image, DERIVATION)
    assert image.SeriesNumber == expected


@pytest.mark.parametrize("offset", ["", "+0530", "-0800", "nonsense"])
def test_dates_are_in_the_time_zone_of_the_source(offset):
    image = new_slice(np.zeros((2, 2), np.uint16))
    if offset:
        image.add_new("TimezoneOffsetFromUTC", "SH", offset)
    derive(image, DERIVATION)
    known = offset[:1] in ("+", "-") and offset
    zone = datetime.strptime(offset, "%z").tzinfo if known else None
    assert image.InstanceCreationDate + image.InstanceCreationTime == NOON.astimezone(zone).strftime("%Y%m%d%H%M%S")


def test_the_header_keeps_no_other_format(tmp_path):
    image = new_slice(np.zeros((2, 2), np.uint16))
    image.preamble = b"II*\0" + bytes(124)
    image.file_meta.SourceApplicationEntityTitle = "PLACE"
    derive(image, DERIVATION)
    assert image.preamble == bytes(128) and "SourceApplicationEntityTitle" not in image.file_meta


def test_only_images_of_this_package_are_recognised(tmp_path):
    folder = save(tmp_path / "source", series_slices(phantom()))
    path = str(folder / "0000.dcm")
    assert not is_derived_here(path) and not is_derived_here(__file__) and not is_derived_here(str(tmp_path / "no"))
    assert all(is_derived_here(str(file)) for file in write(read(folder), tmp_path / "made").iterdir())
