# SPDX-License-Identifier: Apache-2.0
"""What the detectors' backbones share: lists of maps, exact strides, frozen parts, initial weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.data import MetaTensor

from monai_labelfx.networks._any_size import check_counts

_CONV = torch.nn.modules.conv._ConvNd


class Backbone(torch.nn.Module, ABC):
    """Base of networks that turn an image into a list of maps, finest first.

    A backbone sets ``out_channels`` and ``strides`` and defines ``maps`` and ``parts``.

    Args:
        spatial_dims: number of spatial dimensions, 1, 2 or 3.
        in_channels: channels of the image.

    Attributes:
        out_channels: channels of each map.
        strides: per map, the total stride of each axis. The map of an image with n voxels has exactly
            ``ceil(n / stride)`` of them, for every n from 1 on.
        first_level: level of the finest map: 2 for a stride of 4, 3 for one of 8, where nothing else was asked for.

    Raises:
        ValueError: for another number of dimensions or channels than 1 and more; in forward, for an image of another
            rank or number of channels.
    """

    out_channels: list[int]
    strides: list[tuple[int, ...]]
    first_level = 2

    def __init__(self, spatial_dims: int, in_channels: int) -> None:
        super().__init__()
        if spatial_dims not in (1, 2, 3):
            raise ValueError(f"spatial_dims must be 1, 2 or 3, got {spatial_dims}.")
        check_counts(in_channels=in_channels)
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.frozen_stages = -1

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map an image (B, in_channels, *spatial) to maps (B, out_channels[i], *ceil(spatial / strides[i]))."""
        if x.ndim != self.spatial_dims + 2 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"{type(self).__name__} with spatial_dims={self.spatial_dims} and in_channels={self.in_channels} takes "
                f"(B, {self.in_channels}, {', '.join(['size'] * self.spatial_dims)}), got {tuple(x.shape)}."
            )
        return self.maps(x.as_tensor() if isinstance(x, MetaTensor) else x)

    @abstractmethod
    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map a plain tensor of the right shape to the list of maps."""

    @abstractmethod
    def parts(self) -> list[list[torch.nn.Module]]:
        """The layers in the order they run: those of the stem, then those of each stage."""

    def freeze(self, stages: int) -> None:
        """Take the stem (0), or the stem and the first ``stages`` stages, out of training; -1 takes nothing out.

        Frozen layers have no gradient and stay in evaluation mode, so running statistics stay too.

        Raises:
            ValueError: when there are fewer stages.
        """
        last = len(self.parts()) - 1
        if not -1 <= stages <= last:
            raise ValueError(f"frozen_stages must be -1 (none), 0 (the stem) or a stage up to {last}, got {stages}.")
        self.frozen_stages = stages
        for index, part in enumerate(self.parts()):
            for module in part:
                module.requires_grad_(index > stages)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode of everything that is not frozen."""
        super().train(mode)
        for part in self.parts()[: self.frozen_stages + 1]:
            for module in part:
                module.eval()
        return self


class MaxPool(torch.nn.Module):
    """Max pooling of a window of ``kernel`` voxels per axis, with ``ceil(n / stride)`` voxels out of n.

    The last two axes first, then the axis before them: the same maximum for any number of dimensions, from the operator
    for images, whose backward pass PyTorch has in a deterministic form on every device (that of volumes is not). An
    axis of window and stride 1 is left alone.

    Args:
        kernel: window per axis: odd, centred on the voxels 0, s, 2 s, ...; or on every axis equal to the stride, blocks
            from voxel 0, the last one as far as it goes.
        stride: stride per axis.

    Example:
        >>> import torch
        >>> MaxPool((3, 3, 1), (2, 2, 1))(torch.rand(1, 8, 5, 1, 7)).shape
        torch.Size([1, 8, 3, 1, 7])
    """

    def __init__(self, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        self.kernel = tuple(kernel)
        self.stride = tuple(stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        axes = len(self.kernel)
        x = self._pool(x, max(axes - 2, 0), axes)
        return self._pool(x, 0, axes - 2) if axes > 2 else x

    def _pool(self, x: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Pool one or two axes, as those of an image whose other axes are channels or columns."""
        kernel, stride = self.kernel[first:last], self.stride[first:last]
        if all(k == 1 for k in (*kernel, *stride)):
            return x
        outer, sizes, inner = x.shape[2 : first + 2], x.shape[first + 2 : last + 2], x.shape[last + 2 :]
        columns = () if len(sizes) == 2 else (math.prod(inner),)
        rows = x.reshape(x.shape[0], x.shape[1] * math.prod(outer), *sizes, *columns)
        one = (1,) * len(columns)
        blocks = any(k % 2 == 0 for k in kernel)  # they may reach beyond the end; odd windows are padded on both sides
        padding = (*(0 if blocks else k // 2 for k in kernel), *(0 for _ in columns))
        rows = F.max_pool2d(rows, (*kernel, *one), (*stride, *one), padding, ceil_mode=blocks)
        return rows.reshape(x.shape[0], x.shape[1], *outer, *rows.shape[2 : 2 + len(sizes)], *inner)

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}, stride={self.stride}"


def total_strides(steps: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """The total stride per axis after each of the ``steps``."""
    return [tuple(math.prod(axis) for axis in zip(*steps[: end + 1], strict=True)) for end in range(len(steps))]


def he_init(module: torch.nn.Module) -> None:
    """He et al. 2015: normal weights of variance ``2 / fan_out``, where the gradient keeps its size; biases of zero."""
    for layer in module.modules():
        if isinstance(layer, _CONV):
            torch.nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                torch.nn.init.zeros_(layer.bias)
