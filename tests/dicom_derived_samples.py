# SPDX-License-Identifier: Apache-2.0
"""Write derived series, and look at what was written, in the tests of the writer and its parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from dicom_samples import phantom, save, series_slices
from monai.transforms import LoadImage

from monai_labelfx.data.dicom_derived_series_writer import DicomDerivedSeriesWriter
from monai_labelfx.data.dicom_series_reader import DicomSeriesReader


def read(path, **options):
    return LoadImage(reader=DicomSeriesReader(**options), ensure_channel_first=True)(path)


def write(image, target: Path, *, resample: bool = True, **options) -> Path:
    """Save as ``target`` (a name without suffix) and return the folder or file that was made."""
    writer = DicomDerivedSeriesWriter(**options)
    writer.set_data_array(image)
    writer.set_metadata(image.meta, resample=resample)
    writer.write(f"{target}.dcm", verbose=False)
    return target if target.is_dir() else target.with_suffix(".dcm")


def by_position(folder: Path) -> list[pydicom.Dataset]:
    files = [pydicom.dcmread(path) for path in folder.iterdir()]
    return sorted(files, key=lambda image: np.dot(image.ImagePositionPatient, _normal(image)))


def _normal(image) -> np.ndarray:
    return np.cross(image.ImageOrientationPatient[:3], image.ImageOrientationPatient[3:])


def series(folder: Path, change=lambda image, index: None, **options) -> Path:
    slices = series_slices(phantom(), **options)
    for index, image in enumerate(slices):
        change(image, index)
    return save(folder, slices)


def as_stored(*, bits: int = 16, signed: bool = False, slope=lambda index: 1.0, intercept: float = -1024.0):
    """A change of a slice: random stored values of the full range that these bits have."""

    def change(image, index):
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        pixels = np.random.default_rng(index).integers(low, high + 1, (image.Rows, image.Columns))
        pixels[0, :2] = low, high
        size = 8 if bits <= 8 else 16
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = size, bits, bits - 1, signed
        image.RescaleSlope, image.RescaleIntercept = slope(index), intercept
        image.PixelData = pixels.astype(f"{'i' if signed else 'u'}{size // 8}").tobytes()
        image["PixelData"].VR = "OB" if size == 8 else "OW"

    return change
