# SPDX-License-Identifier: Apache-2.0
"""Pictures however they were stored, as the one or three channels that a network takes, in one range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor

from monai_labelfx.transforms._keyed import Keyed
from monai_labelfx.transforms._patches import image_name
from monai_labelfx.transforms.to_single_channel import ToSingleChannel

__all__ = ["ToChannels", "ToChannelsd"]

_WHITE = 255.0
_SIXTEEN_BIT = 65535.0
_TOP = {"1": 1.0, **dict.fromkeys(("L", "LA", "RGB", "RGBA"), _WHITE), **dict.fromkeys(("I;16", "I;16B"), _SIXTEEN_BIT)}
_NO_COLORS = ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV")
_KINDS = {1: "grey", 2: "grey and alpha", 3: "RGB", 4: "RGBA"}


class ToChannels(Transform):
    r"""A picture or volume with three channels, or with one, from grey, grey and alpha, RGB or RGBA.

    Grey is repeated, colour becomes its luminance (:py:class:`ToSingleChannel`). Alpha that is the same everywhere says
    nothing and is dropped; where it differs, the picture is laid on white, the ground of a slide:
    :math:`a c + (1 - a) w`, with a from 0 to 1 and w = 255.

    Values go to 0 to 255, the range of 8-bit pictures. MONAI's readers hand all depths on as floats, so these rules, in
    this order, find the range of a picture, from all channels, alpha too:

    1. uint8: 255 is white;
    2. whole numbers from a file whose mode Pillow has told (``"mode"`` in the meta data): as that says, 8 or 16 bit;
    3. float or bool up to 1: 1 is white. So a float picture of 0 and 1 only counts as one from 0 to 1;
    4. up to 255: 255 is white;
    5. up to 65535: 65535 is white. So 12-bit pictures come out dark: name their range;
    6. everything else, and what has values below 0, is refused.

    Args:
        channels: 3 (default) or 1.
        input_range: ``"auto"`` (default), the rules above; two numbers, which become 0 and 255, with values beyond them
            cut off, such as (0, 4095) for 12 bit; or ``None``: values stay as they are, such as the CT numbers of
            volumes, and alpha must be the same everywhere.

    Input (C, \*spatial) with C from 1 to 4; output (channels, \*spatial), meta kept. uint8 stays uint8, rounded, and
    with ``input_range=None`` any dtype stays; all else becomes float32 (float64 stays).

    Raises:
        ValueError: for other ``channels`` or a range that is none; in the call, for another number of channels, two
            channels of which the second is neither constant nor alpha by the mode of the file, alpha that differs where
            nothing tells what is white, a picture with a palette or in CMYK or the like, values that no rule covers,
            and NaN or infinity.

    Example:
        >>> grey = torch.tensor([[[0, 257, 65535]]])
        >>> ToChannels()(grey).tolist()
        [[[0.0, 1.0, 255.0]], [[0.0, 1.0, 255.0]], [[0.0, 1.0, 255.0]]]
        >>> rgba = torch.tensor([[[9, 9]], [[9, 9]], [[9, 9]], [[255, 0]]], dtype=torch.uint8)
        >>> ToChannels(1)(rgba).tolist()
        [[[9, 255]]]
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, channels: int = 3, *, input_range: str | Sequence[float] | None = "auto") -> None:
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels!r}.")
        if isinstance(input_range, str):
            if input_range != "auto":
                raise ValueError(f"input_range must be 'auto', two numbers or None, got {input_range!r}.")
        elif input_range is not None and (len(input_range) != 2 or not input_range[0] < input_range[1]):
            raise ValueError(f"input_range must be two numbers, low < high, got {input_range!r}.")
        self.channels = channels
        self.input_range = input_range
        self.grey = ToSingleChannel(on_color="luminance")

    def __call__(self, img: NdarrayOrTensor) -> torch.Tensor:
        image = convert_to_tensor(img, track_meta=get_track_meta())
        colors = self._colors(image.as_subclass(torch.Tensor), img)
        if self.channels == 1:
            colors = self.grey(colors).as_subclass(torch.Tensor)
        elif len(colors) == 1:
            colors = colors.expand(3, *colors.shape[1:])
        result = convert_to_dst_type(colors.contiguous(), image, dtype=colors.dtype)[0]
        if self.input_range is not None and _mode(result) is not None:
            result.meta = {**result.meta, "mode": "L" if self.channels == 1 else "RGB"}
        return result

    def _colors(self, values: torch.Tensor, img: Any) -> torch.Tensor:
        """The channels without alpha, in their new range."""
        self._check(values, img)
        colors, alpha = (values[:-1], values[-1:]) if len(values) in (2, 4) else (values, None)
        if alpha is not None and bool((alpha == alpha.flatten()[0]).all()):
            alpha = None
        if self.input_range is None:
            if alpha is not None:
                raise ValueError(
                    f"{image_name(img)} is transparent in parts, and input_range=None does not tell what is white."
                )
            return colors
        low, high = self._range(values, img)
        floating = values.dtype if values.dtype == torch.float64 else torch.float32
        colors = colors.to(floating) if (low, high) == (0.0, _WHITE) else _shares(colors, low, high) * _WHITE
        if alpha is not None:
            white = torch.full_like(colors, _WHITE)
            colors = torch.lerp(white, colors, _shares(alpha, low, high).expand_as(colors))
        return colors.round().to(torch.uint8) if values.dtype == torch.uint8 else colors

    def _range(self, values: torch.Tensor, img: Any) -> tuple[float, float]:
        """The values that become 0 and 255."""
        if self.input_range is not None and not isinstance(self.input_range, str):
            return float(self.input_range[0]), float(self.input_range[1])
        if values.dtype == torch.uint8:
            return 0.0, _WHITE
        least, most = (float(one) for one in values.double().aminmax())
        top = _TOP.get(str(_mode(img)))
        if top is not None and 0 <= least and most <= top and bool((values == values.round()).all()):
            return 0.0, top
        if not (least >= 0 and most <= _SIXTEEN_BIT):
            raise ValueError(
                f"{image_name(img)} must hold values from 0 to 1, 255 or {_SIXTEEN_BIT:.0f}, got {least:g} to "
                f"{most:g}: name its range as input_range, or keep the values with input_range=None."
            )
        if most <= 1 and (values.is_floating_point() or values.dtype == torch.bool):
            return 0.0, 1.0
        return 0.0, _WHITE if most <= _WHITE else _SIXTEEN_BIT

    def _check(self, values: torch.Tensor, img: Any) -> None:
        if values.ndim < 2 or len(values) not in _KINDS:
            kinds = ", ".join(f"{number} ({kind})" for number, kind in _KINDS.items())
            raise ValueError(f"{image_name(img)} must be (C, *spatial) with {kinds}, got shape {tuple(values.shape)}.")
        mode = _mode(img)
        if len(values) == 2 and mode != "LA" and bool((values[1] != values[1].flatten()[0]).any()):
            raise ValueError(
                f"{image_name(img)} has two channels, and the second is no constant alpha: choose one of them, for "
                "example by SplitDimd."
            )
        if mode in _NO_COLORS:
            raise ValueError(
                f"{image_name(img)} is a picture of mode {mode!r}, whose numbers are no RGB colours: store it as RGB."
            )


def _mode(img: Any) -> str | None:
    return img.meta.get("mode") if isinstance(img, MetaTensor) else None


def _shares(values: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Values as floats, low as 0 and high as 1."""
    floating = values if values.dtype == torch.float64 else values.float()
    return ((floating - low) / (high - low)).clamp(0, 1)


class ToChannelsd(Keyed):
    array = ToChannels
