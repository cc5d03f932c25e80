# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_labelfx.inferers._scale_plan import numbers, per_axis, scale_plan


def plan(length, factor, roi, divisor=1, native=False):
    found = scale_plan((length,), (factor,), roi_size=(roi,), divisor=(divisor,), native=native)
    return found.size[0], found.window[0], found.tile[0]


@pytest.mark.parametrize(
    ("length", "factor", "roi", "expected"),
    [
        (775, 1, 320, (775, 320, 320)),
        (5, 0.5, -1, (3, 3, 3)),  # half up
        (7, 0.5, -1, (4, 4, 4)),
        (5, 0.75, 3, (4, 3, 3)),
        (10, 0.01, 8, (1, 1, 1)),
        (10, 2, 320, (20, 20, 20)),
    ],
)
def test_the_image_is_resized_and_windows_are_cut_to_it(length, factor, roi, expected):
    assert plan(length, factor, roi) == expected


@pytest.mark.parametrize(
    ("length", "factor", "roi", "expected"),
    [
        (775, 1, 320, (775, 320, 320)),
        (775, 3, 320, (775, 107, 320)),
        (775, 0.75, 320, (775, 427, 320)),
        (10, 2, 320, (10, 10, 20)),  # one window: as the resized image
        (10, 2, -1, (10, 10, 20)),
        (107, 3, 320, (107, 107, 320)),
        (9, 50, 3, (9, 1, 3)),
    ],
)
def test_native_windows_have_a_size_whose_tile_is_the_roi(length, factor, roi, expected):
    assert plan(length, factor, roi, native=True) == expected


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.floats(0.01, 5), st.integers(1, 12), st.integers(1, 9), st.booleans())
def test_tiles_are_multiples_of_the_divisor_and_no_larger_than_the_roi(length, factor, multiple, divisor, native):
    roi = multiple * divisor
    size, window, tile = plan(length, factor, roi, divisor, native)
    assert 1 <= window <= size and divisor <= tile <= roi and tile % divisor == 0
    resized = max(1, math.floor(length * factor + 0.5))
    assert tile == roi or abs(tile - resized) <= max(divisor / 2, divisor - resized)
    if not native:
        assert tile == window and (size == resized if resized >= roi else size == tile)
    assert plan(length, factor, -1, divisor, native)[2] % divisor == 0


def test_bad_numbers():
    with pytest.raises(ValueError, match="roi_size must be a multiple of the divisor 16, got 40"):
        plan(100, 1, 40, 16)
    with pytest.raises(ValueError, match=r"zoom must be one number or 3, one for each spatial axis, got \(1, 2\)"):
        per_axis((1, 2), "zoom", 3)
    assert per_axis([4], "zoom", 3) == (4, 4, 4) and numbers("ab") == ("ab",)
