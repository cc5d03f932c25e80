# SPDX-License-Identifier: Apache-2.0
"""Batched greedy matching against the loop that it stands for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from coco_reference import detections

from monai_labelfx.metrics._detection_inputs import read_objects
from monai_labelfx.metrics._detection_matching import match_detections
from monai_labelfx.metrics._detection_tables import DetectionTables, image_tables, join

AREAS = [(-math.inf, math.inf), (0, 6000), (6000, math.inf)]
THRESHOLDS = [0.3, 0.05, 0.6]


def made(agnostic: bool, seed: int) -> DetectionTables:
    predictions, targets = detections(6, 2, seed=seed, objects=5, extra=15, crowd=0.2)
    options = {"overlap": "box", "least": 0.05, "cap": None, "voxel": None, "identity": -1}
    parts = []
    for prediction, target in zip(predictions, targets, strict=True):
        for item in (prediction, target):  # coarse corners: many overlaps, some of them equal
            item["boxes"][:, :2], item["boxes"][:, 2:] = item["boxes"].div(60).round().mul(40).split(2, 1)
            item["boxes"][:, 2:] += 40
        target["ignore"] = np.arange(len(target["labels"])) % 5 == 0
        objects = read_objects(prediction, "p", scored=True), read_objects(target, "t", scored=False)
        parts.append(image_tables(*objects, class_agnostic=agnostic, **options))
    return join(parts)


def loop(tables: DetectionTables, threshold: float, area: tuple, agnostic: bool, forgive: bool) -> list[tuple]:
    """(image, score, hit, counted) of every detection, by plain loops over images, classes and detections."""
    rows = []
    found_at = true_at = pair_at = 0
    for image, (n, m, p) in enumerate(tables.images[:, :3].astype(int)):
        found, true = tables.found[found_at : found_at + n], tables.true[true_at : true_at + m]
        pairs = {(int(d), int(g)): iou for d, g, iou in tables.pairs[pair_at : pair_at + p]}
        found_at, true_at, pair_at = found_at + n, true_at + m, pair_at + p
        ignored = [role != 0 or not area[0] <= size <= area[1] for _, size, role in true]
        taken: set[int] = set()
        for d, (score, _, size, _) in enumerate(found):
            reached = [g for g in range(m) if pairs.get((d, g), -1) >= threshold]
            free = [g for g in reached if true[g, 2] == 2 or g not in taken]
            best = min(free, key=lambda g: (ignored[g], -pairs[d, g], -g), default=None)
            if best is None:
                rows.append((image, score, False, area[0] <= size <= area[1] and not (forgive and reached)))
            else:
                taken.add(best)
                rows.append((image, score, not ignored[best], not ignored[best]))
    return rows


@pytest.mark.parametrize("forgive", [False, True])
@pytest.mark.parametrize("agnostic", [False, True])
def test_matches_are_those_of_a_loop(agnostic, forgive):
    for seed in range(4):
        tables = made(agnostic, seed)
        matches = match_detections(tables, THRESHOLDS, AREAS, class_agnostic=agnostic, forgive_repeats=forgive)
        assert len(matches.image) == len(tables.found), "here every class has an object"
        for a, area in enumerate(AREAS):
            for t, threshold in enumerate(THRESHOLDS):
                words = (matches.hits[a], matches.counts[a])
                hits, counts = ((word >> np.uint64(t) & np.uint64(1)).astype(bool).tolist() for word in words)
                got = zip(matches.image.tolist(), matches.score.tolist(), hits, counts, strict=True)
                assert sorted(got) == sorted(loop(tables, threshold, area, agnostic, forgive))
                assert any(hits) and not all(hits) and (area is AREAS[0] or not all(counts))


def test_detections_are_sorted_by_class_and_score_and_absent_classes_left_out():
    tables = made(False, 0)
    tables.found[tables.found[:, 1] == 1, 1] = 5
    matches = match_detections(tables, [0.5], AREAS[:1])
    assert matches.classes.tolist() == [0, 1] and matches.bounds[1] == matches.bounds[2] == len(matches.score)
    assert (np.diff(matches.score) <= 0).all() and len(matches.score) == (tables.found[:, 1] == 0).sum()
    assert matches.true_counted.shape == (1, len(tables.true)) and not matches.true_counted.all()


def test_no_pairs_and_no_images():
    empty = match_detections(join([]), THRESHOLDS, AREAS)
    assert len(empty.classes) == 0 and empty.hits.shape == (3, 0) and empty.bounds.tolist() == [0]


def test_an_overlap_of_one_counts_at_a_threshold_of_one():
    tables = made(False, 1)
    pairs = tables.pairs.copy()
    pairs[:, 2] = 1 - 1e-12  # rounded
    assert match_detections(tables._replace(pairs=pairs), [1.0], AREAS[:1]).hits.any()
