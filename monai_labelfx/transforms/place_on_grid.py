# SPDX-License-Identifier: Apache-2.0
"""Bring a label that covers a part of the image's grid, or stores it the other way round, onto that grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import TransformBackends

__all__ = ["PlaceOnGridd"]

_SAME = 1e-2  # of a voxel, anywhere in the label: below this two grids are one
_FITS = 1e-1  # of a voxel: headers of other programs are rounded, and no voxel moves by that


class PlaceOnGridd(MapTransform):
    """Label maps (C, *spatial) on exactly the voxels of the image, without interpolation.

    A DICOM SEG may leave out empty slices or run the other way than its series, and a NIfTI label of the same scan may
    be flipped or cropped. Such a label is flipped, its axes are swapped, it is padded with zeros where it covers only
    a part, and its empty margin outside the image is cut off; its affine becomes that of the image. Put it directly
    after loading. A label of one slice may be 2-D for a 3-D image, and the other way round.

    The same object passes through where there is nothing to do (shape and affine agree) or nothing to go by: a plain
    array or tensor, or an affine without a position, which is one that holds spacings only (PNG, TIFF).

    Args:
        keys: label keys to place.
        reference_key: the image (C, *spatial) that gives the grid.
        allow_missing_keys: skip keys that an item lacks instead of raising ``KeyError``. None is skipped as well.

    Raises:
        KeyError: the reference is missing.
        ValueError: the label's grid is no part of the image's (rotated, sheared, other voxel size, between the voxels),
            or it has labelled voxels outside the image. One sentence with the label's file.

    Notes:
        Dtype, meta and applied operations stay those of the label; only ``affine`` changes. Grids count as one below
        0.01 voxel and as fitting below 0.1 voxel, both measured at the farthest corner of the label.

    Example:
        >>> import torch
        >>> image = MetaTensor(torch.zeros(1, 4, 5, 6), affine=np.diag([-1.0, -1.0, 2.0, 1.0]))
        >>> crop = np.diag([-1.0, -1.0, 2.0, 1.0])
        >>> crop[2, 3] = 6.0  # the label starts at the fourth slice
        >>> label = MetaTensor(torch.ones(1, 4, 5, 2), affine=crop)
        >>> out = PlaceOnGridd("label", "image")({"image": image, "label": label})["label"]
        >>> out.shape, out.sum(dim=(0, 1, 2)).tolist()
        (torch.Size([1, 4, 5, 6]), [0.0, 0.0, 0.0, 20.0, 20.0, 0.0])
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, keys: KeysCollection, reference_key: str = "image", *, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.reference_key = reference_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        if self.reference_key not in item:
            raise KeyError(f"PlaceOnGridd: the item has no {self.reference_key!r}; keys {sorted(map(str, item))}")
        for key in self.key_iterator(item):
            if item[key] is not None:
                item[key] = _placed(item[key], item[self.reference_key], self.reference_key)
        return item


def _placed(label: Any, reference: Any, reference_key: Hashable) -> Any:
    if not isinstance(label, MetaTensor) or not isinstance(reference, MetaTensor):
        return label
    own, target = (np.asarray(image.affine, dtype=np.float64) for image in (label, reference))
    images = all(image.ndim in (3, 4) for image in (label, reference))
    if not images or not _has_position(own) or not _has_position(target):
        return label
    to_target = np.linalg.solve(target, own)[:3]
    shape = [*label.shape[1:], 1, 1][:3]
    if label.shape[1:] == reference.shape[1:] and _distance(to_target, np.eye(4)[:3], shape) <= _SAME:
        return label
    whole = _whole(to_target, shape)
    distance = _distance(to_target, whole, shape)
    if not distance <= _FITS:
        raise ValueError(
            f"label {_name(label)} does not fit the grid of {reference_key!r}: its voxels lie up to {distance:.3g} "
            "voxels beside those of the image (other voxel size, rotated or moved by a fraction of a voxel), so check "
            "that both are of one scan and resample the label"
        )
    return _put(label, reference, whole.astype(int), reference_key)


def _has_position(affine: np.ndarray) -> bool:
    """Whether the affine says more than a voxel size: MONAI gives files without geometry a diagonal of sizes."""
    usable = affine.shape == (4, 4) and bool(np.isfinite(affine).all()) and np.linalg.det(affine) != 0
    return usable and not np.array_equal(affine, np.diag(np.abs(affine.diagonal())))


def _distance(matrix: np.ndarray, other: np.ndarray, shape: list[int]) -> float:
    """How far, in voxels, two maps of the label's voxels differ at most; an axis of length one has no direction."""
    reach = np.array([*(size - 1 for size in shape), 1.0])
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * reach
    return float(np.abs((matrix - other) @ corners.T).max())


def _whole(to_target: np.ndarray, shape: list[int]) -> np.ndarray:
    """The nearest map that only swaps and flips axes and shifts by whole voxels, 3 x 4."""
    whole = np.zeros((3, 4))
    whole[:, 3] = np.rint(to_target[:, 3])
    left = [0, 1, 2]
    for axis in sorted(range(3), key=lambda axis: shape[axis] == 1):  # axes of length one take what is left
        row = left[int(np.abs(to_target[left, axis]).argmax())]
        left.remove(row)
        whole[row, axis] = 1.0 if shape[axis] == 1 or to_target[row, axis] > 0 else -1.0
    return whole


def _put(label: MetaTensor, reference: MetaTensor, whole: np.ndarray, reference_key: Hashable) -> MetaTensor:
    voxels = label.as_tensor()
    voxels = voxels.reshape(*voxels.shape, *[1] * (4 - voxels.ndim))
    voxels = voxels.permute(0, *(int(axis) + 1 for axis in np.abs(whole[:, :3]).argmax(1)))
    into, out_of = [slice(None)], [slice(None)]
    for axis, size in enumerate([*reference.shape[1:], 1, 1][:3]):
        length, low = voxels.shape[axis + 1], int(whole[axis, 3])
        if whole[axis, :3].sum() < 0:
            voxels, low = voxels.flip(axis + 1), low - length + 1
        first = min(max(low, 0), size)
        last = max(min(low + length, size), first)
        into.append(slice(first, last))
        out_of.append(slice(first - low, last - low))
    result = voxels.new_zeros([len(voxels), *reference.shape[1:], *[1] * (4 - reference.ndim)])
    if result[tuple(into)].numel():
        result[tuple(into)] = voxels[tuple(out_of)]
    lost = int((voxels != 0).sum() - (result != 0).sum())  # count_nonzero lacks uint16
    if lost:
        raise ValueError(
            f"label {_name(label)} has {lost} labelled voxels outside of {reference_key!r}, expected none: check that "
            "both are of one scan"
        )
    placed = MetaTensor(result.reshape(len(voxels), *reference.shape[1:])).copy_meta_from(label)
    placed.affine = reference.affine.clone()
    return placed


def _name(label: MetaTensor) -> str:
    return repr(str(label.meta.get("filename_or_obj", "without a file name")))
