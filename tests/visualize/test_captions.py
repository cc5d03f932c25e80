# SPDX-License-Identifier: Apache-2.0
"""Captions stand beside their boxes and never over each other."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from monai_labelfx.visualize._captions import write_captions
from monai_labelfx.visualize._pictures import font

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
USED = font(11)
TALL = USED.size + 2


def written(*captions, size=(100, 100)) -> np.ndarray:
    page = Image.new("RGB", size)
    write_captions(ImageDraw.Draw(page), captions, size, USED)
    return np.asarray(page)


def place(page: np.ndarray, colour) -> tuple[int, int, int, int] | None:
    """Left, top, and one after right and bottom, of a caption."""
    rows, columns = (page == colour).all(axis=2).nonzero()
    return (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else None


def test_above_the_box_or_inside_it():
    left, top, right, bottom = place(written(((20, 40, 80, 60), RED, "abc")), RED)
    assert (left, bottom) == (20, 40) and top == 40 - TALL and 20 < right < 60
    assert place(written(((20, 5, 80, 95), RED, "abc")), RED)[:2] == (20, 6), "no room above and below"
    assert place(written(((90, 40, 99, 60), RED, "abc")), RED)[2] == 100, "not beyond the picture"


def test_captions_do_not_overlap_and_the_first_ones_stay():
    box = (20, 40, 80, 60)
    page = written((box, RED, "abc"), (box, GREEN, "abc"), (box, BLUE, "abc"))
    assert place(page, RED)[:2] == (20, 40 - TALL) and place(page, GREEN)[2] == 81 and place(page, BLUE)[1] == 61
    narrow = (20, 40, 30, 60)
    page = written(*((narrow, colour, "abc") for colour in (RED, GREEN, BLUE)))
    assert place(page, RED) and place(page, GREEN)[1] == 61 and place(page, BLUE) is None, "no room for a third one"


@pytest.mark.parametrize("other", [(20, 26, 60, 38), (15, 30, 45, 39)])
def test_what_hides_least_of_other_boxes_is_chosen(other):
    page = written(((20, 40, 80, 60), RED, "abc"), (other, GREEN, ""))
    assert place(page, RED)[2] == 81 or place(page, RED)[1] == 61


def test_texts_that_are_too_long_are_cut():
    left, _, right, _ = place(written(((5, 20, 20, 30), RED, "a very long name indeed"), size=(50, 50)), RED)
    assert left >= 0 and right <= 50


def test_words_are_legible_on_their_colour():
    box, dark = (20, 40, 80, 60), (40, 60, 80)
    assert (written((box, dark, "abc")) == 255).all(axis=2).any()
    assert not (written((box, (86, 180, 233), "abc")) == 255).all(axis=2).any()
