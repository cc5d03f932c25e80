# SPDX-License-Identifier: Apache-2.0
"""Meta data that can be saved, safely loaded and collated: tensors and plain Python values only."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import Transform
from monai.utils import TransformBackends, convert_to_tensor

from monai_labelfx.transforms._keyed import Keyed

__all__ = ["SanitizeMeta", "SanitizeMetad"]


class SanitizeMeta(Transform):
    """Clean an image's meta and traced operations, so that ``PersistentDataset(track_meta=True)`` hits its cache.

    MONAI 1.6.1 saves the meta that the readers give (numpy arrays and scalars, enumerations) and then refuses to load
    it with ``weights_only=True``, so that it recomputes every time. Here numeric arrays become tensors, numpy scalars,
    enumeration members and DICOM numbers become plain numbers and texts, and whatever else cannot be loaded becomes its
    text. Values and the inverse are kept: ``Invertd`` works on a cached item.

    Put it last before the first random transform, and call :py:func:`monai_labelfx.data.allow_safe_globals` once per
    process (MONAI writes an enumeration member of its own when it saves); either alone is not enough.

    Input (C, *spatial); output a MetaTensor of the same data, sharing memory with the input, whose meta is untouched.

    Example:
        >>> from monai.data import MetaTensor
        >>> image = MetaTensor(torch.zeros(1, 2, 2), meta={"spatial_shape": np.array([2, 2]), "scale": np.float32(2)})
        >>> meta = SanitizeMeta()(image).meta
        >>> meta["spatial_shape"].tolist(), meta["scale"]
        ([2, 2], 2.0)
    """

    backend = [TransformBackends.TORCH]

    def __call__(self, img: NdarrayOrTensor) -> torch.Tensor:
        image = convert_to_tensor(img, track_meta=get_track_meta())
        if not isinstance(image, MetaTensor):
            return image
        result = MetaTensor(image.as_tensor())
        result.copy_meta_from(image)
        result.meta = _plain(image.meta)
        result.applied_operations = _plain(image.applied_operations)
        return result


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, np.ndarray):
        if value.ndim == 0 or value.dtype.kind not in "buif":
            return _plain(value.tolist())
        kind = np.float64 if value.dtype.itemsize > 8 else value.dtype.newbyteorder("=")
        return torch.as_tensor(np.array(value, dtype=kind, order="C"))
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, Mapping):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        # a list or tuple subclass (pydicom's MultiValue, named tuples) would not be loaded
        return tuple(map(_plain, value)) if isinstance(value, tuple) else [_plain(entry) for entry in value]
    if isinstance(value, bytes):
        return value.decode("latin-1")
    for plain in (bool, int, float, str):
        if isinstance(value, plain):
            return plain(value)
    if value is None or isinstance(value, (torch.Tensor, torch.dtype, torch.device)):
        return value
    return str(value)


class SanitizeMetad(Keyed):
    array = SanitizeMeta
