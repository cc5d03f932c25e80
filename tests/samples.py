# SPDX-License-Identifier: Apache-2.0
"""Tiny synthetic data sets in every file format that the bundles read."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

from monai_labelfx.data import save_datalist

AFFINE = np.array([[-0.7, 0, 0, 10.0], [0, -0.9, 0, 20.0], [0, 0, 2.5, -30.0], [0, 0, 0, 1]])
SPACING = (0.7, 0.9, 2.5)


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


def _write(path: Path, array: np.ndarray, kind: str) -> Path:
    """Write an array in MONAI's axis order (x first); returns the path to load."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "nifti":
        path = path.with_name(f"{path.name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
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
        write_ct_series(path, array)
    return path


def write_ct_series(folder: Path, array: np.ndarray, spacing: tuple[float, ...] = SPACING) -> Path:
    """A regular axial CT series of an array (x, y, z); values are HU, stored with slope 1 and intercept -1024."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for number in range(array.shape[2]):
        slice_ = Dataset()
        slice_.file_meta = FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.SOPClassUID = slice_.file_meta.MediaStorageSOPClassUID = CTImageStorage
        slice_.SOPInstanceUID = slice_.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = study, series, frame
        slice_.Modality, slice_.PatientID, slice_.PatientName = "CT", "phantom", "phantom"
        slice_.InstanceNumber = number + 1
        slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        slice_.ImagePositionPatient = [-10.0, -20.0, -30.0 + spacing[2] * number]
        slice_.PixelSpacing = [spacing[1], spacing[0]]
        slice_.SliceThickness = spacing[2]
        slice_.RescaleSlope, slice_.RescaleIntercept = 1, -1024
        slice_.PhotometricInterpretation, slice_.SamplesPerPixel = "MONOCHROME2", 1
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 0
        pixels = np.rint(array[:, :, number].T + 1024).astype(np.uint16)
        slice_.Rows, slice_.Columns = pixels.shape
        slice_.PixelData = pixels.tobytes()
        slice_.save_as(folder / f"{number:03d}.dcm", enforce_file_format=True)
    return folder


def write_dataset(
    folder: Path, kind: str, shape: tuple[int, ...], *, counts=(4, 2, 2), labelled: int = 2, clean: bool = False
) -> Path:
    """Images and labels as ``kind`` (``nifti``, ``dicom``, ``tiff``, ``png``) with a datalist; returns its path.

    Labels of a DICOM series are NIfTI files on the same grid.
    """
    splits: dict[str, list[dict]] = {}
    seed = 0
    for split, count in zip(("training", "validation", "test"), counts, strict=True):
        splits[split] = []
        for number in range(count):
            seed += 1
            image, label = discs(shape, seed)
            item = {"image": str(_write(folder / "images" / f"{split}{number}", image, kind))}
            if split != "training" or number < labelled:
                where = folder / "labels" / f"{split}{number}"
                item["label"] = str(_write(where, label, "nifti" if kind == "dicom" else kind))
            if clean:
                item["clean"] = item["image"]
            splits[split].append(item)
    return save_datalist(folder / "datalist.json", splits)
