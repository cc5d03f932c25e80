# SPDX-License-Identifier: Apache-2.0
"""Greedy matching of detections to true objects, for all images, classes, thresholds and area ranges at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from monai_labelfx.metrics._detection_tables import COUNTED, CROWD, DetectionTables

MAX_THRESHOLDS = 64
_ALL = np.uint64(2**MAX_THRESHOLDS - 1)


class DetectionMatches(NamedTuple):
    """Detections of the classes that have a true object, sorted by class and falling score, and what they matched.

    Bit t of ``hits`` and ``counts`` belongs to threshold t. A detection is a hit, or counted without being one (a
    false positive), or not counted (it matched an ignored object, or lies outside the area range unmatched).
    """

    classes: np.ndarray  # (K,) int64 labels with a true object; [-1] without classes
    bounds: np.ndarray  # (K + 1,) int64, where each class begins among the detections
    image: np.ndarray  # (N,) int64
    score: np.ndarray  # (N,) float64
    rank: np.ndarray  # (N,) int64, within its image (and class)
    hits: np.ndarray  # (A, N) uint64
    counts: np.ndarray  # (A, N) uint64
    true_image: np.ndarray  # (M,) int64
    true_class: np.ndarray  # (M,) int64, index into classes
    true_counted: np.ndarray  # (A, M) bool


def match_detections(
    tables: DetectionTables,
    thresholds: Sequence[float],
    areas: Sequence[tuple[float, float]],
    *,
    class_agnostic: bool = False,
    forgive_repeats: bool = False,
) -> DetectionMatches:
    """Match as COCO does: by falling score, each detection takes the free true object that it overlaps most.

    Counted objects go before ignored ones, equal overlaps to the later object; ignored ones are those with that role
    and those outside the area range; a crowd can be taken any number of times.

    Args:
        tables: of all images.
        thresholds: T <= 64 least overlaps of a match.
        areas: A ranges (least, most), both included.
        class_agnostic: all objects are one class, as the tables are already.
        forgive_repeats: a detection that reaches a true object which another one took is not counted.
    """
    images, found, true, pairs = tables
    found_image, true_image = (np.repeat(np.arange(len(images)), images[:, i].astype(int)) for i in (0, 1))
    firsts = np.cumsum(images[:, :2], axis=0) - images[:, :2]
    pair_image = np.repeat(np.arange(len(images)), images[:, 2].astype(int))
    pair_found, pair_true = (
        (pairs[:, i] + firsts[pair_image, i]).astype(np.int64) if len(pairs) else np.zeros(0, np.int64) for i in (0, 1)
    )
    low, high = np.asarray(areas, np.float64).T[:, :, None]
    inside = (found[:, 2] >= low) & (found[:, 2] <= high)  # (A, N)
    counted = (true[:, 1] >= low) & (true[:, 1] <= high) & (true[:, 2] == COUNTED)  # (A, M)
    # At an overlap of 1 rounding must not decide; COCO's bound.
    least = np.minimum(np.asarray(thresholds, np.float64), 1 - 1e-10)
    bits = np.uint64(1) << np.arange(len(least), dtype=np.uint64)
    reach = ((pairs[:, 2:] >= least) * bits).sum(1, dtype=np.uint64)

    # Each area range is a world of its own: detection d and object g of world a are d + a * N and g + a * M.
    order = np.lexsort((-pair_true, -pairs[:, 2], pair_found))
    pair_found, pair_true, reach = pair_found[order], pair_true[order], reach[order]
    second = ~counted[:, pair_true]  # (A, P)
    worlds = np.arange(len(low))[:, None]
    preferred = np.argsort(pair_found * 2 + second, axis=1, kind="stable")
    owner, thing = pair_found[preferred] + worlds * len(found), pair_true[preferred] + worlds * len(true)
    group = np.cumsum(found[:, 3] == 0)[pair_found[preferred]]
    matched, spared = _take_turns(
        owner.ravel(),
        thing.ravel(),
        reach[preferred].ravel(),
        np.take_along_axis(second, preferred, axis=1).ravel(),
        true[pair_true[preferred].ravel(), 2] == CROWD,
        (group + worlds * (len(found) + 1)).ravel(),
        (len(low) * len(found), len(low) * len(true)),
    )
    matched, spared = matched.reshape(inside.shape), spared.reshape(inside.shape)
    counts = ~spared & np.where(inside, _ALL, matched)
    if forgive_repeats and len(reach):
        reached = np.zeros(len(found), np.uint64)
        np.bitwise_or.at(reached, pair_found, reach)
        counts = counts & (matched | ~reached)
    labels, true_labels = (
        np.full(len(part), -1.0) if class_agnostic else part[:, i] for part, i in ((found, 1), (true, 0))
    )
    # A class whose objects are all ignored is absent; the curves see that by its number of counted objects.
    classes, true_class = np.unique(true_labels, return_inverse=True)
    kept = np.flatnonzero(np.isin(labels, classes))
    kept = kept[np.lexsort((-found[kept, 0], labels[kept]))]
    return DetectionMatches(
        classes.astype(np.int64),
        np.searchsorted(labels[kept], np.append(classes, np.inf)),
        found_image[kept],
        found[kept, 0],
        found[kept, 3].astype(np.int64),
        matched[:, kept] & ~spared[:, kept],
        counts[:, kept],
        true_image,
        true_class.reshape(-1),
        counted,
    )


def _take_turns(
    owner: np.ndarray,
    thing: np.ndarray,
    reach: np.ndarray,
    second: np.ndarray,
    crowd: np.ndarray,
    group: np.ndarray,
    sizes: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Bits of the thresholds at which detections matched, and of those at which they matched an ignored object.

    The pairs of a group (one image, class and area range) must be settled one after the other, groups do not meet:
    turn s settles the s-th pair of every group, for all thresholds in one word.
    """
    matched, spared = np.zeros(sizes[0], np.uint64), np.zeros(sizes[0], np.uint64)
    taken = np.zeros(sizes[1], np.uint64)
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    turn = np.arange(len(group)) - np.repeat(starts, np.diff(starts, append=len(group)))
    order = np.argsort(turn, kind="stable")
    owner, thing, reach = owner[order], thing[order], reach[order]
    spares = np.where(second[order], _ALL, np.uint64(0))
    blocks = np.where(crowd[order], np.uint64(0), _ALL)
    ends = np.cumsum(np.bincount(turn)).tolist()
    for begin, end in zip([0, *ends], ends, strict=False):
        detections, objects = owner[begin:end], thing[begin:end]
        already, busy = matched[detections], taken[objects]
        hit = reach[begin:end] & ~(already | busy)
        matched[detections] = already | hit
        spared[detections] |= hit & spares[begin:end]
        taken[objects] = busy | (hit & blocks[begin:end])
    return matched, spared
