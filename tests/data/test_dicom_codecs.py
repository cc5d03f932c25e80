# SPDX-License-Identifier: Apache-2.0
"""Compressed pixels: what is installed decodes right, what is not is named, corrupt streams end in one sentence."""

from __future__ import annotations

import io
import sys
import time
from types import ModuleType

import numpy as np
import pydicom
import pytest
from dicom_samples import new_slice
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.decoders.base import Decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from monai_labelfx.data._dicom_codecs import check_decodable
from monai_labelfx.data._dicom_pixels import stored_values
from monai_labelfx.data._reading import ImageFileError

SHAPE = (33, 47)  # neither even nor square


def grey(dtype: str, stored: int, *, frames: int = 1, seed: int = 0) -> tuple[pydicom.Dataset, np.ndarray]:
    """An uncompressed image that uses all of its stored bits, and its values (frames, rows, columns)."""
    info = (-(1 << stored - 1), 1 << stored - 1) if dtype[0] == "i" else (0, 1 << stored)
    values = np.random.default_rng(seed).integers(*info, (frames, *SHAPE)).astype(dtype)
    values[0, 0, :2] = info[0], info[1] - 1
    image = new_slice(values[0].astype("i2" if dtype[0] == "i" else "u2"))
    image.BitsAllocated, image.BitsStored, image.HighBit = 8 * values.itemsize, stored, stored - 1
    image.NumberOfFrames, image.PixelData = frames, values.tobytes()
    return image, values


def packed(image: pydicom.Dataset, syntax: str, *frames: bytes) -> pydicom.Dataset:
    image.file_meta.TransferSyntaxUID = syntax
    image.PixelData = encapsulate(list(frames))
    image["PixelData"].VR = "OB"
    return image


def pillow(values: np.ndarray, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, kind, **options)
    return stream.getvalue()


DEPTHS = [("u1", 8), ("u1", 7), ("i1", 8), ("u2", 16), ("u2", 12), ("i2", 16), ("i2", 12), ("i2", 10)]


@pytest.mark.parametrize(("dtype", "stored"), DEPTHS)
@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_lossless_pixels_come_back(dtype, stored, syntax):
    image, values = grey(dtype, stored, frames=3)
    image.compress(syntax)
    check_decodable(image, "a.dcm")
    for index in (2, 0, 1):
        found = stored_values(image, index, "a.dcm")
        assert np.array_equal(found, values[index]), (found[0, :3], values[index, 0, :3])


@pytest.mark.parametrize(("dtype", "stored"), [("u1", 8), ("u2", 16), ("u2", 12)])
@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEG2000])
def test_jpeg_2000_comes_back(dtype, stored, syntax):
    image, values = grey(dtype, stored)
    packed(image, syntax, pillow(values[0], "JPEG2000", irreversible=False, no_jp2=True))
    assert np.array_equal(stored_values(image, 0, "a.dcm"), values[0])


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless])
def test_a_stream_may_be_padded(syntax):
    image, values = grey("u2", 16)
    if syntax == JPEG2000Lossless:
        packed(image, syntax, pillow(values[0], "JPEG2000", irreversible=False, no_jp2=True))
    else:
        image.compress(syntax)
    frame = get_frame(image.PixelData, 0, number_of_frames=1)
    packed(image, syntax, frame + bytes(1000))
    assert np.array_equal(stored_values(image, 0, "a.dcm"), values[0])


def test_unused_bits_of_run_lengths_are_removed_as_elsewhere():
    image, values = grey("u2", 16)
    image.compress(RLELossless)
    image.BitsStored, image.HighBit = 12, 13
    assert np.array_equal(stored_values(image, 0, "a.dcm"), values[0] >> 2 & 4095)


def test_8_bit_jpeg_is_what_pillow_sees():
    image, _ = grey("u1", 8)
    smooth = np.add.outer(np.arange(SHAPE[0]), 3 * np.arange(SHAPE[1])).astype("u1")
    packed(image, JPEGBaseline8Bit, pillow(smooth, "JPEG", quality=95))
    found = stored_values(image, 0, "a.dcm")
    assert np.abs(found.astype(int) - smooth).max() <= 6
    packed(image, JPEGExtended12Bit, pillow(smooth, "JPEG", quality=95))
    assert np.array_equal(stored_values(image, 0, "a.dcm"), found)


COMPRESSED = [
    *("693_J2KI", "J2K_pixelrep_mismatch", "JPEG2000", "MR_small_RLE", "MR_small_jp2klossless"),
    *("MR_small_jpeg_ls_lossless", "JPEGLSNearLossless_08", "JPEGLSNearLossless_16", "SC_jpeg_no_color_transform"),
    *("SC_rgb_dcmtk_+eb+cr", "SC_rgb_dcmtk_+eb+cy+np", "SC_rgb_dcmtk_+eb+cy+s4", "SC_rgb_gdcm_KY", "SC_rgb_jpeg"),
    *("SC_rgb_jls_lossy_line", "SC_rgb_jls_lossy_sample", "SC_rgb_jpeg_dcmtk", "SC_rgb_rle", "SC_rgb_rle_16bit"),
    *("SC_rgb_rle_32bit", "SC_rgb_small_odd_jpeg", "examples_jpeg2k", "rtdose_rle_1frame"),
]


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_files_of_pydicom(name):
    image = pydicom.dcmread(get_testdata_file(f"{name}.dcm"))
    assert np.array_equal(stored_values(image, None, "a.dcm"), image.pixel_array)


def test_three_codecs_agree_about_one_real_picture():
    expected = pydicom.dcmread(get_testdata_file("MR_small.dcm")).pixel_array
    for name in ("RLE", "jp2klossless", "jpeg_ls_lossless"):
        image = pydicom.dcmread(get_testdata_file(f"MR_small_{name}.dcm"))
        assert np.array_equal(stored_values(image, None, "a.dcm"), expected)


def test_one_frame_is_decoded_and_not_all():
    image = pydicom.dcmread(get_testdata_file("examples_ybr_color.dcm"))
    frames = [get_frame(image.PixelData, n, number_of_frames=30) for n in range(30)]
    expected = image.pixel_array[20]
    packed(image, JPEGBaseline8Bit, *[frame if n == 20 else b"\xff\xd8broken" for n, frame in enumerate(frames)])
    assert np.array_equal(stored_values(image, 20, "a.dcm"), expected)


@pytest.fixture
def nothing_installed(monkeypatch):
    """Neither imagecodecs nor another package beyond what is declared."""
    monkeypatch.setitem(sys.modules, "imagecodecs", None)

    def declared(syntax):
        decoder = Decoder(syntax)
        if syntax == JPEGExtended12Bit:
            decoder.add_plugin("pillow", ("pydicom.pixels.decoders.pillow", "_decode_frame"))
        return decoder

    monkeypatch.setattr("pydicom.pixels.get_decoder", declared)


@pytest.mark.parametrize("syntax", [JPEGLossless, JPEGLosslessSV1, HTJ2K, JPEGExtended12Bit])
def test_what_to_install_is_named(syntax, nothing_installed):
    image, _ = grey("u2", 12)
    packed(image, syntax, b"\xff\xd8\xff\xd9")
    with pytest.raises(ImageFileError, match=r"'a.dcm' is compressed as ") as error:
        check_decodable(image, "a.dcm")
    assert syntax.name in str(error.value) and 'pip install "monai-labelfx[codecs]"' in str(error.value)
    with pytest.raises(ImageFileError, match=r"monai-labelfx\[codecs\]"):
        stored_values(image, 0, "a.dcm")
    del image.PixelData
    with pytest.raises(ImageFileError, match=r"monai-labelfx\[codecs\]"):
        check_decodable(image, "a.dcm")  # also before the pixels are read


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.100", "1.2.3.4", "DOE^JOHN"])
def test_what_nothing_decodes_is_named_without_the_text_of_a_broken_file(syntax):
    image, _ = grey("u2", 12)
    image.file_meta.TransferSyntaxUID = syntax
    with pytest.raises(ImageFileError, match="'a.dcm' is compressed as .* cannot decode; convert it") as error:
        check_decodable(image, "a.dcm")
    assert "DOE" not in str(error.value)


def test_8_bit_jpeg_in_16_bit_pixels_is_refused_rather_than_stretched():
    image, values = grey("u2", 12)
    packed(image, JPEGBaseline8Bit, pillow((values[0] >> 4).astype("u1"), "JPEG"))
    with pytest.raises(ImageFileError, match="'a.dcm' .JPEG Baseline .* cannot be decoded"):
        stored_values(image, 0, "a.dcm")


@pytest.mark.parametrize("kind", ["JPEG", "JPEG2000", "JPEG-LS"])
def test_swapped_rows_and_columns_are_noticed(kind):
    image, values = grey("u1", 8)
    if kind == "JPEG-LS":
        image.compress(JPEGLSLossless)
    else:
        packed(image, JPEGBaseline8Bit if kind == "JPEG" else JPEG2000, pillow(values[0], kind))
    image.Rows, image.Columns = SHAPE[::-1]
    with pytest.raises(ImageFileError, match="'a.dcm' has compressed pixels of 33 rows and 47 col.* names 47 and 33"):
        stored_values(image, 0, "a.dcm")


def test_one_compressed_pixel_does_not_fill_the_picture():
    image, _ = grey("u1", 8)
    packed(image, JPEGBaseline8Bit, pillow(np.full((1, 1), 9, "u1"), "JPEG"))
    with pytest.raises(ImageFileError, match="of 1 rows and 1 columns"):
        stored_values(image, 0, "a.dcm")


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless])
def test_truncated_streams_are_named_at_once(syntax):
    image, values = grey("u1" if syntax == JPEGBaseline8Bit else "u2", 8)
    if syntax in (JPEGLSLossless, RLELossless):
        image.compress(syntax)
        frame = get_frame(image.PixelData, 0, number_of_frames=1)
    else:
        kind = "JPEG2000" if syntax == JPEG2000Lossless else "JPEG"
        frame = pillow(values[0], kind, **({"irreversible": False} if kind == "JPEG2000" else {}))
    start = time.perf_counter()
    for length in (*range(2, 200, 11), len(frame) // 2, len(frame) - 100):
        packed(image, syntax, frame[:length])
        with pytest.raises(ImageFileError, match="'a.dcm' .*pixels"):
            stored_values(image, 0, "a.dcm")
    assert time.perf_counter() - start < 10  # CharLS may search a stream without an end for seconds


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("syntax", [JPEGLSLossless, RLELossless])
def test_corrupt_streams_give_a_picture_or_a_sentence(syntax):
    image, _ = grey("u2", 12)
    image.compress(syntax)
    frame = get_frame(image.PixelData, 0, number_of_frames=1).rstrip(b"\0")
    generator = np.random.default_rng(0)
    ends = {"picture": 0, "sentence": 0}
    for _ in range(150):
        broken = bytearray(frame)
        for place in generator.integers(0, min(len(frame) - 2, 400), 3):
            broken[place] = generator.integers(256)
        packed(image, syntax, bytes(broken))
        try:
            found = stored_values(image, 0, "a.dcm")
        except ImageFileError as error:
            assert "'a.dcm'" in str(error) and "\n" not in str(error)
            ends["sentence"] += 1
        else:
            assert found.shape == SHAPE
            ends["picture"] += 1
    assert ends["sentence"] > 0


BOXES = b"\0\0\0\x0cjP  \r\n\x87\n"  # how a .jp2 file starts; pydicom searches the empty box behind it for ever


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"\xfe\xff\x00\xe0\0\0\0\0", encapsulate([BOXES]), encapsulate([BOXES + bytes(50)])]
)
def test_compressed_pixels_without_a_frame_are_named(content):
    image, _ = grey("u2", 12)
    packed(image, JPEG2000, b"x")
    image.PixelData = content
    with pytest.raises(ImageFileError, match="'a.dcm' .*compressed"):
        stored_values(image, 0, "a.dcm")


@pytest.mark.parametrize(("dtype", "stored"), [("u2", 12), ("i2", 12), ("i2", 16), ("u1", 8)])
def test_imagecodecs_is_used_where_it_is_installed(monkeypatch, dtype, stored):
    """The same with the real package is tested below, where it is installed."""
    image, values = grey(dtype, stored)
    package = ModuleType("imagecodecs")
    # a lossless JPEG knows no sign
    package.jpeg8_decode = lambda source: values[0].view(f"u{values.itemsize}") & ((1 << stored) - 1)
    monkeypatch.setitem(sys.modules, "imagecodecs", package)
    packed(image, JPEGLosslessSV1, b"\xff\xd8\xff\xd9")
    assert np.array_equal(stored_values(image, 0, "a.dcm"), values[0])
    package.jpeg8_decode = lambda source: values[0].T
    with pytest.raises(ImageFileError, match=r"'a.dcm' .*shape \(47, 33\), expected \(33, 47\)"):
        stored_values(image, 0, "a.dcm")
    assert "imagecodecs" not in pydicom.pixels.get_decoder(JPEGLosslessSV1).available_plugins


def test_colour_that_imagecodecs_gives_as_rgb_is_not_converted_again(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3)).astype("u1")
    image, _ = grey("u1", 8)
    image.SamplesPerPixel, image.PlanarConfiguration, image.PhotometricInterpretation = 3, 1, "YBR_RCT"
    packed(image, JPEG2000Lossless, pillow(pixels, "JPEG2000", irreversible=False, no_jp2=True, mct=1))
    package = ModuleType("imagecodecs")
    package.jpeg8_decode = None
    package.jpeg2k_decode = lambda source, planar: np.asarray(Image.open(io.BytesIO(source)))
    monkeypatch.setitem(sys.modules, "imagecodecs", package)
    assert np.array_equal(stored_values(image, 0, "a.dcm"), pixels)


@pytest.mark.peer("imagecodecs")
@pytest.mark.parametrize(("dtype", "stored"), DEPTHS)
@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEG2000Lossless, HTJ2K])
def test_more_codecs_with_imagecodecs(dtype, stored, syntax):
    import imagecodecs

    image, values = grey(dtype, stored)
    if syntax == JPEGLosslessSV1:
        unsigned = values[0].view(f"u{values.itemsize}") & ((1 << stored) - 1)
        frame = imagecodecs.jpeg8_encode(unsigned, lossless=True, predictor=1)
    elif syntax == HTJ2K:
        frame = imagecodecs.htj2k_encode(values[0], reversible=True)
    else:
        frame = imagecodecs.jpeg2k_encode(values[0], level=0, reversible=True, codecformat="J2K")
    assert np.array_equal(stored_values(packed(image, syntax, bytes(frame)), 0, "a.dcm"), values[0])


@pytest.mark.peer("imagecodecs")
@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_RCT"])
def test_colour_with_imagecodecs(dtype, photometric):
    import imagecodecs

    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (*SHAPE, 3)).astype(dtype)
    image, _ = grey(dtype, 8 * pixels.itemsize)
    image.SamplesPerPixel, image.PlanarConfiguration, image.PhotometricInterpretation = 3, 0, photometric
    mixed = photometric == "YBR_RCT"
    frames = {
        JPEG2000Lossless: imagecodecs.jpeg2k_encode(pixels, level=0, reversible=True, codecformat="J2K", mct=mixed),
        HTJ2K: imagecodecs.htj2k_encode(pixels, reversible=True, rgb=mixed),
    }
    if not mixed:
        options = {"colorspace": "RGB", "outcolorspace": "RGB"}
        frames[JPEGLosslessSV1] = imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=1, **options)
    for syntax, frame in frames.items():
        assert np.array_equal(stored_values(packed(image, syntax, bytes(frame)), 0, "a.dcm"), pixels), syntax.name


@pytest.mark.peer("imagecodecs")
def test_files_of_pydicom_with_imagecodecs():
    lossless = pydicom.dcmread(get_testdata_file("SC_rgb_jpeg_gdcm.dcm"))
    same = pydicom.dcmread(get_testdata_file("SC_rgb_rle.dcm"))
    assert np.array_equal(stored_values(lossless, None, "a.dcm"), same.pixel_array)
    deep = pydicom.dcmread(get_testdata_file("JPGExtended.dcm"))
    found = stored_values(deep, 0, "a.dcm")
    assert found[420, 140] == 244 and found[230, 120] == 95  # as other decoders give them
