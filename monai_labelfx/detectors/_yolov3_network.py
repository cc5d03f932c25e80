# SPDX-License-Identifier: Apache-2.0
"""Neck and head of YOLOv3: from the coarsest map to the finest, then a small network of its own for each level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.layers import Conv
from torch import nn

from monai_labelfx.detectors._network import flatten_places
from monai_labelfx.networks._norms import make_norm

_SLOPE = 0.1  # of the leaky ReLU below zero, in the authors' code
_FIRST_STD = 0.01  # of the last weights: at the start boxes are their anchors


class YOLONeck(nn.Module):
    """Maps of a backbone, finest first -> as many maps of half their channels, at the same strides.

    The coarsest goes through five convolutions of 1, 3, 1, 3 and 1. For each finer one, what came out is narrowed by a
    convolution of 1, repeated to the size of the finer map, put before it as further channels, and goes through five
    convolutions again.

    Args:
        spatial_dims: of the maps.
        channels: of the incoming maps.
        norm: after each convolution.
    """

    def __init__(self, spatial_dims: int, channels: Sequence[int], norm: Any) -> None:
        super().__init__()
        self.out_channels = [count // 2 for count in channels]
        blocks, narrow = [], []
        for level, (count, half) in enumerate(zip(channels, self.out_channels, strict=True)):
            coarser = level + 1 < len(channels)
            kernels = ((1, half), (3, 2 * half), (1, half), (3, 2 * half), (1, half))
            blocks.append(_row(spatial_dims, count + (half if coarser else 0), kernels, norm))
            if coarser:
                narrow.append(_row(spatial_dims, self.out_channels[level + 1], ((1, half),), norm))
        self.blocks = nn.ModuleList(blocks)
        self.narrow = nn.ModuleList(narrow)

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        last = len(maps) - 1
        levels = [self.blocks[last](maps[last])]
        for level in reversed(range(last)):
            above = F.interpolate(self.narrow[level](levels[0]), size=maps[level].shape[2:], mode="nearest")
            levels.insert(0, self.blocks[level](torch.cat([above, maps[level]], dim=1)))
        return levels


class YOLOHead(nn.Module):
    """Class logits, the logit of "an object" and box numbers as one (B, classes + 1 + 2 \\* spatial_dims, places).

    Each level has a convolution of 3 to twice the channels, and one of 1 to the numbers of its anchors.

    Args:
        spatial_dims: of the maps.
        channels: of the maps.
        classes: that the network tells apart.
        anchors: at each place of each level.
        norm: after the first convolution.
        prior: probability of an object at every anchor at the start.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: Sequence[int],
        classes: int,
        anchors: Sequence[int],
        *,
        norm: Any,
        prior: float,
    ) -> None:
        super().__init__()
        self.channels = classes + 1 + 2 * spatial_dims
        self.conv = nn.ModuleList([_row(spatial_dims, count, ((3, 2 * count),), norm) for count in channels])
        last = []
        for count, kept in zip(channels, anchors, strict=True):
            layer = Conv[Conv.CONV, spatial_dims](2 * count, kept * self.channels, 1)
            nn.init.normal_(layer.weight, std=_FIRST_STD)
            nn.init.zeros_(layer.bias)
            nn.init.constant_(layer.bias.view(kept, self.channels)[:, classes], -math.log((1 - prior) / prior))
            last.append(layer)
        self.pred = nn.ModuleList(last)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        levels = zip(maps, self.conv, self.pred, strict=True)
        raw = [pred(conv(x)) for x, conv, pred in levels]
        return torch.cat([flatten_places(level, self.channels) for level in raw], dim=2)


def _row(spatial_dims: int, channels: int, kernels: Sequence[tuple[int, int]], norm: Any) -> nn.Sequential:
    """Convolutions of (window, channels), each with norm and leaky ReLU."""
    layers: list[nn.Module] = []
    for kernel, out in kernels:
        conv = Conv[Conv.CONV, spatial_dims](channels, out, kernel, padding=kernel // 2, bias=norm is None)
        nn.init.kaiming_normal_(conv.weight, a=_SLOPE, mode="fan_out", nonlinearity="leaky_relu")
        norms = [] if norm is None else [make_norm(norm, spatial_dims, out)]
        layers.append(nn.Sequential(conv, *norms, nn.LeakyReLU(_SLOPE, inplace=True)))
        channels = out
    return nn.Sequential(*layers)
