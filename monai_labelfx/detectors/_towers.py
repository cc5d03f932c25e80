# SPDX-License-Identifier: Apache-2.0
"""Towers of convolutions that RetinaNet and FCOS run over every level of a pyramid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.layers import Conv
from torch import nn

from monai_labelfx.detectors._network import flatten_places
from monai_labelfx.networks._norms import make_norm

NORMS = ("none", "group")


class Tower(nn.Module):
    """Convolutions, shared by all levels, and one or more outputs; weights start normal, 0.01 (RetinaNet, section 4.1).

    Args:
        spatial_dims: of the maps.
        channels: of the maps and within the tower.
        depth: number of convolutions, each with ReLU.
        norm: ``"none"``, ``"group"`` for group normalisation (32 groups, or fewer of 8 channels or more), or the pair
            of ``"group"`` and its arguments.
        outputs: name -> channels of each output convolution, which becomes an attribute of that name.
    """

    def __init__(self, spatial_dims: int, channels: int, depth: int, norm: Any, outputs: dict[str, int]) -> None:
        super().__init__()
        name = norm if isinstance(norm, str) else norm[0]
        if name not in NORMS:
            raise ValueError(f"head_norm must be one of {', '.join(map(repr, NORMS))}, got {norm!r}")
        convolution = Conv[Conv.CONV, spatial_dims]
        blocks = []
        for _ in range(depth):
            layers: list[nn.Module] = [convolution(channels, channels, 3, padding=1)]
            if name == "group":
                layers.append(make_norm(norm, spatial_dims, channels))
            blocks.append(nn.Sequential(*layers, nn.ReLU(inplace=True)))
        self.conv = nn.Sequential(*blocks)
        for name, count in outputs.items():
            self.add_module(name, convolution(channels, count, 3, padding=1))
        for module in self.modules():
            if isinstance(module, convolution):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)


class RetinaNetHead(nn.Module):
    """Class logits and box numbers of all anchors as one tensor (B, classes + 2 \\* spatial_dims, places)."""

    def __init__(
        self, spatial_dims: int, channels: int, classes: int, anchors: int, *, depth: int, norm: Any, prior: float
    ) -> None:
        super().__init__()
        self.channels = (classes, 2 * spatial_dims)
        self.classification_head = Tower(spatial_dims, channels, depth, norm, {"cls_logits": anchors * classes})
        self.regression_head = Tower(spatial_dims, channels, depth, norm, {"bbox_reg": anchors * 2 * spatial_dims})
        nn.init.constant_(self.classification_head.get_parameter("cls_logits.bias"), -math.log((1 - prior) / prior))

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        classification: Any = self.classification_head
        regression: Any = self.regression_head
        logits = [flatten_places(classification.cls_logits(classification.conv(m)), self.channels[0]) for m in maps]
        boxes = [flatten_places(regression.bbox_reg(regression.conv(m)), self.channels[1]) for m in maps]
        return torch.cat([torch.cat(logits, dim=2), torch.cat(boxes, dim=2)], dim=1)
