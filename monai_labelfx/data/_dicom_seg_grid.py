# SPDX-License-Identifier: Apache-2.0
"""The grid that the frames of a DICOM Segmentation lie on, where empty ones were left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from monai_labelfx.data._dicom_pixels import functional
from monai_labelfx.data._reading import ImageFileError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_COSINE = 1e-4  # orientations differ above this
_SAME = 1e-2  # of a pixel: frames nearer than this lie in one plane
_PLACE = 5e-2  # of the distance of planes: how far from where the affine says a frame may lie
_MOST_VOXELS = 2**30  # of a grid with the planes in between (4096 of 512 x 512); more is a broken distance or position


@dataclass(frozen=True, slots=True)
class Grid:
    """Where each frame belongs."""

    planes: int
    plane: np.ndarray  # of each frame
    affine: np.ndarray  # 4 x 4, voxel (x, y, z) to LPS in mm


def grid_of(dataset: Dataset, frames: int, path: str) -> Grid:
    """The smallest regular grid that holds all frames.

    Raises:
        ImageFileError: frames of different direction, without or with impossible positions, or on no regular grid.
    """
    spacing = _shared(dataset, frames, "PixelMeasuresSequence", "PixelSpacing", 2, path)
    orientation = _shared(dataset, frames, "PlaneOrientationSequence", "ImageOrientationPatient", 6, path)
    positions = _values(dataset, frames, "PlanePositionSequence", "ImagePositionPatient", 3, path)
    if any(position is None for position in positions):
        if any(position is not None for position in positions):
            raise ImageFileError(f"segmentation {path!r} has frames without ImagePositionPatient, expected all or none")
        return Grid(1, np.zeros(frames, dtype=int), _affine((1, 0, 0, 0, 1, 0), spacing or (1, 1), 1.0, (0, 0, 0)))
    if orientation is None or spacing is None:
        missing = "PixelSpacing" if spacing is None else "ImageOrientationPatient"
        raise ImageFileError(f"segmentation {path!r} has positions but no {missing}")
    axes = np.reshape(orientation, (2, 3))
    place = np.array(positions)
    if not np.isfinite(place).all() or not min(spacing) > 0 or not np.abs(axes @ axes.T - np.eye(2)).max() < 1e-3:
        raise ImageFileError(
            f"segmentation {path!r} has an impossible geometry: ImagePositionPatient must be finite, PixelSpacing "
            "above 0 and ImageOrientationPatient two perpendicular directions of length 1"
        )
    normal = np.cross(*axes)
    height = place @ (normal / np.linalg.norm(normal))
    sizes = [_size(dataset, keyword, path) for keyword in ("SpacingBetweenSlices", "SliceThickness")]
    if np.ptp(height) <= _SAME * min(spacing):
        planes, plane = 1, np.zeros(frames, dtype=int)
    else:
        most = _MOST_VOXELS // (int(dataset.Rows) * int(dataset.Columns))
        planes, plane = _stack(height, sizes, _SAME * min(spacing), most, path)
    first, last = place[plane.argmin()], place[plane.argmax()]
    affine = _affine(orientation, spacing, sizes[0] or sizes[1] or 1.0, first)
    if planes > 1:
        affine[:3, 2] = (last - first) / (planes - 1)
    beside = np.linalg.norm(place - first - plane[:, None] * affine[:3, 2], axis=1).max()
    if beside > max(_PLACE * np.linalg.norm(affine[:3, 2]), _SAME * min(spacing)):
        raise ImageFileError(f"segmentation {path!r} has frames up to {beside:.3g} mm beside a regular grid")
    return Grid(planes, plane, affine)


def _stack(height: np.ndarray, sizes: list[float | None], same: float, most: int, path: str) -> tuple[int, np.ndarray]:
    """Number of planes, and the plane of each height.

    The distance of planes is as the file says, or the smallest there is, or (where only few planes are there) the
    thickness of a slice, which often is not the distance.
    """
    gaps = np.diff(np.sort(height))
    for step in (sizes[0], gaps[gaps > same].min(), sizes[1]):
        plane = np.rint((height - height.min()) / step) if step else np.zeros(1)
        if not 1 <= plane.max() < most:
            continue
        step = np.ptp(height) / plane.max()
        if np.abs((height - height.min()) / step - plane).max() <= _PLACE:
            return int(plane.max()) + 1, plane.astype(int)
    raise ImageFileError(
        f"segmentation {path!r} has frames {gaps[gaps > same].min():.4g} to {gaps.max():.4g} mm apart, which is no "
        "regular grid of a possible size"
    )


def _affine(orientation, spacing, thickness: float, position) -> np.ndarray:
    axes = np.reshape(orientation, (2, 3)).astype(float)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = axes[0] * spacing[1], axes[1] * spacing[0]
    affine[:3, 2], affine[:3, 3] = np.cross(*axes) * thickness, position
    return affine


def _size(dataset: Dataset, keyword: str, path: str) -> float | None:
    value = _values(dataset, 1, "PixelMeasuresSequence", keyword, 1, path)[0]
    return value[0] if value is not None and 0 < value[0] < np.inf else None


def _shared(
    dataset: Dataset, frames: int, sequence: str, keyword: str, count: int, path: str
) -> tuple[float, ...] | None:
    """What must be alike in all frames."""
    values = _values(dataset, frames, sequence, keyword, count, path)
    known = [value for value in values if value is not None]
    if known and (len(known) < len(values) or np.ptp(known, axis=0).max() > _COSINE):
        raise ImageFileError(f"segmentation {path!r} has frames of different {keyword}, expected one for all")
    return known[0] if known else None


def _values(
    dataset: Dataset, frames: int, sequence: str, keyword: str, count: int, path: str
) -> list[tuple[float, ...] | None]:
    return [_numbers(functional(dataset, index, sequence, keyword), keyword, count, path) for index in range(frames)]


def _numbers(value, keyword: str, count: int, path: str) -> tuple[float, ...] | None:
    if value is None:
        return None
    found = tuple(float(number) for number in ([value] if count == 1 else value))
    if len(found) != count:
        raise ImageFileError(f"segmentation {path!r} has {len(found)} numbers in {keyword}, expected {count}")
    return found
