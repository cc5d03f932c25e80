# SPDX-License-Identifier: Apache-2.0
"""The DICOM object around the content of a report: whose it is, what it is about, and who wrote it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from monai_labelfx._version import __version__
from monai_labelfx.data._dicom_result_header import copy_patient_and_study, series_number
from monai_labelfx.data._dicom_seg_planes import Planes, references
from monai_labelfx.data._dicom_segments import PROGRAM
from monai_labelfx.data._dicom_source import DicomSource
from monai_labelfx.data._dicom_sr_content import SCHEME, content_of

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def images_of(files: Sequence[Dataset], source: DicomSource, planes: Planes) -> list[Dataset]:
    """Stand-ins for the files, which know what refers to them and nothing about the patient."""
    for header, file in zip(files, source.files, strict=True):
        for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
            if not header.get(keyword):
                raise ValueError(f"DICOM file {file!r} has no {keyword}, which a report needs to refer to it")
        if header.SOPClassUID.is_private:
            raise ValueError(
                f"DICOM file {file!r} has the private SOP class {header.SOPClassUID}: no report can refer to it"
            )
    return references(files, source, planes)


@contextmanager
def one_sentence(source: DicomSource) -> Iterator[None]:
    """Turn what highdicom raises inside the block into a ValueError about the images of ``source``."""
    try:
        yield
    except Exception as error:  # it refuses in many ways; it was given nothing about the patient to quote
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"no DICOM SR can be written for the images of {source.files[0]!r}: {reason}") from error


def document_of(
    groups: Sequence[Any],
    header: Dataset,
    images: Sequence[Dataset],
    source: DicomSource,
    *,
    axes: int,
    algorithm: tuple[str, str],
    description: str,
) -> Dataset:
    """The report: a Comprehensive SR for images of two axes, a Comprehensive 3D SR for volumes.

    Raises:
        ValueError: what highdicom refuses.
    """
    from highdicom import UID
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from highdicom.sr import Comprehensive3DSR, ComprehensiveSR

    kind = ComprehensiveSR if axes == 2 else Comprehensive3DSR
    scheme = CodingSchemeIdentificationItem(
        SCHEME, name=f"names of classes in {PROGRAM}", responsible_organization=PROGRAM
    )
    with one_sentence(source):
        result = kind(
            evidence=images,
            content=content_of(groups, images, source.meta.get("dicom_modality", ""), algorithm),
            series_instance_uid=UID(),
            series_number=series_number(header, 2000),
            sop_instance_uid=UID(),
            instance_number=1,
            manufacturer=PROGRAM,
            is_complete=True,  # all that there is to say; nobody has looked at it
            is_final=False,
            is_verified=False,
            content_qualification="RESEARCH",
            coding_schemes=[scheme],
            manufacturer_model_name=PROGRAM,
            software_versions=__version__,
            device_serial_number="0",
            series_description=description,
            specific_character_set="ISO_IR 192",
        )
    copy_patient_and_study(header, result)
    return result
