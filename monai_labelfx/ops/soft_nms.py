# SPDX-License-Identifier: Apache-2.0
"""Soft non-maximum suppression: boxes that better ones overlap lose score instead of being removed."""

from __future__ import annotations

import math

import torch

from monai_labelfx.ops.box_overlap import paired_box_overlap
from monai_labelfx.ops.nms import check_boxes

SOFT_METHODS = ("gaussian", "linear")


@torch.no_grad()
def soft_nms(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    *,
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 0.001,
    method: str = "gaussian",
    classes: torch.Tensor | None = None,
    max_kept: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Lower the score of each box by those that overlap it and have more (Bodla et al. 2017, equations 2 and 3).

    Again and again the box of the highest score leaves with the score that it has by then, and each that stays behind
    with an intersection over union u with it has its score multiplied:

    - ``"linear"``: by 1 - u where u > ``iou_threshold``;
    - ``"gaussian"``: by exp(-u ** 2 / ``sigma``).

    Args:
        boxes: (N, 2 \* spatial_dims), low corner then high corner, half open.
        scores: (N,) finite, 0 or more.
        iou_threshold: 0 to 1, only for ``"linear"``. Default 0.3, as in the authors' code.
        sigma: more than 0, only for ``"gaussian"``. Default 0.5, as in the paper.
        min_score: boxes whose score is or falls below it are dropped. Default 0.001, as in the authors' code.
        method: see above. Default as recommended in the paper.
        classes: (N,) boxes of different classes leave each other alone. Default ``None``: all are one class.
        max_kept: keep no more than these best ones. Default ``None``: all.

    Returns:
        Indices (K,) int64 of the boxes that stay, in falling order of their new scores, and these scores (K,), float32
        at least.

    Raises:
        ValueError: for shapes that do not fit each other, another method, or numbers out of range.

    Notes:
        Equal scores go by the order of the scores given, then by place. A box that is empty, infinite or NaN overlaps
        nothing; a NaN score is dropped. The boxes of a class leave one after the other, but all classes at once: time
        goes with the size of the largest class. Memory goes with that, times the number of classes.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.soft_nms import soft_nms
        >>> boxes = torch.tensor([[0, 0, 4, 4], [0, 0, 4, 2], [9, 9, 12, 12]])
        >>> indices, scores = soft_nms(boxes, torch.tensor([0.8, 0.6, 0.4]), method="linear")
        >>> indices.tolist(), [round(score, 3) for score in scores.tolist()]
        ([0, 2, 1], [0.8, 0.4, 0.3])
    """
    check_boxes(boxes, scores, iou_threshold, classes, max_kept)
    if method not in SOFT_METHODS:
        raise ValueError(f"method is {method!r}, expected one of {', '.join(SOFT_METHODS)}.")
    if not sigma > 0:
        raise ValueError(f"sigma is {sigma}, expected more than 0.")
    boxes = boxes if boxes.dtype == torch.float64 else boxes.float()
    scores = (scores if scores.dtype == torch.float64 else scores.float()).nan_to_num(-math.inf, math.inf, -math.inf)
    order = scores.sort(stable=True, descending=True).indices
    order = order[scores[order] >= min_score]
    rows = _rows_by_class(order, None if classes is None else classes[order])
    held = rows >= 0
    left = torch.where(held, scores[rows], -math.inf)  # (classes, boxes of the largest class)
    # With coordinates first, taking a coordinate of all boxes copies nothing.
    corners = torch.where(held[..., None], boxes[rows], 0).movedim(-1, 0).contiguous().movedim(0, -1)
    line = torch.arange(len(rows), device=rows.device)
    found: list[tuple[torch.Tensor, torch.Tensor]] = []
    for _ in range(rows.shape[1] if max_kept is None else min(max_kept, rows.shape[1])):
        place = left.argmax(1)
        best = left[line, place]
        if not bool((best >= min_score).any()):
            break
        found.append((rows[line, place], best))
        left[line, place] = -math.inf
        overlap = paired_box_overlap(corners[line, place, None], corners)
        if method == "linear":
            touched, factor = overlap > iou_threshold, 1 - overlap
        else:
            touched, factor = overlap > 0, (overlap.square() / -sigma).exp()
        left = torch.where(touched & (left > 0), left * factor, left)  # those that have left stay at -inf
    final = torch.full_like(scores, -math.inf)
    if found:
        indices, values = (torch.cat(column) for column in zip(*found, strict=True))
        enough = values >= min_score  # a class that is through has given -inf
        final[indices[enough]] = values[enough]
    final, last = final[order].sort(stable=True, descending=True)
    last = last[final >= min_score]
    return order[last][:max_kept], final[: len(last)][:max_kept]


def _rows_by_class(order: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
    """Indices of boxes, (classes, boxes of the largest class), padded with -1; in each row in the order given."""
    if classes is None or not len(order):
        return order[None]
    classes, by_class = classes.sort(stable=True)
    counts = classes.unique_consecutive(return_counts=True)[1]
    places = torch.arange(int(counts.max()), device=order.device)
    held = places < counts[:, None]
    rows = torch.full(held.shape, -1, device=order.device)
    rows[held] = order[by_class]
    return rows
