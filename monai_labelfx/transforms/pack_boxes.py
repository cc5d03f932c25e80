# SPDX-License-Identifier: Apache-2.0
"""The boxes that a datalist holds as lists, as tensors that know their grid and make a batch."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import TransformBackends

from monai_labelfx.ops.crossing_lines import WHOLE
from monai_labelfx.transforms._box_rows import checked_max_boxes, padded_rows
from monai_labelfx.transforms.boxes_to_bags import index_map

__all__ = ["PackBoxesd"]

_OUTSIDE = 1.0  # voxels: what reaches out of the image by no more is a matter of counting, and is cut


class PackBoxesd(MapTransform):
    """The lists ``box`` and ``box_label`` of an item as tensors, like those :py:class:`LabelsToTightBoxesd` makes.

    For the key "label" it writes "label_boxes" (N, 2 * spatial_dims) float32, a ``MetaTensor`` with the affine of the
    image (a plain tensor if the image has none), "label_box_labels" (N,) int64, and for every item the flag
    "has_boxes", a bool tensor without axes. The two lists are taken out of the item: they have another length in every
    image and would not collate. Put it directly behind loading: the boxes count the voxels of the file, and what
    happens to the image afterwards is read from its affine by :py:class:`BoxesToBagsd`.

    What an item says: no ``box`` (or None) means that nobody has looked, and ``has_boxes`` is False; an empty list
    means that somebody looked and there is no object, so ``has_boxes`` is True. An item without ``box`` that has
    "label_boxes" already, made of a mask, keeps these, and ``has_boxes`` is True. A flag that the item already holds
    stays.

    Args:
        keys: one key, the first part of the names: "label" for "label_boxes".
        reference_key: the image (C, \\*spatial) in whose voxels the boxes are, as it is in its file.
        box_key: where the item has its boxes, low corner, then high corner, in voxels, half open.
        box_label_key: where it has the class channel of each box.
        max_boxes: pad to this number of boxes with zeros, and the labels with -1, so that images make a batch. Default
            ``None``: as many as there are.
        classes: number of class channels, which no label may reach. Default ``None``: any number.

    Raises:
        KeyError: in the call, when the item has no image, or boxes and no labels.
        ValueError: for a box that is inverted, empty, not finite, or outside the image (by more than one voxel; up to
            that it is cut), a label that is no class channel, more boxes than ``max_boxes``, or an image that
            has been moved since it was loaded. One sentence with the number of the box.

    Example:
        >>> items = [{"box": [[1, 1, 4, 3]], "box_label": [0]}, {"box": [], "box_label": []}, {}]
        >>> pack = PackBoxesd("label", max_boxes=2)
        >>> out = [pack({"image": torch.zeros(1, 6, 6), **item}) for item in items]
        >>> [item["label_box_labels"].tolist() for item in out], [bool(item["has_boxes"]) for item in out]
        ([[0, -1], [-1, -1], [-1, -1]], [True, True, False])
        >>> out[0]["label_boxes"].tolist()
        [[1.0, 1.0, 4.0, 3.0], [0.0, 0.0, 0.0, 0.0]]
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        keys: KeysCollection,
        reference_key: str = "image",
        *,
        box_key: str = "box",
        box_label_key: str = "box_label",
        max_boxes: int | None = None,
        classes: int | None = None,
    ) -> None:
        super().__init__(keys)
        if len(self.keys) != 1:
            raise ValueError(f"keys must be one key, for an item has one has_boxes, got {self.keys}.")
        if classes is not None and classes < 1:
            raise ValueError(f"classes must be a number of class channels, 1 or above, got {classes}.")
        self.reference_key = reference_key
        self.box_key = box_key
        self.box_label_key = box_label_key
        self.max_boxes = checked_max_boxes(max_boxes)
        self.classes = classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        if self.reference_key not in item:
            raise KeyError(f"PackBoxesd: the item has no {self.reference_key!r}; keys {sorted(map(str, item))}")
        boxes, labels = f"{self.keys[0]}_boxes", f"{self.keys[0]}_box_labels"
        found, channels = item.pop(self.box_key, None), item.pop(self.box_label_key, None)
        known = found is not None or item.get(boxes) is not None
        if found is not None or not known:
            image = item[self.reference_key]
            rows = self._rows([] if found is None else found, image)
            item[boxes] = _on_grid(torch.as_tensor(rows, dtype=torch.float32), image)
            item[labels] = self._channels(channels, len(rows)).to(item[boxes].device)
        elif labels not in item:
            raise KeyError(f"PackBoxesd: the item has {boxes!r} and no {labels!r}; keys {sorted(map(str, item))}")
        item[boxes] = padded_rows(item[boxes], self.max_boxes)
        item[labels] = padded_rows(item[labels], self.max_boxes, -1)
        item["has_boxes"] = torch.as_tensor(bool(item.get("has_boxes", known)))
        return item

    def _rows(self, boxes: Any, image: Any) -> np.ndarray:
        """The boxes of an item, checked and cut at the image."""
        shape = tuple(image.shape[1:])
        try:
            rows = np.asarray(boxes, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{self.box_key} must hold boxes of {2 * len(shape)} numbers each, got {error}."
            ) from error
        rows = rows if rows.size else rows.reshape(0, 2 * len(shape))
        if rows.ndim != 2 or rows.shape[1] != 2 * len(shape):
            raise ValueError(
                f"{self.box_key} must hold boxes of {2 * len(shape)} numbers each for an image of {len(shape)} spatial "
                f"axes, got the shape {rows.shape}."
            )
        low, high = np.split(rows, 2, axis=1)
        cut = np.concatenate([low.clip(0), np.minimum(high, shape)], axis=1)
        first, last = np.floor(cut[:, : len(shape)] + WHOLE), np.ceil(cut[:, len(shape) :] - WHOLE)
        for wrong, what in (
            (~np.isfinite(rows).all(1), "is not finite"),
            (~(low < high).all(1), "is inverted or empty (low corner, then high corner, is the order)"),
            (~(first < last).all(1), f"lies outside the image of shape {shape} or is empty"),
            ((abs(cut - rows) > _OUTSIDE).any(1), f"reaches out of the image of shape {shape} by more than one voxel"),
        ):
            if wrong.any():
                number = int(wrong.argmax())
                raise ValueError(f"box {number} of {self.box_key} {what}, got {rows[number].tolist()}.")
        return cut

    def _channels(self, labels: Any, count: int) -> torch.Tensor:
        """The class channels of an item, checked."""
        if labels is None:
            if count:
                raise KeyError(f"PackBoxesd: the item has {self.box_key!r} and no {self.box_label_key!r}")
            labels = []
        channels = np.asarray(labels)
        channels = channels if channels.size else np.zeros(0, np.int64)
        if channels.shape != (count,) or channels.dtype.kind not in "iu":
            raise ValueError(
                f"{self.box_label_key} must hold a whole number for each of {count} boxes, got {channels.dtype} of the "
                f"shape {channels.shape}."
            )
        wrong = (channels < 0) | (channels >= (np.inf if self.classes is None else self.classes))
        if wrong.any():
            number = int(wrong.argmax())
            limit = "0 or above" if self.classes is None else f"0 to {self.classes - 1}"
            raise ValueError(
                f"box {number} must have a class channel of {limit} in {self.box_label_key}, got {channels[number]}."
            )
        return torch.as_tensor(channels.astype(np.int64))


def _on_grid(boxes: torch.Tensor, image: Any) -> torch.Tensor:
    """The boxes on the device of the image and with its affine, which must be that of the file."""
    if isinstance(image, torch.Tensor):
        boxes = boxes.to(image.device)
    if not isinstance(image, MetaTensor):
        return boxes
    original = image.meta.get("original_affine")
    if original is not None:
        moved = index_map(MetaTensor(boxes, affine=torch.as_tensor(original)), image, image.ndim - 1)
        if not np.array_equal(np.asarray(moved), np.eye(image.ndim)):
            raise ValueError(
                "the image has been moved since it was loaded, and its boxes count the voxels of the file: put "
                "PackBoxesd directly behind loading."
            )
    return MetaTensor(boxes, affine=image.affine.clone())
