# SPDX-License-Identifier: Apache-2.0
"""Expressions over batch, networks and functions, such as ``discriminator(generator(low))``."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch

ENCODE, DECODE = "encode", "decode"


class Expression(NamedTuple):
    """A bare name (no arguments), or a call of a network, of its method or of a function.

    Two texts that mean the same give equal expressions, so that an expression is the key of its value.
    """

    name: str
    method: str = ""
    arguments: tuple[Expression, ...] | None = None

    def __str__(self) -> str:
        called = f"{self.name}.{self.method}" if self.method else self.name
        return called if self.arguments is None else f"{called}({', '.join(map(str, self.arguments))})"

    def parts(self) -> Iterable[Expression]:
        """The expression and all that it is made of."""
        yield self
        for argument in self.arguments or ():
            yield from argument.parts()


def parse_expression(text: str) -> Expression:
    """Read a text; ``ValueError`` for anything but names and calls with positional arguments."""
    if not isinstance(text, str):
        raise TypeError(f"an expression must be a text such as 'discriminator(generator(low))', got {text!r}.")

    def read(node: ast.AST | None) -> Expression:
        match node:
            case ast.Name(id=name):
                return Expression(name)
            case ast.Call(func=ast.Name(id=name), args=[_, *_] as args, keywords=[]):
                return Expression(name, "", tuple(map(read, args)))
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method), args=[_, *_] as args, keywords=[]):
                return Expression(name, method, tuple(map(read, args)))
        raise ValueError(
            f"{text!r} is not an expression of this trainer: it knows names, and calls name(...) and name.method(...) "
            "with one or more of these as positional arguments, such as 'discriminator(generator(low))'."
        )

    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        return read(None)
    return read(tree)


class Vocabulary:
    """What expressions may speak of; names that are neither networks nor functions are those of the batch.

    A network of which some text calls ``encode`` or ``decode`` runs in these two halves wherever it is called with one
    argument: ``generator(low)`` becomes ``generator.decode(generator.encode(low))``, so that the taps of
    ``generator.encode(low)`` cost nothing. Other networks are left alone: one may have methods of these names that
    mean something else.
    """

    def __init__(
        self,
        networks: Mapping[str, torch.nn.Module],
        functions: Mapping[str, Callable[..., Any]],
        texts: Iterable[str],
    ) -> None:
        self.networks, self.functions = dict(networks), dict(functions)
        read = {text: parse_expression(text) for text in texts}
        for text, expression in read.items():
            for part in expression.parts():
                self._check(part, text)
        called = {(part.name, part.method) for expression in read.values() for part in expression.parts()}
        self.halved = {
            name
            for name, network in self.networks.items()
            if called & {(name, ENCODE), (name, DECODE)}
            and all(callable(getattr(network, half, None)) for half in (ENCODE, DECODE))
        }
        self.expressions = {text: self._halves(expression) for text, expression in read.items()}
        self.batch_names = {
            part.name
            for expression in read.values()
            for part in expression.parts()
            if part.name not in self.networks and part.name not in self.functions
        }

    def _check(self, part: Expression, text: str) -> None:
        known = f"networks {_listed(self.networks)}; functions {_listed(self.functions)}"
        if part.arguments is None:
            if part.name in self.functions:
                raise ValueError(f"{text!r} names the function {part.name!r} without calling it.")
        elif part.name not in self.networks and (part.method or part.name not in self.functions):
            what = f"the method of a network {part.name!r}" if part.method else repr(part.name)
            raise ValueError(f"{text!r} calls {what}, which is not there; there are {known}.")
        elif part.method and not callable(getattr(self.networks[part.name], part.method, None)):
            kind = type(self.networks[part.name]).__name__
            raise ValueError(f"{text!r} calls {part.method!r} of {part.name!r}, but a {kind} has no such method.")

    def _halves(self, expression: Expression) -> Expression:
        name, method, arguments = expression
        if arguments is None:
            return expression
        arguments = tuple(map(self._halves, arguments))
        if name in self.halved and not method and len(arguments) == 1:
            return Expression(name, DECODE, (Expression(name, ENCODE, arguments),))
        return Expression(name, method, arguments)

    def check_batch(self, batch: Mapping[str, Any]) -> None:
        """``ValueError`` if expressions name what the batch lacks, or if the batch has the name of a network."""
        missing = sorted(self.batch_names - set(batch))
        if missing:
            raise ValueError(
                f"expressions name {_listed(missing)}, which is neither in the batch nor a network: the batch has "
                f"{_listed(sorted(batch))}; networks are {_listed(self.networks)}."
            )
        twice = sorted(set(batch) & {*self.networks, *self.functions})
        if twice:
            raise ValueError(f"{_listed(twice)} is in the batch and also the name of a network or function.")

    def trains(self, expression: Expression, trained: Iterable[str]) -> bool:
        """Whether a gradient flows from the value to one of the ``trained`` networks; none flows through functions."""
        if expression.name in self.functions:
            return False
        return expression.name in trained or any(self.trains(one, trained) for one in expression.arguments or ())

    def reused(self, phases: Sequence[tuple[Iterable[str], Iterable[Expression]]]) -> list[set[Expression]]:
        """For each phase (its trained networks, its expressions): which values must outlive it, for later phases."""
        past: set[Expression] = set()
        reads: list[set[Expression]] = []

        def visit(expression: Expression, trained: Iterable[str], now: set[Expression]) -> None:
            if expression.arguments is None or expression in now:
                return
            if expression in past and not self.trains(expression, trained):
                reads[-1].add(expression)
                return
            now.add(expression)
            for argument in expression.arguments:
                visit(argument, trained, now)

        for trained, expressions in phases:
            reads.append(set())
            now: set[Expression] = set()
            for expression in expressions:
                visit(expression, trained, now)
            past |= now
        return [set().union(*reads[number + 1 :]) for number in range(len(reads))]


class IterationValues:
    """Values of expressions in one iteration, each computed once.

    Values that an earlier phase left and no gradient concerns in this one are taken over, cut off from the graph.
    ``autocast`` makes the context in which networks run.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        batch: Mapping[str, Any],
        autocast: Callable[[], AbstractContextManager],
    ) -> None:
        self._vocabulary, self._batch, self._autocast = vocabulary, batch, autocast
        self._past: dict[Expression, Any] = {}
        self._now: dict[Expression, Any] = {}
        self._trained: Iterable[str] = ()

    def begin(self, trained: Iterable[str]) -> None:
        """Start a phase that trains these networks."""
        self._trained = trained

    def end(self, keep: Iterable[Expression]) -> None:
        """End the phase; its graph goes, and of all values so far only those in ``keep`` stay."""
        found = {**self._past, **self._now}
        self._past = {one: detached(found[one]) for one in keep if one in found}
        self._now = {}

    def __call__(self, expression: Expression) -> Any:
        words = self._vocabulary
        if expression.arguments is None:
            return words.networks.get(expression.name, self._batch.get(expression.name))
        if expression in self._now:
            return self._now[expression]
        trains = words.trains(expression, self._trained)
        if not trains and expression in self._past:
            return self._past[expression]
        arguments = [self(argument) for argument in expression.arguments]
        if expression.name in words.functions:
            with torch.no_grad():
                value = detached(words.functions[expression.name](*map(detached, arguments)))
        else:
            network = words.networks[expression.name]
            call = getattr(network, expression.method) if expression.method else network
            # a context of its own for each call: autocast would hand weights cast without gradient to calls with one
            with torch.set_grad_enabled(trains), self._autocast():
                value = call(*arguments)
        self._now[expression] = value
        return value


def detached(value: Any) -> Any:
    """The value with all its tensors cut off from the graph."""
    return _mapped(value, torch.Tensor.detach)


def in_float32(value: Any) -> Any:
    """The value with tensors of half precision as float32; float64 stays."""
    return _mapped(value, lambda one: one.float() if one.is_floating_point() and one.element_size() < 4 else one)


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(one, change) for key, one in value.items()}
    if isinstance(value, list):
        changed = copy.copy(value)  # a list of taps may remember more than its entries
        changed[:] = [_mapped(one, change) for one in value]
        for name, one in vars(changed).items() if hasattr(changed, "__dict__") else ():
            setattr(changed, name, _mapped(one, change))
        return changed
    if isinstance(value, tuple):
        entries = [_mapped(one, change) for one in value]
        return type(value)(*entries) if hasattr(value, "_fields") else tuple(entries)
    return value


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
