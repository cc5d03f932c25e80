# SPDX-License-Identifier: Apache-2.0
"""The pixels of a derived image: its source's bit for bit where nothing changed, else the nearest stored values."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
import torch
from dicom_derived_samples import as_stored, by_position, read, series, write
from dicom_samples import enhanced, new_slice, phantom, save
from monai.transforms import (
    CenterSpatialCrop,
)

from monai_labelfx.data import _dicom_derived_pixels


def test_values_are_rounded_to_the_nearest_stored_value_and_clipped(tmp_path):
    source = series(tmp_path / "source", as_stored(bits=12, slope=lambda index: 0.5 * (1 + index % 2)))
    image = read(source)
    image[0] += torch.randn(image.shape[1:]) * 3
    image[0, 0, 0], image[0, 1, 1] = 1e9, -1e9
    made = by_position(write(image, tmp_path / "made"))
    for index, (new, values) in enumerate(zip(made, image.numpy()[0].T, strict=True)):
        slope = 0.5 * (1 + index % 2)
        expected = np.clip(np.rint((values.astype(np.float64) + 1024) / slope), 0, 4095)
        assert np.array_equal(new.pixel_array, expected)
        assert new.pixel_array[0, 0] == 4095 and new.pixel_array[1, 1] == 0


def test_frames_keep_their_own_slope_when_values_change(tmp_path):
    image = enhanced(phantom())
    image.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0].RescaleSlope = 0.5
    save(tmp_path / "source", [image])
    loaded = read(tmp_path / "source/0000.dcm")
    halved = write(loaded / 2, tmp_path / "made")
    assert float((read(halved) - loaded / 2).abs().max()) <= 0.25


PADDINGS = {
    "lowest value": ({"PixelPaddingValue": 0}, lambda stored: stored == 0, 1),
    "highest value": ({"PixelPaddingValue": 65535}, lambda stored: stored == 65535, 65534),
    "range": ({"PixelPaddingValue": 500, "PixelPaddingRangeLimit": 0}, lambda stored: stored <= 500, 501),
    "inner value": ({"PixelPaddingValue": 24}, lambda stored: stored == 24, 25),
}


@pytest.mark.parametrize("kind", PADDINGS)
@pytest.mark.parametrize("fill", [None, -3000.0])
def test_padding_stays_and_nothing_else_becomes_padding(tmp_path, kind, fill):
    header, is_padding, instead = PADDINGS[kind]

    def change(image, index):
        as_stored()(image, index)
        pixels = np.frombuffer(image.PixelData, "<u2").reshape(image.Rows, image.Columns).copy()
        pixels[:3, :3] = header["PixelPaddingValue"]
        image.PixelData = pixels.tobytes()
        for keyword, value in header.items():
            setattr(image, keyword, value)

    source = series(tmp_path / "source", change)
    image = read(source, padding_fill=fill)
    same = by_position(write(image, tmp_path / "same"))
    image[0] = header["PixelPaddingValue"] - 1024.0  # the whole picture would be padding
    made = by_position(write(image, tmp_path / "made"))
    for old, unchanged, new in zip(by_position(source), same, made, strict=True):
        padded = is_padding(old.pixel_array)
        assert padded.any() and unchanged.PixelData == old.PixelData
        assert np.array_equal(new.pixel_array, np.where(padded, old.pixel_array, instead))


def test_a_negative_padding_value_written_as_unsigned(tmp_path):
    def change(image, index):
        as_stored(signed=True)(image, index)
        pixels = np.frombuffer(image.PixelData, "<i2").reshape(image.Rows, image.Columns).copy()
        pixels[:2] = -2000
        image.PixelData = pixels.tobytes()
        image.add_new(0x00280120, "US", 63536)

    image = read(series(tmp_path / "source", change))
    image[0] = 5.0
    for new in by_position(write(image, tmp_path / "made")):
        assert (new.pixel_array[:2] == -2000).all() and (new.pixel_array[2:] == 1029).all()


STORED = {
    "unsigned 16": as_stored(),
    "signed 16": as_stored(signed=True, intercept=0),
    "12 of 16": as_stored(bits=12),
    "signed 12 of 16": as_stored(bits=12, signed=True, intercept=3.5),
    "8": as_stored(bits=8),
    "slope of its own for each slice": as_stored(bits=14, slope=lambda index: 0.37 + index / 7, intercept=0.0),
    "slope that is no binary fraction": as_stored(slope=lambda index: 0.0031, intercept=-12.7),
    "negative slope": as_stored(slope=lambda index: -2.5),
    "MONOCHROME1": lambda image, index: setattr(image, "PhotometricInterpretation", "MONOCHROME1"),
}


@pytest.mark.parametrize("kind", STORED)
def test_identity_gives_the_pixels_of_the_source_bit_for_bit(tmp_path, kind):
    source = series(tmp_path / "source", STORED[kind])
    image = read(source)
    assert image.meta["dicom_values"] == "rescaled"
    made = by_position(write(image, tmp_path / "made"))
    assert len(made) == 8
    for old, new in zip(by_position(source), made, strict=True):
        assert new.PixelData == old.PixelData and new["PixelData"].VR == old["PixelData"].VR
        for keyword in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PhotometricInterpretation"):
            assert new[keyword] == old[keyword]
        assert (new.RescaleSlope, new.RescaleIntercept) == (old.RescaleSlope, old.RescaleIntercept)


def _rle(image, index):
    image.compress(pydicom.uid.RLELossless, encoding_plugin="pydicom")


def _jpeg_ls(image, index):
    image.compress(pydicom.uid.JPEGLSLossless)


@pytest.mark.parametrize("compress", [_rle, _jpeg_ls])
def test_compressed_sources_become_uncompressed_with_equal_values(tmp_path, compress):
    plain = by_position(series(tmp_path / "plain"))
    source = series(tmp_path / "source", compress)
    made = by_position(write(read(source), tmp_path / "made"))
    for old, new in zip(plain, made, strict=True):
        assert new.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
        assert new.PixelData == old.PixelData and not new["PixelData"].is_undefined_length
    assert {image.SOPInstanceUID for image in by_position(source)}.isdisjoint(image.SOPInstanceUID for image in made)


def _x_ray(*, photometric: str = "MONOCHROME1", **header) -> pydicom.Dataset:
    pixels = np.random.default_rng(0).integers(0, 4096, (12, 16)).astype(np.uint16)
    pixels[0, :2] = 0, 4095
    image = new_slice(pixels, sop_class="1.2.840.10008.5.1.4.1.1.1.1", modality="DX")
    image.PhotometricInterpretation, image.BitsStored, image.HighBit = photometric, 12, 11
    image.ImagerPixelSpacing, image.PixelIntensityRelationshipSign = [0.2, 0.1], 1
    image.RescaleSlope, image.RescaleIntercept, image.RescaleType = 1, 0, "US"
    image.PresentationLUTShape = "INVERSE"
    for keyword, value in header.items():
        setattr(image, keyword, value)
    return image


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 1000, "WindowWidth": 800}])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_displayed_x_ray(tmp_path, window, photometric):
    image = read(save(tmp_path / "source", [_x_ray(photometric=photometric, **window)]))
    assert image.meta["dicom_values"] == "display"
    made = pydicom.dcmread(write(image, tmp_path / "made"))
    assert np.array_equal(made.pixel_array.T, np.clip(np.rint(image.numpy()[0]), 0, 4095))
    assert (made.PhotometricInterpretation, made.PresentationLUTShape) == ("MONOCHROME2", "IDENTITY")
    assert (made.BitsStored, made.HighBit, made.RescaleSlope, made.RescaleIntercept) == (12, 11, 1, 0)
    assert made.PixelIntensityRelationshipSign == (-1 if photometric == "MONOCHROME1" else 1)
    assert made.ImageType[0] == "DERIVED" and made.ImagerPixelSpacing == [0.2, 0.1]
    again = read(tmp_path / "made.dcm")
    assert np.allclose(again, image, atol=0.51) and np.array_equal(again.affine, image.affine)
    twice = write(again, tmp_path / "twice")
    assert pydicom.dcmread(twice).PixelData == made.PixelData


def test_displayed_x_ray_with_a_table_of_more_bits(tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 16], (np.arange(4096) * 16).astype("<u2").tobytes()
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "OW"
    image = read(save(tmp_path / "source", [_x_ray(VOILUTSequence=[table], PixelPaddingValue=0)]))
    assert image.max() > 60000
    made = pydicom.dcmread(write(image, tmp_path / "made"))
    assert made.BitsStored == 16 and np.array_equal(made.pixel_array.T, image.numpy()[0])
    assert "VOILUTSequence" not in made and "PixelPaddingValue" not in made
    crop = CenterSpatialCrop((4, 4))(image)
    with pytest.raises(ValueError, match="covers only part.*displayed values"):
        write(crop, tmp_path / "crop")


def test_displayed_multi_frame_has_no_display_left_to_apply(tmp_path):
    save(tmp_path / "source", [enhanced(phantom())])
    image = read(tmp_path / "source/0000.dcm", display=True)
    assert image.meta["dicom_values"] == "display" and float(image.min()) < 0
    made = pydicom.dcmread(write(image, tmp_path / "made"))
    assert (made.PixelRepresentation, made.BitsStored, made.BitsAllocated) == (1, 17, 32)
    stored = np.stack([made.pixel_array[::-1][index].T for index in range(8)], axis=-1)
    assert np.array_equal(stored, np.rint(image.numpy()[0]))
    assert not [
        element.keyword
        for element in made.iterall()
        if element.keyword in ("FrameVOILUTSequence", "PixelValueTransformationSequence")
    ]
    assert np.array_equal(read(tmp_path / "made.dcm", display=False).numpy(), np.rint(image.numpy()))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({}, (0, 4095)),
        ({"RescaleIntercept": -1}, (-8192 // 2, 4095)),
        ({"RescaleIntercept": 1}, (0, 8191)),
        ({"RescaleSlope": -1, "RescaleIntercept": 4095}, (0, 4095)),
        ({"RescaleSlope": 0.25}, (0, 4095)),
        ({"PixelRepresentation": 1}, (-2048, 2047)),
        ({"PixelRepresentation": 1, "RescaleSlope": 1.5}, (-4096, 4095)),
    ],
)
def test_range_of_displayed_values(header, expected):
    assert _dicom_derived_pixels.display_limits(_x_ray(**header)) == expected
