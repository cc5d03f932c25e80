# SPDX-License-Identifier: Apache-2.0
"""Write detections as a DICOM structured report of the image that they were found in."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from monai.config import NdarrayOrTensor

from monai_labelfx._atomic import replacing
from monai_labelfx._version import __version__
from monai_labelfx.data._dicom_seg_planes import planes_of
from monai_labelfx.data._dicom_segments import PROGRAM
from monai_labelfx.data._dicom_source import DicomSource, headers, source_of
from monai_labelfx.data._dicom_sr_content import classes_of, group_of
from monai_labelfx.data._dicom_sr_document import document_of, images_of, one_sentence
from monai_labelfx.data._dicom_sr_regions import (
    Places,
    places_of,
    rectangle,
    shape_of,
    surface,
)
from monai_labelfx.data.detections import _checked

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["save_detection_report"]


def save_detection_report(
    path: str | os.PathLike,
    boxes: NdarrayOrTensor | Sequence,
    *,
    labels: NdarrayOrTensor | Sequence,
    scores: NdarrayOrTensor | Sequence,
    meta: Mapping[str, Any] | None,
    names: Mapping[Any, str] | None = None,
    codes: Mapping[Any, Sequence[str]] | None = None,
    algorithm: tuple[str, str] = (PROGRAM, __version__),
    series_description: str = "Detections",
) -> Path:
    """Write the boxes of one DICOM image as a structured report (SR); the file appears complete or not at all.

    A Measurement Report (TID 1500), preliminary and unverified, of the patient and study of the image, in a series of
    its own. It names all files of the image, and has one measurement group for each box:

    - where: in an image of one plane a closed POLYLINE in columns and rows (Comprehensive SR), of the file and frame.
      In a volume a Volume Surface in mm (Comprehensive 3D SR): a closed POLYGON where the box begins, in each slice
      that it covers, and where it ends, in the frame of reference of the series.
    - what: the finding is the class; its code is that in ``codes``, else the name in a private scheme, 99LABELFX.
    - how sure: Certainty of Finding (111012, DCM) in percent, 100 times the score.
    - by whom: the algorithm, and as its parameter the label; the observer is a device.

    A report without boxes has no group, and says (111241, DCM, "All algorithms succeeded; without findings") and the
    algorithm.

    Args:
        path: the file to write; its folder is made.
        boxes: (N, 4), for a volume (N, 6), in voxels of the image *as it was read*: ``x0, y0[, z0], x1, y1[, z1]``,
            half open, fractions allowed, x along a row. They are cut at the border of the image.
        labels: (N,) whole numbers.
        scores: (N,) between 0 and 1.
        meta: the meta of the image, which DicomSeriesReader (or AutoReader) read.
        names: label (or its digits) -> name of at most 64 characters; a label without one is "label 3".
        codes: label (or its digits) -> [code, scheme, meaning] in a public terminology, such as
            ``["27925004", "SCT", "Nodule"]``.
        algorithm: its name and version.
        series_description: of the new series, at most 64 characters.

    Returns:
        The path of the file.

    Raises:
        ValueError: wrong shapes or numbers, a box outside the image, unusable names or codes, or an image that is not
            from DICOM, whose files are gone, or to which no report can refer. One sentence.

    Notes:
        A box is half open and counts from the edge of the first voxel, as do DICOM's columns and rows: nothing is
        added. A voxel's position in mm is that of its centre, so that in mm the box begins half a voxel before it.

        Coordinates are float32 in DICOM: in a film of 4096 columns exact to 0.0003 pixel.

        The score of a detector is seldom a calibrated likelihood, which Certainty of Finding is by its definition.

    Example:
        >>> import tempfile
        >>> from monai.transforms import LoadImage
        >>> from monai_labelfx.data.dicom_sr_reader import load_detection_report
        >>> from pydicom.data import get_testdata_file
        >>> image = LoadImage("monai_labelfx.data.DicomSeriesReader")(get_testdata_file("CT_small.dcm"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_detection_report(
        ...         f"{folder}/a.dcm", [[0, 0.5, 4, 2]], labels=[1], scores=[0.75], meta=image.meta, names={1: "nodule"}
        ...     )
        ...     found = load_detection_report(path)
        >>> found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), found["names"]
        ([[0.0, 0.5, 4.0, 2.0]], [1], [0.75], {1: 'nodule'})
    """
    source = source_of(meta)
    meta = meta or {}
    if isinstance(algorithm, str) or len(algorithm) != 2:
        raise ValueError(f"algorithm must be its name and its version, got {algorithm!r}")
    for argument, text in (*(("algorithm", part) for part in algorithm), ("series_description", series_description)):
        if not isinstance(text, str) or not 0 < len(text) <= 64 or not text.isprintable() or "\\" in text:
            raise ValueError(f"{argument} must have 1 to 64 printable characters and no backslash, got {text!r}")
    files = headers(source)
    shape = shape_of(source, files[0], meta)
    if meta.get("original_affine") is None:
        raise ValueError("the image has no original_affine in its meta: read it again")
    found = _checked(_shaped(boxes, len(shape)), labels, scores, np.eye(4), None)
    kinds = classes_of(found["labels"].tolist(), names, codes)
    cut = _cut(found["boxes"], shape)
    if found["scores"].size and not (found["scores"].min() >= 0 and found["scores"].max() <= 1):
        raise ValueError(
            f"scores must lie between 0 and 1 in a report, got {found['scores'].min():g} to {found['scores'].max():g}"
        )
    planes = planes_of(files, source, meta, (*shape, 1)[2])
    images = images_of(files, source, planes)
    places = places_of(planes, source) if len(shape) == 3 else None
    with one_sentence(source):
        groups = [
            group_of(kind, score, number, region, algorithm)
            for number, (kind, score, region) in enumerate(
                zip(kinds, found["scores"], _regions(cut, places, images[0], source), strict=True), 1
            )
        ]
    report = document_of(
        groups, files[0], images, source, axes=len(shape), algorithm=algorithm, description=series_description
    )
    with replacing(Path(path)) as temporary:
        report.save_as(temporary, enforce_file_format=True)
    return Path(path)


def _shaped(boxes: Any, axes: int) -> Any:
    """None at all as an array of the right shape; boxes of other axes than the image are refused."""
    shape = np.shape(boxes)
    if 0 in shape:
        return np.empty((0, 2 * axes))
    if len(shape) != 2 or shape[1] != 2 * axes:
        what = "an image of one plane" if axes == 2 else "a volume"
        raise ValueError(f"boxes must have the shape (N, {2 * axes}) in {what}, got {tuple(shape)}")
    return boxes


def _cut(boxes: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The boxes as far as they lie in the image: DICOM knows no coordinates beyond it."""
    low, high = np.split(np.clip(boxes, 0, np.tile(shape, 2)), 2, axis=1)
    outside = np.flatnonzero((high <= low).any(axis=1))
    if outside.size:
        raise ValueError(
            f"box {outside[0]} lies outside the image of size {tuple(shape)}: {boxes[outside[0]].tolist()}"
        )
    return np.concatenate([low, high], axis=1)


def _regions(boxes: np.ndarray, places: Places | None, image: Dataset, source: DicomSource) -> list[Any]:
    if places is None:
        return [rectangle(box, image, source) for box in boxes]
    return [surface(box, places, image) for box in boxes]
