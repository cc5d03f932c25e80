# SPDX-License-Identifier: Apache-2.0
"""Curves as SVG."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from monai_labelfx.visualize import svg_curves
from monai_labelfx.visualize.svg_curves import _ticks

NAMESPACE = "{http://www.w3.org/2000/svg}"


def _tags(text: str, tag: str) -> list:
    return ElementTree.fromstring(text).findall(f".//{NAMESPACE}{tag}")


def test_points_lie_where_their_values_say():
    line = _tags(svg_curves({"loss": [[1, 4.0], [2, 2.0], [3, 0.0]]}), "polyline")[0]
    points = [tuple(map(float, p.split(","))) for p in line.get("points").split()]
    (x1, y1), (x2, y2), (x3, y3) = points
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2) and x1 < x2
    assert y2 - y1 == pytest.approx(y3 - y2, abs=0.2) and y1 < y2, "larger values lie higher"


def test_gaps_interrupt_lines_and_names_are_escaped():
    text = svg_curves({"a<b": [[1, 1.0], [2, 2.0], [3, None], [4, math.nan], [5, 1.0], [6, 2.0]]}, "t & u")
    assert len(_tags(text, "polyline")) == 2
    assert "a<b" in [t.text for t in _tags(text, "text")]
    assert _tags(text, "title")[0].text == "t & u"


@pytest.mark.parametrize("series", [{}, {"a": []}, {"a": [[1, None]]}, {"a": [[1, 0.5]]}, {"a": [[1, 0.0], [2, 0.0]]}])
def test_degenerate_series(series):
    root = ElementTree.fromstring(svg_curves(series))
    assert root.tag == f"{NAMESPACE}svg"
    assert not [value for node in root.iter() for value in node.attrib.values() if "nan" in value]


@pytest.mark.parametrize("values", [(0.1, 0.9), (-3, 5), (1e-9, 3e-9), (1e6, 1e6 + 1), (7, 7)])
def test_ticks_enclose_the_values(values):
    ticks = _ticks(values)
    assert ticks[0] <= min(values) and ticks[-1] >= max(values) and 2 <= len(ticks) <= 9


def test_epochs_have_whole_ticks():
    assert _ticks([1, 2], smallest=1.0) == [1, 2]
