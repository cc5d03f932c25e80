# SPDX-License-Identifier: Apache-2.0
"""Give unlabelled items an empty label and every item a flag, so that both kinds collate into one batch."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import TransformBackends

__all__ = ["FillMissingLabeld"]


class FillMissingLabeld(MapTransform):
    """An empty label map for items without one, and a flag ``has_<key>`` for all items.

    An item without the key (or with None) gets zeros (1, *spatial of the reference), int64, in the reference's
    container with its meta and affine, and ``has_<key>`` False. An item with the key keeps its label, as int64 and in
    the same kind of container, and gets True. A flag that the item already holds stays (an annotated image without any
    object: no label file and ``"has_label": true`` in the datalist). Flags are bool tensors without axes, so a batch
    has ``has_label`` (B,). Put it after loading and before spatial transforms, which then treat all items alike.

    Args:
        keys: label keys to complete.
        reference_key: the image (C, *spatial) that gives shape, container and meta.

    Raises:
        KeyError: the reference is missing.
        ValueError: the reference has no spatial axis.

    Notes:
        Without it a batch of labelled and unlabelled items cannot collate: the key is missing, or MetaTensor and
        plain tensor mix. Labels are class indices or instances, never probabilities: a fraction is cut off by int64.

    Example:
        >>> item = FillMissingLabeld("label", "image")({"image": torch.rand(1, 4, 5)})
        >>> item["label"].shape, item["label"].dtype, bool(item["has_label"])
        (torch.Size([1, 4, 5]), torch.int64, False)
    """

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]

    def __init__(self, keys: KeysCollection, reference_key: str = "image") -> None:
        super().__init__(keys)
        self.reference_key = reference_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        if self.reference_key not in item:
            raise KeyError(f"FillMissingLabeld: the item has no {self.reference_key!r}; keys {sorted(map(str, item))}")
        reference = item[self.reference_key]
        if reference.ndim < 2:
            raise ValueError(f"{self.reference_key} must be (C, *spatial), got shape {tuple(reference.shape)}")
        for key in self.keys:
            present = item.get(key) is not None
            label = item[key] if present else torch.zeros(1, *reference.shape[1:], dtype=torch.int64)
            item[key] = _as_labels(label, reference)
            flag = f"has_{key}"
            item[flag] = torch.as_tensor(bool(item.get(flag, present)))
        return item


def _as_labels(label: Any, reference: Any) -> Any:
    """``label`` as int64 in the container of ``reference``, with its own meta where it has one."""
    if isinstance(reference, np.ndarray):
        return np.asarray(label).astype(np.int64)
    result = torch.as_tensor(label).to(device=reference.device, dtype=torch.int64)
    if not isinstance(reference, MetaTensor):
        return result.as_subclass(torch.Tensor)
    return result if isinstance(result, MetaTensor) else MetaTensor(result).copy_meta_from(reference)
