# SPDX-License-Identifier: Apache-2.0
"""What detections are called in a report, and the tree that says it."""

from __future__ import annotations

import numpy as np
import pytest
from highdicom.sr import ImageRegion, SourceImageForRegion
from pydicom import Dataset

from monai_labelfx.data._dicom_sr_content import NAMED, Class, classes_of, content_of, group_of


def image() -> Dataset:
    result = Dataset()
    result.SOPClassUID, result.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3"
    return result


def test_classes_have_a_name_a_code_or_their_number():
    names, codes = {"0": "nodule", 1: "x" * 17, 2: "mass"}, {"2": ["4147007", "SCT", "Mass"], 3: ("1", "99A", "b")}
    first, again, long, coded, both, plain = classes_of([0, 0, 1, 2, 3, -4], names, codes)
    assert first == again == Class(0, "nodule", ("nodule", "99LABELFX", "nodule"))
    assert len(long.code[0]) == 16 and long.code[1:] == ("99LABELFX", "x" * 17)
    assert long.code[0] != classes_of([1], {1: "x" * 18}, None)[0].code[0]
    assert coded == Class(2, "mass", ("4147007", "SCT", "Mass"))
    assert both == Class(3, None, ("1", "99A", "b"))
    assert plain == Class(-4, None, ("label -4", "99LABELFX", "label -4"))


@pytest.mark.parametrize(
    ("label", "name"), [(3, None), (-1, "a"), (0, "a: b"), (12, "label 7: x"), (2, "größer"), (1, " a ")]
)
def test_the_parameter_gives_label_and_name_back(label, name):
    found = NAMED.fullmatch(Class(label, name, ("", "", "")).parameter)
    assert (int(found[1]), found[2]) == (label, name)


@pytest.mark.parametrize(
    ("names", "codes", "message"),
    [
        ({"nodule": 0}, None, "^names must map labels .* got the label 'nodule'$"),
        ({True: "a"}, None, "^names must map labels"),
        ({1: "a", "1": "b"}, None, "^names has the label 1 twice$"),
        ({1: "x" * 65}, None, r"^names\[1\] is 'x+', expected a text of 1 to 64 characters"),
        ({1: "a\\b"}, None, r"^names\[1\]"),
        ({1: "a\nb"}, None, r"^names\[1\]"),
        ({1: 2}, None, r"^names\[1\] is 2"),
        (None, {1: "27925004"}, r"^codes\[1\] is '27925004', expected \[code, scheme, meaning\]"),
        (None, {1: ["1", "SCT", ""]}, r"^codes\[1\]"),
        (None, {1: ["1", "x" * 17, "a"]}, r"^codes\[1\]"),
        (None, {1.5: ["1", "SCT", "a"]}, "^codes must map labels"),
    ],
)
def test_bad_names_and_codes(names, codes, message):
    with pytest.raises(ValueError, match=message):
        classes_of([1], names, codes)


@pytest.mark.parametrize(
    ("modality", "procedure"), [("CT", "25045-6"), ("DX", "43468-8"), ("MG", "363679005"), ("", "363679005")]
)
def test_the_tree_with_and_without_detections(modality, procedure):
    points = np.array([[0, 0], [1, 0], [0, 0]])
    region = ImageRegion("POLYLINE", points, SourceImageForRegion(image().SOPClassUID, "1.2.3"))
    group = group_of(classes_of([0], {0: "nodule"}, None)[0], np.float64(0.07), 1, region, ("net", "1"))
    for groups, last in (([group, group], "Imaging Measurements"), ([], "Qualitative Evaluations")):
        root = content_of(groups, [image()], modality, ("net", "1"))
        meanings = [item.ConceptNameCodeSequence[0].CodeMeaning for item in root.ContentSequence]
        assert meanings[0] == "Language of Content Item and Descendants" and meanings[-1] == last
        assert meanings[-3:-1] == ["Procedure reported", "Image Library"] and "Observer Type" in meanings
        assert root.ContentSequence[-3].ConceptCodeSequence[0].CodeValue == procedure
        assert len(root.ContentSequence[-1].ContentSequence) == (len(groups) or 3)
    values = {item.ConceptNameCodeSequence[0].CodeMeaning: item for item in group[0].ContentSequence}
    measured = values["Certainty of Finding"].MeasuredValueSequence[0]
    assert measured.FloatingPointValue == pytest.approx(7.0) and float(measured.NumericValue) == pytest.approx(7.0)
    assert values["Algorithm Parameters"].TextValue == "label 0: nodule"
    assert values["Geometric purpose of region"].ConceptCodeSequence[0].CodeMeaning == "Bounded by"
    device = [
        item.UID for item in content_of([], [image()], "CT", ("net", "1")).ContentSequence if item.ValueType == "UIDREF"
    ]
    assert device == [item.UID for item in root.ContentSequence if item.ValueType == "UIDREF"]  # one device
