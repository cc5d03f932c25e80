# SPDX-License-Identifier: Apache-2.0
"""Overview pages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from monai_labelfx.visualize import overview_page, save_overview
from monai_labelfx.visualize.overview_page import _draw_row, _overlay


def _panel(array, kind="image", size=60, planes=1, spacing=None, percentiles=(0, 100)):
    return np.asarray(_draw_row([("a", array, kind)], size, percentiles, planes, spacing)[0][1])


def test_axis_0_runs_right_and_axis_1_down():
    image = np.zeros((1, 6, 3))
    image[0, 5, 0] = 1
    panel = _panel(image)
    assert panel.shape == (30, 60, 3)
    assert panel[0, -1].tolist() == [255] * 3 and panel[-1, 0].tolist() == panel[0, 0].tolist() == [0] * 3


def test_volumes_show_middle_slices_in_true_proportion():
    volume = np.zeros((1, 4, 6, 5))
    volume[:, :, :, 2] = 1.0
    volume[:, 0, 0, 2] = 0.0
    assert _panel(volume).shape == (60, 40, 3) and _panel(volume)[30, 20, 0] == 255
    panel = _panel(volume, planes=3, spacing=(1.0, 1.0, 2.0))
    assert panel.shape == (60, (24 + 2 + 24 + 2 + 36), 3), "widths 4, 4, 6 and heights 6, 10, 10, in one scale"


def test_grey_values_follow_the_percentiles_and_bad_values_do_not_break_them():
    image = np.arange(101.0).reshape(1, 101)
    image[0, 0] = np.nan
    panel = _panel(image.T[None] if image.ndim == 1 else image, size=101, percentiles=(10, 90))
    column = panel[:, 0, 0] if panel.shape[0] == 101 else panel[0, :, 0]
    assert column[0] == 0 and column[5] == 0 and column[100] == 255 and 100 < column[50] < 155
    assert _panel(np.full((4, 4), np.nan)).max() == 0


def test_labels_get_colours_and_contours_over_the_image():
    labels = np.zeros((1, 8, 8), int)
    labels[0, :3, :3], labels[0, 3:6, :3] = 1, 2
    panel = _panel(labels, "labels", size=80)
    assert panel[70, 70].tolist() == [0, 0, 0]
    assert panel[15, 15].tolist() != panel[15, 45].tolist(), "touching objects differ in colour"
    edge, inside = _overlay(labels[0].T, np.full((8, 8, 3), 200, np.uint8))[1, [2, 1]]
    assert edge.tolist() != inside.tolist()
    assert (_overlay(np.zeros((4, 4)), np.full((4, 4, 3), 7, np.uint8)) == 7).all()


def test_classes_have_fixed_colours():
    panel = _panel(np.arange(4).reshape(1, 4, 1), "classes", size=40)
    assert len({tuple(panel[0, x]) for x in (5, 15, 25, 35)}) == 4 and panel[0, 5].tolist() == [0, 0, 0]


def test_pages_take_rows_of_different_length_and_kinds_of_array(tmp_path):
    image = torch.rand(1, 20, 30, generator=torch.Generator().manual_seed(0))
    rows = [("first", [("a", image, "image"), ("b", image > 0.5, "labels")]), ("x" * 500, [("c", image[0], "image")])]
    page = overview_page(rows, panel_size=64)
    assert page.dtype == np.uint8 and page.shape[1] < 300 and page.min() < 40
    path = save_overview(tmp_path / "new" / "page.png", rows, panel_size=64)
    assert np.array_equal(np.asarray(Image.open(path)), page) and len(list(path.parent.iterdir())) == 1


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "at least one row"),
        ([("a", [])], {}, "at least one row"),
        ([("a", [("b", np.zeros(3), "image")])], {}, "panel 'b' has shape"),
        ([("a", [("b", np.zeros((3, 3)), "picture")])], {}, "kind of panel 'b' is 'picture'"),
        ([("a", [("b", np.zeros((3, 3)), "image")])], {"planes": 2}, "planes is 2"),
    ],
)
def test_refused(rows, options, message):
    with pytest.raises(ValueError, match=message):
        overview_page(rows, **options)
