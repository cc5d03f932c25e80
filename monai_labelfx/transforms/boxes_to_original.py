# SPDX-License-Identifier: Apache-2.0
"""Boxes of an image as it is now, such as predictions, back in the voxels of its file."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ensure_tuple

from monai_labelfx.transforms.place_boxes_on_image import (
    GRID_SHAPE,
    PlaceBoxesOnImage,
    check_item,
    check_one_key,
    keep_rows,
)

__all__ = ["BoxesToOriginald"]


class BoxesToOriginald(MapTransform):
    """Boxes of an image as it is now (predictions) in the voxels of its file, as it was loaded.

    It undoes whatever the affine of the image tells, against ``original_affine`` and ``spatial_shape``, which MONAI's
    readers write (a picture without geometry has no ``original_affine``: its grid starts as the identity), and cuts the
    boxes at the original image. For a box and its way see :py:class:`PlaceBoxesOnImage`.

    Args:
        keys: the key of the boxes (N, 2 \\* spatial_dims), plain tensors or arrays in the voxels of the image as it is
            now, or a ``MetaTensor`` with an affine of its own.
        reference_key: the image (C, \\*spatial) as it is now.
        label_keys: what has one row for each box. Default ``("box_label",)``.
        min_visible: see :py:class:`PlaceBoxesOnImage`. Default 0: boxes in the padding alone are dropped.
        allow_missing_keys: skip keys that the item lacks instead of raising ``KeyError``.

    Raises:
        KeyError: in the call, when the item has no boxes, image or labels.
        ValueError: when the image does not know its original grid, or as for :py:class:`PlaceBoxesOnImage`.

    Example:
        >>> from monai.transforms import Zoom
        >>> image = MetaTensor(torch.zeros(1, 10, 12), affine=torch.eye(4), meta={"spatial_shape": (10, 12)})
        >>> item = {"image": Zoom(2, keep_size=False)(image), "box": torch.tensor([[2.0, 4.0, 8.0, 30.0]])}
        >>> BoxesToOriginald("box", label_keys=())(item)["box"].tolist()
        [[1.0, 2.0, 4.0, 12.0]]
    """

    backend = PlaceBoxesOnImage.backend

    def __init__(
        self,
        keys: KeysCollection = "box",
        *,
        reference_key: str = "image",
        label_keys: Sequence[str] = ("box_label",),
        min_visible: float = 0.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        check_one_key(self.keys)
        self.reference_key = reference_key
        self.label_keys = ensure_tuple(label_keys)
        self.transform = PlaceBoxesOnImage(min_visible=min_visible)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            check_item(item, type(self).__name__, self.reference_key, self.label_keys, self.allow_missing_keys)
            image, boxes = item[self.reference_key], item[key]
            original = _original_grid(image)
            if not isinstance(boxes, MetaTensor):
                boxes = MetaTensor(torch.as_tensor(boxes), affine=image.peek_pending_affine())
            item[key], kept = self.transform(boxes, original)
            keep_rows(item, self.label_keys, kept, len(boxes))
        return item


def _original_grid(image: Any) -> MetaTensor:
    """An image without memory on the grid of the file."""
    meta = image.meta if isinstance(image, MetaTensor) else {}
    if meta.get(GRID_SHAPE) is None:
        raise ValueError(
            "the image does not know its original grid: it must be a MetaTensor with 'spatial_shape' (and "
            "'original_affine') in its meta, as MONAI's readers make it."
        )
    shape = [int(size) for size in np.asarray(meta[GRID_SHAPE]).ravel()][: image.ndim - 1]
    affine = meta.get("original_affine")
    affine = torch.eye(4, dtype=torch.float64) if affine is None else torch.as_tensor(np.asarray(affine))
    return MetaTensor(torch.zeros(()).expand(1, *shape), affine=affine)
