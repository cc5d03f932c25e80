# SPDX-License-Identifier: Apache-2.0
"""Adversarial training with unpaired images: named networks, phases and a list of losses over expressions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from ignite.engine import Engine, EventEnum, Events
from ignite.metrics import Metric
from monai.data import MetaTensor
from monai.engines import Trainer, Workflow
from monai.engines.utils import IterationEvents, default_metric_cmp_fn
from monai.transforms import Transform
from torch.utils.data import DataLoader

from monai_labelfx.engines._expressions import IterationValues
from monai_labelfx.engines._phases import LOSS, Phase, read_recipe
from monai_labelfx.engines._ranks import average_gradients, broadcast_networks, true_everywhere

FILE_SUFFIX = "_file"


class UnpairedTrainer(Trainer):
    """Trainer of adversarial recipes over unpaired images, which are configuration: no recipe needs code.

    An iteration goes through the phases in their order. Phase p minimises

    .. math:: L_p = \\sum_{k \\in p} w_k \\, \\ell_k(e_{k1}, e_{k2}, \\ldots)

    over the parameters of the networks that it trains, with one step of its optimiser. The inputs e of a loss are
    expressions over the names of the batch, networks, their methods, and functions:

    ====================================================  ==========================================================
    ``"low"``                                             an entry of the batch
    ``"discriminator(generator(low))"``                   networks applied one after another
    ``"generator.encode(low)"``                           a method of a network
    ``"heads(generator.encode(low), positions(low))"``    networks and functions may take several arguments
    ``"discriminator(pool(generator(low)))"``             a function: it gets, and gives, values without gradient
    ``"discriminator"``                                   the network itself, for losses that call it (gradient
                                                          penalty, Noise2Void)
    ====================================================  ==========================================================

    Rules:

    * Each distinct expression is computed once per iteration, or once for every phase that trains one of its networks.
    * In a phase the parameters of all other networks are frozen, and what contains no trained network is computed
      without gradient. Such a value of an earlier phase is used again, as it was: where the generator comes first, the
      discriminator sees the very fakes that trained the generator, although the generator has moved on.
    * If some expression calls ``encode`` or ``decode`` of a network, the network runs in these two halves wherever it
      is called with one argument, ``network(x) == network.decode(network.encode(x))``: taps cost nothing extra.
    * Networks that some phase trains are in training mode, all others in evaluation mode and frozen throughout.

    ``engine.state.output`` holds the tensors of the batch under their names (``low``, ``high``), each term under its
    name as the loss returned it, ``<phase>_loss`` for each L_p, and ``loss``, which is L_p of the first phase; all
    without graph. FORWARD_COMPLETED, LOSS_COMPLETED and BACKWARD_COMPLETED are fired in each phase, whose name is
    ``engine.state.phase``: when the inputs of its losses are there, when L_p is, and behind its gradients.
    MODEL_COMPLETED is fired once, after the last step.

    Several processes need no DistributedDataParallel, which knows neither methods of networks nor several forward
    passes before a backward one. Before the first epoch, behind all handlers of STARTED (so with the weights of a
    checkpoint), parameters and buffers of rank 0 go to all ranks, and in each phase the gradients are averaged.

    Args:
        device: where images go; the networks must be there.
        max_epochs: number of epochs.
        train_data_loader: gives batches for ``prepare_batch``.
        networks: name -> network, not wrapped in DistributedDataParallel. They share no parameters.
        phases: name -> ``{"train": names of networks, "optimizer": optimiser over their parameters}``, in order. The
            paper's code has the generator first.
        terms: losses, each ``{"name", "phase", "loss", "inputs": expressions[, "weight": 1]}``. ``loss(*inputs)``
            returns one number.
        functions: name -> callable, such as an :py:class:`~monai_labelfx.engines.ImagePool`. Those with a
            ``state_dict`` belong into the checkpoint.
        epoch_length: iterations of an epoch; default the length of the loader.
        non_blocking: of the copies to the device.
        prepare_batch: makes the mapping of names to values, called as MONAI's. Default: all tensors of the batch,
            as plain tensors on the device.
        iteration_update: replaces the whole iteration, see MONAI's trainers.
        postprocessing: transforms of the output, after each iteration.
        key_train_metric: the metric to compare checkpoints by, of what the output holds; there are no predictions.
        additional_metrics: further metrics.
        metric_cmp_fn: tells whether a metric is better than the best one so far.
        train_handlers: handlers, attached in this order.
        amp: run networks under ``torch.autocast`` of the device. Losses are computed outside of it and get float32,
            and so do networks that a loss calls itself. Where the type is float16, the gradients of each phase are
            scaled, and the scales are part of the trainer's ``state_dict``.
        event_names: further events.
        event_to_attr: see MONAI's trainers.
        decollate: make ``state.batch`` and ``state.output`` lists with one dictionary per image. Default ``False``,
            unlike MONAI's: nothing here needs it.
        optim_set_to_none: of ``optimizer.zero_grad``.
        to_kwargs: for ``Tensor.to`` of floating point tensors.
        amp_kwargs: for ``torch.autocast``, such as ``{"dtype": torch.bfloat16}``.

    Raises:
        TypeError: for networks, optimisers and losses that are none.
        ValueError: for a recipe that does not fit together, such as an unknown name in an expression, a term without
            gradient, or an optimiser with parameters of a network that its phase does not train. In an iteration: for a
            name that the batch lacks, a loss that is not one number, and one that is not finite. The message then
            tells the terms of the phase and names the files, where the batch knows them (metadata of its MetaTensors,
            or entries ``<name>_file``); no process does that step, so the last checkpoint is sound.

    Note:
        With the discriminator first, the generator's fakes are computed twice: without gradient for the discriminator,
        and once more for the generator.

    Example:
        >>> generator, discriminator = torch.nn.Conv2d(1, 1, 1), torch.nn.Conv2d(1, 1, 1)
        >>> trainer = UnpairedTrainer(
        ...     "cpu", 1, [{"low": torch.ones(2, 1, 4, 4), "high": torch.zeros(2, 1, 4, 4)}],
        ...     networks={"generator": generator, "discriminator": discriminator},
        ...     phases={
        ...         "g": {"train": ["generator"], "optimizer": torch.optim.Adam(generator.parameters())},
        ...         "d": {"train": ["discriminator"], "optimizer": torch.optim.Adam(discriminator.parameters())},
        ...     },
        ...     terms=[
        ...         {"name": "fool", "phase": "g", "loss": lambda fake: (fake - 1).square().mean(),
        ...          "inputs": ["discriminator(generator(low))"]},
        ...         {"name": "identity", "phase": "g", "weight": 5, "loss": torch.nn.L1Loss(),
        ...          "inputs": ["generator(high)", "high"]},
        ...         {"name": "tell", "phase": "d", "weight": 0.5,
        ...          "loss": lambda real, fake: (real - 1).square().mean() + fake.square().mean(),
        ...          "inputs": ["discriminator(high)", "discriminator(generator(low))"]},
        ...     ],
        ... )
        >>> trainer.run()
        >>> sorted(trainer.state.output)
        ['d_loss', 'fool', 'g_loss', 'high', 'identity', 'loss', 'low', 'tell']
    """

    def __init__(
        self,
        device: str | torch.device,
        max_epochs: int,
        train_data_loader: Iterable | DataLoader,
        networks: Mapping[str, torch.nn.Module],
        phases: Mapping[str, Mapping[str, Any]],
        terms: Sequence[Mapping[str, Any]],
        functions: Mapping[str, Callable[..., Any]] | None = None,
        epoch_length: int | None = None,
        non_blocking: bool = False,
        prepare_batch: Callable | None = None,
        iteration_update: Callable[[Engine, Any], Any] | None = None,
        postprocessing: Transform | None = None,
        key_train_metric: dict[str, Metric] | None = None,
        additional_metrics: dict[str, Metric] | None = None,
        metric_cmp_fn: Callable = default_metric_cmp_fn,
        train_handlers: Sequence | None = None,
        amp: bool = False,
        event_names: list[str | EventEnum | type[EventEnum]] | None = None,
        event_to_attr: dict | None = None,
        decollate: bool = False,
        optim_set_to_none: bool = False,
        to_kwargs: dict | None = None,
        amp_kwargs: dict | None = None,
    ) -> None:
        functions = {} if functions is None else functions
        self.vocabulary, self.phases = read_recipe(networks, functions, phases, terms)
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            epoch_length=epoch_length,
            non_blocking=non_blocking,
            prepare_batch=_tensors if prepare_batch is None else prepare_batch,
            iteration_update=iteration_update,
            postprocessing=postprocessing,
            key_metric=key_train_metric,
            additional_metrics=additional_metrics,
            metric_cmp_fn=metric_cmp_fn,
            handlers=train_handlers,
            amp=amp,
            event_names=event_names,
            event_to_attr=event_to_attr,
            decollate=decollate,
            to_kwargs=to_kwargs,
            amp_kwargs=amp_kwargs,
        )
        self.networks = dict(networks)
        self.functions = dict(functions)
        self.optimizer = self.phases[0].optimizer  # whose learning rate a RunRecord notes
        self.optim_set_to_none = optim_set_to_none
        kind = self.state.device.type
        half = amp and self.amp_kwargs.get("dtype", torch.get_autocast_dtype(kind)) == torch.float16
        self.scalers = {phase.name: torch.amp.GradScaler(kind) for phase in self.phases if half}
        self._equal = False
        self.add_event_handler(Events.STARTED, self._run_started)
        self.add_event_handler(Events.EPOCH_STARTED, self._make_equal)

    def run(self) -> None:  # type: ignore[override]
        """Train; called again, it goes on where it stopped."""
        Workflow.run(self)  # MONAI's trainer would make one scaler of CUDA, whatever device and type

    def state_dict(self) -> Any:
        """Epoch and length of MONAI's trainers, and the scales of float16."""
        state = super().state_dict()
        if self.scalers:
            state["scalers"] = {name: scaler.state_dict() for name, scaler in self.scalers.items()}
        return state

    def load_state_dict(self, state_dict: Mapping) -> None:
        """Go on from a checkpoint; one without scales starts them anew."""
        scales = state_dict.get("scalers", {})
        for name in set(scales) & set(self.scalers):
            self.scalers[name].load_state_dict(scales[name])
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "scalers"})

    def _run_started(self) -> None:
        self._equal = False

    def _make_equal(self) -> None:
        """Once per run; not when the run starts, where a checkpoint may still be loaded behind us."""
        if not self._equal:
            broadcast_networks(self.networks.values())
            self._equal = True

    def _iteration(self, engine: Any, batchdata: Any) -> dict:
        """All phases of one batch."""
        if batchdata is None:
            raise ValueError("the data loader gave None instead of a batch.")
        batch = engine.prepare_batch(batchdata, engine.state.device, engine.non_blocking, **engine.to_kwargs)
        engine.vocabulary.check_batch(batch)
        engine.state.output = dict(batch)
        values = IterationValues(
            engine.vocabulary,
            batch,
            partial(torch.autocast, engine.state.device.type, enabled=engine.amp, **engine.amp_kwargs),
        )
        trained = {name for phase in engine.phases for name in phase.train}
        for name, network in engine.networks.items():
            network.train(name in trained)
        for phase in engine.phases:
            engine.state.phase = phase.name
            with phase.alone(engine.networks.values()):
                engine._phase(phase, values, batchdata)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _phase(self, phase: Phase, values: IterationValues, batchdata: Any) -> None:
        """Losses, gradients and the step of one phase."""
        phase.optimizer.zero_grad(set_to_none=self.optim_set_to_none)
        values.begin(phase.train)
        inputs = [[values(expression) for expression in term.inputs] for term in phase.terms]
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        losses = {term.name: term.value(own) for term, own in zip(phase.terms, inputs, strict=True)}
        total = phase.weighted_sum(losses)
        new = {**losses, phase.total: total, **({LOSS: total} if phase is self.phases[0] else {})}
        taken = set(new) & set(self.state.output)
        if taken:
            raise ValueError(f"{', '.join(sorted(taken))} names an entry of the batch and also a loss.")
        self.state.output |= {name: value.detach() for name, value in new.items()}
        self.fire_event(IterationEvents.LOSS_COMPLETED)
        self._check_finite(phase, total, batchdata)
        scaler = self.scalers.get(phase.name)
        (total if scaler is None else scaler.scale(total)).backward()
        average_gradients(phase.parameters)
        self.fire_event(IterationEvents.BACKWARD_COMPLETED)
        if scaler is None:
            phase.optimizer.step()
        else:
            scaler.step(phase.optimizer)
            scaler.update()
        values.end(phase.keep)

    def _check_finite(self, phase: Phase, total: torch.Tensor, batchdata: Any) -> None:
        finite = torch.isfinite(total.detach())
        if true_everywhere(finite):
            return
        numbers = ", ".join(f"{term.name} {float(self.state.output[term.name]):.4g}" for term in phase.terms)
        place = f"epoch {self.state.epoch}, iteration {self.state.iteration}"
        if finite:
            raise ValueError(f"the loss of phase {phase.name!r} is not finite in another process, in {place}.")
        files = ", ".join(_files(batchdata))
        raise ValueError(
            f"the loss of phase {phase.name!r} is not finite ({numbers}) in {place}{', for ' if files else ''}{files}: "
            "look at the values of the images, or lower the learning rate."
        )


def _tensors(
    batchdata: Any, device: str | torch.device | None = None, non_blocking: bool = False, **kwargs: Any
) -> dict[str, torch.Tensor]:
    """All tensors of a batch under their names, without metadata: what else it holds is for error messages."""
    if not isinstance(batchdata, Mapping):
        raise TypeError(f"a batch must be a mapping such as {{'low': images, 'high': images}}, got {type(batchdata)}.")
    return {
        name: value.as_subclass(torch.Tensor).to(
            device=device, non_blocking=non_blocking, **(kwargs if value.is_floating_point() else {})
        )
        for name, value in batchdata.items()
        if isinstance(value, torch.Tensor)
    }


def _files(batchdata: Any) -> list[str]:
    """Names of the files of a batch, without folders, which may tell more than they should."""
    found: list[str] = []
    for name, value in batchdata.items() if isinstance(batchdata, Mapping) else ():
        known = value.meta.get("filename_or_obj") if isinstance(value, MetaTensor) else None
        known = value if name.endswith(FILE_SUFFIX) else known
        found += [one for one in ([known] if isinstance(known, str) else known or []) if isinstance(one, str) and one]
    return list(dict.fromkeys(map(os.path.basename, found)))
