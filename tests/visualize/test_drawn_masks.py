# SPDX-License-Identifier: Apache-2.0
"""Masks are drawn where they are, and touching ones can be told apart."""

from __future__ import annotations

import numpy as np
import pytest

from monai_labelfx.metrics._mask_crops import crop_masks
from monai_labelfx.visualize._drawn_masks import _FILL, Drawn, colours_of, with_masks
from monai_labelfx.visualize._pictures import CLASSES

FLAT = (0, 1, None)
FIRST, SECOND = CLASSES[1:3].astype(float)


def drawn(masks: np.ndarray, labels=(0, 1, 0), scores: bool = True) -> Drawn:
    count = len(masks)
    return Drawn(
        np.zeros((count, 2 * (masks.ndim - 1))),
        np.array(labels[:count]),
        np.linspace(0.9, 0.5, count) if scores else None,
        crop_masks(masks),
    )


def squares(count: int = 1) -> np.ndarray:
    masks = np.zeros((count, 20, 20), bool)
    for number, mask in enumerate(masks):
        mask[4:14, 4 + 2 * number : 14 + 2 * number] = True
    return masks


def draw(*found: Drawn, size: int = 20, grey: int = 100) -> np.ndarray:
    return with_masks(np.full((size, size, 3), grey, np.uint8), found, (20, 20), FLAT, (0, 0))


def test_outline_and_tint():
    page = draw(drawn(squares()))
    assert (page[5:13, 5:13] == (100 + _FILL * (FIRST - 100)).astype(int)).all()
    edge = np.concatenate([page[4, 4:14], page[13, 4:14], page[4:14, 4], page[4:14, 13]])
    assert (edge == FIRST).all() and (page[3, 4:14] == 50).all() and (page[4:14, 14] == 50).all(), "darker beside it"
    assert (page[2] == 100).all() and (page[:, 15] == 100).all()
    thick = draw(drawn(squares()), size=400)
    assert (thick[80:82, 80:280] == FIRST).all() and not (thick[82, 82:278] == FIRST).all()


def test_the_best_outline_is_on_top_and_tints_add_up():
    page = draw(drawn(squares(2)))
    assert (page[13, 4:14] == FIRST).all(), "of the best one, inside the second one"
    assert (page[6, 5:13] == SECOND).all(), "of the second one, inside the best one"
    both = 100 + _FILL * (SECOND - 100)
    assert (page[9, 9] == (both + _FILL * (FIRST - both)).astype(int)).all()


def test_objects_of_a_class_differ():
    one = drawn(squares(3), labels=(0, 0, 0))
    colours = colours_of(one)
    assert (colours[0] == FIRST).all() and colours[1].sum() > colours[0].sum() > colours[2].sum()
    other = drawn(np.concatenate([squares(3)] * 2)[:5], labels=(0, 1, 0, 1, 6))
    assert (colours_of(other)[[0, 1]] == CLASSES[1:3]).all() and (colours_of(other)[2] == colours[1]).all()
    assert (colours_of(one._replace(masks=None)) == CLASSES[1]).all(), "boxes alone have the colours of their classes"


def test_a_reference_beside_predictions_is_a_dashed_outline():
    reference = drawn(squares(3)[2:], scores=False)
    alone = draw(reference)
    assert (alone[12, 9] == (100 + _FILL * (FIRST - 100)).astype(int)).all()
    page = draw(drawn(squares()), reference)
    assert (page[15, 9] == 100).all(), "not tinted"
    edge = page[17, 4:14]
    black, coloured = (edge == 0).all(axis=1), (edge == FIRST).all(axis=1)
    assert (black | coloured).all() and 2 <= black.sum() <= 8
    assert (page[8, 4:14] == 0).all(axis=1).any(), "over the prediction"


@pytest.mark.parametrize("plane", [(0, 1, 2), (0, 2, 1), (1, 2, 0)])
def test_slices_of_volumes(plane):
    mask = np.zeros((1, 8, 9, 10), bool)
    mask[0, 2:5, 3:7, 4:9] = True
    right, down, cut = plane
    shape = mask.shape[1:]
    for at, seen in (((3, 5, 6)[cut], True), (1, False), (shape[cut] - 1, False)):
        blank = np.zeros((shape[down], shape[right], 3), np.uint8)
        place = [at if axis == cut else 5 for axis in range(3)]
        page = with_masks(blank, [drawn(mask)], shape, plane, place)
        expected = mask[0].take(at, axis=cut).T
        expected = expected[::-1] if down == 2 else expected
        assert np.array_equal(page.any(axis=2), expected) and expected.any() == seen


def test_no_masks():
    assert (draw(drawn(squares())._replace(masks=None)) == 100).all()
    empty = drawn(np.zeros((1, 20, 20), bool))
    assert (draw(empty) == 100).all()
    missed = drawn(np.zeros((1, 5, 5, 5), bool))
    assert not with_masks(np.zeros((5, 5, 3), np.uint8), [missed], (5, 5, 5), (0, 1, 2), (2, 2, 2)).any()
