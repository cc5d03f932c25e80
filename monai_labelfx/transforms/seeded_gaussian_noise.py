# SPDX-License-Identifier: Apache-2.0
"""Gaussian noise that belongs to an image: drawn once, the same in every epoch, run and container."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.data import get_track_meta
from monai.transforms import Transform
from monai.utils import TransformBackends, convert_to_tensor

from monai_labelfx.transforms._keyed import Keyed

__all__ = ["SeededGaussianNoise", "SeededGaussianNoised"]


class SeededGaussianNoise(Transform):
    """Add N(0, sigma^2), one fixed realisation per image: the noisy data sets n10 and n20 of the paper.

    The generator is seeded by ``seed`` and a checksum of the image's float32 values and shape. So the same image has
    the same noise whenever and wherever it is loaded, and two different images never share a realisation. The transform
    is not random in MONAI's sense: CacheDataset and PersistentDataset may cache it.

    Args:
        sigma: standard deviation in grey values of the image; the paper uses 10 and 20 (and 0) on 8-bit images.
        seed: another number gives another realisation for every image.

    Input (C, *spatial); output the same shape, float32 for integer dtypes, meta kept. Values are not clipped: clipped
    noise would have a mean, which the blind-spot objective (Noise2Void) must not have.

    Raises:
        ValueError: ``sigma`` is negative or not finite, or ``seed`` is negative.

    Notes:
        The published data sets draw noise per crop of 128 x 128, so that a pixel may occur in training and validation
        with different noise. Here it is once per image: add it before any crop, and split by image. The numbers come
        from numpy's RandomState, whose stream is frozen, and are drawn on the CPU: equal on every device.

    Example:
        >>> image = torch.zeros(1, 8, 8)
        >>> noise = SeededGaussianNoise(10.0)
        >>> bool((noise(image) == noise(image)).all()), bool((noise(image) == noise(image + 1) - 1).all())
        (True, False)
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, sigma: float, *, seed: int = 0) -> None:
        if not (math.isfinite(sigma) and sigma >= 0):
            raise ValueError(f"sigma must be a finite number of at least 0, got {sigma}")
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        self.sigma = sigma
        self.seed = seed

    def __call__(self, img: NdarrayOrTensor) -> torch.Tensor:
        image: torch.Tensor = convert_to_tensor(img, track_meta=get_track_meta())
        if not image.is_floating_point():
            image = image.to(torch.float32)
        if self.sigma == 0:
            return image.clone()
        values = np.ascontiguousarray(image.detach().cpu().as_subclass(torch.Tensor).numpy(), np.float32)
        digest = hashlib.sha256(values.tobytes() + repr((values.shape, int(self.seed))).encode()).digest()
        generator = np.random.RandomState(np.frombuffer(digest, dtype="<u4"))
        noise = torch.as_tensor(generator.standard_normal(values.shape), dtype=image.dtype, device=image.device)
        return image + self.sigma * noise


class SeededGaussianNoised(Keyed):
    array = SeededGaussianNoise
