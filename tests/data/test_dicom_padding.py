# SPDX-License-Identifier: Apache-2.0
"""Padding: found whatever its sign and width, in the units of the array, dark in a projection X-ray."""

from __future__ import annotations

import numpy as np
import pytest
from dicom_frame_samples import ct, planted, with_table, xray
from pydicom import Dataset

from monai_labelfx.data._dicom_pixels import frame_values
from monai_labelfx.data._reading import ImageFileError


def values_of(image: Dataset, index=None, **options) -> list:
    return frame_values(image, index, "a.dcm", **options).array.ravel().tolist()


@pytest.mark.parametrize(
    ("dtype", "written", "vr", "inside"),
    [
        ("i2", -2000, "SS", -2000),
        ("i2", 63536, "US", -2000),  # the sign lost, as many CT systems write it
        ("u2", -2000, "SS", 63536),
        ("u2", 4095, "US", 4095),
    ],
)
def test_padding_has_the_sign_of_the_pixels(dtype, written, vr, inside):
    image = ct([[inside, 5], [6, 7]], dtype=dtype, slope=2, intercept=-24)
    image.add_new("PixelPaddingValue", vr, written)
    found = frame_values(image, None, "a.dcm")
    assert float(found.padding) == found.array[0, 0] == 2 * inside - 24
    filled = frame_values(image, None, "a.dcm", padding_fill=-1000.1)
    assert filled.array[0, 0] == float(filled.padding) == np.float32(-1000.1)
    assert filled.array.ravel()[1:].tolist() == [-14, -12, -10]


def test_padding_of_12_bits_is_found_however_its_sign_is_written():
    image = ct([[0xF830, 5]], stored=12)  # -2000
    image.PixelRepresentation = 1
    for written in (-2000, 63536, 2096):
        image.add_new("PixelPaddingValue", "SS" if written < 0 else "US", written)
        found = frame_values(image, None, "a.dcm")
        assert (found.array.tolist(), found.padding) == ([[-2000, 5]], "-2000.0")


def test_padding_that_is_wider_than_the_stored_bits_stays_what_it_is():
    """Without its unused bits 63536 would become 2096, a value like that of bone."""
    image = ct([[63536, 2096, 5]], stored=12, intercept=-1024, PixelPaddingValue=63536)
    found = frame_values(image, None, "a.dcm")
    assert (found.array.tolist(), found.padding) == ([[62512, 1072, -1019]], "62512.0")
    assert values_of(image, padding_fill=-1024) == [-1024, 1072, -1019]


@pytest.mark.parametrize(("ends", "slope"), [((10, 12), 1), ((12, 10), 1), ((12, 10), -1)])
def test_a_range_of_padding(ends, slope):
    image = ct([[9, 10, 11, 12, 13]], slope=slope, PixelPaddingValue=ends[0], PixelPaddingRangeLimit=ends[1])
    found = frame_values(image, None, "a.dcm")
    assert found.padding == ("10.0 12.0" if slope == 1 else "-12.0 -10.0")
    assert found.array.ravel().tolist() == [slope * value for value in range(9, 14)]
    filled = frame_values(image, None, "a.dcm", padding_fill=0)
    assert (filled.array.ravel().tolist(), filled.padding) == ([slope * 9, 0, 0, 0, slope * 13], "0.0")


def test_padding_after_a_modality_table_and_a_slope_that_is_not_exact():
    image = with_table(ct([[5, 6, 7]]), "ModalityLUTSequence", 5, [30, 10, 20])
    image.PixelPaddingValue, image.PixelPaddingRangeLimit = 5, 7
    assert frame_values(image, None, "a.dcm").padding == "10.0 30.0"
    image = ct([[3, 7]], slope=0.1, PixelPaddingValue=3)
    found = frame_values(image, None, "a.dcm")
    assert float(found.padding) == found.array[0, 0]


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("window", [None, (2000, 2000)])
def test_padding_stays_dark_in_mammography(photometric, window):
    """The background of an inverted picture would turn white and hide the breast from every threshold."""
    image = xray([[0, 0, 1, 2000, 4000]], photometric=photometric, PixelPaddingValue=0)
    if window:
        image.WindowCenter, image.WindowWidth = window
    found = frame_values(image, None, "a.dcm")
    assert found.array[0, :2].tolist() == [0, 0] and found.padding == "0.0"
    bright, dark = found.array[0, [2, 4]] if photometric == "MONOCHROME1" else found.array[0, [4, 2]]
    assert bright > found.array[0, 3] > dark >= 0
    assert frame_values(image, None, "a.dcm", padding_fill=-1).array[0, :2].tolist() == [-1, -1]


def test_padding_is_as_dark_as_the_darkest_entry_of_a_table():
    image = with_table(xray([[0, 1, 2]], PixelPaddingValue=0), "VOILUTSequence", 0, [700, 600, 500])
    found = frame_values(image, None, "a.dcm")
    assert (found.array.tolist(), found.padding) == ([[500, 600, 700]], "500.0")


@pytest.mark.parametrize(("keyword", "dtype"), [("FloatPixelData", "f4"), ("DoubleFloatPixelData", "f8")])
def test_padding_of_floating_point_pixels(keyword, dtype):
    image = ct([[0, 0]], PixelPaddingValue=1)
    del image.PixelData
    setattr(image, keyword, np.array([-0.5, 2], dtype).tobytes())
    setattr(image, keyword.replace("PixelData", "PixelPaddingValue"), -0.5)
    found = frame_values(image, None, "a.dcm", padding_fill=9)
    assert (found.array.tolist(), found.padding) == ([[9, 2]], "9.0")


@pytest.mark.parametrize("value", [b"DOE^JOHN", b"1\\2"])
def test_unusable_padding_is_named_without_its_text(value):
    with pytest.raises(ImageFileError, match="'a.dcm' has no usable PixelPaddingValue") as error:
        frame_values(planted(ct([1]), "PixelPaddingValue", "LO", value), None, "a.dcm")
    assert "DOE" not in str(error.value)


def test_a_range_without_a_value_and_a_value_that_no_pixel_can_have_mean_nothing():
    assert frame_values(ct([5], PixelPaddingRangeLimit=5), None, "a.dcm").padding == ""
    image = ct([232, 1], dtype="u1", stored=8, PixelPaddingValue=1000)  # 232 is 1000 modulo 256
    assert values_of(image, padding_fill=-5) == [232, 1]
