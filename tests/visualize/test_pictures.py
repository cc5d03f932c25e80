# SPDX-License-Identifier: Apache-2.0
"""Slices, their sizes in pixels, and the small parts of pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_labelfx.visualize._pictures import (
    clip_text,
    drawn_axes,
    edges,
    font,
    grey_pictures,
    nearest,
    pixels_of,
    resized,
    side_by_side,
    slices_of,
    spatial,
)


def test_slices_go_through_the_place_or_the_middle():
    volume = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    slices, sizes = slices_of(volume, 3, (1.0, 2.0, 3.0), (1, 3, 5))
    assert np.array_equal(slices[0], volume[:, :, 5].T)
    assert np.array_equal(slices[1], volume[:, 3, :].T[::-1]) and np.array_equal(slices[2], volume[1].T[::-1])
    assert sizes == [(10.0, 4.0), (18.0, 4.0), (18.0, 10.0)]
    assert np.array_equal(slices_of(volume, 1, None)[0][0], volume[:, :, 3].T)
    assert np.array_equal(slices_of(volume[..., :1], 1, None, (0, 0, 9))[0][0], volume[:, :, 0].T), (
        "the last one there is"
    )
    assert drawn_axes(2, 3) == [(0, 1, None)] and len(drawn_axes(3, 3)) == 3


def test_the_longest_side_of_all_planes_gets_the_pixels():
    assert pixels_of([(10.0, 4.0), (20.0, 0.01)], 100) == [(50, 20), (100, 1)]


def test_arrays_and_tensors_with_or_without_channel():
    assert spatial(torch.zeros(1, 4, 5), "a").shape == spatial(np.zeros((4, 5)), "a").shape == (4, 5)
    assert spatial(np.zeros((2, 4, 5, 6)), "a").shape == (4, 5, 6)
    with pytest.raises(ValueError, match=r"panel 'a' has shape \(0, 3\)"):
        spatial(np.zeros((0, 3)), "a")


def test_one_window_for_all_slices():
    dark, bright = grey_pictures([np.zeros((2, 2)), np.full((2, 2), 10.0)], [(2, 2), (4, 4)], (0, 100))
    assert dark.max() == 0 and bright.min() == 255 and bright.shape == (4, 4, 3)


def test_sizes():
    small = np.array([[0, 200]], np.uint8)
    assert nearest(small, (2, 6)).tolist() == [[0, 0, 0, 200, 200, 200]] * 2
    assert resized(np.repeat(small[..., None], 3, 2), (1, 1)).shape == (1, 1, 3)
    assert np.asarray(side_by_side([np.zeros((4, 3, 3), np.uint8), np.zeros((2, 3, 3), np.uint8)])).shape == (4, 8, 3)


def test_edges_of_labels():
    labels = np.zeros((5, 5), int)
    labels[1:4, 1:4] = 1
    expected = np.zeros((5, 5), bool)
    expected[1:4, :] = expected[:, 1:4] = True
    expected[2, 2] = False
    assert np.array_equal(edges(labels), expected)


def test_text_is_shortened():
    used = font(13)
    assert clip_text("short", 500, used) == "short"
    clipped = clip_text("a very long name", 60, used)
    assert clipped.endswith("...") and used.getlength(clipped) <= 60
