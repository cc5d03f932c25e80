# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.utils import compute_importance_map
from torch.nn.functional import interpolate

from monai_labelfx.inferers._windows import BlendedRows, WindowGrid, window_starts


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.floats(0, 0.95))
def test_windows_cover_the_axis_are_unique_and_end_with_it(size, window, overlap):
    window = min(size, window)
    starts = window_starts(size, window, overlap)
    assert starts == sorted(set(starts)) and starts[0] == 0 and starts[-1] == size - window
    assert all(after - before <= window for before, after in zip(starts, starts[1:], strict=False))


@pytest.mark.parametrize(
    ("size", "window", "overlap", "starts"),
    [
        (320, 320, 0.2, [0]),
        (576, 320, 0.2, [0, 256]),
        (577, 320, 0.2, [0, 256, 257]),
        (12, 10, 0.9, [0, 1, 2]),
        (125, 100, 0.9, [0, 10, 20, 25]),  # 100 * (1 - 0.9) is a little less than 10
        (7, 3, 0, [0, 3, 4]),
    ],
)
def test_steps(size, window, overlap, starts):
    assert window_starts(size, window, overlap) == starts


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize(("size", "window"), [((9,), (4,)), ((9, 7), (4, 7)), ((6, 9, 5), (5, 4, 2))])
def test_totals_are_the_sums_of_the_windows(size, window, mode):
    grid = WindowGrid(size, window, (0.4,) * len(size), mode)
    weight = torch.ones(window, dtype=torch.float64) if grid.weight is None else grid.weight
    expected = torch.zeros(size, dtype=torch.float64)
    for first in grid.rows:
        for place in grid.places():
            expected[(slice(first, first + window[0]), *place[1:])] += weight
    total = torch.ones((), dtype=torch.float64)
    for line in grid.totals:
        total = total.unsqueeze(-1) * line
    assert torch.allclose(total, expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.floats(0, 0.9), st.integers(0, 70))
def test_bands_hold_all_rows_of_windows_and_no_more_than_fit(size, window, overlap, height):
    window = min(size, window)
    grid = WindowGrid((size, 3), (window, 2), (overlap, 0), "constant")
    found, done = [], 0
    for rows, firsts in grid.bands(height):
        assert rows == slice(firsts[0][0], firsts[-1][0] + window)
        assert len(firsts) == 1 or rows.stop - rows.start <= height
        for first, count in firsts:
            assert done == first and 0 < count <= window
            done += count
        found += [first for first, _ in firsts]
    assert found == grid.rows and done == size
    assert height < size or len(list(grid.bands(height))) == 1


def test_gaussian_windows_weigh_what_those_of_monai_do():
    ours = WindowGrid((16, 9), (16, 9), (0, 0), "gaussian").weight
    theirs = compute_importance_map((16, 9), mode="gaussian", dtype=torch.float64)
    assert torch.allclose(ours.clamp(min=1e-3), theirs, atol=1e-6)  # theirs has a floor


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
@pytest.mark.parametrize(
    ("size", "window", "result"),
    [
        ((11,), (3,), (11,)),
        ((11, 6), (4, 5), (23, 9)),
        ((17, 9), (5, 9), (4, 3)),
        ((9, 8), (2, 8), (1, 8)),
        ((6, 5, 7), (4, 5, 3), (9, 5, 4)),
    ],
)
def test_rows_finished_one_by_one_equal_the_whole_mean_resized(size, window, result, mode):
    generator = torch.Generator().manual_seed(0)
    grid = WindowGrid(size, window, (0.3,) * len(size), mode)
    weight = torch.ones(window, dtype=torch.float64) if grid.weight is None else grid.weight
    images, passes = 2, 2
    blend = BlendedRows(grid, result, images, passes)
    sums, counts = torch.zeros(images, 3, *size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    found, known = [], 0
    for first, done in (row for _, rows in grid.bands(0) for row in rows):
        for place in grid.places():
            absolute = (slice(first, first + window[0]), *place[1:])
            for _ in range(passes):
                scores = torch.randn((images, 3, *window), generator=generator, dtype=torch.float64)
                blend.add(scores, [(image, place) for image in range(images)])
                sums[(..., *absolute)] += scores * weight
                counts[absolute] += weight
        rows, part = blend.finish(first, done)
        assert rows.start == known and part.shape == (images, 3, rows.stop - rows.start, *result[1:])
        known = rows.stop
        found.append(part)
    mode_of_torch = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    expected = interpolate(sums / counts, size=result, mode=mode_of_torch, align_corners=False)
    assert known == result[0] and torch.allclose(torch.cat(found, dim=2), expected, atol=1e-12)


def test_a_row_without_scores_is_no_result():
    grid = WindowGrid((4, 4), (4, 4), (0, 0), "constant")
    with pytest.raises(ValueError, match="scores must be added to the row of windows at 0"):
        BlendedRows(grid, (4, 4), 1, 1).finish(0, 4)
