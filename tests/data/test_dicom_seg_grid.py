# SPDX-License-Identifier: Apache-2.0
"""The grid of a SEG whose empty frames were left out, from what its header says about the distance of planes."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.dataset import Dataset

from monai_labelfx.data._dicom_seg_grid import grid_of


def header(heights, *, between=None, thickness=None, spacing=(0.9, 0.7), shift=0.0, per_frame=False) -> Dataset:
    """A SEG header with planes at ``heights`` mm along z, shifted along y by ``shift`` mm for each mm of height."""
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = list(spacing)
    if between:
        measures.SpacingBetweenSlices = between
    if thickness:
        measures.SliceThickness = thickness
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    groups = []
    for height in heights:
        item, position = Dataset(), Dataset()
        position.ImagePositionPatient = [5, shift * height, height]
        item.PlanePositionSequence = [position]
        groups.append(item)
    for item in groups if per_frame else [shared]:
        item.PixelMeasuresSequence, item.PlaneOrientationSequence = [measures], [orientation]
    result = Dataset()
    result.Rows, result.Columns = 12, 16
    result.SharedFunctionalGroupsSequence, result.PerFrameFunctionalGroupsSequence = [shared], groups
    return result


def grid(*args, **options):
    dataset = header(*args, **options)
    return grid_of(dataset, len(dataset.PerFrameFunctionalGroupsSequence), "seg.dcm")


@pytest.mark.parametrize("per_frame", [False, True])
def test_every_plane_there(per_frame):
    found = grid([5.0, 0.0, 2.5, 0.0, 7.5], per_frame=per_frame)
    assert found.planes == 4 and found.plane.tolist() == [2, 0, 1, 0, 3]
    assert np.allclose(found.affine, [[0.7, 0, 0, 5], [0, 0.9, 0, 0], [0, 0, 2.5, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("options", "planes", "step"),
    [
        ({"between": 2.5}, [0, 2, 6], 2.5),  # the file says it
        ({"between": 2.5, "thickness": 5.0}, [0, 2, 6], 2.5),
        ({}, [0, 1, 3], 5.0),  # the smallest distance
        ({"thickness": 2.5}, [0, 1, 3], 5.0),  # a thickness may be anything
        ({"between": 4.0}, [0, 1, 3], 5.0),  # it does not fit what is there
        ({"between": 1e-6}, [0, 1, 3], 5.0),  # fits everything, at a size that no image has
    ],
)
def test_planes_in_between(options, planes, step):
    found = grid([0.0, 5.0, 15.0], **options)
    assert found.plane.tolist() == planes and found.planes == planes[-1] + 1
    assert found.affine[2, 2] == pytest.approx(step)


def test_thickness_where_the_smallest_distance_does_not_fit():
    found = grid([0.0, 5.0, 12.5], thickness=2.5)
    assert found.plane.tolist() == [0, 2, 5] and found.affine[2, 2] == pytest.approx(2.5)


def test_a_sheared_stack():
    found = grid([0.0, 2.5, 7.5], between=2.5, shift=0.2)
    assert found.plane.tolist() == [0, 1, 3] and np.allclose(found.affine[:3, 2], [0, 0.5, 2.5])


@pytest.mark.parametrize(
    ("options", "step"), [({}, 1.0), ({"thickness": 3.0}, 3.0), ({"between": 2, "thickness": 3}, 2)]
)
def test_one_plane(options, step):
    found = grid([4.0, 4.0], **options)
    assert found.planes == 1 and found.plane.tolist() == [0, 0] and found.affine[2, 2] == step


def test_rounded_positions_are_regular():
    found = grid([round(index * 1.2345678, 2) for index in range(20)], between=1.234568)
    assert found.plane.tolist() == list(range(20)) and found.affine[2, 2] == pytest.approx(1.2345678, rel=1e-3)


@pytest.mark.parametrize(
    ("heights", "message"),
    [
        ([0.0, 5.0, 12.5], "5 to 7.5 mm apart, which is no regular grid"),
        ([0.0, 2.5, 1e9], "no regular grid of a possible size"),
        ([0.0, 2.5, np.inf], "impossible geometry"),
    ],
)
def test_heights_that_make_no_grid(heights, message):
    with pytest.raises(ValueError, match=f"'seg.dcm'.*{message}"):
        grid(heights)


def test_faults_of_the_header():
    with pytest.raises(ValueError, match="impossible geometry"):
        grid([0.0, 2.5], spacing=(0.9, 0.0))
    dataset = header([0.0, 2.5], per_frame=True)
    dataset.PerFrameFunctionalGroupsSequence[1].PlaneOrientationSequence = [Dataset()]
    dataset.PerFrameFunctionalGroupsSequence[1].PlaneOrientationSequence[0].ImageOrientationPatient = [0, 1, 0, 1, 0, 0]
    with pytest.raises(ValueError, match="different ImageOrientationPatient"):
        grid_of(dataset, 2, "seg.dcm")
    del dataset.PerFrameFunctionalGroupsSequence[1].PlaneOrientationSequence
    with pytest.raises(ValueError, match="different ImageOrientationPatient"):
        grid_of(dataset, 2, "seg.dcm")
    del dataset.PerFrameFunctionalGroupsSequence[0].PlaneOrientationSequence
    with pytest.raises(ValueError, match="positions but no ImageOrientationPatient"):
        grid_of(dataset, 2, "seg.dcm")
    del dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence
    with pytest.raises(ValueError, match="frames without ImagePositionPatient, expected all or none"):
        grid_of(dataset, 2, "seg.dcm")
