# SPDX-License-Identifier: Apache-2.0
"""Read a DICOM structured report of detections as boxes in voxels."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_labelfx.data._dicom_seg_planes import planes_of
from monai_labelfx.data._dicom_source import headers, source_of
from monai_labelfx.data._dicom_sr_content import NAMED
from monai_labelfx.data._dicom_sr_regions import Places, box_of_contours, box_of_rectangle, places_of, shape_of
from monai_labelfx.data._reading import ImageFileError, reading

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["load_detection_report"]

_AXES = {"1.2.840.10008.5.1.4.1.1.88.33": 2, "1.2.840.10008.5.1.4.1.1.88.34": 3}  # Comprehensive (3D) SR


def load_detection_report(path: str | os.PathLike, *, meta: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read what :py:func:`monai_labelfx.data.save_detection_report` wrote: its arguments.

    Args:
        path: the report.
        meta: the meta of the image; the report of a volume, which is in mm, can only be read with it. Where it is
            given, the report must be about its series.

    Returns:
        ``boxes`` (N, 4) or (N, 6) float64 in voxels of the image as it was read, ``labels`` (N,) int64, ``scores`` (N,)
        float64, ``names`` of the labels that occur.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no report of ours, a volume without ``meta``, or a report about another series. One sentence.

    Example:
        >>> load_detection_report("nowhere.dcm")
        Traceback (most recent call last):
        FileNotFoundError: detection report 'nowhere.dcm' does not exist
    """
    from pydicom import dcmread

    name = os.fspath(path)
    if not os.path.isfile(name):
        raise FileNotFoundError(f"detection report {name!r} does not exist")
    with reading(name, "DICOM SR"):
        document = dcmread(name)
        axes = _AXES.get(document.get("SOPClassUID"))
        if axes is None:
            raise ImageFileError(f"file {name!r} is no DICOM SR, expected a report that save_detection_report wrote")
        found = [
            _detection(group, axes, name)
            for container in _items(document, "126010")
            for group in _items(container, "125007")
        ]
    labels, texts, scores, lines = zip(*found, strict=True) if found else ((), (), (), ())
    places = None if meta is None else _places_for(document, axes, meta, name)
    if axes == 2:
        boxes = [box_of_rectangle(points[0]) for points in lines]
    elif places is None:
        raise ImageFileError(f"report {name!r} is about a volume, in mm: the meta of its image is needed")
    else:
        boxes = [box_of_contours(points, places) for points in lines]
    return {
        "boxes": np.array(boxes, dtype=np.float64).reshape(-1, 2 * axes),
        "labels": np.array(labels, dtype=np.int64),
        "scores": np.array(scores, dtype=np.float64),
        "names": {label: text for label, text in zip(labels, texts, strict=True) if text is not None},
    }


def _detection(group: Dataset, axes: int, name: str) -> tuple[int, str | None, float, list[np.ndarray]]:
    """Label, name, score and the points (N, axes) of the lines of a measurement group."""
    parameter = NAMED.fullmatch(str(_items(group, "111002")[0].TextValue))
    if parameter is None:
        raise ImageFileError(f"report {name!r} does not say the labels, expected one that save_detection_report wrote")
    percent = float(_items(group, "111012")[0].MeasuredValueSequence[0].FloatingPointValue)
    lines = _items(group, "111030" if axes == 2 else "121231")
    points = [np.array(line.GraphicData, dtype=np.float64).reshape(-1, axes) for line in lines]
    if not points:
        raise ImageFileError(f"report {name!r} does not say where a detection is")
    return int(parameter[1]), parameter[2], percent / 100, points


def _items(parent: Dataset, code: str) -> list[Dataset]:
    """The content items of a concept (scheme DCM)."""
    return [
        item
        for item in parent.get("ContentSequence") or []
        if item.get("ConceptNameCodeSequence") and item.ConceptNameCodeSequence[0].get("CodeValue") == code
    ]


def _places_for(document: Dataset, axes: int, meta: Mapping[str, Any], name: str) -> Places | None:
    """The places of the image of ``meta``, which the report must be about; none for an image of one plane."""
    source = source_of(meta)
    files = headers(source)
    about = {
        series.SeriesInstanceUID
        for study in document.get("CurrentRequestedProcedureEvidenceSequence") or []
        for series in study.ReferencedSeriesSequence
    }
    if files[0].get("SeriesInstanceUID") not in about:
        raise ImageFileError(f"report {name!r} is about another series than that of {source.files[0]!r}")
    shape = shape_of(source, files[0], meta)
    if len(shape) != axes:
        raise ImageFileError(
            f"report {name!r} has boxes of {axes} axes, but the image of {source.files[0]!r} has {shape}"
        )
    return places_of(planes_of(files, source, meta, shape[2]), source) if axes == 3 else None
