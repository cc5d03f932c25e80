# SPDX-License-Identifier: Apache-2.0
"""The network of BlendMask: that of FCOS, bases of the image, and attention that is computed where it is asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.layers import Conv
from torch import nn
from torch.nn.functional import embedding

from monai_labelfx.detectors._network import DenseNetwork
from monai_labelfx.detectors._packed import pack
from monai_labelfx.detectors._selected_conv import convolution_at
from monai_labelfx.networks._norms import make_norm
from monai_labelfx.ops._resize import resize_linear

Shape = tuple[int, ...]


class BlendMaskNetwork(DenseNetwork):
    """Backbone, neck and head of FCOS, and what masks need: bases, attention and a semantic head.

    It returns the parts that :py:meth:`part_shapes` names, packed into one row of numbers for each image, and as the
    last number the logit of the gate, where there is one.

    Args:
        dense: the network of FCOS, whose modules become parts of this one, under the same names.
        spatial_dims: of the images.
        channels: of the levels of the pyramid.
        levels: how many of them, from the finest on, the bases are made from.
        bases: their number K.
        attention_size: numbers of an object's attention to a base, for each axis.
        base_channels: of the convolutions before the bases.
        semantic: learn the classes of the voxels of the finest level too.
    """

    attention: Any
    head: Any

    def __init__(
        self,
        dense: DenseNetwork,
        spatial_dims: int,
        channels: int,
        *,
        levels: int,
        bases: int,
        attention_size: Shape,
        base_channels: int,
        semantic: bool,
    ) -> None:
        super().__init__(dense.backbone, dense.neck, dense.head, strides=dense.strides)
        self.gate = dense.gate
        self.channels = channels
        self.bases = bases
        self.attention_size = attention_size
        finest = self.strides[0]
        # a map at the voxels of the image is as fine as masks are
        self.growth = tuple(2 if stride > 1 else 1 for stride in finest)
        self.base_scale = tuple(growth / stride for growth, stride in zip(self.growth, finest, strict=True))
        self.bottom = BottomModule(spatial_dims, channels, base_channels, bases, self.strides[:levels], self.growth)
        self.attention = _convolution(spatial_dims, channels, bases * math.prod(attention_size), 3)
        nn.init.normal_(self.attention.weight, std=0.01)
        self.semantic: nn.Module | None = None
        if semantic:
            self.semantic = nn.Sequential(
                _block(spatial_dims, channels, base_channels),
                _block(spatial_dims, base_channels, base_channels),
                _convolution(spatial_dims, base_channels, self.head.classes, 1),
            )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.neck(self.backbone(images))
        places, features = self.head.with_features(maps)
        parts = [places, *features, self.bottom(maps)]
        if self.semantic is not None and self.training:
            parts.append(self.semantic(maps[0]))
        if self.gate is not None:
            parts.append(self.gate(maps[-1].flatten(2).mean(dim=2)))
        return pack(parts)

    def part_shapes(self, image_size: Sequence[int]) -> dict[str, Shape]:
        """The parts of the output for images of this size, without the gate.

        - ``places``: what FCOS says of each place of each level.
        - ``features 0``, ...: the maps of the box tower, which the attention is made from.
        - ``bases``: twice as fine as the finest level.
        - ``semantic``: class logits of the finest level, in training mode only.
        """
        levels = self.level_shapes(image_size)
        fine = tuple(n * growth for n, growth in zip(levels[0], self.growth, strict=True))
        channels = self.head.classes + 1 + 2 * len(fine)
        shapes: dict[str, Shape] = {"places": (channels, sum(map(math.prod, levels)))}
        shapes |= {f"features {level}": (self.channels, *shape) for level, shape in enumerate(levels)}
        shapes["bases"] = (self.bases, *fine)
        if self.semantic is not None and self.training:
            shapes["semantic"] = (self.head.classes, *levels[0])
        return shapes

    def attention_at(self, features: Sequence[torch.Tensor], image: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
        """The attention (P, K, \\*M) of the objects at some places: their image (P,), and number in all levels (P,)."""
        first, found, rows = 0, [], []
        for maps in features:
            count = maps.shape[2:].numel()
            mine = ((place >= first) & (place < first + count)).nonzero()[:, 0]
            found.append(convolution_at(self.attention, maps, image[mine], place[mine] - first))
            rows.append(mine)
            first += count
        every = embedding(torch.cat(rows).argsort(), torch.cat(found))
        return every.unflatten(1, (self.bases, *self.attention_size))


class BottomModule(nn.Module):
    """Maps of some levels -> K bases, on a grid ``growth`` times as fine as that of the finest level.

    A convolution of each level, resized to the finest and added up; three convolutions, linear upsampling, another one,
    and one of 1. All have group normalisation and ReLU but the last.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        channels: int,
        bases: int,
        strides: Sequence[Shape],
        growth: Shape,
    ) -> None:
        super().__init__()
        self.ratios = [[own / fine for own, fine in zip(stride, strides[0], strict=True)] for stride in strides]
        self.growth = growth
        self.refine = nn.ModuleList(_block(spatial_dims, in_channels, channels) for _ in strides)
        self.tower = nn.Sequential(*(_block(spatial_dims, channels, channels) for _ in range(3)))
        self.last = nn.Sequential(
            _block(spatial_dims, channels, channels), _convolution(spatial_dims, channels, bases, 1)
        )

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        size = maps[0].shape[2:]
        refined = [refine(features) for refine, features in zip(self.refine, maps, strict=False)]
        inside: Any = (..., *(slice(n) for n in size))
        total = refined[0]
        for features, ratio in zip(refined[1:], self.ratios[1:], strict=True):
            # a coarse map may reach beyond the finest one: resized by the ratio of strides, voxels stay where they are
            reach = [math.ceil(n * r) for n, r in zip(features.shape[2:], ratio, strict=True)]
            total = total + resize_linear(features, reach)[inside]
        total = self.tower(total)
        fine = [n * growth for n, growth in zip(size, self.growth, strict=True)]
        return self.last(resize_linear(total, fine))


def _block(spatial_dims: int, in_channels: int, channels: int) -> nn.Sequential:
    convolution = _convolution(spatial_dims, in_channels, channels, 3, bias=False)
    return nn.Sequential(convolution, make_norm("group", spatial_dims, channels), nn.ReLU(inplace=True))


def _convolution(spatial_dims: int, in_channels: int, channels: int, kernel: int, *, bias: bool = True) -> Any:
    """Starts as those of the pyramid: uniform, of variance 1 / fan_in."""
    convolution: Any = Conv[Conv.CONV, spatial_dims](in_channels, channels, kernel, padding=kernel // 2, bias=bias)
    nn.init.kaiming_uniform_(convolution.weight, a=1)
    if bias:
        nn.init.zeros_(convolution.bias)
    return convolution
