# SPDX-License-Identifier: Apache-2.0
"""The pixels of a derived DICOM image: from values back to what its source would have stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from monai_labelfx.data._dicom_pixels import functional, stored_values

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def limits(dataset: Dataset) -> tuple[int, int]:
    """The least and the greatest value that the stored bits can hold."""
    half = 1 << (int(dataset.BitsStored) - 1)
    return (-half, half - 1) if dataset.PixelRepresentation == 1 else (0, 2 * half - 1)


def display_limits(dataset: Dataset) -> tuple[int, int]:
    """The range, a power of two, that holds the displayed values of a source of any content."""
    ends = [0.0]
    for frame in range(int(dataset.get("NumberOfFrames") or 1)):
        tables = functional(dataset, frame, "FrameVOILUTSequence", "VOILUTSequence", dataset.get("ModalityLUTSequence"))
        if tables:
            ends.append((1 << int(tables[0].LUTDescriptor[2])) - 1)
        else:
            slope, intercept = _rescale(dataset, frame)
            ends += [slope * limit + intercept for limit in limits(dataset)]
    bits, signed = int(dataset.BitsStored), min(ends) < 0
    while max(ends) >= 1 << (bits - signed) or min(ends) < -(1 << (bits - 1)):
        bits += 1
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def stored_plane(values: np.ndarray, dataset: Dataset, frame: int | None, path: str) -> np.ndarray:
    """Stored values (rows, columns) of a frame; in padding, and where the values are NaN, those of the source.

    Raises:
        ValueError: the source has no linear rescaling.
    """
    if dataset.get("ModalityLUTSequence"):
        raise ValueError(
            f"DICOM file {path!r} gives its values by a table (ModalityLUTSequence), which cannot be inverted: "
            "write NIfTI instead"
        )
    slope, intercept = _rescale(dataset, frame)
    low, high = limits(dataset)
    kept = np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
    numbers = np.rint((np.where(kept, 0, values).astype(np.float64) - intercept) / slope)
    stored = np.clip(numbers, low, high).astype(np.int64)
    padding = _padding(dataset, low, high)
    if padding is not None or kept.any():
        original = stored_values(dataset, frame, path)
        if padding is not None:
            first, last = padding
            stored[(stored >= first) & (stored <= last)] = last + 1 if last < high else first - 1
            kept |= (original >= first) & (original <= last)
        stored[kept] = original[kept]
    return stored


def set_pixels(dataset: Dataset, planes: list[np.ndarray]) -> None:
    """Replace the pixels, in the bit depth that the header names, uncompressed."""
    from pydicom.dataelem import DataElement

    dataset.HighBit = dataset.BitsStored - 1
    kind = "i" if dataset.PixelRepresentation == 1 else "u"
    dtype = np.dtype(f"<{kind}{dataset.BitsAllocated // 8}")
    data = b"".join(plane.astype(dtype).tobytes() for plane in planes)
    if len(data) % 2:
        data += b"\0"
    dataset[0x7FE00010] = DataElement(0x7FE00010, "OB" if dataset.BitsAllocated == 8 else "OW", data)


def _rescale(dataset: Dataset, frame: int | None) -> tuple[float, float]:
    sequence = "PixelValueTransformationSequence"
    slope = functional(dataset, frame, sequence, "RescaleSlope", 1.0)
    return float(slope), float(functional(dataset, frame, sequence, "RescaleIntercept", 0.0))


def _padding(dataset: Dataset, low: int, high: int) -> tuple[int, int] | None:
    """The least and the greatest stored value that mean "no image here"."""
    if dataset.get("PixelPaddingValue") is None:
        return None
    ends = []
    for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit"):
        if dataset.get(keyword) is not None:
            value, turn = int(dataset[keyword].value), 1 << int(dataset.BitsAllocated)
            # some scanners write -2000 as the unsigned 63536
            ends.append(value - turn if value > high and low < 0 else value + turn if value < low == 0 else value)
    first, last = min(ends), max(ends)
    return None if first <= low and last >= high else (first, last)
