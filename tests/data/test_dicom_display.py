# SPDX-License-Identifier: Apache-2.0
"""Lookup tables, windows and palettes against the formulas of PS3.3, written out one value at a time."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_color_lut, apply_windowing

from monai_labelfx.data._dicom_display import lookup_table, palette_colours, windowed
from monai_labelfx.data._reading import ImageFileError


def looked_up(value: float, first: int, entries: list[int]) -> int:
    """C.11.1.1: the first entry for all up to ``first``, the last for all from its number on."""
    if value <= first:
        return entries[0]
    return entries[-1] if value >= first + len(entries) else entries[int(value) - first]


def seen_through(value: float, center: float, width: float, function: str, low: float, high: float) -> float:
    """C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2."""
    if function == "SIGMOID":
        power = -4.0 * (value - center) / width
        return low if power > 700 else (high - low) / (1.0 + math.exp(power)) + low
    shift, less = (0.5, 1.0) if function == "LINEAR" else (0.0, 0.0)
    if value <= center - shift - (width - less) / 2:
        return low
    if value > center - shift + (width - less) / 2:
        return high
    return ((value - (center - shift)) / (width - less) + 0.5) * (high - low) + low


@given(
    first=st.integers(-300, 300),
    entries=st.lists(st.integers(0, 4095), min_size=2, max_size=40),
    values=st.lists(st.integers(-32768, 32767), min_size=1, max_size=20),
    kind=st.sampled_from(["little", "big", "numbers"]),
)
def test_a_table_is_that_of_the_standard(first, entries, values, kind):
    data = entries if kind == "numbers" else np.array(entries, "<u2" if kind == "little" else ">u2").tobytes()
    table = lookup_table([len(entries), first, 12], data, "a.dcm", signed=True, little_endian=kind != "big")
    near = [first - 1, first, first + 1, first + len(entries) - 1, first + len(entries)]
    inputs = np.array([*values, *near], "i2")
    assert table(inputs).tolist() == [looked_up(value, first, entries) for value in inputs.tolist()]
    assert table(inputs.astype(np.float64) + 0.3).tolist() == table(inputs).tolist()


@pytest.mark.parametrize(
    ("data", "bits"),
    [
        (bytes([5, 6, 7]), 8),
        (bytes([5, 6, 7, 0]), 8),  # padded to an even length
        ([0x0605, 0x0007], 8),  # two entries in one word
        ([5, 6, 7], 8),
        (bytes([5, 0, 6, 0, 7, 0]), 8),
    ],
)
def test_entries_of_8_bits_in_all_their_packings(data, bits):
    table = lookup_table([3, 10, bits], data, "a.dcm", signed=False, little_endian=True)
    assert table(np.arange(9, 14, dtype="u1")).tolist() == [5, 5, 6, 7, 7]


def test_a_count_of_0_means_65536_and_one_entry_is_enough():
    entries = np.arange(65536, dtype="<u2")[::-1]
    table = lookup_table([0, 0, 16], entries.tobytes(), "a.dcm", signed=False, little_endian=True)
    assert table(np.array([0, 1, 65535], "u2")).tolist() == [65535, 65534, 0]
    one = lookup_table([1, 0, 16], 77, "a.dcm", signed=False, little_endian=True)
    assert one(np.array([0, 9], "u1")).tolist() == [77, 77]


@pytest.mark.parametrize(("written", "signed", "meant"), [(65036, True, -500), (-500, False, 65036), (-3, True, -3)])
def test_the_first_value_has_the_sign_of_the_input(written, signed, meant):
    table = lookup_table([2, written, 16], [1, 2], "a.dcm", signed=signed, little_endian=True)
    assert table(np.array([meant, meant + 1], "i4")).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("descriptor", "data", "what"),
    [
        (None, [1], "descriptor of three"),
        ([3, 0], [1, 2, 3], "descriptor of three"),
        (["a", 0, 8], [1], "descriptor of three"),
        ([2, 0, 16], None, "and its data"),
        ([4, 0, 16], [1, 2, 3], "3 entries of 16 bits, expected 4"),
        ([400, 0, 16], bytes(600), "300 entries of 16 bits, expected 400"),
        ([2, 0, 17], [1, 2], "of 17 bits"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(descriptor, data, what):
    with pytest.raises(ImageFileError, match=f"'a.dcm' has a lookup table .*{what}"):
        lookup_table(descriptor, data, "a.dcm", signed=False, little_endian=True)


@given(
    center=st.floats(-2000, 2000),
    width=st.floats(1, 4000),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
    limits=st.sampled_from([(0.0, 255.0), (-1024.0, 3071.0), (0.5, 0.75)]),
    values=st.lists(st.integers(-5000, 5000), min_size=1, max_size=20),
)
def test_a_window_is_that_of_the_standard(center, width, function, limits, values):
    inputs = np.array([*values, round(center - width / 2), round(center), round(center + width / 2)], np.float64)
    expected = [seen_through(value, center, width, function, *limits) for value in inputs]
    found = windowed(inputs.copy(), center, width, function, limits, "a.dcm")
    assert np.allclose(found, expected, rtol=1e-12, atol=1e-9 * (limits[1] - limits[0]))
    assert found.min() >= limits[0] and found.max() <= limits[1]


@pytest.mark.parametrize(
    ("function", "inputs", "outputs"),
    [
        ("LINEAR", [-1, 0, 2047.5, 4095, 5000], [0, 0, 127.5, 255, 255]),  # the example of the standard
        ("LINEAR_EXACT", [-1, 0, 2048, 4095, 4096, 5000], [0, 0, 127.5, 255 * 4095 / 4096, 255, 255]),
        ("SIGMOID", [2048], [127.5]),
    ],
)
def test_a_window_by_hand(function, inputs, outputs):
    found = windowed(np.array(inputs, np.float64), 2048, 4096, function, (0, 255), "a.dcm")
    assert np.allclose(found, outputs, rtol=0, atol=1e-12)


def test_the_narrowest_linear_window_is_a_step():
    found = windowed(np.array([9.0, 9.5, 10.0, 11.0]), 10, 1, "LINEAR", (0, 255), "a.dcm")
    assert found.tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_pydicom_sees_the_same_through_a_window(function):
    image = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    image.WindowCenter, image.WindowWidth, image.VOILUTFunction = -100, 777, function
    values = image.pixel_array * 1.0 - 1024
    limits = (-32768.0 - 1024, 32767.0 - 1024)
    found = windowed(values.copy(), -100, 777, function, limits, "a.dcm")
    assert np.allclose(found, apply_windowing(values, image), rtol=1e-12, atol=1e-7)


def test_far_from_a_sigmoid_window_nothing_overflows():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = windowed(np.array([-1e6, 0, 1e6]), 0, 1, "SIGMOID", (0, 1), "a.dcm")
    assert found.tolist() == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("center", "width", "function"),
    [(0, 0.5, "LINEAR"), (0, 0, "LINEAR_EXACT"), (0, -1, "SIGMOID"), (math.nan, 5, "LINEAR"), (0, math.inf, "LINEAR")],
)
def test_an_impossible_window_is_named(center, width, function):
    with pytest.raises(ImageFileError, match=r"'a.dcm' has a \w+ window of center .* display=False"):
        windowed(np.zeros(3), center, width, function, (0, 1), "a.dcm")


def test_an_unknown_function_is_named_without_its_text():
    with pytest.raises(ImageFileError, match="VOILUTFunction") as error:
        windowed(np.zeros(3), 0, 1, "DOE^JOHN", (0, 1), "a.dcm")
    assert "DOE" not in str(error.value)


@pytest.mark.parametrize("first", [0, -3])
def test_a_palette_is_three_tables(first):
    image = pydicom.Dataset()
    entries = {colour: [7 * k + n for k in range(5)] for n, colour in enumerate(("Red", "Green", "Blue"))}
    for colour, numbers in entries.items():
        setattr(image, f"{colour}PaletteColorLookupTableDescriptor", [5, first, 16])
        setattr(image, f"{colour}PaletteColorLookupTableData", np.array(numbers, "<u2").tobytes())
    indices = np.arange(-6, 6, dtype="i1").reshape(3, 4)
    found = palette_colours(indices, image, "a.dcm", signed=True, little_endian=True)
    expected = [[[looked_up(v, first, entries[c]) for c in entries] for v in row] for row in indices.tolist()]
    assert found.dtype == np.uint16 and found.tolist() == expected


def test_a_palette_of_more_entries_than_its_own_type_counts():
    """pydicom's function maps these through an 8-bit index."""
    image = pydicom.Dataset()
    for colour in ("Red", "Green", "Blue"):
        setattr(image, f"{colour}PaletteColorLookupTableDescriptor", [1000, 0, 8])
        setattr(image, f"{colour}PaletteColorLookupTableData", bytes(k % 251 for k in range(1000)))
    found = palette_colours(np.array([[0, 300, 999]], "u2"), image, "a.dcm", signed=False, little_endian=True)
    assert found.dtype == np.uint8 and found[0, :, 0].tolist() == [0, 49, 246]


def test_the_palette_of_a_real_file():
    image = pydicom.dcmread(get_testdata_file("examples_palette.dcm"))
    found = palette_colours(image.pixel_array, image, "a.dcm", signed=False, little_endian=True)
    assert np.array_equal(found, apply_color_lut(image.pixel_array, image))


def test_a_segmented_palette_is_expanded():
    image = pydicom.Dataset()
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    segments = np.array([0, 2, 10, 20, 1, 4, 60], "<u2").tobytes()  # two values, then a ramp of four up to 60
    for colour in ("Red", "Green", "Blue"):
        setattr(image, f"{colour}PaletteColorLookupTableDescriptor", [6, 1, 16])
        setattr(image, f"Segmented{colour}PaletteColorLookupTableData", segments)
    found = palette_colours(np.arange(9, dtype="u1")[None], image, "a.dcm", signed=False, little_endian=True)
    assert found[0, :, 1].tolist() == [10, 10, 20, 30, 40, 50, 60, 60, 60]


def test_a_palette_without_tables_is_named():
    with pytest.raises(ImageFileError, match="'a.dcm' has a lookup table that cannot be used"):
        palette_colours(np.zeros((2, 2), "u1"), pydicom.Dataset(), "a.dcm", signed=False, little_endian=True)
