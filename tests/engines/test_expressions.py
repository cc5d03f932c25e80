# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from typing import NamedTuple

import pytest
import torch

from monai_labelfx.engines._expressions import (
    Expression,
    IterationValues,
    Vocabulary,
    detached,
    in_float32,
    parse_expression,
)

FAKE = "generator(low)"


class Scale(torch.nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(factor))
        self.calls: Counter = Counter()

    def forward(self, x):
        self.calls["forward"] += 1
        return self.factor * x

    def inverse(self, x):
        self.calls["inverse"] += 1
        return x / self.factor


class Halves(Scale):
    def encode(self, x):
        self.calls["encode"] += 1
        return Taps(self.factor * x, x)

    def decode(self, taps):
        self.calls["decode"] += 1
        return taps[0] + taps.image


class Taps(list):
    """Taps that remember their image, as those of residual generators do."""

    def __init__(self, tap, image):
        super().__init__([tap])
        self.image = image


class Pair(NamedTuple):
    first: torch.Tensor
    second: str


def words(*texts: str, generator=None, **functions) -> Vocabulary:
    networks = {"generator": Halves(2.0) if generator is None else generator, "discriminator": Scale(3.0)}
    return Vocabulary(networks, functions, texts)


def values_of(vocabulary: Vocabulary, batch=None) -> IterationValues:
    return IterationValues(vocabulary, {"low": torch.ones(2)} if batch is None else batch, nullcontext)


def test_reads_names_and_calls():
    assert parse_expression(" low ") == Expression("low")
    nested = parse_expression("heads( generator.encode(generator(low)),positions(low) )")
    low = Expression("low")
    fake = Expression("generator", "", (low,))
    assert nested == Expression(
        "heads", "", (Expression("generator", "encode", (fake,)), Expression("positions", "", (low,)))
    )
    assert str(nested) == "heads(generator.encode(generator(low)), positions(low))"
    assert [str(part) for part in nested.parts()][:2] == [str(nested), "generator.encode(generator(low))"]
    assert parse_expression("f(\n  low\n)") == parse_expression("f(low)")


@pytest.mark.parametrize(
    "text",
    ["", "low + high", "f(low", "f()", "f(x=low)", "f(low, *rest)", "f(low)[0]", "a.b", "a.b.c(low)", "f(low)(high)"]
    + ["f(1)", "'low'", "lambda: low", "f(low) if low else high", "import os", "f(low, x=1)", "low; high", "f(a.b)"],
)
def test_refuses_all_else_in_one_sentence(text):
    with pytest.raises(ValueError, match="is not an expression of this trainer: it knows names, and calls") as caught:
        parse_expression(text)
    assert repr(text) in str(caught.value)


def test_refuses_what_is_no_text():
    with pytest.raises(TypeError, match="an expression must be a text such as .* got 3"):
        parse_expression(3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "generater(low)",
            "calls 'generater', which is not there; there are networks 'generator', 'discriminator'; fun",
        ),
        ("discriminator(pol(low))", r"'discriminator\(pol\(low\)\)' calls 'pol', which is not there"),
        ("generator.encod(low)", "calls 'encod' of 'generator', but a Halves has no such method"),
        ("low.encode(low)", "the method of a network 'low', which is not there"),
        ("pool.encode(low)", "the method of a network 'pool', which is not there"),
        ("discriminator(pool)", "names the function 'pool' without calling it"),
    ],
)
def test_names_are_checked_when_the_recipe_is_read(text, message):
    with pytest.raises(ValueError, match=message):
        words(text, pool=torch.clone)


def test_names_of_the_batch_are_checked_when_it_is_there():
    vocabulary = words("discriminator(generator(low))", "pool(high)", pool=torch.clone)
    assert vocabulary.batch_names == {"low", "high"}
    vocabulary.check_batch({"low": 0, "high": 0, "note": 0})
    with pytest.raises(
        ValueError, match="'high', which is neither in the batch nor a network: the batch has 'low', 'n"
    ):
        vocabulary.check_batch({"note": 0, "low": 0})
    for name in ("generator", "pool"):
        with pytest.raises(ValueError, match=f"'{name}' is in the batch and also the name of a network or function"):
            vocabulary.check_batch({"low": 0, "high": 0, name: 0})


def test_halves_run_only_where_somebody_asks_for_one():
    whole = "generator.decode(generator.encode(low))"
    asked = words("discriminator(generator(low))", "generator.encode(high)")
    assert str(asked.expressions["discriminator(generator(low))"]) == f"discriminator({whole})"
    assert str(words(FAKE).expressions[FAKE]) == FAKE
    two = words("generator(low, high)", "generator.encode(low)")
    assert str(two.expressions["generator(low, high)"]) == "generator(low, high)"
    only = Scale(1.0)
    only.encode = only.forward
    assert str(words(FAKE, "generator.encode(low)", generator=only).expressions[FAKE]) == FAKE


def test_each_expression_is_computed_once():
    texts = (FAKE, "generator.encode(low)", "generator.encode(generator(low))", "discriminator(generator( low ))")
    vocabulary = words(*texts)
    values = values_of(vocabulary)
    values.begin(("generator",))
    found = [values(vocabulary.expressions[text]) for text in texts]
    generator, discriminator = vocabulary.networks.values()
    assert generator.calls == {"encode": 2, "decode": 1} and discriminator.calls == {"forward": 1}
    assert found[0].tolist() == [3.0, 3.0] and found[3].tolist() == [9.0, 9.0]
    assert values(vocabulary.expressions[FAKE]) is found[0]


def test_gradients_flow_where_a_network_is_trained():
    vocabulary = words(
        "discriminator(generator(low))", FAKE, "discriminator(low)", "pool(generator(low))", pool=torch.clone
    )
    found = {}
    for trained in ("generator", "discriminator"):
        values = values_of(vocabulary)
        values.begin((trained,))
        found[trained] = [values(one).requires_grad for one in vocabulary.expressions.values()]
    assert found == {"generator": [True, True, False, False], "discriminator": [True, False, True, False]}


def test_values_of_an_earlier_phase_are_used_again_as_they_were():
    texts = ("discriminator(generator(low))", "discriminator(pool(generator(low)))", "discriminator(low)")
    vocabulary = words(*texts, generator=Scale(2.0), pool=torch.clone)
    first, second, third = (vocabulary.expressions[text] for text in texts)
    phases = [(("generator",), [first]), (("discriminator",), [first, second]), (("generator",), [third])]
    keep = vocabulary.reused(phases)
    assert [sorted(map(str, one)) for one in keep] == [[FAKE], [], []]
    generator, discriminator = vocabulary.networks.values()
    values = values_of(vocabulary)
    for (trained, expressions), kept in zip(phases[:2], keep, strict=False):
        values.begin(trained)
        results = [values(one) for one in expressions]
        values.end(kept)
        with torch.no_grad():
            generator.factor += 100  # a step
    assert generator.calls["forward"] == 1 and discriminator.calls["forward"] == 3
    assert results[0].tolist() == results[1].tolist() == [6.0, 6.0], "fakes from before the step"
    results[0].sum().backward()
    assert generator.factor.grad is None and discriminator.factor.grad.item() == 4.0


def test_a_trained_expression_of_one_phase_serves_as_a_constant_of_the_next():
    texts = ("discriminator(low)", "generator(discriminator(low))")
    vocabulary = words(*texts)
    one, two = vocabulary.expressions.values()
    keep = vocabulary.reused([(("discriminator",), [one]), (("generator",), [two])])
    assert keep == [{one}, set()]
    values = values_of(vocabulary)
    values.begin(("discriminator",))
    values(one)
    values.end(keep[0])
    values.begin(("generator",))
    values(two).sum().backward()
    discriminator = vocabulary.networks["discriminator"]
    assert discriminator.calls["forward"] == 1 and discriminator.factor.grad is None


def test_functions_get_and_give_values_without_gradient():
    seen = []

    def pool(image, taps):
        seen.append((image.requires_grad, taps[0].requires_grad, taps.image.requires_grad, torch.is_grad_enabled()))
        return image.requires_grad_()

    vocabulary = words("pool(generator(low), generator.encode(generator(low)))", FAKE, pool=pool)
    values = values_of(vocabulary)
    values.begin(("generator",))
    pooled, fake = (values(one) for one in vocabulary.expressions.values())
    assert seen == [(False, False, False, False)] and not pooled.requires_grad and fake.requires_grad


def test_a_bare_name_is_the_network_or_the_entry_of_the_batch():
    vocabulary = words("generator", "low", "discriminator.inverse(low)")
    batch = {"low": torch.ones(2)}
    values = values_of(vocabulary, batch)
    values.begin(("generator",))
    network, low, inverse = (values(one) for one in vocabulary.expressions.values())
    assert (
        network is vocabulary.networks["generator"]
        and low is batch["low"]
        and inverse.tolist() == pytest.approx([1 / 3] * 2)
    )
    assert vocabulary.trains(Expression("generator"), ("generator",))


def test_nested_values_are_mapped_and_keep_their_kind():
    half = torch.ones(2, dtype=torch.bfloat16, requires_grad=True) * 1
    taps = Taps(half, half)
    changed = in_float32({"a": (half, taps), "b": Pair(half.double(), "text"), "c": torch.ones(1, dtype=torch.int8)})
    assert changed["a"][0].dtype == changed["a"][1][0].dtype == changed["a"][1].image.dtype == torch.float32
    assert type(changed["a"][1]) is Taps and type(changed["b"]) is Pair and changed["b"].first.dtype == torch.float64
    assert changed["c"].dtype == torch.int8 and changed["a"][0].requires_grad
    cut = detached([taps, Pair(half, "text")])
    assert not cut[0].image.requires_grad and not cut[0][0].requires_grad and not cut[1].first.requires_grad
    assert taps[0].requires_grad and taps.image.requires_grad, "the value itself stays"
