# SPDX-License-Identifier: Apache-2.0
"""The network of a two-stage detector: a pyramid with a proposal head, and the heads that look at proposals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from monai.networks.layers import Conv
from torch import nn

from monai_labelfx.detectors._network import Shape
from monai_labelfx.detectors._packed import pack


class ProposalHead(nn.Module):
    """Objectness and box numbers of all anchors of a map (Ren et al. 2015, section 3.1); weights start normal, 0.01.

    Args:
        spatial_dims: of the maps.
        channels: of the maps.
        anchors: at each place.
        depth: number of convolutions before the two outputs.
    """

    def __init__(self, spatial_dims: int, channels: int, anchors: int, depth: int) -> None:
        super().__init__()
        convolution = Conv[Conv.CONV, spatial_dims]
        self.conv = nn.Sequential(
            *(nn.Sequential(convolution(channels, channels, 3, padding=1), nn.ReLU(inplace=True)) for _ in range(depth))
        )
        self.cls_logits = convolution(channels, anchors, 1)
        self.bbox_pred = convolution(channels, anchors * 2 * spatial_dims, 1)
        for module in self.modules():
            if isinstance(module, convolution):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, C, \\*spatial) -> (B, anchors + anchors * 2 * spatial_dims, \\*spatial)."""
        features = self.conv(features)
        return torch.cat([self.cls_logits(features), self.bbox_pred(features)], dim=1)


class TwoStageNetwork(nn.Module):
    """What every image goes through, packed into one tensor; and the heads that are called with proposals.

    Args:
        backbone: images (B, C, \\*spatial) -> maps, finest first.
        neck: maps -> maps of ``channels`` channels, with ``strides``.
        rpn: the proposal head, run on every map.
        heads: name -> head of the second stage, not run here; they become attributes.
        channels: of the maps.
        anchors: at each place.
        pooled_levels: how many maps, from the finest, the second stage pools from.
        gate: add one number with a logit of "this image holds an object".
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        rpn: nn.Module,
        heads: Mapping[str, nn.Module],
        *,
        strides: Sequence[Shape],
        channels: int,
        anchors: int,
        pooled_levels: int,
        gate: bool,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.rpn = rpn
        for name, head in heads.items():
            self.add_module(name, head)
        self.strides = [tuple(stride) for stride in strides]
        self.channels = channels
        self.anchors = anchors
        self.pooled_levels = pooled_levels
        self.gate = nn.Linear(channels, 1) if gate else None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.neck(self.backbone(images))
        parts = [self.rpn(features) for features in maps] + maps[: self.pooled_levels]
        if self.gate is not None:
            parts.append(self.gate(maps[-1].flatten(2).mean(dim=2)))
        return pack(parts)

    def level_shapes(self, image_size: Sequence[int]) -> list[Shape]:
        """Shape of the map of each level for an image of this size."""
        return [tuple(-(-n // s) for n, s in zip(image_size, stride, strict=True)) for stride in self.strides]

    def part_shapes(self, image_size: Sequence[int]) -> dict[str, Shape]:
        """Shapes of what the output holds for each image, without the number of the gate."""
        shapes = self.level_shapes(image_size)
        found = self.anchors * (1 + 2 * len(image_size))
        parts = {f"rpn_{level}": (found, *shape) for level, shape in enumerate(shapes)}
        return parts | {
            f"map_{level}": (self.channels, *shape) for level, shape in enumerate(shapes[: self.pooled_levels])
        }
