# SPDX-License-Identifier: Apache-2.0
"""The network of a dense detector: backbone, neck and head, images in and one tensor out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from monai_labelfx.networks.feature_pyramid import FeaturePyramid
from monai_labelfx.networks.resnet_backbone import ResNetBackbone

Shape = tuple[int, ...]
_RESNET = re.compile(r"resnet(18|34|50|101|152)|resnext(50|101|152)_(\d+)x(\d+)d")


class DenseNetwork(nn.Module):
    """Backbone, neck and head as one network that returns one tensor.

    Args:
        backbone: images (B, C, \\*spatial) -> maps, finest first.
        neck: maps -> maps that the head works on.
        head: maps -> (B, channels, places), the levels one after the other, see :py:func:`flatten_places`.
        strides: of the maps of the neck, for each level and axis; a map has ceil(size / stride) voxels.
        gate_channels: channels of the coarsest map of the neck, to add one channel with a logit of "this image holds an
            object", the same at all places. Default ``None``, no such channel.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        head: nn.Module,
        *,
        strides: Sequence[Shape],
        gate_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.strides = [tuple(stride) for stride in strides]
        self.gate = None if gate_channels is None else nn.Linear(gate_channels, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.neck(self.backbone(images))
        raw = self.head(maps)
        if self.gate is None:
            return raw
        logit = self.gate(maps[-1].flatten(2).mean(dim=2))
        return torch.cat([raw, logit[:, :, None].expand(-1, -1, raw.shape[2]).to(raw.dtype)], dim=1)

    def level_shapes(self, image_size: Sequence[int]) -> list[Shape]:
        """Shape of the map of each level for an image of this size."""
        return [tuple(-(-n // s) for n, s in zip(image_size, stride, strict=True)) for stride in self.strides]


class PyramidNeck(nn.Module):
    """A feature pyramid over the maps of a backbone from one level on.

    Args:
        backbone: its maps count from ``backbone.first_level``, 2 (stride 4) where it does not say.
        channels: of every level.
        first_level: finest level; maps of finer ones are not looked at.
        extra: what coarser levels are made from, as of FeaturePyramid.
        extra_levels: how many.
    """

    def __init__(
        self, backbone: Any, spatial_dims: int, channels: int, first_level: int, extra: str, extra_levels: int
    ) -> None:
        super().__init__()
        lowest = getattr(backbone, "first_level", 2)
        highest = lowest + len(backbone.out_channels) - 1
        if not lowest <= first_level <= highest:
            raise ValueError(f"first_level must be {lowest} to {highest} with this backbone, got {first_level}")
        if extra_levels < 0:
            raise ValueError(f"extra_levels must be 0 or more, got {extra_levels}")
        self.skip = first_level - lowest
        self.fpn = FeaturePyramid(
            spatial_dims,
            backbone.out_channels[self.skip :],
            channels,
            extra=extra if extra_levels else "none",
            num_extra=extra_levels,
        )
        self.strides = self.fpn.out_strides(backbone.strides[self.skip :])

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        return self.fpn(maps[self.skip :])


def extra_blocks(extra_from: str) -> str:
    """FeaturePyramid's name for convolutions that make coarser levels of ``"C5"`` or ``"P5"``."""
    known = {"C5": "convs_on_input", "P5": "convs_on_output"}
    if extra_from not in known:
        raise ValueError(f"extra_from must be 'C5' or 'P5', got {extra_from!r}")
    return known[extra_from]


def flatten_places(maps: torch.Tensor, channels: int) -> torch.Tensor:
    """(B, K * channels, \\*spatial), the channels of K anchors one after the other -> (B, channels, places * K).

    Places are in C order, the K anchors of a place together.
    """
    batch, every = maps.shape[:2]
    split = maps.reshape(batch, every // channels, channels, -1)
    return split.permute(0, 2, 3, 1).reshape(batch, channels, -1)


def resnet_backbone(
    backbone: str | Mapping[str, Any] | nn.Module, spatial_dims: int, in_channels: int, norm: Any
) -> nn.Module:
    """A backbone from its name (``"resnet50"``, ``"resnext101_64x4d"``), keywords of ResNetBackbone, or as it is."""
    if isinstance(backbone, nn.Module):
        for name in ("out_channels", "strides"):
            if not hasattr(backbone, name):
                raise ValueError(f"a backbone must have the attribute {name!r}, {type(backbone).__name__} has none")
        return backbone
    if isinstance(backbone, Mapping):
        return ResNetBackbone(spatial_dims, in_channels, **{"norm": norm, **backbone})
    found = _RESNET.fullmatch(backbone)
    if not found:
        raise ValueError(
            f"backbone must be resnet18, 34, 50, 101, 152, resnext50, 101, 152 with groups and width as in "
            f"'resnext101_64x4d', keywords of ResNetBackbone or a module, got {backbone!r}"
        )
    plain, deep, groups, width = found.groups()
    if plain:
        return ResNetBackbone(spatial_dims, in_channels, norm=norm, depth=int(plain))
    return ResNetBackbone(
        spatial_dims, in_channels, norm=norm, depth=int(deep), groups=int(groups), width_per_group=int(width)
    )
