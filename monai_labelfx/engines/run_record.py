# SPDX-License-Identifier: Apache-2.0
"""A run in four small JSON files: what ran, what came out, epoch by epoch."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ignite
import ignite.distributed as idist
import monai
import numpy
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.handlers import from_engine

from monai_labelfx._version import __version__
from monai_labelfx.engines._json import plain_numbers, write_json


class RunRecord:
    """Handler that keeps the record of a run in its folder, readable at any moment of the run.

    ====================  ===========================================================================================
    ``run.json``          ``versions``, ``seed``, ``started`` and ``finished`` (ISO 8601, UTC; ``finished`` is ``null``
                          while the run goes on or if it broke off), ``seconds``, ``peak_memory_mb`` (most resident
                          memory of the process, where the system tells; on CUDA also ``peak_gpu_memory_mb``),
                          ``command``
    ``history.json``      ``{"train_loss": [[epoch, value], ...], "lr": [...], "<metric>": [...]}``: mean loss of the
                          epoch (of the share of rank 0), learning rate at its start, metrics of the evaluator
    ``metrics.json``      ``{name: value}`` at the end: last metrics of the evaluator, and ``train_loss``
    ``config.json``       the configuration, if one is given
    ====================  ===========================================================================================

    Attach it to a trainer, and name the evaluator whose metrics belong to the record; or attach it to an evaluator,
    which then writes ``run.json`` and ``metrics.json``. Numbers that are not finite become ``null``, as JSON has no
    other word. Files appear by renaming, so that a reader never sees half a file. Only rank 0 writes, and the handler
    may be attached there alone. A resumed run continues the history of its folder from the epoch of the checkpoint.

    Args:
        output_dir: folder of the run; it is created when the run starts.
        name: stem of ``run.json``, so that an evaluation can share the folder of its training.
        evaluator: evaluator that the trainer runs between epochs.
        optimizer: optimiser whose learning rate to note, by default ``trainer.optimizer``.
        seed: seed to note.
        config: resolved configuration to note; what JSON does not know is written as its ``str``.
        command: command line to note, by default that of the process.
        output_transform: how to get the loss from ``trainer.state.output``.

    Note:
        The record holds numbers and settings only, never names or contents of images. File names in ``config`` and
        ``command`` are noted as they are.

    Example:
        >>> import tempfile
        >>> from ignite.engine import Engine
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trainer = Engine(lambda engine, batch: {"loss": torch.tensor(float(batch))})
        ...     RunRecord(folder, seed=3).attach(trainer)
        ...     state = trainer.run([1.0, 2.0], max_epochs=2)
        ...     json.loads((Path(folder) / "history.json").read_text())["train_loss"]
        [[1, 1.5], [2, 1.5]]
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        name: str = "run",
        evaluator: Evaluator | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        seed: int | None = None,
        config: Mapping[str, Any] | None = None,
        command: Sequence[str] | None = None,
        output_transform: Callable[[Any], Any] | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.name = name
        self.evaluator = evaluator
        self.optimizer = optimizer
        self.seed = seed
        self.config = config
        self.command = list(sys.argv if command is None else command)
        self.output_transform = from_engine("loss", first=True) if output_transform is None else output_transform
        self._history: dict[str, list[list[float | None]]] = {}
        self._metrics: dict[str, float | None] = {}
        self._first = True
        self._sum: Any = 0.0
        self._count = 0
        self._began = 0.0
        self._started = ""

    def attach(self, engine: Engine) -> None:
        """Add the handler to a trainer or to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._run_started)
        if isinstance(engine, Evaluator):
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._evaluated)
        else:
            engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)
            if self.evaluator is not None:
                self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._evaluated, engine)
        engine.add_event_handler(Events.COMPLETED, self._run_completed)

    def _run_started(self, engine: Engine) -> None:
        self._began, self._started = time.perf_counter(), _now()
        self._history, self._metrics, self._first = {}, {}, True
        self._write(f"{self.name}.json", self._run())
        if self.config is not None:
            self._write("config.json", self.config)

    def _epoch_started(self, engine: Engine) -> None:
        if self._first and engine.state.epoch > 1:  # only now has a checkpoint set the epoch
            self._history = _read_history(self.output_dir / "history.json", before=engine.state.epoch)
        self._first = False
        self._sum, self._count = 0.0, 0
        optimizer = self.optimizer or getattr(engine, "optimizer", None)
        if optimizer is not None:
            self._note("lr", engine.state.epoch, float(optimizer.param_groups[0]["lr"]))

    def _iteration_completed(self, engine: Engine) -> None:
        loss = self.output_transform(engine.state.output)
        loss = loss[0] if isinstance(loss, tuple) else loss
        # summed where it lies: reading a number off a GPU would make every step wait
        self._sum = self._sum + (loss.detach().float() if isinstance(loss, torch.Tensor) else loss)
        self._count += 1

    def _epoch_completed(self, engine: Engine) -> None:
        loss = plain_numbers({"train_loss": float(self._sum) / max(self._count, 1)})
        self._metrics.update(loss)
        self._note("train_loss", engine.state.epoch, loss["train_loss"])
        self._write("history.json", self._history)

    def _evaluated(self, evaluator: Engine, trainer: Engine | None = None) -> None:
        metrics = plain_numbers(evaluator.state.metrics)
        self._metrics.update(metrics)
        if trainer is not None:
            for name, value in metrics.items():
                self._note(name, trainer.state.epoch, value)
            if not self._first:  # a validation before the first epoch must not replace a history not yet read
                self._write("history.json", self._history)

    def _run_completed(self, engine: Engine) -> None:
        self._write("metrics.json", self._metrics)
        self._write(f"{self.name}.json", self._run(finished=True))

    def _note(self, name: str, epoch: int, value: float | None) -> None:
        points = self._history.setdefault(name, [])
        if points and points[-1][0] == epoch:  # a second validation in one epoch: the last one counts
            points.pop()
        points.append([epoch, value])

    def _run(self, *, finished: bool = False) -> dict[str, Any]:
        record: dict[str, Any] = {
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "monai": monai.__version__,
                "ignite": ignite.__version__,
                "numpy": numpy.__version__,
                "labelfx": __version__,
            },
            "seed": self.seed,
            "started": self._started,
            "finished": _now() if finished else None,
            "seconds": round(time.perf_counter() - self._began, 3),
            "peak_memory_mb": _peak_memory_mb(),
            "command": self.command,
        }
        if torch.cuda.is_available():
            record["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        return record

    def _write(self, name: str, content: Any) -> None:
        if idist.get_rank() == 0:
            write_json(self.output_dir / name, content)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _peak_memory_mb() -> float | None:
    """Most resident memory of this process so far; ``None`` on systems without the ``resource`` module."""
    try:
        import resource
    except ImportError:
        return None
    units_per_mb = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units_per_mb, 1)


def _read_history(path: Path, *, before: int) -> dict[str, list[list[float | None]]]:
    """The part of a written history that lies before the epoch at which a run resumes."""
    if not path.is_file():
        return {}
    try:
        history = json.loads(path.read_text(encoding="utf-8"))
        return {name: [point for point in points if point[0] < before] for name, points in history.items()}
    except (ValueError, AttributeError, TypeError, IndexError) as error:
        raise ValueError(f"{path} is not the history of a run; move it away to start a new one.") from error
