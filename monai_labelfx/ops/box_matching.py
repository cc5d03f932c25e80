# SPDX-License-Identifier: Apache-2.0
"""Which box each anchor stands for: by thresholds of IoU, or by the adaptive ones of ATSS."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_labelfx.ops.box_overlap import box_overlap, paired_box_overlap

NEGATIVE, IGNORED = -1, -2

_MOST_PAIRS = 1 << 25  # overlaps at a time, 128 MB in float32; a few tensors of this size are alive
_NO_OVERLAP = 2.0  # what the IoU of no anchor equals
_IN_BOX = 0.01  # voxels that a centre must lie inside by, as in the code of the paper


@torch.no_grad()
def iou_matches(
    boxes: torch.Tensor,
    valid: torch.Tensor,
    anchors: torch.Tensor,
    *,
    positive: float = 0.5,
    negative: float = 0.4,
    best_per_box: bool = True,
    min_best: float = 0.0,
    one_best: bool = False,
) -> torch.Tensor:
    r"""Match every anchor to the box that it overlaps most, if it does so enough.

    With v the IoU of an anchor with its best box (of equal ones the first): matched for :math:`v \ge positive`,
    negative for :math:`v < negative`, ignored between them. Then the best anchors of each box are matched too, however
    low their IoU.

    Args:
        boxes: (B, N, 2 \* D), padded to the same number for all images.
        valid: (B, N) bool, false at padding, whose coordinates are not read.
        anchors: (A, 2 \* D), or (B, A, 2 \* D) for each image, such as proposals.
        positive, negative: thresholds. Default 0.5 and 0.4, RetinaNet; a region proposal network has 0.7 and 0.3, R-CNN
            and SSD 0.5 and 0.5.
        best_per_box: match the best anchors of every box, if their IoU is ``min_best`` at least, and above 0. All that
            tie are matched, each to the box that it overlaps most itself, which may be another one.
        min_best: default 0; 0.3 for the region proposal network of mmdetection.
        one_best: of the best anchors match only the first one, and this to the box itself, as SSD and YOLO do. An
            anchor that is the best of several boxes goes to the one with the highest IoU, of equal ones to the first.

    Returns:
        (B, A) int64: the row of the box, 0 to N - 1; -1 for negative, -2 for ignored. All -1 without boxes.

    Raises:
        TypeError: if ``valid`` is not bool.
        ValueError: if shapes do not fit, or for ``negative`` above ``positive``.

    Notes:
        torchvision takes the anchors of a box that overlaps none for its best ones, and so matches almost all; here
        such a box has no anchor.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.box_matching import iou_matches
        >>> anchors = torch.tensor([[0.0, 0, 4, 4], [0, 2, 4, 6], [0, 8, 4, 12], [8, 8, 9, 9]])
        >>> boxes = torch.tensor([[[0.0, 0, 4, 4], [0, 8, 4, 20]]])
        >>> iou_matches(boxes, torch.tensor([[True, True]]), anchors, positive=0.7, negative=0.3).tolist()
        [[0, -2, 1, -1]]
    """
    _check_boxes(boxes, valid, anchors)
    if not negative <= positive:
        raise ValueError(f"negative must not be above positive, got {negative} and {positive}.")
    places = anchors.shape[-2]
    best = torch.full((len(boxes), places), -1.0, device=boxes.device, dtype=torch.float32)
    matches = torch.zeros_like(best, dtype=torch.int64)
    low_quality = torch.zeros_like(best, dtype=torch.bool)
    tops, top_anchors = [], []
    for first, last in _chunks(boxes, places):
        overlap = box_overlap(boxes[:, first:last], anchors).masked_fill_(~valid[:, first:last, None], -1)
        value, row = overlap.max(1)
        higher = value > best
        best, matches = torch.where(higher, value, best), torch.where(higher, row + first, matches)
        if best_per_box and places:
            top, top_anchor = overlap.max(2)
            top = torch.where((top >= min_best) & (top > 0), top, _NO_OVERLAP)
            if one_best:
                tops.append(top)
                top_anchors.append(top_anchor)
            else:
                low_quality |= (overlap == top[..., None]).any(1)
    unsure = torch.where(best < negative, NEGATIVE, IGNORED)
    matches = torch.where((best >= positive) | low_quality, matches, unsure)
    if tops:
        top, chosen = torch.cat(tops, 1)[..., None], torch.cat(top_anchors, 1)[..., None]
        owners = _owners(chosen, top, top < _NO_OVERLAP, places)
        matches = torch.where(owners >= 0, owners, matches)
    return matches


@torch.no_grad()
def atss_matches(
    boxes: torch.Tensor,
    valid: torch.Tensor,
    anchors: torch.Tensor,
    level_sizes: Sequence[int],
    *,
    num_candidates: int = 9,
    anchors_per_place: int | Sequence[int] = 1,
    center_in_box: bool = True,
) -> torch.Tensor:
    r"""Match anchors by adaptive training sample selection, ATSS (Zhang et al. 2020, algorithm 1).

    The candidates of a box are the anchors of the ``num_candidates`` places of each level that are next to its centre,
    of equally near ones the first. With mean m and standard deviation s (of a sample) of their IoU with the box, those
    of IoU :math:`\ge m + s`, and above 0, are matched, if their centre lies in the box. An anchor that several boxes
    want goes to the one with the highest IoU, of equal ones to the first.

    No box is left without an anchor: one that has none gets the best candidate that no other box has (highest IoU, of
    equal ones the nearest), even with its centre outside; only if other boxes have all of its candidates it has none.

    Args:
        boxes: (B, N, 2 \* D), padded to the same number for all images.
        valid: (B, N) bool, false at padding, whose coordinates are not read.
        anchors: (A, 2 \* D), level after level.
        level_sizes: number of anchors of each level; they add up to A.
        num_candidates: places of a level. Default 9, the paper; nnDetection and MONAI have 4.
        anchors_per_place: anchors that follow one another with the same centre, one number or one for each level.
            Default 1, the paper.
        center_in_box: a match must have its centre inside the box by more than 0.01 voxels. Default ``True``, the
            paper; small objects do better without.

    Returns:
        (B, A) int64: the row of the box, or -1. There is no ignored anchor. All -1 without boxes.

    Raises:
        TypeError: if ``valid`` is not bool.
        ValueError: if shapes or numbers do not fit.

    Notes:
        The paper leaves a box without any anchor where none passes; the last rule is ours. A single candidate has the
        standard deviation 0.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.anchor_grid import anchor_grid
        >>> from monai_labelfx.ops.box_matching import atss_matches
        >>> anchors = anchor_grid([[4, 4]], (1, 4), 4)
        >>> boxes = torch.tensor([[[0.0, 0, 4, 5], [1, 14, 3, 15]]])
        >>> atss_matches(boxes, torch.tensor([[True, True]]), anchors, [4]).tolist()
        [[0, -1, -1, 1]]
    """
    _check_boxes(boxes, valid, anchors)
    sizes = [int(size) for size in level_sizes]
    if anchors.ndim != 2 or min(sizes, default=0) < 0 or sum(sizes) != len(anchors):
        raise ValueError(f"level_sizes must add up to the {tuple(anchors.shape)} anchors, got {tuple(level_sizes)}.")
    per_place = list(anchors_per_place) if isinstance(anchors_per_place, Sequence) else [anchors_per_place] * len(sizes)
    if len(per_place) != len(sizes):
        raise ValueError(f"anchors_per_place must have one number for each of {len(sizes)} levels, got {per_place}.")
    if num_candidates < 1 or any(p < 1 or size % p for size, p in zip(sizes, per_place, strict=True)):
        raise ValueError(
            f"num_candidates and anchors_per_place must be at least 1 and the latter divide {tuple(level_sizes)}, "
            f"got {num_candidates} and {anchors_per_place}."
        )
    if not boxes.shape[1] or not len(anchors):
        return torch.full((len(boxes), len(anchors)), NEGATIVE, device=boxes.device)
    boxes = torch.where(valid[..., None], boxes, 0)
    candidates = _nearest(boxes, anchors, sizes, num_candidates, per_place)
    near = anchors[candidates]
    overlap = paired_box_overlap(boxes[:, :, None], near)
    spread = overlap.std(2) if overlap.shape[2] > 1 else 0.0
    wanted = (overlap > 0) & (overlap >= (overlap.mean(2) + spread)[..., None])
    if center_in_box:
        ndim = boxes.shape[-1] // 2
        centre = (near[..., :ndim] + near[..., ndim:]) / 2
        sides = torch.cat((centre - boxes[:, :, None, :ndim], boxes[:, :, None, ndim:] - centre), -1)
        wanted &= sides.amin(-1) > _IN_BOX
    matches = _owners(candidates, overlap, wanted & valid[..., None], len(anchors))
    rows = torch.arange(boxes.shape[1], device=boxes.device)
    for _ in range(len(rows)):  # hardly ever more than one round, and each serves a box at least
        had = matches.gather(1, candidates.flatten(1)).view(candidates.shape)
        rest = overlap.masked_fill(had >= 0, -1)
        best, place = rest.max(2, keepdim=True)
        poor = valid[..., None] & ~(had == rows[:, None]).any(2, keepdim=True) & (best >= 0)
        if not bool(poor.any()):
            break
        gained = _owners(candidates.gather(2, place), best, poor, len(anchors))
        matches = torch.where(gained >= 0, gained, matches)
    return matches


def _nearest(
    boxes: torch.Tensor, anchors: torch.Tensor, sizes: Sequence[int], number: int, per_place: Sequence[int]
) -> torch.Tensor:
    """Anchors (B, N, candidates) of the places of each level next to the centre of each box, nearest first."""
    ndim, device = boxes.shape[-1] // 2, boxes.device
    targets = (boxes[..., :ndim] + boxes[..., ndim:]).float() / 2
    found, start = [], 0
    for size, together in zip(sizes, per_place, strict=True):
        members = torch.arange(together, device=device)
        level = anchors[start : start + size : together]
        centres = ((level[:, :ndim] + level[:, ndim:]) / 2).float()
        # Whole numbers that no two places share, so that every device finds the same: the bits of a float that is not
        # negative are in its order, and behind them comes the place.
        order = torch.arange(len(level), device=device)
        places = []
        for first, last in _chunks(boxes, len(level)):
            distance = torch.zeros((), device=device)
            for axis in range(ndim):
                distance = distance + (targets[:, first:last, None, axis] - centres[:, axis]).square()
            key = distance.view(torch.int32).long().mul_(1 << 32).add_(order)
            places.append(key.topk(min(number, len(level)), dim=2, largest=False).values % (1 << 32))
        place = torch.cat(places, 1)
        found.append(start + (place[..., None] * together + members).flatten(2))
        start += size
    return torch.cat(found, 2)


def _owners(candidates: torch.Tensor, overlap: torch.Tensor, wanted: torch.Tensor, places: int) -> torch.Tensor:
    """The box (B, places) with the highest overlap among those that want an anchor, of equal ones the first, or -1.

    ``candidates``, ``overlap`` and ``wanted`` are (B, N, candidates). Only largest and smallest values are scattered,
    which do not depend on the order in which a device comes to them.
    """
    images, rows = candidates.shape[:2]
    flat, device = candidates.flatten(1), candidates.device
    value = torch.where(wanted, overlap, -1.0).flatten(1)
    best = torch.full((images, places), -1.0, device=device, dtype=value.dtype).scatter_reduce_(1, flat, value, "amax")
    wins = wanted.flatten(1) & (value == best.gather(1, flat))
    row = torch.arange(rows, device=device)[:, None].expand(candidates.shape[1:]).flatten()
    row = torch.where(wins, row, rows)
    owner = torch.full((images, places), rows, device=device).scatter_reduce_(1, flat, row, "amin")
    return torch.where(owner < rows, owner, NEGATIVE)


def _chunks(boxes: torch.Tensor, places: int) -> list[tuple[int, int]]:
    """First and last row of boxes to take at a time, of all images together."""
    images, rows = boxes.shape[:2]
    step = max(1, _MOST_PAIRS // max(1, images * places))
    return [(first, min(first + step, rows)) for first in range(0, rows, step)]


def _check_boxes(boxes: torch.Tensor, valid: torch.Tensor, anchors: torch.Tensor) -> None:
    if boxes.ndim != 3 or boxes.shape[2] < 2 or boxes.shape[2] % 2:
        raise ValueError(f"boxes must have the shape (B, N, 2 * D), got {tuple(boxes.shape)}.")
    if valid.dtype != torch.bool:
        raise TypeError(f"valid must be bool, got {valid.dtype}.")
    if valid.shape != boxes.shape[:2]:
        raise ValueError(f"valid must have the shape {tuple(boxes.shape[:2])} of the boxes, got {tuple(valid.shape)}.")
    each = anchors.ndim == 3 and len(anchors) == len(boxes)
    if not (anchors.ndim == 2 or each) or anchors.shape[-1] != boxes.shape[2]:
        raise ValueError(
            f"anchors must have the shape (A, {boxes.shape[2]}) or ({len(boxes)}, A, {boxes.shape[2]}), "
            f"got {tuple(anchors.shape)}."
        )
