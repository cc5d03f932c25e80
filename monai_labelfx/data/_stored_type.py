# SPDX-License-Identifier: Apache-2.0
"""How the numbers of an image were stored in the file that it was read from: type, slope and intercept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_labelfx.data._dicom_pixels import functional
from monai_labelfx.data._dicom_source import source_of
from monai_labelfx.data._reading import reading

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

STORED_KEY = "nifti_stored"
"""Of the metadata that read_nifti leaves behind: "int16 1.0 -1024.0"."""

_FLOAT = np.dtype(np.float32)
_SEQUENCE = "PixelValueTransformationSequence"
_TAGS = [
    *("BitsAllocated", "PixelRepresentation", "SamplesPerPixel", "RescaleSlope", "RescaleIntercept"),
    *("ModalityLUTSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]


@dataclass(frozen=True, slots=True)
class StoredType:
    """Value = stored number * ``slope`` + ``inter``; of floating numbers these are 1 and 0."""

    dtype: np.dtype
    slope: float = 1.0
    inter: float = 0.0

    @property
    def text(self) -> str:
        """What :py:func:`stored_type_of` understands."""
        return f"{self.dtype.name} {self.slope!r} {self.inter!r}"

    def numbers(self, values: np.ndarray) -> np.ndarray:
        """The stored numbers of ``values``, whole ones rounded and clipped to what the type holds.

        Raises:
            ValueError: NaN or infinite values for whole numbers.
        """
        if self.dtype.kind == "f":
            return values.astype(self.dtype, copy=False)
        bad = 0 if values.dtype.kind in "biu" else int(values.size - np.count_nonzero(np.isfinite(values)))
        if bad:
            raise ValueError(
                f"the image holds {bad} values that are NaN or infinite, which the {self.dtype.name} of its source "
                "cannot hold"
            )
        limits = np.iinfo(self.dtype)
        low, high = float(limits.min), float(limits.max)
        high = high if high <= limits.max else float(np.nextafter(high, 0))  # 2^63 - 1 is no float64
        scaled = (values.astype(np.float64) - self.inter) / self.slope
        return np.clip(np.rint(scaled, out=scaled), low, high, out=scaled).astype(self.dtype)


def stored_type_of(meta: Mapping[str, Any] | None) -> StoredType:
    """The stored type of the source of an image, from the metadata that AutoReader or DicomSeriesReader leaves behind.

    Of NIfTI it is the type in the file, of floating numbers without scaling. Of DICOM the whole numbers of the files
    with their slope and intercept, where all slices agree in them and NIfTI, which keeps them as float32, can hold
    them; else float32, and so for images that were read for display or by a table.

    Raises:
        ValueError: the metadata comes from another reader, or the DICOM files are gone.
    """
    meta = meta or {}
    if meta.get("dicom_source") is not None:
        return _of_dicom(meta)
    text = meta.get(STORED_KEY)
    text = text[0] if isinstance(text, (list, tuple)) and len(text) == 1 else text  # collated
    try:
        name, slope, inter = str(text).split()
        found = StoredType(np.dtype(name), float(slope), float(inter))
        usable = found.dtype.kind in "iuf" and found.slope != 0 and bool(np.isfinite([found.slope, found.inter]).all())
    except (ValueError, TypeError):
        usable = False
    if not usable:
        raise ValueError(
            "the image does not know how its source stored its numbers (no usable 'nifti_stored' or 'dicom_source' in "
            'its meta): read NIfTI or DICOM with LoadImaged(reader="monai_labelfx.data.AutoReader"), or name an '
            "output_dtype"
        )
    return StoredType(found.dtype) if found.dtype.kind == "f" else _or_float(found)


def _or_float(found: StoredType) -> StoredType:
    """As it is where the float32 of a NIfTI header holds slope and intercept exactly."""
    exact = all(float(np.float32(number)) == number for number in (found.slope, found.inter))
    return found if exact else StoredType(_FLOAT)


def _of_dicom(meta: Mapping[str, Any]) -> StoredType:
    from pydicom import dcmread

    source = source_of(meta)
    if source.meta.get("dicom_values") == "display":
        return StoredType(_FLOAT)
    found: set[StoredType | None] = set()
    for path in source.files:
        with reading(path, "DICOM"):
            header = dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
            frames: Sequence[int | None] = source.frames or [None]
            found.update(_of_frame(header, frame) for frame in frames)
    one = found.pop() if len(found) == 1 else None
    return _or_float(one) if one else StoredType(_FLOAT)


def _of_frame(header: Dataset, frame: int | None) -> StoredType | None:
    """None where no whole numbers, or no slope and intercept, give the values."""
    bits, sign = header.get("BitsAllocated"), header.get("PixelRepresentation")
    if bits not in (8, 16, 32) or sign not in (0, 1) or header.get("ModalityLUTSequence"):
        return None
    dtype = np.dtype(f"{'i' if sign else 'u'}{bits // 8}")
    slope, inter = (
        float(functional(header, frame, _SEQUENCE, keyword, default))
        for keyword, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
    )
    return StoredType(dtype, slope, inter)
