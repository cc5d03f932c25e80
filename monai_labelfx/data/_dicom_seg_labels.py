# SPDX-License-Identifier: Apache-2.0
"""The array of a SEG: checked label values or masks, and the empty planes that must not get lost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_labelfx.data._dicom_segments import MOST_SEGMENTS
from monai_labelfx.data._dicom_source import DicomSource
from monai_labelfx.data._original_grid import moved, on_original_grid, to_current

if TYPE_CHECKING:
    from highdicom.seg import Segmentation


def labels_of(array: np.ndarray, segments: Mapping[int, Any], source: DicomSource) -> np.ndarray:
    """(C, x, y, z) -> label values (z, y, x), or masks (z, y, x, C) for several channels; a new unsigned array.

    Raises:
        ValueError: one sentence about values that are neither labels nor masks.
    """
    name = source.files[0]
    if array.dtype.kind not in "buif" or (array.dtype.kind == "f" and not np.isfinite(array).all()):
        raise ValueError(f"the label map for {name!r} holds values of type {array.dtype}, NaN or infinity")
    if len(array) > 1:
        if array.min() < 0 or array.max() > 1:
            raise ValueError(
                f"the {len(array)} channels for {name!r} hold {array.min()} to {array.max()}, expected masks or "
                "probabilities from 0 to 1 (one channel may hold label values)"
            )
        if np.allclose(array.sum(axis=0, dtype=np.float64), 1, atol=1e-3):
            raise ValueError(
                f"the {len(array)} channels for {name!r} add up to 1 everywhere, so one of them is the background: "
                "apply AsDiscrete(argmax=True) first"
            )
        return np.ascontiguousarray((array >= 0.5).T, dtype=np.uint8)
    labels = array[0].T
    low, high = labels.min().item(), labels.max().item()
    if low < 0 or high > MOST_SEGMENTS or (labels.dtype.kind == "f" and (labels != np.rint(labels)).any()):
        raise ValueError(
            f"the label map for {name!r} holds values from {low} to {high}, expected whole numbers from 0 to "
            f"{MOST_SEGMENTS} (for a probability apply AsDiscrete(threshold=0.5) first)"
        )
    return np.array(labels, dtype=np.uint8 if max(high, *segments, 0) <= 255 else np.uint16, order="C")


def on_resampled_grid(array: np.ndarray, meta: Mapping[str, Any], resample: bool) -> np.ndarray:
    """The array on the regular grid that the reader made of an irregular series."""
    shape = tuple(int(size) for size in np.asarray(meta["spatial_shape"]).ravel())
    current = to_current(meta)
    if array.shape[1:] == shape and not moved(current, np.eye(4), shape):
        return array
    if not resample or array.ndim != 4:
        raise ValueError(
            f"the image was moved or cropped since it was read (shape {array.shape[1:]}, read as {shape}): save with "
            "resample=True or invert the transforms first"
        )
    return on_original_grid(array, current, shape, nearest=True)


def mark_empty(labels: np.ndarray) -> np.ndarray:
    """Set the first voxel of each empty plane, so that highdicom keeps a frame for it; their indices."""
    empty = np.flatnonzero(~labels.reshape(len(labels), -1).any(axis=1))
    labels.reshape(len(labels), -1)[empty, 0] = 1
    return empty


def clear_marks(
    result: Segmentation, marked: np.ndarray, labels: np.ndarray, positions: list[list[float]] | None
) -> None:
    """Take the marks of :py:func:`mark_empty` out of the bit planes of the first segment, which come first."""
    if not len(marked):
        return
    pixels, size = bytearray(result.PixelData), int(result.Rows) * int(result.Columns)
    first = labels[..., 0] if labels.ndim == 4 else labels == 1
    for frame in range(int(first.any(axis=(1, 2)).sum())):
        plane = 0
        if positions is not None:  # highdicom sorts the frames
            place = result.PerFrameFunctionalGroupsSequence[frame].PlanePositionSequence[0].ImagePositionPatient
            plane = int(np.linalg.norm(np.subtract(positions, [float(value) for value in place]), axis=1).argmin())
        if plane in marked:
            pixels[frame * size // 8] &= ~(1 << (frame * size % 8)) & 255
    result.PixelData = bytes(pixels)
