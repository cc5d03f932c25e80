# SPDX-License-Identifier: Apache-2.0
"""Tiles of predictions put together: each voxel from the core of its tile."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, decollate_batch
from slide_samples import tissue_picture, write_slide

from monai_labelfx.data._slide_file import SlideFile
from monai_labelfx.data.load_slide_tile import LoadSlideTiled
from monai_labelfx.data.save_slide_tiles import SaveSlideTilesd
from monai_labelfx.data.slide_tiles import slide_tiles


def dark(image):
    """A prediction: 2 where it is dark."""
    return (image[..., :1, :, :].float().mean(-3, keepdim=True) < 220).float() * 2


def read(path) -> np.ndarray:
    slide = SlideFile(path, mask=True)
    return slide.region((0, 0), slide.shapes[0])


@pytest.mark.parametrize("size", [(200, 120), (40, 30)])
@pytest.mark.parametrize("order", [1, -1])
def test_it_equals_the_prediction_of_the_whole_slide(size, order, tmp_path):
    picture = tissue_picture(*size)
    tiles = slide_tiles(write_slide(tmp_path / "a.tif", picture), tile_size=64, overlap=16, tissue=None)
    save = SaveSlideTilesd("pred", output_dir=tmp_path / "out", tiles=tiles)
    for tile in tiles[::order]:
        assert not list((tmp_path / "out").glob("*"))
        save({"pred": dark(LoadSlideTiled()(tile)["image"])})
    wanted = np.where(picture[..., 0] < 220, 2, 0)
    assert np.array_equal(read(tmp_path / "out" / "a_segmentation.tif"), wanted) and wanted.any()


def test_only_the_core_of_a_tile_counts(tmp_path):
    """A network that errs at the borders of its tiles does not show."""
    tiles = slide_tiles(
        write_slide(tmp_path / "a.tif", tissue_picture(200, 120)), tile_size=64, overlap=16, tissue=None
    )
    save = SaveSlideTilesd("pred", output_dir=tmp_path, tiles=tiles, postfix="p")
    for tile in tiles:
        image = LoadSlideTiled()(tile)["image"]
        pred = image[:1] * 0 + 7
        pred[:, 8:-8, 8:-8] = 1
        save({"pred": pred})
    found = read(tmp_path / "a_p.tif")
    assert (found[8:-8, 8:-8] == 1).all() and (found[:8] == 7).all()


def test_what_was_left_out_is_background_and_the_size_is_kept(tmp_path):
    tiles = slide_tiles(write_slide(tmp_path / "a.tif", tissue_picture(256, 128)), tile_size=32, overlap=0, mpp=1.0)
    save = SaveSlideTilesd("pred", output_dir=tmp_path, tiles=tiles)
    for tile in tiles:
        save({"pred": LoadSlideTiled()(tile)["image"][:1] * 0 + 3})
    found = read(tmp_path / "a_segmentation.tif")
    assert found.shape == (128, 64) and (found[16:64, 16:48] == 3).all() and set(np.unique(found)) == {0, 3}
    assert slide_tiles(tmp_path / "a_segmentation.tif", tissue=None)[0]["tile"]["mpp"] == pytest.approx(1.0, rel=1e-4)


def test_several_slides_at_once_in_batches(tmp_path):
    pictures = {
        name: tissue_picture(*size, seed) for seed, (name, size) in enumerate({"a": (90, 70), "b": (70, 100)}.items())
    }
    for name, picture in pictures.items():
        write_slide(tmp_path / name / "slide.tif", picture)
    tiles = slide_tiles(tmp_path, tile_size=64, overlap=8, tissue=None)
    mixed = [tiles[n] for n in np.random.default_rng(0).permutation(len(tiles))]
    save = SaveSlideTilesd("pred", output_dir=tmp_path / "out", tiles=tiles)
    for batch in DataLoader(Dataset(mixed, LoadSlideTiled()), batch_size=1):
        batch["pred"] = dark(batch["image"])
        for item in decollate_batch(batch):
            save(item)
    for name, picture in pictures.items():
        assert np.array_equal(
            read(tmp_path / "out" / name / "slide_segmentation.tif"), np.where(picture[..., 0] < 220, 2, 0)
        )


def test_an_unfinished_slide_leaves_nothing(tmp_path):
    tiles = slide_tiles(write_slide(tmp_path / "a.tif", tissue_picture(200, 120)), tile_size=64, overlap=16)
    save = SaveSlideTilesd("pred", output_dir=tmp_path / "out", tiles=tiles)
    for tile in tiles[:-1]:
        save({"pred": dark(LoadSlideTiled()(tile)["image"])})
    del save
    assert list((tmp_path / "out").iterdir()) == []


def test_memory_is_that_of_a_tile(tmp_path):
    picture = tissue_picture(2048, 2048)
    tiles = slide_tiles(write_slide(tmp_path / "a.tif", picture, tile=128), tile_size=128, overlap=32, tissue=0)
    load, save = LoadSlideTiled(), SaveSlideTilesd("pred", output_dir=tmp_path, tiles=tiles)
    load(tiles[0])
    tracemalloc.start()
    for tile in tiles:
        save({"pred": load(tile)["image"][:1] // 100})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "a_segmentation.tif").is_file() and peak < 2.5e6 < picture.nbytes / 5, peak


def test_wrong_predictions(tmp_path):
    tiles = slide_tiles(write_slide(tmp_path / "a.tif", tissue_picture(100, 64)), tile_size=64, overlap=0, tissue=None)
    save = SaveSlideTilesd("pred", output_dir=tmp_path / "out", tiles=tiles[:1])
    image = LoadSlideTiled()(tiles[0])["image"]
    for pred, message in [
        (image, r"tile \(64, 64\) of slide '.*a\.tif' must be \(1, x, y\), got \(3, 64, 64\)"),
        (image[:1] * 0.5, "must hold class numbers from 0 to 255, found .* put AsDiscreted before"),
        (image[:1].float() * 0 + 256, "must hold class numbers"),
        (image[:1].float() * 0 - 1, "must hold class numbers"),
        (torch.zeros(1, 64, 64), "needs a prediction with the meta data of LoadSlideTiled, found none"),
        (LoadSlideTiled()(tiles[1])["image"][:1], "is not among those to write"),
    ]:
        with pytest.raises(ValueError, match=message):
            save({"pred": pred})
    save({"pred": image[:1]})
    with pytest.raises(ValueError, match="or was there before"):
        save({"pred": image[:1]})
    with pytest.raises(ValueError, match="takes one key, in one process"):
        SaveSlideTilesd(["pred", "other"], output_dir=tmp_path, tiles=tiles)
    assert SaveSlideTilesd("pred", output_dir=tmp_path, tiles=tiles, allow_missing_keys=True)({"image": 1}) == {
        "image": 1
    }


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="in one process, got .* in 2"):
        SaveSlideTilesd("pred", output_dir=tmp_path, tiles=[])
