# SPDX-License-Identifier: Apache-2.0
"""The image planes of a DICOM file as small records of what their headers say, without pixels."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from monai_labelfx.data._dicom_deflate import check_deflated
from monai_labelfx.data._dicom_pixels import functional
from monai_labelfx.data._reading import ImageFileError, check_size, reading

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_NOT_IMAGES = "1.2.840.10008.5.1.4.1.1.66"  # raw data, registrations, SEG and other results: some have rows and columns
_DOSE = "1.2.840.10008.5.1.4.1.1.481.2"  # of a radiotherapy plan: frames of a grid of its own, without positions
_DIRECTORY = "1.2.840.10008.1.3.10"  # DICOMDIR
_NEWER = {f"{_NOT_IMAGES}.7": "Label Map Segmentation Storage"}  # not in pydicom's dictionary
_COMPRESSION = 1e5  # a picture of one value compresses this well; more pixels per byte are a broken header
_LONGEST = 128  # characters of a UID, code or description; the standard allows 64
_PHASES: dict[str, str] = {  # what tells images of one position apart -> functional group of a multi-frame file
    "TemporalPositionIdentifier": "",
    "TemporalPositionIndex": "FrameContentSequence",
    "EchoNumbers": "",
    "EchoTime": "",
    "EffectiveEchoTime": "MREchoSequence",
    "DiffusionBValue": "MRDiffusionSequence",
    "TriggerTime": "",
    "NominalCardiacTriggerDelayTime": "CardiacSynchronizationSequence",
    "NominalPercentageOfCardiacPhase": "CardiacSynchronizationSequence",
    "AcquisitionNumber": "",
    "ImageType": "",
}
_TAGS = [
    *("SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality", "SeriesDescription"),
    *("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames", "BitsAllocated", "PhotometricInterpretation"),
    *("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    *("ImagerPixelSpacing", "NominalScannedPixelSpacing"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *_PHASES,
]


@dataclass(frozen=True, slots=True)
class Frame:
    """One image plane, of a single-frame file or of a multi-frame file; what a header lacks is None or ""."""

    path: str  # absolute
    index: int | None  # 0-based frame number, None for a file without frames
    series_uid: str
    study_uid: str
    frame_of_reference_uid: str
    sop_class_uid: str
    modality: str
    description: str
    rows: int
    columns: int
    samples: int
    orientation: tuple[float, ...] | None  # cosines of the row direction, then of the column direction; LPS
    position: tuple[float, ...] | None  # centre of the first pixel, LPS in mm
    spacing: tuple[float, ...] | None  # mm between rows, mm between columns
    thickness: float  # mm from slice to slice where nothing but the tags of one slice says it
    temporal: tuple[str, ...]  # values of phase_names()


def phase_names() -> tuple[str, ...]:
    """The keywords whose values ``Frame.temporal`` holds."""
    return tuple(_PHASES)


def frames_of(path: str | os.PathLike) -> list[Frame]:
    """The image planes of a DICOM file; none for objects that are no image (SR, PR, RTSTRUCT, RTDOSE, SEG, DICOMDIR).

    A file without the DICOM preamble is accepted when it parses and names its SOP class.

    Raises:
        FileNotFoundError: no such file.
        ImageFileError: no DICOM, cut off, or with a header that cannot be used.
    """
    path = os.path.abspath(path)
    with reading(path, "DICOM"):
        check_deflated(path)
        header = _header(path)
        sop_class = _word(header, "SOPClassUID", path)
        if not _is_image(header, sop_class):
            return []
        count = _check_pixels(header, path)
        grouped = count > 1 or "SharedFunctionalGroupsSequence" in header
        of_file: dict[str, Any] = {
            "path": path,
            "series_uid": _code(header, "SeriesInstanceUID", path),
            "study_uid": _code(header, "StudyInstanceUID", path),
            "frame_of_reference_uid": _code(header, "FrameOfReferenceUID", path),
            "sop_class_uid": sop_class,
            "modality": _code(header, "Modality", path),
            "description": _word(header, "SeriesDescription", path),
            "rows": _whole(header, "Rows", path),
            "columns": _whole(header, "Columns", path),
            "samples": _whole(header, "SamplesPerPixel", path, 1),
        }
        return [
            Frame(index=index, **of_file, **_geometry(header, index, path))
            for index in (range(count) if grouped else [None])
        ]


def kind_of(path: str) -> str:
    """The name of the SOP class of a DICOM file, for messages."""
    from pydicom.uid import UID

    with reading(path, "DICOM"):
        header = _header(path)
        sop_class = UID(_word(header, "SOPClassUID", path) or _media_class(header))
    return repr(_NEWER.get(sop_class, sop_class.name)) if sop_class else "of an unknown kind"


def _header(path: str) -> Dataset:
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
        is_known = "SOPClassUID" in header or "Rows" in header or _media_class(header) == _DIRECTORY
    except InvalidDicomError:
        header = dcmread(path, stop_before_pixels=True, specific_tags=_TAGS, force=True)
        is_known = "SOPClassUID" in header
    if not is_known:
        raise ImageFileError(f"image file {path!r} is no DICOM file, or cut off (it names no SOP class)")
    return header


def _media_class(header: Dataset) -> str:
    return str(header.file_meta.get("MediaStorageSOPClassUID") or "")


def _is_image(header: Dataset, sop_class: str) -> bool:
    from pydicom.uid import UID

    if sop_class in (_NOT_IMAGES, _DOSE) or sop_class.startswith(f"{_NOT_IMAGES}."):
        return False
    # what the file announces counts too: a cut may have shortened the SOP class
    return "Rows" in header or any("Image Storage" in UID(one).name for one in (sop_class, _media_class(header)))


def _check_pixels(header: Dataset, path: str) -> int:
    """The number of frames, after a look at whether the file can hold them."""
    count = _whole(header, "NumberOfFrames", path, 1) or 1
    described = header.get("PerFrameFunctionalGroupsSequence")
    if described is not None and len(described) != count:
        raise ImageFileError(f"image file {path!r} announces {count} frames but describes {len(described)}")
    pixels = _whole(header, "Rows", path) * _whole(header, "Columns", path) * count
    if pixels == 0:
        raise ImageFileError(f"image file {path!r} has no pixels: its header says 0 rows or columns")
    bits = _whole(header, "SamplesPerPixel", path, 1) * _whole(header, "BitsAllocated", path, 8)
    if "422" in str(header.get("PhotometricInterpretation")):
        bits = bits * 2 // 3
    syntax = str(header.file_meta.get("TransferSyntaxUID") or "1.2.840.10008.1.2")
    plain = syntax in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
    check_size(path, "DICOM", pixels * bits // 8, 1.0 if plain else _COMPRESSION)
    return count


def _word(header: Dataset, keyword: str, path: str) -> str:
    """The text of an element; one with a broken length holds what follows it, such as the patient's name."""
    text = str(header.get(keyword) or "")
    if len(text) > _LONGEST or "\0" in text:
        raise ImageFileError(f"image file {path!r} has no usable {keyword}, expected at most {_LONGEST} characters")
    return text


def _code(header: Dataset, keyword: str, path: str) -> str:
    """A UID or modality; of one that holds other text, which may be about the patient, a digest that stands for it."""
    text = _word(header, keyword, path)
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return text if re.fullmatch(r"[0-9A-Z_. ]*", text) else f"invalid-{digest}"


def _whole(header: Dataset, keyword: str, path: str, default: int | None = None) -> int:
    number = -1
    try:
        value = header.get(keyword)
        if value is not None:
            number = int(value)
        elif default is not None:
            number = default
    except Exception:  # pydicom raises all sorts of things on broken values, and its text would quote them
        number = -1
    if number < 0:
        raise ImageFileError(f"image file {path!r} has no usable {keyword}, expected a whole number")
    return number


def _geometry(header: Dataset, index: int | None, path: str) -> dict[str, Any]:
    """The fields of a frame that functional groups may hold."""

    def numbers(keyword: str, sequence: str, count: int) -> tuple[float, ...] | None:
        return _numbers(header, index, sequence, keyword, count, path)

    measures = "PixelMeasuresSequence"
    position = numbers("ImagePositionPatient", "PlanePositionSequence", 3)
    spacing = numbers("PixelSpacing", measures, 2)
    if position is None:  # a projection: the size of a pixel at the detector or of the scanned film is all there is
        spacing = spacing or numbers("ImagerPixelSpacing", "", 2) or numbers("NominalScannedPixelSpacing", "", 2)
    sizes = [numbers(keyword, measures, 1) for keyword in ("SpacingBetweenSlices", "SliceThickness")]
    return {
        "orientation": numbers("ImageOrientationPatient", "PlaneOrientationSequence", 6),
        "position": position,
        "spacing": spacing,
        "thickness": next((size[0] for size in sizes if size and 1e-6 < size[0] < 1e6), 1.0),
        "temporal": tuple(str(functional(header, index, sequence, name)) for name, sequence in _PHASES.items()),
    }


def _numbers(
    header: Dataset, index: int | None, sequence: str, keyword: str, count: int, path: str
) -> tuple[float, ...] | None:
    try:
        value = functional(header, index, sequence, keyword)
        if value is None:
            return None
        several = isinstance(value, Sequence) and not isinstance(value, str)
        found = tuple(float(number) for number in (value if several else [value]))
    except Exception:  # as in _whole
        found = ()
    if len(found) != count:
        raise ImageFileError(f"image file {path!r} has no usable {keyword}, expected {count} number{'s' * (count > 1)}")
    return found
