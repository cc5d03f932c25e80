# SPDX-License-Identifier: Apache-2.0
"""Rows of numbers of each image, joined and gathered."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_labelfx.metrics._detection_inputs import read_objects
from monai_labelfx.metrics._detection_tables import COLUMNS, DetectionTables, gather, image_tables, join

OPTIONS = {"overlap": "box", "least": 0.1, "cap": None, "class_agnostic": False, "voxel": None, "identity": -1}


def tables(found: dict, true: dict, **options) -> DetectionTables:
    objects = read_objects(found, "it", scored=True), read_objects(true, "it", scored=False)
    return image_tables(*objects, **{**OPTIONS, **options})


FOUND = {
    "boxes": [[0, 0, 4, 4], [0, 0, 2, 4], [8, 8, 9, 9], [0, 0, 4, 2]],
    "labels": [1, 0, 1, 1],
    "scores": [0.2, 0.5, 0.4, 0.4],
}
TRUE = {"boxes": [[0, 0, 4, 4], [0, 0, 2, 2]], "labels": [1, 0]}


def test_rows_by_class_and_falling_score():
    made = tables(FOUND, TRUE, voxel=0.5, identity=7)
    assert made.images.tolist() == [[4, 2, 3, 7, 2, 1]]
    assert made.found.tolist() == [[0.5, 0, 4, 0], [0.4, 1, 0.5, 0], [0.4, 1, 4, 1], [0.2, 1, 8, 2]]
    assert made.true.tolist() == [[0, 2, 0], [1, 8, 0]]
    assert made.pairs.tolist() == [[0, 0, 0.5], [2, 1, 0.5], [3, 1, 1]]


def test_the_cap_holds_for_class_or_image():
    assert tables(FOUND, TRUE, cap=1).found[:, :2].tolist() == [[0.5, 0], [0.4, 1]]
    made = tables(FOUND, TRUE, cap=3, class_agnostic=True)
    assert made.found[:, [0, 1, 3]].tolist() == [[0.5, 0, 0], [0.4, 1, 1], [0.4, 1, 2]]
    assert made.pairs.tolist() == [[0, 0, 0.5], [0, 1, 0.5], [2, 0, 0.5], [2, 1, 0.5]], "pairs of all classes"


def test_crowds_are_compared_by_the_share_of_the_detection():
    made = tables(FOUND, {**TRUE, "iscrowd": [0, 1]})
    assert made.pairs[0].tolist() == [0, 0, 0.5] and made.true[:, 2].tolist() == [2, 0]
    assert (
        tables({**FOUND, "boxes": [[0, 0, 1, 2]] * 4}, {**TRUE, "iscrowd": [1, 0]}, least=0.9).pairs[:, 2].tolist()
        == [1] * 3
    )


def test_centres_hit_inside_the_ellipsoid_of_the_box():
    true = {"boxes": [[0, 0, 0, 10, 20, 4]], "labels": [0]}
    centres = np.array([[5, 10, 2], [9.9, 10, 2], [8, 17.9, 2], [5, 10, 4.0], [5, 10, 4.1]])
    found = {"boxes": np.concatenate([centres - 1, centres + 1], 1), "labels": [0] * 5, "scores": [5, 4, 3, 2, 1]}
    pairs = tables(found, true, overlap="center", least=0.0).pairs
    expected = [np.square((c - [5, 10, 2]) / [5, 10, 2]).sum() <= 1 for c in centres]
    assert pairs[:, 0].tolist() == np.flatnonzero(expected).tolist() and pairs[0, 2] == 1
    flat = tables(found, {"boxes": [[5, 10, 2, 5, 10, 2]], "labels": [0]}, overlap="center", least=0.0)
    assert flat.pairs[:, 0].tolist() == [0], "a box without extent is hit in its place only"


@pytest.mark.parametrize("shape", [(3, 0), (0, 2), (0, 0)])
def test_empty_sides(shape):
    found = {"boxes": [[0, 0, 1, 1]] * shape[0], "labels": [0] * shape[0], "scores": [0.5] * shape[0]}
    made = tables(found, {"boxes": [[0, 0, 1, 1]] * shape[1], "labels": [0] * shape[1]})
    assert made.images[0, :3].tolist() == [*shape, 0]
    assert [part.shape[1] for part in made] == list(COLUMNS)


def test_join_and_gather_keep_images_apart(monkeypatch):
    parts = [tables(FOUND, TRUE), tables({"boxes": [], "labels": [], "scores": []}, TRUE)]
    whole = join(parts)
    assert whole.images[:, :3].tolist() == [[4, 2, 3], [0, 2, 0]] and len(whole.true) == 4
    assert [part.shape for part in join([])] == [(0, width) for width in COLUMNS]
    vectors = []
    monkeypatch.setattr(
        "monai_labelfx.metrics._detection_tables.evenly_divisible_all_gather",
        lambda vector, concat: vectors.append(vector) or vector,
    )
    gather(join([])), gather(whole)
    assert len(vectors[0]) > 0, "a process without images sends something too"
    monkeypatch.setattr(
        "monai_labelfx.metrics._detection_tables.evenly_divisible_all_gather",
        lambda vector, concat: torch.cat([vector, *vectors]),
    )
    expected = join([whole, whole])
    assert all(np.array_equal(a, b) for a, b in zip(gather(whole), expected, strict=True))
