# SPDX-License-Identifier: Apache-2.0
"""What the metrics of images share: one row of numbers for each pair of a prediction and a reference."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from monai_labelfx.metrics._rows import RowMetric, check_reduction

MODES = ("per_image", "pooled")


class PerImageMetric(RowMetric):
    """A cumulative metric that keeps one row of counts per image.

    ``metric(y_pred, y)`` takes batches (B, C, \\*spatial) or lists of (C, \\*spatial), also empty ones, and returns the
    scores of these images, (B, K). ``get_buffer()`` gives the scores of all images of all processes, (N, K).
    ``aggregate()`` gives one number.

    Args:
        columns: numbers in a row.
        mode: ``"per_image"`` averages the scores of the images; ``"pooled"`` scores the sum of their rows.

    Raises:
        ValueError: when ``mode`` is unknown; in the call, when predictions and references do not fit together.
    """

    def __init__(self, columns: int, mode: str = "per_image") -> None:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, got {mode!r}.")
        self.mode = mode
        super().__init__(columns)

    @abstractmethod
    def _measure(self, prediction: torch.Tensor, reference: torch.Tensor) -> Sequence[float]:
        """The row of one image (C, \\*spatial). It must hold no NaN."""

    def _compute_list(self, y_pred: Any, y: Any = None, **kwargs: Any) -> torch.Tensor:
        if y is None or len(y_pred) != len(y):
            found = None if y is None else len(y)
            raise ValueError(f"y must hold one reference for each of the {len(y_pred)} predictions, got {found}.")
        rows = []
        for pair in zip(y_pred, y, strict=True):
            prediction, reference = (torch.as_tensor(image).detach().as_subclass(torch.Tensor) for image in pair)
            if prediction.shape != reference.shape or prediction.ndim < 2:
                raise ValueError(
                    "a prediction and its reference must have one shape (C, *spatial), "
                    f"got {tuple(prediction.shape)} and {tuple(reference.shape)}."
                )
            rows.append(self._measure(prediction, reference.to(prediction.device)))
        # Rows are a few numbers: the CPU has float64 on every machine.
        return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), self.columns)

    def aggregate(self, reduction: str = "mean") -> torch.Tensor:
        """The metric over all images since ``reset()``, of all processes.

        Args:
            reduction: ``"mean"`` for one number, ``"mean_batch"`` for one per column of the scores, (K,).

        Raises:
            ValueError: when no image was added, or ``reduction`` is unknown.
        """
        check_reduction(reduction)
        rows = self._gathered()
        if not len(rows):
            raise ValueError(f"{type(self).__name__} has no image to aggregate: none was added since reset().")
        scores = self._score(rows.sum(dim=0, keepdim=True) if self.mode == "pooled" else rows).mean(dim=0)
        return scores if reduction == "mean_batch" else scores.mean()


def check_label_map(labels: torch.Tensor) -> None:
    """Raise ValueError unless ``labels`` has one channel."""
    if labels.shape[0] != 1:
        raise ValueError(f"an instance label map must have shape (1, *spatial), got {tuple(labels.shape)}.")
