# SPDX-License-Identifier: Apache-2.0
"""The unary term against loops over bags and voxels from probabilities, in float64."""

from __future__ import annotations

import math

import pytest
import torch

from monai_labelfx.losses._box_target import BoxTarget, read_box_target
from monai_labelfx.losses._box_unary import NEGATIVES, NORMALIZATIONS, unary_terms
from monai_labelfx.ops.box_bags import box_bag_logits
from monai_labelfx.ops.box_frames import boxes_to_frames
from monai_labelfx.ops.smooth_maxima import smooth_max

SHAPES = {2: (9, 10), 3: (6, 7, 5)}
OPTIONS = {
    "kind": "softmax",
    "alpha": 4.0,
    "angles": (-20.0, 0.0, 20.0),
    "spacing": None,
    "margin": 0.0,
    "beta": 0.25,
    "gamma": 2.0,
    "normalization": "separate",
    "negatives": "voxels",
}


def example(spatial_dims: int, framed: bool = False) -> tuple[torch.Tensor, BoxTarget, torch.Tensor]:
    """Three images of three classes, the last class without a box: logits, boxes, and what lies outside of them."""
    shape = SHAPES[spatial_dims]
    logits = 2 * torch.randn(3, 3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    boxes = [[[1, 1, 1, 5, 6, 4], [2, 0, 0, 3, 1, 1]], [[0, 2, 1, 4, 7, 5]], []]
    axes = [0, 1, 2, 3, 4, 5] if spatial_dims == 3 else [0, 1, 3, 4]
    boxes = [torch.tensor(rows, dtype=torch.float64).view(-1, 6)[:, axes] for rows in boxes]
    target = {"boxes": boxes, "labels": [torch.tensor([0, 1]), torch.tensor([0]), torch.zeros(0)]}
    if framed:
        target["bags"] = [boxes_to_frames(rows) for rows in boxes]
    outside = torch.ones(logits.shape, dtype=torch.bool)
    outside[0, 0, 1:5, 1:6] = outside[0, 1, 2:3, 0:1] = outside[1, 0, 0:4, 2:7] = False
    return logits, read_box_target(target, 3, 3, shape), outside


def naive(logits, target, outside, **options) -> tuple[float, float]:
    """From probabilities, a class at a time, a bag at a time."""
    how = {**OPTIONS, **options}
    positive, negative = (1, 1) if how["beta"] is None else (how["beta"], 1 - how["beta"])
    kind, alpha, sums = how["kind"], how["alpha"], [0.0, 0.0]
    for c in range(logits.shape[1]):
        hits, misses = [], []
        for box, image, label in zip(target.boxes, target.image, target.label, strict=True):
            if label == c:
                found = box_bag_logits(
                    logits[image, c : c + 1], box[None], kind=kind, alpha=alpha, angles=how["angles"]
                )
                hits += found.logits.sigmoid().tolist()
        if how["negatives"] == "voxels":
            misses = logits[:, c][outside[:, c]].sigmoid().tolist()
        else:
            for axis in range(1, logits.ndim - 1):
                empty = outside[:, c].all(axis)
                misses += smooth_max(logits[:, c], kind=kind, alpha=alpha, dim=axis)[empty].sigmoid().tolist()
        hit = -sum(positive * (1 - p) ** how["gamma"] * math.log(p) for p in hits)
        miss = -sum(negative * p ** how["gamma"] * math.log(1 - p) for p in misses)
        counts = {
            "separate": (len(hits), len(misses)),
            "positive_bags": (len(hits), len(hits)),
            "all_bags": (len(hits) + len(misses),) * 2,
        }[how["normalization"]]
        sums = [total + part / max(count, 1) for total, part, count in zip(sums, (hit, miss), counts, strict=True)]
    return sums[0], sums[1]


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize(
    ("kind", "beta", "gamma"),
    [("softmax", 0.25, 2.0), ("max", None, 0.0), ("quasimax", 0.5, 1.5), ("power_mean", 1, 1)],
)
def test_equals_plain_loops(spatial_dims, normalization, negatives, kind, beta, gamma):
    logits, target, outside = example(spatial_dims)
    options = {"normalization": normalization, "negatives": negatives, "kind": kind, "beta": beta, "gamma": gamma}
    found = unary_terms(logits, target, outside, **{**OPTIONS, **options})
    assert [float(term) for term in found] == pytest.approx(naive(logits, target, outside, **options), rel=1e-9)
    framed = unary_terms(logits, example(spatial_dims, framed=True)[1], outside, **{**OPTIONS, **options})
    assert [float(term) for term in framed] == pytest.approx([float(term) for term in found], rel=1e-9)


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 2.5])
def test_gradients_to_the_second_order(negatives, gamma):
    _, target, outside = example(2)
    target = target._replace(boxes=target.boxes / 2)
    logits = torch.randn(3, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def loss(logits):
        return sum(
            unary_terms(logits, target, outside[..., :4, :4], **{**OPTIONS, "negatives": negatives, "gamma": gamma})
        )

    assert torch.autograd.gradcheck(loss, logits) and torch.autograd.gradgradcheck(loss, logits)


def test_a_perfect_prediction_costs_nothing_and_its_opposite_much():
    _, target, outside = example(2)
    logits = torch.where(outside, -30.0, 30.0)
    assert sum(unary_terms(logits, target, outside, **OPTIONS)) < 1e-9
    positives, negatives = unary_terms(-logits, target, outside, **OPTIONS)
    assert positives > 2 * 0.25 * 20 and negatives > 2 * 0.75 * 20


def test_bags_within_the_margin_and_of_loose_sides_do_not_count():
    """A prediction that misses the first row of the box pays for that row alone."""
    logits, box = torch.full((1, 1, 8, 8), -9.0), torch.tensor([[2.0, 2.0, 6.0, 6.0]])
    logits[..., 3:6, 2:6] = 9.0
    outside = torch.zeros(logits.shape, dtype=torch.bool)
    how = {**OPTIONS, "angles": (0.0,), "kind": "max", "normalization": "positive_bags", "beta": 1.0}
    missed = 9 * (1 / (1 + math.exp(-9))) ** 2

    def positives(sides=None, margin=0.0) -> float:
        sides = None if sides is None else torch.tensor([sides], dtype=torch.bool)
        target = BoxTarget(box, None, torch.tensor([0]), torch.tensor([0]), sides, torch.tensor([True]))
        return float(unary_terms(logits, target, outside, **{**how, "margin": margin})[0])

    assert positives() == pytest.approx(missed / 8, rel=1e-3)
    assert positives(sides=[1, 1, 1, 1]) == pytest.approx(missed / 8, rel=1e-3)
    assert positives(margin=[0.0, 1.0]) == pytest.approx(missed / 6, rel=1e-3)  # two columns fewer
    for loose in ({"margin": 1.0}, {"margin": (1.0, 0.0)}, {"sides": [0, 1, 1, 1]}, {"sides": [1, 1, 0, 1]}):
        assert positives(**loose) < 1e-6
    assert positives(sides=[1, 0, 1, 1]) == pytest.approx(missed / 4, rel=1e-3)  # no column is sure any more


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("negatives", NEGATIVES)
def test_nothing_to_see_is_0_with_a_gradient(normalization, negatives):
    logits, target, outside = example(2)
    none = target._replace(boxes=target.boxes[:0], image=target.image[:0], label=target.label[:0])
    logits.requires_grad_()
    how = {**OPTIONS, "normalization": normalization, "negatives": negatives}
    nothing = sum(unary_terms(logits, none, torch.zeros_like(outside), **how))
    (gradient,) = torch.autograd.grad(nothing, logits)
    assert nothing == 0 and (gradient == 0).all()
    positives, missed = unary_terms(logits, none, torch.ones_like(outside), **how)
    assert positives == 0 and missed > 0


@pytest.mark.parametrize("level", [1e4, -1e4, 3e38, -3e38, 0.0])
@pytest.mark.parametrize("kind", ["softmax", "max"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_finite_for_all_finite_logits(level, kind, gamma):
    _, target, outside = example(2)
    logits = torch.full(outside.shape, level)
    logits[..., ::2] *= -1
    logits.requires_grad_()
    loss = sum(unary_terms(logits, target, outside, **{**OPTIONS, "kind": kind, "gamma": gamma, "alpha": 1e3}))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.dtype == torch.float32 and loss.isfinite() and gradient.isfinite().all()


def test_spacing_belongs_to_the_image_of_a_box():
    logits, target, outside = example(2)
    spacing = torch.tensor([[1.0, 1.0], [1.0, 2.5], [9.0, 1.0]], dtype=torch.float64)
    together = unary_terms(logits, target, outside, **{**OPTIONS, "spacing": spacing, "normalization": "separate"})[0]
    found = box_bag_logits(
        logits.flatten(0, 1),
        target.boxes,
        image_index=target.image * 3 + target.label,
        alpha=4.0,
        angles=OPTIONS["angles"],
        spacing=torch.stack([spacing[0], spacing[0], spacing[1]]),
    )
    expected = 0.0
    for c in (0, 1):
        p = found.logits[target.label[found.box] == c].sigmoid()
        expected += float((0.25 * (1 - p) ** 2 * -p.log()).mean())
    assert float(together) == pytest.approx(expected, rel=1e-9)
