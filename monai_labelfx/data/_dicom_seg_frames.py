# SPDX-License-Identifier: Apache-2.0
"""The stored pixels of a DICOM Segmentation frame by frame, and the label map that they make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from monai_labelfx.data._dicom_pixels import check_decodable, functional
from monai_labelfx.data._dicom_seg_grid import Grid
from monai_labelfx.data._reading import ImageFileError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


class Frames:
    """Frame ``index`` as (rows, columns), decoded on request: a file of many objects unpacks to gigabytes."""

    def __init__(self, dataset: Dataset, count: int, path: str) -> None:
        self.dataset, self.count = dataset, count
        self.shape = int(dataset.Rows), int(dataset.Columns)
        self.bits = int(dataset.get("BitsAllocated") or 0)
        if self.bits not in (1, 8, 16) or int(dataset.get("SamplesPerPixel") or 1) != 1 or "PixelData" not in dataset:
            raise ImageFileError(f"segmentation {path!r} has no pixels of one sample of 1, 8 or 16 bits")
        syntax = dataset.file_meta.TransferSyntaxUID
        self.native = not syntax.is_encapsulated and syntax.is_little_endian
        self.pixels = np.frombuffer(dataset.PixelData, dtype=np.uint8)
        needed = -(-self.shape[0] * self.shape[1] * count * self.bits // 8)
        if self.native and len(self.pixels) < needed:
            raise ImageFileError(
                f"segmentation {path!r} is cut off: its {count} frames need {needed} bytes, found {len(self.pixels)}"
            )
        if not self.native:
            check_decodable(dataset, path)

    def __getitem__(self, index: int) -> np.ndarray:
        if not self.native:
            from pydicom.pixels import pixel_array

            return pixel_array(self.dataset, index=index, raw=True)
        size = self.shape[0] * self.shape[1]
        start, end = index * size * self.bits, (index + 1) * size * self.bits
        part = self.pixels[start // 8 : -(-end // 8)]
        if self.bits == 1:  # pydicom 3.0 cannot, where frames do not begin with a byte
            part = np.unpackbits(part, bitorder="little")[start % 8 : start % 8 + size]
        return part.view(f"<u{max(self.bits // 8, 1)}").reshape(self.shape)


def fill_from_label_map(
    volume: np.ndarray, frames: Frames, grid: Grid, chosen: Sequence[tuple[int, int]], known: set[int], path: str
) -> None:
    """``volume`` (z, y, x) of zeros gets the values that ``chosen`` has for the numbers stored in a label map."""
    if len(set(grid.plane.tolist())) < frames.count:
        raise ImageFileError(f"segmentation {path!r} has several label maps in one place, expected one")
    values = np.zeros(65536, dtype=np.uint16)
    is_known = np.zeros(65536, dtype=bool)
    is_known[sorted(known)] = True
    for number, value in chosen:
        values[number] = value
    for index, plane in enumerate(grid.plane):
        stored = frames[index]
        if not is_known[stored].all():
            unknown = int(stored[~is_known[stored]].flat[0])
            raise ImageFileError(f"segmentation {path!r} holds the value {unknown}, which no segment describes")
        volume[plane] = values[stored]


def fill_from_masks(
    volume: np.ndarray, frames: Frames, grid: Grid, chosen: Sequence[tuple[int, int]], path: str, *, cover: bool
) -> None:
    """``volume`` (z, y, x) of zeros gets ``chosen``'s values where the masks are; with ``cover`` the last one wins."""
    of_segment: dict[int, dict[int, int]] = {}
    for index, plane in enumerate(grid.plane.tolist()):
        number = functional(frames.dataset, index, "SegmentIdentificationSequence", "ReferencedSegmentNumber")
        if number is None:
            raise ImageFileError(f"segmentation {path!r} does not say of which segment its frame {index + 1} is")
        if of_segment.setdefault(int(number), {}).setdefault(plane, index) != index:
            raise ImageFileError(f"segmentation {path!r} has several frames of segment {number} in one place")
    half = 0.5
    if frames.dataset.get("SegmentationType") == "FRACTIONAL":
        half = int(frames.dataset.get("MaximumFractionalValue") or 255) / 2
    for number, value in chosen:
        for plane, index in of_segment.get(number, {}).items():
            mask = frames[index] >= half
            if not cover and volume[plane][mask].any():
                raise ImageFileError(
                    f"segmentation {path!r} has overlapping segments, which one label map cannot hold: choose and "
                    "order them with DicomSegReader(segments=...)"
                )
            volume[plane][mask] = value
