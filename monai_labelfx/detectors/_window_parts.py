# SPDX-License-Identifier: Apache-2.0
"""Detections that a window has cut: which of them are seen whole elsewhere, and which are parts of one object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from monai_labelfx.ops.box_overlap import box_overlap

_COVERED = 0.5  # share of a cut box inside a whole one
_SECTION = 0.5  # IoU of two parts across the axis that they are joined along
_COMPARABLE = 0.5  # a score below this share of another cannot stand for it
_PAIRS = 1 << 22  # pairs compared at once


class Parts(NamedTuple):
    """Detections (M, ...) of all windows of an image, and the window of each: low and high corner (M, D)."""

    boxes: torch.Tensor
    labels: torch.Tensor
    scores: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    def cut(self, shape: Sequence[int], margins: torch.Tensor) -> torch.Tensor:
        """(M, 2 \\* D) bool: the box ends at this side of its window, low sides first, and the image goes on there."""
        low, high = self.boxes.chunk(2, dim=1)
        at_low = (low - self.low <= margins) & (self.low > 0)
        at_high = (self.high - high <= margins) & (self.high < self.high.new_tensor(shape))
        return torch.cat([at_low, at_high], dim=1)

    def take(self, index: torch.Tensor) -> Parts:
        return Parts(*(value[index] for value in self))


def windows_around(
    boxes: torch.Tensor,
    lows: Sequence[Sequence[int]],
    size: Sequence[int],
    shape: Sequence[int],
    margins: torch.Tensor,
) -> torch.Tensor:
    """(M,) in how many windows, with these low corners, a box is whole; 1 for one that is whole in none.

    Windows are a grid, so each axis is counted alone.
    """
    low, high = boxes.chunk(2, dim=1)
    counts = torch.ones(len(boxes), dtype=torch.int64, device=boxes.device)
    for axis, (length, end) in enumerate(zip(size, shape, strict=True)):
        starts = boxes.new_tensor(sorted({corner[axis] for corner in lows}))
        above = (low[:, axis, None] - starts > margins[axis]) | (starts == 0)
        below = (starts + length - high[:, axis, None] > margins[axis]) | (starts + length == end)
        counts = counts * (above & below).sum(dim=1)
    return counts.clamp(min=1)


def without_covered(parts: Parts, cut: torch.Tensor) -> torch.Tensor:
    """Indices (K,), ascending, of all but the cut boxes that a box of the same class, not cut, stands for."""
    whole, rest = (~cut).nonzero()[:, 0], cut.nonzero()[:, 0]
    better = parts.take(whole)
    stay = [~cut]
    for rows in _rows(len(rest), len(whole)):
        part = parts.take(rest[rows])
        covered = (
            (box_overlap(part.boxes, better.boxes, kind="iof") >= _COVERED)
            & (part.labels[:, None] == better.labels)
            & (better.scores >= _COMPARABLE * part.scores[:, None])
        ).any(dim=1)
        stay.append(torch.zeros_like(cut).index_fill(0, rest[rows][~covered], True))
    return torch.stack(stay).any(dim=0).nonzero()[:, 0]


def join_parts(parts: Parts, cut: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Put the parts of one object together.

    Args:
        parts: M detections.
        cut: (M, 2 \\* D), see :py:meth:`Parts.cut`.

    Returns:
        ``boxes`` (G, 2 \\* D), ``labels`` (G,) and ``scores`` (G,) of G objects, in the order of their first parts, and
        the object (M,) that each detection belongs to.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count, axes = len(parts.boxes), parts.low.shape[1]
    some = cut.any(dim=1).nonzero()[:, 0]
    pairs = [some.new_empty(0, 2)]
    for rows in _rows(len(some), len(some)):
        pairs.append(some[_continued(parts, cut, some[rows], some).nonzero() + some.new_tensor([rows.start, 0])])
    first, second = torch.cat(pairs).cpu().unbind(1)
    graph = coo_matrix((torch.ones(len(first)), (first, second)), shape=(count, count))
    objects, group = connected_components(graph, directed=False)
    index = torch.as_tensor(group, dtype=torch.int64).to(parts.boxes.device)
    low, high = parts.boxes.chunk(2, dim=1)
    place = index[:, None].expand(-1, axes)
    empty = low.new_zeros(objects, axes)
    boxes = torch.cat(
        [
            empty.scatter_reduce(0, place, low, "amin", include_self=False),
            empty.scatter_reduce(0, place, high, "amax", include_self=False),
        ],
        dim=1,
    )
    scores = empty.new_zeros(objects, dtype=parts.scores.dtype).scatter_reduce(
        0, index, parts.scores, "amax", include_self=False
    )
    labels = parts.labels.new_zeros(objects).scatter_reduce(0, index, parts.labels, "amax", include_self=False)
    return boxes, labels, scores, index


def _continued(parts: Parts, cut: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """(R, C) bool: the box of the row goes on in that of the column, which lies higher along one axis."""
    axes = parts.low.shape[1]
    one, other = parts.take(rows), parts.take(columns)
    # lengths of intersection and union along each axis, (R, C, D)
    (low, high), (other_low, other_high) = one.boxes.chunk(2, dim=1), other.boxes.chunk(2, dim=1)
    common = (torch.minimum(high[:, None], other_high) - torch.maximum(low[:, None], other_low)).clamp(min=0)
    sizes, other_sizes = (high - low).clamp(min=0), (other_high - other_low).clamp(min=0)
    found = torch.zeros(len(rows), len(columns), dtype=torch.bool, device=rows.device)
    for axis in range(axes):
        across = [other_axis for other_axis in range(axes) if other_axis != axis]
        inside = common[..., across].prod(dim=2)
        union = sizes[:, None, across].prod(dim=2) + other_sizes[:, across].prod(dim=1) - inside
        further = (one.low[:, None, axis] < other.low[:, axis]) & (other.low[:, axis] <= one.high[:, None, axis])
        facing = cut[rows][:, None, axes + axis] & cut[columns][:, axis]
        found |= further & facing & (inside >= _SECTION * union)
    ratio = torch.minimum(one.scores[:, None], other.scores) >= _COMPARABLE * torch.maximum(
        one.scores[:, None], other.scores
    )
    return found & ratio & (one.labels[:, None] == other.labels)


def _rows(rows: int, columns: int) -> Iterator[slice]:
    """Slices of rows, each with no more than so many pairs."""
    step = max(1, _PAIRS // max(1, columns))
    return (slice(start, min(rows, start + step)) for start in range(0, rows, step))
