# SPDX-License-Identifier: Apache-2.0
"""Boxes under affine maps, in the world, from masks and cut."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from monai_labelfx.ops.box_affine import (
    boxes_through_affine,
    boxes_to_voxels,
    boxes_to_world,
    clip_boxes,
    masks_to_boxes,
)


def random_boxes(ndim: int, number: int = 20, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(number, ndim, generator=generator, dtype=torch.float64) * 20 - 5
    return torch.cat((low, low + torch.rand(number, ndim, generator=generator, dtype=torch.float64) * 9), 1)


def random_affine(ndim: int, seed: int, *, aligned: bool = False) -> np.ndarray:
    """With negative diagonals; ``aligned``: a signed permutation with scales."""
    generator = np.random.default_rng(seed)
    matrix = np.eye(ndim + 1)
    if aligned:
        scales = generator.uniform(0.3, 3, ndim) * generator.choice([-1, 1], ndim)
        matrix[:ndim, :ndim] = np.eye(ndim)[generator.permutation(ndim)] * scales
    else:
        matrix[:ndim, :ndim] = generator.normal(size=(ndim, ndim)) - 2 * np.eye(ndim)
    matrix[:ndim, ndim] = generator.normal(0, 30, ndim)
    return matrix


def corner_hull(boxes: torch.Tensor, matrix: np.ndarray, half: float = 0.5) -> np.ndarray:
    """Every corner by itself."""
    ndim = boxes.shape[1] // 2
    result = []
    for box in boxes.numpy():
        corners = np.array(list(itertools.product(*zip(box[:ndim], box[ndim:], strict=True))))
        moved = (corners - half) @ matrix[:ndim, :ndim].T + matrix[:ndim, ndim] + half
        result.append(np.concatenate((moved.min(0), moved.max(0))))
    return np.array(result)


@pytest.mark.parametrize("ndim", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_hull_of_all_corners(ndim, seed):
    boxes, matrix = random_boxes(ndim, seed=seed), random_affine(ndim, seed)
    np.testing.assert_allclose(boxes_through_affine(boxes, matrix).numpy(), corner_hull(boxes, matrix), atol=1e-11)
    as_edges = boxes_through_affine(boxes, torch.as_tensor(matrix), edges=True)
    np.testing.assert_allclose(as_edges.numpy(), corner_hull(boxes, matrix, 0.0), atol=1e-11)


@pytest.mark.parametrize("ndim", [2, 3])
def test_aligned_maps_are_exact_compose_and_invert(ndim):
    for seed in range(5):
        boxes = random_boxes(ndim, seed=seed)
        first, second = random_affine(ndim, seed, aligned=True), random_affine(ndim, seed + 50, aligned=True)
        moved = boxes_through_affine(boxes, first)
        volume = [(one[:, ndim:] - one[:, :ndim]).prod(1) for one in (boxes, moved)]
        torch.testing.assert_close(volume[1], volume[0] * abs(np.linalg.det(first)))
        torch.testing.assert_close(boxes_through_affine(moved, np.linalg.inv(first)), boxes)
        torch.testing.assert_close(boxes_through_affine(moved, second), boxes_through_affine(boxes, second @ first))


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_box_of_a_moved_mask_is_the_moved_box_of_the_mask(ndim):
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(6, *(9, 7, 5)[:ndim], generator=generator) > 0.97
    masks[:, 3, 2] = True
    boxes = masks_to_boxes(masks)
    flip = np.eye(ndim + 1)
    flip[0, 0], flip[0, ndim] = -1, 8
    torch.testing.assert_close(masks_to_boxes(masks.flip(1)), boxes_through_affine(boxes, flip), rtol=0, atol=0)
    swap = np.eye(ndim + 1)[[1, 0, *range(2, ndim + 1)]]
    assert torch.equal(masks_to_boxes(masks.transpose(1, 2)), boxes_through_affine(boxes, swap))
    twice = masks.repeat_interleave(2, 1)  # voxel k becomes 2k and 2k + 1: centre k at 2k + 0.5
    zoom = np.eye(ndim + 1)
    zoom[0, 0], zoom[0, ndim] = 2, 0.5
    assert torch.equal(masks_to_boxes(twice), boxes_through_affine(boxes, zoom))


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_world_and_back_and_the_world_does_not_move_with_the_image(ndim, seed):
    boxes, affine = random_boxes(ndim, seed=seed), random_affine(ndim, seed, aligned=True)
    world = boxes_to_world(boxes, affine)
    torch.testing.assert_close(boxes_to_voxels(world, affine), boxes, rtol=0, atol=1e-9)
    flip = np.eye(ndim + 1)
    flip[0, 0], flip[0, ndim] = -1, 19
    moved, now = boxes_through_affine(boxes, flip), affine @ np.linalg.inv(flip)
    torch.testing.assert_close(boxes_to_world(moved, now), world, rtol=0, atol=1e-9)
    oblique = random_affine(ndim, seed)
    np.testing.assert_allclose(
        boxes_to_world(boxes, oblique).numpy(),
        corner_hull(boxes - 0.5, oblique, 0.0),
        atol=1e-9,
    )


def test_a_picture_in_space_counts_with_its_own_axes():
    boxes = random_boxes(2)
    small = random_affine(2, 0, aligned=True)
    large = np.diag([1.0, 1, 7, 1])
    large[:2, :2], large[:2, 3], large[2, 3] = small[:2, :2], small[:2, 2], 5
    assert torch.equal(boxes_to_world(boxes, large), boxes_to_world(boxes, small))
    large[2, 0] = 0.5
    with pytest.raises(ValueError, match="obliquely in space"):
        boxes_to_world(boxes, large)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32, torch.int64])
def test_masks_by_argwhere(dtype):
    generator = torch.Generator().manual_seed(3)
    for shape in ((7,), (6, 5), (4, 5, 6), (3, 2, 4, 2)):
        masks = torch.rand(8, *shape, generator=generator) > 0.8
        masks[2] = False
        for mask, box in zip(masks, masks_to_boxes(masks.to(dtype)).tolist(), strict=True):
            where = mask.nonzero()
            wanted = [*where.amin(0), *(where.amax(0) + 1)] if len(where) else [0] * 2 * len(shape)
            assert box == [float(value) for value in wanted]
    assert masks_to_boxes(torch.zeros(0, 4, 4)).shape == (0, 4)
    assert masks_to_boxes(torch.zeros(3, 4, 0)).tolist() == [[0.0] * 4] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64])
def test_dtype_shapes_and_nothing(dtype):
    boxes = torch.tensor([[1, 2, 4, 8], [0, 0, 0, 0]]).to(dtype)
    wanted = dtype if dtype.is_floating_point else torch.float32
    shift = np.eye(3)
    shift[0, 2] = 2
    moved = boxes_through_affine(boxes, shift)
    assert moved.dtype == wanted and moved.tolist() == [[3, 2, 6, 8], [2, 0, 2, 0]]
    assert boxes_through_affine(boxes[None, None], shift).shape == (1, 1, 2, 4)
    assert boxes_through_affine(boxes[:0], shift).shape == (0, 4) == clip_boxes(boxes[:0], (3, 3)).shape
    assert clip_boxes(boxes, (3, 5)).dtype == dtype and clip_boxes(boxes, (3, 5)).tolist()[0] == [1, 2, 3, 5]
    assert clip_boxes(boxes - 3, (3, 3)).tolist()[0] == [0, 0, 1, 3]


def test_gradients():
    boxes = random_boxes(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda one: boxes_through_affine(one, random_affine(2, 1)), boxes)
    clip_boxes(boxes, (6, 6)).sum().backward()
    inside = (boxes > 0) & (boxes < 6)
    assert torch.equal(boxes.grad[inside], torch.ones(int(inside.sum()), dtype=torch.float64))


def test_bad_input():
    boxes = random_boxes(2)
    with pytest.raises(TypeError, match="tensor of real numbers, got list"):
        boxes_through_affine([[0, 0, 1, 1]], np.eye(3))
    with pytest.raises(TypeError, match="bool"):
        clip_boxes(boxes > 0, (1, 1))
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 2 \* spatial_dims\), got \(20, 3\)"):
        boxes_to_world(boxes[:, :3], np.eye(3))
    for matrix in (np.eye(4), np.full((3, 3), np.nan), np.ones((3, 3))):
        with pytest.raises(ValueError, match="matrix must be a finite affine matrix"):
            boxes_through_affine(boxes, matrix)
    with pytest.raises(ValueError, match="affine must have an inverse"):
        boxes_to_voxels(boxes, np.diag([1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="one size for each of 2 axes"):
        clip_boxes(boxes, (3, 3, 3))
    with pytest.raises(ValueError, match=r"\(N, \*spatial\)"):
        masks_to_boxes(torch.zeros(3))
