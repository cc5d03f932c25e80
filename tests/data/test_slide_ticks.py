# SPDX-License-Identifier: Apache-2.0
"""Ticks of slides in voxels of tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from slide_samples import tissue_picture, write_slide

from monai_labelfx.data._slide_file import open_slide
from monai_labelfx.data._slide_grid import slide_grids
from monai_labelfx.data._slide_ticks import slides_with_ticks, tiles_with_ticks
from monai_labelfx.data.slide_tiles import slide_tiles

HEAD = "image,x,y,width,height,class_0,class_1\n"


def table(path: Path, rows: list[tuple[int, ...]], name="a.tif") -> Path:
    path.write_text(HEAD + "".join(f"{name},{','.join(map(str, row))}\n" for row in rows))
    return path


def given(folder, rows, *, size=(200, 160), overlap=0, tile=64, **cut):
    """Tiles with ticks, as (start, rows of the ticks in voxels of the slide's grid, labels)."""
    slide = write_slide(folder / "a.tif", tissue_picture(*size), mpp=0.5)
    grid = slide_grids([{"image": str(slide)}], key="image", **{"level": None, "mpp": None, **cut})[0]
    tiles = [one["tile"] for one in slide_tiles(slide, tile_size=tile, overlap=overlap, tissue=None, **cut)]
    return tiles_with_ticks(open_slide(slide), grid, tiles, table(folder / "ticks.csv", rows), 2)


def test_each_tick_is_whole_in_one_tile(tmp_path):
    generator = np.random.default_rng(0)
    places = generator.integers(0, (140, 100), (60, 2))
    sizes = generator.integers(1, 60, (60, 2))
    rows = [(*place, *size, n % 2, n // 2 % 2) for n, (place, size) in enumerate(zip(places, sizes, strict=True))]
    found = given(tmp_path, rows)
    back = []
    for tile, ticks in found:
        start, patches = np.array(tile["start"]), ticks["patches"]
        assert tile["size"] == [64, 64] and (start >= 0).all() and (start + 64 <= (200, 160)).all()
        assert (patches[:, :2] >= 0).all() and (patches[:, :2] + patches[:, 2:] <= 64).all() and len(patches)
        own = np.concatenate([patches[:, :2] + start, patches[:, 2:], ticks["patch_labels"]], axis=1)
        back += [tuple(row) for row in own.tolist()]
    assert sorted(back) == sorted(tuple(int(n) for n in row) for row in rows), "none lost, none twice"


def test_the_tile_around_it_and_tiles_of_their_own_across_borders(tmp_path):
    rows = [(70, 70, 10, 10, 1, 0), (60, 10, 10, 10, 0, 1), (58, 20, 20, 10, 1, 1), (5, 60, 10, 10, 1, 0)]
    found = {tuple(tile["start"]): ticks["patches"].tolist() for tile, ticks in given(tmp_path, rows)}
    own = {(33, 0): [[27, 10, 10, 10], [25, 20, 20, 10]], (0, 33): [[5, 27, 10, 10]]}
    assert found == {(64, 64): [[6, 6, 10, 10]], **own}
    overlapping = {tuple(tile["start"]) for tile, _ in given(tmp_path, rows, overlap=32)}
    assert overlapping == {(32, 0), (0, 32), (32, 32)}, "the middle of each is nearest, and none needs its own"


def test_coarser_grids_and_small_slides(tmp_path):
    tile, ticks = given(tmp_path, [(40, 20, 80, 40, 1, 0), (3, 5, 1, 1, 0, 1)], level=1)[0]
    assert tile["shape"] == [50, 40] and tile["size"] == [50, 40]
    assert ticks["patches"].tolist() == [[10, 5, 20, 10], [1, 1, 1, 1]]
    assert given(tmp_path, [(40, 20, 80, 40, 1, 0)], mpp=1.25)[0][1]["patches"].tolist() == [[16, 8, 32, 16]]
    assert given(tmp_path, [(199, 159, 1, 1, 1, 0)], level=2)[0][1]["patches"].tolist() == [[12, 9, 1, 1]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((150, 0, 51, 10, 1, 0), r"line 3: the tick x=150 y=0 51 x 10 reaches out of slide .* \(200, 160\) pixels"),
        ((0, 0, 10, 161, 1, 0), "line 3: .* reaches out of slide"),
        ((0, 0, 65, 10, 1, 0), r"line 3: the tick x=0 y=0 65 x 10 is larger than a tile, which has \(64, 64\)"),
    ],
)
def test_ticks_that_do_not_fit(row, message, tmp_path):
    with pytest.raises(ValueError, match=rf"ticks\.csv', {message}"):
        given(tmp_path, [(0, 0, 5, 5, 1, 0), row])


def test_which_slides_have_ticks(tmp_path):
    slides = ["/s/x/a.tif", "/s/y/a.tif", "/s/b.tif"]
    path = table(tmp_path / "t.csv", [(0, 0, 5, 5, 1, 0)], "y/a.tif")
    assert slides_with_ticks(path, slides) == [False, True, False]
    with pytest.raises(ValueError, match=r"names the slide 'a\.tif', which is 2 slides, such as '/s/x/a\.tif'"):
        slides_with_ticks(table(path, [(0, 0, 5, 5, 1, 0)], "a.tif"), slides)
    with pytest.raises(ValueError, match=r"names the slide 'c\.tif', which is none of 3 slides"):
        slides_with_ticks(table(path, [(0, 0, 5, 5, 1, 0)], "c.tif"), slides)
    path.write_text("x,y,width,height,class_0,class_1\n0,0,5,5,1,0\n")
    assert slides_with_ticks(path, slides[:1]) == [True]
    with pytest.raises(ValueError, match="has no column 'image' that tells which of 3 slides"):
        slides_with_ticks(path, slides)
    with pytest.raises(FileNotFoundError, match="there is no table"):
        slides_with_ticks(tmp_path / "none.csv", slides)


def test_volumes_are_not_slides(tmp_path):
    slide = open_slide(write_slide(tmp_path / "a.tif", tissue_picture(64, 64)))
    grid = slide_grids([{"image": slide.path}], key="image", level=0, mpp=None)[0]
    tiles = [one["tile"] for one in slide_tiles(slide.path, tissue=None)]
    path = tmp_path / "t.csv"
    path.write_text("x,y,z,width,height,depth,class_0,class_1\n0,0,0,5,5,5,1,0\n")
    with pytest.raises(ValueError, match="columns for 3 axes, but slides have 2"):
        tiles_with_ticks(slide, grid, tiles, path, 2)
