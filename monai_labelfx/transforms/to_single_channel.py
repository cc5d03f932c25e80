# SPDX-License-Identifier: Apache-2.0
"""Grey pictures that were stored with colour or alpha channels, as one channel."""

from __future__ import annotations

import torch
from monai.config import NdarrayOrTensor
from monai.data import get_track_meta
from monai.transforms import Transform
from monai.utils import TransformBackends, convert_to_tensor

from monai_labelfx.transforms._keyed import Keyed

__all__ = ["ToSingleChannel", "ToSingleChanneld"]

_LUMINANCE = (0.299, 0.587, 0.114)


class ToSingleChannel(Transform):
    """One grey channel from a picture stored as grey, grey and alpha, RGB or RGBA.

    Alpha is dropped. Where the colour channels are equal, one of them is taken, values and dtype untouched.

    Args:
        on_color: what to do where the colour channels differ. "error" (default): raise, because a colour picture among
            grey ones is nearly always a mistake in the datalist, and mixing the colours would hide it. "luminance":
            0.299 R + 0.587 G + 0.114 B (ITU-R BT.601, as Pillow's mode "L"), rounded for integer dtypes. "keep": leave
            all channels as they are where they are not one grey picture, for label maps, whose channels may hold
            objects that overlap.

    Input (C, *spatial) with C in 1 to 4, for "keep" any number; output (1, *spatial), same dtype, meta kept.

    Raises:
        ValueError: more than four channels; two channels whose second is no constant alpha (such as two stains);
            colour with ``on_color="error"``.

    Example:
        >>> grey = torch.arange(6.0).reshape(1, 2, 3)
        >>> rgba = torch.cat([grey, grey, grey, torch.full_like(grey, 255)])
        >>> bool((ToSingleChannel()(rgba) == grey).all())
        True
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, *, on_color: str = "error") -> None:
        if on_color not in ("error", "luminance", "keep"):
            raise ValueError(f"on_color must be 'error', 'luminance' or 'keep', got {on_color!r}")
        self.on_color = on_color

    def __call__(self, img: NdarrayOrTensor) -> torch.Tensor:
        image: torch.Tensor = convert_to_tensor(img, track_meta=get_track_meta())
        channels = image.shape[0]
        if self.on_color == "keep" and not _is_grey(image):
            return image.clone()
        if not 1 <= channels <= 4 or image.ndim < 2:
            raise ValueError(f"expected (C, *spatial) with 1 to 4 channels, got shape {tuple(image.shape)}")
        if channels == 2 and bool((image[1] != image[1].flatten()[0]).any()):
            raise ValueError(
                "the image has two channels and the second is no constant alpha; choose one, for example by SplitDimd"
            )
        grey = image[:1]
        if channels < 3 or bool((image[1:3] == grey).all()):
            return grey.clone()
        if self.on_color == "error":
            raise ValueError(
                "the image is in colour (its channels differ) where a grey one was expected; "
                "take it out of the datalist or ask for on_color='luminance'"
            )
        kind = image.dtype if image.is_floating_point() else torch.float32
        weights = torch.tensor(_LUMINANCE, dtype=kind, device=image.device).reshape(3, *[1] * (image.ndim - 1))
        mixed = (image[:3] * weights).sum(0, keepdim=True)
        return mixed if image.is_floating_point() else mixed.round().to(image.dtype)


def _is_grey(image: torch.Tensor) -> bool:
    """Whether the channels are grey, grey and a constant alpha, or equal colours with or without alpha."""
    channels = image.shape[0]
    if channels == 2:
        return bool((image[1] == image[1].flatten()[0]).all())
    return channels == 1 or (channels in (3, 4) and bool((image[1:3] == image[:1]).all()))


class ToSingleChanneld(Keyed):
    array = ToSingleChannel
