# SPDX-License-Identifier: Apache-2.0
"""Random crops of one size that often hold an object, chosen by the boxes or the label map of an item."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable, SpatialCrop, SpatialPad
from monai.utils import TransformBackends

from monai_labelfx.ops.components import component_boxes
from monai_labelfx.ops.instances import per_axis
from monai_labelfx.transforms._voxel_grids import check_applied
from monai_labelfx.transforms.place_boxes_on_image import PlaceBoxesOnImage, check_one_key

__all__ = ["RandCropByBoxd"]


class RandCropByBoxd(Randomizable, MapTransform):
    """Crop all keys to one random place; with ``object_probability`` one that holds a box drawn at random.

    Where the box fits, all of it is in the crop and every such place is as likely as another; a box longer than the
    crop fills it along that axis. Otherwise, and in an item without boxes, every place of the image is as likely. A
    smaller image is padded with zeros around it first.

    The boxes stay as they are: put :py:class:`PlaceBoxesOnImaged` behind this transform, as behind any spatial one.

    With ``instance_key`` the boxes are those of the objects of a label map as it is at this place of the pipeline,
    which therefore needs none before its end (:py:class:`AttachInstancesd`, :py:class:`InstancesToMasksd`).

    Args:
        keys: images and label maps (C, \\*spatial) of one grid; boxes are looked up on the first.
        box_key: boxes (N, 2 * spatial_dims) that carry their affine, see :py:class:`AttachBoxesd`. Default "box".
        instance_key: label map (C, \\*spatial) of the same grid, each number of a channel one object, to draw from
            instead of the boxes. Default ``None``, boxes are.
        roi_size: size of the crop, one number or one for each axis.
        object_probability: share of crops that are drawn around a box, 0 to 1. Default 0.7.
        allow_missing_keys: skip keys that an item lacks instead of raising ``KeyError``.

    Raises:
        KeyError: in the call, where the item lacks a key, the boxes or the label map of instances.
        ValueError: for a probability outside 0 to 1 or a size below 1; in the call, where keys differ in their grid, or
            a label map of instances does not hold whole numbers.

    Notes:
        MONAI's ``RandCropBoxByPosNegLabeld`` draws the end of a crop one voxel off (its issue 7824), and rounds boxes.

    Example:
        >>> from monai.data import MetaTensor
        >>> from monai_labelfx.transforms import PlaceBoxesOnImaged
        >>> image = MetaTensor(torch.zeros(1, 30, 40), affine=torch.eye(4))
        >>> item = {"image": image, "box": MetaTensor(torch.tensor([[20.0, 30.0, 26.0, 38.0]]), affine=image.affine)}
        >>> item = RandCropByBoxd("image", roi_size=(12, 16), object_probability=1.0).set_random_state(0)(item)
        >>> boxes = PlaceBoxesOnImaged("box", label_keys=())(item)["box"]
        >>> tuple(item["image"].shape), (boxes[0, 2:] - boxes[0, :2]).tolist()
        ((1, 12, 16), [6.0, 8.0])
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        keys: KeysCollection,
        *,
        box_key: str = "box",
        instance_key: str | None = None,
        roi_size: int | Sequence[int],
        object_probability: float = 0.7,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        if not 0 <= object_probability <= 1:
            raise ValueError(f"object_probability must be 0 to 1, got {object_probability}.")
        check_one_key((box_key,))
        self.box_key = box_key
        self.instance_key = instance_key
        self.roi_size = roi_size
        self.object_probability = object_probability
        self.place = PlaceBoxesOnImage()
        self.start: list[int] = []

    def randomize(self, boxes: np.ndarray, shape: Sequence[int], size: Sequence[int]) -> None:  # type: ignore[override]
        """Draw where the crop starts, in an image of ``shape`` with ``boxes`` (N, 2 * spatial_dims)."""
        around, which, place = self.R.random_sample(), self.R.random_sample(), self.R.random_sample(len(size))
        last = np.subtract(shape, size)
        first = np.zeros(len(size), dtype=np.int64)
        if len(boxes) and around < self.object_probability:
            low, high = np.split(boxes[int(which * len(boxes))], 2)
            ends = np.sort([np.floor(low), np.ceil(high) - size], axis=0).astype(np.int64)
            first, last = np.clip(ends, first, last)
        self.start = [int(f + p * (e - f + 1)) for f, e, p in zip(first, last, place, strict=True)]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        shape: tuple[int, ...] = ()
        for key in self.key_iterator(item):
            if shape and tuple(item[key].shape[1:]) != shape:
                raise ValueError(f"{key!r} must have the grid {shape} of the first key, got {item[key].shape[1:]}.")
            shape = tuple(item[key].shape[1:])
            size = tuple(int(n) for n in per_axis(self.roi_size, len(shape), "roi_size"))
            if min(size) < 1:
                raise ValueError(f"roi_size must be voxels, 1 or above, got {self.roi_size}.")
            if key == self.first_key(item):
                padded = SpatialPad(size)(item[key])
                self.randomize(self._boxes(item, padded, shape), padded.shape[1:], size)
            crop = SpatialCrop(roi_start=self.start, roi_end=[s + n for s, n in zip(self.start, size, strict=True)])
            item[key] = crop(SpatialPad(size)(item[key]))
        return item

    def _boxes(self, item: dict, padded: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
        """The boxes (N, 2 * spatial_dims) to draw from, in voxels of the image, along axes that were not padded."""
        source = self.box_key if self.instance_key is None else self.instance_key
        if source not in item:
            raise KeyError(f"RandCropByBoxd: the item has no {source!r} to draw from; keys {sorted(map(str, item))}")
        if self.instance_key is None:
            return torch.as_tensor(self.place(item[source], padded)[0]).numpy(force=True)
        check_applied(item[source], repr(source), "RandCropByBoxd")
        if tuple(item[source].shape[1:]) != shape:
            raise ValueError(f"{source!r} must have the grid {shape} of the first key, got {item[source].shape[1:]}.")
        label = torch.as_tensor(item[source]).as_subclass(torch.Tensor)  # not padded: the crop fills a padded axis
        found = [component_boxes(channel, instances=True)[0] for channel in label]
        return torch.cat([torch.zeros(0, 2 * len(shape), dtype=torch.int64), *(one.cpu() for one in found)]).numpy()
