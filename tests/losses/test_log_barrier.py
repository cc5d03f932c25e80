# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from monai_labelfx.losses.log_barrier import log_barrier_extension


def formula(z: float, t: float) -> float:
    if z <= -1 / t**2:
        return -math.log(-z) / t
    return t * z - math.log(1 / t**2) / t + 1 / t


@pytest.mark.parametrize("t", [0.5, 1.0, 5.0, 587.0, 68900.0])
def test_value_and_slope_follow_the_formula(t):
    z = torch.cat((-torch.logspace(-12, 5, 60), torch.zeros(1), torch.logspace(-12, 5, 60))).double().requires_grad_()
    value = log_barrier_extension(z, t)
    assert value.tolist() == pytest.approx([formula(v, t) for v in z.tolist()], rel=1e-12)
    (slope,) = torch.autograd.grad(value.sum(), z)
    assert slope.tolist() == pytest.approx([1 / (-v * t) if v <= -1 / t**2 else t for v in z.tolist()], rel=1e-12)


@pytest.mark.parametrize("t", [0.5, 5.0, 587.0])
def test_value_and_slope_are_continuous_at_the_junction(t):
    step = 1e-9 / t**2
    z = torch.tensor([-1 / t**2 - step, -1 / t**2, -1 / t**2 + step], dtype=torch.float64, requires_grad=True)
    value = log_barrier_extension(z, t)
    (slope,) = torch.autograd.grad(value.sum(), z)
    assert (value.max() - value.min()).item() == pytest.approx(2 * t * step, rel=1e-3, abs=1e-15)
    assert slope.tolist() == pytest.approx([t] * 3, rel=1e-8)


def test_tends_to_the_hard_constraint():
    z = torch.tensor([-3.0, -0.01, 0.01], dtype=torch.float64)
    satisfied, tight, violated = log_barrier_extension(z, 1e9).tolist()
    assert abs(satisfied) < 1e-8 and abs(tight) < 1e-8 and violated > 1e6


@pytest.mark.parametrize("t", [1e-3, 5.0, 1e6, 1e18, 1e30])
def test_finite_value_and_gradient_everywhere(t):
    tiny = torch.finfo(torch.float32).tiny
    z = torch.tensor([-3e38, -1.0, -1 / t / t, -tiny, -0.0, 0.0, tiny, 1.0, 1e6]).sort().values.requires_grad_()
    value = log_barrier_extension(z, t)
    (slope,) = torch.autograd.grad(value.sum(), z)
    assert value.isfinite().all() and slope.isfinite().all() and (slope > 0).sum() >= 6
    assert (value.diff() >= -1e-28).all()


def test_shape_type_and_arguments():
    z = torch.zeros(2, 0, 3, dtype=torch.float16)
    assert log_barrier_extension(z, 5).shape == z.shape and log_barrier_extension(z, 5).dtype == torch.float32
    assert torch.autograd.gradgradcheck(
        lambda z: log_barrier_extension(z, 2.0), torch.tensor([-3.0, -0.3, -0.2, 1.0]).double().requires_grad_()
    )
    for t in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="t must be above 0 and finite"):
            log_barrier_extension(torch.zeros(1), t)
    with pytest.raises(TypeError, match="floating-point numbers, got torch.int64"):
        log_barrier_extension(torch.tensor([1]), 5)
    with pytest.raises(TypeError, match="got float"):
        log_barrier_extension(1.0, 5)
