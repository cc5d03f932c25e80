# SPDX-License-Identifier: Apache-2.0
"""The output of a DenoiSeg network as denoised image and class probabilities."""

from __future__ import annotations

import torch
from monai.config import NdarrayOrTensor
from monai.data import get_track_meta
from monai.transforms import Transform
from monai.utils import TransformBackends, convert_to_tensor

from monai_labelfx.transforms._keyed import Keyed


class SplitDenoiSeg(Transform):
    """Split a network output (C, *spatial) into the denoised image and the class probabilities.

    Returns a mapping: ``"_denoised"``, the leading C - ``num_classes`` channels as they are (absent when there are
    none), and ``"_probabilities"``, the float32 softmax over the last ``num_classes`` channels. The twin writes them
    under ``key + "_denoised"`` and ``key + "_probabilities"``. Metadata is kept.

    Args:
        num_classes: channels of class logits; 3 in DenoiSeg (background, foreground, border).

    Raises:
        ValueError: when ``num_classes`` is below 1 or the output has fewer channels.

    Example:
        >>> import torch
        >>> parts = SplitDenoiSeg()(torch.zeros(4, 8, 8))
        >>> {suffix: tuple(part.shape) for suffix, part in parts.items()}
        {'_denoised': (1, 8, 8), '_probabilities': (3, 8, 8)}
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, num_classes: int = 3) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be 1 or more, got {num_classes}.")
        self.num_classes = num_classes

    def __call__(self, img: NdarrayOrTensor) -> dict[str, torch.Tensor]:
        """Split one unbatched output (C, *spatial)."""
        output: torch.Tensor = convert_to_tensor(img, track_meta=get_track_meta())
        if output.ndim < 2 or output.shape[0] < self.num_classes:
            raise ValueError(
                f"SplitDenoiSeg takes an output of (C, *spatial) with {self.num_classes} or more channels, "
                f"got {tuple(output.shape)}."
            )
        denoised = output.shape[0] - self.num_classes
        # a clone, because a view would keep the whole output alive and share its memory
        parts = {"_denoised": output[:denoised].clone()} if denoised else {}
        return {**parts, "_probabilities": torch.softmax(output[denoised:].float(), dim=0)}


class SplitDenoiSegd(Keyed):
    array = SplitDenoiSeg
