# SPDX-License-Identifier: Apache-2.0
"""What the loss of box supervision is given: containers, half precision, huge logits, cut boxes, and bad input."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_labelfx.losses.box_tightness import BoxTightnessLoss, box_tightness_loss
from monai_labelfx.ops.smooth_maxima import SMOOTH_MAX_KINDS

SPACES = {2: (8, 7), 3: (6, 5, 7)}
BOXES = {
    2: [[[1, 1, 6, 5], [3, 2, 8, 7], [7, 0, 8, 1]], [[-1, 2, 3, 6]]],
    3: [[[1, 1, 0, 5, 4, 6], [2, 0, 2, 6, 5, 7], [0, 4, 0, 1, 5, 1]], [[-1, 1, 1, 4, 4, 4]]],
}
EVERYTHING = {"affinity": 1.0, "area": (0.3, 0.6), "margin": 0.5}


def example(ndim: int = 2, dtype=torch.float32):
    """Two images and two classes, with every part."""
    generator = torch.Generator().manual_seed(ndim)
    logits = torch.randn(2, 2, *SPACES[ndim], generator=generator).to(dtype)
    return logits, {
        "boxes": [torch.tensor(b, dtype=torch.float32) for b in BOXES[ndim]],
        "labels": [torch.tensor([0, 1, 0]), torch.tensor([1])],
        "tight_sides": [torch.ones(3, 2 * ndim, dtype=torch.bool), None],
        "image": torch.randn(2, 1, *SPACES[ndim], generator=generator),
        "masks": torch.ones(2, 2, *SPACES[ndim]),
        "has_masks": torch.tensor([False, False]),
        "has_boxes": torch.tensor([True, True]),
        "ignore": torch.zeros(2, 1, *SPACES[ndim], dtype=torch.bool),
        "spacing": torch.tensor([1.0, 0.5, 2.0][:ndim]),
    }


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("options", [{}, {**EVERYTHING, "kind": "quasimax", "negatives": "lines"}])
def test_gradients(ndim, options):
    logits, target = example(ndim, torch.float64)
    target["has_masks"] = torch.tensor([False, True])
    options = {"affinity_options": {"sigma": 1.0}, "angles": [0, 25], **options}
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: box_tightness_loss(z, **target, **options), logits, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ndim", [2, 3])
def test_half_precision_is_computed_in_float32(ndim, dtype):
    logits, target = example(ndim, dtype)
    expected = box_tightness_loss(logits.float(), **target, **EVERYTHING)
    assert torch.equal(box_tightness_loss(logits, **target, **EVERYTHING), expected)
    leaf = logits.float().requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        loss = box_tightness_loss((leaf * 1).to(dtype), **target, **EVERYTHING)
    loss.backward()
    assert loss.dtype == torch.float32 and loss == expected and leaf.grad.isfinite().all() and leaf.grad.any()


@pytest.mark.parametrize("kind", SMOOTH_MAX_KINDS)
@pytest.mark.parametrize("size", [1e4, -1e4, "both", 0.0])
def test_finite_for_any_logits(kind, size):
    for ndim, alpha, gamma in ((2, 1e3, 2.0), (3, 1e3, 1.0), (2, 1.0, 0.5), (2, 6.0, 0.0)):
        logits, target = example(ndim)
        value = logits.sign() * 1e4 if size == "both" else torch.full_like(logits, size)
        value.requires_grad_()
        target["has_masks"] = [False, True]
        for negatives in ("voxels", "lines"):
            options = {**EVERYTHING, "kind": kind, "alpha": alpha, "gamma": gamma, "negatives": negatives}
            loss = box_tightness_loss(value, **target, **options)
            (gradient,) = torch.autograd.grad(loss, value)
            assert loss.isfinite() and gradient.isfinite().all(), (ndim, alpha, gamma, negatives)


@pytest.mark.parametrize("kind", SMOOTH_MAX_KINDS)
def test_missed_objects_are_still_pulled_up(kind):
    """With probabilities of 1e-13 the paper's code, which clamps them, has a gradient of exactly 0."""
    logits, target = example(2)
    low = torch.full_like(logits, -30.0).requires_grad_()
    box_tightness_loss(low, boxes=target["boxes"], labels=target["labels"], kind=kind).backward()
    assert low.grad[0, 0, 1:6, 1:5].sum() < -1e-3


def metatensor(value):
    return MetaTensor(value, affine=torch.eye(4) * 2) if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("ndim", [2, 3])
def test_metatensors_arrays_and_numbers(ndim):
    logits, target = example(ndim)
    target["has_masks"] = torch.tensor([False, True])
    expected = box_tightness_loss(logits, **target, **EVERYTHING)
    meta = {k: [metatensor(e) for e in v] if isinstance(v, list) else metatensor(v) for k, v in target.items()}
    found = box_tightness_loss(metatensor(logits), **meta, **EVERYTHING)
    assert torch.equal(found, expected) and type(found) is torch.Tensor
    plain = {k: [e if e is None else e.numpy() for e in target[k]] for k in ("boxes", "labels", "tight_sides")}
    flags = {k: target[k].tolist() for k in ("has_boxes", "has_masks", "spacing")}
    assert torch.equal(box_tightness_loss(logits, **{**target, **plain, **flags}, **EVERYTHING), expected)
    rows = {k: [e if e is None else e.tolist() for e in target[k]] for k in ("boxes", "labels")}
    assert torch.equal(box_tightness_loss(logits, **{**target, **rows}, **EVERYTHING), expected)
    before = copy.deepcopy(target)
    BoxTightnessLoss(**EVERYTHING)(logits, target)
    assert str(before) == str(target)


def test_module_copies_and_prints_itself():
    logits, target = example(3)
    loss = BoxTightnessLoss(**EVERYTHING, kind="quasimax", alpha=(0.1, 0.9), affinity_options={"sigma": 0.5})
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(twin(logits, target), loss(logits, target))
    for word in ("kind='quasimax'", "angles=(-40.0, ", "margin=0.5", "area=(0.3, 0.6)", "area_weight=1.0", "ring=1"):
        assert word in repr(loss)
    assert "affinity_options={'sigma': 0.5}" in repr(loss)
    assert list(loss.parameters()) == []


@pytest.mark.parametrize("ndim", [2, 3])
def test_terms_are_those_switched_on(ndim):
    logits, target = example(ndim)
    assert list(BoxTightnessLoss(smoothness=0).terms(logits, target)) == ["unary"]
    target["has_masks"] = [True, False]
    loss = BoxTightnessLoss(**EVERYTHING, smoothness=3.0, area_weight=5.0, mask_weight=7.0)
    terms = loss.terms(logits, target)
    weights = {"unary": 1, "smoothness": 3, "affinity": 1, "area": 5, "masks": 7}
    assert set(terms) == set(weights)
    total = sum(weights[name] * value for name, value in terms.items())
    assert torch.allclose(loss(logits, target), total)


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_mask_takes_the_place_of_boxes(ndim):
    logits, target = example(ndim)
    logits.requires_grad_()
    target["has_masks"] = torch.tensor([True, False])
    second = {name: target[name][1:] for name in ("boxes", "labels", "has_boxes", "ignore")}
    boxes_only = {name: target[name] for name in (*second, "masks", "has_masks")}
    terms = BoxTightnessLoss().terms(logits, boxes_only)
    alone = BoxTightnessLoss().terms(logits[1:], second)
    for name in ("unary", "smoothness"):
        assert terms[name].item() == pytest.approx(alone[name].item())
        assert not torch.autograd.grad(terms[name], logits, retain_graph=True)[0][0].any()
    assert not torch.autograd.grad(terms["masks"], logits)[0][1].any()
    unseen = {**boxes_only, "boxes": [None, target["boxes"][1]], "labels": [None, target["labels"][1]]}
    assert torch.equal(box_tightness_loss(logits, **unseen), box_tightness_loss(logits, **boxes_only))


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_cut_box_teaches_through_complete_lines_only(ndim):
    """And of a box that is cut on every side nothing is left but what lies outside."""
    logits = torch.randn(1, 1, *(9,) * ndim, requires_grad=True)
    options = {"beta": 1.0, "smoothness": 0, "angles": [0], "kind": "max", "area": (0.0, 0.1)}
    labels = [torch.tensor([0])]
    cut = [torch.tensor([[-3, *[2] * (ndim - 1), 5, *[7] * (ndim - 1)]])]
    (gradient,) = torch.autograd.grad(box_tightness_loss(logits, boxes=cut, labels=labels, **options), logits)
    visible = gradient[(0, 0, slice(5), *[slice(2, 7)] * (ndim - 1))]
    assert (visible.flatten(1) != 0).sum(1).tolist() == [1] * 5 and (gradient != 0).sum() == 5
    assert torch.equal(
        visible.flatten(1).argmin(1), logits[0, 0][(slice(5), *[slice(2, 7)] * (ndim - 1))].flatten(1).argmax(1)
    )
    for box in ([-3] * ndim + [5] * ndim, [-3] * ndim + [20] * ndim, [20] * ndim + [25] * ndim):
        loss = box_tightness_loss(logits, boxes=[torch.tensor([box])], labels=labels, **options)
        assert loss == 0 and not torch.autograd.grad(loss, logits)[0].any()


@pytest.mark.parametrize("ndim", [2, 3])
def test_loose_sides_and_ignored_voxels_have_no_gradient(ndim):
    logits = torch.randn(1, 1, *(10,) * ndim, requires_grad=True)
    target = {"boxes": [torch.tensor([[2] * ndim + [8] * ndim])], "labels": [torch.tensor([0])]}
    positives = {"beta": 1.0, "smoothness": 0, "angles": [0, 20]}

    def touched(**options):
        return torch.autograd.grad(box_tightness_loss(logits, **target, **options), logits)[0][0, 0] != 0

    whole = touched(**positives)
    assert whole.sum() == 6**ndim
    loose = torch.ones(1, 2 * ndim, dtype=torch.bool)
    loose[0, 0] = False  # lines across axis 0 are gone, those across the others are not
    assert touched(**positives, tight_sides=[loose]).sum() == 6**ndim
    assert not touched(**positives, tight_sides=[~torch.ones_like(loose)]).any()
    margin = touched(**positives, margin=(2, *[3] * (ndim - 1)))  # two slabs across axis 0 and no others
    assert margin.nonzero()[:, 0].unique().tolist() == [4, 5]
    assert not touched(**positives, margin=math.inf).any()

    ignore = torch.rand(1, 1, *logits.shape[2:]) < 0.5
    seen = touched(beta=0.0, smoothness=0, ignore=ignore, ring=0)
    assert torch.equal(seen, ~ignore[0, 0] & ~whole)
    assert not touched(beta=0.0, smoothness=0, ring=2).any()


BAD_OPTIONS = [
    ({"kind": "mean"}, "kind must be one of 'softmax', .*, got 'mean'"),
    ({"normalization": None}, "normalization must be one of 'separate'"),
    ({"negatives": "all"}, "negatives must be one of 'voxels', 'lines', got 'all'"),
    ({"alpha": -1.0}, "alpha must be finite and 0 or above .*, got -1.0"),
    ({"alpha": math.inf}, "alpha must be finite"),
    ({"alpha": 0, "kind": "power_mean"}, "alpha must be finite"),
    ({"alpha": "6"}, r"alpha must be a number or a pair \(share, value\), got '6'"),
    ({"alpha": (0.1,)}, "alpha must be a number or a pair"),
    ({"alpha": (0.1, 2.0)}, "target must be between 0 and 1"),
    ({"angles": []}, "angles must be one or more numbers above -90 and below 90"),
    ({"angles": [0, 90]}, "angles must be"),
    ({"beta": 1.5}, "beta must be between 0 and 1, or None, got 1.5"),
    ({"beta": math.nan}, "beta must be"),
    ({"gamma": -1}, "gamma must be a finite number of 0 or above, got -1"),
    ({"smoothness": math.nan}, "smoothness must be a finite"),
    ({"affinity": -2}, "affinity must be a finite"),
    ({"area_weight": math.inf}, "area_weight must be a finite"),
    ({"mask_weight": "1"}, "mask_weight must be a finite number of 0 or above, got '1'"),
    ({"area": 0.5}, "area must be two shares, 0 <= lower <= upper <= 1, got 0.5"),
    ({"area": (0.6, 0.5)}, "area must be two shares"),
    ({"area": (0.1, 0.5, 0.9)}, "area must be two shares"),
    ({"area": (0, math.nan)}, "area must be two shares"),
    ({"margin": -1}, "margin must be a number of voxels, 0 or above"),
    ({"margin": math.nan}, "margin must be a number of voxels"),
    ({"margin": (1, -1)}, "margin must be a number of voxels"),
    ({"ring": 0.5}, "ring must be a whole number of voxels, 0 or above, got 0.5"),
    ({"ring": -1}, "ring must be"),
    ({"ring": True}, "ring must be"),
    ({"affinity_options": {"spacing": 1}}, r"affinity_options must be among sigma, .*, got \['spacing'\]"),
]


@pytest.mark.parametrize("options,message", BAD_OPTIONS)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        BoxTightnessLoss(**options)


def test_numpy_numbers_are_numbers():
    options = {"alpha": np.float32(4), "ring": np.int64(1), "gamma": np.float64(2), "margin": np.float32(1)}
    logits, target = example(2)
    plain = {name: value.item() for name, value in options.items()}
    assert torch.equal(box_tightness_loss(logits, **target, **options), box_tightness_loss(logits, **target, **plain))


BOX = [1.0, 1.0, 6.0, 5.0]
NAN = [1.0, math.nan, 6.0, 5.0]
BAD_TARGETS = [
    (
        {"boxes": [torch.tensor([BOX, [6.0, 1, 1, 5]]), None]},
        r"boxes must be finite, .* \[6.0, 1.0, 1.0, 5.0\] for box 1",
    ),
    ({"boxes": [torch.tensor([BOX, NAN]), None]}, "boxes must be finite"),
    ({"boxes": [torch.tensor([BOX, [2.0, 2, 2, 5]]), None]}, "boxes must .* for box 1 of image 0"),
    ({"boxes": [torch.tensor([BOX, [0.0, 0, math.inf, 5]]), None]}, "boxes must be finite"),
    ({"boxes": [torch.tensor([BOX])]}, "boxes must have one entry for each of 2 images, got 1"),
    ({"boxes": [torch.zeros(2, 6), None]}, r"boxes of image 0 must be \(N, 4\), got \(2, 6\)"),
    ({"boxes": torch.zeros(2, 2, 6)}, r"boxes must be a list of 2, or padded \(2, N, 4\)"),
    ({"labels": None}, "boxes but no labels"),
    ({"labels": [torch.tensor([0]), None]}, r"labels must be one for each of \[2, 0\] boxes, got \[1, 0\]"),
    ({"labels": [torch.tensor([0, 2]), None]}, "labels must be class channels from 0 to 1 .*, got 2 for box 1"),
    ({"labels": [torch.tensor([0, -2]), None]}, "labels must be class channels"),
    ({"labels": [torch.tensor([0.5, 1]), None]}, "labels must be class channels"),
    ({"bags": [torch.zeros(2, 3, 2), None]}, "bags must hold a finite corner and edges that span a box"),
    ({"bags": [torch.zeros(2, 2, 2), None]}, r"bags of image 0 must be \(N, 3, 2\)"),
    ({"mask": torch.zeros(1)}, "target must hold boxes, bags or masks, .*; it holds boxes, labels, image, mask"),
    ({"tight_sides": [torch.ones(1, 4), None]}, r"tight_sides must have one row for each of \[2, 0\] boxes"),
    ({"has_boxes": [True]}, "has_boxes must hold one bool for each of 2 images"),
    ({"spacing": [1.0, 0.0]}, r"spacing must be above 0, \(2,\) or \(2, 2\), got \[1.0, 0.0\]"),
    ({"spacing": [1.0, math.nan]}, "spacing must be above 0"),
    ({"spacing": [1.0, 1.0, 1.0]}, "spacing must be above 0"),
    ({"spacing": 1.0}, "spacing must be above 0"),
    ({"ignore": torch.zeros(2, 8, 7)}, r"ignore must be \(B, 1 or C, \*spatial\) for logits \(2, 2, 8, 7\), got"),
    ({"ignore": torch.zeros(1, 1, 8, 7)}, "ignore must be"),
    (
        {"masks": torch.zeros(2, 1, 8, 7)},
        r"masks must have the shape of the logits, \(2, 2, 8, 7\), got \(2, 1, 8, 7\)",
    ),
    ({"has_masks": [False, True]}, "has_masks says that images have a mask, but the target has no masks"),
    ({"masks": torch.zeros(2, 2, 8, 7), "has_masks": [True]}, "has_masks must hold one bool for each of 2 images"),
    (
        {"masks": torch.zeros(2, 2, 8, 7), "has_masks": [True, False], "has_boxes": [True] * 3},
        "has_boxes must hold one",
    ),
    ({"image": None}, "affinity needs the image in the target"),
    ({"image": torch.zeros(2, 1, 8, 8)}, r"image must be \(B, K, \*spatial\)"),
]


@pytest.mark.parametrize("parts,message", BAD_TARGETS)
def test_bad_targets(parts, message):
    logits = torch.zeros(2, 2, 8, 7)
    good = {"boxes": [torch.tensor([BOX, BOX]), None], "labels": [torch.tensor([0, 1]), None]}
    with pytest.raises(ValueError, match=message):
        BoxTightnessLoss(affinity=1.0)(logits, {**good, "image": torch.zeros(2, 1, 8, 7), **parts})


def test_bad_types_and_logits():
    loss, (logits, target) = BoxTightnessLoss(affinity=1.0), example(2)
    for bad in (torch.zeros(1, 1, 4), torch.zeros(1, 1, 4, 4, 4, 4)):
        with pytest.raises(ValueError, match=r"input must be"):
            loss(bad, target)
    for bad in (logits.long(), logits.numpy()):
        with pytest.raises(TypeError, match="input must be a tensor of floating-point logits"):
            loss(bad, target)
    for bad in ([torch.zeros(1, 4)], None, torch.zeros(1)):
        with pytest.raises(TypeError, match="target must be a mapping with boxes or bags, labels"):
            loss(logits, bad)
    for bad in ({}, {"labels": target["labels"]}):
        with pytest.raises(ValueError, match="target must hold boxes, bags or masks"):
            loss(logits, bad)
    for name in ("image", "ignore", "masks"):
        with pytest.raises(TypeError, match=f"{name} must be a tensor, got list"):
            loss(logits, {**target, name: target[name].tolist()})
    with pytest.raises(TypeError, match="boxes must hold tensors of real numbers"):
        loss(logits, {**target, "boxes": [["a"], None]})
    with pytest.raises(ValueError, match="margin must be one number, or one for each of 2 axes"):
        BoxTightnessLoss(margin=(1, 1, 1))(logits, target)
    with pytest.raises(TypeError, match="unexpected keyword argument 'box'"):
        box_tightness_loss(logits, box=[])
