# SPDX-License-Identifier: Apache-2.0
"""Boxes as masks: every voxel of a box is of its class."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, convert_to_dst_type

from monai_labelfx.ops.box_frames import frames_to_mask
from monai_labelfx.transforms.boxes_to_bags import BoxesToBags

__all__ = ["FillBoxes", "FillBoxesd"]


class FillBoxes(Transform):
    """A mask (classes, \\*spatial) uint8 that is 1 inside the boxes of each class channel.

    The label of the rival that takes a box for its object, and the set of voxels that DeepCut (Rajchl et al. 2017) lets
    an object have. Boxes are filled where they are in the image as it is now: turned boxes stay turned, see
    :py:class:`BoxesToBags`.

    Args:
        classes: number of class channels.

    Raises:
        ValueError: in the call, when a label is not below ``classes``, and as for :py:class:`BoxesToBags`.

    Notes:
        Of a frame the voxels whose centres lie inside are filled, so a turned box is a voxel off at most.

    Example:
        >>> boxes, labels = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0]]), torch.tensor([0, -1])
        >>> FillBoxes(1)(boxes, labels, torch.rand(1, 3, 4)).tolist()
        [[[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]]
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, classes: int) -> None:
        if classes < 1:
            raise ValueError(f"classes must be a number of class channels, 1 or above, got {classes}.")
        self.classes = classes

    def __call__(  # type: ignore[override]
        self, boxes: NdarrayOrTensor, labels: NdarrayOrTensor, image: NdarrayOrTensor
    ) -> NdarrayOrTensor:
        """The mask, in the container of the image and with its affine.

        Args:
            boxes: (N, 2 * spatial_dims), or frames (N, spatial_dims + 1, spatial_dims) of :py:class:`BoxesToBags`.
            labels: (N,) class channels; -1 marks padding.
            image: (C, \\*spatial), the grid to fill.
        """
        channels = torch.as_tensor(labels).as_subclass(torch.Tensor)
        wrong = channels[channels >= self.classes]
        if len(wrong):
            raise ValueError(
                f"labels must be class channels from 0 to {self.classes - 1} (-1 for padding), got {wrong[0]}."
            )
        if boxes.ndim == 2:
            frames = BoxesToBags()(boxes, image, labels)
        else:
            frames = torch.as_tensor(boxes).as_subclass(torch.Tensor)
            frames = frames.masked_fill((channels < 0).view(-1, 1, 1).to(frames.device), 0)
        shape = image.peek_pending_shape() if isinstance(image, MetaTensor) else image.shape[1:]
        mask = frames_to_mask(frames, channels.long(), self.classes, shape)
        result = convert_to_dst_type(mask, image, dtype=torch.uint8)[0]
        if isinstance(result, MetaTensor) and isinstance(image, MetaTensor):
            result.affine = image.peek_pending_affine().clone()
        return result


class FillBoxesd(MapTransform):
    """Dictionary twin of :py:class:`FillBoxes`, which documents it.

    For the key "label" it reads "label_box_labels", the image, and "label_bags" if the item has them, else
    "label_boxes", and writes "label_filled" (classes, \\*spatial). An item whose boxes nobody knows ("has_boxes" False)
    gets zeros, which are no background.

    Args:
        keys: the first part of the names.
        reference_key: the image (C, \\*spatial) that gives the grid.
        classes: number of class channels.
        allow_missing_keys: skip keys of which the item has no boxes instead of raising ``KeyError``.

    Raises:
        KeyError: the item has no boxes, labels or image under these names.
        ValueError: as for :py:class:`FillBoxes`.

    Example:
        >>> item = {"image": torch.rand(1, 3, 3), "label_boxes": torch.tensor([[1.0, 1.0, 3.0, 3.0]])}
        >>> FillBoxesd("label", classes=2)({**item, "label_box_labels": torch.tensor([1])})["label_filled"].sum((1, 2))
        tensor([0, 4])
    """

    backend = FillBoxes.backend

    def __init__(
        self,
        keys: KeysCollection,
        reference_key: str = "image",
        *,
        classes: int,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.reference_key = reference_key
        self.transform = FillBoxes(classes)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.keys:
            boxes = f"{key}_bags" if f"{key}_bags" in item else f"{key}_boxes"
            if self.allow_missing_keys and boxes not in item:
                continue
            names = (boxes, f"{key}_box_labels", self.reference_key)
            missing = [name for name in names if name not in item]
            if missing:
                raise KeyError(f"FillBoxesd: the item has no {missing[0]!r}; keys {sorted(map(str, item))}")
            item[f"{key}_filled"] = self.transform(*(item[name] for name in names))
        return item
