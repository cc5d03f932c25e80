# SPDX-License-Identifier: Apache-2.0
"""Average precision of instance segmentations, as the DSB 2018 challenge, StarDist and DenoiSeg mean it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from monai_labelfx.metrics.overlap import LabelOverlap, label_overlap
from monai_labelfx.metrics.per_image import PerImageMetric, check_label_map

IOU_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
"""0.5, 0.55, ..., 0.95: the ten thresholds of "AP 0.5:0.95"."""


class InstanceAveragePrecision(PerImageMetric):
    """AP = TP / (TP + FP + FN) at one or more IoU thresholds, averaged over the thresholds.

    TP is the largest number of one-to-one pairs of a predicted and a reference object whose intersection over union is
    at least the threshold; FP and FN are the predicted and the reference objects left over. Several papers, DenoiSeg
    (Buchholz et al. 2020) among them, call this average precision; StarDist calls it accuracy. It is not the area under
    a precision-recall curve.

    ``metric(y_pred, y)`` takes instance label maps, batches (B, 1, \\*spatial) or lists of (1, \\*spatial), any integer
    labels, 0 background, and returns the AP of each image and threshold, (B, thresholds); ``get_buffer()`` gives the
    same for all images. ``aggregate()`` gives one number, ``aggregate("mean_batch")`` one per threshold.

    Args:
        thresholds: IoU threshold in (0, 1], or several, for instance :py:data:`IOU_THRESHOLDS`. Default 0.5 (paper).
        mode: ``"per_image"`` (default, paper) averages the AP of the images; ``"pooled"`` counts TP, FP and FN over all
            images first.
        strict: count a pair only above its threshold, not at it. Default ``False``, as StarDist; the code of DenoiSeg
            is strict.

    Raises:
        ValueError: when an argument is out of its range or label maps do not fit together; in ``aggregate()``, when no
            image was added.

    Notes:
        An image without objects in reference and prediction scores 1, and so do pooled counts that are all 0. False
        positives on an empty image give it 0; the paper's code leaves such images out. Rounding errors of thresholds
        are mended, so that 0.5 + 0.05 * 2 is 0.6. Above 0.5 no object can have two partners, and pairs are counted
        directly; else they are matched (Hopcroft and Karp), which finds as many pairs as a Hungarian assignment.

    Example:
        >>> metric = InstanceAveragePrecision()
        >>> prediction, reference = torch.tensor([[1, 1, 0, 2, 2, 0, 3]]), torch.tensor([[4, 4, 0, 5, 5, 5, 5]])
        >>> metric([prediction], [reference])  # 1 and 2 match, 3 does not
        tensor([[0.6667]], dtype=torch.float64)
        >>> metric.aggregate().item() == 2 / 3
        True
    """

    def __init__(
        self,
        thresholds: float | Sequence[float] = 0.5,
        *,
        mode: Literal["per_image", "pooled"] = "per_image",
        strict: bool = False,
    ) -> None:
        values = tuple(thresholds) if isinstance(thresholds, Iterable) else (thresholds,)
        self.thresholds = tuple(_decimal(float(value)) for value in values)
        if not self.thresholds or not all(0 < value <= 1 for value in self.thresholds):
            raise ValueError(f"thresholds must be one or more numbers above 0, up to 1, got {thresholds}.")
        self.strict = strict
        super().__init__(columns=3 * len(self.thresholds), mode=mode)

    def _measure(self, prediction: torch.Tensor, reference: torch.Tensor) -> list[float]:
        check_label_map(prediction)
        overlap = label_overlap(prediction, reference)
        predicted, true = len(overlap.predicted_sizes), len(overlap.true_sizes)
        row: list[float] = []
        for threshold in self.thresholds:
            hits = _matches(overlap, threshold, self.strict)
            row += [hits, predicted - hits, true - hits]
        return row

    def _score(self, rows: torch.Tensor) -> torch.Tensor:
        counts = rows.reshape(len(rows), len(self.thresholds), 3)
        total = counts.sum(dim=2)
        return torch.where(total > 0, counts[:, :, 0] / total.clamp(min=1), 1.0)


def _decimal(value: float) -> float:
    """The short decimal that ``value`` was meant to be, if it is one up to rounding."""
    short = round(value, 9)
    return short if abs(value - short) < 1e-12 else value


def _matches(overlap: LabelOverlap, threshold: float, strict: bool) -> int:
    """Largest number of one-to-one pairs that reach (``strict``: exceed) the threshold."""
    iou = overlap.iou
    pair = iou > threshold if strict else iou >= threshold
    if threshold > 0.5 or (strict and threshold == 0.5):
        return int(pair.sum())
    shape = (len(overlap.predicted_sizes), len(overlap.true_sizes))
    graph = csr_array((np.ones(int(pair.sum())), (overlap.predicted[pair], overlap.true[pair])), shape=shape)
    return int((maximum_bipartite_matching(graph) >= 0).sum()) if graph.nnz else 0
