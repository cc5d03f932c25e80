# SPDX-License-Identifier: Apache-2.0
"""ATLAS, T1-weighted MR of brains after a stroke: the layouts of releases 1.1 and 2.0."""

from __future__ import annotations

import gzip
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monai_labelfx._atomic import replacing
from monai_labelfx.data._nifti_reader import read_nifti
from monai_labelfx.data._reading import reading
from monai_labelfx.data.datalist import save_datalist
from monai_labelfx.data.prepare._splits import check_destination
from monai_labelfx.data.prepare._volumes import check_same_grid, save_volume, split_by_subject

__all__ = ["prepare"]

_NIFTI = re.compile(r"\.nii(\.gz)?$")
_R1 = re.compile(r"(?P<subject>[^_]+)_t1w_deface_stx")
_R1_MASK = re.compile(r"(?P<subject>[^_]+)_LesionSmooth(_\d+)?_stx")
_R2 = re.compile(r"(?P<subject>sub-[^_]+)_(?P<session>ses-[^_]+)_(?P<space>space-[^_]+)(_desc-[^_]+)?_T1w")
_R2_MASK = re.compile(r"(?P<subject>sub-[^_]+)_(?P<session>ses-[^_]+)_(?P<space>space-[^_]+)_.*T1lesion_mask")


@dataclass
class _Scan:
    subject: str
    name: str
    space: str | None
    image: Path
    masks: list[Path]


def prepare(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    validation: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
) -> Path:
    """Turn ATLAS R1.1 or R2.0 into images, lesion masks and a datalist, split by patient.

    Expected anywhere below ``source`` (``.nii.gz`` or ``.nii``):

    - R1.1: ``<site>/<patient>/t01/<patient>_t1w_deface_stx.nii.gz`` with ``<patient>_LesionSmooth_stx.nii.gz``,
      ``<patient>_LesionSmooth_1_stx.nii.gz``, ...: one mask per lesion;
    - R2.0: ``sub-<id>/ses-<n>/anat/sub-<id>_ses-<n>_space-<space>_T1w.nii.gz`` with
      ``..._label-L_desc-T1lesion_mask.nii.gz``, below ``Training/<cohort>`` and ``Testing/<cohort>``.

    Written: ``images/<scan>.nii.gz`` (the same bytes where they were compressed already), ``labels/<scan>.nii.gz`` (1
    in any of the scan's lesions, else 0) and ``datalist.json``. Items have ``subject``, the patient: all scans of one
    patient are in one split. Scans without mask, as all of ``Testing``, make the split "unlabelled".

    Args:
        source: the folder with the unpacked data.
        destination: new or empty folder to write; it appears complete or not at all.
        validation: share of the patients for validation, drawn by ``seed``.
        test: share of the patients for the test.
        seed: seed of the draw.

    Returns:
        The path of ``datalist.json``.

    Raises:
        FileNotFoundError: ``source`` does not exist.
        FileExistsError: ``destination`` is not empty.
        ValueError: no scan in either layout, a mask without image, one scan twice, an unusable file, a mask with other
            voxels than its image, or shares out of range: one sentence naming the file or argument.

    Notes:
        Masks of R1.1 hold 0 with 1, with 255 or with values next to these, all scaled by almost 1; what is above 0.5
        is lesion, which for such files is the "above 0" of the paper's code. A mask may be empty.
        The paper holds out 25 of 220 patients of R1.1, drawn from a list that is not published: ``validation=0.114,
        test=0`` gives as many, not the same.

    Example:
        >>> prepare("nowhere", "data")
        Traceback (most recent call last):
        FileNotFoundError: source 'nowhere' does not exist
    """
    folder, target = Path(source), Path(destination).absolute()
    check_destination(target)
    if not folder.exists():
        raise FileNotFoundError(f"source {str(folder)!r} does not exist")
    scans = _find(folder)
    with replacing(target) as temporary:
        temporary.mkdir()
        items = [_write(scan, temporary) for scan in scans]
        labelled = [item for item in items if "label" in item]
        splits = split_by_subject(labelled, validation=validation, test=test, seed=seed) if labelled else {}
        unlabelled = [item for item in items if "label" not in item]
        splits |= {"unlabelled": unlabelled} if unlabelled else {}
        save_datalist(temporary / "datalist.json", splits, notes={"name": "ATLAS", "seed": seed})
    return target / "datalist.json"


def _find(folder: Path) -> list[_Scan]:
    """The scans with their masks, in the order of their names."""
    scans: dict[str, _Scan] = {}
    masks: list[tuple[str, str | None, Path]] = []
    for path, stem in _volumes(folder):
        for image_names, mask_names in ((_R1, _R1_MASK), (_R2, _R2_MASK)):
            if match := mask_names.fullmatch(stem):
                masks.append((_name(match, path), match.groupdict().get("space"), path))
            elif match := image_names.fullmatch(stem):
                name = _name(match, path)
                if name in scans:
                    raise ValueError(f"scan {name} is at {str(path)!r} and at {str(scans[name].image)!r}, expected one")
                scans[name] = _Scan(match["subject"], name, match.groupdict().get("space"), path, [])
    for name, space, path in masks:
        if name not in scans or space != scans[name].space:
            raise ValueError(f"lesion mask {str(path)!r} has no T1-weighted image of the same scan and space")
        if path.parent != scans[name].image.parent:
            raise ValueError(f"lesion mask {str(path)!r} is not in the folder of its image {str(scans[name].image)!r}")
        scans[name].masks.append(path)
    if not scans:
        raise ValueError(
            f"source {str(folder)!r} holds no scan of ATLAS, expected <patient>/t01/<patient>_t1w_deface_stx.nii.gz "
            "(R1.1) or sub-<id>/ses-<n>/anat/sub-<id>_ses-<n>_space-<space>_T1w.nii.gz (R2.0)"
        )
    return [scans[name] for name in sorted(scans)]


def _volumes(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.rglob("*.nii*")):
        if path.is_file() and _NIFTI.search(path.name) and not path.name.startswith("."):
            yield path, _NIFTI.sub("", path.name)


def _name(match: re.Match[str], path: Path) -> str:
    """Subject and time point; not the space, since one image per scan is wanted."""
    session = match.groupdict().get("session") or path.parent.name
    return f"{match['subject']}_{session}"


def _write(scan: _Scan, folder: Path) -> dict[str, Any]:
    item = {"image": f"images/{scan.name}.nii.gz", "subject": scan.subject}
    array, affine = _read(scan.image)
    _copy(scan.image, folder / item["image"])
    if scan.masks:
        lesion = np.zeros(array.shape, dtype=bool)
        for path in scan.masks:
            mask, own = _read(path)
            check_same_grid(path, mask.shape, own, image=scan.image, image_shape=array.shape, expected=affine)
            if not np.isfinite(mask).all():
                raise ValueError(f"lesion mask {str(path)!r} holds values that are NaN or infinite")
            lesion |= mask > 0.5
        item["label"] = f"labels/{scan.name}.nii.gz"
        save_volume(folder / item["label"], lesion.astype(np.uint8), affine)
    return item


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with reading(str(path), "NIfTI"):
        array, meta = read_nifti(str(path))
    if array.ndim != 3:
        raise ValueError(f"image file {str(path)!r} has {array.ndim} axes, expected 3")
    return array, np.asarray(meta["affine"], dtype=np.float64)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".gz":
        shutil.copyfile(source, target)
    else:
        target.write_bytes(gzip.compress(source.read_bytes(), 4, mtime=0))
