# SPDX-License-Identifier: Apache-2.0
"""A DICOM export, such as a PACS or a research archive gives it: any folders, many patients, images and SEGs."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from monai_labelfx._atomic import replacing
from monai_labelfx.data.datalist import save_datalist
from monai_labelfx.data.dicom_seg_reader import is_dicom_seg
from monai_labelfx.data.dicom_series import DicomSeries, find_dicom_series
from monai_labelfx.data.prepare._splits import check_destination, split_by_image

__all__ = ["prepare"]


def prepare(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    modality: str | None = None,
    min_images: int = 1,
    validation: float = 0.2,
    test: float = 0.0,
    seed: int = 0,
) -> Path:
    """Write a datalist of the image series of a DICOM export; nothing is copied or converted.

    Every image series below ``source`` becomes an item, and the DICOM SEG that refers to it becomes its label. Scouts
    and other series that are not wanted are left out by ``modality`` and ``min_images``. Splits are by patient: all
    series of one patient stay together. Look at the result with ``labelfx check`` before training.

    Args:
        source: folder of the export.
        destination: new or empty folder for the datalist, whose paths lead back to ``source``.
        modality: only series of this modality, such as "CT".
        min_images: only series of at least this many slices.
        validation: share of the patients in the validation split, drawn by ``seed``.
        test: share of the patients in the test split.
        seed: seed of the draw.

    Returns:
        The path of ``datalist.json``. Its items have ``subject``: p001, p002, ... in the order of the folders, never
        the patient's name or id.

    Raises:
        FileNotFoundError: ``source`` does not exist.
        FileExistsError: ``destination`` is not empty.
        ValueError: no series left, two SEGs for one series, a file that cannot be read, or too few patients to split.

    Example:
        >>> prepare("nowhere", "data")
        Traceback (most recent call last):
        FileNotFoundError: source 'nowhere' does not exist
    """
    folder, target = Path(source), Path(destination).absolute()
    check_destination(target)
    if not folder.exists():
        raise FileNotFoundError(f"source {str(folder)!r} does not exist")
    series = [
        one
        for one in find_dicom_series(folder, recursive=True)
        if len(one.frames) >= min_images and (modality is None or one.modality == modality.upper())
    ]
    if not series:
        raise ValueError(
            f"source {str(folder)!r} holds no image series of modality {modality or 'any'} and {min_images} images"
        )
    labels = _segmentations(folder)
    patients: dict[str, list[dict[str, Any]]] = {}
    for one in sorted(series, key=lambda s: str(s.paths[0])):
        items = patients.setdefault(_patient(one), [])
        items.append({"image": _image(one)} | ({"label": labels[one.uid]} if one.uid in labels else {}))
    groups = [{"items": items, "subject": f"p{n:03d}"} for n, items in enumerate(patients.values(), 1)]
    splits = {
        name: [{**item, "subject": group["subject"]} for group in chosen for item in group["items"]]
        for name, chosen in split_by_image(groups, validation=validation, test=test, seed=seed).items()
    }
    with replacing(target) as temporary:
        temporary.mkdir()
        # relative paths must lead from the final folder, which has the same depth and parent
        save_datalist(temporary / "datalist.json", splits, notes={"name": "DICOM export", "seed": seed})
    return target / "datalist.json"


def _image(series: DicomSeries) -> str | list[str]:
    """The folder of a series, or its files where the folder holds other DICOM images too."""
    files = sorted({os.path.abspath(path) for path in series.paths})
    folder = os.path.dirname(files[0])
    alone = all(os.path.dirname(file) == folder for file in files) and len(find_dicom_series(folder)) == 1
    return folder if alone and len(files) > 1 else files if len(files) > 1 else files[0]


def _patient(series: DicomSeries) -> str:
    """What tells patients apart, to group series by; never written."""
    from pydicom import dcmread

    header = dcmread(series.paths[0], stop_before_pixels=True, specific_tags=["PatientID", "IssuerOfPatientID"])
    patient = str(header.get("PatientID", "") or "").strip()
    issuer = str(header.get("IssuerOfPatientID", "") or "").strip()
    return f"{issuer}/{patient}" if patient else series.frames[0].study_uid


def _segmentations(folder: Path) -> dict[str, str]:
    """SeriesInstanceUID -> the SEG that refers to it."""
    from pydicom import dcmread

    found: dict[str, str] = {}
    for path in _files(folder):
        if not is_dicom_seg(path):
            continue
        header = dcmread(path, stop_before_pixels=True, specific_tags=["ReferencedSeriesSequence"])
        for reference in header.get("ReferencedSeriesSequence", []):
            uid = str(reference.SeriesInstanceUID)
            if uid in found:
                raise ValueError(f"series {uid} has two SEGs, {found[uid]!r} and {str(path)!r}: keep one of them")
            found[uid] = os.path.abspath(path)
    return found


def _files(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
