# SPDX-License-Identifier: Apache-2.0
"""The parts of SSD's network behind its backbone: scaled norm, levels that halve, one convolution for each level."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.networks.layers import Conv
from torch import nn
from torch.nn.functional import pad

from monai_labelfx.detectors._network import flatten_places
from monai_labelfx.networks.vgg16_backbone import VGG16Backbone

_SCALE, _SCALE_CHANNELS = 20.0, 512  # of conv4_3
_FINE_STRIDE = 8
_SMALLEST_SHARE = 0.04  # of the image: the smallest default boxes
_DILATION = 6


class ScaledL2Norm(nn.Module):
    """Unit length of the channels at each place, times a learned scale for each channel (ParseNet, Liu et al. 2015).

    The scale starts with 20 for the 512 channels of conv4_3 (SSD), and with the same size of the result for others.
    In float32 whatever autocast does. ``eps`` is within the root, so gradients are finite where all channels are 0.
    """

    def __init__(self, channels: int, *, eps: float = 1e-10) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), _SCALE * math.sqrt(channels / _SCALE_CHANNELS)))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        full = (
            x if x.dtype == torch.float64 else x.float()
        )  # none of these operators is one that autocast makes smaller
        unit = full * (full.square().sum(dim=1, keepdim=True) + self.eps).rsqrt()
        return (unit * self.weight.view(1, -1, *[1] * (x.ndim - 2))).to(x.dtype)


class HalvingLevel(nn.Module):
    """A convolution of 1 to half of the channels, and one of 3 and stride 2; maps of n voxels become ceil(n / 2).

    The last level has a window of 4 (SSD512): the published one, of stride 1, turns two voxels into one, exactly as
    this of stride 2 does. An axis of stride 1 has a window of 3.
    """

    def __init__(self, spatial_dims: int, in_channels: int, channels: int, stride: Sequence[int], last: bool) -> None:
        super().__init__()
        convolution = Conv[Conv.CONV, spatial_dims]
        self.even = tuple(last and step == 2 for step in stride)
        self.reduce = convolution(in_channels, channels // 2 or 1, 1)
        window, padding = tuple(4 if even else 3 for even in self.even), (1,) * spatial_dims
        self.halve = convolution(channels // 2 or 1, channels, window, tuple(stride), padding)
        for layer in (self.reduce, self.halve):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # a window of 4 loses the last of an odd number of voxels
        missing = [n % 2 if even else 0 for n, even in zip(x.shape[2:], self.even, strict=True)]
        x = torch.relu(self.reduce(x))
        if any(missing):
            x = pad(x, [n for own in reversed(missing) for n in (0, own)])
        return torch.relu(self.halve(x))


class SSDNeck(nn.Module):
    """The maps of a backbone, those before the deepest one normalised, and levels that halve down to one place.

    Args:
        backbone: with ``out_channels`` and ``strides``.
        levels: in all.
        image_size: an axis that has one place for an image of this size is not halved any further.
    """

    def __init__(self, backbone: Any, spatial_dims: int, levels: int, image_size: Sequence[int]) -> None:
        super().__init__()
        self.strides = [tuple(stride) for stride in backbone.strides]
        self.out_channels = list(backbone.out_channels)
        self.norms = nn.ModuleList([ScaledL2Norm(channels) for channels in self.out_channels[:-1]])
        self.extra = nn.ModuleList()
        deepest = self.out_channels[-1]
        missing = levels - len(self.out_channels)
        for number in range(missing):
            stride = tuple(2 if s < n else 1 for n, s in zip(image_size, self.strides[-1], strict=True))
            channels = max(1, deepest // (2 if number == 0 else 4))  # 512 and 256 of 1024
            last = number == missing - 1
            self.extra.append(HalvingLevel(spatial_dims, self.out_channels[-1], channels, stride, last))
            self.strides.append(tuple(s * step for s, step in zip(self.strides[-1], stride, strict=True)))
            self.out_channels.append(channels)

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        levels = [norm(level) for norm, level in zip(self.norms, maps[:-1], strict=True)] + [maps[-1]]
        x = maps[-1]
        for level in self.extra:
            x = level(x)
            levels.append(x)
        return levels


class SSDHead(nn.Module):
    """Class logits and box numbers of all default boxes as one tensor (B, logits + 2 \\* spatial_dims, places).

    Weights start normal, 0.01 for classes and 0.001 for boxes (Fast R-CNN, section 3.1): boxes start as default boxes.

    Args:
        channels: of the map of each level.
        boxes: default boxes of a place of each level.
        logits: classes and the background.
    """

    def __init__(self, spatial_dims: int, channels: Sequence[int], boxes: Sequence[int], logits: int) -> None:
        super().__init__()
        convolution = Conv[Conv.CONV, spatial_dims]
        self.channels = (logits, 2 * spatial_dims)
        pairs = list(zip(channels, boxes, strict=True))
        self.cls_logits = nn.ModuleList([convolution(c, k * logits, 3, padding=1) for c, k in pairs])
        self.bbox_reg = nn.ModuleList([convolution(c, k * 2 * spatial_dims, 3, padding=1) for c, k in pairs])
        for convolutions, spread in ((self.cls_logits, 0.01), (self.bbox_reg, 0.001)):
            for name, parameter in convolutions.named_parameters():
                nn.init.normal_(parameter, std=spread if name.endswith("weight") else 0.0)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        logits = [flatten_places(conv(m), self.channels[0]) for conv, m in zip(self.cls_logits, maps, strict=True)]
        boxes = [flatten_places(conv(m), self.channels[1]) for conv, m in zip(self.bbox_reg, maps, strict=True)]
        return torch.cat([torch.cat(logits, dim=2), torch.cat(boxes, dim=2)], dim=1)


def vgg_backbone(
    backbone: str | Mapping[str, Any] | nn.Module,
    spatial_dims: int,
    in_channels: int,
    norm: Any,
    image_size: Sequence[int],
) -> nn.Module:
    """A backbone from its name, ``"vgg16"``, from keywords of VGG16Backbone, or as it is.

    The third pooling is left out where the smallest default boxes would fall between places of stride 8. The window of
    fc6 spans the map it works on, as the published dilation of 6 does the 32 places of an image of 512.
    """
    if isinstance(backbone, nn.Module):
        for name in ("out_channels", "strides"):
            if not hasattr(backbone, name):
                raise ValueError(f"a backbone must have the attribute {name!r}, {type(backbone).__name__} has none")
        return backbone
    if not isinstance(backbone, Mapping) and backbone != "vgg16":
        raise ValueError(f"backbone must be 'vgg16', keywords of VGG16Backbone or a module, got {backbone!r}")
    options: dict[str, Any] = {} if isinstance(backbone, str) else dict(backbone)
    small = _SMALLEST_SHARE * max(image_size) < _FINE_STRIDE
    options.setdefault("pool_strides", (2, 2, 1 if small else 2, 2))
    steps = [(step,) * spatial_dims if isinstance(step, int) else step for step in options["pool_strides"]]
    strides = [math.prod(axis) for axis in zip(*steps, strict=True)]
    places = [-(-n // s) for n, s in zip(image_size, strides, strict=True)]
    options.setdefault("dilation", tuple(min(_DILATION, max(1, n // 3)) for n in places))
    return VGG16Backbone(spatial_dims, in_channels, **{"norm": norm, **options})
