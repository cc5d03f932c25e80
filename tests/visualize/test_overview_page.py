# SPDX-License-Identifier: Apache-2.0
"""Overview pages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from monai_labelfx.visualize import overview_page, save_overview
from monai_labelfx.visualize._pictures import grey_pictures
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


def test_windows_of_values_replace_percentiles():
    image = np.array([[[-1000.0, -160.0, 40.0, 240.0, 3000.0]]])
    rows = [("", [("input", image, "image"), ("other", image, "image")])]
    page = overview_page(rows, panel_size=50, windows={"input": (-160, 240), "absent": (0, 1)})
    plain = overview_page(rows, panel_size=50)
    assert page.shape[0] > plain.shape[0], "a line below the page states the window"
    grey = grey_pictures([image[0]], [(1, 5)], (1.0, 99.5), window=(-160, 240))[0][..., 0]
    assert grey.tolist() == [[0, 0, 127, 255, 255]]
    assert not np.array_equal(page[: plain.shape[0] // 2], plain[: plain.shape[0] // 2])


def test_colours_are_drawn_as_they_are():
    picture = np.zeros((3, 4, 2))
    picture[0, 3, 0], picture[1, 0, 1], picture[2, 0, 0] = 255, 200.4, -9
    panel = _panel(picture, "colour", size=4)
    assert panel.shape == (2, 4, 3)
    assert panel[0, 3].tolist() == [255, 0, 0] and panel[1, 0].tolist() == [0, 200, 0] and not panel[0, 0].any()
    volume = np.zeros((3, 4, 6, 5))
    volume[1, 0, 0, 2] = 77
    assert _panel(volume, "colour").max(axis=(0, 1)).tolist() == [0, 77, 0]
    assert np.array_equal(_panel(picture[:1], "colour"), _panel(picture[:1])), "one channel: grey values"


def test_only_panels_of_grey_values_are_said_to_have_a_range():
    picture, labels = np.full((3, 8, 8), 9.0), np.ones((8, 8), int)
    heights = [
        overview_page([("", [("a", picture, "colour"), *more])], panel_size=8).shape[0]
        for more in ([], [("b", picture[:1], "image")])
    ]
    assert heights[1] > heights[0]
    rows = [("", [("a", picture, "colour"), ("b", labels, "labels")])]
    panel = np.asarray(_draw_row(rows[0][1], 8, (0, 100), 1, None)[1][1])
    assert (panel[4, 4] != 0).all(), "objects are drawn over the colours"


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


def _boxes(*rows, scores=True):
    found = {"boxes": [list(box) for box, _, _ in rows], "labels": [label for _, label, _ in rows]}
    return {**found, "scores": [score for _, _, score in rows]} if scores else found


def test_boxes_are_drawn_over_the_rows_image():
    image = np.zeros((1, 20, 20))
    image[0, 15:, 15:] = 1
    found = _boxes(((4, 4, 10, 12), 1, 0.9), ((0, 0, 3, 3), 2, 0.2))
    row = [
        ("film", image, "image"),
        ("found", found, "boxes"),
        ("both", [found, _boxes(((2, 2, 9, 9), 3, 0), scores=False)], "boxes"),
    ]
    plain, first, both = (np.asarray(panel) for _, panel in _draw_row(row, 100, (0, 100), 1, None))
    assert np.array_equal(plain[80:, 80:], first[80:, 80:]) and plain[99, 99].tolist() == [255] * 3
    colours = [{tuple(pixel) for pixel in panel.reshape(-1, 3).tolist()} for panel in (plain, first, both)]
    assert (230, 159, 0) in colours[1] and (0, 158, 115) in colours[1] and len(colours[0]) == 2
    assert (213, 94, 0) in colours[2] - colours[1]
    limited = np.asarray(_draw_row(row[:2], 100, (0, 100), 1, None, min_score=0.5)[1][1])
    assert (0, 158, 115) not in {tuple(pixel) for pixel in limited.reshape(-1, 3).tolist()}
    assert np.array_equal(np.asarray(_draw_row(row[1:2] + row[:1], 100, (0, 100), 1, None)[0][1]), first), "any order"


def test_all_panels_of_a_row_show_the_slice_of_the_best_box():
    volume = np.zeros((1, 8, 8, 10))
    volume[..., 7] = 1
    volume[0, 0, 0, 7] = 0
    found = _boxes(((1, 1, 6, 4, 4, 9), 0, 0.7))
    panels = [
        ("film", volume, "image"),
        ("classes", volume, "classes"),
        ("none", _boxes(), "boxes"),
        ("found", found, "boxes"),
    ]
    film, classes, none, _ = (np.asarray(panel) for _, panel in _draw_row(panels, 80, (0, 100), 1, None))
    assert film[40, 40].tolist() == [255] * 3 and classes[40, 40].tolist() != [0] * 3 and np.array_equal(none, film)
    # without any box it is the middle, as it always was
    film = np.asarray(_draw_row(panels[:3], 80, (0, 100), 1, None)[0][1])
    assert film.max() == 0


def test_the_page_says_which_boxes_it_shows():
    rows = [("a", [("film", np.zeros((9, 9)), "image"), ("found", _boxes(), "boxes")])]
    assert overview_page(rows).shape[0] == overview_page([(n, panels[:1]) for n, panels in rows]).shape[0] + 18
    assert not np.array_equal(overview_page(rows), overview_page(rows, min_score=0.5))


@pytest.mark.parametrize(
    ("panels", "message"),
    [
        ([("found", _boxes(), "boxes")], "panel 'found' of boxes needs a panel of kind 'image'"),
        (
            [("a", np.zeros((9, 9)), "image"), ("found", _boxes(((0,) * 6, 0, 1)), "boxes")],
            r"'found' must have boxes \(N, 4\)",
        ),
    ],
)
def test_refused_boxes(panels, message):
    with pytest.raises(ValueError, match=message):
        overview_page([("a", panels)])
