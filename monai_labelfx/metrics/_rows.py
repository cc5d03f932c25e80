# SPDX-License-Identifier: Apache-2.0
"""A cumulative metric with a table of numbers, safe to gather when a process has no row."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from monai.metrics import CumulativeIterationMetric


class RowMetric(CumulativeIterationMetric):
    """Keeps rows of ``columns`` numbers, float64 on the CPU, one or more for each item.

    ``metric(y_pred, y)`` adds rows and returns their scores; ``get_buffer()`` gives the scores of all rows of all
    processes.

    Args:
        columns: numbers in a row.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        super().__init__()

    @abstractmethod
    def _compute_list(self, y_pred: Any, y: Any = None, **kwargs: Any) -> torch.Tensor:
        """Rows (N, columns) of some items, float64 on the CPU. They must hold no NaN."""

    @abstractmethod
    def _score(self, rows: torch.Tensor) -> torch.Tensor:
        """Scores (N, K) of rows (N, columns)."""

    def __call__(self, y_pred: Any, y: Any = None, **kwargs: Any) -> torch.Tensor:
        rows = self._compute_list(y_pred, y)
        if len(rows):
            self.extend(rows)
        return self._score(rows)

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        return self._compute_list(y_pred, y)

    _synced_tensors: Any

    def _sync(self) -> None:
        if self._synced:
            return
        if self._buffers is None:
            # Gathering waits for every process: one without rows takes part with a void one.
            self.append(torch.full((self.columns,), torch.nan, dtype=torch.float64))
        super()._sync()
        (rows,) = self._synced_tensors
        self._synced_tensors = [rows[~rows.isnan().any(dim=1)]]

    def _gathered(self) -> torch.Tensor:
        """The rows (N, columns) of all processes since ``reset()``."""
        return super().get_buffer()

    def get_buffer(self) -> torch.Tensor:
        """Scores (N, K) of all rows since ``reset()``, of all processes."""
        return self._score(self._gathered())


def check_reduction(reduction: str) -> None:
    """Raise ValueError unless ``reduction`` is one that ``aggregate`` knows."""
    if reduction not in ("mean", "mean_batch"):
        raise ValueError(f"reduction must be 'mean' or 'mean_batch', got {reduction!r}.")
