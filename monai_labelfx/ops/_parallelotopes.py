# SPDX-License-Identifier: Apache-2.0
"""Masks of parallelotopes, row of voxels by row of voxels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from monai_labelfx.ops.crossing_lines import WHOLE

_CHUNK = 2**23  # voxels written at a time


def filled_parallelotopes(
    corner: torch.Tensor,
    edges: torch.Tensor,
    image: torch.Tensor,
    number: int,
    spatial_shape: Sequence[int],
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """The voxels whose centres lie inside the parallelotopes of each image.

    With u the coordinates along the edges, a point is inside where ``0 <= u_d < 1`` for every edge d. Along a row of
    voxels u is linear, so a row meets a parallelotope in one run of voxels, and the time grows with the number of rows
    whatever way the edges run.

    Args:
        corner: (N, axes) float64 in voxels, voxel k reaching from k to k + 1, on the CPU.
        edges: (N, axes, axes) float64, edge d in row d, linearly independent, on the CPU.
        image: (N,) int64 below ``number``, on the CPU.
        number: number of images.
        spatial_shape: voxels per spatial axis.
        device: where to make the mask. Default ``None``, the CPU.

    Returns:
        (number, \\*spatial) bool, the union of the parallelotopes of each image. A centre that lies on a side along an
        axis belongs to the parallelotope on its upper side, up to 0.001 voxels.

    Example:
        >>> corner, edges = torch.tensor([[2.5, 0.0]]).double(), torch.tensor([[[2.5, 2.5], [-2.5, 2.5]]]).double()
        >>> filled_parallelotopes(corner, edges, torch.tensor([0]), 1, (5, 5))[0].int().tolist()
        [[0, 0, 1, 0, 0], [0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 1, 1, 1, 0], [0, 0, 1, 0, 0]]
    """
    shape = list(spatial_shape)
    start = _first_centre(corner + edges.clamp(max=0).sum(1), shape)
    count = (_first_centre(corner + edges.clamp(min=0).sum(1), shape) - start).clamp(min=0)
    rows = count[:, :-1].prod(1) * (count[:, -1] > 0)  # of the box around each, as far as it lies in the image
    total, longest = int(rows.sum()), max(count[:, -1].tolist(), default=0)
    inverse = torch.linalg.inv(edges) if len(edges) else edges
    tables = [table.to(device) for table in (corner, inverse, start, count, image, rows)]
    result = torch.zeros(number * math.prod(shape) + 1, dtype=torch.bool, device=device)  # the last one is thrown away
    chunk = max(_CHUNK // max(longest, 1), 1)
    for begin in range(0, total, chunk):
        row = torch.arange(begin, min(begin + chunk, total), device=device)
        base, first, end = _runs(row, shape, *tables)
        column = first[:, None] + torch.arange(longest, device=device)
        index = torch.where(column < end[:, None], base[:, None] + column, len(result) - 1)
        result.index_fill_(0, index.flatten(), True)
    return result[:-1].view(number, *shape)


def _runs(
    row: torch.Tensor,
    shape: list[int],
    corner: torch.Tensor,
    inverse: torch.Tensor,
    start: torch.Tensor,
    count: torch.Tensor,
    image: torch.Tensor,
    rows: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Flat index at which each row begins, its first column inside the parallelotope, and the one after the last."""
    ends = rows.cumsum(0)
    owner = torch.searchsorted(ends, row, right=True)
    row = row - (ends - rows)[owner]
    inverse, corner, start, count = inverse[owner], corner[owner], start[owner], count[owner]
    base, stride = image[owner] * math.prod(shape), shape[-1]
    local = -corner[:, -1:] * inverse[:, -1]  # u at the beginning of the row
    for axis in reversed(range(len(shape) - 1)):
        place = start[:, axis] + row % count[:, axis]
        row = row // count[:, axis]
        local = local + (place + 0.5 - corner[:, axis])[:, None] * inverse[:, axis]
        base, stride = base + place * stride, stride * shape[axis]
    slope, close = inverse[:, -1], WHOLE * inverse.norm(dim=1)
    parallel = slope.abs() * shape[-1] <= close
    apart = parallel & ((local < -close) | (local > 1 + close))
    slope = slope.masked_fill(parallel, 1)
    sides = torch.stack((-local / slope, (1 - local) / slope))
    first = sides.amin(0).masked_fill_(parallel, -math.inf).masked_fill_(apart, math.inf).amax(1)
    end = sides.amax(0).masked_fill_(parallel, math.inf).amin(1)
    low, high = start[:, -1], start[:, -1] + count[:, -1]
    first, end = ((side - (0.5 + WHOLE)).ceil().clamp(low, high).long() for side in (first, end))
    return base, first, end


def _first_centre(point: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """The first voxel of the image (N, axes) whose centre is not below the point; the number of voxels if none is."""
    size = torch.tensor(shape)
    return (point - (0.5 + WHOLE)).ceil().clamp(torch.zeros_like(size), size).long()
