# SPDX-License-Identifier: Apache-2.0
"""What the handlers share that keep one row of numbers per image and write several results."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from ignite.metrics import Metric
from ignite.metrics.metric import EpochWise, MetricUsage, reinit__is_reduced

from monai_labelfx.engines._as_read import collected


class ImageRowsHandler(Metric):
    """An ignite metric with a row of numbers per image, whose results go to ``engine.state.metrics`` by their names.

    It may be the key metric under the name of the result that decides, or any other metric under any name; or an
    evaluator's ``val_handlers`` may hold it. Results are over the images of all processes.
    """

    label = "ct"  # the name when none is given

    def __init__(self) -> None:
        self._written: list[str] = []
        super().__init__()

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all images."""
        self._rows: list[dict[str, Any]] = []

    @reinit__is_reduced
    def update(self, output: list[dict[str, Any]]) -> None:
        """Add the images of a batch, each a dictionary."""
        for item in output:
            row = self._row(item)
            if row is not None:
                self._rows.append(row)

    @abstractmethod
    def _row(self, item: Mapping[str, Any]) -> dict[str, Any] | None:
        """The numbers of one image; ``None`` if it has none."""

    @abstractmethod
    def _results(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        """The results of the rows of all images, of which there is at least one."""

    def _gathered(self) -> list[dict[str, Any]]:
        """The rows of all processes; all must ask."""
        ranks: Any = idist.all_gather(self._rows)
        return [row for rank in ranks for row in rank]

    def compute(self) -> dict[str, float]:
        """The results by name, none without images."""
        rows = self._gathered()
        return self._results(rows) if rows else {}

    def attach(self, engine: Engine, name: str | None = None, usage: str | MetricUsage | None = None) -> None:
        """Add the handler to an evaluator."""
        super().attach(engine, self.label if name is None else name, EpochWise() if usage is None else usage)

    @torch.no_grad()
    def iteration_completed(self, engine: Engine) -> None:
        """Add the images of one iteration."""
        self.update(list(collected(engine, type(self).__name__)))

    def completed(self, engine: Engine, name: str) -> None:
        """Write the results, or leave them out when no image had any."""
        for written in self._written:
            engine.state.metrics.pop(written, None)
        results = self.compute()
        if name == getattr(engine.state, "key_metric_name", None) and not math.isfinite(results.get(name, math.nan)):
            found = f"{name} is {results[name]:g}" if name in results else f"there are {', '.join(results) or 'none'}"
            raise ValueError(f"the key metric {name!r} must be a result of {type(self).__name__}, but {found}.")
        if not results:
            engine.logger.info(f"{type(self).__name__}: no image to score, so no metric is written.")
        self._written = list(results)
        engine.state.metrics.update(results)
