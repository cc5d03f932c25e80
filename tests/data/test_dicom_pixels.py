# SPDX-License-Identifier: Apache-2.0
"""Values of a frame: modality transform and display of projection X-ray, each against a computation by hand."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_frame_samples import MAMMOGRAPHY, STORAGE, ct, planted, with_table, xray
from dicom_samples import ORIGIN, SPACING, colour, enhanced, phantom
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, Sequence
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_rescale

from monai_labelfx.data._dicom_pixels import frame_values, functional, is_projection, stored_values
from monai_labelfx.data._reading import ImageFileError


def values_of(image: Dataset, index=None, **options) -> list:
    return frame_values(image, index, "a.dcm", **options).array.ravel().tolist()


# --- functional groups


def test_a_value_of_a_frame_comes_before_the_shared_one_and_the_top_level():
    image = Dataset()
    image.RescaleSlope = 9
    assert functional(image, None, "PixelValueTransformationSequence", "RescaleSlope") == 9
    assert functional(image, 0, "PixelValueTransformationSequence", "RescaleIntercept", 7) == 7

    def group(**elements) -> Dataset:
        outer, inner = Dataset(), Dataset()
        for keyword, value in elements.items():
            setattr(inner, keyword, value)
        outer.PixelValueTransformationSequence = Sequence([inner])
        return outer

    image.SharedFunctionalGroupsSequence = Sequence([group(RescaleSlope=8, RescaleIntercept=-8)])
    image.PerFrameFunctionalGroupsSequence = Sequence([group(RescaleSlope=1), group(RescaleSlope=None), Dataset()])
    found = [functional(image, n, "PixelValueTransformationSequence", "RescaleSlope") for n in (0, 1, 2, 3, None)]
    assert found == [1, 8, 8, 8, 9]
    assert functional(image, 0, "PixelValueTransformationSequence", "RescaleIntercept") == -8


def test_each_frame_has_its_own_slope():
    array = phantom((6, 5, 4))
    image = enhanced(array)
    heights = [functional(image, n, "PlanePositionSequence", "ImagePositionPatient")[2] for n in range(4)]
    for index, height in enumerate(heights):
        found = frame_values(image, index, "a.dcm")
        assert (found.kind, found.padding) == ("rescaled", "")
        assert np.array_equal(found.array, array[:, :, round((height - ORIGIN[2]) / SPACING[2])].T)
    expected = 2 * stored_values(image, 2, "a.dcm") + 5.0
    others = frame_values(image, 3, "a.dcm").array
    own = Dataset()
    own.RescaleSlope, own.RescaleIntercept = 2, 5
    image.PerFrameFunctionalGroupsSequence[2].PixelValueTransformationSequence = Sequence([own])
    assert np.array_equal(frame_values(image, 2, "a.dcm").array, expected)
    assert np.array_equal(frame_values(image, 3, "a.dcm").array, others)


# --- modality transform


@settings(max_examples=150)
@given(
    dtype=st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4"]),
    slope=st.one_of(st.integers(-300, 300).filter(bool), st.sampled_from([0.1, -0.5, 1.000244, 3.7e-5])),
    intercept=st.one_of(st.integers(-(2**20), 2**20), st.sampled_from([-1024.5, 0.1])),
    data=st.data(),
)
def test_values_are_rounded_once(dtype, slope, intercept, data):
    info = np.iinfo(dtype)
    stored = data.draw(st.lists(st.integers(info.min, info.max), min_size=6, max_size=6))
    image = ct(stored, dtype=dtype, stored=info.bits, slope=slope, intercept=intercept)
    found = frame_values(image, None, "a.dcm")
    expected = [np.float64(value) * float(slope) + float(intercept) for value in stored]
    assert found.array.dtype == (np.float64 if info.bits > 24 else np.float32)
    assert found.array.ravel().tolist() == np.array(expected).astype(found.array.dtype).tolist()
    exact = [value * slope + intercept for value in stored]
    if all(isinstance(value, int) and abs(value) < 2**24 for value in exact):
        assert found.array.ravel().tolist() == exact


@pytest.mark.parametrize(
    ("slope", "intercept", "expected"),
    [(None, None, [0, 5]), (2, None, [0, 10]), (None, -7, [-7, -2]), ("", "", [0, 5]), (-1, 3, [3, -2])],
)
def test_a_missing_slope_is_1_and_a_missing_intercept_0(slope, intercept, expected):
    assert values_of(ct([0, 5], slope=slope, intercept=intercept)) == expected


def test_a_modality_table_comes_before_the_slope():
    image = with_table(ct([0, 9, 10, 11, 60], slope=5, intercept=1), "ModalityLUTSequence", 9, [7, 300, 65535])
    assert values_of(image) == [7, 7, 300, 65535, 65535]


@pytest.mark.parametrize(("keyword", "dtype"), [("FloatPixelData", "f4"), ("DoubleFloatPixelData", "f8")])
def test_floating_point_pixels_are_rescaled_in_their_own_precision(keyword, dtype):
    values = np.array([[0.1, -3.7]], dtype)
    image = ct([[0, 0]], slope=0.3, intercept=1)
    del image.PixelData
    setattr(image, keyword, values.tobytes())
    found = frame_values(image, None, "a.dcm").array
    assert found.dtype == dtype and np.array_equal(found, (values.astype("f8") * 0.3 + 1).astype(dtype))
    with pytest.raises(ImageFileError, match="'a.dcm' has no whole numbers .* display=False"):
        frame_values(image, None, "a.dcm", display=True)


def test_the_array_is_new_and_can_be_written_to():
    image = ct([[1, 2], [3, 4]])
    frame_values(image, None, "a.dcm").array[:] = 0
    assert values_of(image) == [1, 2, 3, 4]


def test_colour_is_given_as_it_is_stored():
    image = colour()
    found = frame_values(image, None, "a.dcm", display=True, padding_fill=0)
    assert (found.kind, found.padding, found.array.dtype) == ("rescaled", "", np.uint8)
    assert found.array.tobytes() == image.PixelData


@pytest.mark.parametrize("name", ["CT_small", "693_J2KI", "MR_small_bigendian", "rtdose_1frame"])
def test_files_of_pydicom(name):
    image = pydicom.dcmread(get_testdata_file(f"{name}.dcm"))
    found = frame_values(image, None, "a.dcm").array
    assert np.array_equal(found, apply_rescale(image.pixel_array, image))


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("RescaleSlope", b"0"),
        ("RescaleSlope", b"nan"),
        ("RescaleSlope", b"1\\2"),
        ("RescaleSlope", b"DOE^JOHN"),
        ("RescaleIntercept", b"inf"),
        ("RescaleIntercept", b"1e999"),
        ("RescaleIntercept", b"DOE^JOHN"),
    ],
)
def test_an_unusable_slope_is_named_without_its_text(keyword, value):
    image = planted(ct([1, 2]), keyword, "DS", value)
    with pytest.raises(ImageFileError, match=f"'a.dcm' has .*{keyword}") as error:
        frame_values(image, None, "a.dcm")
    assert "DOE" not in str(error.value) and error.value.__cause__ is None


# --- display of projection X-ray


@pytest.mark.parametrize(
    ("sop_class", "modality", "expected"),
    [
        *((STORAGE + end, "", True) for end in ("1", "1.1", "1.1.1", "1.2", "1.2.1", "1.3", "12.1", "12.2", "12.1.1")),
        *(("1.2.840.10008.5.1.4.1.1.7", modality, True) for modality in ("CR", "DX", "MG", "IO", "PX", "RG", "RF")),
        *(("1.2.840.10008.5.1.4.1.1.7", modality, False) for modality in ("OT", "US", "", None)),
        (STORAGE + "2", "CT", False),
        (STORAGE + "2", "XA", False),  # cone-beam CT of an angiography system
        (STORAGE + "13.1.3", "MG", False),  # tomosynthesis
        (STORAGE + "13.1.1", "XA", False),
        (STORAGE + "4", "MR", False),
        (None, "DX", True),
    ],
)
def test_what_counts_as_projection(sop_class, modality, expected):
    image = Dataset()
    image.Modality = modality
    if sop_class:
        image.SOPClassUID = sop_class
    assert is_projection(image) is expected


def test_display_can_be_forced_and_switched_off():
    image = xray([0, 1, 4095])
    assert (values_of(image), values_of(image, display=False)) == ([4095, 4094, 0], [0, 1, 4095])
    assert frame_values(image, None, "a.dcm").kind == "display"
    assert frame_values(image, None, "a.dcm", display=False).kind == "rescaled"
    scan = ct([0, 1, 4095], stored=12, PhotometricInterpretation="MONOCHROME1")
    assert (values_of(scan), values_of(scan, display=True)) == ([0, 1, 4095], [4095, 4094, 0])


def displayed(value: int, limits, slope, intercept, window, turned: bool) -> float:
    """PS3.4 N.2, for one value."""
    low, high = sorted(limit * slope + intercept for limit in limits)
    value = value * slope + intercept
    if window:
        center, width = window[0] - 0.5, window[1] - 1
        if value <= center - width / 2:
            value = low
        elif value > center + width / 2:
            value = high
        else:
            value = ((value - center) / width + 0.5) * (high - low) + low
    return low + high - value if turned else value


@given(
    values=st.lists(st.integers(-2048, 2047), min_size=1, max_size=8),
    signed=st.booleans(),
    slope=st.sampled_from([1, 0.25, -2]),
    intercept=st.sampled_from([0, -100.5]),
    window=st.one_of(st.none(), st.tuples(st.integers(-3000, 3000), st.integers(2, 4000))),
    photometric=st.sampled_from(["MONOCHROME1", "MONOCHROME2"]),
)
def test_display_is_that_of_the_standard(values, signed, slope, intercept, window, photometric):
    limits = (-2048, 2047) if signed else (0, 4095)
    values = values if signed else [value + 2048 for value in values]
    image = xray(values, dtype="i2" if signed else "u2", photometric=photometric, slope=slope, intercept=intercept)
    if window:
        image.WindowCenter, image.WindowWidth = [window[0], 5], [window[1], 6]  # the first one counts
    expected = [displayed(v, limits, slope, intercept, window, photometric == "MONOCHROME1") for v in values]
    assert np.allclose(values_of(image), expected, rtol=1e-6, atol=1e-3)


def test_turning_over_twice_gives_the_values_back():
    values = np.random.default_rng(0).integers(0, 4096, (5, 6))
    once = frame_values(xray(values), None, "a.dcm").array
    assert np.array_equal(frame_values(xray(once.astype("u2")), None, "a.dcm").array, values)


def test_a_voi_table_comes_before_the_window_and_is_turned_over_in_its_own_range():
    image = xray([99, 100, 101, 102, 103], WindowCenter=1, WindowWidth=2)
    with_table(image, "VOILUTSequence", 100, [10, 500, 1000])
    assert values_of(image) == [1000, 1000, 510, 10, 10]
    image.PhotometricInterpretation = "MONOCHROME2"
    assert values_of(image) == [10, 10, 500, 1000, 1000]


def test_a_voi_table_after_a_negative_intercept_starts_below_zero():
    image = xray([0, 10, 20], photometric="MONOCHROME2", intercept=-10)
    assert values_of(with_table(image, "VOILUTSequence", 65526, list(range(21)))) == [0, 10, 20]


def test_each_frame_has_its_own_window():
    image = xray(np.zeros((1, 3)), photometric="MONOCHROME2")
    image.NumberOfFrames, image.PixelData = 2, np.array([0, 10, 4000, 0, 10, 4000], "u2").tobytes()
    frames = []
    for center, width in ((5.5, 11), (2000.5, 4001)):
        window, frame = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth, window.VOILUTFunction = center, width, "LINEAR"
        frame.FrameVOILUTSequence = Sequence([window])
        frames.append(frame)
    image.PerFrameFunctionalGroupsSequence = Sequence(frames)
    assert values_of(image, 0) == [0, 4095, 4095]
    assert np.allclose(values_of(image, 1), [0, 10 * 4095 / 4000, 4095], rtol=1e-6)


def test_the_modality_table_of_angiography_is_no_part_of_the_display():
    image = with_table(ct([0, 1, 2]), "ModalityLUTSequence", 0, [100, 10, 1])
    image.SOPClassUID, image.Modality = STORAGE + "12.1", "XA"
    assert (values_of(image), values_of(image, display=False)) == ([0, 1, 2], [100, 10, 1])
    image.SOPClassUID, image.Modality = MAMMOGRAPHY, "MG"
    assert values_of(image) == [100, 10, 1]


@pytest.mark.parametrize(
    "elements",
    [
        {"WindowCenter": 1, "WindowWidth": 0},
        {"WindowCenter": 1, "WindowWidth": -5},
        {"WindowCenter": 1, "WindowWidth": 5, "VOILUTFunction": "OTHER"},
        {"photometric": ""},
    ],
)
def test_what_cannot_be_displayed_can_be_read_without_display(elements):
    image = xray([1, 2], **elements)
    with pytest.raises(ImageFileError, match=r"'a.dcm' .*display=False"):
        frame_values(image, None, "a.dcm")
    assert values_of(image, display=False) == [1, 2]


# --- the rest of the header


@pytest.mark.parametrize("keyword", ["WindowCenter", "PixelPaddingValue", "VOILUTSequence", "ModalityLUTSequence"])
def test_no_text_of_a_broken_header_gets_out(keyword, caplog):
    image = planted(xray([1, 2], WindowWidth=5, WindowCenter=1), keyword, "LO", b"DOE^JOHN")
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ImageFileError, match="'a.dcm'") as error:
            frame_values(image, None, "a.dcm")
    texts = [str(error.value), caplog.text, *(str(warning.message) for warning in caught)]
    assert not [text for text in texts if "DOE" in text]


@pytest.mark.sample_data
def test_a_real_ct_slice_is_what_pydicom_makes_of_it():
    files = sorted(Path(os.environ["LABELFX_DATA"]).glob("ct/*/**/*.dcm"))
    for path in (files[0], files[len(files) // 2], files[-1]):
        image = pydicom.dcmread(path)
        found = frame_values(image, None, str(path))
        assert found.kind == "rescaled"
        assert np.array_equal(found.array, apply_rescale(image.pixel_array, image))
