# SPDX-License-Identifier: Apache-2.0
"""The loss against plain loops, what it does not depend on, and which segmentations it prefers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from box_tightness_reference import positive_bags, reference_loss, reference_terms
from torch.utils.data import default_collate

from monai_labelfx.losses.box_tightness import BoxTightnessLoss, box_tightness_loss
from monai_labelfx.ops.box_frames import boxes_to_frames
from monai_labelfx.ops.smooth_maxima import alpha_for_target

SPACES = {2: (9, 8), 3: (6, 7, 5)}
BOXES = {  # nested and overlapping boxes of class 0, one of class 1 across them, a voxel; a cut one; none; unknown
    2: [
        [[1, 1, 6, 7], [2, 3, 4, 5], [4, 4, 9, 8], [0, 2, 5, 4], [7, 0, 8, 1]],
        [[-2, 1, 4, 6], [3.2, 2.7, 8, 7.9995]],
        [],
        None,
    ],
    3: [
        [[1, 1, 0, 5, 6, 4], [2, 3, 1, 4, 5, 3], [3, 4, 2, 6, 7, 5], [0, 2, 1, 4, 4, 4], [5, 0, 4, 6, 1, 5]],
        [[1, -2, 1, 5, 4, 4], [0.3, 2.7, 1, 4, 5.9995, 4]],
        [],
        None,
    ],
}
LABELS = [[0, 0, 0, 1, 1], [1, 0], [], None]


def example(ndim: int, dtype=torch.float64):
    """Logits (4, 2, *spatial) and a target with everything but masks; the last image is one nobody looked at."""
    generator = torch.Generator().manual_seed(ndim)
    logits = torch.randn(4, 2, *SPACES[ndim], generator=generator, dtype=dtype) * 2
    boxes = [None if b is None else torch.tensor(b, dtype=dtype).reshape(-1, 2 * ndim) for b in BOXES[ndim]]
    target = {
        "boxes": boxes,
        "labels": [None if n is None else torch.tensor(n, dtype=torch.int64) for n in LABELS],
        "image": torch.randn(4, 2, *SPACES[ndim], generator=generator, dtype=dtype),
        "spacing": torch.rand(4, ndim, generator=generator, dtype=dtype) + 0.5,
        "tight_sides": [None if b is None else torch.rand(b.shape, generator=generator) < 0.8 for b in boxes],
        "ignore": torch.rand(4, 2, *SPACES[ndim], generator=generator) < 0.2,
        "masks": torch.rand(4, 2, *SPACES[ndim], generator=generator) < 0.3,
        "has_masks": torch.tensor([False, True, False, True]),
        "has_boxes": torch.tensor([True, True, False, True]),
    }
    return logits, target


def only(target, *names):
    return {name: target[name] for name in ("boxes", "labels", *names)}


def first(target, number: int):
    """The target of the first few images."""
    return {name: value[:number] for name, value in target.items()}


PLAIN = {"smoothness": 0, "angles": (0, 30, -45)}
CASES = {
    "defaults": ((), {}),
    "paper": ((), {"kind": "power_mean", "alpha": 4, "normalization": "positive_bags", "ring": 0}),
    "quasimax": ((), {**PLAIN, "kind": "quasimax", "alpha": 8, "gamma": 1.5, "beta": None}),
    "baseline": ((), {**PLAIN, "kind": "max", "gamma": 0, "negatives": "lines", "normalization": "all_bags"}),
    "lines": ((), {**PLAIN, "alpha": 3, "angles": [0], "negatives": "lines", "ring": 0}),
    "spacing": (("spacing",), {"ring": 2}),
    "tight_sides": (("tight_sides",), PLAIN),
    "margin": (("tight_sides",), {**PLAIN, "margin": 1.2}),
    "ignore": (("ignore",), PLAIN),
    "has_boxes": (("has_boxes",), PLAIN),
    "masks": (("masks", "has_masks"), {"mask_weight": 0.7}),
    "area": ((), {**PLAIN, "area": (0.55, 0.57), "area_weight": 20.0}),
    "upper area": ((), {**PLAIN, "area": (0.1, 0.2)}),
    "affinity": (("image", "spacing"), {"affinity": 3.0, "affinity_options": {"sigma": 0.8, "dilation": 1}}),
    "everything": (
        ("image", "spacing", "tight_sides", "ignore", "masks", "has_masks", "has_boxes"),
        {"area": (0.6, 0.7), "affinity": 0.5, "affinity_options": {"sigma": 1.0}, "angles": [-15, 0, 60], "ring": 1},
    ),
}


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_value_follows_the_formulas(ndim, case):
    logits, target = example(ndim)
    parts, options = CASES[case]
    target = only(target, *parts)
    expected = reference_terms(logits.numpy(), target, **options)
    loss = BoxTightnessLoss(**options)
    found = loss.terms(logits, target)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-9)
    assert min(expected.values()) > 1e-4
    value = loss(logits, target)
    assert value.shape == () and value.dtype == torch.float64 and type(value) is torch.Tensor
    assert value.item() == pytest.approx(reference_loss(logits.numpy(), target, **options), rel=1e-9)
    assert torch.equal(box_tightness_loss(logits, **target, **options), value)
    assert loss(logits.float(), target).item() == pytest.approx(value.item(), rel=1e-4)


def test_a_unary_term_by_hand():
    logits = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    target = {"boxes": [torch.tensor([[1, 1, 3, 3]])], "labels": [torch.tensor([0])]}
    positive, negative = 0.25 * 0.25 * math.log(2), 0.75 * 0.25 * math.log(2)  # P = 0.5, gamma 2
    options = {"smoothness": 0, "angles": [0]}
    assert box_tightness_loss(logits, **target, ring=0, **options).item() == pytest.approx(positive + negative)
    assert box_tightness_loss(logits, **target, ring=1, **options).item() == pytest.approx(positive)
    for name, negatives in (("positive_bags", 12 / 4 * negative), ("all_bags", 12 / 16 * negative)):
        share = positive * (1 if name == "positive_bags" else 4 / 16)
        value = box_tightness_loss(logits, **target, ring=0, normalization=name, **options)
        assert value.item() == pytest.approx(share + negatives)


@pytest.mark.parametrize("ndim", [2, 3])
def test_alpha_as_a_target(ndim):
    logits, target = example(ndim)
    target = only(target)
    for kind in ("softmax", "quasimax", "power_mean"):
        alpha = alpha_for_target(0.05, 0.9, kind=kind)
        pair = box_tightness_loss(logits, **target, alpha=(0.05, 0.9), kind=kind)
        assert torch.equal(pair, box_tightness_loss(logits, **target, alpha=alpha, kind=kind))


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_small_box_or_none_does_not_multiply_the_loss(ndim):
    logits = torch.zeros(1, 1, *(32,) * ndim if ndim == 2 else (16,) * 3)
    size = logits.shape[2]

    def loss(*sides, **options):
        boxes = torch.tensor([[2] * ndim + [2 + side] * ndim for side in sides]).reshape(-1, 2 * ndim)
        labels = torch.zeros(len(boxes), dtype=torch.int64)
        return box_tightness_loss(logits, boxes=[boxes], labels=[labels], **options).item()

    usual = loss(size // 2)
    assert 0.05 < usual < 1
    for sides in ((1,), (3,), (), (1, 1), (size // 2, 1)):
        assert 0.7 * usual < loss(*sides) < 1.01 * usual
        if max(sides, default=0) < 4:
            assert loss(*sides, normalization="positive_bags") > 5 * loss(size // 2, normalization="positive_bags")


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("options", [{}, {"area": (0.1, 0.8), "affinity": 1.0}])
def test_without_annotation_the_loss_is_0(ndim, options):
    logits, target = example(ndim)
    nothing = torch.zeros(2, 0, 2 * ndim)
    for parts in (
        {"boxes": [None, None], "labels": [None, None]},
        {"boxes": nothing, "labels": nothing[..., 0], "has_boxes": [False, False]},
        {"bags": torch.zeros(2, 0, ndim + 1, ndim), "labels": nothing[..., 0], "has_boxes": torch.zeros(2)},
        {**first(only(target), 2), "has_boxes": [False, False]},
        {"masks": torch.ones_like(logits[:2]), "has_masks": [False, False]},
    ):
        z = logits[:2].clone().requires_grad_()
        loss = BoxTightnessLoss(**options)(z, {**parts, "image": target["image"][:2]})
        loss.backward()
        assert loss.item() == 0 and z.grad is not None and not z.grad.any()


def test_an_image_without_a_box_is_background():
    logits, _ = example(2)
    empty = {"boxes": [torch.zeros(0, 4)] * 4, "labels": [torch.zeros(0)] * 4}
    z = logits.clone().requires_grad_()
    loss = box_tightness_loss(z, **empty)
    loss.backward()
    assert loss.item() == pytest.approx(reference_loss(logits.numpy(), empty)) and (z.grad > 0).all()
    padded = {"boxes": torch.zeros(4, 2, 4), "labels": torch.full((4, 2), -1)}
    assert torch.equal(box_tightness_loss(logits, **padded), loss)


def with_frames(target):
    frames = [None if b is None else boxes_to_frames(b.round()) for b in target["boxes"]]
    return {"bags": frames, **{name: value for name, value in target.items() if name != "boxes"}}


def padded(target, ndim: int, extra: int = 2):
    """Boxes (or bags), labels and tight sides as tensors, with rubbish in the padding."""
    result, length = dict(target), extra + max(len(n) for n in target["labels"] if n is not None)
    for name, fill in (("boxes", math.nan), ("bags", math.nan), ("labels", -1), ("tight_sides", False)):
        if name in target:
            like = next(rows for rows in target[name] if rows is not None)
            rows = [torch.full((length, *like.shape[1:]), fill, dtype=like.dtype) for _ in target[name]]
            for row, given, labels in zip(rows, target[name], target["labels"], strict=True):
                if labels is not None and len(labels):
                    row[: len(labels)] = True if given is None else given
            result[name] = torch.stack(rows)
    known = torch.tensor([n is not None for n in target["labels"]])
    return {**result, "has_boxes": known & torch.as_tensor(target.get("has_boxes", known))}


@pytest.mark.parametrize("ndim", [2, 3])
def test_lists_padding_frames_and_order_agree(ndim):
    logits, target = example(ndim)
    target = only(target, "image", "spacing", "tight_sides", "ignore")
    target["boxes"] = [None if b is None else b.round() for b in target["boxes"]]
    options = {"area": (0.6, 0.7), "affinity": 1.0, "alpha": 20.0}
    expected = box_tightness_loss(logits, **target, **options).item()
    order = [None if n is None else torch.randperm(len(n)) for n in target["labels"]]
    names = ("boxes", "labels", "tight_sides")
    shuffled = {n: [r if r is None else r[i] for r, i in zip(target[n], order, strict=True)] for n in names}
    moved = {**target, **shuffled}
    for same in (padded(target, ndim), moved, with_frames(target), padded(with_frames(moved), ndim, 0)):
        assert box_tightness_loss(logits, **same, **options).item() == pytest.approx(expected, rel=1e-12)
    rows = [
        {"image": i, "boxes": b, "labels": n}
        for i, b, n in zip(*(padded(target, ndim)[k] for k in ("image", "boxes", "labels")), strict=True)
    ]
    collated = {**default_collate(rows), "has_boxes": padded(target, ndim)["has_boxes"]}
    lists = only(target, "image")
    assert torch.equal(box_tightness_loss(logits, **collated), box_tightness_loss(logits, **lists))


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_batch_is_the_weighted_mean_of_its_parts(ndim):
    """Positives (beta 1) weighted by their bags, negatives (beta 0) by their voxels, for one class."""
    logits, target = example(ndim)
    logits, boxes = logits[:2, :1], [b[:2] for b in target["boxes"][:2]]
    parts = [{"boxes": [b], "labels": [torch.zeros(len(b))]} for b in boxes]
    whole = {"boxes": boxes, "labels": [torch.zeros(len(b)) for b in boxes]}
    for beta in (0.0, 1.0):
        options = {"beta": beta, "smoothness": 0, "ring": 0}
        values = [box_tightness_loss(logits[i : i + 1], **part, **options).item() for i, part in enumerate(parts)]
        weights = [_bags(part, beta, ndim) for part in parts]
        mean = sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
        assert weights[0] != weights[1]
        assert box_tightness_loss(logits, **whole, **options).item() == pytest.approx(mean)
    twice = {name: value * 2 for name, value in whole.items()}
    value = box_tightness_loss(logits, **whole)
    assert box_tightness_loss(torch.cat((logits, logits)), **twice).item() == pytest.approx(value.item())


def _bags(part, beta: float, ndim: int) -> int:
    boxes = [
        [*b[:ndim].add(1e-3).floor().int().tolist(), *b[ndim:].sub(1e-3).ceil().int().tolist()]
        for b in part["boxes"][0]
    ]
    if beta == 1:
        return sum(len(positive_bags(b, SPACES[ndim], (-40, -20, 0, 20, 40), (1,) * ndim)) for b in boxes)
    return sum(
        not any(all(b[a] <= k[a] < b[ndim + a] for a in range(ndim)) for b in boxes)
        for k in itertools.product(*map(range, SPACES[ndim]))
    )


def turned(logits, target, order, flipped):
    """Image and target with spatial axes in another order, some of them reversed afterwards."""
    ndim = len(order)
    dims, flips = (0, 1, *(2 + a for a in order)), [2 + a for a in flipped]
    result = dict(target)
    for name in ("image", "ignore", "masks"):
        result[name] = target[name].permute(dims).flip(flips)
    result["spacing"] = target["spacing"][:, list(order)]
    size = [logits.shape[2 + a] for a in order]
    for name in ("boxes", "tight_sides"):
        result[name] = []
        for rows in target[name]:
            if rows is not None:
                low, high = rows[:, list(order)].clone(), rows[:, [ndim + a for a in order]].clone()
                for a in flipped:
                    low[:, a], high[:, a] = high[:, a].clone(), low[:, a].clone()
                    if name == "boxes":
                        low[:, a], high[:, a] = size[a] - low[:, a], size[a] - high[:, a]
                rows = torch.cat((low, high), 1)
            result[name].append(rows)
    return logits.permute(dims).flip(flips), result


MOVES = {
    2: [((0, 1), [0]), ((0, 1), [1]), ((1, 0), []), ((1, 0), [0]), ((1, 0), [0, 1])],
    3: [((0, 1, 2), [1]), ((0, 1, 2), [0, 2]), ((1, 0, 2), [0]), ((2, 0, 1), []), ((2, 1, 0), [1, 2])],
}


@pytest.mark.parametrize("ndim,move", [(n, i) for n in (2, 3) for i in range(5)])
def test_flips_turns_and_transposes(ndim, move):
    logits, target = example(ndim)
    options = {"area": (0.6, 0.7), "affinity": 1.0, "angles": [-50, -20, 0, 20, 50]}
    expected = box_tightness_loss(logits, **target, **options).item()
    z, moved = turned(logits, target, *MOVES[ndim][move])
    assert box_tightness_loss(z, **moved, **options).item() == pytest.approx(expected, rel=1e-9)


def test_a_flip_turns_the_angles_round():
    logits, target = example(2)
    values = {}
    for flipped, sign in itertools.product([[], [0], [1], [0, 1]], (1, -1)):
        z, moved = turned(logits, target, (0, 1), flipped)
        values[len(flipped), sign] = box_tightness_loss(z, **moved, angles=[sign * 10, sign * 35]).item()
    assert values[0, 1] == pytest.approx(values[1, -1]) == pytest.approx(values[2, 1])
    assert values[0, 1] != pytest.approx(values[0, -1], rel=1e-6)


def disc(ndim: int, size: int = 24, radius: float = 8.0, sure: float = 8.0):
    """Logits of the object, and of its filled box; the box, and an image in which one sees the object."""
    places = torch.stack(torch.meshgrid(*[torch.arange(size) - (size - 1) / 2] * ndim, indexing="ij"))
    inside = places.norm(dim=0) < radius
    low, high = inside.nonzero().amin(0), inside.nonzero().amax(0) + 1
    filled = (places + (size - 1) / 2 >= low.view(-1, *[1] * ndim)).all(0) & (
        places + (size - 1) / 2 < high.view(-1, *[1] * ndim)
    ).all(0)
    image = inside.float() + 0.05 * torch.randn(inside.shape, generator=torch.Generator().manual_seed(0))
    target = {"boxes": [torch.cat((low, high))[None]], "labels": [torch.tensor([0])], "image": image[None, None]}
    return [(2 * m.float()[None, None] - 1) * sure for m in (inside, filled)], target


@pytest.mark.parametrize("ndim", [2, 3])
def test_affinity_and_area_are_what_beats_the_filled_box(ndim):
    (truth, filled), target = disc(ndim, size=24 if ndim == 2 else 16, radius=8 if ndim == 2 else 5)
    alone = [box_tightness_loss(z, **target).item() for z in (truth, filled)]
    assert alone[1] < alone[0]
    most = {2: 0.85, 3: 0.6}[ndim]
    options = {"affinity": 1.0, "area": (0.1, most)}
    both = [box_tightness_loss(z, **target, **options).item() for z in (truth, filled)]
    assert both[0] < both[1]
    empty = box_tightness_loss(-filled.abs(), **target, **options).item()
    assert both[0] < empty
    for name, weight in (("affinity", 1.0), ("area", 20.0)):
        terms = [BoxTightnessLoss(**options).terms(z, target)[name].item() * weight for z in (truth, filled)]
        assert terms[0] < terms[1], name
