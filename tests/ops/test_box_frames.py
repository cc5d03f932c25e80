# SPDX-License-Identifier: Apache-2.0
"""Frames against plain loops: where a box goes, which voxels its lattice names, and which ones it covers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_labelfx.ops.box_frames import boxes_to_frames, frame_voxels, frames_to_mask
from monai_labelfx.ops.crossing_lines import box_voxels


def random_map(rng, ndim: int) -> np.ndarray:
    """Homogeneous: turned, sheared, scaled and moved."""
    matrix = np.eye(ndim + 1)
    matrix[:ndim, :ndim] = np.linalg.qr(rng.normal(size=(ndim, ndim)))[0] @ np.diag(rng.uniform(0.6, 1.6, ndim))
    matrix[:ndim, :ndim] += rng.uniform(-0.2, 0.2, (ndim, ndim))
    matrix[:ndim, ndim] = rng.uniform(-3, 9, ndim)
    return matrix


def random_boxes(rng, ndim: int, number: int, largest: int = 7) -> torch.Tensor:
    low = rng.integers(0, 5, (number, ndim))
    return torch.as_tensor(np.concatenate([low, low + rng.integers(1, largest, (number, ndim))], 1))


def naive_voxels(frame: np.ndarray, shape) -> tuple[dict, list[int]]:
    """Lattice point -> flat index, -1 outside the image, of one frame; and the extents."""
    corner, edges = frame[0], frame[1:]
    extents = []
    for edge in edges:
        along = [component for component in edge if abs(component) > 1e-3]
        extents.append(max(1, round(abs(along[0])) if len(along) == 1 else math.ceil(sum(map(abs, edge)) - 1e-3)))
    places = {}
    for point in itertools.product(*map(range, extents)):
        share = [(n + 0.5) / e for n, e in zip(point, extents, strict=True)]
        place = [
            math.floor(corner[k] + 1e-3 + sum(v[k] * s for v, s in zip(edges, share, strict=True)))
            for k in range(len(shape))
        ]
        seen = all(0 <= p < n for p, n in zip(place, shape, strict=True))
        places[point] = int(np.ravel_multi_index(place, shape)) if seen else -1
    return places, extents


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_corners_go_where_the_map_takes_them(ndim):
    rng = np.random.default_rng(ndim)
    boxes = random_boxes(rng, ndim, 5).double() + 0.25
    matrix = random_map(rng, ndim)
    frames = boxes_to_frames(boxes, torch.as_tensor(matrix)).numpy()
    for box, frame in zip(boxes.numpy(), frames, strict=True):
        for corner in itertools.product((0, 1), repeat=ndim):
            point = np.array([box[axis + ndim * side] for axis, side in enumerate(corner)])
            moved = (matrix @ np.append(point - 0.5, 1))[:ndim] + 0.5  # box coordinates are index coordinates + 0.5
            np.testing.assert_allclose(frame[0] + np.array(corner) @ frame[1:], moved, atol=1e-12)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float16, torch.float32, torch.float64])
def test_a_box_that_nothing_moved(ndim, dtype):
    boxes = random_boxes(np.random.default_rng(0), ndim, 4).to(dtype)
    boxes[2] = 0  # padding
    frames = boxes_to_frames(boxes)
    assert frames.shape == (4, ndim + 1, ndim)
    assert frames.dtype == (dtype if dtype.is_floating_point else torch.float32)
    assert torch.equal(frames[:, 0], boxes[:, :ndim].to(frames.dtype))
    assert torch.equal(frames[:, 1:], torch.diag_embed(boxes[:, ndim:] - boxes[:, :ndim]).to(frames.dtype))
    shift = np.eye(ndim + 1)
    shift[:ndim, ndim] = 7
    assert not boxes_to_frames(boxes, shift)[2].any()
    assert torch.equal(boxes_to_frames(boxes, np.eye(ndim + 1)), frames)
    assert not torch.signbit(boxes_to_frames(boxes, np.diag([-1.0] * ndim + [1]))[2]).any()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(0, 4), st.integers(0, 10**6))
def test_untransformed_boxes_are_their_voxels_bit_for_bit(ndim, number, seed):
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, ndim, number)
    shape = [12 + axis for axis in range(ndim)]
    images = torch.as_tensor(rng.integers(0, 3, number))
    found = frame_voxels(boxes_to_frames(boxes), shape, image_index=images)
    assert torch.equal(found.voxels, box_voxels(boxes, shape, image_index=images))
    assert torch.equal(found.inside, found.voxels >= 0)
    assert torch.equal(found.extents, boxes[:, ndim:] - boxes[:, :ndim])
    assert (found.pitch == 1).all() and found.pitch.dtype == torch.float32


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.sampled_from(["any", "signed axes", "zoom"]), st.integers(0, 10**6))
def test_lattices_are_those_of_the_plain_loop(ndim, kind, seed):
    rng = np.random.default_rng(seed)
    shape = [9 + axis for axis in range(ndim)]
    boxes, maps = random_boxes(rng, ndim, 3, 5), [random_map(rng, ndim) for _ in range(3)]
    for matrix in maps:
        if kind != "any":
            scale = rng.uniform(0.4, 1.9, ndim) if kind == "zoom" else np.ones(ndim)
            matrix[:ndim, :ndim] = (np.diag(rng.choice([-1, 1], ndim) * scale))[rng.permutation(ndim)]
    frames = torch.cat([boxes_to_frames(box[None].double(), one) for box, one in zip(boxes, maps, strict=True)])
    frames = torch.cat([frames, torch.zeros_like(frames[:1])])  # padding
    found = frame_voxels(frames, shape, image_index=torch.tensor([1, 0, 2, 5]))
    volume = math.prod(shape)
    for number, frame in enumerate(frames[:3].numpy()):
        places, extents = naive_voxels(frame, shape)
        assert found.extents[number].tolist() == extents
        for point in itertools.product(*map(range, found.voxels.shape[1:])):
            expected = places.get(point, -1)
            expected += (1, 0, 2)[number] * volume if expected >= 0 else 0
            assert found.voxels[number][point] == expected
    assert (found.voxels[3] == -1).all() and not found.inside[3].any()
    assert found.extents[3].tolist() == [0] * ndim and (found.pitch[3] == 1).all()


def test_what_the_image_cuts_off_keeps_its_place():
    found = frame_voxels(boxes_to_frames(torch.tensor([[-1, 2, 2, 5], [0, 0, 1, 1]])), (4, 4))
    assert found.voxels[0].tolist() == [[-1, -1, -1], [2, 3, -1], [6, 7, -1]]
    assert found.extents.tolist() == [[3, 3], [1, 1]]
    assert found.inside[0].tolist() == [[False] * 3, [True, True, False], [True, True, False]]


@pytest.mark.parametrize("off", [-1e-4, -1e-6, 1e-6, 1e-4])
def test_rounding_moves_no_voxel(off):
    frames = boxes_to_frames(torch.tensor([[3.0, 1.0, 7.0, 4.0]]))
    moved = frames + off
    moved[:, 1:] += off * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert torch.equal(frame_voxels(moved, (9, 9)).voxels, frame_voxels(frames, (9, 9)).voxels)
    image, one = torch.zeros(1, dtype=torch.int64), (9, 9)
    assert torch.equal(frames_to_mask(moved, image, 1, one), frames_to_mask(frames, image, 1, one))


def test_pitch_is_the_distance_of_lattice_points():
    angle = math.radians(30)
    edges = 10 * torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    frames = torch.cat([torch.tensor([[4.0, 4.0]]), edges])[None].double()
    found = frame_voxels(frames, (30, 30), spacing=[2.0, 0.5])
    count = math.ceil(10 * (math.cos(angle) + math.sin(angle)))
    assert found.extents.tolist() == [[count, count]] and found.pitch.dtype == torch.float64
    lengths = [math.hypot(2 * x, 0.5 * y) / count for x, y in edges.tolist()]
    np.testing.assert_allclose(found.pitch[0], lengths, rtol=1e-6)
    two = frame_voxels(frames.repeat(2, 1, 1), (30, 30), spacing=torch.tensor([[2.0, 0.5], [1.0, 1.0]]))
    np.testing.assert_allclose(two.pitch, [lengths, [10 / count] * 2], rtol=1e-6)


def test_from_one_lattice_point_to_the_next_the_steps_sum_to_one_at_most():
    rng = np.random.default_rng(3)
    for ndim in (2, 3):
        boxes = random_boxes(rng, ndim, 20)
        frames = torch.stack([boxes_to_frames(box[None], random_map(rng, ndim))[0] for box in boxes])
        extents = frame_voxels(frames, [10] * ndim).extents
        steps = frames[:, 1:].abs().sum(2) / extents
        assert (steps <= 1 + 1e-3).all() and (steps > 0.5).any()


def dense_mask(frames, images, number, shape, grow) -> tuple[np.ndarray, np.ndarray]:
    """Which centres lie inside, and which are so near to a face that rounding may decide."""
    centres = np.stack(np.meshgrid(*[np.arange(n) + 0.5 for n in shape], indexing="ij"), -1)
    result, near = np.zeros((2, number, *shape), bool)
    for frame, image in zip(frames, images, strict=True):
        if not frame[1:].any():
            continue
        share = grow / np.linalg.norm(frame[1:], axis=1)
        if (1 + 2 * share <= 0).any():
            continue
        local = (centres - frame[0]) @ np.linalg.inv(frame[1:])
        slack = np.minimum(local + share, 1 + share - local).min(-1)
        result[image] |= slack >= 0
        near[image] |= abs(slack) < 1e-2
    return result, near


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.sampled_from([0.0, 1.0, 2.5, -1.0, -0.3]), st.integers(0, 10**6))
def test_masks_are_half_spaces(ndim, grow, seed):
    rng = np.random.default_rng(seed)
    shape = [10 + axis for axis in range(ndim)]
    boxes = random_boxes(rng, ndim, 4)
    frames = torch.cat([boxes_to_frames(box[None].double(), random_map(rng, ndim)) for box in boxes])
    frames[3] = 0
    images = [2, 0, 2, -7]  # that of padding is not read
    expected, near = dense_mask(frames.numpy(), images, 3, shape, grow)
    found = frames_to_mask(frames, torch.tensor(images), 3, shape, grow=grow).numpy()
    assert found.shape == (3, *shape) and found.dtype == bool
    assert ((found == expected) | near).all()
    assert near.mean() < 0.2


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.sampled_from([0, 1, 2, -1, -3]), st.integers(0, 10**6))
def test_masks_of_boxes_are_their_voxels(ndim, grow, seed):
    rng = np.random.default_rng(seed)
    shape = [6 + axis for axis in range(ndim)]
    boxes = random_boxes(rng, ndim, 4) - 3  # partly and wholly outside, too
    images = rng.integers(0, 2, 4)
    expected = torch.zeros(2, *shape, dtype=torch.bool)
    for box, image in zip(boxes.tolist(), images, strict=True):
        sides = [slice(max(a - grow, 0), max(b + grow, 0)) for a, b in zip(box[:ndim], box[ndim:], strict=True)]
        expected[(image, *sides)] = True
    turned = torch.block_diag(torch.eye(ndim).flip(0), torch.ones(1, 1))
    for matrix, order in ((None, range(ndim)), (turned, reversed(range(ndim)))):
        frames, order = boxes_to_frames(boxes, matrix), [axis + 1 for axis in order]
        found = frames_to_mask(frames, torch.as_tensor(images), 2, [shape[a - 1] for a in order], grow=grow)
        assert torch.equal(found, expected.permute(0, *order))


@pytest.mark.parametrize("ndim", [2, 3])
def test_flipped_masks_and_order_and_batches(ndim):
    rng = np.random.default_rng(8)
    shape, number = [11] * ndim, 5
    frames = torch.cat(
        [boxes_to_frames(b[None].double(), random_map(rng, ndim)) for b in random_boxes(rng, ndim, number)]
    )
    images = torch.tensor([0, 1, 0, 1, 1])
    mask = frames_to_mask(frames, images, 2, shape)
    assert mask.any() and not mask.all()
    order = torch.as_tensor(rng.permutation(number))
    assert torch.equal(frames_to_mask(frames[order], images[order], 2, shape), mask)
    one = [
        frames_to_mask(frames[images == n], torch.zeros(int((images == n).sum()), dtype=torch.int64), 1, shape)
        for n in (0, 1)
    ]
    assert torch.equal(torch.cat(one), mask)
    flipped = frames.clone()
    flipped[:, 0, 0], flipped[:, 1:, 0] = 11 - frames[:, 0, 0], -frames[:, 1:, 0]
    assert torch.equal(frames_to_mask(flipped, images, 2, shape), mask.flip(1))


def test_nothing_to_do_is_defined():
    for ndim in (2, 3):
        none = boxes_to_frames(torch.zeros(0, 2 * ndim))
        assert none.shape == (0, ndim + 1, ndim)
        assert frame_voxels(none, [4] * ndim).voxels.shape == (0,) * (ndim + 1)
        assert not frames_to_mask(none, torch.zeros(0, dtype=torch.int64), 2, [4] * ndim).any()
        assert frames_to_mask(none, torch.zeros(0, dtype=torch.int64), 0, [4] * ndim).shape == (0, *[4] * ndim)
        padding = frame_voxels(torch.zeros(2, ndim + 1, ndim), [4] * ndim)
        assert padding.voxels.shape == (2, *[0] * ndim)


BOX = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
FRAME = boxes_to_frames(BOX)
ZERO = torch.tensor([0])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: boxes_to_frames([[0, 0, 1, 1]]), TypeError, "boxes must be a tensor of real numbers, got list"),
        (lambda: boxes_to_frames(BOX.bool()), TypeError, "got torch.bool"),
        (lambda: boxes_to_frames(BOX[:, :3]), ValueError, r"\(N, 2 \* spatial_dims\), got \(1, 3\)"),
        (lambda: boxes_to_frames(BOX[0]), ValueError, r"got \(4,\)"),
        (lambda: boxes_to_frames(BOX * math.nan), ValueError, "box 0 must be finite"),
        (
            lambda: boxes_to_frames(torch.cat([BOX, -BOX])),
            ValueError,
            "box 1 must be finite, with every high corner above",
        ),
        (lambda: boxes_to_frames(BOX + torch.tensor([2, 0, 0, 0])), ValueError, "box 0 must be"),
        (lambda: boxes_to_frames(BOX, torch.eye(4)), ValueError, r"index_map must be a finite affine matrix \(3, 3\)"),
        (lambda: boxes_to_frames(BOX, torch.eye(3) * math.inf), ValueError, "finite affine matrix"),
        (lambda: boxes_to_frames(BOX, torch.ones(3, 3)), ValueError, "with the last row"),
        (
            lambda: boxes_to_frames(BOX, torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]])),
            ValueError,
            "have an inverse",
        ),
        (lambda: frame_voxels(FRAME, (4, 4, 4)), ValueError, r"frames must have the shape \(N, 4, 3\) for 3 axes"),
        (lambda: frame_voxels(FRAME, (4, 0)), ValueError, "spatial_shape must have one number of at least 1"),
        (lambda: frame_voxels(FRAME * math.inf, (4, 4)), ValueError, "frame 0 must be finite"),
        (lambda: frame_voxels(FRAME.tolist(), (4, 4)), TypeError, "frames must be a tensor of real numbers, got list"),
        (lambda: frame_voxels(FRAME, (4, 4), image_index=-ZERO - 1), ValueError, "at least 0 for each of 1 frames"),
        (lambda: frame_voxels(FRAME, (4, 4), image_index=ZERO.float()), ValueError, "image_index must hold a whole"),
        (lambda: frame_voxels(FRAME, (4, 4), image_index=ZERO.repeat(2)), ValueError, "each of 1 frames"),
        (lambda: frame_voxels(FRAME, (4, 4), spacing=[1, 0]), ValueError, "spacing must be above 0"),
        (lambda: frame_voxels(FRAME, (4, 4), spacing=torch.ones(2, 2)), ValueError, "one row for all or for each"),
        (lambda: frames_to_mask(FRAME, ZERO + 2, 2, (4, 4)), ValueError, "whole number of 0 to 1 for each"),
        (lambda: frames_to_mask(FRAME, ZERO, -1, (4, 4)), ValueError, "number must be a number of images"),
        (lambda: frames_to_mask(FRAME, ZERO, 1, (4, 4), grow=math.nan), ValueError, "grow must be a finite number"),
    ],
)
def test_errors_say_what_is_wrong(call, error, words):
    with pytest.raises(error, match=words):
        call()
