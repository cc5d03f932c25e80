# SPDX-License-Identifier: Apache-2.0
"""From a network's output to HU: the correction that it makes, added to the untouched image."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import TransformBackends, convert_to_dst_type

from monai_labelfx.ops.wavelet import project_correction

__all__ = ["ApplyCorrectiond"]


class ApplyCorrectiond(MapTransform):
    r"""``x + strength * P(scale * (prediction - input))``: what a denoising network changes, added to the image in HU.

    For a network that saw the high band H(x) this is low band plus prediction, since x - H(x) is the low band; for one
    that saw the whole image it is the prediction. Written as a correction it has two properties for free: a network
    that changes nothing changes no bit, and ``strength`` mixes input and result linearly.

    Args:
        keys: the prediction, in the units of the network.
        input_key: what the network saw, in the same units. Default ``"image"``.
        reference_key: the image in HU, its padding replaced (see :py:class:`ReplacePadding`). Default ``"hu"``.
        scale: HU of one unit of the network. Default 2000 (released code of the patch-metric paper).
        strength: share s of the correction that is applied, 0 to 1: y = x - s (x - y). Default 1.
        project: keywords of :py:func:`~monai_labelfx.ops.project_correction` but its axes: only the high band of the
            correction is added, so that the network cannot move what is larger than the wavelet, whatever it learned.
            Default ``None``, the correction as it is.
        spatial_dims: spatial axes of the projection: 2 projects each slice of a volume. Default ``None``, all.
        padding_key: mask of the padding, kept as it was. Default ``None``.
        original_key: the image as it was read, for the padding.
        allow_missing_keys: skip keys that the item lacks.

    Shape:
        - all images: (C, \*spatial).
        - output under each key: (C, \*spatial) in HU, float32 (float64 if the reference is), with the meta data of the
          prediction.

    Raises:
        ValueError: for a strength outside 0 to 1, a scale that is not positive, a padding mask without an original, or
            shapes that differ.

    Example:
        >>> import torch
        >>> item = {"pred": torch.tensor([[0.01]]), "image": torch.tensor([[0.02]]), "hu": torch.tensor([[55.0]])}
        >>> ApplyCorrectiond("pred", strength=0.5)(item)["pred"]
        tensor([[45.]])
    """

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]

    def __init__(
        self,
        keys: KeysCollection = "pred",
        *,
        input_key: str = "image",
        reference_key: str = "hu",
        scale: float = 2000.0,
        strength: float = 1.0,
        project: Mapping[str, Any] | None = None,
        spatial_dims: int | None = None,
        padding_key: str | None = None,
        original_key: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if not 0 <= strength <= 1:
            raise ValueError(f"strength must be 0 to 1, got {strength!r}.")
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale must be a positive number of HU, got {scale!r}.")
        if padding_key is not None and original_key is None:
            raise ValueError(f"original_key must name the image that holds the padding of {padding_key!r}, got None.")
        self.input_key, self.reference_key = input_key, reference_key
        self.scale, self.strength = float(scale), float(strength)
        self.project = None if project is None else dict(project)
        self.spatial_dims = spatial_dims
        self.padding_key, self.original_key = padding_key, original_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        reference = _plain(item, self.reference_key)
        reference = reference if reference.dtype == torch.float64 else reference.float()
        given = _plain(item, self.input_key).to(reference)
        for key in self.key_iterator(item):
            prediction = _plain(item, key).to(reference)
            if not prediction.shape == given.shape == reference.shape:
                raise ValueError(
                    f"{key}, {self.input_key} and {self.reference_key} must have one shape, got "
                    f"{tuple(prediction.shape)}, {tuple(given.shape)} and {tuple(reference.shape)}."
                )
            correction = self.scale * (prediction - given)
            if self.project is not None:
                last = correction.ndim if self.spatial_dims is None else 1 + self.spatial_dims
                correction = project_correction(correction, axes=tuple(range(1, last)), **self.project)
            result = reference + self.strength * correction
            if self.padding_key is not None:
                original = _plain(item, str(self.original_key)).to(reference)
                result = torch.where(_plain(item, self.padding_key).to(result.device) != 0, original, result)
            item[key] = _like(result, item[key])
        return item


def _plain(item: Mapping[Hashable, Any], key: str) -> torch.Tensor:
    if key not in item:
        raise KeyError(f"ApplyCorrectiond: the item has no {key!r}; its keys are {sorted(map(str, item))}.")
    return torch.as_tensor(item[key]).as_subclass(torch.Tensor)


def _like(result: torch.Tensor, destination: Any) -> Any:
    if isinstance(destination, MetaTensor):
        return MetaTensor(result).copy_meta_from(destination)
    return convert_to_dst_type(result, destination, dtype=result.dtype)[0]
