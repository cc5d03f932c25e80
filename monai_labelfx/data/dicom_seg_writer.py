# SPDX-License-Identifier: Apache-2.0
"""Write a label map as a DICOM Segmentation of the series that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from monai.config import DtypeLike, NdarrayOrTensor, PathLike
from monai.data import ImageWriter
from monai.utils import convert_data_type

from monai_labelfx._atomic import replacing
from monai_labelfx._version import __version__
from monai_labelfx.data._dicom_result_header import copy_patient_and_study, series_number
from monai_labelfx.data._dicom_seg_labels import clear_marks, labels_of, mark_empty, on_resampled_grid
from monai_labelfx.data._dicom_seg_planes import correct_references, planes_of, references
from monai_labelfx.data._dicom_segments import PROGRAM, describe, segments_of
from monai_labelfx.data._dicom_source import DicomSource, headers, source_array, source_of

if TYPE_CHECKING:
    from highdicom.seg import Segmentation

__all__ = ["DicomSegWriter"]

_BINARY_UP_TO = 255  # label values; above, a file of one bit plane per object and slice grows out of proportion
_KINDS = ("binary", "labelmap")


class DicomSegWriter(ImageWriter):
    """Writer of DICOM Segmentations (SEG) for ``SaveImage``, for images that DicomSeriesReader read.

    ``SaveImaged(writer="monai_labelfx.data.DicomSegWriter", output_ext=".dcm")`` writes a label map (1, x, y[, z]) of
    whole numbers, one segment per value, 0 is background; or (C, x, y[, z]) masks or probabilities, where channel 0
    becomes segment 1 and so on (a voxel from 0.5 on belongs; overlaps are kept). Patient, study, frame of reference and
    the references to the source images come from the source; every slice is written, so
    :py:class:`DicomSegReader` gives the identical array and affine, for tilted series as well.

    Args:
        output_dtype: ignored, ``SaveImage`` passes uint8 for .dcm, which would fold 300 objects into 255.
        scale: must be None; values are never rescaled. ``SaveImage`` passes its own ``scale`` here.
        segments: label value (or its digits, as in ``channel_def`` of a bundle's metadata) -> name, or -> mapping with
            ``name`` and, if wanted, ``colour`` [red, green, blue] and ``category`` and ``type``, each [code, scheme,
            meaning]. Named segments are written even if empty. Other values become "label 7"; without any names they
            are objects, "object 7". To give keywords in a configuration, use ``_mode_: callable``.
        kind: "binary" (one bit plane per segment and slice, read by all viewers that know SEG) or "labelmap" (Label
            Map Segmentation of DICOM 2024: one picture per slice, compact for many objects, read by new viewers only).
            Default: binary up to label value 255, label map above.
        series_description: of the new series, at most 64 characters.

    Raises:
        ValueError: values that are no labels, an array that is not on the source's grid, overlapping channels for a
            label map, or a source that a SEG cannot refer to. One sentence.

    Notes:
        Segment numbers are the label values. A binary SEG must number its segments without gaps, so that values between
        those in use become empty segments. A bit plane is written where its segment is, and one for each empty slice.
        An array of background only, without ``segments``, is one empty segment "object 1".
        A source without position (projection X-ray) gives a SEG without position; it is one picture.

    Example:
        >>> DicomSegWriter(segments={"1": "liver"}, kind="fractional")
        Traceback (most recent call last):
        ValueError: kind must be 'binary', 'labelmap' or None, got 'fractional'
    """

    def __init__(
        self,
        output_dtype: DtypeLike = None,
        *,
        scale: int | None = None,
        segments: Mapping[Any, Any] | None = None,
        kind: str | None = None,
        series_description: str = "Segmentation",
    ) -> None:
        super().__init__()
        if scale is not None:
            raise ValueError(f"DicomSegWriter writes labels as they are: scale must be None, got {scale}")
        if kind not in (*_KINDS, None):
            raise ValueError(f"kind must be 'binary', 'labelmap' or None, got {kind!r}")
        if not 0 < len(series_description) <= 64 or not series_description.isprintable() or "\\" in series_description:
            raise ValueError("series_description must have 1 to 64 printable characters and no backslash")
        self.segments = segments_of(segments)
        self.kind = kind
        self.series_description = series_description
        self.array = np.empty(0)
        self.meta: Mapping[str, Any] = {}
        self.resample = False

    def set_data_array(  # type: ignore[override]
        self, data_array: NdarrayOrTensor, channel_dim: int | None = 0, squeeze_end_dims: bool = True
    ) -> None:
        """Take the array; ``squeeze_end_dims`` of MONAI's interface changes nothing, the source tells the shape."""
        array = convert_data_type(data_array, np.ndarray)[0]
        self.array = array[None] if channel_dim is None else np.moveaxis(array, channel_dim, 0)

    def set_metadata(self, meta_dict: Mapping | None = None, resample: bool = True, **options: Any) -> None:
        """Take the meta of the image; ``resample`` brings a moved array back to the source's grid (nearest voxel)."""
        self.meta, self.resample = meta_dict or {}, resample

    def write(self, filename: PathLike, verbose: bool = True) -> None:  # type: ignore[override]
        """Write the file; it appears complete or not at all."""
        super().write(filename, verbose=verbose)
        source = source_of(self.meta)
        labels = labels_of(self._on_source_grid(source), self.segments, source)
        segmentation = self._segmentation(labels, source)
        with replacing(Path(filename)) as temporary:
            segmentation.save_as(temporary, enforce_file_format=True)

    def _on_source_grid(self, source: DicomSource) -> np.ndarray:
        if source.grid == "source":
            array = source_array(self.array, self.meta, resample=self.resample, nearest=True)
        else:
            array = on_resampled_grid(self.array, self.meta, self.resample)
        return array[..., None] if array.ndim == 3 else array

    def _segmentation(self, labels: np.ndarray, source: DicomSource) -> Segmentation:
        from highdicom.seg import Segmentation
        from pydicom.uid import generate_uid

        highest = max(self.segments, default=0)
        highest = max(highest, labels.shape[3] if labels.ndim == 4 else int(labels.max()), 1)
        kind = self.kind or ("binary" if highest <= _BINARY_UP_TO or labels.ndim == 4 else "labelmap")
        numbers = [*range(1, highest + 1)]
        if kind == "labelmap" and labels.ndim == 3:
            present = np.flatnonzero(np.bincount(labels.ravel(), minlength=2))
            numbers = sorted({*self.segments, *present.tolist()} - {0}) or [1]
        files = headers(source)
        planes = planes_of(files, source, self.meta, len(labels))
        sources = references(files, source, planes)
        marked = mark_empty(labels) if kind == "binary" else np.empty(0)
        try:
            result = Segmentation(
                source_images=sources,
                pixel_array=labels,
                segmentation_type=kind.upper(),
                segment_descriptions=describe(numbers, self.segments),
                series_instance_uid=generate_uid(),
                series_number=series_number(files[0], 1000),
                sop_instance_uid=generate_uid(),
                instance_number=1,
                manufacturer=PROGRAM,
                manufacturer_model_name=PROGRAM,
                software_versions=__version__,
                device_serial_number="0",
                content_label="SEGMENTATION",
                content_description=self.series_description,
                series_description=self.series_description,
                specific_character_set="ISO_IR 192",
                omit_empty_frames=kind == "binary",
                **planes.arguments(),
            )
        except Exception as error:  # highdicom refuses in many ways; it was given nothing about the patient to quote
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"no DICOM SEG can be written for the images of {source.files[0]!r}: {reason}") from error
        correct_references(result, source, planes)
        clear_marks(result, marked, labels, planes.positions)
        copy_patient_and_study(files[0], result)
        result.ContentCreatorName = ""  # must be there, and nobody's name belongs in it
        return result
