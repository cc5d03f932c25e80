# SPDX-License-Identifier: Apache-2.0
"""What a new DICOM object takes from its source."""

from __future__ import annotations

import logging
import warnings

import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from monai_labelfx.data._dicom_result_header import copy_patient_and_study, series_number


def broken(keyword_tag: str, vr: str, value: bytes) -> Dataset:
    """A header with one value that its type does not allow, as read from a file."""
    header = Dataset()
    tag = Tag(keyword_tag)
    header._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    return header


@pytest.mark.parametrize(("number", "expected"), [(None, 7), (3, 10), (-4, 7), (2**30, 7)])
def test_the_series_number_is_apart_from_the_source(number, expected):
    header = Dataset()
    if number is not None:
        header.SeriesNumber = number
    assert series_number(header, 7) == expected


def test_a_broken_number_is_not_quoted_anywhere(caplog):
    header = broken("SeriesNumber", "IS", b"Zzyzx^Name")
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        assert series_number(header, 7) == 7
    assert "Zzyzx" not in caplog.text and not any("Zzyzx" in str(w.message) for w in caught)


def test_patient_and_study_are_copied_and_nothing_else():
    header, result = Dataset(), Dataset()
    header.PatientID, header.StudyDescription, header.SeriesDescription = "42", "chest", "text"
    copy_patient_and_study(header, result)
    assert (result.PatientID, result.StudyDescription) == ("42", "chest") and "SeriesDescription" not in result
