# SPDX-License-Identifier: Apache-2.0
"""Boxes as rectangles and contours: by hand, and back."""

from __future__ import annotations

import numpy as np
import pytest
from dicom_samples import ORIENTATIONS, SPACING
from pydicom import Dataset

from monai_labelfx.data._dicom_seg_planes import Planes
from monai_labelfx.data._dicom_source import DicomSource
from monai_labelfx.data._dicom_sr_regions import (
    Places,
    box_of_contours,
    box_of_rectangle,
    contours,
    places_of,
    rectangle,
    surface,
)

FILES = DicomSource(["a.dcm"], None, "source", {})


def image(sop_class: str = "1.2.840.10008.5.1.4.1.1.2") -> Dataset:
    result = Dataset()
    result.SOPClassUID, result.SOPInstanceUID = sop_class, "1.2.3"
    result.SeriesInstanceUID, result.FrameOfReferenceUID = "1.2.4", "1.2.5"
    return result


def places(orientation: str = "axial", heights=(0.0, 2.5, 5.0, 7.5)) -> Places:
    row, column, step = ORIENTATIONS[orientation]
    return Places(np.array([step * height for height in heights]), np.array([row * SPACING[0], column * SPACING[1]]))


def test_a_rectangle_by_hand():
    region = rectangle(np.array([1.5, 2.0, 4.0, 8.0]), image(), FILES)
    assert np.reshape(region.GraphicData, (-1, 2)).tolist() == [[1.5, 2], [4, 2], [4, 8], [1.5, 8], [1.5, 2]]
    assert "ReferencedFrameNumber" not in region.ContentSequence[0].ReferencedSOPSequence[0]
    assert box_of_rectangle(region.value).tolist() == [1.5, 2.0, 4.0, 8.0]
    enhanced, frames = image("1.2.840.10008.5.1.4.1.1.2.1"), DicomSource(["a.dcm"], [6], "source", {})
    region = rectangle(np.array([1.5, 2.0, 4.0, 8.0]), enhanced, frames)
    assert region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedFrameNumber == 7  # frames count from 1


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [-1.25, 0, 1.25]),
        (1.5, 3.0, [2.5, 5.0, 6.25]),  # the first contour lies in a slice: there is no second one in it
        (0.25, 0.4, [-0.625, -0.25]),
        (0, 4, [-1.25, 0, 2.5, 5, 7.5, 8.75]),
    ],
)
def test_heights_of_contours(low, high, expected):
    found = contours(np.array([0, 0, low, 2, 4, high], dtype=float), places())
    assert np.allclose([one[:, 2] for one in found], np.array(expected)[:, None])
    for one in found:
        assert np.allclose(one[:, :2], [[-0.35, -0.45], [1.05, -0.45], [1.05, 3.15], [-0.35, 3.15], [-0.35, -0.45]])
        assert np.array_equal(one[0], one[-1])


@pytest.mark.parametrize("heights", [(0.0, 2.5, 5.0, 7.5), (0.0, 2.4, 5.1, 11.0)])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_index_and_mm_are_inverse(orientation, heights):
    where = places(orientation, heights)
    index = np.random.default_rng(0).uniform(-1, 6, (50, 3))
    assert np.allclose(where.to_index(where.to_mm(index)), index, atol=1e-12)
    whole = np.array([[x, y, z] for x in (0, 3) for y in (0, 5) for z in range(4)])
    row, column, step = ORIENTATIONS[orientation]
    expected = [x * SPACING[0] * row + y * SPACING[1] * column + heights[z] * step for x, y, z in whole]
    assert np.allclose(where.to_mm(whole), expected)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_surface_gives_its_box_back(orientation):
    box, where = np.array([1.25, 2.5, 0.75, 9.0, 7.75, 3.5]), places(orientation)
    found = surface(box, where, image())
    data = [item.value for item in found if item.ValueType == "SCOORD3D"]
    assert len(data) == len(contours(box, where)) and found[-1].UID == "1.2.4"
    assert np.allclose(box_of_contours(data[::-1], where), box, atol=1e-5)


def test_places_come_from_the_planes():
    row, column, step = ORIENTATIONS["oblique"]
    positions = [(step * height).tolist() for height in (0.0, 2.5, 5.0, 7.5)]
    planes = Planes(positions, [*row, *column], [SPACING[1], SPACING[0]], 2.5, on_source=True)
    found, expected = places_of(planes, FILES), places("oblique")
    assert np.allclose(found.positions, expected.positions) and np.allclose(found.axes, expected.axes)
    for gone, message in (
        (Planes(None, [], None, 2.5, on_source=True), "have no place in the patient"),
        (Planes(positions, planes.orientation, None, 2.5, on_source=True), "have no place in the patient"),
        (Planes([*positions, positions[-1]], planes.orientation, planes.spacing, 2.5, on_source=True), "lie in one"),
    ):
        with pytest.raises(ValueError, match=message):
            places_of(gone, FILES)
