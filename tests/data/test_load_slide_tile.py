# SPDX-License-Identifier: Apache-2.0
"""A tile as a MetaTensor: right side up, at its place, and with little memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import tifffile
import torch
from monai.data import DataLoader, Dataset, decollate_batch
from monai.transforms import Compose
from PIL import Image
from slide_samples import tissue_picture, write_slide

from monai_labelfx.data import AutoReader
from monai_labelfx.data.load_slide_tile import LoadSlideTiled
from monai_labelfx.data.slide_tiles import slide_tiles


def test_it_lands_right_side_up_as_a_png_does(tmp_path):
    picture = tissue_picture(150, 100)
    picture[:5, :3] = (200, 0, 0)  # a corner that has no like: left, above
    path = write_slide(tmp_path / "a.tif", picture)
    Image.fromarray(np.ascontiguousarray(picture.swapaxes(0, 1))).save(tmp_path / "a.png")
    png, _ = AutoReader().get_data([str(tmp_path / "a.png")])
    for item in slide_tiles(path, tile_size=64, overlap=16, tissue=None):
        (x, y), (w, h) = item["tile"]["start"], item["tile"]["size"]
        image = LoadSlideTiled()(item)["image"]
        assert image.dtype == torch.uint8 and tuple(image.shape) == (3, w, h)
        assert np.array_equal(np.moveaxis(image.numpy(), 0, -1), png[x : x + w, y : y + h])


@pytest.mark.parametrize("mpp", [0.5, None])
@pytest.mark.parametrize("cut", [{"level": 0}, {"level": 1}, {"mpp": 1.25}])
def test_the_affine_places_it_on_the_whole_slide(cut, mpp, tmp_path):
    """A voxel of a tile lies in the middle of the voxels of level 0 that it stands for."""
    if mpp is None and "mpp" in cut:
        cut = {"level": 2}
    path = write_slide(tmp_path / "a.tif", tissue_picture(320, 160), mpp=mpp)
    item = slide_tiles(path, tile_size=20, overlap=0, tissue=None, **cut)[-1]
    image = LoadSlideTiled()(item)["image"]
    ratio = 320 / item["tile"]["shape"][0]
    own = 1.0 if mpp is None else mpp / 1000
    for voxel in ((0, 0), (3, 5)):
        place = (image.affine @ torch.tensor([*voxel, 0.0, 1.0], dtype=torch.float64))[:2].numpy()
        wanted = [((s + v + 0.5) * ratio - 0.5) * own for s, v in zip(item["tile"]["start"], voxel, strict=True)]
        assert place == pytest.approx(wanted, rel=1e-3)
    assert image.meta["filename_or_obj"] == str(path)


def test_places_survive_batches_and_workers(tmp_path):
    path = write_slide(tmp_path / "a.tif", tissue_picture(200, 100))
    tiles = [{**tile, "patient": "P"} for tile in slide_tiles(path, tile_size=64, overlap=16, tissue=None)]
    loader = DataLoader(Dataset(tiles, Compose([LoadSlideTiled()])), batch_size=3, num_workers=1)
    found = [item for batch in loader for item in decollate_batch(batch)]
    assert len(found) == len(tiles) and all("tile" not in item and item["patient"] == "P" for item in found)
    for item, tile in zip(found, tiles, strict=True):
        for name in ("start", "core", "size", "shape"):
            assert [int(n) for n in item["image"].meta[f"tile_{name}"]] == tile["tile"][name]
        assert torch.equal(item["image"], LoadSlideTiled()(tile)["image"])


def test_memory_of_an_epoch_is_that_of_a_tile(tmp_path):
    picture = tissue_picture(2048, 1024)
    path = write_slide(tmp_path / "a.tif", picture, tile=128)
    tiles = slide_tiles(path, tile_size=128, overlap=32, tissue=0)
    load = LoadSlideTiled()
    load(tiles[0])
    tracemalloc.start()
    for tile in tiles:
        load(tile)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(tiles) > 40 and peak < 5e5 < picture.nbytes / 10, peak


def test_only_touched_tiles_of_the_file_are_decoded(tmp_path, monkeypatch):
    path = write_slide(tmp_path / "a.tif", tissue_picture(512, 256), tile=64)
    tiles = slide_tiles(path, tile_size=64, overlap=0, tissue=None)
    read = []
    whole = tifffile.FileHandle.read_segments
    monkeypatch.setattr(
        tifffile.FileHandle, "read_segments", lambda self, o, *a, **k: read.append(len(o)) or whole(self, o, *a, **k)
    )
    for tile in tiles:
        LoadSlideTiled()(tile)
    assert read == [1] * len(tiles) == [1] * 32


def test_items_without_a_tile(tmp_path):
    with pytest.raises(KeyError, match="the item has no 'tile': LoadSlideTiled loads items of slide_tiles"):
        LoadSlideTiled()({"image": "a.tif"})
    path = write_slide(tmp_path / "a.tif", tissue_picture(64, 64))
    tile = slide_tiles(path)[0]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.tif"):
        LoadSlideTiled()(tile)
