# SPDX-License-Identifier: Apache-2.0
"""arrange: order, affine, and every fault of a stack of slices, each on its own side of its tolerance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from dicom_samples import ORIENTATIONS, ORIGIN, SPACING, affine_of
from hypothesis import given
from hypothesis import strategies as st

from monai_labelfx.data._dicom_frames import Frame, phase_names
from monai_labelfx.data._dicom_geometry import arrange

CT, X_RAY = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.1.1"
RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def frame(number: int = 0, **fields) -> Frame:
    own = {
        "path": f"/data/{number:03d}.dcm",
        "index": None,
        **dict.fromkeys(("series_uid", "study_uid", "frame_of_reference_uid", "description"), "1.2"),
        "sop_class_uid": CT,
        "modality": "CT",
        "rows": 12,
        "columns": 16,
        "samples": 1,
        "orientation": (1, 0, 0, 0, 1, 0),
        "position": ORIGIN,
        "spacing": (SPACING[1], SPACING[0]),
        "thickness": 2.0,
        "temporal": ("None",) * len(phase_names()),
    }
    return Frame(**{**own, **fields})


def stack(heights, orientation: str = "axial") -> list[Frame]:
    """Slices at these distances (mm) from the origin along the direction of the stack."""
    row, column, step = ORIENTATIONS[orientation]
    return [
        frame(number, orientation=(*row, *column), position=tuple(np.array(ORIGIN) + step * height))
        for number, height in enumerate(heights)
    ]


def even(count: int = 8, step: float = SPACING[2]) -> np.ndarray:
    return step * np.arange(count)


def shifted(frames: list[Frame], number: int, **by: float) -> list[Frame]:
    """Slice ``number`` moved by x, y, z in mm."""
    place = np.array(frames[number].position) + [by.get(axis, 0.0) for axis in "xyz"]
    return [replace(one, position=tuple(place)) if n == number else one for n, one in enumerate(frames)]


def changed(number: int, **fields) -> list[Frame]:
    return [replace(one, **fields) if n == number else one for n, one in enumerate(stack(even()))]


def faults_of(frames: list[Frame], on_irregular: str = "error") -> str:
    with pytest.raises(ValueError, match="DICOM (series|file) in '/data'|DICOM file '/data") as caught:
        arrange(frames, on_irregular=on_irregular)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@given(order=st.permutations(range(8)))
def test_any_order_gives_the_same_stack(orientation, order):
    frames = stack(even(), orientation)
    found = arrange([frames[number] for number in order])
    assert found.frames == frames and found.grid == [(number, 0.0) for number in range(8)]
    assert not found.faults and not found.repeated
    assert np.allclose(RAS @ found.affine, affine_of(orientation), atol=1e-9)


@given(
    st.integers(2, 40),
    st.floats(0.001, 20),
    st.floats(-0.9, 0.9),
    st.floats(-0.9, 0.9),
    st.floats(-500, 500),
)
def test_a_regular_stack_of_any_tilt_is_regular_and_its_affine_hits_every_slice(count, step, tilt, turn, start):
    along = np.array([tilt, turn, 1.0]) * step
    frames = [
        frame(n, position=tuple(np.array([start, 0, -start]) + n * along), spacing=(step, step)) for n in range(count)
    ]
    affine = arrange(frames).affine
    for number, one in enumerate(frames):
        assert np.allclose(affine @ [0, 0, number, 1], [*one.position, 1], atol=1e-9 * max(1, abs(start)))


def test_numbers_rounded_in_the_file_are_no_fault():
    found = arrange(stack(np.round(even(400, 0.625), 2)))
    assert np.isclose(found.affine[2, 2], 0.625, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_tolerances_scale_with_the_image(scale):
    def scaled(heights):
        return [replace(one, spacing=(0.9 * scale, 0.7 * scale)) for one in stack(np.array(heights) * scale)]

    arrange(scaled(even()))
    with pytest.raises(ValueError, match="1 slice seems to be missing"):
        arrange(scaled(np.delete(even(), 3)))
    with pytest.raises(ValueError, match="lie where another one does"):
        arrange(scaled([*even(), SPACING[2] * 3]))


@pytest.mark.parametrize(
    ("frames", "fault"),
    [
        pytest.param(lambda by: shifted(stack(even()), 3, z=by * SPACING[2]), "mm apart", id="along"),
        pytest.param(lambda by: shifted(stack(even()), 3, y=by * SPACING[2]), "shifted in their plane", id="in plane"),
    ],
)
def test_a_slice_may_lie_two_hundredths_of_a_step_off(frames, fault):
    assert not arrange(frames(0.019)).faults
    assert fault in faults_of(frames(0.021))


@pytest.mark.parametrize(
    ("field", "below", "above", "fault"),
    [
        ("orientation", (1, 0.9e-4, 0, -0.9e-4, 1, 0), (1, 1.1e-4, 0, -1.1e-4, 1, 0), "orientations differ"),
        ("spacing", (0.9, 0.70006), (0.9, 0.70008), "PixelSpacing differs"),
        ("orientation", (1, 0, 0, 0, 1, 0), (1, 0, 0, 0.0011, 1, 0), "perpendicular directions of length 1 in 1 of 8"),
        ("orientation", (1, 0, 0, 0, 1, 0), (1, 0, 0, 0, 0, 0), "perpendicular directions of length 1 in 1 of 8"),
        ("spacing", (0.9, 0.7), (0.9, 0.0), "PixelSpacing is no size above 0 in 1 of 8"),
        ("spacing", (0.9, 0.7), (0.9, np.nan), "PixelSpacing is no size above 0 in 1 of 8"),
        ("spacing", (0.9, 0.7), None, "PixelSpacing is missing in 1 of 8"),
        ("position", (-10, -20, -25), (-10, np.inf, -25), "ImagePositionPatient is not finite .* in 1 of 8"),
        ("position", (-10, -20, -25), (-10, 1e300, -25), "beyond a kilometre in 1 of 8"),
        ("position", (-10, -20, -25), None, "ImagePositionPatient is missing in 1 of 8"),
        ("orientation", (1, 0, 0, 0, 1, 0), None, "ImageOrientationPatient is missing in 1 of 8"),
        ("rows", 12, 13, r"sizes differ .*\(16, 12, 1\) in 7 slices, \(16, 13, 1\) in 1"),
        ("samples", 1, 3, "sizes differ"),
        ("frame_of_reference_uid", "", "1.3", "FrameOfReferenceUID differs"),
    ],
)
@pytest.mark.parametrize("on_irregular", ["error", "warn", "resample"])
@pytest.mark.filterwarnings("error")
def test_what_no_policy_tolerates(field, below, above, fault, on_irregular):
    assert not arrange(changed(2, **{field: below}), on_irregular=on_irregular).faults
    with pytest.raises(ValueError, match=fault):
        arrange(changed(2, **{field: above}), on_irregular=on_irregular)
    if field != "frame_of_reference_uid":  # nor is it a matter of which slice is first
        with pytest.raises(ValueError, match=fault):
            arrange(changed(0, **{field: above}), on_irregular=on_irregular)


def test_all_faults_are_in_one_sentence():
    frames = stack([*even(), 2.5, 27.5])
    frames[1] = replace(frames[1], rows=13)
    frames[2] = replace(frames[2], spacing=(1, 1), frame_of_reference_uid="1.3")
    text = faults_of(frames)
    for fault in ("sizes", "PixelSpacing", "FrameOfReference", "lie where another", "a gap of 10 mm instead of 2.5 mm"):
        assert fault in text
    assert text.count("; ") == 4
    frames[4] = replace(frames[4], position=None)
    frames[5] = replace(frames[5], orientation=(0, 1, 0, 0, 0, -1))
    frames[6] = replace(frames[6], orientation=(0, 2, 0, 0, 0, -1))
    text = faults_of(frames)
    for fault in ("sizes", "PixelSpacing", "FrameOfReference", "missing in 1 of 10", "length 1", "orientations differ"):
        assert fault in text


def test_a_gap_is_described():
    text = faults_of(stack(np.delete(even(), [3, 4])))
    assert "a gap of 7.5 mm instead of 2.5 mm between slices 3 and 4 of 6 (at -25 and -17.5 mm" in text
    assert "2 slices seem to be missing" in text and "on_irregular='resample'" in text
    text = faults_of(stack(np.delete(even(40), range(1, 39, 4))))
    assert text.count("a gap of") == 4 and "; 6 more gaps" in text and "apart" not in text


def test_uneven_distances_are_described():
    assert "2 to 3 mm apart, expected equal" in faults_of(stack([0, 2.5, 5, 7.5, 10, 12, 15, 17.5]))
    # the distances differ by 4 % only, but the middle slices lie two millimetres beside what the affine would say
    drift = np.cumsum([0.0, *[2.5] * 40, *[2.6] * 40])
    assert "2.5 to 2.6 mm apart" in faults_of(stack(drift))
    both = faults_of(stack([0, 2.5, 5, 7, 10, 12.5, 20, 22.5]))
    assert "a gap of 7.5" in both and "2 to 3 mm apart" in both


def test_a_changing_tilt_is_a_shift():
    frames = stack(even())
    for number in range(5, 8):
        frames = shifted(frames, number, y=2.0 * (number - 4))
    assert "shifted in their plane by up to" in faults_of(frames) and "apart" not in faults_of(frames)
    assert arrange(frames, on_irregular="warn").faults
    assert "on_irregular" not in faults_of(frames, "resample"), "no interpolation along the normal can mend it"


@pytest.mark.parametrize("distance", [0.1, 2.5, 300.0])
def test_two_slices_are_regular_at_any_distance(distance):
    assert np.isclose(arrange(stack([0, distance])).affine[2, 2], distance)


def test_slices_in_one_place_name_what_tells_them_apart():
    echoes = ["None"] * len(phase_names())
    echoes[phase_names().index("EchoNumbers")] = "2"
    frames = stack([*even(), *even()])
    frames[8:] = [replace(one, temporal=tuple(echoes)) for one in frames[8:]]
    text = faults_of(frames)
    assert (
        "8 of 16 slices lie where another one does (the first at -30 mm), differing in EchoNumbers: several vol" in text
    )
    assert "several volumes" not in faults_of(stack([*even(), 5.0]))
    assert arrange(frames, on_irregular="warn").repeated == set(range(1, 16, 2))
    assert "gap" not in text


def test_near_is_the_same_place_below_a_hundredth_of_a_pixel():
    assert "lie where another" in faults_of(stack([*even(), 0.0069]))
    assert "lie where another" not in faults_of(stack([*even(), 0.0071]))


def test_warn_keeps_the_slices_and_their_mean_distance():
    found = arrange(stack(np.delete(even(), 3), "tilted"), on_irregular="warn")
    assert len(found.faults) == 1 and found.grid == [(number, 0.0) for number in range(7)]
    expected = affine_of("tilted")
    expected[:3, 2] *= 7 / 6
    assert np.allclose(RAS @ found.affine, expected)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_resample_fills_missing_slices_on_the_grid(orientation):
    found = arrange(stack(np.delete(even(), [3, 4]), orientation), on_irregular="resample")
    numbers, weights = zip(*found.grid, strict=True)
    assert numbers == (0, 1, 2, 3, 3, 3, 4, 5) and np.allclose(weights, [0, 0, 0, 2 / 3, 1 / 3, 0, 0, 0])
    assert np.allclose(RAS @ found.affine, affine_of(orientation))


def test_resample_to_the_median_distance():
    found = arrange(stack([0, 2, 4, 5, 8, 10]), on_irregular="resample")
    numbers, weights = zip(*found.grid, strict=True)
    assert numbers == (0, 1, 2, 4, 4, 5) and np.allclose(weights, [0, 0, 0, 2 / 3, 0, 0])
    assert np.isclose(found.affine[2, 2], 2)


def test_resample_of_rounded_positions_keeps_every_slice():
    heights = np.delete(np.round(even(400, 0.625), 2), [7, 200, 201])
    found = arrange(stack(heights), on_irregular="resample")
    weights = np.array([weight for _, weight in found.grid])
    assert len(weights) == 400 and np.flatnonzero(weights).tolist() == [7, 200, 201]
    assert np.isclose(found.affine[2, 2], 0.625, atol=1e-4)


@given(st.lists(st.floats(1.0, 3.0), min_size=1, max_size=30), st.sampled_from(list(ORIENTATIONS)))
def test_resampled_slices_lie_where_the_affine_says(gaps, orientation):
    """Interpolating the positions themselves must give the positions of the grid, to the tolerance."""
    frames = stack(np.cumsum([0.0, *gaps]), orientation)
    found = arrange(frames, on_irregular="resample")
    place = np.array([one.position for one in found.frames])
    step = np.linalg.norm(found.affine[:3, 2])
    for number, (upper, weight) in enumerate(found.grid):
        there = place[upper] if weight == 0 else weight * place[upper - 1] + (1 - weight) * place[upper]
        off = np.linalg.norm(found.affine @ [0, 0, number, 1] - [*there, 1])
        assert off <= 0.021 * step
    reached = np.linalg.norm(place[-1] - place[0]) - (len(found.grid) - 1) * step
    assert -0.03 * step <= reached < step * 1.001, "the grid must end less than a step before the last slice"


def test_resample_drops_what_lies_in_one_place():
    found = arrange(stack([*even(), 5.0, 17.5]), on_irregular="resample")
    assert found.repeated == {3, 9} and [upper for upper, _ in found.grid] == [0, 1, 2, 4, 5, 6, 7, 8]
    assert np.allclose(RAS @ found.affine, affine_of("axial"))


def test_resample_does_not_make_most_of_an_image_up():
    two_slabs = [*even(5), *(1000 + even(5))]
    assert "more slices are missing than are there" in faults_of(stack(two_slabs), "resample")
    assert "more slices are missing than are there" in faults_of(stack([*even(5), 9e5]), "resample")


def test_one_place_only():
    frames = stack([0, 0, 0])
    assert "2 of 3 slices lie where another one does" in faults_of(frames)
    found = arrange(frames, on_irregular="resample")
    assert found.grid == [(0, 0.0)] and found.repeated == {1, 2}
    assert np.isclose(np.linalg.norm(found.affine[:3, 2]), 2.0), "the thickness of a slice"


def test_one_slice_takes_its_thickness_along_the_normal():
    affine = arrange(stack([0], "oblique")).affine
    expected = affine_of("oblique")
    expected[:3, 2] = RAS[:3, :3] @ ORIENTATIONS["oblique"][2] * 2.0
    assert np.allclose(RAS @ affine, expected)


def test_a_projection_has_pixel_sizes_only():
    x_ray = frame(sop_class_uid=X_RAY, orientation=None, position=None, spacing=(0.2, 0.1), thickness=1.0)
    assert np.array_equal(arrange([x_ray]).affine, np.diag([0.1, 0.2, 1, 1]))
    assert np.array_equal(arrange([replace(x_ray, spacing=None)]).affine, np.eye(4))
    assert "PixelSpacing is no size" in faults_of([replace(x_ray, spacing=(-1, 1))])


@pytest.mark.parametrize("sop_class", [CT, "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.128"])
def test_a_cross_section_without_a_place_is_refused(sop_class):
    text = faults_of([frame(sop_class_uid=sop_class, orientation=None, position=None)])
    assert "ImagePositionPatient is missing in 1 of 1" in text and "ImageOrientationPatient is missing" in text
    assert "ImagePositionPatient is missing" in faults_of([frame(sop_class_uid=X_RAY, position=None)])


@pytest.mark.parametrize(("index", "kind"), [(None, "2 images"), (0, "2 frames")])
def test_pictures_without_positions_are_no_volume(index, kind):
    x_ray = frame(sop_class_uid=X_RAY, orientation=None, position=None, index=index)
    for policy in ("error", "warn", "resample"):
        text = faults_of([x_ray, replace(x_ray, index=index and 1)], policy)
        assert kind in text and "hand over one still image" in text and "on_irregular" not in text
