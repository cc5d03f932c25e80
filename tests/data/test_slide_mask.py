# SPDX-License-Identifier: Apache-2.0
"""Label maps of slides on disk: what is written, and what is not."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile

from monai_labelfx.data import TiffReader, _slide_mask
from monai_labelfx.data._slide_file import SlideFile
from monai_labelfx.data._slide_mask import SlideMask


def numbers(width, height):
    return np.random.default_rng(0).integers(0, 4, (width, height)).astype(np.uint8)


@pytest.mark.parametrize("at_once", [512, 1024, 8192])
@pytest.mark.parametrize("shape", [(20, 30), (700, 513), (2100, 900)])
def test_it_reads_as_it_was_written(shape, at_once, tmp_path, monkeypatch):
    monkeypatch.setattr(_slide_mask, "_AT_ONCE", at_once)
    values = numbers(*shape)
    mask = SlideMask(tmp_path / "sub" / "a.tif", shape, mpp=0.62)
    for x in range(0, shape[0], 300):
        mask.write((x, 5), values[x : x + 300, 5:])
    assert mask.save() == tmp_path / "sub" / "a.tif"
    values[:, :5] = 0
    slide = SlideFile(tmp_path / "sub" / "a.tif", mask=True)
    assert np.array_equal(slide.region((0, 0), shape), values)
    for level, own in enumerate(slide.shapes):
        assert np.array_equal(slide.region((0, 0), own, level), values[:: 2**level, :: 2**level])
    assert len(slide.shapes) == {20: 1, 700: 1, 2100: 3}[shape[0]] and max(slide.shapes[-1]) <= 1024
    array, meta = TiffReader().get_data([str(tmp_path / "sub" / "a.tif")])
    assert np.array_equal(array, values), "the package's reader of TIFF takes it for one image, x first"
    assert meta["affine"].diagonal()[:2] == pytest.approx([0.00062] * 2, rel=1e-4)


def test_a_map_without_a_size_tells_none(tmp_path):
    SlideMask(tmp_path / "a.tif", (20, 30)).save()
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        page = tif.pages[0]
        assert page.is_tiled and page.dtype == np.uint8 and page.compression == 8
    assert (TiffReader().get_data([str(tmp_path / "a.tif")])[1]["affine"] == np.eye(4)).all()


def test_nothing_lies_there_before_it_is_complete_or_after_it_was_dropped(tmp_path):
    mask = SlideMask(tmp_path / "a.tif", (2000, 2000))
    mask.write((0, 0), numbers(2000, 100))
    assert not list(tmp_path.iterdir()), "not even a temporary name"
    mask.close()
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
    (tmp_path / "a.tif").write_text("before")
    mask = SlideMask(tmp_path / "a.tif", (600, 600))

    def full(*args, **options):
        raise OSError("no space left")

    monkeypatch.setattr(tifffile.TiffWriter, "write", full)
    with pytest.raises(OSError, match="no space left"):
        mask.save()
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"] and (tmp_path / "a.tif").read_text() == "before"


def test_a_full_disk_is_an_error(tmp_path):
    mask = SlideMask(tmp_path / "a.tif", (20, 30))
    scratch, mask._scratch = mask._scratch, SimpleNamespace(seek=int, write=lambda row: row.size - 1)
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.tif'"):
        mask.write((0, 0), numbers(20, 30))
    scratch.close()


def test_memory_is_that_of_some_tiles(tmp_path):
    tracemalloc.start()
    mask = SlideMask(tmp_path / "a.tif", (6000, 5000))
    mask.write((3000, 2000), numbers(500, 500))
    mask.save()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6 < 6000 * 5000 / 5, peak
