# SPDX-License-Identifier: Apache-2.0
"""What headers say about a CT image, and one sentence about each that is none."""

from __future__ import annotations

import nibabel
import numpy as np
import pydicom
import pytest
from dicom_derived_samples import series
from dicom_samples import ORIENTATIONS, SPACING, affine_of, colour, enhanced, phantom, save, series_slices, write_series
from PIL import Image
from pydicom.data import get_testdata_file

from monai_labelfx.data._ct_facts import ct_facts


def nifti(path, array=None, affine=None):
    array = np.zeros((4, 5, 6), np.int16) if array is None else array
    image = nibabel.Nifti1Image(array, np.diag([0.7, 0.9, 2.5, 1]) if affine is None else affine)
    nibabel.save(image, path)
    return path


def _with(**values):
    def change(image, index):
        for keyword, value in values.items():
            setattr(image, keyword, value)

    return change


def _without(*keywords, only: int | None = None):
    def change(image, index):
        for keyword in keywords:
            if only in (None, index):
                delattr(image, keyword)

    return change


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_of_dicom(tmp_path, orientation):
    change = _with(ConvolutionKernel=["Br40f", "3"], SliceThickness="3.0", RescaleType="HU")
    folder = series(tmp_path / "a", change, orientation=orientation)
    image = pydicom.dcmread(folder / "0000.dcm")
    facts = ct_facts(folder)
    assert facts == ct_facts(sorted(folder.iterdir()))
    assert facts.name == f"DICOM series in '{folder}'" and facts.shape == (16, 12, 8)
    assert np.allclose(facts.spacing, SPACING) and facts.thickness == 3.0
    assert (facts.kernel, facts.lossy) == ("Br40f\\3", "")
    assert facts.series_uid == image.SeriesInstanceUID and facts.study_uid == image.StudyInstanceUID
    assert facts.frame_of_reference_uid == image.FrameOfReferenceUID
    one = ct_facts(folder / "0000.dcm")
    assert one.shape == (16, 12, 1) and one.name == f"DICOM file '{folder / '0000.dcm'}'"


def test_of_dicom_that_says_little(tmp_path):
    folder = series(tmp_path / "a", _without("SliceThickness"))
    facts = ct_facts(folder)
    assert facts.thickness == pytest.approx(SPACING[2]) and facts.kernel == ""
    two = series(tmp_path / "b", lambda image, index: setattr(image, "ConvolutionKernel", "AB"[index % 2]))
    assert ct_facts(two).kernel == "A and B"


@pytest.mark.parametrize("per_frame", [False, True])
def test_of_multi_frame_dicom(tmp_path, per_frame):
    image = enhanced(phantom())
    kernel = pydicom.Dataset()
    kernel.ConvolutionKernel = "B30f"
    shared = image.SharedFunctionalGroupsSequence[0]
    groups = image.PerFrameFunctionalGroupsSequence if per_frame else [shared]
    for group in groups:
        group.CTReconstructionSequence = [kernel]
    save(tmp_path, [image])
    facts = ct_facts(tmp_path / "0000.dcm")
    assert facts.kernel == "B30f" and facts.shape == (16, 12, 8) and np.allclose(facts.spacing, SPACING)
    del shared.PixelValueTransformationSequence
    save(tmp_path, [image])
    with pytest.raises(ValueError, match="has no RescaleSlope and no RescaleIntercept in 8 of 8 slices"):
        ct_facts(tmp_path / "0000.dcm")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_of_nifti(tmp_path, orientation, name):
    facts = ct_facts(nifti(tmp_path / name, affine=affine_of(orientation)))
    assert facts.name == f"NIfTI file '{tmp_path / name}'" and facts.shape == (4, 5, 6)
    assert np.allclose(facts.spacing, SPACING, rtol=1e-4) and facts.thickness == facts.spacing[2]
    assert facts.kernel == facts.lossy == facts.series_uid == facts.study_uid == facts.frame_of_reference_uid == ""
    assert ct_facts(nifti(tmp_path / name, np.zeros((4, 5), np.int16))).shape == (4, 5, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_with(Modality="MR"), r"DICOM series in '.*' has the modality 'MR', expected 'CT'"),
        (lambda image, n: setattr(image, "Modality", "CT" if n else "PT"), "has the modality 'PT', expected 'CT'"),
        (_without("RescaleSlope"), r"has no RescaleSlope in 8 of 8 slices \(first '.*\.dcm'\), expected RescaleSlope"),
        (_without("RescaleIntercept", only=3), r"has no RescaleIntercept in 1 of 8 slices"),
        (_without("RescaleSlope", "RescaleIntercept"), "has no RescaleSlope and no RescaleIntercept in 8 of 8"),
        (_with(RescaleSlope=0), "has RescaleSlope 0 in 8 of 8 slices"),
        (_with(RescaleIntercept=""), "has no RescaleIntercept in 8 of 8"),
        (_with(RescaleType="MGML"), r"has values in another unit \(RescaleType 'MGML'\) in 8 of 8 slices.*expected HU"),
        (_with(BitsStored=8, HighBit=7), "stores 8 bits per pixel in 8 of 8 slices.*12 bits or more"),
        (_with(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), r"is a localizer \(scout\)"),
        (_with(PhotometricInterpretation="PALETTE COLOR"), "holds no MONOCHROME1 or MONOCHROME2 pictures"),
        (lambda image, n: setattr(image, "PixelSpacing", [0.9, 0.7 + 0.1 * (n == 2)]), "PixelSpacing differs"),
        (_without("ImagePositionPatient", only=1), "ImagePositionPatient is missing in 1 of 8 slices"),
    ],
)
def test_dicom_that_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        ct_facts(series(tmp_path, change))


def test_slices_of_different_size(tmp_path):
    slices = series_slices(phantom())
    for one, other in zip(slices[5:], series_slices(phantom((14, 12, 8)))[5:], strict=True):
        one.Columns, one.PixelData = other.Columns, other.PixelData
    with pytest.raises(ValueError, match=r"sizes differ \(columns, rows, samples\).*16, 12, 1.* in 5 slices"):
        ct_facts(save(tmp_path, slices))


def test_gaps_are_left_to_the_reader(tmp_path):
    slices = [one for index, one in enumerate(series_slices(phantom())) if index != 3]
    assert ct_facts(save(tmp_path, slices)).shape == (16, 12, 7)


def test_a_table_and_colours(tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData, table.ModalityLUTType = [4, 0, 16], [0, 1, 2, 3], "HU"
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    with pytest.raises(ValueError, match=r"by a table \(ModalityLUTSequence\).*expected RescaleSlope"):
        ct_facts(series(tmp_path / "a", _with(ModalityLUTSequence=[table])))
    picture = colour()
    with pytest.raises(ValueError, match="has the modality 'US', expected 'CT'"):
        ct_facts(save(tmp_path / "b", [picture]))
    picture.Modality = "CT"
    with pytest.raises(ValueError, match="holds colour pictures, expected CT with one grey value per pixel"):
        ct_facts(save(tmp_path / "c", [picture]))


def test_several_series(tmp_path):
    save(tmp_path, series_slices(phantom()), prefix="a")
    save(tmp_path, series_slices(phantom()), prefix="b")
    with pytest.raises(ValueError, match="holds 2 DICOM series, expected one, or one that is named by series='UID'"):
        ct_facts(tmp_path)
    uid = pydicom.dcmread(tmp_path / "a0000.dcm").SeriesInstanceUID
    assert ct_facts(tmp_path, uid).series_uid == uid
    with pytest.raises(ValueError, match="holds 2 DICOM series"):
        ct_facts(tmp_path, "1.2.3")


def test_other_files(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.PNG")
    np.save(tmp_path / "a.npy", np.zeros((4, 4)))
    (tmp_path / "empty").mkdir()
    several = nifti(tmp_path / "c.nii", np.zeros((4, 5, 6, 3), np.int16))
    for image, message in (
        (tmp_path / "a.PNG", r"a\.PNG' is a picture, whose grey values are no HU, expected a DICOM series or NIfTI"),
        (tmp_path / "a.npy", r"a\.npy' is no DICOM file"),
        (tmp_path / "empty", r"empty' holds no DICOM image, expected a DICOM series or NIfTI"),
        (several, r"c\.nii' has 3 channels or time points \(4, 5, 6, 3\), expected one CT volume"),
        (nifti(tmp_path / "8.nii", np.zeros((4, 5, 6), np.uint8)), r"8\.nii' stores 8 bits per voxel \(uint8\)"),
        ([several, several], "expected one NIfTI file of CT, got 2"),
        ([], "expected a CT image, got an empty list"),
    ):
        with pytest.raises(ValueError, match=message):
            ct_facts(image)
    with pytest.raises(FileNotFoundError, match="absent"):
        ct_facts(tmp_path / "absent")


@pytest.mark.parametrize(
    ("flag", "syntax", "expected"),
    [
        (None, "1.2.840.10008.1.2.1", ""),
        ("00", "1.2.840.10008.1.2.4.90", ""),
        ("01", "1.2.840.10008.1.2.1", "LossyImageCompression is 01"),
        ("00", "1.2.840.10008.1.2.4.91", ""),
        (None, "1.2.840.10008.1.2.4.91", "its transfer syntax is JPEG 2000 Image Compression, which may be lossy"),
        ("00", "1.2.840.10008.1.2.4.51", "its transfer syntax is JPEG Extended"),
    ],
)
def test_loss(tmp_path, flag, syntax, expected):
    image = series_slices(phantom())[0]
    if flag is not None:
        image.LossyImageCompression = flag
    image.file_meta.TransferSyntaxUID = syntax
    if pydicom.uid.UID(syntax).is_compressed:
        image.PixelData = pydicom.encaps.encapsulate([b"only headers are read"])
        image["PixelData"].is_undefined_length = True
    found = ct_facts(save(tmp_path, [image]) / "0000.dcm").lossy
    assert found.startswith(expected) and bool(found) == bool(expected)


@pytest.mark.parametrize(
    ("name", "kernel", "lossy"),
    [
        ("CT_small.dcm", "STANDARD", False),
        ("J2K_pixelrep_mismatch.dcm", "11", False),
        ("693_J2KI.dcm", "STANDARD", True),
    ],
)
def test_real_slices(name, kernel, lossy):
    facts = ct_facts(get_testdata_file(name, download=False))
    assert facts.kernel == kernel and bool(facts.lossy) == lossy and facts.thickness == 5.0


def test_no_pixels_are_read(tmp_path, monkeypatch):
    folder = write_series(tmp_path, phantom())
    asked = []
    read = pydicom.dcmread
    monkeypatch.setattr(pydicom, "dcmread", lambda *args, **options: asked.append(options) or read(*args, **options))
    ct_facts(folder)
    assert len(asked) >= 8 and all(options["stop_before_pixels"] for options in asked)
