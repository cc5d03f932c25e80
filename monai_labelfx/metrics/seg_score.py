# SPDX-License-Identifier: Apache-2.0
"""The SEG score of the Cell Tracking Challenge."""

from __future__ import annotations

from typing import Literal

import torch

from monai_labelfx.metrics.overlap import label_overlap
from monai_labelfx.metrics.per_image import PerImageMetric, check_label_map


class SegScore(PerImageMetric):
    """Mean over reference objects of the IoU with the predicted object that covers more than half of it, else 0.

    At most one predicted object can cover more than half of a reference object. Predicted objects that cover none do
    not count, so SEG alone rewards predicting too many.

    ``metric(y_pred, y)`` takes instance label maps, batches (B, 1, \\*spatial) or lists of (1, \\*spatial), any integer
    labels, 0 background, and returns the SEG of each image, (B, 1); ``get_buffer()`` gives the same for all images.

    Args:
        mode: ``"per_image"`` (default, as in the code of DenoiSeg, Buchholz et al. 2020) averages over the objects of
            each image, then over images; ``"pooled"`` averages over all objects of all images, as the challenge does.

    Raises:
        ValueError: when ``mode`` is unknown or label maps do not fit together; in ``aggregate()``, when no image was
            added.

    Notes:
        An image without reference objects, for which the challenge defines nothing, scores 1 when its prediction is
        empty too, else 0; the paper's code leaves it out. In pooled mode it adds no object.

    Example:
        >>> metric = SegScore()
        >>> metric([torch.tensor([[1, 1, 0, 2, 0, 0]])], [torch.tensor([[4, 4, 0, 5, 5, 0]])])  # 2 covers half of 5
        tensor([[0.5000]], dtype=torch.float64)
    """

    def __init__(self, mode: Literal["per_image", "pooled"] = "per_image") -> None:
        super().__init__(columns=3, mode=mode)

    def _measure(self, prediction: torch.Tensor, reference: torch.Tensor) -> list[float]:
        check_label_map(prediction)
        overlap = label_overlap(prediction, reference)
        covers = 2 * overlap.shared > overlap.true_sizes[overlap.true]
        return [float(overlap.iou[covers].sum()), len(overlap.true_sizes), len(overlap.predicted_sizes)]

    def _score(self, rows: torch.Tensor) -> torch.Tensor:
        iou, true, predicted = rows.unbind(dim=1)
        return torch.where(true > 0, iou / true.clamp(min=1), (predicted == 0).to(iou.dtype))[:, None]
