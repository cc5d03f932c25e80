# SPDX-License-Identifier: Apache-2.0
"""Boxes of components against a flood fill written out, and what must not change them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from monai_labelfx.ops.components import component_boxes, largest_components, small_components

SHAPES = ((9,), (7, 8), (1, 9), (5, 4, 6))
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)


def naive_components(labels: np.ndarray, connectivity: int) -> list[tuple[int, list[tuple[int, ...]]]]:
    """(label, voxels) of each component by a flood fill, voxel by voxel."""
    offsets = [o for o in itertools.product((-1, 0, 1), repeat=labels.ndim) if 0 < np.abs(o).sum() <= connectivity]
    seen, found = set(), []
    for start in np.ndindex(labels.shape):
        if labels[start] == 0 or start in seen:
            continue
        voxels, queue = [], [start]
        seen.add(start)
        while queue:
            voxel = queue.pop()
            voxels.append(voxel)
            for offset in offsets:
                other = tuple(int(v + o) for v, o in zip(voxel, offset, strict=True))
                inside = all(0 <= v < n for v, n in zip(other, labels.shape, strict=True))
                if inside and other not in seen and labels[other] == labels[start]:
                    seen.add(other)
                    queue.append(other)
        found.append((int(labels[start]), voxels))
    return found


def naive_rows(labels: np.ndarray, connectivity: int, min_size: int = 0) -> list[tuple[int, ...]]:
    """Label and box of each component, sorted by label and first voxel."""
    found = [one for one in naive_components(labels, connectivity) if len(one[1]) >= min_size]
    found = sorted(found, key=lambda one: (one[0], min(one[1])))
    return [(label, *np.min(voxels, 0).tolist(), *(np.max(voxels, 0) + 1).tolist()) for label, voxels in found]


def rows(labels, **keywords) -> list[tuple[int, ...]]:
    boxes, classes = component_boxes(labels, **keywords)
    assert boxes.dtype == classes.dtype == torch.int64 and boxes.shape == (len(classes), 2 * labels.ndim)
    return [(label, *box) for label, box in zip(classes.tolist(), boxes.tolist(), strict=True)]


def random_labels(shape, seed: int, classes: int = 3, density: float = 0.4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(1, classes + 1, shape) * (rng.random(shape) < density)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(4))
def test_boxes_equal_a_flood_fill(shape, seed):
    labels = random_labels(shape, seed)
    tensor = torch.as_tensor(labels)
    for connectivity in range(1, len(shape) + 1):
        for min_size in (0, 1, 2, 4):
            expected = naive_rows(labels, connectivity, min_size)
            assert rows(tensor, connectivity=connectivity, min_size=min_size) == expected
            small = np.zeros(shape, bool)
            for _, voxels in naive_components(labels, connectivity):
                small[tuple(np.transpose(voxels))] = len(voxels) < min_size
            found = small_components(tensor, min_size, connectivity=connectivity)
            assert found.dtype == torch.bool
            np.testing.assert_array_equal(found, small)
    assert rows(tensor) == naive_rows(labels, len(shape)), "all neighbours are the default"


@pytest.mark.parametrize("shape", SHAPES)
def test_instances_get_one_box_each(shape):
    labels = random_labels(shape, 5, classes=4)
    expected = []
    for number in sorted(set(labels.ravel().tolist()) - {0}):
        voxels = np.argwhere(labels == number)
        expected.append((number, *voxels.min(0).tolist(), *(voxels.max(0) + 1).tolist()))
    assert rows(torch.as_tensor(labels), instances=True) == expected
    sizes = np.bincount(labels.ravel(), minlength=5)
    limit = int(np.median(sizes[1:][sizes[1:] > 0])) + 1
    kept = [row for row in expected if sizes[row[0]] >= limit]
    assert rows(torch.as_tensor(labels), instances=True, min_size=limit) == kept
    small = small_components(torch.as_tensor(labels), limit, instances=True)
    np.testing.assert_array_equal(small, (labels > 0) & (sizes[labels] < limit))


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10_000), ndim=st.integers(2, 3), density=st.floats(0.02, 0.95))
def test_every_box_is_tight_and_every_voxel_has_a_box(seed, ndim, density):
    rng = np.random.default_rng(seed)
    labels = random_labels(tuple(rng.integers(1, 8, ndim)), seed, 2, density)
    boxes, classes = component_boxes(torch.as_tensor(labels))
    covered = np.zeros(labels.shape, bool)
    for box, number in zip(boxes.numpy(), classes.tolist(), strict=True):
        window = tuple(slice(*pair) for pair in box.reshape(2, ndim).T)
        inside = labels[window] == number
        covered[window] |= inside
        for axis in range(ndim):
            assert inside.any(axis=tuple(set(range(ndim)) - {axis}))[[0, -1]].all(), "each side touches the object"
    np.testing.assert_array_equal(covered, labels > 0)


def test_known_cases_in_two_and_three_axes():
    for ndim in (2, 3):
        single = torch.zeros((5,) * ndim, dtype=torch.uint8)
        single[(3,) * ndim] = 1
        assert rows(single) == [(1, *[3] * ndim, *[4] * ndim)]
        single[(4,) * ndim] = 1  # they share a corner
        assert rows(single) == [(1, *[3] * ndim, *[5] * ndim)]
        assert len(rows(single, connectivity=ndim - 1)) == 2
        assert rows(torch.ones((4,) * ndim)) == [(1, *[0] * ndim, *[4] * ndim)]
        for empty in (torch.zeros((4,) * ndim), torch.zeros((0,) + (4,) * (ndim - 1)), single * 0):
            boxes, classes = component_boxes(empty)
            assert boxes.shape == (0, 2 * ndim) and classes.shape == (0,)
            assert not small_components(empty, 9).any()


def test_a_class_around_another_keeps_its_own_box():
    labels = torch.full((7, 7), 2)
    labels[2:5, 3] = 1
    assert rows(labels) == [(1, 2, 3, 5, 4), (2, 0, 0, 7, 7)]


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool, torch.float16, torch.float64], ids=str)
def test_every_type_of_number(dtype):
    labels = torch.as_tensor(random_labels((8, 9), 2, classes=1 if dtype == torch.bool else 3))
    assert rows(labels.to(dtype)) == naive_rows(labels.numpy(), 2)


def test_huge_labels_take_no_memory():
    labels = torch.zeros(6, 6, dtype=torch.int64)
    labels[1, 1], labels[4, 2:4], labels[0, 5] = 2**62, 7, 2**40
    expected = [(7, 4, 2, 5, 4), (2**40, 0, 5, 1, 6), (2**62, 1, 1, 2, 2)]
    assert rows(labels) == expected and rows(labels, instances=True) == expected
    assert rows(labels, min_size=2) == expected[:1]
    assert small_components(labels, 2).sum() == 2


def test_flips_and_transposes_carry_the_boxes():
    labels = torch.as_tensor(random_labels((6, 9), 8))
    boxes, classes = component_boxes(labels)
    flipped, flipped_classes = component_boxes(labels.flip(1))
    low, high = 9 - boxes[:, 3], 9 - boxes[:, 1]
    mirrored = torch.stack([boxes[:, 0], low, boxes[:, 2], high], dim=1)
    assert sorted(zip(flipped_classes.tolist(), flipped.tolist(), strict=True)) == sorted(
        zip(classes.tolist(), mirrored.tolist(), strict=True)
    )
    assert sorted(component_boxes(labels.T)[0].tolist()) == sorted(boxes[:, [1, 0, 3, 2]].tolist())


def test_input_is_not_edited_and_a_volume_of_one_slice_is_a_picture():
    labels = torch.as_tensor(random_labels((6, 9), 8))
    before = labels.clone()
    flat = rows(labels)
    assert torch.equal(labels, before)
    assert [(row[0], *row[1:3], *row[4:6]) for row in rows(labels[..., None])] == flat


@pytest.mark.parametrize(
    ("labels", "keywords", "error", "words"),
    [
        ([[1]], {}, TypeError, "labels must be a tensor of integer labels, got list"),
        (torch.ones(3, 3, dtype=torch.complex64), {}, TypeError, "complex64"),
        (torch.tensor(1), {}, ValueError, r"shape \(\*spatial\), got a single number"),
        (torch.tensor([[0, -1]]), {}, ValueError, "positive labels, got -1"),
        (torch.tensor([[0, 0.5]]), {}, ValueError, "whole numbers"),
        (torch.tensor([[0, float("nan")]]), {}, ValueError, "whole numbers"),
        (torch.ones(4, 4), {"connectivity": 0}, ValueError, "connectivity must be between 1 and .* 2, got 0"),
        (torch.ones(4, 4), {"connectivity": 3}, ValueError, "connectivity must be between 1 and .* 2, got 3"),
        (torch.ones(4, 4), {"min_size": -1}, ValueError, "min_size must be a number of voxels, 0 or above, got -1"),
    ],
)
def test_errors_say_what_is_wrong(labels, keywords, error, words):
    with pytest.raises(error, match=words):
        component_boxes(labels, **keywords)
    with pytest.raises(error, match=words):
        small_components(labels, **{"min_size": 0} | keywords)


@pytest.mark.parametrize("shape", [(6, 9, 8), (5, 7, 6, 8), (3, 20), (0, 4, 4)])
@pytest.mark.parametrize("connectivity", [None, 1])
def test_largest_components(shape, connectivity):
    masks = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.45
    masks[1:2] = False
    found = largest_components(masks, connectivity=connectivity)
    assert found.shape == masks.shape and found.dtype == torch.bool
    for mask, kept in zip(masks.numpy(), found.numpy(), strict=True):
        parts, number = ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, connectivity or mask.ndim))
        best = int(np.bincount(parts.ravel())[1:].argmax()) + 1 if number else -1
        assert (kept == (parts == best)).all()


def test_largest_components_of_bad_input():
    with pytest.raises(ValueError, match=r"\(N, \*spatial\), got \(3,\)"):
        largest_components(torch.ones(3))
    with pytest.raises(ValueError, match="connectivity"):
        largest_components(torch.ones(1, 3, 3), connectivity=3)
