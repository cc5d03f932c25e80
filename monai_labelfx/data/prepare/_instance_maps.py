# SPDX-License-Identifier: Apache-2.0
"""Masks of objects as few label maps: each object has a number, and those that overlap have maps of their own."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

_MOST = 2**16 - 1  # numbers of a picture of 16 bits


class InstanceMaps(NamedTuple):
    """N objects with voxels, numbered from 1 to N, channel after channel."""

    maps: np.ndarray  # (C, *spatial) uint8, uint16 for more than 255 objects; C is 1 without any object
    order: list[int]  # place of each object in what came
    boxes: list[list[int]]  # tight, low corner, then high corner, half open


def instance_maps(masks: Iterable[np.ndarray], shape: Sequence[int]) -> InstanceMaps:
    """Number objects and lay them into as few channels as a greedy colouring finds, so that none covers another.

    Args:
        masks: bool masks of ``shape``; those without voxels get no number.
        shape: of the image.

    Raises:
        ValueError: more objects than 16 bits can number.
    """
    covered = [np.flatnonzero(mask) for mask in masks]
    present = [index for index, voxels in enumerate(covered) if voxels.size]
    if len(present) > _MOST:
        raise ValueError(f"it has {len(present)} objects, more than the {_MOST} that a label map of 16 bits can number")
    channel = dict(zip(present, _colours(_overlaps([covered[index] for index in present], shape)), strict=True))
    order = sorted(present, key=lambda index: channel[index])
    maps = np.zeros((max(channel.values(), default=0) + 1, *shape), np.uint8 if len(present) < 256 else np.uint16)
    for number, index in enumerate(order, start=1):
        maps[channel[index]].reshape(-1)[covered[index]] = number
    return InstanceMaps(maps, order, [_tight_box(covered[index], shape) for index in order])


def save_instance_maps(path: Path, maps: np.ndarray) -> list[Path]:
    """Write (C, x, y) as PNG; of several channels each has its own file, the number of the channel in its name.

    A name that is taken (by the map of a picture of the same name and another suffix) gets an underscore.
    """
    from PIL import Image

    names = [path] if len(maps) == 1 else [path.with_stem(f"{path.stem}_{channel}") for channel in range(len(maps))]
    while any(name.exists() for name in names):
        names = [name.with_stem(f"{name.stem}_") for name in names]
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, array in zip(names, maps, strict=True):
        Image.fromarray(np.ascontiguousarray(array.T)).save(name)  # x is the first axis here, and runs along a row
    return names


def _overlaps(covered: Sequence[np.ndarray], shape: Sequence[int]) -> list[set[int]]:
    """The objects with which each shares a voxel."""
    from scipy import sparse

    ends = np.cumsum([0, *(voxels.size for voxels in covered)])
    voxels = np.concatenate(covered) if covered else np.zeros(0, np.int64)
    size = (len(covered), int(np.prod(shape)))
    table = sparse.csr_array((np.ones(len(voxels), np.int32), voxels, ends), shape=size)
    shared = (table @ table.T).tocoo()
    found: list[set[int]] = [set() for _ in covered]
    for first, second in zip(shared.row.tolist(), shared.col.tolist(), strict=True):
        if first != second:
            found[first].add(second)
    return found


def _colours(neighbours: Sequence[set[int]]) -> list[int]:
    """A colour for each, unlike those of its neighbours; next is always one whose neighbours have most colours.

    This finds two colours wherever two are enough, as between objects that overlap their successors only.
    """
    colours: dict[int, int] = {}
    around: list[set[int]] = [set() for _ in neighbours]
    queue = [(0, -len(near), index) for index, near in enumerate(neighbours)]
    heapq.heapify(queue)
    while queue:
        _, degree, index = heapq.heappop(queue)
        if index in colours:
            continue
        colours[index] = min(set(range(len(around[index]) + 1)) - around[index])
        for near in neighbours[index] - colours.keys():
            around[near].add(colours[index])
            heapq.heappush(queue, (-len(around[near]), -len(neighbours[near]), near))
    return [colours[index] for index in range(len(neighbours))]


def _tight_box(voxels: np.ndarray, shape: Sequence[int]) -> list[int]:
    corners = np.stack(np.unravel_index(voxels, tuple(shape)))
    return [*corners.min(axis=1).tolist(), *(corners.max(axis=1) + 1).tolist()]
