# SPDX-License-Identifier: Apache-2.0
"""What a new DICOM object takes from the images that it was made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_LARGEST = 2**30  # half of what the attribute holds
_PATIENT_AND_STUDY = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientBirthTime", "PatientSex"),
    *("PatientAge", "PatientSize", "PatientWeight", "PatientIdentityRemoved", "DeidentificationMethod"),
    *("DeidentificationMethodCodeSequence", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID"),
    *("AccessionNumber", "StudyDescription"),
)


def copy_patient_and_study(header: Dataset, result: Any) -> None:
    """Give ``result`` the patient and the study of ``header``."""
    from pydicom.config import disable_value_validation

    with disable_value_validation():  # pydicom would quote what it dislikes in its warnings and its log
        for keyword in _PATIENT_AND_STUDY:
            if keyword in header:
                result.add(header[keyword])


def series_number(header: Dataset, added: int) -> int:
    """SeriesNumber of the source plus ``added``, or ``added`` where the source has none that can be used."""
    from pydicom.config import disable_value_validation

    try:
        with disable_value_validation():
            number = int(header.get("SeriesNumber") or 0)
    except (TypeError, ValueError):
        number = 0
    return number + added if 0 <= number < _LARGEST else added
