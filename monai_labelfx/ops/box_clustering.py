# SPDX-License-Identifier: Apache-2.0
"""Weighted box clustering: one box from all that overlapping windows, models or flips found at a place."""

from __future__ import annotations

import torch

from monai_labelfx.ops.box_overlap import box_overlap, box_volume, paired_box_overlap
from monai_labelfx.ops.nms import check_boxes, greedy_nms, largest_below

MOST_PAIRS = 2**22  # overlaps that are held at a time


@torch.no_grad()
def weighted_box_clustering(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    labels: torch.Tensor,
    *,
    iou_threshold: float = 1e-5,
    expected: torch.Tensor | float | None = None,
    sources: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    min_score: float = 0.01,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""Merge the boxes of each cluster into one (Jaeger et al. 2020, "Retina U-Net", weighted box clustering).

    A cluster is a box that greedy non-maximum suppression keeps, and all that it removes. Member i with score s_i has
    the weight w_i = (overlap with the kept box) (volume) (weight given), and the cluster

    .. math::
        s = \frac{\sum_i w_i s_i}{\sum_i w_i + n \bar w}, \qquad b = \frac{\sum_i w_i s_i b_i}{\sum_i w_i s_i}

    as score and corners, where n is the number of views that saw the place and found nothing: the mean of ``expected``
    over the members minus the number of different ``sources`` among them, 0 at least. A box that one of four windows
    found alone so loses three quarters of its score.

    Args:
        boxes: (N, 2 \* spatial_dims), low corner then high corner, half open, in the whole image.
        scores: (N,) 0 or more.
        labels: (N,) class of each box; a cluster has one class.
        iou_threshold: 0 to 1; boxes belong together above it. Default 1e-5, as in the authors' code: any overlap.
        expected: (N,) or a number: how many views (windows that hold the place, times models, times flips) could have
            found the box. Default ``None``: nothing is missed.
        sources: (N,) the view that found each box. Default ``None``: each box is from another one.
        weights: (N,) trust in each box, 0 or more; for instance less near the border of its window. Default: 1.
        min_score: clusters whose score is not above it are dropped. Default 0.01, as in the authors' code.

    Returns:
        Boxes (K, 2 \* spatial_dims), scores (K,) and labels (K,) of the clusters, in falling order of the scores.
        Boxes and scores float32 at least.

    Raises:
        ValueError: for shapes that do not fit each other, or a threshold beyond 0 to 1.

    Notes:
        Volumes are those of half-open boxes, where the authors' code adds a voxel to each side. Where all weights of a
        cluster are 0 (an empty box, which overlaps nothing and stays alone) its members count alike.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.box_clustering import weighted_box_clustering
        >>> boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [20, 20, 24, 24]])
        >>> scores, labels = torch.tensor([0.9, 0.3, 0.8]), torch.zeros(3, dtype=torch.int64)
        >>> merged = weighted_box_clustering(boxes, scores, labels, expected=2, sources=torch.tensor([0, 1, 0]))
        >>> merged[0].tolist()
        [[0.0, 0.0, 4.0, 4.0], [20.0, 20.0, 24.0, 24.0]]
        >>> [round(score, 3) for score in merged[1].tolist()]
        [0.6, 0.4]
    """
    heads, members = box_clusters(boxes, scores, iou_threshold, classes=labels)
    columns = {"expected": expected, "sources": sources, "weights": weights}
    for name, given in columns.items():
        if isinstance(given, torch.Tensor) and given.shape != scores.shape:
            raise ValueError(f"{name} has shape {tuple(given.shape)}, expected ({len(scores)},), one for each box.")
    dtype = torch.promote_types(torch.float32, torch.promote_types(boxes.dtype, scores.dtype))
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    if not len(boxes):
        return boxes, scores, labels
    overlap = paired_box_overlap(boxes, boxes[heads][members])
    weight = overlap * box_volume(boxes) * (1 if weights is None else weights.to(dtype))
    order = members.argsort(stable=True)
    counts = members.bincount(minlength=len(heads))

    def total(values: torch.Tensor) -> torch.Tensor:
        # Runs of a sorted order: the same sums in every run, which adding at indices would not give on a GPU.
        return torch.segment_reduce(values[order], "sum", lengths=counts, axis=0)

    def usable(values: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
        sums = total(values)
        return torch.where(((sums > 0) & sums.isfinite())[members], values, otherwise)

    weight = usable(weight, torch.ones_like(weight))
    missed = torch.zeros_like(scores[heads])
    if expected is not None:
        views = total(torch.as_tensor(expected, device=scores.device).to(dtype).expand_as(scores)) / counts
        missed = (views - _different(members, sources, counts)).clamp(min=0)
    weighted, summed = weight * scores, total(weight)
    merged_scores = total(weighted) / (summed + missed * summed / counts)
    pull = usable(weighted, weight)
    merged = total(pull[:, None] * boxes) / total(pull)[:, None]
    merged_scores, best = merged_scores.sort(stable=True, descending=True)
    best = best[merged_scores > min_score]
    return merged[best], merged_scores[merged_scores > min_score], labels[heads[best]]


@torch.no_grad()
def box_clusters(
    boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float, *, classes: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Boxes that greedy non-maximum suppression keeps, and which of them removes each other box.

    Args:
        boxes: (N, 2 \* spatial_dims), low corner then high corner, half open.
        scores: (N,).
        iou_threshold: 0 to 1.
        classes: (N,) boxes of different classes are never in one cluster. Default ``None``: all are one class.

    Returns:
        Indices (K,) int64 of the kept boxes in falling order of their scores, see :func:`monai_labelfx.ops.greedy_nms`,
        and for each box (N,) int64 its cluster, 0 to K - 1: the first kept box that overlaps it by more than the
        threshold.

    Raises:
        ValueError: for shapes that do not fit each other, or a threshold beyond 0 to 1.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.box_clustering import box_clusters
        >>> boxes = torch.tensor([[0, 0, 4, 3], [9, 9, 12, 12], [0, 0, 4, 4]])
        >>> box_clusters(boxes, torch.tensor([0.5, 0.9, 0.7]), 0.5)
        (tensor([1, 2]), tensor([1, 0, 1]))
    """
    check_boxes(boxes, scores, iou_threshold, classes)
    heads = greedy_nms(boxes, scores, iou_threshold, classes=classes)
    boxes = boxes if boxes.dtype == torch.float64 else boxes.float()
    threshold = largest_below(iou_threshold, boxes.dtype)
    clusters = torch.full_like(scores, -1, dtype=torch.int64)
    clusters[heads] = torch.arange(len(heads), device=boxes.device)
    if len(heads) == len(boxes):
        return heads, clusters
    for part in (clusters < 0).nonzero()[:, 0].split(max(1, MOST_PAIRS // len(heads))):
        hits = box_overlap(boxes[part], boxes[heads]) > threshold
        if classes is not None:
            hits &= classes[part, None] == classes[heads]
        clusters[part] = hits.byte().argmax(1)  # the first one
    return heads, clusters


def _different(members: torch.Tensor, sources: torch.Tensor | None, counts: torch.Tensor) -> torch.Tensor:
    """Number of different sources in each cluster."""
    if sources is None:
        return counts
    pairs = torch.stack((members, sources.to(members)), 1).unique(dim=0)
    return pairs[:, 0].bincount(minlength=len(counts))
