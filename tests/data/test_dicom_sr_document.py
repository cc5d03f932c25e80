# SPDX-License-Identifier: Apache-2.0
"""The DICOM object around a report: numbers, references and refusals."""

from __future__ import annotations

import pytest
from dicom_samples import new_slice, phantom
from pydicom import Dataset

from monai_labelfx.data._dicom_seg_planes import Planes
from monai_labelfx.data._dicom_source import DicomSource
from monai_labelfx.data._dicom_sr_document import document_of, images_of

FILM = Planes(None, [], None, 1.0, on_source=True)
OPTIONS = {"algorithm": ("net", "1"), "description": "Detections"}
SOURCE = DicomSource(["a.dcm"], None, "source", {"dicom_modality": "CT"})


def header() -> Dataset:
    return new_slice(phantom((6, 4)).astype("u2"))


@pytest.mark.parametrize(
    ("number", "expected"), [(7, 2007), (None, 2000), (0, 2000), (-3, 2000), (2**31 - 1, 2000), ("", 2000)]
)
def test_a_series_of_its_own(number, expected):
    source = header()
    source.SeriesNumber = number
    for axes, name in ((2, "Comprehensive SR Storage"), (3, "Comprehensive 3D SR Storage")):
        report = document_of([], source, images_of([source], SOURCE, FILM), SOURCE, axes=axes, **OPTIONS)
        assert report.SOPClassUID.name == name and report.SeriesNumber == expected
        assert report.SeriesInstanceUID != source.SeriesInstanceUID
        assert report.StudyInstanceUID == source.StudyInstanceUID and report.PatientID == source.PatientID


def test_stand_ins_know_nothing_about_the_patient():
    (image,) = images_of([header()], SOURCE, FILM)
    assert image.SOPInstanceUID and not image.PatientName and not image.PatientID


@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_a_source_without_identity_is_refused(keyword):
    source = header()
    delattr(source, keyword)
    with pytest.raises(ValueError, match=f"^DICOM file 'a.dcm' has no {keyword}, which a report needs to refer to it$"):
        images_of([source], SOURCE, FILM)


def test_classes_that_nobody_knows_are_refused():
    source = header()
    source.SOPClassUID = "1.2.3.4.5"
    with pytest.raises(ValueError, match="has the private SOP class 1.2.3.4.5: no report can refer to it$"):
        images_of([source], SOURCE, FILM)
    source.SOPClassUID = "1.2.840.10008.5.1.4.1.1.999"
    with pytest.raises(ValueError, match="^no DICOM SR can be written for the images of 'a.dcm': ") as error:
        document_of([], source, images_of([source], SOURCE, FILM), SOURCE, axes=2, **OPTIONS)
    assert "\n" not in str(error.value)
