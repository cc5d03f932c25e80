# SPDX-License-Identifier: Apache-2.0
"""Greedy non-maximum suppression of boxes in any number of dimensions, exact and in blocks."""

from __future__ import annotations

import math

import torch

# Boxes that are settled together, and boxes that they are compared with in one go: three tables of that many numbers
# are all that grows with neither, and they stay near the caches. A GPU wants fewer, larger steps.
BLOCK, GPU_BLOCK = 192, 1024
CHUNK, GPU_CHUNK = 2048, 16384


@torch.no_grad()
def greedy_nms(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    iou_threshold: float,
    *,
    classes: torch.Tensor | None = None,
    max_kept: int | None = None,
) -> torch.Tensor:
    r"""Keep the boxes that no better kept box overlaps by more than a threshold.

    In falling order of the scores, each box that is still there is kept, and removes every later one whose
    intersection over union with it exceeds ``iou_threshold``. The kept indices are those of
    ``torchvision.ops.nms``: equal scores go by their place, a NaN score comes first, an IoU at the threshold is kept.
    It takes no more memory than a few copies of the boxes.

    Args:
        boxes: (N, 2 \* spatial_dims), low corner then high corner, half open, anywhere.
        scores: (N,).
        iou_threshold: 0 to 1.
        classes: (N,) any numbers; boxes of different classes never remove each other. To treat the images of a batch
            at once, give numbers that differ between images, too.
        max_kept: keep no more than these best ones. Default ``None``: all.

    Returns:
        (K,) int64 indices of the kept boxes in falling order of their scores.

    Raises:
        ValueError: for shapes that do not fit each other, a threshold beyond 0 to 1, or a negative ``max_kept``.

    Notes:
        Numbers are float32 at least. The IoU is rounded to them and then compared with the threshold as given, in
        double precision, as torchvision does; so an IoU of exactly 0.1 in float32, which is a little more than 0.1,
        is removed at ``iou_threshold=0.1``. A box that is empty, inverted, infinite or NaN overlaps nothing: it is
        kept. Classes are separated exactly, not by moving the boxes apart, which costs coordinates their last digits
        and fails for negative ones.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.nms import greedy_nms
        >>> boxes = torch.tensor([[0, 0, 4, 4], [0, 0, 4, 5], [0, 0, 4, 6]])
        >>> scores = torch.tensor([0.5, 0.9, 0.7])
        >>> greedy_nms(boxes, scores, 0.5).tolist()
        [1]
        >>> greedy_nms(boxes, scores, 0.5, classes=torch.tensor([0, 0, 1])).tolist()
        [1, 2]
    """
    check_boxes(boxes, scores, iou_threshold, classes, max_kept)
    boxes = boxes if boxes.dtype == torch.float64 else boxes.float()
    order = scores.sort(stable=True, descending=True).indices
    volumes, proper = _proper_volumes(boxes)
    kept = ~proper[order]
    places = proper[order].nonzero()[:, 0]  # in the order of the scores
    segments = [(0, len(places), False)]
    groups = None
    if classes is not None:
        groups, by_class = classes[order[places]].sort(stable=True)
        places = places[by_class]
        segments = _segments(groups.unique_consecutive(return_counts=True)[1].tolist(), _block(boxes))
    rows = order[places]
    table = torch.cat((boxes[rows].T, volumes[rows, None].T))  # contiguous coordinates, each of all boxes
    largest = largest_below(iou_threshold, boxes.dtype)
    for begin, end, mixed in segments:
        same = groups[begin:end, None] == groups[begin:end] if groups is not None and mixed else None
        kept[places[begin:end][_settle(table[:, begin:end], same, largest, max_kept)]] = True
    return order[kept][:max_kept]


def _settle(table: torch.Tensor, same: torch.Tensor | None, threshold: float, max_kept: int | None) -> torch.Tensor:
    """Columns of ``table`` that are kept, block by block.

    They are of one class, or they are no more than a block, and ``same`` tells which are of the same class.
    """
    block, chunk = _block(table), CHUNK if table.device.type == "cpu" else GPU_CHUNK
    buffers = table.new_empty(3, min(block, table.shape[1]) * max(block, min(chunk, table.shape[1])))
    index = torch.arange(table.shape[1], device=table.device)
    found: list[torch.Tensor] = []
    count = 0
    while len(index) and (max_kept is None or count < max_kept):
        rows, rest = table[:, :block], table[:, block:]
        hits = _overlap(rows, rows, buffers) > threshold
        if same is not None:
            hits &= same
        alive = _fixed_point(hits.triu_(1)).nonzero()[:, 0]
        found.append(index[:block][alive])
        count += len(alive)
        if not rest.shape[1]:
            break
        rows, index = rows[:, alive], index[block:]
        worst = rest.new_empty(rest.shape[1])
        for part, out in zip(rest.split(chunk, 1), worst.split(chunk), strict=True):
            torch.amax(_overlap(rows, part, buffers), 0, out=out)
        remaining = (worst <= threshold).nonzero()[:, 0]
        table, index = rest[:, remaining], index[remaining]
    return torch.cat(found) if found else index


def _fixed_point(hits: torch.Tensor) -> torch.Tensor:
    """Which boxes of a block stay, where ``hits[i, j]`` says that box i removes the later box j if i stays.

    Each round decides one more link of the longest chain of removals, so that the rounds are few.
    """
    removes = hits.float()
    alive = removes.new_ones(len(removes))
    while True:
        again = (alive @ removes == 0).float()
        if torch.equal(again, alive):
            return alive.bool()
        alive = again


def _overlap(first: torch.Tensor, second: torch.Tensor, buffers: torch.Tensor) -> torch.Tensor:
    """IoU of all pairs of columns (coordinates, then the volume), written into the buffers.

    The operations are in the order of torchvision's, for the same rounding.
    """
    shape = first.shape[1], second.shape[1]
    shared, side, other = buffers[:, : shape[0] * shape[1]].view(3, *shape).unbind()
    *lines, volumes = first.unsqueeze(2).unbind()
    *columns, other_volumes = second.unbind()
    dims = len(lines) // 2
    for axis in range(dims):
        out = side if axis else shared
        torch.minimum(lines[dims + axis], columns[dims + axis], out=out)
        out.sub_(torch.maximum(lines[axis], columns[axis], out=other)).clamp_(min=0)
        if axis:
            shared.mul_(side)
    return shared.div_(torch.add(volumes, other_volumes, out=side).sub_(shared))


def _proper_volumes(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The volumes, and which boxes may overlap others: without the rest there is no NaN among overlaps."""
    low, high = boxes.chunk(2, 1)
    volumes, *sides = (high - low).unbind(1)
    for side in sides:
        volumes = volumes * side
    return volumes, (volumes > 0) & (volumes < math.inf)


def _segments(counts: list[int], block: int) -> list[tuple[int, int, bool]]:
    """Begin and end of runs of boxes sorted by class, and whether a run has several classes.

    Neighbouring small classes share a block, a large class has its own run.
    """
    segments, begin, end, classes = [], 0, 0, 0
    for count in counts:
        if classes and end + count - begin > block:
            segments.append((begin, end, classes > 1))
            begin, classes = end, 0
        end, classes = end + count, classes + 1
    return [*segments, (begin, end, classes > 1)]


def largest_below(threshold: float, dtype: torch.dtype) -> float:
    """The largest number of the type that is not above the threshold: numbers above it are those above this one."""
    rounded = torch.tensor(threshold, dtype=dtype)
    if rounded.item() > threshold:
        rounded = torch.nextafter(rounded, rounded.new_tensor(-math.inf))
    return rounded.item()


def _block(table: torch.Tensor) -> int:
    return BLOCK if table.device.type == "cpu" else GPU_BLOCK


def check_boxes(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    iou_threshold: float,
    classes: torch.Tensor | None = None,
    max_kept: int | None = None,
) -> None:
    """Raise ValueError where the arguments that all suppressions share do not fit."""
    if boxes.ndim != 2 or boxes.shape[1] < 2 or boxes.shape[1] % 2:
        raise ValueError(f"boxes has shape {tuple(boxes.shape)}, expected (N, 2 x spatial_dims).")
    for name, given in (("scores", scores), ("classes", classes)):
        if given is not None and given.shape != boxes.shape[:1]:
            raise ValueError(f"{name} has shape {tuple(given.shape)}, expected ({len(boxes)},), one for each box.")
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"iou_threshold is {iou_threshold}, expected 0 to 1.")
    if max_kept is not None and max_kept < 0:
        raise ValueError(f"max_kept is {max_kept}, expected 0 or more.")
