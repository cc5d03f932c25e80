# SPDX-License-Identifier: Apache-2.0
"""Bags of boxes and frames against plain loops over lines and planes, and what must not change them."""

from __future__ import annotations

import math

import pytest
import torch

from monai_labelfx.ops.box_bags import box_bag_logits
from monai_labelfx.ops.box_frames import boxes_to_frames
from monai_labelfx.ops.crossing_lines import ANGLES, box_crossing_lines, box_crossing_planes
from monai_labelfx.ops.smooth_maxima import SMOOTH_MAX_KINDS, smooth_max

TILTS = (-60.0, -45.0, -33.3, -20.0, 0.0, 3.0, 20.0, 40.0, 45.0, 70.0)
SHAPES = {2: (13, 15), 3: (8, 9, 7)}
BOXES = {
    2: torch.tensor([[1, 2, 9, 8], [0.2, 6.0, 12.9, 14.7], [3, 3, 4, 4], [-3, 1, 5, 6]]),
    3: torch.tensor([[1, 2, 0, 7, 8, 5], [0, 0, 1, 3, 9, 7], [2, 2, 2, 3, 3, 3], [1, 1, -2, 4, 5, 4]]).float(),
}
IMAGES = torch.tensor([1, 0, 1, 1])


def maps(spatial_dims: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(2, *SHAPES[spatial_dims], generator=torch.Generator().manual_seed(seed), dtype=dtype) * 3


def brute(logits, boxes, images, kind, alpha, angles, **options) -> tuple[torch.Tensor, list[int]]:
    """Bag by bag, each from the voxels of its line or plane."""
    shape, values, owners = logits.shape[1:], [], []
    for axis in (None,) if len(shape) == 2 else range(3):
        how = {**options, "reduced_axis": axis, "distinct": axis is not None}
        lines = (box_crossing_lines if axis is None else box_crossing_planes)(boxes, shape, angles, **how)
        for bag, box in zip(lines.bags, lines.box.tolist(), strict=True):
            voxels = logits[images[box]].flatten()[bag[bag >= 0]]
            values.append(smooth_max(voxels, kind=kind, alpha=alpha))
            owners.append(box)
    return torch.stack(values) if values else logits.new_zeros(0), owners


def same_bags(found, expected) -> None:
    """The same values for each box, in any order."""
    for box in range(int(max(found.box.max(), expected.box.max())) + 1):
        values = [bags.logits[bags.box == box].sort().values for bags in (found, expected)]
        torch.testing.assert_close(*values, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("kind", SMOOTH_MAX_KINDS)
@pytest.mark.parametrize("alpha", [4.0, 60.0])
def test_equals_plain_loops(spatial_dims, kind, alpha):
    logits = maps(spatial_dims).requires_grad_()
    boxes = BOXES[spatial_dims]
    found = box_bag_logits(logits, boxes, image_index=IMAGES, kind=kind, alpha=alpha, angles=TILTS)
    values, owners = brute(logits, boxes, IMAGES, kind, alpha, TILTS)
    assert found.box.tolist() == owners and set(owners) == {0, 1, 2, 3}
    torch.testing.assert_close(found.logits, values, rtol=1e-6, atol=1e-9)
    weight = torch.rand(len(owners), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((weight * v).sum(), logits)[0] for v in (found.logits, values)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("number", [1, 4])
def test_spacing_and_margin_of_each_box(spatial_dims, number):
    generator = torch.Generator().manual_seed(2)
    sizes = torch.rand(4, spatial_dims, generator=generator)[:number] + 0.5
    margin = torch.tensor([0.0, 1.0, 0.5, torch.inf])[torch.randint(4, (4, 2 * spatial_dims), generator=generator)]
    for options in ({"spacing": sizes}, {"spacing": sizes[0].tolist()}, {"margin": margin[:number]}):
        boxes, logits = BOXES[spatial_dims][:number], maps(spatial_dims)
        found = box_bag_logits(logits, boxes, image_index=IMAGES[:number], kind="quasimax", alpha=5.0, **options)
        values, owners = brute(logits, boxes, IMAGES, "quasimax", 5.0, ANGLES, **options)
        assert found.box.tolist() == owners
        torch.testing.assert_close(found.logits, values, rtol=1e-6, atol=1e-9)


def test_loose_sides_lose_their_lines():
    logits, box = torch.arange(36.0).view(1, 6, 6), torch.tensor([[1, 1, 5, 4]])
    rows, columns = [9.0, 15.0, 21.0, 27.0], [25.0, 26.0, 27.0]
    for margin, expected in (
        ([0, 0, 0, 0], rows + columns),
        ([1, 0, 0, 0], rows[1:] + columns),
        ([0, 0, 2, 1], rows[:2] + columns[:2]),
        ([0, math.inf, 0, 0], rows),
    ):
        margin = torch.tensor([margin], dtype=torch.float64)
        found = box_bag_logits(logits, box, kind="max", angles=[0], margin=margin)
        assert sorted(found.logits.tolist()) == sorted(expected)


@pytest.mark.parametrize("kind", SMOOTH_MAX_KINDS)
@pytest.mark.parametrize("shape", [(6, 7), (3, 4, 4)])
@pytest.mark.parametrize("framed", [False, True])
def test_gradients_to_the_second_order(kind, shape, framed):
    logits = torch.randn(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    boxes = torch.tensor([[0, 1, 1][: len(shape)] + [*shape], [1, 1, 1][: len(shape)] + [3, 4, 3][: len(shape)]])
    where = {"frames": boxes_to_frames(boxes.double())} if framed else {"boxes": boxes}

    def values(logits):
        return box_bag_logits(logits, **where, kind=kind, alpha=3.0, angles=[0, 25]).logits

    assert torch.autograd.gradcheck(values, logits) and torch.autograd.gradgradcheck(values, logits)


def test_largest_values_of_rows_and_columns_bit_for_bit():
    logits = maps(2, dtype=torch.float32)
    found = box_bag_logits(logits, torch.tensor([[2, 3, 11, 9]]), kind="max", angles=[0])
    crop = logits[0, 2:11, 3:9]
    assert torch.equal(found.logits.sort().values, torch.cat((crop.amax(0), crop.amax(1))).sort().values)
    volume = maps(3, dtype=torch.float32)
    found = box_bag_logits(volume, torch.tensor([[1, 0, 2, 6, 9, 7]]), kind="max", angles=[0])
    crop = volume[0, 1:6, :, 2:7]
    slabs = torch.cat([crop.amax([a for a in range(3) if a != axis]) for axis in range(3)])
    assert torch.equal(found.logits.sort().values, slabs.sort().values)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("move", ["flip 0", "flip all", "swap", "turn"])
def test_flips_transposes_and_turns_change_nothing(spatial_dims, move):
    """By frames too, which know of it: there the angles are those of the box before."""
    logits, boxes = maps(spatial_dims)[:1], BOXES[spatial_dims][:3]
    shape, low, high = logits.shape[1:], *boxes.split(spatial_dims, 1)
    expected = box_bag_logits(logits, boxes, kind="softmax", alpha=4.0)
    matrix = torch.eye(spatial_dims + 1, dtype=torch.float64)
    if move in ("swap", "turn"):
        logits = logits.transpose(1, 2)
        low, high = (corner[:, [1, 0, 2][:spatial_dims]] for corner in (low, high))
        matrix[[0, 1]] = matrix[[1, 0]]
        shape = logits.shape[1:]
    axes = {"flip 0": [0], "flip all": list(range(spatial_dims)), "swap": [], "turn": [1]}[move]
    logits, low, high = logits.flip([axis + 1 for axis in axes]), low.clone(), high.clone()
    for axis in axes:
        low[:, axis], high[:, axis] = shape[axis] - high[:, axis], shape[axis] - low[:, axis]
        matrix[axis] *= -1
        matrix[axis, -1] += shape[axis] - 1
    same_bags(box_bag_logits(logits, torch.cat((low, high), 1), kind="softmax", alpha=4.0), expected)
    whole = torch.cat((boxes[:, :spatial_dims].floor(), boxes[:, spatial_dims:].ceil()), 1).double()
    frames = boxes_to_frames(whole, matrix)
    same_bags(box_bag_logits(logits, frames=frames, kind="softmax", alpha=4.0), expected)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_boxes_know_nothing_of_each_other(spatial_dims):
    shape = (30, 8, 7)[:spatial_dims]
    logits = torch.randn(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    boxes = torch.tensor([[1, 1, 1][:spatial_dims] + [9, 6, 5][:spatial_dims]]).repeat(2, 1)
    boxes[1, [0, spatial_dims]] += 18  # 10 voxels apart
    both = box_bag_logits(logits, boxes)
    alone = [box_bag_logits(logits, box[None]).logits for box in boxes]
    for row, values in enumerate(alone):
        torch.testing.assert_close(both.logits[both.box == row], values)
    turned = box_bag_logits(logits, boxes.flip(0))
    same_bags(turned._replace(box=1 - turned.box), both)
    three = box_bag_logits(logits, boxes[[0, 1, 1]])
    torch.testing.assert_close(three.logits[three.box == 1], three.logits[three.box == 2])


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("kind", SMOOTH_MAX_KINDS)
def test_frames_of_boxes_that_nothing_moved_are_the_boxes(spatial_dims, kind):
    """Also where the map cuts them: what is left of it has the same bags."""
    logits, low, high = maps(spatial_dims, dtype=torch.float32), *BOXES[spatial_dims].split(spatial_dims, 1)
    boxes = torch.cat((low.floor(), high.ceil()), 1)
    how = {"image_index": IMAGES, "kind": kind, "angles": TILTS}
    inside = (boxes[:, :spatial_dims] >= 0).all(1)
    expected = box_bag_logits(logits, boxes[inside], **{**how, "image_index": IMAGES[inside]})
    found = box_bag_logits(logits, frames=boxes_to_frames(boxes[inside]), **{**how, "image_index": IMAGES[inside]})
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.box, expected.box)
    cut, whole = ({"boxes": boxes}, {"frames": boxes_to_frames(boxes)})
    same_bags(*(box_bag_logits(logits.double(), **where, **how) for where in (whole, cut)))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_frame_that_leaves_the_image_loses_the_bags_that_leave(spatial_dims):
    """A wide border of huge values marks the bags that leave."""
    shape, border = SHAPES[spatial_dims], 8
    logits = maps(spatial_dims)[:1]
    padded = torch.nn.functional.pad(logits, [border] * (2 * spatial_dims), value=1e6)
    box = torch.tensor([[0, 0, 0, 6, 5, 4]])[:, [0, 1, 2, 3, 4, 5] if spatial_dims == 3 else [0, 1, 3, 4]].double()
    turn = torch.eye(spatial_dims + 1, dtype=torch.float64)
    turn[:2, :2] = torch.tensor([[0.8, -0.6], [0.6, 0.8]])
    kept = 0
    for shift in range(4):
        turn[:spatial_dims, -1] = torch.tensor([s - 4.0 + shift for s in shape], dtype=torch.float64)
        frames = boxes_to_frames(box, turn)
        found = box_bag_logits(logits, frames=frames, kind="max", angles=[0, 20])
        frames[:, 0] += border
        every = box_bag_logits(padded, frames=frames, kind="max", angles=[0, 20]).logits
        stays = every < 1e6
        assert torch.equal(found.logits, every[stays]) and not stays.all()
        kept += int(stays.sum())
    assert kept


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("kind", SMOOTH_MAX_KINDS)
def test_no_boxes_and_boxes_outside(spatial_dims, kind):
    logits = maps(spatial_dims, dtype=torch.float16).requires_grad_()
    outside = torch.tensor([[20.0] * spatial_dims + [25.0] * spatial_dims])
    for boxes in (outside[:0], outside):
        for where in ({"boxes": boxes}, {"frames": boxes_to_frames(boxes)}):
            found = box_bag_logits(logits, **where, kind=kind)
            assert found.logits.shape == found.box.shape == (0,)
            assert found.logits.dtype == torch.float32 and found.box.dtype == torch.int64
            (gradient,) = torch.autograd.grad(found.logits.sum(), logits)
            assert (gradient == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", SMOOTH_MAX_KINDS)
def test_half_precision_is_computed_in_float32(dtype, kind):
    logits = maps(2, dtype=torch.float32).to(dtype).requires_grad_()
    found = box_bag_logits(logits, BOXES[2], image_index=IMAGES, kind=kind).logits
    assert found.dtype == torch.float32
    assert torch.equal(found, box_bag_logits(logits.float(), BOXES[2], image_index=IMAGES, kind=kind).logits)
    found.sum().backward()
    assert logits.grad.dtype == dtype and logits.grad.isfinite().all()


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("kind", SMOOTH_MAX_KINDS)
@pytest.mark.parametrize("alpha", [6.0, 88.0, 1e3])
@pytest.mark.parametrize("level", [0.0, 60.0, -200.0, 1e4, -1e4, 1e30])
def test_extremes_are_finite(spatial_dims, kind, alpha, level):
    """And as far from 0 as the smooth maximum of the voxels, whatever sums underflow."""
    logits = (maps(spatial_dims, dtype=torch.float32) + level).requires_grad_()
    boxes = BOXES[spatial_dims][:3]
    found = box_bag_logits(logits, boxes, image_index=IMAGES[:3], kind=kind, alpha=alpha, angles=[0, 30])
    values, _ = brute(logits, boxes, IMAGES, kind, alpha, [0, 30])
    exact, _ = brute(logits.detach().double(), boxes, IMAGES, kind, alpha, [0, 30])
    torch.testing.assert_close(found.logits.double(), exact, rtol=1e-5, atol=1e-3)
    (gradient,), (expected,) = (torch.autograd.grad(v.sum(), logits) for v in (found.logits, values))
    assert gradient.isfinite().all()
    if kind != "max" or level < 1e30:  # where all maxima are equal
        assert ((expected.abs() < 1e-6) | (gradient != 0)).all()
        torch.testing.assert_close(gradient, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))


def test_mixed_extremes_are_finite():
    logits = torch.tensor([-1e4, -90.0, -1.0, 0.0, 2.0, 90.0, 1e4])[torch.randint(7, (1, 13, 15))].requires_grad_()
    for kind in SMOOTH_MAX_KINDS:
        for alpha in (1.0, 20.0, 1e3):
            values = box_bag_logits(logits, BOXES[2][:2], kind=kind, alpha=alpha).logits
            (gradient,) = torch.autograd.grad(values.sum(), logits)
            assert values.isfinite().all() and gradient.isfinite().all()


def test_boxes_or_frames_but_not_both():
    boxes = torch.tensor([[1.0, 1.0, 3.0, 3.0]])
    for where in ({}, {"boxes": boxes, "frames": boxes_to_frames(boxes)}):
        with pytest.raises(ValueError, match="exactly one of boxes and frames"):
            box_bag_logits(torch.zeros(1, 5, 5), **where)
    with pytest.raises(ValueError, match="kind must be one of"):
        box_bag_logits(torch.zeros(1, 5, 5), boxes, kind="mean")
