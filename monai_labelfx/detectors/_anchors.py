# SPDX-License-Identifier: Apache-2.0
"""The anchors of each level of a pyramid, from the options of a detector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from monai_labelfx.ops.anchor_grid import anchor_shapes


def iou_per_axis(iou: float, spatial_dims: int) -> float:
    """The IoU in ``spatial_dims`` of two cubes that overlap along each axis as two squares of IoU ``iou`` do.

    The published thresholds are for squares. With every further axis the IoU of the same misfit falls, so at 0.5 a cube
    that is off by a fifth of its side along each axis would already be background.

    Example:
        >>> [round(iou_per_axis(0.5, spatial_dims), 3) for spatial_dims in (2, 3)]
        [0.5, 0.374]
    """
    if spatial_dims == 2:
        return iou  # the same, without rounding
    volume = (2 * iou / (1 + iou)) ** (spatial_dims / 2)
    return volume / (2 - volume)


def level_anchors(
    strides: Sequence[tuple[int, ...]],
    sizes: Sequence[Sequence[Any]] | None,
    strides_per_size: float,
    scales: Sequence[float],
    ratios: Sequence[float],
    spatial_dims: int,
    *,
    rounded: bool = False,
) -> list[torch.Tensor]:
    """For each level its anchor shapes (K, spatial_dims) in voxels: K is the same for all.

    Args:
        strides: of each level, along each axis.
        sizes: of each level: numbers, or shapes of spatial_dims numbers. ``None``: ``strides_per_size`` strides.
        strides_per_size: see ``sizes``.
        scales: factors for every size.
        ratios: see :py:func:`monai_labelfx.ops.anchor_grid.anchor_shapes`.
        spatial_dims: number of axes.
        rounded: halves of the shapes are whole voxels.
    """
    with torch.device("cpu"):  # also where a network is built on "meta"
        return _level_anchors(strides, sizes, strides_per_size, scales, ratios, spatial_dims, rounded)


def _level_anchors(
    strides: Sequence[tuple[int, ...]],
    sizes: Sequence[Sequence[Any]] | None,
    strides_per_size: float,
    scales: Sequence[float],
    ratios: Sequence[float],
    spatial_dims: int,
    rounded: bool,
) -> list[torch.Tensor]:
    if sizes is None:
        sizes = [[[strides_per_size * s for s in stride]] for stride in strides]
    if len(sizes) != len(strides):
        raise ValueError(f"anchor_sizes must have one list for each of the {len(strides)} levels, got {len(sizes)}")
    levels = []
    for level in sizes:
        # a size may be a shape: it stretches the cubes and bars of volume 1. In the order of published weights: long
        # along x (axis 0 of MONAI's pictures) first, and sizes and scales within
        unit = anchor_shapes([1.0], spatial_dims, ratios=ratios).flip(0)[:, None]
        shapes = unit.new_tensor([_shape(size, spatial_dims) for size in level])[:, None]
        factors = unit.new_tensor(list(scales))[:, None]
        levels.append((unit * (shapes * factors).reshape(1, -1, spatial_dims)).reshape(-1, spatial_dims))
    if len({len(level) for level in levels}) != 1 or not len(levels[0]):
        raise ValueError(f"every level must have the same number of anchors, got {[len(level) for level in levels]}")
    return [2 * (level / 2).round() for level in levels] if rounded else levels


def _shape(size: Any, spatial_dims: int) -> list[float]:
    shape = [float(size)] * spatial_dims if isinstance(size, (int, float)) else [float(n) for n in size]
    if len(shape) != spatial_dims or not all(n > 0 for n in shape):
        raise ValueError(f"an anchor size must be a positive number, or {spatial_dims} of them, got {size!r}")
    return shape
