# SPDX-License-Identifier: Apache-2.0
"""One progress bar for a whole run."""

from __future__ import annotations

import sys
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from tqdm import tqdm


class ProgressBar:
    """Handler that shows one bar for the whole run: epoch, loss, time spent and time left.

    ignite's own bar starts afresh in every epoch, so that the time left is that of the epoch. This one counts all
    iterations of the run, and a resumed run starts where it was stopped. The bar shows numbers only, no names of
    images.

    Args:
        enabled: show the bar; ``None`` shows it on rank 0 if the standard error is a terminal.
        desc: words before the bar.

    Example:
        >>> from ignite.engine import Engine
        >>> engine = Engine(lambda engine, batch: {"loss": 1.0})
        >>> ProgressBar(enabled=False).attach(engine)
        >>> engine.run([1, 2], max_epochs=2).iteration
        4
    """

    def __init__(self, *, enabled: bool | None = None, desc: str = "train") -> None:
        self.enabled = enabled
        self.desc = desc
        self._bar: Any = None

    def attach(self, engine: Engine) -> None:
        """Add the handler to a trainer or an evaluator."""
        shown = (idist.get_rank() == 0 and sys.stderr.isatty()) if self.enabled is None else self.enabled
        if shown:
            engine.add_event_handler(Events.EPOCH_STARTED, self._open)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
            engine.add_event_handler(Events.COMPLETED, self._close)

    def _open(self, engine: Engine) -> None:
        if self._bar is None:  # not when the run starts: a checkpoint may still set the epoch
            length, epochs = engine.state.epoch_length, engine.state.max_epochs
            total = length * epochs if length and epochs else None
            done = (engine.state.epoch - 1) * length if length else 0
            self._bar = tqdm(
                total=total, initial=done, desc=self.desc, unit="step", dynamic_ncols=True, file=sys.stderr
            )

    def _advance(self, engine: Engine) -> None:
        if self._bar.update():  # true where the bar was drawn: reading the loss more often would make a GPU wait
            shown = {"epoch": f"{engine.state.epoch}/{engine.state.max_epochs}"}
            loss = _loss_of(engine.state.output)
            if loss is not None:
                shown["loss"] = f"{loss:.4g}"
            self._bar.set_postfix(shown, refresh=False)

    def _close(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None


def _loss_of(output: Any) -> float | None:
    """The loss in the output of a step, ``None`` where there is none (an evaluator)."""
    first = output[0] if isinstance(output, list) and output else output
    if not isinstance(first, dict) or "loss" not in first:
        return None
    loss = first["loss"]
    return float(loss.detach()) if isinstance(loss, torch.Tensor) else float(loss)
