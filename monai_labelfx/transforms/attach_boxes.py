# SPDX-License-Identifier: Apache-2.0
"""The boxes of an item, from its lists or its label map, as tensors that know the grid of their image."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import TransformBackends

from monai_labelfx.ops.box_affine import boxes_to_voxels, clip_boxes
from monai_labelfx.transforms.boxes_to_bags import index_map
from monai_labelfx.transforms.labels_to_tight_boxes import LabelsToTightBoxes
from monai_labelfx.transforms.place_boxes_on_image import GRID_SHAPE, check_one_key

__all__ = ["AttachBoxesd"]

_MODES = ("voxel", "world")
_SLIVER = 1e-3  # voxels: less than this inside the image is nothing


class AttachBoxesd(MapTransform):
    """The boxes of an item as a tensor (N, 2 * spatial_dims) float32 and their classes as (N,) int64, for detection.

    Boxes become a ``MetaTensor`` with the affine of the image, so that :py:class:`PlaceBoxesOnImaged` can follow the
    image through all spatial transforms; put it directly behind loading. Where the image has no affine (a plain tensor)
    they are a plain tensor. The item's own lists are not edited.

    What comes from people and converters is often odd, and one odd box must not stop a training: boxes with a number
    that is not finite, inverted ones, those without volume and those outside the image are dropped, with one warning
    for the image that counts them; the others are cut at the image. What cannot be guessed is refused: another number
    of labels than boxes, or labels that are no class.

    Where the boxes come from:

    - ``keys`` ("box"): a list or array, which may be empty: low corner, then high corner, half open.
    - else, with ``mask_key``, the label map of the item under that key: the tight boxes of its objects.
    - else an error: nobody has looked at this image, which is not the same as an image without objects. That one has
      an empty list.

    Args:
        keys: the key of the boxes. Default "box".
        reference_key: the image (C, \\*spatial), as it is in its file.
        label_key: the class of each box, 0 to num_classes - 1. Default "box_label". Missing labels are all class 0 if
            ``num_classes`` is 1.
        mode: what the numbers are. ``"voxel"``: voxels of the file, voxel k covers [k, k + 1). ``"world"``: mm in the
            space of the image's affine (RAS); see :func:`monai_labelfx.ops.boxes_to_voxels`. Default ``"voxel"``.
        mask_key: label map (C, \\*spatial) on the grid of the image. Default ``None``, none is read.
        mask_kind: what its numbers are, see :py:class:`LabelsToTightBoxes`. Default ``"instances"``: each number is one
            object, whose class is the entry of ``label_key`` with its rank among the numbers, or its channel if the
            item has no such list.
        min_size: smallest object of a label map of ``"classes"`` or ``"masks"`` that gets a box, in voxels. Default 0.
        num_classes: classes that exist. Default ``None``, any number.
        allow_missing_boxes: leave an item without boxes and label map as it is instead of raising; transforms behind
            this one then need ``allow_missing_keys``. Default ``False``.
        allow_missing_keys: leave an item without image as it is instead of raising ``KeyError``.

    Raises:
        KeyError: in the call, when the item has no image, no boxes, or boxes and no labels.
        ValueError: for an unknown ``mode``; in the call, for boxes of another shape, labels of another number, no whole
            numbers, or outside 0 to num_classes - 1, a label map on another grid, or an image that has been moved since
            it was loaded (its boxes count the voxels of the file).

    Example:
        >>> item = {"image": MetaTensor(torch.zeros(1, 8, 8)), "box": [[1, 1, 4, 9]], "box_label": [2]}
        >>> out = AttachBoxesd()(item)
        >>> out["box"].tolist(), out["box_label"].tolist(), item["box"]
        ([[1.0, 1.0, 4.0, 8.0]], [2], [[1, 1, 4, 9]])
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        keys: KeysCollection = "box",
        *,
        reference_key: str = "image",
        label_key: str = "box_label",
        mode: str = "voxel",
        mask_key: str | None = None,
        mask_kind: str = "instances",
        min_size: int = 0,
        num_classes: int | None = None,
        allow_missing_boxes: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        check_one_key(self.keys)
        if mode not in _MODES:
            raise ValueError(f"mode must be one of {', '.join(map(repr, _MODES))}, got {mode!r}.")
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes must be a number of classes, 1 or above, got {num_classes}.")
        self.reference_key = reference_key
        self.label_key = label_key
        self.mode = mode
        self.mask_key = mask_key
        self.mask_kind = mask_kind
        self.tight = LabelsToTightBoxes(mask_kind, min_size=0 if mask_kind == "instances" else min_size)
        self.num_classes = num_classes
        self.allow_missing_boxes = allow_missing_boxes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        if self.reference_key not in item:
            if self.allow_missing_keys:
                return item
            raise KeyError(f"AttachBoxesd: the item has no {self.reference_key!r}; keys {sorted(map(str, item))}")
        image, key = item[self.reference_key], self.keys[0]
        given = item.get(key)
        if given is not None:
            rows, labels = self._rows(given, image), item.get(self.label_key)
        elif self.mask_key is not None and item.get(self.mask_key) is not None:
            rows, labels = self._from_mask(item[self.mask_key], item.get(self.label_key), image)
        elif self.allow_missing_boxes:
            return item
        else:
            sources = repr(key) if self.mask_key is None else f"{key!r} or label map {self.mask_key!r}"
            raise KeyError(
                f"{_name(image)} has no {sources}: nobody has looked at it; an image without objects has an empty list"
            )
        classes = self._classes(labels, len(rows), image)
        rows, kept = self._usable(rows, image)
        item[key] = _on_grid(rows.float(), image)
        item[self.label_key] = classes[kept].to(item[key].device)
        return item

    def _rows(self, given: Any, image: Any) -> torch.Tensor:
        """Boxes of the item (N, 2 * spatial_dims) float64 in voxels."""
        count = 2 * (image.ndim - 1)
        try:
            rows = np.asarray(given.detach().cpu() if isinstance(given, torch.Tensor) else given, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"boxes of {_name(image)} must be lists of {count} numbers, got {error}.") from error
        rows = rows if rows.size else rows.reshape(0, count)
        if rows.ndim != 2 or rows.shape[1] != count:
            raise ValueError(
                f"boxes of {_name(image)} must be {count} numbers each (low corner, then high corner), got the shape "
                f"{rows.shape}."
            )
        boxes = torch.from_numpy(rows)
        if self.mode == "voxel":
            _check_not_moved(image)
            return boxes
        if not isinstance(image, MetaTensor):
            raise ValueError(f"boxes in mm need the affine of {_name(image)}, which is a plain tensor.")
        low, high = boxes.chunk(2, 1)
        turned = (low >= high).any(1, keepdim=True)  # the hull would make them look like boxes
        return boxes_to_voxels(boxes, image.peek_pending_affine()).masked_fill(turned & boxes.isfinite(), 0)

    def _from_mask(self, mask: Any, listed: Any, image: Any) -> tuple[torch.Tensor, Any]:
        """Boxes and classes of the objects of a label map."""
        if tuple(mask.shape[1:]) != tuple(image.shape[1:]):
            raise ValueError(
                f"{self.mask_key} of {_name(image)} must have the grid of the image {tuple(image.shape[1:])}, got "
                f"{tuple(mask.shape[1:])}."
            )
        found = self.tight(mask)
        rows, labels = found["_boxes"].as_subclass(torch.Tensor).double().cpu(), found["_box_labels"].cpu()
        named = listed is not None and self.mask_kind == "instances"
        return rows, listed if named else labels

    def _classes(self, labels: Any, number: int, image: Any) -> torch.Tensor:
        """The classes (N,) int64, checked."""
        if labels is None:
            if number and self.num_classes != 1:
                raise KeyError(f"AttachBoxesd: {_name(image)} has {number} boxes and no {self.label_key!r}")
            labels = [0] * number
        array = np.asarray(labels.detach().cpu() if isinstance(labels, torch.Tensor) else labels)
        array = array if array.size else np.zeros(0, np.int64)
        if array.shape != (number,) or array.dtype.kind not in "iu":
            raise ValueError(
                f"{self.label_key} of {_name(image)} must be a whole number for each of {number} boxes, got "
                f"{array.dtype} of the shape {array.shape}."
            )
        wrong = (array < 0) | (array >= (np.inf if self.num_classes is None else self.num_classes))
        if wrong.any():
            limit = "0 or above" if self.num_classes is None else f"0 to {self.num_classes - 1}"
            raise ValueError(
                f"{self.label_key} of {_name(image)} must be classes of {limit}, got {array[wrong][0]} for box "
                f"{int(wrong.argmax())}."
            )
        return torch.from_numpy(array.astype(np.int64))

    def _usable(self, rows: torch.Tensor, image: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The boxes that can be used, cut at the image, and which they are; a warning counts the others."""
        finite = rows.isfinite().all(1)
        low, high = rows.chunk(2, 1)
        solid = (low < high).all(1)
        cut = clip_boxes(rows.nan_to_num(), _shape(image))
        inside = (cut[:, rows.shape[1] // 2 :] - cut[:, : rows.shape[1] // 2] >= _SLIVER).all(1)
        kept = finite & solid & inside
        reasons = {
            "not finite": int((~finite).sum()),
            "without volume or inverted": int((finite & ~solid).sum()),
            "outside the image": int((finite & solid & ~inside).sum()),
        }
        if not kept.all():
            told = ", ".join(f"{number} {reason}" for reason, number in reasons.items() if number)
            warnings.warn(
                f"{_name(image)}: dropped {len(kept) - int(kept.sum())} of {len(kept)} boxes ({told}).", stacklevel=3
            )
        return cut[kept], kept


def _on_grid(rows: torch.Tensor, image: Any) -> torch.Tensor:
    """The boxes on the device of the image, with its affine and its shape."""
    if isinstance(image, torch.Tensor):
        rows = rows.to(image.device)
    if not isinstance(image, MetaTensor):
        return rows
    return MetaTensor(rows, affine=image.peek_pending_affine().clone(), meta={GRID_SHAPE: _shape(image)})


def _check_not_moved(image: Any) -> None:
    original = image.meta.get("original_affine") if isinstance(image, MetaTensor) else None
    if original is None:
        return
    affine = torch.as_tensor(np.asarray(original))
    moved = index_map(MetaTensor(torch.zeros(0), affine=affine), image, image.ndim - 1)
    if not np.array_equal(np.asarray(moved), np.eye(image.ndim)):
        raise ValueError(
            f"{_name(image)} has been moved since it was loaded, and its boxes count the voxels of the file: put "
            "AttachBoxesd directly behind loading."
        )


def _shape(image: Any) -> tuple[int, ...]:
    return tuple(image.peek_pending_shape() if isinstance(image, MetaTensor) else image.shape[1:])


def _name(image: Any) -> str:
    """What to call the image in a message."""
    name = image.meta.get("filename_or_obj") if isinstance(image, MetaTensor) else None
    return f"image {str(name)!r}" if name else "the image"
