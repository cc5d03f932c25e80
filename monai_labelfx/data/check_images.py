# SPDX-License-Identifier: Apache-2.0
"""Open every image below a path, such as a PACS export, and report what is wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from monai_labelfx.data._check_item import Findings, check_item
from monai_labelfx.data.check_datalist import CheckReport, CheckRow
from monai_labelfx.data.dicom_seg_reader import is_dicom_seg
from monai_labelfx.data.dicom_series import find_dicom_series
from monai_labelfx.data.find_images import dicom_files, entries_of, images_of_series

__all__ = ["check_images"]


def check_images(path: str | os.PathLike, *, spatial_dims: int | None = None) -> CheckReport:
    """Open every image below a path and report faults, without a datalist; prints nothing and never raises about data.

    Every DICOM series is a row of its own, also where one folder holds several, and so is every SEG and image file.
    The faults are those of :py:func:`check_datalist` about a single image: for DICOM that is also what
    :py:class:`DicomSeriesReader` refuses (gaps, duplicates, mixed sizes or orientations, unusable pixels).

    Args:
        path: a folder, walked to the bottom, or one file.
        spatial_dims: expected number of spatial axes; None accepts any.

    Returns:
        A :py:class:`CheckReport` whose rows have the split "images"; ``item`` is the path below ``path``, for a DICOM
        series with the SeriesInstanceUID behind it.

    Raises:
        FileNotFoundError: no such path.

    Example:
        >>> import numpy as np
        >>> np.save("a.npy", np.zeros((4, 5)))
        >>> report = check_images(".")
        >>> report["rows"][0]["item"], report["rows"][0]["shape"], report["faults"]
        ('a.npy', [4, 5], [])
    """
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"nothing to check at {str(root)!r}: there is no such file or folder")
    report = CheckReport(path=str(root), rows=[], faults=[], warnings=[])
    for name, found in _findings(root, spatial_dims):
        row = CheckRow(split="images", index=len(report["rows"]), item=name, **asdict(found))  # type: ignore[typeddict-item]
        report["rows"].append(row)
        report["faults"] += [f"{name}: {text}" for text in found.faults]
        report["warnings"] += [f"{name}: {text}" for text in found.warnings]
    return report


def _findings(root: Path, spatial_dims: int | None) -> Iterator[tuple[str, Findings]]:
    if root.is_file():
        yield root.name, check_item({"image": str(root)}, spatial_dims=spatial_dims, allowed_labels=None)
        return
    images, has_dicom, folders = entries_of(root)
    for image in images:
        yield image.name, check_item({"image": str(image)}, spatial_dims=spatial_dims, allowed_labels=None)
    if has_dicom:
        yield from _series(root, spatial_dims)
        for file in sorted(root.iterdir()):
            if file.is_file() and not file.name.startswith(".") and is_dicom_seg(file):
                found = check_item({"image": str(file)}, spatial_dims=None, allowed_labels=None)
                yield f"{file.name} (SEG)", found
    for folder in folders:
        for name, found in _findings(folder, spatial_dims):
            yield f"{folder.name}/{name}", found


def _series(folder: Path, spatial_dims: int | None) -> Iterator[tuple[str, Findings]]:
    readable = []
    for file in dicom_files(folder):
        try:
            find_dicom_series(file)
        except ValueError as error:
            yield file.name, Findings(faults=[str(error)])
        else:
            readable.append(file)
    for series in find_dicom_series(readable):
        for files in images_of_series(series):
            name = f"{Path(files[0]).name} .. {Path(files[-1]).name}" if len(files) > 1 else Path(files[0]).name
            found = check_item({"image": files}, spatial_dims=spatial_dims, allowed_labels=None)
            yield f"{name} ({series.modality} {series.uid})", found
