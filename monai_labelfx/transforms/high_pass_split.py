# SPDX-License-Identifier: Apache-2.0
"""An image as a high band for the network and a low band that is put back untouched."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import InvertibleTransform
from monai.utils import TransformBackends, convert_to_tensor

from monai_labelfx.ops._wavelet_matrices import check_depth, check_levels, check_mode, filter_length
from monai_labelfx.ops.wavelet import high_pass
from monai_labelfx.transforms._keyed import Keyed

__all__ = ["HighPassSplit", "HighPassSplitd"]


class HighPassSplit(InvertibleTransform):
    """Split an image into (high, low), high + low = image, by :func:`monai_labelfx.ops.high_pass_split`.

    A network that sees only the high band cannot see, and with :func:`monai_labelfx.ops.project_correction` cannot
    move, the smooth part of the CT numbers: an offset on the whole image leaves the high band as it is. Split the whole
    slice or volume, before any crop and before the network is tiled: the bands of a crop are not the crop of the bands
    (hundreds of HU apart at its borders). Replace padding outside of the field of view by air before, since a step of
    1000 HU rings far into the image.

    The inverse takes (high, low) and gives high + low; in the dictionary form it puts ``image`` + ``image_low`` into
    ``image`` and removes ``image_low``.

    Args:
        wavelet: name of a discrete wavelet of PyWavelets. Default ``"db3"`` (the paper).
        level: one number, or one per split axis, 0 for an axis that is left alone (thick slices). Default 6 (the paper,
            for 512 x 512; its temporal bones have 5).
        mode: what lies beyond the border: a mode of PyWavelets except ``"zero"`` and ``"antisymmetric"``, which would
            make an edge of any offset, or ``"orthogonal"``. Default ``"symmetric"`` (the paper's code).
        spatial_dims: how many of the first spatial axes are split; the others are batch, so that 2 splits each slice of
            a volume (C, x, y, z). Default ``None``, all.
        pad: extend each side as the published code does. Default ``False``.

    Input (C, *spatial); output two images of this shape, float32 (float64 for float64), meta kept in both. Computed in
    float64, so that an offset of 1000 HU changes the high band by the rounding of float32 at most.

    Raises:
        ValueError: for an unknown wavelet or mode, one of the two modes, a bad level or ``spatial_dims``; in the call,
            for a level that is too deep for an axis, too few axes, and NaN or infinite values, which would spread.

    Example:
        >>> image = torch.arange(32.0).reshape(1, 4, 8) - 1000
        >>> split = HighPassSplit("haar", level=2)
        >>> high, low = split(image)
        >>> low[0, 0].round(decimals=3).tolist()  # means of blocks of 4 x 4
        [-986.5, -986.5, -986.5, -986.5, -982.5, -982.5, -982.5, -982.5]
        >>> torch.equal(split.inverse((high, low)), image)
        True
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        wavelet: str = "db3",
        level: int | Sequence[int] = 6,
        mode: str = "symmetric",
        *,
        spatial_dims: int | None = None,
        pad: bool = False,
    ) -> None:
        filter_length(wavelet)
        check_mode(mode, pad=pad, keeps_offsets=True)
        if spatial_dims is not None and spatial_dims < 1:
            raise ValueError(f"spatial_dims must be 1 or more, or None for all axes, got {spatial_dims}.")
        check_levels(level, spatial_dims)
        self.wavelet = wavelet
        self.level = level
        self.mode = mode
        self.spatial_dims = spatial_dims
        self.pad = pad

    def __call__(self, img: NdarrayOrTensor) -> tuple[torch.Tensor, torch.Tensor]:
        """High and low band of one unbatched image (C, *spatial)."""
        image: torch.Tensor = convert_to_tensor(img, track_meta=get_track_meta())
        values = image.as_subclass(torch.Tensor)
        name = _name(image)
        dims = image.ndim - 1 if self.spatial_dims is None else self.spatial_dims
        if not 1 <= dims < image.ndim:
            raise ValueError(
                f"{name} of shape {tuple(image.shape)} has too few axes: (C, *spatial) is split, {dims}-D."
            )
        axes = range(1, dims + 1)
        levels = check_levels(self.level, dims)
        check_depth(image.shape, axes, levels, self.wavelet, name)
        if not torch.isfinite(values).all():
            raise ValueError(f"{name} has NaN or infinite values, which the split would spread over whole rows.")
        # float32 would leave 1e-3 HU of an offset of 1000, float64 leaves the rounding of the result
        band = high_pass(values.double(), wavelet=self.wavelet, level=levels, mode=self.mode, axes=axes, pad=self.pad)
        kind = torch.promote_types(values.dtype, torch.float32)
        high = band.to(kind)
        low = values.to(kind) - high
        if not isinstance(image, MetaTensor):
            return high, low
        high, low = (MetaTensor(band).copy_meta_from(image) for band in (high, low))
        self.push_transform(high)
        return high, low

    def inverse(self, data: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """high + low, with the meta of high."""
        high, low = data
        if high.shape != low.shape:
            raise ValueError(
                f"{_name(high)} has a high band of shape {tuple(high.shape)} and a low band of shape "
                f"{tuple(low.shape)}, which must be equal: crop and invert both bands alike."
            )
        if not isinstance(high, MetaTensor):
            return high + torch.as_tensor(low)
        result = MetaTensor(high.as_tensor() + torch.as_tensor(low).as_subclass(torch.Tensor)).copy_meta_from(high)
        self.pop_transform(result)
        return result


class HighPassSplitd(Keyed, InvertibleTransform):
    """Dictionary twin of :py:class:`HighPassSplit`: the high band goes into ``key``, the low band into ``key_low``.

    Its keywords are those of the array transform, which documents them. The inverse needs both bands, of one shape; it
    puts their sum into ``key`` and removes ``key_low``.
    """

    array = HighPassSplit

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            item[key], item[f"{key}_low"] = self.transform(item[key])
        return item

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with the sum of both bands under each key."""
        item = dict(data)
        for key in self.key_iterator(item):
            if f"{key}_low" not in item:
                raise ValueError(
                    f"the item has {key!r} but no '{key}_low' (keys {sorted(map(str, item))}), and without its low "
                    "band a high band is no image."
                )
            item[key] = self.transform.inverse((item[key], item.pop(f"{key}_low")))
        return item


def _name(image: torch.Tensor) -> str:
    return str(image.meta.get("filename_or_obj", "the image")) if isinstance(image, MetaTensor) else "the image"
