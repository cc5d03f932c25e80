# SPDX-License-Identifier: Apache-2.0
"""Hausdorff distances between the objects of two label maps, without a table of all pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.spatial import cKDTree


class ObjectVoxels:
    """The voxels of each object of a label map, in ascending order of the labels.

    Args:
        labels: (\\*spatial) int64, 0 background.
        spacing: (D,) voxel size along each axis.
    """

    def __init__(self, labels: np.ndarray, spacing: np.ndarray) -> None:
        self.labels = labels
        self.spacing = spacing
        edge = _edges(labels)
        places = np.flatnonzero(labels)
        values = labels.ravel()[places]
        order = np.argsort(values, kind="stable")
        self.values, starts = np.unique(values[order], return_index=True)
        self._places = np.split(places[order], starts[1:]) if len(starts) else []
        self._edge = edge.ravel()
        boxes = [self._voxels(part) for part in self._places]
        self.low = np.array([box.min(axis=0) for box in boxes]).reshape(-1, labels.ndim)
        self.high = np.array([box.max(axis=0) for box in boxes]).reshape(-1, labels.ndim)
        self._trees: dict[int, cKDTree] = {}

    def __len__(self) -> int:
        return len(self.values)

    def _voxels(self, places: np.ndarray) -> np.ndarray:
        return np.stack(np.unravel_index(places, self.labels.shape), axis=1)

    def _tree(self, number: int) -> cKDTree:
        if number not in self._trees:
            places = self._places[number]
            self._trees[number] = cKDTree(self._voxels(places[self._edge[places]]) * self.spacing)
        return self._trees[number]

    def farthest(self, number: int, others: ObjectVoxels, other: int) -> float:
        """Largest distance of a voxel of an object to the nearest voxel of an object of another map.

        From outside, the nearest voxel of an object is one of its edge. And outside its box the farthest voxel is one
        of the edge of its own object: from any other one a step away from the box would lead to a farther voxel.
        """
        places = self._places[number]
        places = places[others.labels.ravel()[places] != others.values[other]]
        voxels = self._voxels(places)
        inside = ((voxels >= others.low[other]) & (voxels <= others.high[other])).all(axis=1)
        voxels = voxels[inside | self._edge[places]]
        if not len(voxels):
            return 0.0
        return float(others._tree(other).query(voxels * self.spacing)[0].max())


def nearest_distances(
    true: ObjectVoxels,
    predicted: ObjectVoxels,
    true_partners: Sequence[Sequence[int]],
    predicted_partners: Sequence[Sequence[int]],
    without: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Smallest Hausdorff distance of each object to its partners, or to all objects of the other side if it has none.

    Args:
        true: objects of one side, T.
        predicted: objects of the other side, P.
        true_partners: of each object of the first side, numbers of objects of the second side.
        predicted_partners: the other way round.
        without: distance of an object when the other side has none.

    Returns:
        (T,) and (P,) float64.
    """
    known: dict[tuple[int, int], float] = {}

    def distance(one: int, two: int) -> float:
        if (one, two) not in known:
            known[one, two] = max(true.farthest(one, predicted, two), predicted.farthest(two, true, one))
        return known[one, two]

    return (
        _smallest(true, predicted, true_partners, distance, without),
        _smallest(predicted, true, predicted_partners, lambda two, one: distance(one, two), without),
    )


def _smallest(
    objects: ObjectVoxels,
    others: ObjectVoxels,
    partners: Sequence[Sequence[int]],
    distance: Callable[[int, int], float],
    without: float,
) -> np.ndarray:
    result = np.full(len(objects), without, np.float64)
    if not len(others):
        return result
    for number in range(len(objects)):
        if partners[number]:
            result[number] = min(distance(number, other) for other in partners[number])
            continue
        # Two objects are at least as far apart as the ends of their boxes are along any axis.
        apart = np.maximum(abs(objects.low[number] - others.low), abs(objects.high[number] - others.high))
        bounds = (apart * objects.spacing).max(axis=1)
        best = np.inf
        for other in np.argsort(bounds, kind="stable"):
            if bounds[other] >= best:
                break
            best = min(best, distance(number, int(other)))
        result[number] = best
    return result


def _edges(labels: np.ndarray) -> np.ndarray:
    """Voxels with a neighbour of another label, or at an end of the image."""
    edge = np.zeros(labels.shape, bool)
    for axis in range(labels.ndim):
        here, there = np.moveaxis(labels, axis, 0), np.moveaxis(edge, axis, 0)
        differ = here[1:] != here[:-1]
        there[1:] |= differ
        there[:-1] |= differ
        there[[0, -1]] = True
    return edge
