# SPDX-License-Identifier: Apache-2.0
"""The mask head of R-CNN: a small fully convolutional network on pooled features."""

from __future__ import annotations

from collections import OrderedDict

import torch
from monai.networks.layers import Conv
from torch import nn


class MaskHead(nn.Sequential):
    """Convolutions, a transposed one that doubles the bins, and a mask of each class (He et al. 2017, figure 4).

    (R, C, \\*bins) -> logits (R, classes + 1, \\*twice the bins). Parameters have the names of torchvision, whose
    channel 0 is a background that nothing learns from and nothing reads; class c of a data set is c + 1. Weights start
    normal with the variance 2 / fan-out, those of the logits with a deviation of 0.001, as in Detectron2: with few
    classes, 2 / fan-out would make masks sure of themselves before they have learned.

    Args:
        spatial_dims: of the pooled features.
        in_channels: of the pooled features.
        channels: of all layers within.
        depth: number of convolutions before the transposed one.
        classes: without the background.
    """

    def __init__(self, spatial_dims: int, in_channels: int, channels: int, depth: int, classes: int) -> None:
        convolution, transposed = Conv[Conv.CONV, spatial_dims], Conv[Conv.CONVTRANS, spatial_dims]
        layers: list[tuple[str, nn.Module]] = []
        for number in range(depth):
            before = channels if number else in_channels
            block = nn.Sequential(convolution(before, channels, 3, padding=1), nn.ReLU(inplace=True))
            layers.append((str(number), block))
        layers.append(("conv5_mask", transposed(channels if depth else in_channels, channels, 2, stride=2)))
        layers.append(("relu", nn.ReLU(inplace=True)))
        layers.append(("mask_fcn_logits", convolution(channels, classes + 1, 1)))
        super().__init__(OrderedDict(layers))
        for module in self.modules():
            if isinstance(module, convolution | transposed):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.get_parameter("mask_fcn_logits.weight"), std=0.001)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return super().forward(pooled.to(self.get_parameter("conv5_mask.weight").dtype)).to(pooled.dtype)


def of_classes(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mask of the class (R,) of each box, from logits (R, classes + 1, \\*bins): (R, \\*bins)."""
    return logits[torch.arange(len(labels), device=labels.device), labels + 1]
