# SPDX-License-Identifier: Apache-2.0
"""Patch labels that people have ticked, read from a table and laid on the image as it is now."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import TransformBackends

from monai_labelfx.ops.box_affine import boxes_through_affine
from monai_labelfx.transforms._patches import check_single_key, file_name, image_name, require_keys
from monai_labelfx.transforms.boxes_to_bags import index_map
from monai_labelfx.transforms.patch_table import class_names, read_patch_table

__all__ = ["ReadPatchLabelsd"]

_OBLIQUE = 1e-3  # of a voxel per voxel: what resampling and the rounding of headers leave of an axis-aligned map


class ReadPatchLabelsd(MapTransform):
    r"""The patches of an item and their labels from a CSV file with a person's ticks.

    ``item["patches"]`` is the path of the table, whose columns :py:func:`read_patch_table` lists; one table may serve
    all images, its column ``image`` tells which rows are whose. It is replaced by the patches (N, 2 \* D) int64, start
    and size along each axis, and beside it come their labels (N, K) int8 (1 present, 0 absent, -1 unknown) and, if the
    table has cluster columns, the sub-labels (N, K) int64.

    The numbers of a table count voxels of the file of the image. Where the image has been flipped, turned by 90
    degrees, transposed, resampled to another spacing or padded since it was loaded, the patches are laid on it as it is
    now, rounded to whole voxels: its affine tells. So this transform comes behind the spatial ones of the fixed part of
    a chain, such as ``Orientationd`` and ``Spacingd``, and before ``GridPatchLabelsd``, which serves the other items.

    Args:
        keys: the key of the path. Default "patches".
        image_key: the image (C, \*spatial), loaded. Default "image".
        classes: names of all classes with the background, or their number. Default 2.
        labels_key: where to write the labels. Default "patch_labels".
        sub_labels_key: where to write the sub-labels. Default "sub_labels".
        allow_missing_keys: leave an item without table as it is instead of raising ``KeyError``.

    Raises:
        KeyError: in the call, when the item has no table or no image.
        FileNotFoundError: in the call, when there is no such file.
        ValueError: in the call, for whatever is wrong in the table (see :py:func:`read_patch_table`), for another
            number of axes than the image has, for a patch that reaches out of the image, and for an image that lies
            obliquely to its file.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = Path(folder, "ticks.csv")
        ...     _ = table.write_text("x,y,width,height,stroma,gland\n0,0,4,4,1,0\n2,0,4,4,?,1\n")
        ...     item = {"image": torch.zeros(3, 6, 4), "patches": str(table)}
        ...     found = ReadPatchLabelsd(classes=["stroma", "gland"])(item)
        >>> found["patches"].tolist(), found["patch_labels"].tolist()
        ([[0, 0, 4, 4], [2, 0, 4, 4]], [[1, 0], [-1, 1]])
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        keys: KeysCollection = "patches",
        *,
        image_key: str = "image",
        classes: int | Sequence[str] = 2,
        labels_key: str = "patch_labels",
        sub_labels_key: str = "sub_labels",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        check_single_key(self.keys, "the table")
        class_names(classes)
        self.image_key = image_key
        self.classes = classes
        self.labels_key = labels_key
        self.sub_labels_key = sub_labels_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            require_keys(item, [self.image_key], self)
            path, image = item[key], item[self.image_key]
            if not isinstance(path, (str, os.PathLike)):
                raise ValueError(f"{key!r} must be the path of a table of patch labels, got {type(path).__name__}.")
            found = read_patch_table(path, self.classes, image=file_name(image) or None)
            device = image.device if isinstance(image, torch.Tensor) else None
            item[key] = _on_image(found["patches"], found["lines"], image, os.fspath(path)).to(device)
            item[self.labels_key] = found["patch_labels"].to(device)
            if "sub_labels" in found:
                item[self.sub_labels_key] = found["sub_labels"].to(device)
        return item


def _on_image(patches: torch.Tensor, lines: list[int], image: Any, path: str) -> torch.Tensor:
    """Patches of the file as patches of the image as it is now, all of them inside."""
    shape = tuple(image.shape[1:])
    ndim = len(shape)
    if patches.shape[1] != 2 * ndim:
        raise ValueError(
            f"{path!r} has columns for {patches.shape[1] // 2} axes, but {image_name(image)} has {ndim}: a volume "
            "needs z and depth, a picture must not have them."
        )
    start, size = patches.chunk(2, dim=1)
    ends, moved = torch.cat([start, start + size], dim=1), _moves(image, path)
    room = torch.zeros(ndim)
    if moved is not None:
        ends = boxes_through_affine(ends.double(), moved).round().long()
        # Resampling keeps the centres of the outermost voxels, and with it up to half of a voxel of the file is lost.
        room = 1 + torch.as_tensor(moved[:-1, :-1]).abs().sum(1) / 2
    low, high = ends.chunk(2, dim=1)
    outside = (low < -room) | (high > low.new_tensor(shape) + room)
    low, high = low.clamp(min=0), torch.minimum(high, high.new_tensor(shape))
    bad = outside | (high <= low)
    if bad.any():
        row, axis = (int(number) for number in bad.nonzero()[0])
        now = "" if moved is None else ", as it has been moved since it was loaded,"
        raise ValueError(
            f"{path!r}, line {lines[row]}, columns {'xyz'[axis]!r} and {('width', 'height', 'depth')[axis]!r}: the "
            f"patch must lie in {image_name(image)}{now} which has {shape} voxels, got {start[row].tolist()} to "
            f"{(start + size)[row].tolist()}."
        )
    return torch.cat([low, high - low], dim=1)


def _moves(image: Any, path: str) -> np.ndarray | None:
    """Index map from the file to the image as it is now, ``None`` where they are the same."""
    original = image.meta.get("original_affine") if isinstance(image, MetaTensor) else None
    if original is None:
        return None
    then = MetaTensor(torch.zeros(0), affine=torch.as_tensor(np.asarray(original)))
    found = np.asarray(index_map(then, image, image.ndim - 1))
    if np.array_equal(found, np.eye(image.ndim)):
        return None
    linear = np.abs(found[:-1, :-1])
    off_axis = np.sort(linear / linear.max(0), axis=0)[:-1]
    if off_axis.max(initial=0) > _OBLIQUE:
        raise ValueError(
            f"{image_name(image)} lies obliquely to its file, where the patches of {path!r} are no patches any more: "
            "put ReadPatchLabelsd before rotations and shears."
        )
    return found
