# SPDX-License-Identifier: Apache-2.0
"""Where the planes of a SEG lie, and stand-ins for its source images that say that and nothing about the patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from monai.utils import convert_data_type

from monai_labelfx.data._dicom_pixels import functional
from monai_labelfx.data._dicom_source import DicomSource

if TYPE_CHECKING:
    from highdicom.seg import Segmentation
    from pydicom.dataset import Dataset

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, slots=True)
class Planes:
    """The planes of the array (LPS, mm), as the source's headers say it to the last digit, or on a grid of their own.

    ``positions`` is None for pictures without a place in the patient; ``spacing`` is None where nobody knows it.
    """

    positions: list[list[float]] | None
    orientation: list[float]
    spacing: list[float] | None  # between rows, between columns
    step: float  # between slices along the normal
    on_source: bool  # plane i is slice i of the source

    def measures(self) -> Any:
        """The sizes of a voxel as highdicom wants them; a size must be given even where nobody knows it."""
        from highdicom import PixelMeasuresSequence

        return PixelMeasuresSequence(
            pixel_spacing=self.spacing or (1.0, 1.0), slice_thickness=self.step, spacing_between_slices=self.step
        )

    def arguments(self) -> dict[str, Any]:
        """Keywords for highdicom's Segmentation; none where it can take everything from the stand-ins."""
        from highdicom import PlaneOrientationSequence, PlanePositionSequence

        if self.on_source or self.positions is None:
            return {}
        return {
            "pixel_measures": self.measures(),
            "plane_orientation": PlaneOrientationSequence("PATIENT", self.orientation),
            "plane_positions": [PlanePositionSequence("PATIENT", position) for position in self.positions],
        }


def planes_of(files: Sequence[Dataset], source: DicomSource, meta: Mapping[str, Any], count: int) -> Planes:
    """The planes of an array of ``count`` slices on the grid that ``source`` and ``original_affine`` tell."""
    affine = _RAS_TO_LPS @ np.asarray(convert_data_type(meta["original_affine"], np.ndarray)[0], np.float64).reshape(
        4, 4
    )
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    positions = _positions(files, source)
    orientation = _numbers(files, source, 0, "PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = _numbers(files, source, 0, "PixelMeasuresSequence", "PixelSpacing")
    axes = np.reshape(orientation, (2, 3)) if orientation else affine[:3, :2].T / sizes[:2, None]
    normal = np.cross(*axes)
    step = float(abs(affine[:3, 2] @ normal / (normal @ normal)))
    if positions is None or orientation is None:
        known = spacing is not None or not np.allclose(sizes[:2], 1)
        return Planes(None, [], [float(sizes[1]), float(sizes[0])] if known else None, step, on_source=True)
    if source.grid == "source":
        return Planes(positions, orientation, spacing, step, on_source=True)
    own = [(affine @ [0.0, 0.0, index, 1.0])[:3].tolist() for index in range(count)]
    return Planes(own, orientation, spacing, step, on_source=False)


def _positions(files: Sequence[Dataset], source: DicomSource) -> list[list[float]] | None:
    found = [
        _numbers(files, source, index, "PlanePositionSequence", "ImagePositionPatient")
        for index in range(source.slices)
    ]
    return None if any(position is None for position in found) else found  # type: ignore[return-value]


def _numbers(
    files: Sequence[Dataset], source: DicomSource, index: int, sequence: str, keyword: str
) -> list[float] | None:
    """Numbers of a slice's header."""
    dataset = files[0] if source.frames is not None else files[index]
    value = functional(dataset, None if source.frames is None else source.frames[index], sequence, keyword)
    return None if value is None else [float(number) for number in value]


def references(files: Sequence[Dataset], source: DicomSource, planes: Planes) -> list[Dataset]:
    """Stand-ins for the source images: their UIDs and geometry in the form that highdicom asks for.

    highdicom wants complete headers of exactly equal orientation, and quotes what it dislikes (a patient's name without
    caret) in its log. Real headers lack fields and differ in the last digit, so none is handed over.

    Raises:
        ValueError: a source without the UIDs that a reference consists of, or of a private SOP class.
    """
    positions = _positions(files, source) if planes.positions is not None else None
    if source.frames is not None:
        return [_stand_in(files[0], source.files[0], planes, positions, source.slices)]
    return [
        _stand_in(file, path, planes, positions and positions[index : index + 1], 1)
        for index, (file, path) in enumerate(zip(files, source.files, strict=True))
    ]


def _stand_in(header: Dataset, path: str, planes: Planes, positions: list[list[float]] | None, frames: int) -> Dataset:
    from highdicom import PlaneOrientationSequence, PlanePositionSequence
    from pydicom.dataset import Dataset
    from pydicom.uid import generate_uid

    result = Dataset()
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Rows", "Columns"):
        if not header.get(keyword):
            raise ValueError(f"DICOM file {path!r} has no {keyword}, which a SEG needs to refer to it")
        setattr(result, keyword, header.get(keyword))
    if result.SOPClassUID.is_private:
        raise ValueError(f"DICOM file {path!r} has the private SOP class {result.SOPClassUID}: no SEG can refer to it")
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"):
        setattr(result, keyword, None)
    result.StudyID = result.StudyDate = result.StudyTime = None
    for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if header.get(keyword):
            setattr(result, keyword, header.get(keyword))
    shared, result.NumberOfFrames = Dataset(), frames
    result.SharedFunctionalGroupsSequence = [shared]
    shared.PixelMeasuresSequence = planes.measures()
    measures = shared.PixelMeasuresSequence[0]
    result.PixelSpacing, result.SliceThickness = measures.PixelSpacing, measures.SliceThickness
    result.SpacingBetweenSlices = measures.SpacingBetweenSlices
    if positions:
        known = header.get("FrameOfReferenceUID")  # else one and the same for all SEGs of a series
        result.FrameOfReferenceUID = known or generate_uid(entropy_srcs=[str(header.SeriesInstanceUID)])
        result.PositionReferenceIndicator = header.get("PositionReferenceIndicator")
        shared.PlaneOrientationSequence = PlaneOrientationSequence("PATIENT", planes.orientation)
        result.PerFrameFunctionalGroupsSequence = []
        for position in positions:
            item = Dataset()
            item.PlanePositionSequence = PlanePositionSequence("PATIENT", position)
            result.PerFrameFunctionalGroupsSequence.append(item)
        result.ImageOrientationPatient = shared.PlaneOrientationSequence[0].ImageOrientationPatient
        result.ImagePositionPatient = item.PlanePositionSequence[0].ImagePositionPatient
    return result


def correct_references(result: Segmentation, source: DicomSource, planes: Planes) -> None:
    """Put right what the stand-ins could not say: the frame numbers in the source file, and an unknown pixel size."""
    if planes.spacing is None:
        del result.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    if source.frames is None:
        return
    images = [
        image
        for item in result.PerFrameFunctionalGroupsSequence
        for derivation in item.get("DerivationImageSequence") or []
        for image in derivation.SourceImageSequence
        if "ReferencedFrameNumber" in image
    ]
    for image in {id(image): image for image in images}.values():  # frames of one plane share theirs
        image.ReferencedFrameNumber = source.frames[int(image.ReferencedFrameNumber) - 1] + 1
