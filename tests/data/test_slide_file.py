# SPDX-License-Identifier: Apache-2.0
"""Regions of slides against the array that was written, and what is read for them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tracemalloc

import numpy as np
import pytest
import tifffile
from slide_samples import tissue_picture, write_slide, write_svs

from monai_labelfx.data import _slide_file
from monai_labelfx.data._slide_file import SlideFile, open_slide

PICTURE = np.random.default_rng(0).integers(0, 256, (150, 107, 3), dtype=np.uint8)  # no multiple of the tiles
REGIONS = [((0, 0), (150, 107)), ((31, 0), (2, 33)), ((40, 50), (70, 57)), ((149, 106), (1, 1)), ((64, 32), (32, 32))]


def stored(path, **options):
    tifffile.imwrite(path, np.ascontiguousarray(PICTURE.swapaxes(0, 1)), photometric="rgb", metadata=None, **options)
    return path


LAYOUTS = {
    "tiles": {"tile": (32, 48), "compression": "zlib"},
    "plain_tiles": {"tile": (16, 16)},
    "strips": {"rowsperstrip": 10, "compression": "zlib"},
    "mapped": {},
    "predictor": {"tile": (32, 32), "compression": "zlib", "predictor": True},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("start", "size"), REGIONS)
def test_regions_are_those_of_the_array(layout, start, size, tmp_path):
    slide = SlideFile(stored(tmp_path / "a.tif", **LAYOUTS[layout]))
    wanted = PICTURE[start[0] : start[0] + size[0], start[1] : start[1] + size[1]]
    found = slide.region(start, size)
    assert found.dtype == np.uint8 and np.array_equal(found, wanted)


def test_separate_planes_and_what_lies_outside(tmp_path):
    planes = np.ascontiguousarray(PICTURE.transpose(2, 1, 0))
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate", tile=(32, 32), compression="zlib")
    slide = SlideFile(path)
    assert np.array_equal(slide.region((3, 5), (60, 50)), PICTURE[3:63, 5:55])
    around = slide.region((-2, 100), (5, 20))
    assert np.array_equal(around[2:, :7], PICTURE[:3, 100:])
    assert (around[:2] == 255).all() and (around[:, 7:] == 255).all()
    assert (slide.region((500, 500), (4, 4)) == 255).all()


@pytest.mark.parametrize("sub_files", [True, False])
def test_levels_wherever_they_are_stored(sub_files, tmp_path):
    slide = SlideFile(write_slide(tmp_path / "a.tif", PICTURE, sub_files=sub_files))
    assert slide.shapes == [(150, 107), (38, 27), (10, 7)]
    assert np.array_equal(slide.region((5, 3), (20, 22), 1), PICTURE[::4, ::4][5:25, 3:25])


def test_previews_and_labels_of_svs_are_no_levels(tmp_path):
    picture = tissue_picture(256, 192)
    slide = SlideFile(write_svs(tmp_path / "a.svs", picture))
    assert slide.shapes == [(256, 192), (64, 48)]
    assert np.array_equal(slide.region((10, 20), (30, 20), 1), picture[::4, ::4][10:40, 20:40])


def test_only_the_touched_tiles_are_read(tmp_path, monkeypatch):
    slide = SlideFile(write_slide(tmp_path / "a.tif", tissue_picture(512, 256), levels=1))
    slide.region((0, 0), (1, 1))
    read = []
    whole = tifffile.FileHandle.read_segments

    def counted(self, offsets, *args, **options):
        read.append(len(offsets))
        return whole(self, offsets, *args, **options)

    monkeypatch.setattr(tifffile.FileHandle, "read_segments", counted)
    slide.region((32, 32), (64, 32))
    slide.region((31, 33), (2, 1))
    assert read == [2, 2]


def test_memory_is_that_of_the_region(tmp_path):
    picture = tissue_picture(2048, 2048)
    slide = SlideFile(write_slide(tmp_path / "a.tif", picture, levels=1, tile=128))
    slide.region((0, 0), (8, 8))
    tracemalloc.start()
    slide.region((700, 900), (256, 256))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5e6 < picture.nbytes / 8, peak


@pytest.mark.parametrize("layout", ["tiles", "mapped"])
def test_grey_alpha_and_never_scanned_tiles(layout, tmp_path):
    grey = tmp_path / "grey.tif"
    tifffile.imwrite(grey, PICTURE[..., 0].T, photometric="minisblack", **LAYOUTS[layout])
    assert np.array_equal(SlideFile(grey).region((0, 0), (150, 107)), PICTURE[..., :1].repeat(3, -1))
    alpha = np.concatenate([PICTURE, np.zeros_like(PICTURE[..., :1])], -1)
    alpha[:75, :, 3], alpha[75:80, :, 3] = 255, 51
    path = tmp_path / "alpha.tif"
    tifffile.imwrite(path, np.ascontiguousarray(alpha.swapaxes(0, 1)), photometric="rgb", **LAYOUTS[layout])
    found = SlideFile(path).region((0, 0), (150, 107))
    assert np.array_equal(found[:75], PICTURE[:75]) and (found[80:] == 255).all()
    assert np.abs(found[75:80] - (PICTURE[75:80] * 0.2 + 255 * 0.8)).max() <= 0.5 + 1e-9


def test_a_tile_that_the_scanner_left_out_is_white_and_no_class_in_masks(tmp_path):
    rows = [np.zeros((32, 32, 3), np.uint8), None]
    tifffile.imwrite(tmp_path / "a.tif", iter(rows), shape=(32, 64, 3), dtype="uint8", tile=(32, 32), photometric="rgb")
    found = SlideFile(tmp_path / "a.tif").region((0, 0), (64, 32))
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert tif.pages[0].databytecounts[1] == 0
    assert (found[:32] == 0).all() and (found[32:] == 255).all()


def test_resampling_averages_and_does_not_move(tmp_path):
    """A ramp stays the ramp: the mean of the voxels that one stands for."""
    ramp = np.broadcast_to(np.arange(240, dtype=np.uint8)[:, None, None], (240, 100, 3))
    slide = SlideFile(write_slide(tmp_path / "a.tif", ramp, levels=1))
    for ratio in (2.5, 4):
        shape = (int(240 / ratio), int(100 / ratio))
        centres = (np.arange(shape[0]) + 0.5) * ratio - 0.5
        whole = slide.resampled((0, 0), shape, shape, 0)
        inner = slice(2, -2)
        assert np.abs(whole[inner, 3, 0] - centres[inner]).max() <= 1
        part = slide.resampled((10, 5), (20, 9), shape, 0)
        assert np.abs(part.astype(int) - whole[10:30, 5:14]).max() <= 1


def test_parts_lie_where_they_lie_in_the_whole(tmp_path):
    steep = np.broadcast_to((np.arange(40, dtype=np.uint8) * 6)[:, None, None], (40, 40, 3))
    slide = SlideFile(write_slide(tmp_path / "a.tif", steep, levels=1))
    whole = slide.resampled((0, 0), (16, 16), (16, 16), 0).astype(int)
    for start in range(12):
        part = slide.resampled((start, 2), (4, 5), (16, 16), 0)
        assert np.abs(part - whole[start : start + 4, 2:7]).max() <= 1


def test_resampling_takes_pieces(tmp_path, monkeypatch):
    slide = SlideFile(write_slide(tmp_path / "a.tif", tissue_picture(400, 300), levels=1))
    whole = slide.resampled((0, 0), (100, 75), (100, 75), 0)
    monkeypatch.setattr(_slide_file, "_PIECE", 64)
    sizes = []
    region = SlideFile.region
    monkeypatch.setattr(SlideFile, "region", lambda self, s, n, level=0: sizes.append(n) or region(self, s, n, level))
    pieces = slide.resampled((0, 0), (100, 75), (100, 75), 0)
    assert len(sizes) == 7 * 5 and max(max(size) for size in sizes) <= 72
    assert np.abs(pieces.astype(int) - whole).max() <= 1


def test_masks_keep_their_numbers(tmp_path):
    numbers = np.random.default_rng(1).integers(0, 3, (120, 90)).astype(np.uint16)
    mask = SlideFile(write_slide(tmp_path / "m.tif", numbers, levels=1), mask=True)
    assert np.array_equal(mask.region((7, 9), (40, 50)), numbers[7:47, 9:59])
    assert not mask.region((119, 89), (3, 3))[1:].any()
    half = mask.resampled((5, 6), (30, 20), (60, 45), 0)
    assert np.array_equal(half, numbers[1::2, 1::2][5:35, 6:26])
    double = mask.resampled((0, 0), (240, 180), (240, 180), 0)
    assert np.array_equal(double, numbers.repeat(2, 0).repeat(2, 1))


def _sum_of(slide):
    return int(slide.region((10, 10), (50, 50)).sum())


def _sum_in_process(path):
    """Sum, and whether the file was opened behind the fork: else processes move each other's place in it."""
    slide = open_slide(path)
    return _sum_of(slide), slide._process == os.getpid()


def test_forks_and_copies_read_for_themselves(tmp_path):
    slide = open_slide(write_slide(tmp_path / "a.tif", PICTURE))
    wanted = int(PICTURE[10:60, 10:60].sum())
    assert _sum_of(slide) == wanted
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_sum_in_process, [slide.path] * 8) == [(wanted, True)] * 8
    assert _sum_of(pickle.loads(pickle.dumps(slide))) == wanted
    slide.close()
    assert _sum_of(slide) == wanted


def test_few_files_stay_open_and_changed_ones_are_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(_slide_file, "_OPEN", 2)
    slides = [open_slide(write_slide(tmp_path / f"{n}.tif", PICTURE)) for n in range(3)]
    assert slides[0]._tif is None and slides[1]._tif is not None
    assert open_slide(tmp_path / "2.tif") is slides[2]
    write_slide(tmp_path / "2.tif", PICTURE[:100])
    os.utime(tmp_path / "2.tif", ns=(1, 1))
    assert open_slide(tmp_path / "2.tif").shapes[0] == (100, 107)


def test_unusable_files_are_one_sentence(tmp_path, monkeypatch):
    def refused(name, message, *, mask=False, **options):
        if options:
            tifffile.imwrite(tmp_path / name, **options)
        with pytest.raises(ValueError, match=message) as error:
            SlideFile(tmp_path / name, mask=mask).region((0, 0), (16, 16))
        assert name in str(error.value) and "\n" not in str(error.value)

    (tmp_path / "text.tif").write_text("this is no TIFF")
    refused("text.tif", "cannot be read as TIFF")
    refused("deep.tif", "holds uint16 values, expected 8-bit", data=np.zeros((40, 40, 3), np.uint16), photometric="rgb")
    refused("stack.tif", "has axes QYX of lengths", data=np.zeros((5, 40, 40), np.uint8), photometric="minisblack")
    refused("cmyk.tif", r"4 samples per pixel \(SEPARATED\)", data=np.zeros((9, 9, 4), np.uint8), photometric=5)
    colour = {"data": np.zeros((40, 40, 3), np.uint8), "photometric": "rgb"}
    refused("mask.tif", "3 samples per pixel .* expected one class number", mask=True, **colour)
    with pytest.raises(FileNotFoundError, match=r"none\.tif"):
        open_slide(tmp_path / "none.tif")
    path = write_slide(tmp_path / "cut.tif", PICTURE, compression=None)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    refused("cut.tif", "cannot be read as TIFF")
    monkeypatch.setattr(_slide_file, "_SEGMENT_BYTES", 1000)
    refused("strip.tif", "in one compressed piece, .* tiled TIFF", compression="zlib", rowsperstrip=40, **colour)


def test_a_missing_codec_is_named(tmp_path, monkeypatch):
    path = write_slide(tmp_path / "a.tif", PICTURE)
    slide = SlideFile(path)

    def missing(*args, **options):
        raise ValueError("<COMPRESSION.JPEG: 7> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "decode", missing)
    with pytest.raises(ValueError, match=r"a\.tif' is compressed by ADOBE_DEFLATE, .* 'monai-labelfx\[codecs\]'"):
        slide.region((0, 0), (8, 8))
