# SPDX-License-Identifier: Apache-2.0
"""TiffReader: axes, voxel size, channels, and one sentence for what cannot be read."""

from __future__ import annotations

import csv
import importlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from malformed.pictures import DEEP, lzw_colours, taller_tiff
from monai.transforms import LoadImage
from PIL import Image

from monai_labelfx.data import TiffReader


def load(path, **keywords):
    reader = TiffReader(**keywords)
    return reader.get_data(reader.read(path))


def stack(*shape: int, dtype="uint8") -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


@pytest.fixture
def without_imagecodecs(monkeypatch):
    """tifffile as it is where the extra ``codecs`` is not installed."""
    monkeypatch.setattr(tifffile.tifffile, "imagecodecs", importlib.import_module("tifffile._imagecodecs"))
    monkeypatch.setattr(tifffile.TIFF.DECOMPRESSORS, "_codecs", {1: lambda data, **_: data})


def test_axis_order_is_that_of_png(tmp_path):
    array = np.zeros((4, 7), "uint8")
    array[1, 5] = 200
    Image.fromarray(array).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", array)
    png = LoadImage(ensure_channel_first=True)(tmp_path / "a.png")
    tif = LoadImage(reader="monai_labelfx.data.TiffReader", ensure_channel_first=True)(tmp_path / "a.tif")
    assert tif.shape == png.shape == (1, 7, 4) and tif[0, 5, 1] == 200
    assert np.array_equal(tif.numpy(), png.numpy()) and np.array_equal(tif.affine, png.affine)
    assert list(tif.meta["spatial_shape"]) == [7, 4]


@pytest.mark.parametrize(
    ("unit", "factor"), [("um", 1e-3), ("micron", 1e-3), ("\\u00B5m", 1e-3), ("nm", 1e-6), ("mm", 1), ("pixel", 1)]
)
def test_imagej_stack_has_its_voxel_size_in_mm(tmp_path, unit, factor):
    array = stack(3, 4, 5, dtype="uint16")
    metadata = {"axes": "ZYX", "spacing": 0.5, "unit": unit}
    tifffile.imwrite(tmp_path / "a.tif", array, imagej=True, resolution=(4.0, 10.0), metadata=metadata)
    loaded, meta = load(tmp_path / "a.tif")
    assert loaded.dtype == np.uint16 and np.array_equal(loaded, array.transpose(2, 1, 0))
    assert np.allclose(np.diag(meta["affine"]), [0.25 * factor, 0.1 * factor, 0.5 * factor, 1], rtol=1e-6, atol=0)
    assert np.array_equal(meta["affine"], meta["original_affine"])


def test_ome_physical_size_with_and_without_unit(tmp_path):
    metadata = {
        "axes": "ZYX",
        "PhysicalSizeX": 250,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.5,
        "PhysicalSizeZ": 2,
    }
    tifffile.imwrite(tmp_path / "a.ome.tif", stack(3, 4, 5, dtype="float32"), ome=True, metadata=metadata)
    array, meta = load(tmp_path / "a.ome.tif")
    assert array.shape == (5, 4, 3) and array.dtype == np.float32
    assert np.allclose(np.diag(meta["affine"]), [2.5e-4, 5e-4, 2e-3, 1], rtol=1e-9, atol=0)


@pytest.mark.parametrize(("unit", "expected"), [("CENTIMETER", 0.1), ("INCH", 1.0)])
def test_plain_resolution_counts_per_centimetre_only(tmp_path, unit, expected):
    tifffile.imwrite(tmp_path / "a.tif", stack(4, 5), resolution=(100, 100), resolutionunit=unit)
    assert np.allclose(np.diag(load(tmp_path / "a.tif")[1]["affine"])[:2], expected)


def test_a_size_that_is_no_length_counts_as_unknown(tmp_path):
    metadata = {"axes": "ZYX", "PhysicalSizeX": -1.0, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 0.0}
    tifffile.imwrite(tmp_path / "a.tif", stack(3, 4, 5), ome=True, metadata=metadata)
    assert np.diag(load(tmp_path / "a.tif")[1]["affine"]).tolist() == [1.0, 0.0005, 1.0, 1.0]


def test_plain_multi_page_file_is_a_volume_unless_named_otherwise(tmp_path):
    array = stack(3, 4, 5)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack", metadata=None)
    volume, meta = load(tmp_path / "a.tif")
    assert volume.shape == (5, 4, 3) and np.isnan(meta["original_channel_dim"])
    channels, meta = load(tmp_path / "a.tif", axes="CYX")
    assert channels.shape == (5, 4, 3) and meta["original_channel_dim"] == -1
    assert list(meta["spatial_shape"]) == [5, 4]


@pytest.mark.parametrize(("axes", "shape"), [("ZCYX", (3, 2, 4, 5)), ("CYX", (2, 4, 5))])
def test_channels_come_last_and_then_first(tmp_path, axes, shape):
    array = stack(*shape, dtype="uint16")
    tifffile.imwrite(tmp_path / "a.tif", array, imagej=True, metadata={"axes": axes})
    image = LoadImage(reader="monai_labelfx.data.TiffReader", ensure_channel_first=True)(tmp_path / "a.tif")
    expected = array.transpose([axes.index(letter) for letter in "CXYZ" if letter in axes])
    assert np.array_equal(image.numpy(), expected)


def test_colour_picture_has_channels(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", stack(4, 5, 3), photometric="rgb")
    assert load(tmp_path / "a.tif")[0].shape == (5, 4, 3)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int16", "float32", "float64"])
def test_values_and_dtype_are_untouched_whatever_the_byte_order(tmp_path, dtype):
    array = stack(4, 5, dtype=dtype) * 3
    tifffile.imwrite(tmp_path / "a.tif", array, byteorder=">")
    loaded, _ = load(tmp_path / "a.tif")
    assert loaded.dtype == np.dtype(dtype) and loaded.dtype.isnative and np.array_equal(loaded, array.T)


def test_several_files_are_channels(tmp_path):
    first, second = stack(4, 5), stack(4, 5) + 1
    tifffile.imwrite(tmp_path / "a.tif", first)
    tifffile.imwrite(tmp_path / "b.tif", second)
    image = LoadImage(reader=TiffReader(), ensure_channel_first=True)([tmp_path / "a.tif", tmp_path / "b.tif"])
    assert np.array_equal(image.numpy(), np.stack([first.T, second.T]))
    tifffile.imwrite(tmp_path / "c.tif", stack(4, 6))
    with pytest.raises(ValueError, match=r"c\.tif.*channels of one image must agree"):
        load([tmp_path / "a.tif", tmp_path / "c.tif"])


@pytest.mark.parametrize("installed", [True, False])
def test_compression_that_only_pillow_or_imagecodecs_know(installed, tmp_path, request):
    if not installed:
        request.getfixturevalue("without_imagecodecs")
    frames = [Image.fromarray(plane) for plane in stack(3, 4, 5)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:], compression="tiff_lzw")
    assert np.array_equal(load(tmp_path / "a.tif")[0], stack(3, 4, 5).transpose(2, 1, 0))


def test_what_would_silently_become_something_else_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "cmyk.tif", stack(4, 5, 4), photometric="separated")
    with pytest.raises(ValueError, match=r"cmyk\.tif' has the colour model CMYK"):
        load(tmp_path / "cmyk.tif")


def test_packed_colours_of_16_bits_need_imagecodecs(tmp_path, without_imagecodecs):
    (tmp_path / "deep.tif").write_bytes(lzw_colours())  # Pillow would give the upper half of each value
    with pytest.raises(ValueError, match=r"deep\.tif' holds uint16 values.*uint8 without the package imagecodecs"):
        load(tmp_path / "deep.tif")


@pytest.mark.peer("imagecodecs")
def test_packed_colours_of_16_bits(tmp_path):
    (tmp_path / "deep.tif").write_bytes(lzw_colours())
    array, _ = load(tmp_path / "deep.tif")
    assert array.dtype == np.uint16 and np.array_equal(array, np.repeat(DEEP[..., None], 3, axis=-1))


def test_time_axis_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", stack(3, 4, 5), imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(ValueError, match=r"a\.tif.*TYX.*TiffReader\(axes"):
        load(tmp_path / "a.tif")
    assert load(tmp_path / "a.tif", axes="ZYX")[0].shape == (5, 4, 3)
    with pytest.raises(ValueError, match="which axes='YX' cannot name"):
        load(tmp_path / "a.tif", axes="YX")


def test_several_images_in_one_file_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(stack(4, 5), metadata=None)
        writer.write(stack(6, 5), metadata=None)
    with pytest.raises(ValueError, match=r"a\.tif.*2 image series"):
        load(tmp_path / "a.tif")


def test_unusable_files_give_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.tif"):
        load(tmp_path / "absent.tif")
    (tmp_path / "a.tif").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a\.tif.*cannot be read as TIFF"):
        load(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", stack(64, 64))
    (tmp_path / "b.tif").write_bytes((tmp_path / "b.tif").read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"b\.tif.*cannot be read as TIFF") as caught:
        load(tmp_path / "b.tif")
    assert "\n" not in str(caught.value)


def test_load_image_does_not_fall_back_to_another_reader(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", stack(3, 4, 5), imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(ValueError, match="axes TYX"):
        LoadImage(reader="monai_labelfx.data.TiffReader")(tmp_path / "a.tif")


@pytest.mark.parametrize("axes", ["XY", "ZYX", "ZCYX"])
def test_good_axes_are_accepted(axes):
    assert TiffReader(axes=axes).axes == axes


@pytest.mark.parametrize("axes", ["", "ZY", "TYX", "YYX", "zyx"])
def test_bad_axes_are_refused(axes):
    with pytest.raises(ValueError, match="axes must be"):
        TiffReader(axes=axes)


def test_suffixes():
    reader = TiffReader()
    assert (
        reader.verify_suffix("a.tif")
        and reader.verify_suffix(["a.TIF", "b.tiff"])
        and not reader.verify_suffix("a.png")
    )


@pytest.mark.sample_data
def test_real_confocal_volumes():
    folder = Path(os.environ["LABELFX_DATA"], "nuclei3d")
    image, meta = load(folder / "ovule_nuclei_1135_image.tif")
    label, label_meta = load(folder / "ovule_nuclei_1135_label.tif")
    assert image.shape == label.shape == (100, 100, 100) and label.dtype == np.uint16
    assert np.allclose(np.diag(meta["affine"])[:3] * 1e3, [0.1268, 0.1268, 0.2837], atol=1e-4)
    assert np.array_equal(meta["affine"], label_meta["affine"]) and len(np.unique(label)) == 55
    image, meta = load(folder / "ovule_membrane_image.tif")
    assert image.shape == (128, 128, 32) and np.allclose(np.diag(meta["affine"])[:3] * 1e3, [0.15, 0.15, 0.235])
    with open(folder / "manifest.csv", encoding="utf-8") as file:
        named = {row["file"] for row in csv.DictReader(file)}
    assert len(named) == 4


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("pages", [1, 3, 120])
def test_pages_that_lead_back_are_refused(big, pages, tmp_path):
    """tifffile looks for a loop among the first hundred pages only, and not at all when it reads them one by one."""
    with tifffile.TiffWriter(tmp_path / "a.tif", bigtiff=big) as writer:
        for _ in range(pages):
            writer.write(stack(4, 5), metadata=None)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        first, last = file.pages[0], file.pages[pages - 1]
    size, count = ("<Q", 8) if big else ("<I", 2)
    tags = struct.unpack_from("<Q" if big else "<H", content, last.offset)[0]
    struct.pack_into(size, content, last.offset + count + tags * (20 if big else 12), first.offset)
    (tmp_path / "loop.tif").write_bytes(content)
    with pytest.raises(ValueError, match=rf"loop\.tif' has {pages} pages that lead back"):
        load(tmp_path / "loop.tif")


@pytest.mark.parametrize("kind", ["Pillow", "Pillow LZW", "plain", "ImageJ", "pages", "deflated pages", "big"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_stack_that_was_cut_off_is_not_a_smaller_one(tmp_path, kind, kept):
    """tifffile and Pillow give the pages before the cut, or the first one alone, without an error."""
    array = np.random.default_rng(0).integers(0, 255, (10, 20, 30), dtype=np.uint8)
    path = tmp_path / "a.tif"
    if kind.startswith("Pillow"):
        first, *others = [Image.fromarray(plane) for plane in array]
        packing = "tiff_lzw" if kind.endswith("LZW") else None
        first.save(path, save_all=True, append_images=others, compression=packing)
    elif kind.endswith("pages"):
        with tifffile.TiffWriter(path) as writer:
            for plane in array:
                writer.write(
                    plane,
                    contiguous=False,
                    metadata=None,
                    photometric="minisblack",
                    compression="zlib" if kind == "deflated pages" else None,
                )
    else:
        tifffile.imwrite(path, array, imagej=kind == "ImageJ", bigtiff=kind == "big", photometric="minisblack")
    content = path.read_bytes()
    assert np.array_equal(load(path)[0], array.transpose(2, 1, 0))
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match=r"a\.tif' cannot be read as TIFF"):
        load(path)


def test_strips_that_are_not_there_are_not_zeros(tmp_path):
    (tmp_path / "a.tif").write_bytes(taller_tiff())
    with pytest.raises(ValueError, match=r"page of shape \(14, 5\) has 1 strips or tiles, expected 2"):
        load(tmp_path / "a.tif")
