# SPDX-License-Identifier: Apache-2.0
"""Voxels outside the field of view become air, and a mask remembers where they were."""

from __future__ import annotations

import math

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import TransformBackends, convert_to_dst_type

from monai_labelfx.transforms._keyed import Keyed

__all__ = ["ReplacePadding", "ReplacePaddingd"]

AIR = -1000.0


class ReplacePadding(Transform):
    r"""Replace the padding of a CT image by air: scanners fill what they did not reconstruct with -2000 or less.

    The step of 1,000 HU at the edge of the field of view is no anatomy, and the wavelets of a high-pass reach over
    hundreds of pixels (316 for db3 at level 6). Padded is a voxel below ``below``, and one with the value that the
    DICOM file names as padding (``dicom_pixel_padding`` in the meta data of
    :py:class:`~monai_labelfx.data.DicomSeriesReader`).

    Args:
        below: voxels with lower values are padding, HU. Default -1500: air is -1000, noise around it seldom -1400.
            ``None``: only what the file names.
        value: what they become, HU. Default -1000, air.

    Shape:
        - input: (C, \*spatial), HU.
        - output: a mapping ``{"": image, "_padding": mask}``, both (C, \*spatial), the mask bool; the dictionary form
          writes them under the key and ``key + "_padding"``. :py:class:`ApplyCorrectiond` puts the padding back.

    Raises:
        ValueError: when ``value`` is not finite, or would itself be padding.

    Example:
        >>> import torch
        >>> result = ReplacePadding()(torch.tensor([[-2000.0, -1010.0, 40.0]]))
        >>> result[""].tolist(), result["_padding"].tolist()
        ([[-1000.0, -1010.0, 40.0]], [[True, False, False]])
    """

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]

    def __init__(self, below: float | None = -1500.0, value: float = AIR) -> None:
        if not math.isfinite(value):
            raise ValueError(f"value must be a finite number of HU, got {value}.")
        if below is not None and not value >= below:
            raise ValueError(f"value must be at least below={below:g}, or it would be padding itself, got {value:g}.")
        self.below = below
        self.value = value

    def __call__(self, img: NdarrayOrTensor) -> dict[str, NdarrayOrTensor]:
        plain = torch.as_tensor(img).as_subclass(torch.Tensor)
        mask = torch.zeros_like(plain, dtype=torch.bool) if self.below is None else plain < self.below
        for low, high in _named(img):
            mask |= (plain >= low) & (plain <= high)
        filled = plain.masked_fill(mask, self.value)
        return {
            "": convert_to_dst_type(filled, img, dtype=filled.dtype)[0],
            "_padding": convert_to_dst_type(mask, img, dtype=torch.bool if torch.is_tensor(img) else np.bool_)[0],
        }


class ReplacePaddingd(Keyed):
    array = ReplacePadding


def _named(img: NdarrayOrTensor) -> list[tuple[float, float]]:
    """The range of values that the image's meta data call padding, if any."""
    words = str(img.meta.get("dicom_pixel_padding") or "").split() if isinstance(img, MetaTensor) else []
    ends = [float(word) for word in words]
    return [(min(ends), max(ends))] if ends else []
