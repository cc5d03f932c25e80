# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from connected_objects import objects, tight_box
from monai.data import MetaTensor

from monai_labelfx.losses.global_constraints import GlobalConstraintsLoss, global_constraints_loss

SHAPES = {1: (17,), 2: (13, 11), 3: (9, 8, 7)}
CORNERS = {
    2: [[1, 2, 12, 9], [0, 0, 3, 4], [8, 6, 13, 11]],
    3: [[1, 0, 2, 8, 7, 6], [0, 0, 0, 2, 3, 1], [6, 2, 1, 9, 8, 7]],
}
WIDTH = 3


def barrier(z: float, t: float) -> float:
    return -math.log(-z) / t if z <= -1 / t**2 else t * z - math.log(1 / t**2) / t + 1 / t


def example(spatial_dims: int, seed: int = 0):
    """Three images: two overlapping boxes of class 0 and one of class 1; none; not looked at."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 2, *SHAPES[spatial_dims], generator=generator, dtype=torch.float64) * 2 - 1
    boxes = torch.tensor(CORNERS.get(spatial_dims, [[2, 14], [0, 3], [10, 17]]), dtype=torch.float32)
    return logits, {"boxes": [boxes, boxes[:0], None], "labels": [[0, 1, 0], [], None]}


def naive(logits: np.ndarray, target: dict, t: float, bounds=(0.5, 0.9), ignore=None) -> list[float]:
    """Tightness, size and emptiness, box by box, plane by plane, with the boxes as given inside the image."""
    p = 1 / (1 + np.exp(-logits))
    space = p.shape[2:]
    tightness = size = emptiness = 0.0
    looked = [b for b, boxes in enumerate(target["boxes"]) if boxes is not None]
    for b, c in itertools.product(looked, range(p.shape[1])):
        union = np.zeros(space, bool)
        for box, label in zip(target["boxes"][b].tolist(), target["labels"][b], strict=True):
            if label != c:
                continue
            low, high = (np.array(v, int) for v in (box[: len(space)], box[len(space) :]))
            union[tuple(map(slice, low, high))] = True
            for axis, (start, end) in enumerate(zip(low, high, strict=True)):
                for first in range(start, end, WIDTH):
                    last = min(first + WIDTH, end)
                    band = [slice(*ends) for ends in zip(low, high, strict=True)]
                    band[axis] = slice(first, last)
                    tightness += barrier((last - first) - p[(b, c, *band)].sum(), t)
        outside = ~union if ignore is None else ~union & ~ignore[b, 0]
        emptiness += barrier(p[b, c][outside].sum(), t) / union.size
        if union.any():
            value = p[b, c][union | outside].sum()
            size += barrier(bounds[0] * union.sum() - value, t) / union.size
            size += barrier(value - bounds[1] * union.sum(), t) / union.size
    return [term / len(looked) for term in (tightness, size, emptiness)]


def terms(logits, target, **options):
    found = GlobalConstraintsLoss(**{"band_width": WIDTH, **options}).terms(logits, target)
    assert list(found) == ["tightness", "size", "emptiness"]
    return [term.item() for term in found.values()]


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
@pytest.mark.parametrize("t", [0.3, 5.0, 500.0])
def test_terms_follow_the_formulas(spatial_dims, t):
    logits, target = example(spatial_dims)
    logits = torch.cat((logits, logits + 3, logits - 3))  # constraints met and violated
    target = {name: value * 3 for name, value in target.items()}
    expected = naive(logits.numpy(), target, t)
    assert terms(logits, target, t=t) == pytest.approx(expected, rel=1e-9)
    loss = global_constraints_loss(
        logits, target, t=t, band_width=WIDTH, tightness_weight=0.2, size_weight=3.0, emptiness_weight=0.7
    )
    assert loss.item() == pytest.approx(np.dot(expected, [0.2, 3.0, 0.7]), rel=1e-9)


def test_default_weights_and_bounds_are_the_published_ones():
    logits, target = example(2)
    expected = np.dot(terms(logits, target, band_width=5), [1e-4, 1, 1])
    assert GlobalConstraintsLoss()(logits, target).item() == pytest.approx(expected)
    assert GlobalConstraintsLoss().t == 5.0 and GlobalConstraintsLoss().size_bounds == (0.5, 0.9)


def test_gradcheck():
    logits = torch.randn(2, 1, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = {"boxes": [torch.tensor([[1, 0, 5, 3], [-1, 0, 3, 4]]), None], "labels": [[0, 0], None]}
    loss = GlobalConstraintsLoss(2.0, band_width=WIDTH, tightness_weight=0.1)
    assert torch.autograd.gradcheck(lambda z: loss(z, target), logits.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda z: loss(z, target), logits)


@pytest.mark.parametrize("shape", [(14, 15), (8, 9, 7)])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_no_connected_object_violates_a_band_of_its_tight_box(shape, width):
    t = 1e4
    met = barrier(0, t)  # the bound is reached exactly
    for mask in objects(3, shape, 10):
        logits = torch.where(torch.from_numpy(mask), 50.0, -50.0)[None, None]
        target = {"boxes": [tight_box(mask)], "labels": [[0]]}
        loss = GlobalConstraintsLoss(t, band_width=width)
        bands = sum(-(-int(n) // width) for n in tight_box(mask).view(2, -1).diff(dim=0)[0])
        assert loss.terms(logits, target)["tightness"].item() <= bands * met * 1.001
        smaller = loss.terms(logits.masked_fill(logits > 0, -50.0), target)["tightness"]
        assert smaller > bands * met * 10


def test_the_last_row_is_in_a_band():
    logits = torch.full((1, 1, 12, 12), 50.0)
    target = {"boxes": [torch.tensor([[1, 1, 11, 11]])], "labels": [[0]]}
    full = terms(logits, target, band_width=5, t=100.0)[0]
    logits[:, :, 10] = -50.0
    almost = terms(logits, target, band_width=5, t=100.0)[0]
    logits[:, :, 6:11] = -50.0
    assert full < almost < 0 < terms(logits, target, band_width=5, t=100.0)[0]


def test_neighbouring_boxes_keep_their_own_bands():
    logits = torch.randn(1, 1, 8, 12, generator=torch.Generator().manual_seed(0))
    left, right = [[1, 1, 7, 6]], [[1, 6, 7, 11]]
    both = {"boxes": [torch.tensor(left + right)], "labels": [[0, 0]]}
    one, other = ({"boxes": [torch.tensor(box)], "labels": [[0]]} for box in (left, right))
    assert terms(logits, both)[0] == pytest.approx(terms(logits, one)[0] + terms(logits, other)[0])
    assert terms(logits, both)[0] != pytest.approx(
        terms(logits, {"boxes": [torch.tensor([[1, 1, 7, 11]])], "labels": [[0]]})[0]
    )


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_order_padding_form_and_fractions_do_not_matter(spatial_dims):
    logits, target = example(spatial_dims)
    expected = terms(logits, target)
    padded = torch.full((3, 5, 2 * spatial_dims), math.nan)
    labels = torch.full((3, 5), -1)
    padded[0, [4, 1, 2]], labels[0, [4, 1, 2]] = target["boxes"][0] + 2e-4, torch.tensor(target["labels"][0])
    same = {"boxes": MetaTensor(padded), "labels": labels, "has_boxes": torch.tensor([True, True, False])}
    assert terms(MetaTensor(logits), same) == pytest.approx(expected)
    shrunk = {
        **target,
        "boxes": [
            b if b is None else b + torch.tensor([0.3] * spatial_dims + [-0.3] * spatial_dims) for b in target["boxes"]
        ],
    }
    assert terms(logits, shrunk) == pytest.approx(expected)


@pytest.mark.parametrize("axis", [2, 3, 4])
def test_flips_and_transposes_move_boxes_frames_and_sides_along(axis):
    logits, target = example(3)
    boxes = target["boxes"][0]
    sides = torch.rand(3, 6, generator=torch.Generator().manual_seed(1)) < 0.7
    target = {"boxes": [boxes], "labels": [[0, 1, 0]], "tight_sides": [sides]}
    widths = [2, 3, 4]
    widths[axis - 2] = 1  # a band of what is left over would lie at the other end of the box
    expected = terms(logits[:1], target, band_width=widths)
    frames = torch.cat((boxes[:, None, :3], torch.diag_embed(boxes[:, 3:] - boxes[:, :3])), 1)
    bags = {**target, "boxes": None, "bags": [frames]}
    assert terms(logits[:1], bags, band_width=widths) == pytest.approx(expected)
    # flip the axis, then put it first
    frames[:, 0, axis - 2] = logits.shape[axis] - frames[:, 0, axis - 2]
    frames[:, 1:, axis - 2] *= -1
    order = [axis - 2, *(a for a in range(3) if a != axis - 2)]
    turned = logits[:1].flip(axis).permute(0, 1, *(a + 2 for a in order))
    bags = {**target, "bags": [frames[:, :, order]]}
    assert terms(turned, bags, band_width=[widths[a] for a in order]) == pytest.approx(expected)


def test_bands_need_two_tight_sides():
    logits, target = example(2)
    sides = [[[True] * 4] * 3, None, None]
    expected = terms(logits, {**target, "tight_sides": sides})
    assert expected == terms(logits, target)
    loose = [[[True, True, True, False], [True] * 4, [False, True, True, True]], None, None]
    found = terms(logits, {**target, "tight_sides": loose})
    assert found[1:] == expected[1:]
    parts = []
    for axis, row in ((0, 0), (1, 2)):  # the bands left: across axis 0 of the first box, across axis 1 of the last
        low, high = target["boxes"][0][row].int().view(2, 2).tolist()
        p = logits[0, 0].sigmoid()[low[0] : high[0], low[1] : high[1]].sum(1 - axis)
        parts += [barrier(len(part) - part.sum().item(), 5.0) for part in p.split(WIDTH)]
    second = terms(logits, {"boxes": [target["boxes"][0][1:2], [], None], "labels": [[1], [], None]})[0]
    assert found[0] == pytest.approx(sum(parts) / 2 + second)


def test_boxes_cut_by_the_border():
    """The object may leave the image, so planes that are cut say nothing, and the size is known less well."""
    logits = torch.randn(1, 1, 10, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = logits.sigmoid()[0, 0]
    target = {"boxes": [torch.tensor([[-2, 1, 4, 7]])], "labels": [[0]]}
    tightness, size, _ = terms(logits, target)
    bands = p[:4, 1:7].sum(1).split(WIDTH)  # whole planes only across the axis of the cut
    assert tightness == pytest.approx(sum(barrier(len(band) - band.sum().item(), 5.0) for band in bands))
    assert size == pytest.approx(barrier(0.5 * 36 - 12 - p.sum().item(), 5.0) / 80)  # 0.9 * 36 is more than visible
    half = {"boxes": [torch.tensor([[-3, 1, 3, 7]])], "labels": [[0]]}
    assert terms(logits, half)[1] == 0  # nothing of the size is known
    away = {"boxes": [torch.tensor([[-9, 1, -2, 7], [2, 2, 6, 6]])], "labels": [[0, 0]]}
    alone = {"boxes": [torch.tensor([[2, 2, 6, 6]])], "labels": [[0]]}
    assert terms(logits, away) == terms(logits, alone)


def test_ignored_voxels_outside_boxes_may_be_anything():
    logits, target = example(2)
    ignore = torch.rand(3, 1, 13, 11, generator=torch.Generator().manual_seed(0)) < 0.4
    expected = naive(logits.numpy(), target, 5.0, ignore=ignore.numpy())
    assert terms(logits, {**target, "ignore": ignore}) == pytest.approx(expected)
    assert expected[1:] != pytest.approx(naive(logits.numpy(), target, 5.0)[1:])
    with pytest.raises(ValueError, match=r"ignore must be \(B, 1 or C, \*spatial\)"):
        terms(logits, {**target, "ignore": ignore[:, 0]})


def test_batches_without_boxes():
    logits, _ = example(3)
    logits.requires_grad_()
    for unseen in ({}, {"boxes": [None] * 3, "labels": [None] * 3}, {"boxes": None, "has_boxes": [False] * 3}):
        loss = global_constraints_loss(logits, unseen)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss == 0 and (gradient == 0).all()
    empty = {"boxes": [[], [], []], "labels": [[], [], []]}
    (gradient,) = torch.autograd.grad(global_constraints_loss(logits, empty), logits)
    assert terms(logits, empty)[:2] == [0, 0] and (gradient > 0).all()


def test_mean_over_images():
    logits, target = example(2)
    single = [terms(logits[b : b + 1], {k: v[b : b + 1] for k, v in target.items()}) for b in range(2)]
    assert terms(logits, target) == pytest.approx(np.mean(single, 0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_finite_for_all_finite_logits(dtype):
    _, target = example(2)
    huge = torch.finfo(dtype).max
    logits = torch.randn(3, 2, 13, 11, generator=torch.Generator().manual_seed(0)).sign().mul(huge).to(dtype)
    for values in (logits, torch.full_like(logits, huge), torch.full_like(logits, -huge)):
        values = values.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = GlobalConstraintsLoss(t=600.0)(values, target)
        loss.backward()
        assert loss.dtype == torch.float32 and loss.isfinite() and values.grad.isfinite().all()


def test_t_is_a_plain_attribute():
    logits, target = example(2)
    loss = GlobalConstraintsLoss()
    loss.t = 50.0
    assert loss(logits, target) == global_constraints_loss(logits, target, t=50.0)
    assert repr(loss).startswith("GlobalConstraintsLoss(t=50.0, band_width=[5], size_bounds=(0.5, 0.9), tightness=")


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"t": 0}, {}, "t must be above 0 and finite, got 0"),
        ({"band_width": 0}, {}, "band_width must be a whole number of planes"),
        ({"band_width": [5, 5, 5]}, {}, "band_width must have a number for each of 2 axes"),
        ({"size_bounds": (0.9, 0.5)}, {}, r"size_bounds must be two shares.*\(0.9, 0.5\)"),
        ({"emptiness_weight": -1}, {}, "emptiness_weight must be a finite number of 0 or above, got -1"),
        ({}, {"boxes": None, "masks": torch.zeros(3, 2, 13, 11)}, "learns from boxes or bags.*masks only"),
        (
            {},
            {"labels": [[0, 2, 0], [], None]},
            "labels must be class channels from 0 to 1.*got 2 for box 1 of image 0",
        ),
        (
            {},
            {"bags": [[[[1, 1], [4, 0], [0, 4]], [[5, 5], [2, 2], [-2, 2]], [[1, 1], [4, 0], [0, 4]]], [], None]},
            "bags must be boxes along the axes.* box 1 of image 0",
        ),
    ],
)
def test_bad_arguments(options, change, message):
    logits, target = example(2)
    with pytest.raises(ValueError, match=message):
        GlobalConstraintsLoss(**options)(logits, {**target, **change})


def test_wrong_types():
    logits, target = example(2)
    with pytest.raises(TypeError, match="target must be a mapping"):
        GlobalConstraintsLoss()(logits, logits)
    with pytest.raises(TypeError, match="floating-point logits, got torch.int64"):
        GlobalConstraintsLoss()(logits.long(), target)
    with pytest.raises(ValueError, match=r"logits \(B, C, \*spatial\), got \(3, 2\)"):
        GlobalConstraintsLoss()(torch.zeros(3, 2), target)
