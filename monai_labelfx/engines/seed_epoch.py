# SPDX-License-Identifier: Apache-2.0
"""Randomness that is a function of seed, epoch and rank, so that a stopped run resumes exactly."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd


class SeedEpoch:
    """Handler that restarts all random numbers at the start of each epoch from ``(seed, epoch, rank)``.

    The states of the many generators of a run (one per random transform, in each worker; torch's, numpy's and Python's
    own) then follow from three numbers, and a checkpoint holds them all by holding the seed and the epoch: a run that
    was stopped after an epoch and resumed ends with the weights of an uninterrupted one, bit for bit on a CPU. It
    seeds, in this order:

    * Python's, numpy's and torch's global generators (dropout, the seeds of workers, masks drawn on the device);
    * the random transforms of ``data_loader.dataset`` through ``monai.data.utils.set_rnd``;
    * the generators of the loader and its samplers, and ``sampler.set_epoch(epoch)`` where there is one;

    and it starts a new pass through the loader, even where ``epoch_length`` ends an epoch before the loader does.

    Args:
        seed: seed of the run, not negative.
        fixed: for evaluators: all epochs draw the same numbers, so that masks of validation images never change and
            scores of epochs can be compared. The global generators are then left alone, so that a validation does not
            disturb the training around it; workers are seeded through the loader's own generator.

    Raises:
        ValueError: at the start of an epoch, if the loader has ``persistent_workers``, whose transforms cannot be
            seeded from outside; and if ``seed`` is not a whole number of 0 or more.

    Resuming:
        Save and load with one dictionary, where the objects are those of the trainer::

            save = {"network": net, "optimizer": opt, "lr_scheduler": sched, "trainer": trainer,
                    "random_state": seed_epoch, "thresholds": thresholds}
            AtomicCheckpointSaver("run", save, save_interval=1, n_saved=1)
            CheckpointLoader("run/checkpoint_epoch=7.pt", save, map_location="cpu")

        Pitfalls of ignite 0.5 and MONAI 1.6, each seen:

        * Put ``CheckpointSaver`` behind ``LrScheduleHandler`` and ``ValidationHandler`` in the list of handlers.
          Handlers of one event run in that order, and a checkpoint written first lacks the scheduler's last step.
        * *Attach* ``CheckpointLoader``; do not call it before ``trainer.run()``. If the checkpoint is that of the last
          epoch, ignite takes a loaded trainer for a finished one and starts it again from epoch 0.
        * ``max_epochs`` of the new trainer counts, not that of the checkpoint (and must not be smaller than its
          epoch); but ``epoch_length`` comes from the checkpoint, so a changed data set or batch size needs a new run,
          and so does the horizon of a scheduler such as ``CosineAnnealingLR``, which is part of its state.
        * A checkpoint written inside an epoch (``epoch_level=False``, or ``save_final`` after an interruption) resumes
          with other numbers than the uninterrupted run; this handler then logs a warning.
        * What a validation decides (``ReduceLROnPlateau``) is repeatable only if its data are: attach
          ``SeedEpoch(seed, fixed=True)`` to the evaluator too, or let its transforms be deterministic.
        * The best score so far is not part of the trainer's state: see
          :py:class:`~monai_labelfx.engines.AtomicCheckpointSaver`.

        On loading, the checkpoint's seed replaces the configured one. CUDA additionally needs
        ``monai.utils.set_determinism`` and repeats only up to the operators that have a deterministic form.

    Example:
        >>> import torch
        >>> from ignite.engine import Engine
        >>> def run():
        ...     drawn = []
        ...     engine = Engine(lambda engine, batch: drawn.append(float(torch.rand(()))))
        ...     SeedEpoch(seed=3).attach(engine)
        ...     engine.run([0, 1], max_epochs=2)
        ...     return drawn
        >>> first, second = run(), run()
        >>> first == second and len(set(first)) == 4
        True
    """

    def __init__(self, seed: int = 0, *, fixed: bool = False) -> None:
        if isinstance(seed, bool) or int(seed) != seed or seed < 0:
            raise ValueError(f"seed must be a whole number of 0 or more, got {seed!r}.")
        self.seed = int(seed)
        self.fixed = fixed
        self.logger = logging.getLogger(__name__)
        self._first = True

    def attach(self, engine: Engine) -> None:
        """Add the handler to a trainer (or, with ``fixed=True``, to an evaluator)."""
        self.logger = getattr(engine, "logger", self.logger)
        engine.add_event_handler(Events.STARTED, self._run_started)
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def state_dict(self) -> dict[str, int]:
        """The seed: with the trainer's epoch it is the state of every generator of the run."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on with the checkpoint's seed."""
        if "seed" not in state_dict:
            raise ValueError(f"the checkpoint's random state must hold 'seed', it holds {sorted(state_dict)}.")
        if int(state_dict["seed"]) != self.seed:
            self.logger.warning(f"Resuming with seed {state_dict['seed']} of the checkpoint instead of {self.seed}.")
        self.seed = int(state_dict["seed"])

    def _run_started(self, engine: Engine) -> None:
        self._first = True

    def __call__(self, engine: Engine) -> None:
        """Seed everything for ``engine.state.epoch``."""
        epoch = 0 if self.fixed else int(engine.state.epoch)
        sequence = np.random.SeedSequence([self.seed, epoch, idist.get_rank()])
        own, transforms, generators = (int(number) for number in sequence.generate_state(3))
        loader = engine.state.dataloader
        if getattr(loader, "persistent_workers", False):
            raise ValueError(
                "the data loader has persistent_workers=True, and workers that outlive an epoch cannot be seeded; "
                "set it to False."
            )
        if not self.fixed:
            random.seed(own)
            np.random.seed(own)  # noqa: NPY002 - third-party code may draw from the global generator
            torch.manual_seed(own)
        set_rnd(getattr(loader, "dataset", None), transforms)
        _seed_loader(loader, generators, epoch, own_generator=self.fixed)
        # ignite makes the first pass itself, after this event, and skips into it where a run resumes inside an epoch
        if not self._first and loader is not None:
            engine.set_data(loader)
        elif self._first and engine.state.epoch_length and engine.state.iteration % engine.state.epoch_length:
            self.logger.warning(
                f"Resuming inside epoch {engine.state.epoch}: its random numbers start anew, so the weights will "
                "differ from those of an uninterrupted run. Checkpoints written at the end of an epoch resume exactly."
            )
        self._first = False


def _seed_loader(loader: Any, seed: int, epoch: int, *, own_generator: bool) -> None:
    """Seed the generators of a loader and its samplers, and tell them the epoch."""
    for number, part in enumerate(_parts(loader)):
        if own_generator and getattr(part, "generator", part) is None:
            part.generator = torch.Generator()  # instead of the global one, from which None draws
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed + number)
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


def _parts(loader: Any) -> Iterator[Any]:
    """The loader, its batch sampler and its sampler: whichever exist."""
    yield loader
    batch_sampler = getattr(loader, "batch_sampler", None)
    yield from (
        part
        for part in (batch_sampler, getattr(batch_sampler, "sampler", None), getattr(loader, "sampler", None))
        if part is not None
    )
