# SPDX-License-Identifier: Apache-2.0
"""What the headers of one CT image say, or one sentence why it is no CT in HU; no pixels are read."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from monai.config import PathLike

from monai_labelfx.data._dicom_codecs import syntax_name, transfer_syntax
from monai_labelfx.data._dicom_frames import Frame
from monai_labelfx.data._dicom_geometry import arrange, name_of
from monai_labelfx.data._dicom_pixels import functional
from monai_labelfx.data._dicom_stored import finite_number, has_no_value
from monai_labelfx.data._nifti_reader import nifti_header
from monai_labelfx.data._reading import ImageFileError, reading
from monai_labelfx.data.dicom_series import DicomSeries, find_dicom_series

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_TAGS = [
    *("BitsStored", "PhotometricInterpretation", "ImageType", "RescaleSlope", "RescaleIntercept", "RescaleType"),
    *("ModalityLUTSequence", "ConvolutionKernel", "SliceThickness", "LossyImageCompression"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]
_TRANSFORM = "PixelValueTransformationSequence"
_HOUNSFIELD = ("", "HU", "HU_MOD", "US")  # not said, HU, changed by processing, "unspecified"
_GREY = ("MONOCHROME1", "MONOCHROME2")
_JPEG = "1.2.840.10008.1.2.4."
_LOSSY = tuple(_JPEG + end for end in ("50", "51", "81"))
_PERHAPS_LOSSY = tuple(_JPEG + end for end in ("91", "112", "203"))
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp")
_NIFTI = (".nii", ".nii.gz")
_LONGEST = 64  # characters of a kernel's name in a message


@dataclass(frozen=True, slots=True)
class CTFacts:
    """What the headers of one CT image say.

    Attributes:
        name: the file or folder, as in messages.
        shape: voxels along x, y and from slice to slice.
        spacing: mm along these axes; of NIfTI from the affine.
        thickness: SliceThickness in mm; where nothing says it, and for NIfTI, the distance of slices.
        kernel: ConvolutionKernel, "" where nothing says it (NIfTI never does).
        lossy: what says that the pixels were compressed with loss, "" for those that were not.
        series_uid: SeriesInstanceUID; "" for NIfTI, like the two that follow.
        study_uid: StudyInstanceUID.
        frame_of_reference_uid: FrameOfReferenceUID.
    """

    name: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    thickness: float
    kernel: str = ""
    lossy: str = ""
    series_uid: str = ""
    study_uid: str = ""
    frame_of_reference_uid: str = ""


def ct_facts(image: PathLike | Sequence[PathLike], series: str | None = None) -> CTFacts:
    """The facts of a file, a folder, or a list of the files of one series.

    Raises:
        FileNotFoundError: no such file or folder.
        ImageFileError: no CT in HU.
    """
    names = [os.fspath(image)] if isinstance(image, (str, os.PathLike)) else [os.fspath(name) for name in image]
    if not names:
        raise ImageFileError("expected a CT image, got an empty list of files")
    first = names[0]
    if not os.path.exists(first):
        raise FileNotFoundError(f"image file {first!r} does not exist")
    suffix = first.lower()
    if suffix.endswith(_PICTURES):
        raise ImageFileError(
            f"image file {first!r} is a picture, whose grey values are no HU, expected a DICOM series or NIfTI file of "
            "CT in HU"
        )
    if suffix.endswith(_NIFTI):
        if len(names) > 1:
            raise ImageFileError(f"expected one NIfTI file of CT, got {len(names)} from {first!r} on")
        with reading(first, "NIfTI"):
            return _of_nifti(first)
    return _of_dicom(names, series)


def _of_nifti(path: str) -> CTFacts:
    header = nifti_header(path)
    shape = [*header.get_data_shape(), 1, 1, 1]
    channels = int(np.prod(shape[3:]))
    if channels > 1:
        raise ImageFileError(
            f"image file {path!r} has {channels} channels or time points {tuple(shape[:-3])}, expected one CT volume"
        )
    dtype = header.get_data_dtype()
    if dtype.itemsize == 1:
        raise ImageFileError(
            f"image file {path!r} stores 8 bits per voxel ({dtype.name}), so it is a picture or a label map, expected "
            "CT in HU, which takes 12 bits or more"
        )
    sizes = np.linalg.norm(header.get_best_affine()[:3, :3], axis=0).tolist()
    return CTFacts(f"NIfTI file {path!r}", (shape[0], shape[1], shape[2]), (sizes[0], sizes[1], sizes[2]), sizes[2])


def _of_dicom(names: list[str], wanted: str | None) -> CTFacts:
    found = _series(names, wanted)
    frames = list(found.frames)
    name = name_of(frames)
    other = {frame.modality for frame in frames} - {"CT"}
    if other:
        raise ImageFileError(f"{name} has the modality {', '.join(sorted(map(repr, other)))}, expected 'CT'")
    if any(frame.samples != 1 for frame in frames):
        raise ImageFileError(f"{name} holds colour pictures, expected CT with one grey value per pixel")
    headers = _headers(frames)
    for fault, expected in _FAULTS:
        bad = [(text, frame) for header, frame in headers if (text := fault(header, frame))]
        if bad:
            text, frame = bad[0]
            where = "" if len(frames) == 1 else f" in {len(bad)} of {len(frames)} slices (first {frame.path!r})"
            raise ImageFileError(f"{name} {text}{where}, expected {expected}")
    arrangement = arrange(frames, on_irregular="warn")  # gaps are for the reader to judge
    first, header = arrangement.frames[0], headers[0][0]
    sizes = np.linalg.norm(arrangement.affine[:3, :3], axis=0).tolist()
    kernels = {_kernel(header, frame) for header, frame in headers} - {""}
    thickness = functional(header, headers[0][1].index, "PixelMeasuresSequence", "SliceThickness")
    number = sizes[2] if thickness is None else finite_number(thickness, "SliceThickness", first.path)
    return CTFacts(
        name=name,
        shape=(first.columns, first.rows, len(frames)),
        spacing=(sizes[0], sizes[1], sizes[2]),
        thickness=number if number > 0 else sizes[2],
        kernel=" and ".join(sorted(kernels)),
        lossy=next((text for header, _ in headers if (text := _lossy(header))), ""),
        series_uid=first.series_uid,
        study_uid=first.study_uid,
        frame_of_reference_uid=first.frame_of_reference_uid,
    )


def _series(names: list[str], wanted: str | None) -> DicomSeries:
    """The series that is meant; the sentences are those of the reader where it says more."""
    found = find_dicom_series(names[0] if len(names) == 1 else names)
    where = repr(names[0]) if len(names) == 1 else f"the list of {len(names)} files from {names[0]!r}"
    if not found:
        raise ImageFileError(f"{where} holds no DICOM image, expected a DICOM series or NIfTI file of CT in HU")
    chosen = [series for series in found if wanted in (None, series.uid)]
    if len(chosen) != 1:
        listed = "; ".join(str(series) for series in found)
        raise ImageFileError(
            f"{where} holds {len(found)} DICOM series, expected one, or one that is named by series='UID': {listed}"
        )
    return chosen[0]


def _headers(frames: Sequence[Frame]) -> list[tuple[Dataset, Frame]]:
    """Each frame with the header of its file, which is read once."""
    from pydicom import dcmread

    found: dict[str, Dataset] = {}
    for path in dict.fromkeys(frame.path for frame in frames):
        with reading(path, "DICOM"):
            found[path] = dcmread(path, stop_before_pixels=True, specific_tags=_TAGS, force=True)
    return [(found[frame.path], frame) for frame in frames]


def _colour(header: Dataset, frame: Frame) -> str:
    found = header.get("PhotometricInterpretation")
    return "" if found in (*_GREY, None, "") else "holds no MONOCHROME1 or MONOCHROME2 pictures"


def _few_bits(header: Dataset, frame: Frame) -> str:
    bits = header.get("BitsStored")
    return f"stores {bits} bits per pixel" if isinstance(bits, int) and bits <= 8 else ""


def _localizer(header: Dataset, frame: Frame) -> str:
    found = header.get("ImageType")
    values = found if isinstance(found, Sequence) and not isinstance(found, str) else [found]
    return "is a localizer (scout)" if "LOCALIZER" in values else ""


def _no_rescale(header: Dataset, frame: Frame) -> str:
    if header.get("ModalityLUTSequence"):
        return "gives its values by a table (ModalityLUTSequence)"
    missing = []
    for keyword in ("RescaleSlope", "RescaleIntercept"):
        value = functional(header, frame.index, _TRANSFORM, keyword)
        if value is None:
            missing.append(keyword)
        elif finite_number(value, keyword, frame.path) == 0 and keyword == "RescaleSlope":
            return "has RescaleSlope 0"
    return f"has no {' and no '.join(missing)}" if missing else ""


def _other_unit(header: Dataset, frame: Frame) -> str:
    unit = _text(functional(header, frame.index, _TRANSFORM, "RescaleType"))
    return "" if unit in _HOUNSFIELD else f"has values in another unit (RescaleType {unit!r})"


_FAULTS: tuple[tuple[Callable[[Dataset, Frame], str], str], ...] = (
    (_colour, "grey CT images"),
    (_few_bits, "CT in HU, which takes 12 bits or more"),
    (_localizer, "slices of CT in HU"),
    (_no_rescale, "RescaleSlope and RescaleIntercept, which alone make stored values HU"),
    (_other_unit, "HU"),
)


def _kernel(header: Dataset, frame: Frame) -> str:
    return _text(functional(header, frame.index, "CTReconstructionSequence", "ConvolutionKernel"))


def _text(value: Any) -> str:
    """One line of an element of one or several texts."""
    if has_no_value(value):
        return ""
    several = isinstance(value, Sequence) and not isinstance(value, str)
    text = "\\".join(map(str, value)) if several else str(value)
    return "".join(letter for letter in text if letter.isprintable()).strip()[:_LONGEST]


def _lossy(header: Dataset) -> str:
    flag, syntax = str(header.get("LossyImageCompression") or ""), transfer_syntax(header)
    if flag == "01":
        return "LossyImageCompression is 01"
    if syntax in _LOSSY:
        return f"its transfer syntax is {syntax_name(syntax)}"
    if syntax in _PERHAPS_LOSSY and flag != "00":
        return f"its transfer syntax is {syntax_name(syntax)}, which may be lossy, and nothing says that it is not"
    return ""
