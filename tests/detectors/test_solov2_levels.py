# SPDX-License-Identifier: Apache-2.0
"""Levels of SOLOv2: the paper's cells and ranges, other image sizes, strides and numbers of levels."""

from __future__ import annotations

import math

import pytest

from monai_labelfx.detectors._solov2_levels import least_voxels, plan_levels, usual_image_size


def strides(axes: int, levels: int = 5, first: int = 4) -> list[tuple[int, ...]]:
    return [(first * 2**level,) * axes for level in range(levels)]


def test_the_paper():
    plan = plan_levels(strides(2), usual_image_size(2, 5))
    assert [math.ceil(800 / cell[0] - 1e-6) for cell in plan.cells] == [40, 36, 24, 16, 12]
    assert all(one == other for one, other in plan.cells)
    assert plan.ranges == [(1, 96), (48, 192), (96, 384), (192, 768), (384, math.inf)]


def test_volumes():
    plan = plan_levels(strides(3), usual_image_size(3, 5))
    assert [math.ceil(96 / cell[0] - 1e-6) for cell in plan.cells] == [12, 10, 8, 6, 4]
    assert plan.ranges == [(1, 24), (12, 48), (24, 96), (48, 192), (96, math.inf)], "6 strides"
    assert plan_levels(strides(3, 4), usual_image_size(3, 4)).ranges == [(1, 24), (12, 48), (24, 96), (48, math.inf)]
    assert plan_levels([(8, 8, 1)] * 2, 8).ranges[0] == (1, 24), "of the mean stride"


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("levels", [1, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("size", [7.0, 64.0, 800.0])
def test_every_size_has_one_level_or_two(axes, levels, size):
    plan = plan_levels(strides(axes, levels), size)
    assert len(plan.cells) == len(plan.ranges) == levels
    assert all(one[0] <= other[0] for one, other in zip(plan.cells[:-1], plan.cells[1:], strict=True))
    for length in (1, 7, 12, 23, 50, 100, 700, 5000):
        assert 1 <= sum(low <= length <= high for low, high in plan.ranges) <= 2


def test_thick_slices_have_thin_cells():
    plan = plan_levels([(4, 4, 1), (8, 8, 2)], 96)
    assert all(cell[0] == cell[1] == pytest.approx(4 * cell[2]) for cell in plan.cells)
    cube = plan_levels([(4, 4, 4), (8, 8, 8)], 96)
    volumes = [[math.prod(cell) for cell in one.cells] for one in (plan, cube)]
    assert volumes[0] == pytest.approx(volumes[1])


def test_cells_and_ranges_as_given():
    plan = plan_levels(strides(2, 2), 800, cells=[5, (8.0, 4)], ranges=[(2, 20), (20, 90)])
    assert plan.cells == [(5.0, 5.0), (8.0, 4.0)] and plan.ranges == [(2.0, 20.0), (20.0, 90.0)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cells": [5]}, "cell_sizes must have one entry for each of the 2 levels, got 1"),
        ({"cells": [5, 0]}, r"cell_sizes must be numbers above 0, one or 2 for each level, got \[5, 0\]"),
        ({"cells": [5, (1, 2, 3)]}, "cell_sizes must be numbers above 0"),
        ({"ranges": [(1, 5)]}, "scale_ranges must have one entry for each of the 2 levels, got 1"),
        ({"ranges": [(1, 5), (6, 9)]}, "scale_ranges must be pairs of a lower and an upper size, none above the end"),
        ({"ranges": [(5, 1), (1, 9)]}, "scale_ranges must be pairs"),
        ({"ranges": [(1, 5, 6), (1, 9)]}, "scale_ranges must be pairs"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        plan_levels(strides(2, 2), 100, **options)


@pytest.mark.parametrize("size", [0, -5, math.inf, math.nan])
def test_bad_image_size(size):
    with pytest.raises(ValueError, match="image_size must be a number of voxels above 0"):
        plan_levels(strides(2, 2), size)


def test_least_voxels():
    """The stride of a level, or a twentieth of its smallest object."""
    found = least_voxels(strides(2), (4, 4), plan_levels(strides(2), 800).ranges)
    assert found == pytest.approx([0.05 / 16, 0.05 * 144, 16, 32, 64])
    found = least_voxels([(4, 4, 1)], (4, 4, 1), [(20.0, math.inf)])
    assert found == pytest.approx([16 ** (1 / 3)])
