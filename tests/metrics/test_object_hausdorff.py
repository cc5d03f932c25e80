# SPDX-License-Identifier: Apache-2.0
"""Directed distances and the search for the nearest object against tables of all voxels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from monai_labelfx.metrics import _object_hausdorff
from monai_labelfx.metrics._object_hausdorff import ObjectVoxels, nearest_distances


def table(one: np.ndarray, other: np.ndarray, spacing) -> np.ndarray:
    return cdist(np.argwhere(one) * spacing, np.argwhere(other) * spacing)


def random_map(rng, shape) -> np.ndarray:
    """Blocks and rings that touch, enclose and miss each other."""
    labels = np.zeros(shape, np.int64)
    for number in (7, 3, 9, 20):
        low = [rng.integers(0, n - 2) for n in shape]
        high = [rng.integers(start + 2, n + 1) for start, n in zip(low, shape, strict=True)]
        labels[tuple(slice(*ends) for ends in zip(low, high, strict=True))] = number
        if rng.random() < 0.5:
            labels[tuple(slice(a + 1, b - 1) for a, b in zip(low, high, strict=True))] = 0
    return labels


@pytest.mark.parametrize(("shape", "spacing"), [((30,), (2.0,)), ((11, 13), (1.0, 3.0)), ((6, 7, 8), (0.5, 1.0, 2.5))])
def test_farthest_voxel_and_nearest_object(shape, spacing):
    spacing = np.array(spacing)
    rng = np.random.default_rng(0)
    for _ in range(15):
        maps = [random_map(rng, shape) for _ in range(2)]
        first, second = (ObjectVoxels(labels, spacing) for labels in maps)
        numbers = [np.unique(labels[labels > 0]) for labels in maps]
        directed = np.zeros((2, len(first), len(second)))
        for i, one in enumerate(numbers[0]):
            for j, two in enumerate(numbers[1]):
                distances = table(maps[0] == one, maps[1] == two, spacing)
                directed[:, i, j] = distances.min(axis=1).max(), distances.min(axis=0).max()
                assert first.farthest(i, second, j) == pytest.approx(directed[0, i, j])
                assert second.farthest(j, first, i) == pytest.approx(directed[1, i, j])
        full = directed.max(axis=0)
        partners = [[0] if i == 0 else [] for i in range(len(first))], [[] for _ in range(len(second))]
        from_first, from_second = nearest_distances(first, second, *partners, without=99.0)
        np.testing.assert_allclose(from_first, [full[0, 0], *full[1:].min(axis=1)])
        np.testing.assert_allclose(from_second, full.min(axis=0))


def test_the_middle_of_an_enclosed_object_is_found():
    ring, disc = np.ones((9, 9), np.int64), np.zeros((9, 9), np.int64)
    ring[1:-1, 1:-1] = 0
    disc[1:-1, 1:-1] = 4
    spacing = np.ones(2)
    assert ObjectVoxels(disc, spacing).farthest(0, ObjectVoxels(ring, spacing), 0) == 4


def test_far_objects_are_not_measured():
    """Boxes tell that most objects are farther away than the nearest one."""
    one, many = np.zeros((3, 200), np.int64), np.zeros((3, 200), np.int64)
    one[1, 50:53] = 1
    for number in range(40):
        many[0, 5 * number : 5 * number + 2] = number + 1
    first, second = ObjectVoxels(one, np.ones(2)), ObjectVoxels(many, np.ones(2))
    measured = []

    def distance(i: int, j: int) -> float:
        measured.append(j)
        return max(first.farthest(i, second, j), second.farthest(j, first, i))

    result = _object_hausdorff._smallest(first, second, [[]], distance, without=1.0)
    assert result[0] == pytest.approx(np.sqrt(2)) and measured == [10]


def test_nothing_to_measure():
    spacing = np.ones(2)
    none, some = ObjectVoxels(np.zeros((3, 3), np.int64), spacing), ObjectVoxels(np.eye(3, dtype=np.int64), spacing)
    assert len(none) == 0 and len(some) == 1
    first, second = nearest_distances(some, none, [[]], [], without=7.0)
    assert first.tolist() == [7.0] and second.tolist() == []
    assert not _object_hausdorff._edges(np.full((5, 5), 3))[1:-1, 1:-1].any()
