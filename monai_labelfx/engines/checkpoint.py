# SPDX-License-Identifier: Apache-2.0
"""MONAI's checkpoint saver, safe against being killed and able to remember its best score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine
from ignite.handlers import DiskSaver
from monai.handlers import CheckpointSaver


class AtomicCheckpointSaver(CheckpointSaver):
    """``monai.handlers.CheckpointSaver`` with two gaps closed; all its keywords stay.

    * MONAI's saver removes the old file before it writes the new one, and writes straight under the final name: a run
      killed while saving leaves half a checkpoint or none. Here the new file is written under a temporary name and
      renamed, and only then the old one goes.
    * MONAI's saver cannot be saved itself, so that after resuming, the first validation always counts as the best one
      and overwrites a better network. Here it has a ``state_dict``: put the saver that watches the key metric into the
      ``save_dict`` of the saver that resumes the run, and into the ``load_dict`` of ``CheckpointLoader``.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     best = AtomicCheckpointSaver(folder, {"network": torch.nn.Linear(1, 1)}, save_key_metric=True)
        ...     best.state_dict()
        {'saved': []}
    """

    def attach(self, engine: Engine) -> None:
        """Add the handler to a trainer or an evaluator."""
        for checkpoint in (self._final_checkpoint, self._key_metric_checkpoint, self._interval_checkpoint):
            if checkpoint is not None:
                checkpoint.save_handler = _SaveThenRemove(checkpoint.save_handler)
        super().attach(engine)

    def metrics_completed(self, engine: Engine) -> None:
        """Save where the key metric is better; it must be there."""
        try:
            super().metrics_completed(engine)
        except KeyError as error:
            found = ", ".join(map(str, engine.state.metrics)) or "none"
            raise ValueError(f"the key metric {error.args[0]!r} was not measured; the metrics are: {found}.") from error

    def state_dict(self) -> dict[str, list[list[Any]]]:
        """Scores and names of the kept best checkpoints, as plain numbers and strings."""
        kept = [] if self._key_metric_checkpoint is None else self._key_metric_checkpoint.state_dict()["_saved"]
        return {"saved": [[float(score), name] for score, name in kept]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Remember the best checkpoints of the run that is resumed."""
        if self._key_metric_checkpoint is None:
            raise ValueError("this saver watches no key metric (save_key_metric=True), so it has no state to load.")
        self._key_metric_checkpoint.load_state_dict({"_saved": [tuple(entry) for entry in state_dict["saved"]]})


class _SaveThenRemove(DiskSaver):
    """Saver that puts off removing old files until the new one is in place."""

    def __init__(self, saver: Any) -> None:
        super().__init__(saver.dirname, atomic=True, require_empty=False, save_on_rank=saver.save_on_rank)
        self.filename = saver.filename
        self._old: list[str] = []

    def __call__(self, checkpoint: Mapping, filename: str, metadata: Mapping | None = None) -> None:
        name = self.filename or filename
        super().__call__(checkpoint, name, metadata)
        if idist.get_rank() == self.save_on_rank:
            for old in self._old:
                if old != name:
                    (self.dirname / old).unlink(missing_ok=True)
        self._old = []

    def remove(self, filename: str) -> None:
        self._old.append(self.filename or filename)
