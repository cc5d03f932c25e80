# SPDX-License-Identifier: Apache-2.0
"""Names, colours and codes of segments: what users may write, and what is made of it."""

from __future__ import annotations

import numpy as np
import pytest

from monai_labelfx._version import __version__
from monai_labelfx.data._dicom_segments import Segment, describe, segments_of


def test_names_as_in_the_metadata_of_a_bundle():
    assert segments_of({"0": "background", "1": "liver", "12": "left kidney"}) == {
        1: Segment("liver"),
        12: Segment("left kidney"),
    }
    assert segments_of(None) == segments_of({}) == {}


def test_a_mapping_says_more():
    entry = {"name": "liver", "colour": [221, 130, 101], "type": ["10200004", "SCT", "Liver"]}
    (segment,) = segments_of({3: entry}).values()
    assert segment.colour == (221, 130, 101) and segment.type == ("10200004", "SCT", "Liver")
    assert segment.category == ("85756007", "SCT", "Tissue")


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ({"liver": 1}, "'liver' is no label value, expected a whole number from 0 to 65535"),
        ({-1: "liver"}, "-1 is no label value"),
        ({True: "liver"}, "True is no label value"),
        ({1.5: "liver"}, "1.5 is no label value"),
        ({65536: "liver"}, "65536 is no label value"),
        ({1: "liver", "1": "spleen"}, "the label value 1 is named twice"),
        ({1: ""}, r"segments\[1\] is '', expected a name"),
        ({1: "x" * 65}, "expected a name of at most 64 characters"),
        ({1: "a\\b"}, "without backslash"),
        ({1: "two\nlines"}, "expected a name"),
        ({1: None}, "expected a name"),
        ({1: 7}, "expected a name"),
        ({1: {"colour": [1, 2, 3]}}, "a mapping with name and, if wanted, colour, category and type"),
        ({1: {"name": "liver", "color": [1, 2, 3]}}, "a mapping with name"),
        ({1: {"name": "liver", "colour": [1, 2]}}, r"the colour \[1, 2\], expected \[red, green, blue\]"),
        ({1: {"name": "liver", "colour": [1, 2, 256]}}, "from 0 to 255"),
        ({1: {"name": "liver", "colour": [0.5, 0.5, 0.5]}}, "from 0 to 255"),
        ({1: {"name": "liver", "colour": "red"}}, "expected .red, green, blue."),
        ({1: {"name": "liver", "type": ["10200004", "SCT"]}}, r"has the type .*expected \[code, scheme, meaning\]"),
        ({1: {"name": "liver", "category": "Organ"}}, "has the category 'Organ'"),
        ({1: {"name": "liver", "category": [1, "SCT", "Organ"]}}, "has the category"),
    ],
)
def test_what_cannot_be_used_is_named(segments, message):
    with pytest.raises(ValueError, match=message):
        segments_of(segments)


def test_descriptions():
    named = segments_of({2: {"name": "liver", "colour": [255, 0, 0]}})
    first, second = describe([1, 2], named)
    assert (first.SegmentNumber, first.SegmentLabel) == (1, "label 1")
    assert (second.SegmentNumber, second.SegmentLabel) == (2, "liver")
    assert second.SegmentAlgorithmName == "monai_labelfx"
    assert second.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == __version__
    assert second.RecommendedDisplayCIELabValue[0] == pytest.approx(0xFFFF * 0.5324, rel=1e-3)  # L* of pure red
    assert describe([7], {})[0].SegmentLabel == "object 7"


def test_neighbours_differ_in_colour():
    colours = np.array([segment.RecommendedDisplayCIELabValue for segment in describe(range(1, 301), {})])
    assert len(np.unique(colours, axis=0)) == 300
    assert np.abs(np.diff(colours, axis=0)).max(axis=1).min() > 0x1000
