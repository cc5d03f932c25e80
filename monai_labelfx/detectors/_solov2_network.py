# SPDX-License-Identifier: Apache-2.0
"""The network of SOLOv2: class logits and kernel features of the cells of each level, and one map of mask features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.layers import Conv
from torch import nn

from monai_labelfx.detectors._network import Shape
from monai_labelfx.detectors._packed import pack
from monai_labelfx.networks._norms import make_norm
from monai_labelfx.ops._resize import resize_linear

_MOST_CHANNELS = {
    2: (512, 128, 256),
    3: (256, 64, 128),
}  # of towers, mask branch and mask features; 2-D as in the paper
_FIRST_STD = 0.01  # of the weights of the heads
_SLACK = 1e-6  # of a cell: 800 / (800 / 36) is more than 36


def solov2_widths(
    spatial_dims: int, channels: int, head: int | None, branch: int | None, mask: int | None
) -> dict[str, int]:
    """Channels of towers, mask branch and mask features, where they are not given, from those of the pyramid."""
    most = _MOST_CHANNELS[spatial_dims]
    usual = (2 * channels, channels // 2, channels)
    names = ("head_channels", "branch_channels", "mask_channels")
    return {
        name: max(1, min(one, limit)) if given is None else given
        for name, given, one, limit in zip(names, (head, branch, mask), usual, most, strict=True)
    }


class SOLOv2Network(nn.Module):
    """Images (B, C, \\*spatial) -> (B, 1, numbers), packed as :py:meth:`part_shapes` says.

    The levels of the neck are resampled to grids of cells, and go through two towers that all levels share: one ends in
    class logits, the other, which also sees coordinates, in kernel features. The convolution ``kernel``, that makes the
    kernel of a mask of these, is run by the detector at chosen cells.

    The mask branch brings the levels that come from the backbone, with coordinates, to the size of the finest one, by a
    convolution and an upsampling for each level between, and adds them up. One convolution more follows where
    ``mask_stride`` is finer than the finest level, and one of window 1. Maps are resampled by the ratio of their
    strides, so that their voxels stay where they are for any size of the image.

    Args:
        backbone: images -> maps, finest first.
        neck: maps -> maps of as many channels each, with ``strides``.
        spatial_dims: of the images.
        channels: of the maps of the neck.
        classes: that the network tells apart.
        cells: size of the cells of each level in voxels of the image, for each axis.
        extra_levels: coarsest levels of the neck, that the mask branch leaves out.
        depth, head_channels: of the towers.
        branch_channels: of the maps that the mask branch adds up.
        mask_channels: of the mask features, and numbers of a kernel.
        mask_stride: of the mask features, for each axis.
        norm: after each convolution.
        prior: class score at the start.
        gate: append the logit of "this image holds an object".
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: Any,
        spatial_dims: int,
        channels: int,
        classes: int,
        *,
        cells: Sequence[Sequence[float]],
        extra_levels: int,
        depth: int,
        head_channels: int,
        branch_channels: int,
        mask_channels: int,
        mask_stride: Sequence[int],
        norm: Any,
        prior: float,
        gate: bool,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.strides: list[Shape] = [tuple(stride) for stride in neck.strides]
        self.cells = [tuple(float(size) for size in level) for level in cells]
        self.mask_stride = tuple(mask_stride)
        self.counts = (classes, head_channels, mask_channels)
        convolution = Conv[Conv.CONV, spatial_dims]
        layer = (spatial_dims, norm)
        tower = [head_channels] * depth
        self.class_tower = _row(*layer, [channels, *tower])
        self.kernel_tower = _row(*layer, [channels + spatial_dims, *tower])
        self.cls_logits = convolution(head_channels, classes, 3, padding=1)
        self.kernel = convolution(head_channels, mask_channels, 3, padding=1)
        finest = len(self.strides) - extra_levels
        branch = []
        for level in range(finest):
            steps = [[channels + spatial_dims, branch_channels], *[[branch_channels] * 2] * (level - 1)]
            branch.append(nn.ModuleList([_row(*layer, step) for step in steps]))
        self.mask_branch = nn.ModuleList(branch)
        finer = self.mask_stride != self.strides[0]
        self.refine = _row(*layer, [branch_channels] * 2) if finer else None
        self.mask_features = _row(*layer, [branch_channels, mask_channels], window=1)
        self.gate = nn.Linear(channels, 1) if gate else None
        for head in (self.class_tower, self.kernel_tower, self.cls_logits, self.kernel):
            for module in head.modules():
                if isinstance(module, convolution):
                    nn.init.normal_(module.weight, std=_FIRST_STD)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        nn.init.constant_(self.cls_logits.bias, -math.log((1 - prior) / prior))

    # --- shapes ----------------------------------------------------------------------------------------------------
    def level_shapes(self, image_size: Sequence[int]) -> list[Shape]:
        """Shape of the map of each level for an image of this size."""
        return [tuple(-(-n // s) for n, s in zip(image_size, stride, strict=True)) for stride in self.strides]

    def extent(self, image_size: Sequence[int]) -> Shape:
        """What the finest map covers, in voxels: the image, and up to a stride more along each axis."""
        return tuple(n * s for n, s in zip(self.level_shapes(image_size)[0], self.strides[0], strict=True))

    def grids(self, image_size: Sequence[int]) -> list[Shape]:
        """Number of cells of each level for each axis: as many as cover the extent, which they divide evenly."""
        extent = self.extent(image_size)
        return [
            tuple(max(1, math.ceil(n / size - _SLACK)) for n, size in zip(extent, level, strict=True))
            for level in self.cells
        ]

    def mask_shape(self, image_size: Sequence[int]) -> Shape:
        """Shape of the map of mask features."""
        return tuple(-(-n // s) for n, s in zip(image_size, self.mask_stride, strict=True))

    def part_shapes(self, image_size: Sequence[int]) -> dict[str, Shape]:
        """What the row of an image holds, but for the gate: class logits and kernel features of each level's cells, and
        the mask features."""
        classes, features, masks = self.counts
        grids = self.grids(image_size)
        parts = {f"logits{level}": (classes, *grid) for level, grid in enumerate(grids)}
        parts |= {f"features{level}": (features, *grid) for level, grid in enumerate(grids)}
        return parts | {"masks": (masks, *self.mask_shape(image_size))}

    # --- the call --------------------------------------------------------------------------------------------------
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        size = tuple(images.shape[2:])
        extent, grids = self.extent(size), self.grids(size)
        maps = self.neck(self.backbone(images))
        logits, features = [], []
        for level, stride, grid in zip(maps, self.strides, grids, strict=True):
            cells = [n / count for n, count in zip(extent, grid, strict=True)]
            seen = resize_linear(level, grid, [c / s for c, s in zip(cells, stride, strict=True)])
            logits.append(self.cls_logits(self.class_tower(seen)))
            features.append(self.kernel_tower(with_coordinates(seen, cells, extent)))
        parts = [*logits, *features, self._masks(maps, size)]
        if self.gate is not None:
            parts.append(self.gate(maps[-1].flatten(2).mean(dim=2)))
        return pack(parts)

    def _masks(self, maps: Sequence[torch.Tensor], image_size: Shape) -> torch.Tensor:
        extent, levels = self.extent(image_size), []
        for number, steps in enumerate(self.mask_branch):
            level = with_coordinates(maps[number], self.strides[number], extent)
            for place, step in enumerate(steps.children()):
                level = step(level)
                if number:
                    finer, own = self.strides[number - place - 1], self.strides[number - place]
                    ratios = [f / o for f, o in zip(finer, own, strict=True)]
                    level = resize_linear(level, maps[number - place - 1].shape[2:], ratios)
            levels.append(level)
        total = torch.stack(levels).sum(dim=0)
        if self.refine is not None:
            ratios = [new / old for new, old in zip(self.mask_stride, self.strides[0], strict=True)]
            total = self.refine(resize_linear(total, self.mask_shape(image_size), ratios))
        return self.mask_features(total)


def with_coordinates(maps: torch.Tensor, steps: Sequence[float], extent: Sequence[int]) -> torch.Tensor:
    """Maps (B, C, \\*spatial) with D channels more: where the centre of each voxel is, -1 to 1 over the extent.

    Example:
        >>> with_coordinates(torch.zeros(1, 1, 2, 4), (4, 2), (8, 8))[0, 1:].tolist()[1][0]
        [-0.75, -0.25, 0.25, 0.75]
    """
    size = maps.shape[2:]
    parts = [maps]
    for axis, (count, step, whole) in enumerate(zip(size, steps, extent, strict=True)):
        line = (torch.arange(count, device=maps.device, dtype=maps.dtype) + 0.5) * (2 * step / whole) - 1
        shape = [1] * maps.ndim
        shape[2 + axis] = count
        parts.append(line.reshape(shape).expand(len(maps), 1, *size))
    return torch.cat(parts, dim=1)


def _row(spatial_dims: int, norm: Any, channels: Sequence[int], *, window: int = 3) -> nn.Sequential:
    """Convolutions with norm and ReLU from each number of channels to the next."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip(channels[:-1], channels[1:], strict=True):
        layers.append(
            Conv[Conv.CONV, spatial_dims](inputs, outputs, window, padding=window // 2, bias=norm in (None, "none"))
        )
        layers.append(make_norm(None if norm == "none" else norm, spatial_dims, outputs))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
