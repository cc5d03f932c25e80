# SPDX-License-Identifier: Apache-2.0
"""Discs of even tissue: within their class, as large as there is room, away from edges."""

from __future__ import annotations

import numpy as np

from monai_labelfx.data._even_regions import even_classes, largest_discs

X, Y = np.indices((128, 120))
SLICE = np.full((128, 120), -1000.0)
SLICE[8:120, 6:114] = 40  # soft tissue
SLICE[np.hypot(X - 90, Y - 80) < 14] = -850  # a cavity
SLICE[20:50, 20:50] = 700  # bone
SLICE[60:100, 15:40] = -100  # fat: of no class


def test_discs_lie_within_their_class_and_are_round():
    labels = largest_discs(even_classes(SLICE))
    for label, value in ((1, 40), (2, -850), (3, 700)):
        one = labels == label
        assert (SLICE[one] == value).all() and one.sum() > 100
        x, y = np.nonzero(one)
        assert abs(np.ptp(x) - np.ptp(y)) <= 1 and one.sum() > 0.7 * (np.ptp(x) + 1) ** 2
    outside = labels[SLICE == -1000]
    assert not outside.any(), "air around the body is no cavity"


def test_no_disc_where_there_is_no_room():
    labels = largest_discs(np.stack([np.zeros((20, 20), bool), np.eye(20, dtype=bool)]))
    assert labels.shape == (20, 20) and not labels.any()


def test_the_largest_disc_stays_within_the_image():
    labels = largest_discs(np.ones((1, 41, 80), bool))
    x, y = np.nonzero(labels)
    assert x.min() >= 3 and x.max() <= 37 and labels.sum() > 600
