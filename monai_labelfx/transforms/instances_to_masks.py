# SPDX-License-Identifier: Apache-2.0
"""Numbered objects of a label map to one mask and one tight box for each."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends

from monai_labelfx.ops.components import component_boxes
from monai_labelfx.ops.instances import integer_labels
from monai_labelfx.transforms._voxel_grids import check_applied, voxel_volume
from monai_labelfx.transforms.attach_boxes import _on_grid
from monai_labelfx.transforms.attach_instances import VOLUMES
from monai_labelfx.transforms.place_boxes_on_image import check_one_key, keep_rows

__all__ = ["InstancesToMasks", "InstancesToMasksd"]


class InstancesToMasks(Transform):
    """One mask and one tight box for each object of a label map, of which enough is left.

    Put it behind all spatial transforms, random or not: masks and boxes are those of the map as it is then, whatever
    moved it (:py:class:`PlaceBoxesOnImage` follows an affine only, and its boxes get loose under rotations). The map
    has to be moved with the mode "nearest"; floats that hold whole numbers, which MONAI's transforms return, are fine.

    Args:
        min_visible: smallest share of an object's volume that must be left, 0 to 1. The volumes are those that
            :py:class:`AttachInstancesd` has noted in the meta data, the size of a voxel now is that of the affine, so
            zooms and resampling do not count. Nearest interpolation moves borders by up to half a voxel: a share of 1
            would drop small objects that are whole. Default 0, any part does.
        min_size: fewest voxels of an object on the present grid. Default 1.

    Raises:
        ValueError: for ``min_visible`` outside 0 to 1 or ``min_size`` below 1; in the call, for a map that is not (C,
            \\*spatial), of negative or fractional numbers, with one number in two channels, or with pending operations
            (in a ``Compose`` they are done before); with ``min_visible``, for a map without volumes.

    Example:
        >>> label = torch.tensor([[[0, 2, 2], [5, 0, 0], [5, 0, 2]]])
        >>> masks, boxes, numbers = InstancesToMasks()(label)
        >>> masks.int().tolist()
        [[[0, 1, 1], [0, 0, 0], [0, 0, 1]], [[0, 0, 0], [1, 0, 0], [1, 0, 0]]]
        >>> boxes.tolist(), numbers.tolist()
        ([[0.0, 1.0, 3.0, 3.0], [1.0, 0.0, 3.0, 1.0]], [2, 5])
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, *, min_visible: float = 0.0, min_size: int = 1) -> None:
        if not 0 <= min_visible <= 1:
            raise ValueError(f"min_visible must be a share of the object of 0 to 1, got {min_visible}.")
        if min_size < 1:
            raise ValueError(f"min_size must be a number of voxels, 1 or above, got {min_size}.")
        self.min_visible = min_visible
        self.min_size = min_size

    def __call__(self, img: NdarrayOrTensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Masks (M, \\*spatial) bool, their boxes (M, 2 * spatial_dims) float32 and numbers (M,) int64, which rise.

        Boxes are in voxels, low corner, then high corner, half open. Masks and boxes of a ``MetaTensor`` are
        ``MetaTensor`` with its affine, the masks with its other meta data and applied operations too.

        Args:
            img: (C, \\*spatial) whole numbers, 0 background, each number one object.
        """
        label = img if isinstance(img, torch.Tensor) else torch.as_tensor(img)
        name = _title(label)
        check_applied(label, name, "InstancesToMasks")
        if label.ndim < 2 or label.shape[0] < 1:
            raise ValueError(f"{name} must have the shape (C, *spatial), got {tuple(label.shape)}.")
        numbers = integer_labels(label.as_subclass(torch.Tensor), f"{name} (to be moved with the mode 'nearest')")
        found = [component_boxes(channel, instances=True) for channel in numbers]
        boxes, values = (torch.cat(parts) for parts in zip(*found, strict=True))
        order = values.argsort()
        twice = values[order][1:] == values[order][:-1]
        if twice.any():
            raise ValueError(
                f"{name} must have each number in one channel, got {int(values[order][1:][twice][0])} in two of them: "
                "AttachInstancesd numbers the objects of all channels."
            )
        places, ranks, start = [], [], 0
        for channel, (_, own) in zip(numbers.flatten(1), found, strict=True):
            place = channel.nonzero().squeeze(1)
            places.append(place)
            ranks.append(torch.searchsorted(own, channel[place]) + start)
            start += len(own)
        place, rank = torch.cat(places), torch.cat(ranks)
        sizes = torch.bincount(rank, minlength=start)
        kept = order[((sizes >= self.min_size) & self._visible(sizes, values, label, name))[order]]
        masks = _painted(place, rank, kept, start, tuple(numbers.shape[1:]))
        if isinstance(label, MetaTensor):
            masks = MetaTensor(masks).copy_meta_from(label)
            masks.meta.pop(VOLUMES, None)  # they have no rows of it
        return masks, _on_grid(boxes[kept].to(torch.float32), label), values[kept]

    def _visible(self, sizes: torch.Tensor, values: torch.Tensor, label: torch.Tensor, name: str) -> torch.Tensor:
        """Whether enough of each object is left."""
        volumes = label.meta.get(VOLUMES) if isinstance(label, MetaTensor) else None
        if not len(values) or (volumes is None and not self.min_visible):
            return torch.ones_like(sizes, dtype=torch.bool)
        if not isinstance(label, MetaTensor) or volumes is None or len(volumes) < values.max():
            found = "none" if volumes is None else f"{len(volumes)} for number {int(values.max())}"
            raise ValueError(
                f"{name} must have the volumes of its objects in meta[{VOLUMES!r}], got {found}: make it with "
                "AttachInstancesd and keep it a MetaTensor."
            )
        whole = torch.as_tensor(volumes, dtype=torch.float64, device=sizes.device)[values - 1]
        return sizes * voxel_volume(label.affine, label.ndim - 1) >= self.min_visible * whole * (1 - 1e-6)


class InstancesToMasksd(MapTransform):
    """Dictionary twin of :py:class:`InstancesToMasks`, which documents it: masks, boxes and classes of an item.

    ===============  =====================================================================================
    ``<mask_key>``   (M, \\*spatial) bool, on the grid of the label map and its image
    ``<box_key>``    (M, 2 \\* spatial_dims) float32, tight to the masks
    ``<label_key>``  of the N classes of the item those of the M objects that are left, in their container
    ===============  =====================================================================================

    This is what :py:class:`monai_labelfx.engines.DetectionPrepareBatch` takes with ``mask_key="mask"``.

    Args:
        keys: the key of the label map, whose number k is of class k - 1 of the list; see :py:class:`AttachInstancesd`.
        mask_key: where the masks go. Default "mask".
        box_key: where the boxes go. Default "box".
        label_key: classes of the objects 1 to N. Default "box_label".
        min_visible: see :py:class:`InstancesToMasks`. Default 0.
        min_size: see :py:class:`InstancesToMasks`. Default 1.
        drop_label: take the label map out of the item. Default ``True``; with ``False`` it stays, with the objects that
            are left numbered 1 to M, so that it can be moved and taken apart again.
        allow_missing_keys: skip an item without label map instead of raising ``KeyError``.

    Raises:
        KeyError: in the call, when the item has no label map or no classes.
        ValueError: as for :py:class:`InstancesToMasks`; for several keys, or a number without a class.

    Example:
        >>> from monai.transforms import Compose, SpatialCropd
        >>> from monai_labelfx.transforms.attach_instances import AttachInstancesd
        >>> voxels = ["image", "label"]
        >>> crop = SpatialCropd(voxels, roi_start=(0, 1), roi_end=(2, 3))
        >>> chain = Compose([AttachInstancesd(), crop, InstancesToMasksd(min_visible=0.5)])
        >>> label = torch.tensor([[[4, 4, 0, 9], [0, 0, 9, 9], [0, 0, 9, 9]]])
        >>> out = chain({"image": torch.zeros(1, 3, 4), "label": label, "box_label": [2, 0]})
        >>> out["mask"].int().tolist(), out["box"].tolist(), out["box_label"].tolist()
        ([[[1, 0], [0, 0]]], [[0.0, 0.0, 1.0, 1.0]], [2])
    """

    backend = InstancesToMasks.backend

    def __init__(
        self,
        keys: KeysCollection = "label",
        *,
        mask_key: str = "mask",
        box_key: str = "box",
        label_key: str = "box_label",
        min_visible: float = 0.0,
        min_size: int = 1,
        drop_label: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        check_one_key(self.keys)
        self.mask_key = mask_key
        self.box_key = box_key
        self.label_key = label_key
        self.drop_label = drop_label
        self.transform = InstancesToMasks(min_visible=min_visible, min_size=min_size)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            if self.label_key not in item:
                raise KeyError(f"InstancesToMasksd: the item has no {self.label_key!r}; keys {sorted(map(str, item))}")
            label = item.pop(key) if self.drop_label else item[key]
            item[self.mask_key], item[self.box_key], numbers = self.transform(label)
            classes = len(item[self.label_key])
            if len(numbers) and numbers[-1] > classes:
                raise ValueError(
                    f"{_title(label)} must have objects 1 to {classes}, one for each entry of {self.label_key!r}, got "
                    f"number {int(numbers[-1])}: number them with AttachInstancesd."
                )
            kept = torch.zeros(classes, dtype=torch.bool)
            kept[numbers.cpu() - 1] = True
            keep_rows(item, (self.label_key,), kept, classes)
            if not self.drop_label:
                item[key] = _numbered_again(label, numbers)
        return item


def _painted(place: torch.Tensor, rank: torch.Tensor, kept: torch.Tensor, total: int, shape: tuple) -> torch.Tensor:
    """Masks (M, *shape): row r has the places whose rank is ``kept[r]``; touches no voxel of the background."""
    row = place.new_full((total,), -1)
    row[kept] = torch.arange(len(kept), device=place.device)
    rows = row[rank]
    inside = rows >= 0
    masks = torch.zeros(len(kept), *shape, dtype=torch.bool, device=place.device)
    masks.view(-1)[rows[inside] * int(np.prod(shape)) + place[inside]] = True
    return masks


def _numbered_again(label: NdarrayOrTensor, numbers: torch.Tensor) -> NdarrayOrTensor:
    """The label map with ``numbers`` replaced by 1, 2, ... and others by 0, in its container and dtype."""
    plain = torch.as_tensor(label).as_subclass(torch.Tensor)
    every = torch.cat([numbers.new_zeros(1), numbers])  # rises, with the background in front
    rank = torch.searchsorted(every, plain.long(), right=True) - 1
    result = torch.where(every[rank] == plain, rank, 0).to(plain.dtype)
    if isinstance(label, MetaTensor):
        result = MetaTensor(result).copy_meta_from(label)
        volumes = result.meta.get(VOLUMES)
        if volumes is not None:
            result.meta[VOLUMES] = [volumes[number - 1] for number in numbers.tolist()]
        return result
    return result if isinstance(label, torch.Tensor) else result.numpy()


def _title(label: Any) -> str:
    """What to call the label map in a message."""
    name = label.meta.get("filename_or_obj") if isinstance(label, MetaTensor) else None
    return f"the label map {str(name)!r}" if name else "the label map"
