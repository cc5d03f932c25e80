# SPDX-License-Identifier: Apache-2.0
"""Bring an array that was moved since it was read back to the voxels that it was read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monai.data.utils import to_affine_nd
from monai.utils import convert_data_type

_TOLERANCE = 1e-2  # of a voxel, anywhere in the image: below this two grids are the same


def to_write(
    array: np.ndarray, meta: Mapping[str, Any] | None, *, resample: bool, mode: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """What a writer of ``SaveImage`` writes: the array (C, *spatial) and its affine 4 x 4, None where nothing says it.

    With ``resample`` the array goes back to ``original_affine`` where it was moved since it was read; integers, and all
    values with ``mode`` "nearest", without mixing neighbours.
    """
    meta = meta or {}
    back = resample and meta.get("original_affine") is not None
    key = "original_affine" if back else "affine"
    if meta.get(key) is None:
        return array, None
    if back and meta.get("spatial_shape") is not None:
        current = to_current(meta)
        shape = [int(size) for size in np.asarray(meta["spatial_shape"]).ravel()][: array.ndim - 1]
        if moved(current, np.eye(4), shape):
            array = on_original_grid(array, current, shape, nearest=mode == "nearest" or array.dtype.kind in "biu")
    return array, _affine(meta, key)


def to_current(meta: Mapping[str, Any]) -> np.ndarray:
    """Voxel as read -> voxel of the array as it is now, 4 x 4; from ``affine`` and ``original_affine``."""
    if meta.get("affine") is None or meta.get("original_affine") is None:
        return np.eye(4)
    current, original = (_affine(meta, key) for key in ("affine", "original_affine"))
    return np.linalg.inv(current) @ original


def _affine(meta: Mapping[str, Any], key: str) -> np.ndarray:
    affine = convert_data_type(meta[key], np.ndarray, dtype=np.float64)[0]
    affine = affine[0] if affine.ndim == 3 and len(affine) == 1 else affine  # collated
    usable = affine.shape in ((3, 3), (4, 4)) and np.isfinite(affine).all()
    full = to_affine_nd(3, affine) if usable else np.zeros((4, 4))
    if not abs(np.linalg.det(full)) > 0:
        raise ValueError(f"the image's {key} must be an invertible matrix, got {affine.tolist()}")
    return full


def moved(matrix: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> bool:
    """Whether two maps of voxels differ by more than the tolerance at a corner of an image of this shape."""
    ends = [*shape, *([1] * (3 - len(shape)))]
    corners = np.array([[x, y, z, 1] for x in (0, ends[0]) for y in (0, ends[1]) for z in (0, ends[2])]).T
    return not float(np.abs((matrix - other) @ corners).max()) <= _TOLERANCE


def on_original_grid(array: np.ndarray, current: np.ndarray, shape: Sequence[int], *, nearest: bool) -> np.ndarray:
    """The array (C, *spatial) on the grid ``shape`` from which ``current`` (:py:func:`to_current`) leads to its own.

    Flips, axis swaps, crops and pads are undone without interpolation; anything else is interpolated (linearly, or
    with ``nearest``). Voxels that the array does not cover become 0 with ``nearest``, else NaN.

    Raises:
        ValueError: the two grids do not overlap.
    """
    flat = len(shape) == 2
    array = array[..., None] if array.ndim == 3 else array
    size = (*shape, 1) if flat else tuple(shape)
    whole = np.rint(current)
    is_permutation = (np.abs(whole[:3, :3]).sum(0) == 1).all() and (np.abs(whole[:3, :3]).sum(1) == 1).all()
    if not nearest and array.dtype.kind != "f":
        array = array.astype(np.float64)  # room for NaN
    result = np.full((len(array), *size), 0 if nearest else np.nan, dtype=array.dtype)
    if is_permutation and not moved(current, whole, size):
        covered = _gather(array, whole.astype(int), result)
    else:
        covered = _interpolate(array, current, result, nearest)
    if not covered:
        raise ValueError("the array does not overlap the image it was read from: its affine belongs to another image")
    return result[..., 0] if flat else result


def _gather(array: np.ndarray, whole: np.ndarray, result: np.ndarray) -> bool:
    """Copy by slicing: axis ``i`` of the source runs along axis ``order[i]`` of the array, forwards or backwards."""
    order = [int(np.flatnonzero(whole[:3, axis])[0]) for axis in range(3)]
    array = array.transpose(0, *(axis + 1 for axis in order))
    into, out_of = [slice(None)], [slice(None)]
    for axis, length in enumerate(result.shape[1:]):
        index = whole[order[axis], axis] * np.arange(length) + whole[order[axis], 3]
        inside = np.flatnonzero((index >= 0) & (index < array.shape[axis + 1]))
        if not inside.size:
            return False
        first, last = int(index[inside[0]]), int(index[inside[-1]])
        step = 1 if last >= first else -1
        stop = last + step
        into.append(slice(int(inside[0]), int(inside[-1]) + 1))
        out_of.append(slice(first, None if stop < 0 else stop, step))
    result[tuple(into)] = array[tuple(out_of)]
    return True


def _interpolate(array: np.ndarray, to_current: np.ndarray, result: np.ndarray, nearest: bool) -> bool:
    """Fill slice by slice (the coordinates of a whole CT would take gigabytes); a voxel reaches half a voxel out."""
    from scipy.ndimage import map_coordinates

    if array.dtype.name in ("float16", "bool"):  # not known to scipy
        array = array.astype(np.float32)
    size = np.array(array.shape[1:]).reshape(3, 1, 1)
    x, y = np.indices(result.shape[1:3])
    any_covered = False
    for z in range(result.shape[3]):
        coordinates = np.einsum("ij,jxy->ixy", to_current[:3], np.stack([x, y, np.full_like(x, z), np.ones_like(x)]))
        covered = ((coordinates >= -0.5 - _TOLERANCE) & (coordinates <= size - 0.5 + _TOLERANCE)).all(0)
        any_covered = any_covered or bool(covered.any())
        for channel, values in enumerate(array):
            found = map_coordinates(values, coordinates[:, covered], order=0 if nearest else 1, mode="nearest")
            result[channel, :, :, z][covered] = found
    return any_covered
