# SPDX-License-Identifier: Apache-2.0
"""Log-barriers that become steeper with every epoch."""

from __future__ import annotations

import math
from typing import Any

from ignite.engine import Engine, Events


class LogBarrierSchedule:
    """Handler that sets the attribute ``t`` of a loss at the start of each epoch.

    ``t = min(t0 * factor ** (epoch - 1), maximum)`` with the ``t`` that the loss has when the handler is made. It is a
    function of the number of the epoch, so a resumed run goes on as if it had never stopped, and nothing of it needs to
    be in the checkpoint.

    Args:
        loss: with a positive attribute ``t``, such as :py:class:`~monai_labelfx.losses.GlobalConstraintsLoss`: the
            object that the trainer uses.
        factor: 1 or more. Default 1.1, as in Kervadec et al. 2020.
        maximum: where t stops growing. Default 1e6, which t reaches from 5 in epoch 130; the published runs have 50 and
            100 epochs.

    Raises:
        TypeError: for a loss without a number ``t``.
        ValueError: for a ``t`` that is not above 0, a factor below 1 or a maximum below t.

    Example:
        >>> from types import SimpleNamespace
        >>> from ignite.engine import Engine
        >>> loss = SimpleNamespace(t=5.0)
        >>> trainer = Engine(lambda engine, batch: print(round(loss.t, 3)))
        >>> LogBarrierSchedule(loss, factor=1.1).attach(trainer)
        >>> state = trainer.run([0], max_epochs=3)
        5.0
        5.5
        6.05
    """

    def __init__(self, loss: Any, factor: float = 1.1, *, maximum: float = 1e6) -> None:
        start = getattr(loss, "t", None)
        if isinstance(start, bool) or not isinstance(start, int | float):
            raise TypeError(f"loss must have a number t, as GlobalConstraintsLoss has, got {type(loss).__name__}.")
        if not 0 < start < math.inf:
            raise ValueError(f"the t of the loss must be above 0 and finite, got {start}.")
        if not 1 <= factor < math.inf:
            raise ValueError(f"factor must be 1 or more and finite, got {factor}.")
        if not start <= maximum < math.inf:
            raise ValueError(f"maximum must be finite and no less than the t of the loss, {start}, got {maximum}.")
        self.loss = loss
        self.start = float(start)
        self.factor = float(factor)
        self.maximum = float(maximum)

    def attach(self, engine: Engine) -> None:
        """Add the handler to a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set t for ``engine.state.epoch``."""
        steps = int(engine.state.epoch) - 1
        over = math.log(self.start) + steps * math.log(self.factor) >= math.log(self.maximum)  # does not overflow
        self.loss.t = self.maximum if over else self.start * self.factor**steps
