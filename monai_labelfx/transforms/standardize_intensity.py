# SPDX-License-Identifier: Apache-2.0
"""Zero mean and unit deviation, with the way back recorded in the image's meta."""

from __future__ import annotations

import math

import torch
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import Transform
from monai.utils import TransformBackends, convert_to_tensor

from monai_labelfx.transforms._keyed import Keyed

__all__ = ["StandardizeIntensity", "StandardizeIntensityd"]


class StandardizeIntensity(Transform):
    """(x - mean) / std over all voxels and channels of the image, float32.

    ``mean`` and ``std`` go into the image's meta as floats, ``intensity_mean`` and ``intensity_std``, so that they
    collate, follow the image through a network, and :py:class:`RestoreIntensity` finds them. A numpy array or a plain
    tensor therefore comes out as a MetaTensor.

    Args:
        mean: value to subtract; None (default) takes the mean of each image.
        std: value to divide by; None (default) takes the (population) deviation of each image. A constant image is
            divided by 1 and becomes 0.

    Input (C, *spatial) of any real dtype; output the same shape, float32, meta kept.

    Raises:
        ValueError: NaN or infinite values in the image, or a ``mean`` or ``std`` that is not finite (std: positive).

    Notes:
        The paper does not say how it normalises; its code subtracts the mean and divides by the deviation of the whole
        training set. Give these two numbers for that. MONAI's NormalizeIntensity does not keep them for the way back.

    Example:
        >>> image = StandardizeIntensity()(torch.tensor([[1.0, 3.0]]))
        >>> image.tolist(), image.meta["intensity_mean"], image.meta["intensity_std"]
        ([[-1.0, 1.0]], 2.0, 1.0)
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, mean: float | None = None, std: float | None = None) -> None:
        if mean is not None and not math.isfinite(mean):
            raise ValueError(f"mean must be a finite number, got {mean}")
        if std is not None and not (math.isfinite(std) and std > 0):
            raise ValueError(f"std must be a positive finite number, got {std}")
        self.mean = mean
        self.std = std

    def __call__(self, img: NdarrayOrTensor) -> torch.Tensor:
        image = convert_to_tensor(img, track_meta=get_track_meta())
        values = torch.as_tensor(image).as_subclass(torch.Tensor).to(torch.float32)
        own_mean = float(values.mean(dtype=torch.float64))
        if not math.isfinite(own_mean):
            name = image.meta.get("filename_or_obj", "image") if isinstance(image, MetaTensor) else "image"
            raise ValueError(f"{name} of shape {tuple(image.shape)} has NaN or infinite values, or no voxels")
        mean = own_mean if self.mean is None else float(self.mean)
        std = self.std
        if std is None:
            deviation = torch.linalg.vector_norm(values - own_mean, dtype=torch.float64)
            std = float(deviation) / math.sqrt(values.numel())
        std = float(std) or 1.0
        result = (values - mean) / std
        if not isinstance(image, MetaTensor):
            return result
        result = MetaTensor(result).copy_meta_from(image)
        result.meta |= {"intensity_mean": mean, "intensity_std": std}
        return result


class StandardizeIntensityd(Keyed):
    array = StandardizeIntensity
