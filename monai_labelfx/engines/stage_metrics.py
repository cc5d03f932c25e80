# SPDX-License-Identifier: Apache-2.0
"""Metrics of an earlier stage beside those of the result."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from ignite.engine import Engine, Events


class StageMetrics:
    """Handler that adds metrics which an earlier stage has written to those of an evaluator.

    So that one table shows what each stage of a method adds. Attach it before the handlers that save metrics. Where the
    file is absent, as for methods without that stage, nothing is added.

    Args:
        path: ``metrics.json`` of the stage, as :py:class:`RunRecord` writes it.
        names: name in that file -> name in this evaluation.

    Raises:
        ValueError: when the evaluator is done, if the file is no JSON object.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "metrics.json").write_text('{"mIoU": 0.5}')
        ...     evaluator = Engine(lambda engine, batch: None)
        ...     StageMetrics(f"{folder}/metrics.json", {"mIoU": "cam_mIoU"}).attach(evaluator)
        ...     evaluator.run([0]).metrics
        {'cam_mIoU': 0.5}
    """

    def __init__(self, path: str | os.PathLike, names: Mapping[str, str]) -> None:
        self.path = Path(path)
        self.names = dict(names)

    def attach(self, engine: Engine) -> None:
        """Add the handler to an evaluator."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Add the metrics that the file has."""
        if not self.path.is_file():
            return
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{self.path} is not readable as JSON: {error}") from error
        if not isinstance(found, dict):
            raise ValueError(f"{self.path} holds a {type(found).__name__}, expected a JSON object of metrics")
        for name, own in self.names.items():
            if found.get(name) is not None:
                engine.state.metrics[own] = found[name]
