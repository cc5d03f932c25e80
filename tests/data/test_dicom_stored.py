# SPDX-License-Identifier: Apache-2.0
"""Stored values: bit depths, signs, byte orders, colour, lengths; each against values that were packed by hand."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from dicom_frame_samples import planted
from dicom_samples import colour, new_slice
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_color_lut
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from monai_labelfx.data._dicom_pixels import stored_values
from monai_labelfx.data._reading import ImageFileError


def image_of(data: bytes, *, allocated=16, stored=16, high=None, signed=0, frames=None, rows=2, columns=3):
    image = new_slice(np.zeros((rows, columns), "u2"))
    image.BitsAllocated, image.BitsStored, image.PixelRepresentation = allocated, stored, signed
    image.HighBit = stored - 1 if high is None else high
    if frames is not None:
        image.NumberOfFrames = frames
    image.PixelData = data
    return image


@settings(max_examples=200)
@given(st.data())
def test_every_bit_depth_position_and_sign(data):
    allocated = data.draw(st.sampled_from([8, 16, 32]))
    stored = data.draw(st.integers(1, allocated))
    high = data.draw(st.integers(stored - 1, allocated - 1))
    signed = data.draw(st.integers(0, 1))
    syntax = data.draw(st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]))
    low, top = (-(1 << stored - 1), (1 << stored - 1) - 1) if signed else (0, (1 << stored) - 1)
    values = data.draw(st.lists(st.integers(low, top), min_size=12, max_size=12))
    around = data.draw(st.lists(st.integers(0, (1 << allocated) - 1), min_size=12, max_size=12))
    mask = ((1 << stored) - 1) << (high + 1 - stored)
    order = "big" if syntax == ExplicitVRBigEndian else "little"
    packed = [(value << (high + 1 - stored)) & mask | junk & ~mask for value, junk in zip(values, around, strict=True)]
    content = b"".join(number.to_bytes(allocated // 8, order) for number in packed)
    image = image_of(content, allocated=allocated, stored=stored, high=high, signed=signed, frames=2)
    image.file_meta.TransferSyntaxUID = syntax
    image["PixelData"].VR = "OB" if allocated == 8 else "OW"
    for index in (0, 1):
        found = stored_values(image, index, "a.dcm")
        assert found.dtype.isnative and found.tolist() == np.reshape(values, (2, 2, 3))[index].tolist()


def test_an_overlay_in_the_unused_bits_is_not_seen():
    image = image_of(np.array([0x8FFF, 0x1000, 0xF001, 0, 7, 0x4008], "<u2").tobytes(), stored=12)
    assert stored_values(image, None, "a.dcm").tolist() == [[4095, 0, 1], [0, 7, 8]]
    image.PixelRepresentation = 1
    assert stored_values(image, None, "a.dcm").tolist() == [[-1, 0, 1], [0, 7, 8]]


@pytest.mark.parametrize(("keyword", "dtype"), [("FloatPixelData", "f4"), ("DoubleFloatPixelData", "f8")])
@pytest.mark.parametrize("order", "<>")
def test_floating_point_pixels(keyword, dtype, order):
    values = np.array([[1.5, -2.25, 1e-30], [np.pi, 0, np.nan]], order + dtype)
    image = image_of(b"")
    for name in ("PixelData", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(image, name)
    setattr(image, keyword, values.tobytes())
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if order == "<" else ExplicitVRBigEndian
    found = stored_values(image, None, "a.dcm")
    assert found.dtype == np.dtype(dtype) and np.array_equal(found, values, equal_nan=True)


def test_a_frame_is_a_view_and_not_a_copy_of_all_frames():
    image = image_of(np.arange(60, dtype="<i2").tobytes(), frames=10, signed=1)
    whole = np.frombuffer(image.PixelData, "<i2")
    found = stored_values(image, 7, "a.dcm")
    assert np.shares_memory(found, whole) and found.ravel().tolist() == list(range(42, 48))


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_colour_planes_and_pixels(planar, dtype):
    image = colour((5, 3))
    pixels = np.random.default_rng(0).integers(0, 250, (3, 5, 3)).astype(dtype)
    image.BitsAllocated = image.BitsStored = 8 * pixels.itemsize
    image.HighBit = image.BitsStored - 1
    image.PlanarConfiguration = planar
    image.PixelData = (pixels.transpose(2, 0, 1) if planar else pixels).tobytes() + bytes(len(pixels.tobytes()) % 2)
    found = stored_values(image, None, "a.dcm")
    assert found.shape == (3, 5, 3) and found.dtype == dtype and np.array_equal(found, pixels)


def to_rgb(y: float, blue: float, red: float) -> list[float]:
    """PS3.3 C.7.6.3.1.2, the inverse of YBR_FULL."""
    r = y + 1.402 * (red - 128)
    b = y + 1.772 * (blue - 128)
    return [min(max(v, 0), 255) for v in (r, (y - 0.299 * r - 0.114 * b) / 0.587, b)]


def test_luminance_and_chrominance_become_rgb():
    ybr = np.random.default_rng(1).integers(0, 256, (4, 6, 3)).astype("u1")
    ybr[:, 1::2, 1:] = ybr[:, ::2, 1:]  # two pixels share their colour, so that both forms can hold it
    expected = [[to_rgb(*map(float, pixel)) for pixel in row] for row in ybr]
    image = colour((6, 4))
    image.PhotometricInterpretation, image.PixelData = "YBR_FULL", ybr.tobytes()
    full = stored_values(image, None, "a.dcm")
    assert np.abs(full - np.array(expected)).max() <= 0.51
    pairs = [[a[0], b[0], a[1], a[2]] for row in ybr for a, b in zip(row[::2], row[1::2], strict=True)]
    image.PhotometricInterpretation, image.PixelData = "YBR_FULL_422", bytes(np.array(pairs).ravel().tolist())
    assert np.array_equal(stored_values(image, None, "a.dcm"), full)


def test_full_colour_named_422_is_refused():
    image = colour((6, 4))
    image.PhotometricInterpretation = "YBR_FULL_422"
    with pytest.raises(ImageFileError, match="'a.dcm' has 72 bytes of pixels, expected 48"):
        stored_values(image, None, "a.dcm")


NATIVE = [
    *("CT_small", "MR_small", "MR_small_implicit", "MR_small_bigendian", "MR_small_expb", "MR_small_padded"),
    *("ExplVR_BigEnd", "SC_rgb_small_odd", "SC_rgb_small_odd_big_endian", "SC_ybr_full_422_uncompressed"),
    *("examples_overlay", "examples_rgb_color", "image_dfl", "liver_1frame", "liver_expb_1frame"),
    *("rtdose_1frame", "rtdose_expb_1frame"),
]


@pytest.mark.parametrize("name", NATIVE)
def test_uncompressed_files_of_pydicom(name):
    image = pydicom.dcmread(get_testdata_file(f"{name}.dcm"))
    assert np.array_equal(stored_values(image, None, "a.dcm"), image.pixel_array)


def test_a_multi_frame_file_of_pydicom():
    image = pydicom.dcmread(get_testdata_file("rtdose.dcm"))
    for index in (0, 7, 14):
        assert np.array_equal(stored_values(image, index, "a.dcm"), image.pixel_array[index])


def test_the_palette_of_a_file():
    image = pydicom.dcmread(get_testdata_file("examples_palette.dcm"))
    expected = apply_color_lut(image.pixel_array, image)
    assert np.array_equal(stored_values(image, None, "a.dcm"), expected)


def test_a_file_without_a_meta_header_is_read_as_pydicom_found_it(tmp_path):
    expected = pydicom.dcmread(get_testdata_file("MR_small.dcm")).pixel_array
    for name in ("MR_small_implicit", "MR_small_bigendian"):
        image = pydicom.dcmread(get_testdata_file(f"{name}.dcm"))
        del image.file_meta
        assert np.array_equal(stored_values(image, None, "a.dcm"), expected)


def test_a_deflated_file(tmp_path):
    image = image_of(np.arange(6, dtype="<u2").tobytes())
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    image.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert stored_values(pydicom.dcmread(tmp_path / "a.dcm"), None, "a.dcm").ravel().tolist() == list(range(6))


def test_a_truncated_file_is_named_with_both_lengths():
    image = pydicom.dcmread(get_testdata_file("MR_truncated.dcm"))
    with pytest.raises(ImageFileError, match=r"'a.dcm' has 8130 bytes of pixels, expected 8192 for 1 frame\(s\) of 64"):
        stored_values(image, None, "a.dcm")


@pytest.mark.parametrize("frames", [None, 3])
def test_padding_behind_the_pixels_is_accepted_up_to_half_a_frame(frames):
    content = np.arange(6 * (frames or 1), dtype="<u2").tobytes()
    index = None if frames is None else frames - 1
    for extra in (0, 1, 2, 5):
        found = stored_values(image_of(content + bytes(extra), frames=frames), index, "a.dcm")
        assert found.ravel().tolist() == list(range(6 * (frames or 1)))[-6:]
    for extra in (-1, -2, 6, 12, 120):
        data = content + bytes(extra) if extra > 0 else content[:extra]
        with pytest.raises(ImageFileError, match=f"has {len(data)} bytes of pixels, expected {len(content)}"):
            stored_values(image_of(data, frames=frames), index, "a.dcm")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_header_that_announces_terabytes_is_refused_before_they_are_allocated(compressed):
    image = image_of(b"\xfe\xff\x00\xe0" + bytes(60), frames=100000)
    image.Rows = image.Columns = 65535
    if compressed:
        image.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90"
    with pytest.raises(ImageFileError, match=r"'a.dcm' has 64 bytes of .*pixels.*65535 rows"):
        stored_values(image, 1, "a.dcm")


@pytest.mark.parametrize(("frames", "index"), [(None, 1), (3, 3), (3, None), (3, -1)])
def test_a_frame_that_is_not_there_is_named(frames, index):
    image = image_of(bytes(12 * (frames or 1)), frames=frames)
    with pytest.raises(ImageFileError, match=rf"'a.dcm' has {frames or 1} frame\(s\), expected"):
        stored_values(image, index, "a.dcm")


@pytest.mark.parametrize(
    "keyword", ["Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "PixelData"]
)
def test_a_missing_element_is_named(keyword):
    image = image_of(bytes(12))
    delattr(image, keyword)
    with pytest.raises(ImageFileError, match=f"'a.dcm' .*no.* {keyword}"):
        stored_values(image, None, "a.dcm")


@pytest.mark.parametrize(
    ("keyword", "vr", "value"),
    [
        ("Rows", "US", b""),
        ("Rows", "US", b"\x01"),
        ("Rows", "LO", b"DOE^JOHN"),
        ("Columns", "US", b"\x02\0\x03\0"),
        ("NumberOfFrames", "IS", b"DOE^JOHN"),
        ("NumberOfFrames", "IS", b"-2"),
        ("BitsStored", "SS", b"\xff\xff"),
    ],
)
def test_a_broken_element_is_named_without_its_text(keyword, vr, value):
    with pytest.raises(ImageFileError, match=f"'a.dcm' has no usable {keyword}, expected one whole number") as error:
        stored_values(planted(image_of(bytes(12)), keyword, vr, value), None, "a.dcm")
    assert "DOE" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"BitsAllocated": 12},
        {"BitsAllocated": 64},
        {"BitsStored": 17, "HighBit": 16},
        {"BitsStored": 0},
        {"HighBit": 16},
        {"BitsStored": 12, "HighBit": 10},
    ],
)
def test_impossible_bits_are_named(changes):
    image = image_of(bytes(12))
    for keyword, value in changes.items():
        setattr(image, keyword, value)
    with pytest.raises(ImageFileError, match=r"'a.dcm' has BitsAllocated \d+, BitsStored \d+ and HighBit -?\d+"):
        stored_values(image, None, "a.dcm")


@pytest.mark.parametrize(
    "changes",
    [
        {"SamplesPerPixel": 4, "PhotometricInterpretation": "CMYK"},
        {"SamplesPerPixel": 2},
        {"SamplesPerPixel": 3, "PhotometricInterpretation": "MONOCHROME2"},
        {"PhotometricInterpretation": "RGB"},
        {"PhotometricInterpretation": "DOE^JOHN"},
    ],
)
def test_impossible_samples_are_named_without_their_text(changes):
    image = image_of(bytes(12))
    for keyword, value in changes.items():
        setattr(image, keyword, value)
    with pytest.raises(ImageFileError, match=r"'a.dcm' has \d samples per pixel") as error:
        stored_values(image, None, "a.dcm")
    assert "DOE" not in str(error.value)


def test_an_image_without_pixels_is_named():
    with pytest.raises(ImageFileError, match="'a.dcm' has 0 rows and 3 columns"):
        stored_values(image_of(b"", rows=0), None, "a.dcm")


def test_colour_that_cannot_be_converted_is_refused():
    image = colour((5, 4))
    image.PhotometricInterpretation, image.BitsAllocated, image.BitsStored, image.HighBit = "YBR_FULL", 16, 16, 15
    image.PixelData = bytes(120)
    with pytest.raises(ImageFileError, match="'a.dcm' .* cannot be decoded .*or the header is wrong"):
        stored_values(image, None, "a.dcm")
    image.PhotometricInterpretation = "YBR_RCT"  # only inside JPEG 2000
    with pytest.raises(ImageFileError, match="'a.dcm' .*colours"):
        stored_values(image, None, "a.dcm")
