# SPDX-License-Identifier: Apache-2.0
"""From the metadata that DicomSeriesReader leaves behind back to the DICOM files, and back to their voxel grid."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from monai.utils import convert_data_type

from monai_labelfx.data._original_grid import moved, on_original_grid, to_current
from monai_labelfx.data._reading import reading

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_ADVICE = "write NIfTI instead, which keeps the grid of the array"


@dataclass
class DicomSource:
    """The DICOM files that an array came from; ``frames`` is None for single-frame files, one path otherwise."""

    files: list[str]
    frames: list[int] | None
    grid: str
    meta: dict[str, str]

    @property
    def slices(self) -> int:
        """How many image planes the source has."""
        return len(self.files if self.frames is None else self.frames)


def source_of(meta: Mapping[str, Any] | None) -> DicomSource:
    """Where the array of ``meta`` came from; accepts strings in lists of one, as collating leaves them.

    Raises:
        ValueError: ``meta`` does not come from DicomSeriesReader, or its files are gone.
    """
    texts = {key: _one(value) for key, value in (meta or {}).items() if str(key).startswith("dicom_")}
    if not isinstance(texts.get("dicom_source"), str):
        raise ValueError(
            "the image does not know its DICOM files (no 'dicom_source' in its meta): "
            'read it with LoadImaged(reader="monai_labelfx.data.DicomSeriesReader")'
        )
    try:
        facts = json.loads(texts["dicom_source"])
        source = DicomSource(facts["files"], facts["frames"], facts["grid"], texts)
        usable = bool(source.files) and all(isinstance(name, str) for name in source.files)
        if source.frames is not None:
            usable = usable and len(source.files) == 1 and all(type(number) is int for number in source.frames)
        usable = usable and source.slices > 0 and source.grid in ("source", "resampled")
    except (ValueError, KeyError, TypeError):
        usable = False
    if not usable:
        raise ValueError(
            "'dicom_source' in the image's meta is not what DicomSeriesReader writes: read the image again with it"
        )
    gone = [name for name in source.files if not os.path.isfile(name)]
    if gone:
        raise ValueError(
            f"{len(gone)} of the {len(source.files)} DICOM files that the image was read from are gone "
            f"({gone[0]!r} first): put them back or read the series from where it is now"
        )
    return source


def headers(source: DicomSource) -> list[Dataset]:
    """The header, without pixels, of each file in slice order; one for a multi-frame file."""
    from pydicom import dcmread

    found: list[Dataset] = []
    for name in source.files:
        with reading(name, "DICOM"):
            found.append(dcmread(name, stop_before_pixels=True))
    return found


def source_array(
    array_channel_first: Any, meta: Mapping[str, Any] | None, *, resample: bool, nearest: bool
) -> np.ndarray:
    """The array (C, x, y[, z]) on the voxel grid of its DICOM source; without z for a source of one slice.

    Flips, axis swaps, crops and pads are undone without interpolation; anything else is interpolated (linearly, or
    with ``nearest``). Voxels of the source that the array does not cover become 0 with ``nearest``, else NaN.

    Raises:
        ValueError: moved without ``resample``, not of the source's size, elsewhere, or read with a resampled grid.
    """
    source = source_of(meta)
    if source.grid != "source":
        raise ValueError(
            f"the image was resampled to a regular grid when it was read, so its slices are not those of its DICOM "
            f"files: {_ADVICE}"
        )
    array = convert_data_type(array_channel_first, np.ndarray)[0]
    if array.ndim == 3 and source.slices == 1:
        array = array[..., None]
    if array.ndim != 4:
        expected = "(C, x, y)" if source.slices == 1 else "(C, x, y, z)"
        raise ValueError(f"the array has shape {tuple(array.shape)}, expected {expected} as in its DICOM source")
    shape = _source_shape(source)
    current = to_current(meta or {})
    if moved(current, np.eye(4), shape):
        if not resample:
            raise ValueError(
                "the image was moved (flipped, cropped, resampled...) since it was read, and its DICOM source was not: "
                "save with resample=True or invert the transforms first"
            )
        array = on_original_grid(array, current, shape, nearest=nearest)
    if array.shape[1:] != shape:
        raise ValueError(
            f"the array has spatial shape {array.shape[1:]} but its DICOM source has {shape}: "
            f"invert the transforms, or {_ADVICE}"
        )
    return array[..., 0] if source.slices == 1 else array


def _one(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value


def _source_shape(source: DicomSource) -> tuple[int, int, int]:
    from pydicom import dcmread

    with reading(source.files[0], "DICOM"):
        header = dcmread(source.files[0], stop_before_pixels=True, specific_tags=["Rows", "Columns"])
        return int(header.Columns), int(header.Rows), source.slices
