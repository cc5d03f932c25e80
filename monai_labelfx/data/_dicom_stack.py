# SPDX-License-Identifier: Apache-2.0
"""The pixels of arranged DICOM slices as one array, one slice at a time in memory."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from monai_labelfx.data._dicom_geometry import Arrangement, name_of, refuse
from monai_labelfx.data._dicom_pixels import frame_values
from monai_labelfx.data._reading import reading

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


_SLAB = 16  # slices turned to (x, y, z) at a time: as many float32 as a cache line holds


@dataclass(frozen=True, slots=True)
class Stack:
    """``array`` (z, y, x[, colour]), a view; ``kind`` "rescaled" or "display"; ``padding`` "", "v" or "low high"."""

    array: np.ndarray
    kind: str
    padding: str


def stacked(arrangement: Arrangement, *, display: bool | None = None, padding_fill: float | None = None) -> Stack:
    """Read, decode and drop each file in turn (a multi-frame file is opened once); fills the grid of ``arrangement``.

    Args:
        arrangement: the frames and their grid.
        display: whether VOI and MONOCHROME1 are applied; None: for projection X-ray.
        padding_fill: padded pixels become this value.

    Raises:
        ImageFileError: pixels that cannot be read, that do not go together, or that differ in one place.
    """
    frames, grid = arrangement.frames, arrangement.grid
    result, slab, below, path, done = np.empty(0), np.empty(0), np.empty(0), "", 0
    kinds, paddings = set(), set()
    for number, frame in enumerate(frames):
        with reading(frame.path, "DICOM"):
            if frame.path != path:
                dataset, path = _read(frame.path), frame.path
            found = frame_values(dataset, frame.index, frame.path, display=display, padding_fill=padding_fill)
        values = found.array
        kinds.add(found.kind)
        paddings.add(found.padding)
        if number == 0:
            # C order: LoadImage would copy a transposed view, at the cost of the memory of a second array
            result = np.empty((*values.shape[1::-1], len(grid), *values.shape[2:]), values.dtype)
            slab = np.empty((_SLAB, *values.shape), values.dtype)
        if values.shape != slab.shape[1:] or len(kinds) > 1:
            refuse(frames, ["some slices are colour images or projections and others are not"])
        if number in arrangement.repeated and not np.array_equal(values, below, equal_nan=values.dtype.kind == "f"):
            refuse(frames, [*arrangement.faults, "the pixels of slices in the same place differ"])
        if not np.can_cast(values.dtype, result.dtype):
            wider = np.result_type(values, result)
            result, slab = result.astype(wider), slab.astype(wider)
        while done < len(grid) and grid[done][0] == number:
            slab[done % _SLAB] = _between(below, values, grid[done][1])
            done += 1
            if done % _SLAB == 0 or done == len(grid):
                start = (done - 1) // _SLAB * _SLAB
                result[:, :, start:done] = slab[: done - start].swapaxes(0, 2)
        below = values
    named = sorted(paddings - {""})
    if len(named) > 1:
        warnings.warn(
            f"slices of {name_of(frames)} name different padding values, so the metadata gives none: unite them with "
            "padding_fill",
            stacklevel=2,
        )
    return Stack(result.swapaxes(0, 2), kinds.pop(), named[0] if len(named) == 1 else "")


def _read(path: str) -> Dataset:
    from pydicom import dcmread

    return dcmread(path, force=True)  # that it is DICOM was checked with the header


def _between(below: np.ndarray, values: np.ndarray, weight: float) -> np.ndarray:
    """``values``, or with a ``weight`` of the slice below; integers are rounded."""
    if weight == 0:
        return values
    mixed = weight * below + (1 - weight) * values
    return mixed if values.dtype.kind == "f" else np.rint(mixed)
