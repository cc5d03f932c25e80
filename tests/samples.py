# SPDX-License-Identifier: Apache-2.0
"""Tiny synthetic data sets in every file format that the bundles read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
from dicom_samples import affine_of, write_series
from scipy import ndimage

from monai_labelfx.data import save_datalist

AFFINE = affine_of("axial")


def discs(shape: tuple[int, ...], seed: int = 0, radius: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """An image of noisy bright balls on a dark ground and its instance labels, both of ``shape``."""
    generator = np.random.default_rng(seed)
    grid = np.indices(shape)
    label = np.zeros(shape, np.uint16)
    for number in range(1, 1 + max(2, int(np.prod(shape) // 900))):
        centre = [generator.uniform(0, size) for size in shape]
        distance = np.sqrt(sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)))
        label[(distance < radius) & (label == 0)] = number
    clean = ndimage.gaussian_filter((label > 0) * 100.0 + 20, 0.7)
    return (clean + generator.normal(0, 15, shape)).astype(np.float32), label


def write_image(path: Path, array: np.ndarray, kind: str, orientation: str = "axial") -> Path:
    """Write an array in MONAI's axis order (x first) as ``path`` plus suffix; returns the path to load.

    NIfTI and DICOM lie in space as :py:func:`dicom_samples.affine_of` says.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "nifti":
        path = path.with_name(f"{path.name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(array, affine_of(orientation)), path)
    elif kind == "tiff":
        import tifffile

        path = path.with_name(f"{path.name}.tif")
        tifffile.imwrite(path, np.ascontiguousarray(array.T))
    elif kind == "png":
        from PIL import Image

        path = path.with_name(f"{path.name}.png")
        if array.dtype == np.uint16:
            Image.fromarray(array.T.astype(np.int32).astype(np.uint16)).save(path)
        else:
            grey = Image.fromarray(np.clip(array.T, 0, 255).astype(np.uint8))
            grey.convert("RGBA").save(path)  # as the nuclei of DSB 2018 come
    else:
        write_series(path, array.reshape(*array.shape[:2], -1), orientation=orientation)
    return path


def write_dataset(
    folder: Path,
    kind: str,
    shape: tuple[int, ...],
    *,
    counts=(4, 2, 2),
    labelled: int = 2,
    clean: bool = False,
    orientations: Sequence[str] = ("axial",),
) -> Path:
    """Images and labels as ``kind`` (``nifti``, ``dicom``, ``tiff``, ``png``) with a datalist; returns its path.

    Labels of a DICOM series are NIfTI files on the same grid. The items take turns with the orientations.
    """
    splits: dict[str, list[dict]] = {}
    seed = 0
    for split, count in zip(("training", "validation", "test"), counts, strict=True):
        splits[split] = []
        for number in range(count):
            seed += 1
            image, label = discs(shape, seed)
            orientation = orientations[seed % len(orientations)]
            item = {"image": str(write_image(folder / "images" / f"{split}{number}", image, kind, orientation))}
            if split != "training" or number < labelled:
                where = folder / "labels" / f"{split}{number}"
                item["label"] = str(write_image(where, label, "nifti" if kind == "dicom" else kind, orientation))
            if clean:
                item["clean"] = item["image"]
            splits[split].append(item)
    return save_datalist(folder / "datalist.json", splits)
