# SPDX-License-Identifier: Apache-2.0
"""What the networks that pool and come back share: any image size, input checks, strides per axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import MetaTensor, get_track_meta
from monai.utils import ensure_tuple_rep

_BATCH_NORM = torch.nn.modules.batchnorm._BatchNorm
_INSTANCE_NORM = torch.nn.modules.instancenorm._InstanceNorm


class AnySizeNetwork(torch.nn.Module):
    """Base of networks whose ``run_padded`` wants sizes that are multiples of ``divisor``.

    Images are padded at the far end of each axis by repeating the outermost voxel, and the output is cropped back. A
    MetaTensor is run as a plain tensor and the result carries its metadata.

    Args:
        spatial_dims: number of spatial dimensions.
        in_channels: channels of the image.
        out_channels: channels of the output.
        strides: one tuple per pooling, one entry per axis; their products are ``divisor``.

    Raises:
        ValueError: in forward, for an input of another rank or number of channels, an empty image, or one whose deepest
            level leaves batch norm (in training) or instance norm a single voxel.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, strides: Sequence[tuple[int, ...]]
    ) -> None:
        super().__init__()
        check_counts(in_channels=in_channels, out_channels=out_channels)
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.divisor = tuple(math.prod(level[axis] for level in strides) for axis in range(spatial_dims))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map an image (B, in_channels, *spatial) to (B, out_channels, *spatial)."""
        if not torch.jit.is_scripting():
            if not torch.jit.is_tracing():
                self._check(x)
            if isinstance(x, MetaTensor):
                result = self._run(x.as_tensor())
                return MetaTensor(result).copy_meta_from(x, copy_attr=False) if get_track_meta() else result
        return self._run(x)

    def run_padded(self, x: torch.Tensor) -> torch.Tensor:
        """Map a plain tensor whose sizes are multiples of ``divisor``."""
        raise NotImplementedError

    def _run(self, x: torch.Tensor) -> torch.Tensor:
        size = x.shape[2:]
        pad: list[int] = []
        for axis in range(self.spatial_dims):  # F.pad counts from the last axis
            last = self.spatial_dims - 1 - axis
            pad += [0, (self.divisor[last] - size[last] % self.divisor[last]) % self.divisor[last]]
        return F.pad(self.run_padded(F.pad(x, pad, mode="replicate")), [-p for p in pad])

    def _check(self, x: torch.Tensor) -> None:
        name = type(self).__name__
        if x.ndim != self.spatial_dims + 2 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"{name} with spatial_dims={self.spatial_dims} and in_channels={self.in_channels} takes "
                f"(B, {self.in_channels}, {', '.join(['size'] * self.spatial_dims)}), got {tuple(x.shape)}."
            )
        if any(n < 1 for n in x.shape[2:]):
            raise ValueError(f"{name} got an image without voxels, of shape {tuple(x.shape)}.")
        if any(n > d for n, d in zip(x.shape[2:], self.divisor, strict=True)):
            return  # the deepest level has two voxels or more
        instance = any(isinstance(m, _INSTANCE_NORM) for m in self.modules())
        batch = self.training and x.shape[0] == 1 and any(isinstance(m, _BATCH_NORM) for m in self.modules())
        if instance or batch:
            raise ValueError(
                f"{'Instance' if instance else 'Batch'} norm has one voxel to normalise when a batch of shape "
                f"{tuple(x.shape)} is pooled by {self.divisor}: use larger crops, more images per batch, fewer levels "
                "or another norm."
            )


def check_counts(**counts: int) -> None:
    """Raise ValueError unless every count is 1 or more."""
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}.")


def strides_per_level(strides: Any, levels: int, spatial_dims: int) -> list[tuple[int, ...]]:
    """One stride per level and axis, from one number, one per axis, or one such entry per level.

    Raises:
        ValueError: for entries that are not whole numbers of 1 or more, or not as many as there are levels or axes, and
            for ``spatial_dims`` other than 1, 2 and 3.
    """
    if spatial_dims not in (1, 2, 3):
        raise ValueError(f"spatial_dims must be 1, 2 or 3, got {spatial_dims}.")
    if isinstance(strides, Sequence) and any(isinstance(entry, Sequence) for entry in strides):
        if len(strides) != levels:
            raise ValueError(f"strides per level must have {levels} entries, got {len(strides)}: {strides!r}.")
        return [per_axis("strides of a level", entry, spatial_dims) for entry in strides]
    return [per_axis("strides", strides, spatial_dims)] * levels


def per_axis(name: str, value: Any, spatial_dims: int) -> tuple[int, ...]:
    """One whole number of 1 or more per axis."""
    values = ensure_tuple_rep(value, spatial_dims) if isinstance(value, int) else value
    if not isinstance(values, Sequence) or len(values) != spatial_dims:
        raise ValueError(f"{name} must be one number or {spatial_dims}, one per axis, got {value!r}.")
    if any(not isinstance(v, int) or v < 1 for v in values):
        raise ValueError(f"{name} must hold whole numbers of 1 or more, got {value!r}.")
    return tuple(values)
