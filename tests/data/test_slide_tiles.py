# SPDX-License-Identifier: Apache-2.0
"""Where slides are cut, and which tiles are kept."""

from __future__ import annotations

import json

import numpy as np
import pytest
from slide_samples import GLASS, tissue_picture, write_slide

from monai_labelfx.data.slide_tiles import find_slides, slide_tiles


def covered(tiles, shape) -> np.ndarray:
    """How many cores cover each voxel."""
    count = np.zeros(shape, int)
    for tile in tiles:
        x, y, w, h = tile["tile"]["core"]
        count[x : x + w, y : y + h] += 1
    return count


@pytest.mark.parametrize("size", [(200, 120), (64, 64), (65, 100), (20, 300), (128, 127)])
@pytest.mark.parametrize(("tile_size", "overlap"), [(64, 16), ((64, 32), (0, 31)), (64, 0), (100, 33)])
def test_cores_part_the_slide_and_lie_in_their_tiles(size, tile_size, overlap, tmp_path):
    path = write_slide(tmp_path / "a.tif", tissue_picture(*size), levels=1)
    tiles = slide_tiles(path, tile_size=tile_size, overlap=overlap, tissue=None)
    assert (covered(tiles, size) == 1).all()
    sizes = np.minimum(np.broadcast_to(tile_size, 2), size)
    half = np.broadcast_to(overlap, 2) // 2
    for tile in (one["tile"] for one in tiles):
        start, core = np.array(tile["start"]), np.array(tile["core"])
        end, core_end = start + tile["size"], core[:2] + core[2:]
        assert tile["size"] == sizes.tolist() and (start >= 0).all() and (end <= size).all()
        assert (core[:2] >= np.where(start == 0, 0, start + half)).all(), "half the overlap is cut off at inner borders"
        assert (core_end <= np.where(end == size, end, end - half)).all()
    starts = [one["tile"]["start"][::-1] for one in tiles]
    assert starts == sorted(starts), "row by row"


def test_only_tiles_with_tissue(tmp_path):
    picture = tissue_picture(256, 128)  # tissue at 32..127, 32..95
    path = write_slide(tmp_path / "a.tif", picture, levels=2)
    kept = slide_tiles(path, tile_size=32, overlap=0)
    assert covered(kept, (256, 128))[32:128, 32:96].all() and len(kept) == 3 * 2
    assert len(slide_tiles(path, tile_size=32, overlap=0, tissue=None)) == 8 * 4
    # tiles that begin a quarter before the tissue: 9/16, 3/4 and 1 of them are in it
    moved = slide_tiles(write_slide(tmp_path / "b.tif", picture[8:, 8:], levels=1), tile_size=32, overlap=0, tissue=0.7)
    assert covered(moved, (248, 120))[32:96, 32:64].all() and not covered(moved, (248, 120))[:32, :32].any()


def test_tissue_is_asked_of_the_core_and_zero_means_any(tmp_path):
    picture = np.full((192, 64, 3), GLASS, np.uint8)
    picture[60:70, 30:34] = (180, 60, 140)
    path = write_slide(tmp_path / "a.tif", picture, levels=1)
    assert len(slide_tiles(path, tile_size=64, overlap=0, tissue=0)) == 2
    assert len(slide_tiles(path, tile_size=64, overlap=0, tissue=0.005)) == 1


def test_a_slide_without_tissue_keeps_all_tiles(tmp_path):
    path = write_slide(tmp_path / "empty.tif", np.full((100, 64, 3), GLASS, np.uint8), levels=1)
    with pytest.warns(UserWarning, match=r"no tissue found in slide '.*empty\.tif', so all its tiles are kept"):
        assert len(slide_tiles(path, tile_size=64, overlap=0)) == 2


def test_levels_sizes_and_positions(tmp_path):
    path = write_slide(tmp_path / "a.tif", tissue_picture(512, 256), mpp=0.25)
    tile = slide_tiles(path, tile_size=40, overlap=0, level=1, tissue=None)[1]["tile"]
    assert tile["shape"] == [128, 64] and tile["level"] == 1 and tile["position"] == [160, 0]
    assert tile["mpp"] == pytest.approx(1, rel=1e-4)
    tile = slide_tiles(path, tile_size=40, overlap=0, mpp=0.5, tissue=None)[1]["tile"]
    assert (tile["shape"], tile["level"], tile["position"], tile["mpp"]) == ([256, 128], 0, [80, 0], 0.5)


def test_items_keep_what_they_have_and_go_into_json(tmp_path):
    path = write_slide(tmp_path / "a.tif", tissue_picture(128, 128))
    tiles = slide_tiles([{"slide": path, "patient": "P1"}], key="slide", tile_size=64, overlap=0)
    assert json.loads(json.dumps(tiles)) == tiles
    assert {tile["patient"] for tile in tiles} == {"P1"} and {tile["slide"] for tile in tiles} == {str(path)}


def test_slides_of_a_folder(tmp_path):
    for name in ("b.tif", "sub/a.TIFF", ".hidden/c.tif", "sub/.d.tif"):
        write_slide(tmp_path / name, tissue_picture(64, 64), levels=1)
    (tmp_path / "notes.txt").touch()
    wanted = [str(tmp_path / "b.tif"), str(tmp_path / "sub" / "a.TIFF")]
    assert [item["image"] for item in find_slides(tmp_path)] == wanted
    assert {tile["image"] for tile in slide_tiles(tmp_path)} == set(wanted)
    assert len(slide_tiles(wanted)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 0, "mpp": 1}, "level=0 and mpp=1 exclude each other"),
        ({"mpp": 0}, "mpp must be above 0"),
        ({"tissue": 1.0}, "tissue must be a share"),
        ({"tile_size": 0}, "tile_size must be a whole number of 1 or more"),
        ({"tile_size": (1, 2, 3)}, "tile_size must be"),
        ({"overlap": -1}, "overlap must be a whole number of 0 or more"),
        ({"tile_size": 64, "overlap": 64}, r"overlap must be smaller than tile_size \(64, 64\)"),
    ],
)
def test_numbers_out_of_range(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        slide_tiles(tmp_path / "a.tif", **options)


def test_nothing_to_cut(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no slide: expected files ending in \.svs"):
        slide_tiles(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"slide '.*a\.tif' does not exist"):
        slide_tiles(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="there is no slide"):
        slide_tiles([])
