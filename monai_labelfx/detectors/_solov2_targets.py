# SPDX-License-Identifier: Apache-2.0
"""Which object each cell of SOLOv2 answers for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def mass_centres(masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Centre of mass (N, D) float32 in voxels, and number of voxels (N,) int64, of masks (N, \\*spatial) bool.

    Voxel k has its centre at k + 0.5. An empty mask has its centre at 0.

    Example:
        >>> mass_centres(torch.tensor([[[True, True, False], [False, True, False]]]))
        (tensor([[0.8333, 1.1667]]), tensor([3]))
    """
    axes = range(1, masks.ndim)
    count = masks.flatten(1).sum(dim=1)
    twice = []  # whole numbers: what lies on the border of two cells does so on every device
    for axis in axes:
        line = masks.sum(dim=[other for other in axes if other != axis])
        twice.append((line * (2 * torch.arange(masks.shape[axis], device=masks.device) + 1)).sum(dim=1))
    return torch.stack(twice, dim=1) / (2 * count.clamp(min=1)[:, None]), count


def cell_owners(
    centres: torch.Tensor,
    counts: torch.Tensor,
    boxes: torch.Tensor,
    *,
    grids: Sequence[Sequence[int]],
    extent: Sequence[int],
    ranges: Sequence[tuple[float, float]],
    center_share: float,
) -> torch.Tensor:
    """(cells of all levels,) int64: the object of an image that each cell answers for, or -1.

    An object claims cells of every level whose range holds its size, the D-th root of the volume of its box: those that
    its centre region touches, a box around its centre of mass with ``center_share`` times the sides of its box, but at
    most one cell to either side of that of the centre. Of several objects that claim a cell, that of fewest voxels has
    it, the first of equals.

    Args:
        centres: (N, D) of mass, in voxels.
        counts: (N,) voxels of each object; one without any claims nothing.
        boxes: (N, 2 \\* D).
        grids: cells of each level for each axis.
        extent: what they divide, in voxels.
        ranges: of each level. Smaller objects than the first one begins with are on its level, larger ones than the
            last one ends with on the last.
        center_share: of the sides of a box.
    """
    if not len(boxes):
        return torch.full((sum(map(math.prod, grids)),), -1, device=boxes.device)
    axes = len(extent)
    sides = boxes[:, axes:] - boxes[:, :axes]
    size = (sides.prod(dim=1) ** (1 / axes)).clamp(ranges[0][0], ranges[-1][1])
    reach = center_share / 2 * sides
    owners = []
    for grid, (lowest, highest) in zip(grids, ranges, strict=True):
        claims = ((size >= lowest) & (size <= highest) & (counts > 0))[:, None]
        for axis, (cells, whole) in enumerate(zip(grid, extent, strict=True)):
            middle, near = centres[:, axis] * (cells / whole), reach[:, axis] * (cells / whole)
            first = torch.maximum((middle - near).floor(), middle.floor() - 1)
            end = torch.minimum((middle + near).ceil(), middle.ceil() + 1)
            end = torch.maximum(end, middle.floor() + 1)  # a region without extent is in the cell of the centre
            cell = torch.arange(cells, device=boxes.device)
            along = (cell >= first[:, None]) & (cell < end[:, None])
            claims = (claims[:, :, None] & along[:, None]).flatten(1)
        voxels = torch.where(claims, counts[:, None], torch.iinfo(torch.int64).max)
        owners.append(torch.where(claims.any(dim=0), voxels.argmin(dim=0), -1))
    return torch.cat(owners)
