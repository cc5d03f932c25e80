# SPDX-License-Identifier: Apache-2.0
"""What detection metrics keep of an image: rows of numbers that can be gathered from all processes at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from monai.utils import evenly_divisible_all_gather

from monai_labelfx.metrics._detection_inputs import Objects, take
from monai_labelfx.metrics._mask_crops import shared_voxels

OVERLAPS = ("box", "mask", "center")
COUNTED, IGNORED, CROWD = 0, 1, 2


class DetectionTables(NamedTuple):
    """Images, their detections and true objects, and the pairs of these that overlap enough; all float64.

    Rows of an image lie together and in the order of the images. Detections are sorted by class and falling score
    (without classes by falling score), true objects by class.
    """

    images: np.ndarray  # (I, 6): detections, true objects, pairs, identity or -1, spatial axes, 1 if it has a spacing
    found: np.ndarray  # (N, 4): score, label, area, rank within its image (and class)
    true: np.ndarray  # (M, 3): label, area, role
    pairs: np.ndarray  # (P, 3): detection and true object, counted within their image, and overlap


COLUMNS = (6, 4, 3, 3)


def image_tables(
    found: Objects,
    true: Objects,
    *,
    overlap: str,
    least: float,
    cap: int | None,
    class_agnostic: bool,
    voxel: float | None,
    identity: int,
) -> DetectionTables:
    """The tables of one image: the ``cap`` best detections (of a class), and pairs that overlap by ``least``.

    Equal scores keep the order of the rows. ``voxel`` scales areas to physical units.
    """
    group = np.zeros_like(found.labels) if class_agnostic else found.labels
    order = np.lexsort((found.labels, -found.scores, group))
    group = group[order]
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    rank = np.arange(len(group)) - np.repeat(starts, np.diff(starts, append=len(group)))
    if cap is not None and len(rank) and rank.max() >= cap:
        order, rank = order[rank < cap], rank[rank < cap]
    found, true = take(found, order), take(true, np.argsort(true.labels, kind="stable"))
    if class_agnostic:
        rows, columns = np.indices((len(found.labels), len(true.labels))).reshape(2, -1)
    else:
        rows, columns = np.nonzero(found.labels[:, None] == true.labels)
    found_areas, true_areas = (_areas(objects, overlap) for objects in (found, true))
    shares = _overlaps(found, true, rows, columns, overlap, found_areas, true_areas)
    near = shares >= least
    scale = 1.0 if voxel is None else voxel
    stated = true_areas * scale if true.areas is None else true.areas
    role = np.where(true.crowd, CROWD, np.where(true.ignore, IGNORED, COUNTED))
    counts = (len(found.labels), len(true.labels), int(near.sum()))
    dims = max(found.dims, true.dims)
    return DetectionTables(
        np.array([[*counts, identity, dims, voxel is not None]], dtype=np.float64),
        np.stack([found.scores, found.labels, found_areas * scale, rank], 1),
        np.stack([true.labels, stated, role], 1),
        np.stack([rows[near], columns[near], shares[near]], 1),
    )


def join(tables: Sequence[DetectionTables]) -> DetectionTables:
    """One set of tables from those of many images."""
    return DetectionTables(
        *(
            np.concatenate([part[i] for part in tables] or [np.zeros((0, width))]).astype(np.float64, copy=False)
            for i, width in enumerate(COLUMNS)
        )
    )


def gather(tables: DetectionTables) -> DetectionTables:
    """The tables of all processes; each process must call it, one without images too."""
    sizes = np.array([len(part) for part in tables], np.float64)
    # One vector for all tables: it is never empty, and the processes wait for each other once.
    vector = np.concatenate([sizes, *(part.reshape(-1) for part in tables)])
    rest = evenly_divisible_all_gather(torch.from_numpy(vector), concat=True).cpu().numpy()
    parts = []
    while len(rest):
        sizes, rest = rest[: len(COLUMNS)].astype(int), rest[len(COLUMNS) :]
        part = []
        for rows, width in zip(sizes.tolist(), COLUMNS, strict=True):
            part.append(rest[: rows * width].reshape(rows, width))
            rest = rest[rows * width :]
        parts.append(DetectionTables(*part))
    return join(parts)


def _areas(objects: Objects, overlap: str) -> np.ndarray:
    """Area or volume (N,) in pixels or voxels."""
    if overlap == "mask":
        return np.zeros(0) if objects.masks is None else objects.masks.volumes.astype(np.float64)
    dims = objects.boxes.shape[1] // 2
    return (objects.boxes[:, dims:] - objects.boxes[:, :dims]).prod(1)


def _overlaps(
    found: Objects,
    true: Objects,
    rows: np.ndarray,
    columns: np.ndarray,
    overlap: str,
    found_areas: np.ndarray,
    true_areas: np.ndarray,
) -> np.ndarray:
    """Overlap (P,) of pairs: intersection over union, over the detection for crowds; -1 for a centre outside."""
    if not len(rows):
        return np.zeros(0)
    if overlap == "mask":
        shared = shared_voxels(found.masks, true.masks, (rows, columns)).astype(np.float64)  # type: ignore[arg-type]
    else:
        dims = true.boxes.shape[1] // 2
        first, second = found.boxes[rows], true.boxes[columns]
        if overlap == "center":
            return _closeness(first, second, dims)
        sides = np.minimum(first[:, dims:], second[:, dims:]) - np.maximum(first[:, :dims], second[:, :dims])
        shared = np.maximum(sides, 0.0).prod(1)
    own = found_areas[rows]
    whole = np.where(true.crowd[columns], own, own + true_areas[columns] - shared)
    return np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0)


def _closeness(first: np.ndarray, second: np.ndarray, dims: int) -> np.ndarray:
    """1 at the centre of the second box, 0 on the ellipsoid in it, -1 outside."""
    offset = (first[:, :dims] + first[:, dims:] - second[:, :dims] - second[:, dims:]) / 2
    half = np.maximum((second[:, dims:] - second[:, :dims]) / 2, np.finfo(np.float64).tiny)
    with np.errstate(over="ignore"):  # of a box without extent
        squared = np.square(offset / half).sum(1)
    return np.where(squared <= 1, 1 - squared, -1.0)
