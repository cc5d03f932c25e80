# SPDX-License-Identifier: Apache-2.0
"""Boxes are drawn where they are, in the colours of their classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_labelfx.visualize._drawn_masks import _FILL
from monai_labelfx.visualize._pictures import CLASSES
from monai_labelfx.visualize.draw_detections import draw_detections, drawn_of, place_of

FIRST, SECOND, THIRD = (tuple(int(c) for c in colour) for colour in CLASSES[1:4])


def where(picture: np.ndarray, colour: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the pixels of a colour."""
    rows, columns = (picture == colour).all(axis=2).nonzero()
    return columns.min(), rows.min(), columns.max(), rows.max()


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_outline_lies_on_the_edges_of_the_box(kind):
    image, box = kind(np.zeros((1, 40, 20))), kind(np.array([[8.0, 10.0, 32.0, 16.0]]))
    picture = draw_detections(image, box, kind(np.array([0])), None, panel_size=160)  # 4 pixels for a voxel
    assert picture.shape == (80, 160, 3) and picture.dtype == np.uint8
    left, top, right, bottom = where(picture, FIRST)
    assert (left, right, bottom) == (32, 127, 63)
    assert (picture[50:60, 40:120] == 0).all(), "nothing inside"
    assert top < 40, "the name stands above the box"


def test_a_box_beyond_the_image_ends_with_it():
    picture = draw_detections(np.zeros((20, 20)), [[-5, -5, 30, 30]], [1], [0.5], panel_size=100)
    assert where(picture, SECOND) == (0, 0, 99, 99)


def test_reference_is_dashed_and_without_words():
    image, box = np.zeros((20, 20)), [[4, 8, 16, 16]]
    alone = draw_detections(image, np.zeros((0, 4)), [], [], reference={"boxes": box, "labels": [2]}, panel_size=100)
    assert where(alone, THIRD) == (20, 40, 79, 79)
    row = (alone[40] == THIRD).all(axis=1)[20:80]
    assert 20 < row.sum() < 50, "dashes"
    both = draw_detections(image, box, [0], [0.9], reference={"boxes": box, "labels": [2]}, panel_size=100)
    full = (both[40, 20:80] == FIRST).all(axis=1)
    assert full.all(), "the detection is on top"


def test_best_boxes_only():
    boxes = [[0, 0, 4, 4], [10, 0, 14, 4], [0, 10, 4, 14]]
    options = {"panel_size": 100, "max_boxes": 2, "min_score": 0.3}
    picture = draw_detections(np.zeros((20, 20)), boxes, [0, 1, 2], [0.2, 0.9, 0.4], **options)
    present = {tuple(pixel) for pixel in picture.reshape(-1, 3)}
    assert FIRST not in present and {SECOND, THIRD} <= present
    (drawn,) = drawn_of({"boxes": boxes, "labels": [0, 1, 2], "scores": [0.2, 0.9, 0.4]}, (20, 20), 0.0, 2)
    assert drawn.labels.tolist() == [1, 2] and drawn.scores.tolist() == [0.9, 0.4]
    # boxes without scores are ordered by size, and all of them stay
    (drawn,) = drawn_of({"boxes": boxes + [[0, 0, 9, 9]], "labels": [0, 1, 2, 3]}, (20, 20), 0.5, 2)
    assert drawn.labels.tolist() == [3, 0, 1, 2] and drawn.scores is None


@pytest.mark.parametrize("form", ["whole", "numbers", "tensor", "blocks"])
def test_masks_in_all_forms(form):
    mask = np.zeros((1, 20, 20), bool)
    mask[0, 5:10, 5:15] = True
    forms = {"whole": mask, "numbers": mask * 3.0, "tensor": torch.as_tensor(mask), "blocks": [mask[0, 4:11, 4:16]]}
    plain, masked = (
        draw_detections(np.zeros((20, 20)), [[4.2, 4.9, 10.5, 16]], [0], [0.5], masks=m, panel_size=100)
        for m in (None, forms[form])
    )
    assert (plain[40:60, 30:45] == 0).all() and (masked[40:60, 30:45] == (np.array(FIRST) * _FILL).astype(int)).all()
    assert tuple(masked[50, 25]) == FIRST, "its outline is opaque"


def test_a_reference_with_masks_has_no_boxes():
    mask = np.zeros((1, 20, 20), bool)
    mask[0, 5:15, 8:18] = True
    reference = {"boxes": [[2, 2, 19, 19]], "labels": [2], "masks": mask}
    nothing = np.zeros((0, 4))
    picture = draw_detections(np.zeros((20, 20)), nothing, [], [], reference=reference, panel_size=100)
    assert where(picture, THIRD) == (25, 40, 74, 89)
    alone = draw_detections(np.zeros((20, 20)), [[2, 2, 19, 19]], [2], masks=mask, panel_size=100)
    assert where(alone, THIRD) == (10, 10, 94, 94)


def test_volumes_are_cut_where_the_best_mask_shows():
    masks = np.zeros((2, 9, 9, 9), bool)
    masks[0, 1:6, 1:4, 2:7] = True
    masks[0, :, :, 4:6] = False
    found = {"boxes": [[1, 1, 2, 6, 8, 7], [0, 0, 0, 9, 9, 9]], "labels": [0, 0], "scores": [0.9, 0.5]}
    assert place_of(drawn_of(found, (9, 9, 9), 0, 9), (9, 9, 9)) == [3, 4, 4]
    masks[0, 2, 1, 4] = True
    assert place_of(drawn_of({**found, "masks": masks}, (9, 9, 9), 0, 9), (9, 9, 9)) == [3, 3, 3], "one voxel is little"
    masks[0, 2:4, 1:3, 4] = True
    assert place_of(drawn_of({**found, "masks": masks}, (9, 9, 9), 0, 9), (9, 9, 9)) == [3, 3, 4]
    empty = {**found, "masks": masks[1:].repeat(2, axis=0)}
    assert place_of(drawn_of(empty, (9, 9, 9), 0, 9), (9, 9, 9)) == [3, 4, 4]


def test_volumes_are_cut_through_the_best_box():
    volume = np.zeros((1, 20, 16, 12))
    volume[..., 9] = 1
    boxes, labels, scores = [[2, 2, 1, 8, 8, 3], [6, 4, 8, 18, 12, 11]], [0, 1], [0.4, 0.8]
    picture = draw_detections(volume, boxes, labels, scores, panel_size=100, percentiles=(0, 100))
    assert where(picture, SECOND)[0] == 30 and where(picture, SECOND)[2:] == (89, 59)
    assert FIRST not in {tuple(pixel) for pixel in picture.reshape(-1, 3)}, "it does not cross the slice"
    drawn = drawn_of({"boxes": boxes, "labels": labels, "scores": scores}, volume.shape[1:], 0, 9)
    assert place_of(drawn, volume.shape[1:]) == [12, 8, 9]
    assert place_of(drawn_of({"boxes": [], "labels": []}, (20, 16, 12), 0, 9), (20, 16, 12)) == [10, 8, 6]
    wide = draw_detections(volume, boxes, labels, scores, panel_size=100, planes=3, spacing=(1, 1, 2))
    scale = 100 / 24
    assert wide.shape == (100, round(20 * scale) * 2 + round(16 * scale) + 4, 3)
    side = wide[:, round(20 * scale) + 2 :][:, : round(20 * scale)]  # axis 0 to the right, the last one upwards
    left, _, right, bottom = where(side, SECOND)
    assert (left, right) == (25, 74) and bottom == 99 - round(16 * scale) == 32


def test_names_and_small_pictures():
    options = {"panel_size": 120, "names": {0: "nodule"}}
    named = draw_detections(np.zeros((20, 20)), [[4, 8, 16, 16]], [0], [0.9], **options)
    other = draw_detections(np.zeros((20, 20)), [[4, 8, 16, 16]], [0], [0.9], panel_size=120)
    assert not np.array_equal(named, other) and np.array_equal(named[60:], other[60:])
    tiny = draw_detections(np.zeros((3, 2)), [[0, 0, 1, 1]], [0], [0.5], panel_size=3)
    assert tiny.shape == (2, 3, 3), "words find no room"


@pytest.mark.parametrize(("shape", "axes"), [((3, 20, 20), 2), ((20, 20), 2), ((5, 20, 20), 3), ((1, 5, 20, 20), 3)])
def test_without_boxes_it_is_the_image(shape, axes):
    image = np.random.default_rng(0).random(shape)
    picture = draw_detections(image, [], [], [], panel_size=20)
    assert picture.shape[2] == 3 and picture.max() == 255 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize(
    ("image", "found", "message"),
    [
        (np.zeros((9, 9)), ([[0, 0, 0, 1, 1, 1]], [0], [1.0]), r"image has shape \(9, 9\), expected 3 spatial axes"),
        (np.zeros(9), ([], [], []), r"image has shape \(9,\)"),
        (np.zeros((9, 9)), ([[0, 0, 1, 1]], [0, 1], [1.0]), r"labels and scores \(N,\)"),
        (np.zeros((9, 9)), ([[0, 0, 1, 1]], [0], [1.0, 2.0]), r"labels and scores \(N,\)"),
    ],
)
def test_refused(image, found, message):
    with pytest.raises(ValueError, match=message):
        draw_detections(image, *found)


def test_refused_masks_planes_and_mappings():
    with pytest.raises(ValueError, match=r"masks of 'detections' must be \(1, \*\(9, 9\)\) .* got \(1, 3, 3\)"):
        draw_detections(np.zeros((9, 9)), [[0, 0, 1, 1]], [0], [1.0], masks=np.ones((1, 3, 3)))
    with pytest.raises(ValueError, match="planes is 2"):
        draw_detections(np.zeros((9, 9)), [], [], planes=2)
    with pytest.raises(ValueError, match="'pred' must be a mapping with boxes, labels"):
        drawn_of([{"boxes": []}], (9, 9), 0, 9, "pred")
