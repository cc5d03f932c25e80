# SPDX-License-Identifier: Apache-2.0
"""MONAI's data sets of whole slides on our reader, beside MONAI's own reader."""

from __future__ import annotations

import tracemalloc
import warnings

import numpy as np
import pytest
from monai.data import PatchWSIDataset, SlidingPatchWSIDataset, WSIReader
from slide_samples import tissue_picture, write_slide, write_svs

from monai_labelfx.data.slide_reader import SlideReader


def peak_of(function) -> int:
    tracemalloc.start()
    function()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("place", [(0, 0), (40, 100), (8, 64)])
def test_regions_are_those_of_monais_reader_where_that_is_right(level, place, tmp_path):
    """Pages that shrink evenly are the one layout whose levels MONAI's tifffile reader finds."""
    path = write_slide(tmp_path / "a.tif", tissue_picture(320, 256), sub_files=False)
    own, monais = SlideReader(level=level), WSIReader("tifffile", level=level)
    for reader in (own, monais):
        reader.found, reader.meta = reader.get_data(reader.read(path), location=place, size=(30, 20))
    assert np.array_equal(own.found, monais.found) and own.found.dtype == monais.found.dtype == np.uint8
    assert own.meta.keys() == monais.meta.keys() and own.meta["path"] == monais.meta["path"]
    slides = own.read(path), monais.read(path)
    assert own.get_level_count(slides[0]) == monais.get_level_count(slides[1]) == 3
    assert own.get_size(slides[0], level) == monais.get_size(slides[1], level)
    assert own.get_downsample_ratio(slides[0], level) == monais.get_downsample_ratio(slides[1], level)
    assert own.get_mpp(slides[0], level) == pytest.approx(monais.get_mpp(slides[1], level), rel=1e-3)


def test_memory_beside_monais_reader(tmp_path):
    """MONAI's decodes the level and copies it: two levels for a patch."""
    picture = tissue_picture(1024, 1024)
    path = write_slide(tmp_path / "a.tif", picture, levels=1, tile=64)
    own, monais = SlideReader(), WSIReader("tifffile")
    slides = own.read(path), monais.read(path)
    options = {"location": (500, 300), "size": (64, 64)}
    own.get_data(slides[0], **options)
    peaks = [peak_of(lambda r=r, s=s: r.get_data(s, **options)) for r, s in zip((own, monais), slides, strict=True)]
    assert peaks[0] < 2e5 and peaks[1] > 1.9 * picture.nbytes, peaks


def test_levels_of_svs_and_sub_files_that_monais_reader_takes_for_others(tmp_path):
    picture = tissue_picture(256, 192)
    svs = write_svs(tmp_path / "a.svs", picture)
    sub = write_slide(tmp_path / "a.tif", picture)
    for path in (svs, sub):
        reader = SlideReader()
        slide = reader.read(path)
        found, _ = reader.get_data(slide, location=(80, 40), size=(20, 30), level=1)
        assert np.array_equal(found, picture[::4, ::4][10:40, 20:40].transpose(2, 1, 0))
    assert reader.get_mpp(SlideReader().read(svs), 1) == (2.0, 2.0)
    assert reader.get_power(reader.read(svs), 1) == 5
    assert SlideReader(mpp=2.0).get_data(reader.read(svs))[0].shape == (3, 48, 64)
    with pytest.raises(ValueError, match="does not say the power"):
        reader.get_power(reader.read(sub), 0)
    with pytest.raises(ValueError, match="maximum level of this image is 2"):
        reader.get_data(slide, level=3)


def test_in_monais_data_sets(tmp_path):
    picture = tissue_picture(200, 160)
    path = write_slide(tmp_path / "a.tif", picture)
    items = [{"image": str(path), "location": (30, 100)}, {"image": str(path), "location": (0, 0)}]
    found = PatchWSIDataset(items, (40, 20), 0, include_label=False, reader=SlideReader)
    assert np.array_equal(found[0]["image"], picture[90:110, 10:50].transpose(2, 1, 0))
    corner = found[1]["image"]
    assert corner.shape == (3, 40, 20) and (corner[:, :20] == 255).all() and (corner[:, :, :10] == 255).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        grid = SlidingPatchWSIDataset([{"image": str(path)}], (40, 40), 0, include_label=False, reader=SlideReader)
    assert len(grid) == 20
    assert np.array_equal(grid[6]["image"], picture[40:80, 40:80].transpose(2, 1, 0))


def test_what_it_does_not_do(tmp_path):
    with pytest.raises(ValueError, match="mode must be 'RGB'"):
        SlideReader(mode="RGBA")
    path = write_slide(tmp_path / "a.tif", tissue_picture(64, 64), mpp=None)
    with pytest.raises(ValueError, match=r"a\.tif' does not say how large its pixels are"):
        SlideReader(mpp=1.0).get_data(SlideReader().read(path))
    assert SlideReader().verify_suffix(["a.svs", "b.TIF"]) and not SlideReader().verify_suffix("a.png")
    assert len(SlideReader().read([path, path])) == 2
