# SPDX-License-Identifier: Apache-2.0
"""Boxes as the regions of a DICOM structured report, and back: a rectangle of an image, or contours in mm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_labelfx.data._dicom_seg_planes import Planes
from monai_labelfx.data._dicom_source import DicomSource

if TYPE_CHECKING:
    from highdicom.sr import ImageRegion, VolumeSurface
    from pydicom.dataset import Dataset

_AROUND = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]])  # corners of a rectangle: high (1) or low (0) in x, y
_APART = 1e-6  # mm: slices nearer than this along their normal lie in one place


@dataclass(frozen=True, slots=True)
class Places:
    """Where the voxels of a volume lie (LPS, mm): slice by slice, since distances may differ a little.

    ``positions`` (n, 3) are the centres of the first voxels of the slices, ascending along the normal; ``axes`` (2, 3)
    lead from voxel to voxel in x and y.
    """

    positions: np.ndarray
    axes: np.ndarray

    def to_mm(self, index: np.ndarray) -> np.ndarray:
        """Points (N, 3) of x, y, z, where a whole number is the centre of a voxel, in mm; beyond the ends too."""
        return self._at(index[:, 2]) + index[:, :2] @ self.axes

    def to_index(self, points: np.ndarray) -> np.ndarray:
        """The inverse of :py:meth:`to_mm`."""
        normal = np.cross(*self.axes)
        heights, height = self.positions @ normal, points @ normal
        below = np.clip(np.searchsorted(heights, height, side="right") - 1, 0, len(heights) - 2)
        z = below + (height - heights[below]) / (heights[below + 1] - heights[below])
        return np.column_stack([(points - self._at(z)) @ np.linalg.pinv(self.axes), z])

    def _at(self, z: np.ndarray) -> np.ndarray:
        below = np.clip(np.floor(z), 0, len(self.positions) - 2).astype(int)
        steps = np.diff(self.positions, axis=0)
        return self.positions[below] + (z - below)[:, None] * steps[below]


def shape_of(source: DicomSource, header: Dataset, meta: Mapping[str, Any]) -> tuple[int, ...]:
    """The size of the image as it was read."""
    plane = int(header.Columns), int(header.Rows)
    if source.slices == 1:
        return plane
    size = np.asarray(meta.get("spatial_shape", ())).ravel()
    if source.grid != "source" and size.size < 3:
        raise ValueError("the image was resampled when it was read, and its meta has no spatial_shape: read it again")
    return (*plane, source.slices if source.grid == "source" else int(size[2]))


def places_of(planes: Planes, source: DicomSource) -> Places:
    """The places of the voxels of a volume.

    Raises:
        ValueError: slices without a place, or several in one.
    """
    if planes.positions is None or planes.spacing is None:
        raise ValueError(f"the slices of {source.files[0]!r} have no place in the patient, so boxes have none in mm")
    axes = np.reshape(planes.orientation, (2, 3)) * np.array(planes.spacing[::-1])[:, None]
    positions = np.array(planes.positions)
    if len(positions) < 2 or np.diff(positions @ np.cross(*axes)).min() <= _APART * np.linalg.norm(np.cross(*axes)):
        raise ValueError(f"slices of the series of {source.files[0]!r} lie in one place, so boxes have none in mm")
    return Places(positions, axes)


def rectangle(box: np.ndarray, image: Dataset, source: DicomSource) -> ImageRegion:
    """A box of two axes as a closed line around it, in an image of one plane.

    Our corners are those of DICOM: columns and rows from the edge of the first pixel, 0 to Columns and 0 to Rows.
    """
    from highdicom.sr import ImageRegion, SourceImageForRegion

    low, high = np.split(box, 2)
    frames = None if source.frames is None else [source.frames[0] + 1]
    reference = SourceImageForRegion(image.SOPClassUID, image.SOPInstanceUID, frames)
    return ImageRegion("POLYLINE", low + _AROUND * (high - low), reference)


def box_of_rectangle(points: np.ndarray) -> np.ndarray:
    """The box of the points (5, 2) of :py:func:`rectangle`."""
    return np.concatenate([points.min(0), points.max(0)])


def contours(box: np.ndarray, places: Places) -> list[np.ndarray]:
    """The closed contours (5, 3) in mm of a box of three axes: of its lower face, of each slice, of its upper face.

    The faces say exactly where the box ends; the contours between lie in the planes of the images, where viewers draw.
    """
    low, high = np.split(box - 0.5, 2)  # from the edges to the centres of voxels
    between = range(math.floor(low[2]) + 1, math.ceil(high[2]))
    corners = low[:2] + _AROUND * (high - low)[:2]
    return [places.to_mm(np.column_stack([corners, np.full(5, z)])) for z in (low[2], *between, high[2])]


def surface(box: np.ndarray, places: Places, image: Dataset) -> VolumeSurface:
    """A box of three axes as a surface of :py:func:`contours`, in the series and the frame of reference of ``image``.

    The images that it lies in follow from their places; to list them too would double the size and the time.
    """
    from highdicom.sr import SourceSeriesForSegmentation, VolumeSurface

    series = SourceSeriesForSegmentation(image.SeriesInstanceUID)
    return VolumeSurface("POLYGON", contours(box, places), image.FrameOfReferenceUID, source_series=series)


def box_of_contours(lines: Sequence[np.ndarray], places: Places) -> np.ndarray:
    """The box of :py:func:`contours`, in any order."""
    index = places.to_index(np.concatenate(lines)) + 0.5
    return np.concatenate([index.min(0), index.max(0)])
