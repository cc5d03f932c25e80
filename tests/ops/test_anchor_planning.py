# SPDX-License-Identifier: Apache-2.0
"""Anchor shapes by k-means on 1 - IoU."""

from __future__ import annotations

import itertools

import pytest
import torch

from monai_labelfx.ops.anchor_planning import plan_anchors


def lognormal(ndim: int, number: int = 400, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(number, 1, generator=generator, dtype=torch.float64)
    return (3 + 0.6 * shared + 0.4 * torch.randn(number, ndim, generator=generator, dtype=torch.float64)).exp()


def naive_fit(sizes: torch.Tensor, shapes: torch.Tensor) -> float:
    total = 0.0
    for size in sizes.tolist():
        best = 0.0
        for shape in shapes.tolist():
            shared, first, second = 1.0, 1.0, 1.0
            for one, other in zip(size, shape, strict=True):
                shared, first, second = shared * min(one, other), first * one, second * other
            best = max(best, shared / (first + second - shared))
        total += best
    return total / len(sizes)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("number", [1, 3, 9])
def test_the_fit_is_what_it_says_and_shapes_are_sorted(ndim, number):
    sizes = lognormal(ndim)
    plan = plan_anchors(sizes, number)
    assert plan.shapes.shape == (number, ndim) and plan.shapes.dtype == torch.float32
    assert plan.mean_iou == pytest.approx(naive_fit(sizes, plan.shapes), abs=1e-6)
    volume = plan.shapes.prod(1)
    assert (volume.diff() >= 0).all()


@pytest.mark.parametrize("ndim", [2, 3])
def test_clusters_are_found_from_boxes_and_sizes(ndim):
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[8.0, 8, 8], [40.0, 12, 20], [15.0, 60, 30], [90.0, 80, 70]])[:, :ndim]
    sizes = (centres.repeat(50, 1) * (1 + 0.04 * torch.randn(200, ndim, generator=generator))).double()
    low = torch.rand(200, ndim, generator=generator, dtype=torch.float64) * 500
    plan = plan_anchors(torch.cat((low, low + sizes), 1), 4)
    wanted = centres[centres.prod(1).argsort()]
    torch.testing.assert_close(plan.shapes, wanted, rtol=0.03, atol=0)
    assert plan.mean_iou > 0.9
    torch.testing.assert_close(plan.shapes, plan_anchors(sizes, 4).shapes)


def test_as_good_as_trying_all_and_better_with_more():
    """Among all pairs of boxes none beats the plan, which need not be boxes."""
    sizes = lognormal(2, 25)
    best = max(naive_fit(sizes, sizes[list(pair)]) for pair in itertools.combinations(range(25), 2))
    assert plan_anchors(sizes, 2).mean_iou >= best - 0.01
    fits = [plan_anchors(lognormal(3), number).mean_iou for number in (1, 2, 4, 8, 16)]
    assert fits == sorted(fits) and fits[0] < 0.5 < fits[-1]
    sizes = lognormal(2, 6)
    plan = plan_anchors(sizes, 6)
    assert plan.mean_iou == pytest.approx(1) and torch.allclose(plan.shapes, sizes[sizes.prod(1).argsort()].float())


def test_seed_order_dtype_and_scale():
    sizes = lognormal(3)
    plan = plan_anchors(sizes, 5, seed=3)
    shuffled = sizes[torch.randperm(len(sizes), generator=torch.Generator().manual_seed(1))]
    again = plan_anchors(shuffled, 5, seed=3)
    assert torch.equal(plan.shapes, again.shapes) and plan.mean_iou == again.mean_iou
    assert not torch.equal(plan.shapes, plan_anchors(sizes, 5, seed=4, restarts=1).shapes)
    state = torch.random.get_rng_state()
    plan_anchors(sizes, 5)
    assert torch.equal(state, torch.random.get_rng_state())
    whole = plan_anchors((sizes + 1).long(), 5)
    assert whole.shapes.dtype == torch.float32 and whole.mean_iou > 0.4
    assert plan_anchors(sizes, 5, restarts=8).mean_iou >= plan_anchors(sizes, 5, restarts=1).mean_iou


def test_spacing():
    sizes, spacing = lognormal(3), (0.7, 0.7, 5.0)
    plain, scaled = plan_anchors(sizes, 4), plan_anchors(sizes, 4, spacing=spacing)
    assert scaled.mean_iou == pytest.approx(plain.mean_iou, abs=1e-9)  # the same stretch for all changes no IoU
    torch.testing.assert_close(scaled.shapes, plain.shapes * torch.tensor(spacing))
    each = torch.tensor([[1.0, 1, 1], [1.0, 1, 5]]).double().repeat(200, 1)
    torch.testing.assert_close(plan_anchors(sizes / each, 4, spacing=each).shapes, plain.shapes)
    assert plan_anchors(sizes / each, 4).mean_iou < plain.mean_iou


def test_repeated_sizes():
    sizes = torch.tensor([[4.0, 4.0]] * 30 + [[9.0, 3.0]] * 2 + [[8.0, 30.0]])
    plan = plan_anchors(sizes, 3)
    assert plan.shapes.tolist() == [[4, 4], [9, 3], [8, 30]] and plan.mean_iou == 1.0
    assert plan_anchors(sizes, 1).shapes.tolist() == [[4, 4]]


def test_bad_input():
    sizes = lognormal(2)
    with pytest.raises(TypeError, match="got list"):
        plan_anchors([[1, 2]], 1)
    for bad in (sizes[0], torch.ones(3, 5), torch.ones(3, 0)):
        with pytest.raises(ValueError, match=r"corners \(N, 4\) or \(N, 6\), or sizes"):
            plan_anchors(bad, 1)
    with pytest.raises(ValueError, match=r"box 1 must have a finite volume above 0, got \[3.0, 0.0, 1.0, 4.0\]"):
        plan_anchors(torch.tensor([[0.0, 0, 1, 1], [3, 0, 1, 4]]), 1)
    with pytest.raises(ValueError, match="box 0 must"):
        plan_anchors(torch.tensor([[float("nan"), 1]]), 1)
    with pytest.raises(ValueError, match="at most the 1 different sizes of the boxes, got 2"):
        plan_anchors(torch.ones(9, 2), 2)
    with pytest.raises(ValueError, match="at most the 0 different"):
        plan_anchors(torch.ones(0, 2), 1)
    for name in ("number", "restarts", "iterations"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number of 1"):
            plan_anchors(sizes, **{"number": 2, name: 0})
    for bad in ((1.0,), (1.0, 0.0), torch.ones(3, 2)):
        with pytest.raises(ValueError, match="spacing must be above 0 on each of 2 axes"):
            plan_anchors(sizes, 2, spacing=bad)
