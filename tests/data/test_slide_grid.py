# SPDX-License-Identifier: Apache-2.0
"""Which voxels tiles are cut from."""

from __future__ import annotations

import pytest
from slide_samples import tissue_picture, write_slide, write_svs

from monai_labelfx.data._slide_file import open_slide
from monai_labelfx.data._slide_grid import SlideGrid, slide_grids, tile_of


def grid(path, *, level=None, mpp=None) -> SlideGrid:
    return slide_grids([{"image": str(path)}], key="image", level=level, mpp=mpp)[0]


@pytest.fixture
def slide(tmp_path):
    """0.25, 1 and 4 um per pixel."""
    return write_slide(tmp_path / "a.tif", tissue_picture(512, 320), mpp=0.25)


def test_levels_and_their_voxel_sizes(slide):
    assert grid(slide) == ((512, 320), 0, pytest.approx(0.25, rel=1e-4))
    assert grid(slide, level=2) == ((32, 20), 2, pytest.approx(4, rel=1e-4))
    assert grid(slide, level=1, mpp=None).mpp == pytest.approx(1, rel=1e-4)
    with pytest.raises(ValueError, match=r"a\.tif' has no level 3: it has 3, from 0"):
        grid(slide, level=3)


@pytest.mark.parametrize(
    ("mpp", "level", "shape", "found"),
    [(1, 1, (128, 80), 1), (1.04, 1, (128, 80), 1), (0.24, 0, (512, 320), 0.25), (0.5, 0, (256, 160), 0.5)]
    + [(0.62, 0, (206, 129), 0.62), (2, 1, (64, 40), 2), (40, 2, (3, 2), 40)],
)
def test_a_size_takes_a_level_or_reduces_the_next_finer_one(mpp, level, shape, found, slide):
    assert grid(slide, mpp=mpp) == (shape, level, pytest.approx(found, rel=1e-3))


def test_the_item_goes_before_the_file(slide, tmp_path):
    items = [{"image": str(slide), "mpp": 0.5}]
    assert slide_grids(items, key="image", level=1, mpp=None)[0].mpp == 2
    silent = write_slide(tmp_path / "silent.tif", tissue_picture(64, 64), mpp=None)
    assert grid(silent).mpp is None and "mpp" not in tile_of(open_slide(silent), grid(silent), (0, 0), (1, 1), (0,) * 4)
    with pytest.raises(ValueError, match=r"silent\.tif' does not say how large its pixels are: name a level"):
        grid(silent, mpp=1)
    with pytest.raises(ValueError, match=r"at best 0\.25 um per pixel, but mpp=0\.1 is asked for"):
        grid(slide, mpp=0.1)


def test_mixed_magnifications(slide, tmp_path):
    coarse = write_svs(tmp_path / "b.svs", tissue_picture(256, 256), mpp=1.0)
    items = [{"image": str(slide)}, {"image": str(coarse)}]
    with pytest.raises(ValueError, match=r"b\.svs' has 1 um per pixel and image '.*a\.tif' 0\.25, more than 10% apart"):
        slide_grids(items, key="image", level=None, mpp=None)
    sizes = [one.mpp for one in slide_grids(items, key="image", level=None, mpp=1.0)]
    assert sizes == pytest.approx([1, 1], rel=1e-3)
    powers = [write_svs(tmp_path / f"{mpp}.svs", tissue_picture(128, 128), mpp=mpp) for mpp in (0.5, 0.52)]
    assert len(slide_grids([{"image": str(path)} for path in powers], key="image", level=1, mpp=None)) == 2


def test_a_tile_knows_its_place_in_level_0(slide):
    one = tile_of(open_slide(slide), grid(slide, level=1), (10, 3), (20, 30), (12, 3, 5, 6))
    assert one["position"] == [40, 12] and one["shape"] == [128, 80] and one["core"] == [12, 3, 5, 6]
