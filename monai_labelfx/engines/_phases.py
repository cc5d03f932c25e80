# SPDX-License-Identifier: Apache-2.0
"""The recipe of an adversarial training, checked once: which networks each phase trains, by which terms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any, NamedTuple

import torch
from monai.utils import ensure_tuple

from monai_labelfx.engines._expressions import Expression, Vocabulary, in_float32

LOSS = "loss"


class Term(NamedTuple):
    """One loss of a phase: ``weight * loss(*inputs)``."""

    name: str
    weight: float
    loss: Callable[..., torch.Tensor]
    inputs: tuple[Expression, ...]

    def value(self, inputs: Sequence[Any]) -> torch.Tensor:
        """The loss of the values of the inputs, not weighted, computed in float32."""
        value = self.loss(*in_float32(inputs))
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            shape = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value)
            raise ValueError(f"the loss of term {self.name!r} must return a tensor with one number, got {shape}.")
        return value.reshape(())


class Phase(NamedTuple):
    """One step of an iteration; values of the expressions in ``keep`` are used again by later phases."""

    name: str
    train: tuple[str, ...]
    optimizer: torch.optim.Optimizer
    terms: tuple[Term, ...]
    keep: frozenset[Expression]

    @property
    def total(self) -> str:
        """Name of the weighted sum of the terms in the output."""
        return f"{self.name}_{LOSS}"

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The parameters of the step."""
        return [one for group in self.optimizer.param_groups for one in group["params"]]

    def weighted_sum(self, losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What the phase minimises."""
        return sum(term.weight * losses[term.name] for term in self.terms)  # type: ignore[return-value]

    @contextmanager
    def alone(self, networks: Iterable[torch.nn.Module]) -> Iterator[None]:
        """Freeze all parameters of the networks but those of the step; they are as before afterwards."""
        own = {id(one) for one in self.parameters}
        others = [one for net in networks for one in net.parameters() if one.requires_grad and id(one) not in own]
        try:
            for one in others:
                one.requires_grad_(False)
            yield
        finally:
            for one in others:
                one.requires_grad_(True)


def read_recipe(
    networks: Mapping[str, torch.nn.Module],
    functions: Mapping[str, Callable[..., Any]],
    phases: Mapping[str, Mapping[str, Any]],
    terms: Sequence[Mapping[str, Any]],
) -> tuple[Vocabulary, tuple[Phase, ...]]:
    """Check a recipe and make expressions of its texts; see ``UnpairedTrainer`` for what it holds."""
    for what, value in (("networks", networks), ("functions", functions), ("phases", phases)):
        if not isinstance(value, Mapping):
            raise TypeError(f"{what} must map names to their values, got {type(value).__name__}.")
    _check_names(networks, functions)
    for number, term in enumerate(terms):
        _check_keys(f"term {term.get('name', number)!r}", term, {"name", "phase", "loss", "inputs"}, {"weight"})
    vocabulary = Vocabulary(networks, functions, [text for term in terms for text in ensure_tuple(term["inputs"])])
    read = []
    for name, phase in phases.items():
        _check_keys(f"phase {name!r}", phase, {"train", "optimizer"}, set())
        train = ensure_tuple(phase["train"])
        _check_trained(name, train, phase["optimizer"], networks)
        own = tuple(_term(one, vocabulary) for one in terms if one["phase"] == name)
        read.append(Phase(name, train, phase["optimizer"], own, frozenset()))
    _check_terms(read, terms, vocabulary)
    kept = vocabulary.reused([(one.train, [text for term in one.terms for text in term.inputs]) for one in read])
    return vocabulary, tuple(one._replace(keep=frozenset(keep)) for one, keep in zip(read, kept, strict=True))


def _term(term: Mapping[str, Any], vocabulary: Vocabulary) -> Term:
    weight = term.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight):
        raise ValueError(f"weight of term {term['name']!r} must be a finite number, got {weight!r}.")
    if not callable(term["loss"]):
        raise TypeError(f"loss of term {term['name']!r} must be callable, got {type(term['loss']).__name__}.")
    inputs = tuple(vocabulary.expressions[text] for text in ensure_tuple(term["inputs"]))
    return Term(term["name"], float(weight), term["loss"], inputs)


def _check_keys(what: str, found: Mapping[str, Any], needed: set[str], optional: set[str]) -> None:
    if needed - set(found) or set(found) - needed - optional:
        also = f", and may hold {_listed(optional)}" if optional else ""
        raise ValueError(f"{what} must hold {_listed(needed)}{also}; it holds {_listed(found)}.")


def _check_names(networks: Mapping[str, torch.nn.Module], functions: Mapping[str, Any]) -> None:
    wrappers = (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)
    owner: dict[int, str] = {}
    for name, network in networks.items():
        if not isinstance(network, torch.nn.Module) or isinstance(network, wrappers):
            raise TypeError(
                f"network {name!r} is a {type(network).__name__}, expected a torch.nn.Module as it is: this trainer "
                "averages gradients over processes itself."
            )
        for parameter in network.parameters():
            if owner.setdefault(id(parameter), name) != name:
                raise ValueError(
                    f"networks {owner[id(parameter)]!r} and {name!r} share parameters, so that training one while the "
                    "other is frozen means nothing; make one network of them."
                )
    for name in (*networks, *functions):
        if not str(name).isidentifier():
            raise ValueError(f"{name!r} cannot be the name of a network or function: it must be a Python name.")
    if set(networks) & set(functions):
        raise ValueError(f"{_listed(set(networks) & set(functions))} names a network and also a function.")


def _check_trained(
    name: str, train: Sequence[str], optimizer: torch.optim.Optimizer, networks: Mapping[str, torch.nn.Module]
) -> None:
    unknown = [one for one in train if one not in networks]
    if unknown or not train:
        raise ValueError(
            f"phase {name!r} must train networks out of {_listed(networks)}, got {_listed(unknown or train)}."
        )
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer of phase {name!r} must be one of torch.optim, got {type(optimizer).__name__}.")
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    own = {one: {id(parameter) for parameter in networks[one].parameters()} for one in train}
    idle = [one for one in train if not own[one] & held]
    if idle:
        raise ValueError(
            f"the optimizer of phase {name!r} holds no parameter of {_listed(idle)}, which it is to train."
        )
    foreign = len(held - set().union(*own.values()))
    if foreign:
        raise ValueError(
            f"the optimizer of phase {name!r} holds {foreign} parameters that belong to none of {_listed(train)}."
        )


def _check_terms(phases: Sequence[Phase], terms: Sequence[Mapping[str, Any]], vocabulary: Vocabulary) -> None:
    known = [phase.name for phase in phases]
    if not phases:
        raise ValueError("phases is empty, expected at least one phase.")
    for lost in (term for term in terms if term["phase"] not in known):
        raise ValueError(f"term {lost['name']!r} belongs to phase {lost['phase']!r}; phases are {_listed(known)}.")
    names = [one["name"] for one in terms] + [phase.total for phase in phases] + [LOSS]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(
            f"{_listed(twice)} would name two numbers of the output, which holds the terms, <phase>_loss and loss."
        )
    for phase in phases:
        if not phase.terms:
            raise ValueError(
                f"phase {phase.name!r} has no term; terms belong to {_listed({t['phase'] for t in terms})}."
            )
        for term in phase.terms:
            if not any(vocabulary.trains(one, phase.train) for one in term.inputs):
                raise ValueError(
                    f"term {term.name!r} of phase {phase.name!r} gives no gradient to {_listed(phase.train)}: its "
                    f"inputs are {', '.join(map(str, term.inputs)) or 'none'}."
                )


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(repr(name) for name in sorted(map(str, names))) or "none"
