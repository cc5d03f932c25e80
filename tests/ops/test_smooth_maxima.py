# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import math
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from torch.nn.functional import logsigmoid

from monai_labelfx.ops.smooth_maxima import (
    EMPTY_BAG_LOGIT,
    SMOOTH_MAX_KINDS,
    add_smooth_max_terms,
    alpha_for_target,
    smooth_max,
    smooth_max_from_terms,
    smooth_max_terms,
)

SMOOTH = SMOOTH_MAX_KINDS[:3]
BAGS = st.lists(st.floats(-60, 60), min_size=1, max_size=12)
EXTREMES = [-3.3e38, -1e30, -1e4, -200.0, -88.0, -45.0, -1.0, 0.0, 1.0, 17.0, 45.0, 88.0, 200.0, 1e4, 1e30, 3.3e38]

kinds = pytest.mark.parametrize("kind", SMOOTH_MAX_KINDS)
smooth_kinds = pytest.mark.parametrize("kind", SMOOTH)


def by_definition(logits: list[float], kind: str, alpha: float) -> float:
    """Naive, on probabilities, with 200 digits: the logit of the smooth maximum."""
    with localcontext() as context:
        context.prec = 200
        a, n = Decimal(alpha), len(logits)
        x = [1 / (1 + (-Decimal(z)).exp()) for z in logits]
        if kind == "softmax":
            p = sum(v * (a * v).exp() for v in x) / sum((a * v).exp() for v in x)
        elif kind == "quasimax":
            p = (sum((a * v).exp() for v in x).ln() - Decimal(n).ln()) / a
        elif kind == "power_mean":
            p = (sum(v**a for v in x) / n) ** (1 / a)
        else:
            p = max(x)
        return float((p / (1 - p)).ln())


def probabilities_by_loop(logits: torch.Tensor, kind: str, alpha: float) -> torch.Tensor:
    """Naive, in float64: rows of logits to the smooth maximum of each."""
    result = []
    for row in logits.double().sigmoid().tolist():
        powers = [math.exp(alpha * x) for x in row]
        result.append(
            {
                "softmax": sum(x * w for x, w in zip(row, powers, strict=True)) / sum(powers),
                "quasimax": math.log(sum(powers) / len(row)) / alpha,
                "power_mean": (sum(x**alpha for x in row) / len(row)) ** (1 / alpha),
                "max": max(row),
            }[kind]
        )
    return torch.tensor(result, dtype=torch.float64)


def randn(*shape: int, scale: float = 3.0, seed: int = 0) -> torch.Tensor:
    return scale * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@kinds
@pytest.mark.parametrize("alpha", [0.01, 0.5, 1.0, 4.0, 8.0, 20.0, 100.0])
def test_agrees_with_a_loop_over_probabilities(kind, alpha):
    logits = randn(40, 30)
    found = smooth_max(logits, kind=kind, alpha=alpha)
    assert found.shape == (40,) and found.dtype == torch.float64
    torch.testing.assert_close(found.sigmoid(), probabilities_by_loop(logits, kind, alpha), rtol=1e-11, atol=1e-14)


@kinds
@pytest.mark.parametrize("dtype, error", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("alpha", [0.001, 0.5, 4.0, 8.0, 100.0, 1000.0])
def test_both_tails_agree_with_200_digits(kind, dtype, error, alpha):
    """The logit is right to its last digits, so that log p and log(1 - p) are, down to probabilities of 1e-80."""
    bags = [[0.0], [-150.0, -160.0, -150.5], [150.0, 160.0], [180.0, 1.0, -170.0], [-0.1, 0.2, 0.1, 0.0]]
    bags += [[30.0, 29.0, 3.0], [-30.0, -29.0, -50.0, -35.0], [90.0, -3.0], [46.0, -46.0, 44.0], [2.0, 2.0, 2.0]]
    for bag in bags:
        exact = by_definition(bag, kind, alpha)
        found = smooth_max(torch.tensor(bag, dtype=dtype), kind=kind, alpha=alpha).item()
        assert abs(found - exact) <= error * max(1, alpha / 10) * max(1, abs(exact)), (bag, found, exact)


def test_values_of_binary_bags():
    """Object share r: S = r e^a / (r e^a + 1 - r), Q = log(r e^a + 1 - r) / a, M = r^(1/a)."""
    for share, alpha, softmax, quasimax, power_mean in [
        (1 / 80, 4, 0.409, 0.128, 0.334),
        (0.1, 6, 0.978, 0.620, 0.681),
        (0.5, 8, 1.0, 0.913, 0.917),
        (1 / 6400, 4, 0.008, 0.002, 0.112),
    ]:
        ones = max(1, round(share * 80))
        bag = torch.tensor([1e3] * ones + [-1e3] * (round(ones / share) - ones))
        found = [round(smooth_max(bag, kind=kind, alpha=alpha).sigmoid().item(), 3) for kind in SMOOTH]
        assert found == [softmax, quasimax, power_mean]


@smooth_kinds
@pytest.mark.parametrize("alpha", [0.3, 4.0, 60.0, 1000.0])
@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
def test_gradcheck(kind, alpha, scale):
    logits = randn(3, 5, scale=scale).requires_grad_()
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 0]]).bool()
    assert torch.autograd.gradcheck(lambda z: smooth_max(z, kind=kind, alpha=alpha, mask=mask), logits)


def test_gradients_of_the_paper():
    """On probabilities: dQ/dx is the softmax, dS/dx_i = w_i (1 + alpha (x_i - S)), which may be negative."""
    alpha, logits = 8.0, randn(6, 20).requires_grad_()
    x = logits.detach().sigmoid()
    weights = (alpha * x).softmax(-1)
    gradients = {}
    for kind in ("softmax", "quasimax"):
        (gradient,) = torch.autograd.grad(smooth_max(logits, kind=kind, alpha=alpha).sigmoid().sum(), logits)
        gradients[kind] = gradient / (x * (1 - x))
    torch.testing.assert_close(gradients["quasimax"], weights)
    expected = weights * (1 + alpha * (x - (weights * x).sum(-1, keepdim=True)))
    torch.testing.assert_close(gradients["softmax"], expected)
    assert (gradients["softmax"] < 0).any()


@kinds
@pytest.mark.parametrize("alpha", [1e-6, 0.5, 4.0, 88.0, 1000.0])
def test_finite_for_any_finite_logits(kind, alpha):
    """Value, gradient, and the gradient of both log p and log(1 - p), for all triples of extreme logits."""
    logits = torch.tensor(list(itertools.product(EXTREMES, repeat=3))).requires_grad_()
    result = smooth_max(logits, kind=kind, alpha=alpha)
    for loss in (logsigmoid(result), logsigmoid(-result)):
        assert loss.isfinite().all()
        (gradient,) = torch.autograd.grad(loss.clamp(min=-1e30).sum(), logits, retain_graph=True)
        assert gradient.isfinite().all()
    low, high = logits.detach().clamp(-1e30, 1e30).aminmax(dim=-1)
    slack = 1e-4 * (1 + result.abs())
    assert ((result.clamp(-1e30, 1e30) >= low - slack) & (result.clamp(-1e30, 1e30) <= high + slack)).all()


@kinds
def test_gradient_reaches_saturated_bags(kind):
    """Where a clamped probability has none: the largest logit at -1e4, or at 1e4."""
    for value in (-1e4, 1e4):
        logits = torch.full((2, 7), value).requires_grad_()
        smooth_max(logits, kind=kind, alpha=1000.0).sum().backward()
        torch.testing.assert_close(logits.grad, torch.full((2, 7), 1 / 7), rtol=1e-3, atol=0)


@kinds
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(kind, dtype):
    values = [-6e4, -1e4, -100.0, 0.0, 3.0, 100.0, 1e4, 6e4]
    logits = torch.tensor(list(itertools.product(values, repeat=3)), dtype=dtype)
    logits = torch.cat((logits, randn(100, 3).to(dtype))).requires_grad_()
    for alpha in (0.1, 8.0, 1000.0):
        result = smooth_max(logits, kind=kind, alpha=alpha)
        result.sum().backward()
        assert result.dtype == logits.grad.dtype == dtype
        assert result.isfinite().all() and logits.grad.isfinite().all()
        exact = smooth_max(logits.detach().double(), kind=kind, alpha=alpha)
        torch.testing.assert_close(result.double(), exact, rtol=0.01, atol=0.01)


def test_autocast_computes_in_float32():
    logits = randn(5, 50).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = [smooth_max(logits, kind=kind) for kind in SMOOTH_MAX_KINDS]
    assert all(torch.equal(a, smooth_max(logits, kind=k)) for a, k in zip(inside, SMOOTH_MAX_KINDS, strict=True))


@pytest.mark.parametrize("alpha", [10.0, 1e3, 1e5, 1e7])
def test_large_alpha_is_the_maximum(alpha):
    """max - log(n) / alpha <= Q <= S <= max, and max * n^(-1 / alpha) <= M <= max."""
    logits = randn(50, 10)
    largest = logits.amax(-1).sigmoid()
    softmax, quasimax, power_mean = (smooth_max(logits, kind=kind, alpha=alpha).sigmoid() for kind in SMOOTH)
    chain = (largest - math.log(10) / alpha, quasimax, softmax, largest)
    for low, high in (*itertools.pairwise(chain), (largest * 10 ** (-1 / alpha), power_mean), (power_mean, largest)):
        assert (low <= high + 1e-9).all()


@pytest.mark.parametrize("kind, alpha", [("softmax", 0), ("quasimax", 0), ("power_mean", 1)])
def test_the_alpha_of_the_mean(kind, alpha):
    logits = randn(50, 10)
    found = smooth_max(logits, kind=kind, alpha=alpha)
    torch.testing.assert_close(found.sigmoid(), logits.sigmoid().mean(-1), rtol=1e-8, atol=0)
    torch.testing.assert_close(smooth_max(logits, kind=kind, alpha=alpha + 1e-7), found, rtol=1e-6, atol=1e-6)


def test_the_maximum_is_exact():
    logits = randn(4, 9).half()
    assert torch.equal(smooth_max(logits, kind="max", alpha=-1), logits.amax(-1))


@settings(deadline=None, max_examples=150)
@given(BAGS, st.floats(0.01, 1000), st.sampled_from(SMOOTH_MAX_KINDS), st.randoms())
def test_invariances_and_bounds(bag, alpha, kind, random):
    """Between the least and the greatest value; no matter the order, repetition and padding; monotone but softmax."""
    slack = 1e-9 * (1 + alpha / 10)
    value = smooth_max(torch.tensor(bag, dtype=torch.float64), kind=kind, alpha=alpha).item()
    assert min(bag) - slack <= value <= max(bag) + slack
    if kind in ("softmax", "quasimax") or alpha >= 1:
        mean = torch.tensor(bag, dtype=torch.float64).sigmoid().mean().item()
        assert 1 / (1 + math.exp(-value)) >= mean * (1 - 1e-9)
    shuffled = random.sample(bag, len(bag))
    padded = [*bag, 33.0, math.nan, math.inf]
    mask = torch.arange(len(padded)) < len(bag)
    for other, where in ((shuffled, None), (bag * 3, None), (padded, mask)):
        again = smooth_max(torch.tensor(other, dtype=torch.float64), kind=kind, alpha=alpha, mask=where).item()
        assert abs(again - value) <= slack
    if kind != "softmax":
        raised = [bag[0] + random.random() * 5, *bag[1:]]
        assert smooth_max(torch.tensor(raised, dtype=torch.float64), kind=kind, alpha=alpha).item() >= value - slack


@settings(deadline=None, max_examples=50)
@given(st.floats(0.01, 50), st.floats(1.1, 10), st.integers(0, 1000))
def test_every_kind_grows_with_alpha(alpha, factor, seed):
    logits = randn(5, 8, seed=seed)
    for kind in SMOOTH:
        less, more = (smooth_max(logits, kind=kind, alpha=a) for a in (alpha, alpha * factor))
        assert (more >= less - 1e-9).all()


@kinds
def test_padding_gets_no_gradient_and_does_not_matter(kind):
    logits = randn(4, 6)
    logits[:, 4:] = math.nan
    logits.requires_grad_()
    smooth_max(logits, kind=kind, mask=torch.arange(6) < 4).sum().backward()
    assert (logits.grad[:, 4:] == 0).all() and (logits.grad[:, :4].sum(-1) != 0).all()


@kinds
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_empty_bags(kind, dtype):
    logits = randn(3, 4).to(dtype).requires_grad_()
    mask = torch.tensor([True, False, True])[:, None]
    result = smooth_max(logits, kind=kind, mask=mask)
    (result.sigmoid().sum() - logsigmoid(-result).sum() - logsigmoid(result).sum()).backward()
    assert result[1] == EMPTY_BAG_LOGIT and result[1].sigmoid() == 0 and logsigmoid(-result[1]) == 0
    assert (logits.grad[1] == 0).all() and logits.grad.isfinite().all() and logits.grad[0].any()
    assert (smooth_max(logits[:, :0], kind=kind) == EMPTY_BAG_LOGIT).all()
    assert smooth_max(logits[:0], kind=kind).shape == (0,)


@pytest.mark.parametrize("rows", [1, 2])
def test_sums_of_neutral_terms_are_neutral(rows):
    terms = torch.full((rows, 2, 3), -math.inf)
    terms[:, 0, 1] = 5.0
    terms.requires_grad_()
    total = add_smooth_max_terms(terms)
    assert total.tolist() == [[5.0, -math.inf]] * rows
    (gradient,) = torch.autograd.grad(total, terms, torch.ones_like(total))
    assert gradient.tolist() == [[[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]] * rows


@kinds
@pytest.mark.parametrize("alpha", [0.5, 8.0, 1000.0])
def test_planes_are_lines_of_a_projection(kind, alpha):
    """Slanted planes of a volume: along the axis first, then along a line of indices, or gathered at once."""
    volume, how = randn(6, 7, 8).requires_grad_(), {"kind": kind, "alpha": alpha}
    lines = torch.tensor([[0, 8, 16, 24, 25, 33], [1, 9, 10, -1, -1, -1], [-1, -1, -1, -1, -1, -1]])  # on 6 x 7
    inside = lines >= 0
    projection = add_smooth_max_terms(smooth_max_terms(volume, **how), dim=2).flatten(1)
    composed = smooth_max_from_terms(add_smooth_max_terms(projection[:, lines], mask=inside), **how)
    direct = smooth_max(volume.flatten(0, 1)[lines], dim=(1, 2), mask=inside[:, :, None], **how)
    torch.testing.assert_close(composed, direct, rtol=1e-12, atol=1e-12)
    assert composed[2] == EMPTY_BAG_LOGIT
    gradients = [torch.autograd.grad(out.sum(), volume, retain_graph=True)[0] for out in (composed, direct)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)

    neutral = torch.cat((projection, projection.new_full((len(projection), 1), -math.inf)), 1)
    padded = smooth_max_from_terms(add_smooth_max_terms(neutral[:, lines]), **how)  # index -1 is the neutral term
    assert torch.equal(padded, composed)
    (gradient,) = torch.autograd.grad(padded.sum(), volume)
    torch.testing.assert_close(gradient, gradients[0], rtol=1e-10, atol=1e-12)


@kinds
def test_parts_of_unequal_size_add_up(kind):
    """The number of voxels is carried along: 3 of 10, then the other 7."""
    bag, how = randn(10), {"kind": kind, "alpha": 5.0}
    terms = smooth_max_terms(bag, **how)
    parts = torch.stack([add_smooth_max_terms(part) for part in (terms[:, :3], terms[:, 3:])], -1)
    torch.testing.assert_close(
        smooth_max_from_terms(add_smooth_max_terms(parts), **how), smooth_max(bag, **how), rtol=1e-13, atol=1e-13
    )


@kinds
def test_axes(kind):
    logits = randn(2, 3, 4, 5)
    expected = smooth_max(logits.permute(0, 3, 1, 2).flatten(2), kind=kind)
    for dim in ((1, 2), (2, 1), (-3, 2), [-2, -3]):
        torch.testing.assert_close(smooth_max(logits, kind=kind, dim=dim), expected)
    torch.testing.assert_close(smooth_max(logits, kind=kind, dim=0), smooth_max(logits.movedim(0, 3), kind=kind))


@kinds
def test_one_alpha_per_bag(kind):
    logits, alphas = randn(4, 3, 9), torch.tensor([0.5, 4.0, 200.0], dtype=torch.float64)
    each = torch.stack([smooth_max(logits[:, i], kind=kind, alpha=a) for i, a in enumerate(alphas.tolist())], 1)
    torch.testing.assert_close(smooth_max(logits, kind=kind, alpha=alphas[:, None]), each)
    torch.testing.assert_close(smooth_max(logits.movedim(1, 2), kind=kind, alpha=alphas[None, None], dim=1), each)
    torch.testing.assert_close(smooth_max(logits, kind=kind, alpha=alphas[1]), smooth_max(logits, kind=kind, alpha=4))


@smooth_kinds
def test_neither_input_nor_type_leak(kind):
    logits = randn(3, 4)
    before, result = logits.clone(), smooth_max(MetaTensor(logits), kind=kind)
    assert torch.equal(logits, before) and type(result) is torch.Tensor


@smooth_kinds
@pytest.mark.parametrize("target", [0.3, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("voxels", [2, 80, 6400])
def test_alpha_for_target_is_the_smallest(kind, target, voxels):
    bag = torch.full((voxels,), -1e4, dtype=torch.float64)
    bag[0] = 1e4
    alpha = alpha_for_target(1 / voxels, target, kind=kind)
    value = smooth_max(bag, kind=kind, alpha=alpha).sigmoid().item()
    if target > 1 / voxels:
        assert value == pytest.approx(target, rel=1e-9)
        assert smooth_max(bag, kind=kind, alpha=0.99 * alpha).sigmoid() < target - 1e-4
    else:
        assert alpha == (1 if kind == "power_mean" else 0) and value >= target


@kinds
def test_alpha_for_target_of_tensors(kind):
    shares = torch.tensor([[1 / 6400, 0.1], [0.5, 1.0]])
    alphas = alpha_for_target(shares, 0.8, kind=kind)
    assert alphas.dtype == torch.float32 and alphas.shape == (2, 2)
    for share, alpha in zip(shares.flatten().tolist(), alphas.flatten().tolist(), strict=True):
        assert alpha == pytest.approx(alpha_for_target(share, 0.8, kind=kind), rel=1e-5)
    bags = torch.tensor([[9e3] + [-9e3] * 9, [9e3] * 5 + [-9e3] * 5])
    reached = smooth_max(bags, kind=kind, alpha=alpha_for_target(torch.tensor([[0.1], [0.5]]), 0.8, kind=kind))
    assert (reached.sigmoid() >= 0.8 - 1e-5).all()


ROW = torch.zeros(2, 5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kind": "softmaxx"}, "kind must be one of softmax, quasimax, power_mean, max, got 'softmaxx'"),
        ({"alpha": -1.0}, "alpha must be finite and 0 or more, got -1.0"),
        ({"alpha": math.nan}, "alpha must be finite"),
        ({"alpha": math.inf}, "alpha must be finite"),
        ({"alpha": torch.tensor([[1.0], [-1.0]])}, "alpha must be finite and 0 or more"),
        ({"kind": "power_mean", "alpha": 0}, "alpha must be finite and above 0 for the power mean, got 0"),
        ({"alpha": torch.ones(5)}, r"alpha must have length 1 along dim -1, got the shape \(5,\)"),
        ({"dim": 2}, "dim must name different axes of a tensor with 2, got 2"),
        ({"dim": (0, -2)}, "dim must name different axes"),
        ({"dim": ()}, "dim must name different axes"),
        ({"mask": torch.ones(2, 4).bool()}, r"mask must be a boolean tensor that broadcasts to \(2, 5\)"),
        ({"mask": torch.ones(3, 2, 5).bool()}, r"mask must be .*\(3, 2, 5\)"),
        ({"mask": torch.ones(2, 5)}, "mask must be a boolean tensor .* torch.float32"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        smooth_max(ROW, **options)


@pytest.mark.parametrize("logits, found", [(ROW.long(), "torch.int64"), ([0.0], "list")])
def test_bad_logits(logits, found):
    with pytest.raises(TypeError, match=f"logits must be a floating-point tensor, got {found}"):
        smooth_max(logits)


def test_bad_terms():
    with pytest.raises(ValueError, match=r"terms must be \(2, \*shape\) of smooth_max_terms.*\(3, 4\)"):
        add_smooth_max_terms(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"terms of kind 'max' must be \(1, \*shape\), got \(2, 4\)"):
        smooth_max_from_terms(torch.zeros(2, 4), kind="max", alpha=1)


@pytest.mark.parametrize(
    "share, target, message",
    [
        (0.0, 0.5, "share must be above 0 and at most 1, got 0.0"),
        (1.1, 0.5, "share must be"),
        (math.nan, 0.5, "share must be"),
        (torch.tensor([0.5, 0.0]), 0.5, "share must be"),
        (0.5, 1.0, "target must be between 0 and 1, got 1.0"),
        (0.5, 0.0, "target must be"),
    ],
)
def test_bad_targets(share, target, message):
    with pytest.raises(ValueError, match=message):
        alpha_for_target(share, target)
