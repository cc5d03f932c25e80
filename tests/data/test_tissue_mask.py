# SPDX-License-Identifier: Apache-2.0
"""Tissue and glass on small slides."""

from __future__ import annotations

import numpy as np
import pytest
from slide_samples import GLASS, tissue_picture, write_slide

from monai_labelfx.data import _tissue_mask
from monai_labelfx.data._slide_file import SlideFile
from monai_labelfx.data._tissue_mask import thumbnail, tissue_mask


def slide_of(path, picture, **options) -> SlideFile:
    return SlideFile(write_slide(path, picture, **options))


def noise(width, height, colour, spread, seed=0):
    generator = np.random.default_rng(seed)
    picture = np.array(colour) + generator.integers(-spread, spread + 1, (width, height, 3))
    return picture.clip(0, 255).astype(np.uint8)


def test_the_block_is_tissue_and_the_glass_is_not(tmp_path):
    picture = tissue_picture(200, 120)
    wanted = np.zeros((200, 120), bool)
    wanted[25:100, 30:90] = True
    found = tissue_mask(slide_of(tmp_path / "a.tif", picture, levels=1))
    assert found.shape == (200, 120), "x first, as the slide"
    assert (found != wanted).sum() <= 8, "corners, at most"


def test_a_lumen_is_tissue_and_specks_are_not(tmp_path):
    picture = tissue_picture(200, 120)
    picture[50:70, 50:60] = GLASS
    picture[150, 100] = (180, 80, 150)
    found = tissue_mask(slide_of(tmp_path / "a.tif", picture, levels=1))
    assert found[50:70, 50:60].all() and not found[150, 100]


@pytest.mark.parametrize(
    ("picture", "share"),
    [
        (noise(80, 60, (242, 242, 244), 3), 0),  # empty, with noise
        (noise(80, 60, (240, 232, 228), 3), 0),  # warm light
        (noise(80, 60, (3, 2, 4), 3), 0),  # nothing scanned
        (noise(80, 60, (190, 90, 150), 40), 1),  # nothing but tissue
        (np.full((80, 60), 200, np.uint8), 0),  # grey
    ],
    ids=["empty", "warm", "black", "full", "grey"],
)
def test_slides_of_one_kind_are_not_cut_in_two(picture, share, tmp_path):
    found = tissue_mask(slide_of(tmp_path / "a.tif", picture, levels=1))
    assert abs(found.mean() - share) < 0.02


def test_pale_and_strong_tissue_are_both_found(tmp_path):
    """Otsu alone would separate the strong from the pale one."""
    picture = np.full((120, 80, 3), GLASS, np.uint8)
    picture[:40], picture[60:100] = (225, 190, 215), (150, 20, 90)
    found = tissue_mask(slide_of(tmp_path / "a.tif", picture, levels=1))
    assert found[2:38, 2:78].all() and found[62:98, 2:78].all() and not found[42:58].any()


def test_the_smallest_level_that_is_large_enough_is_read(tmp_path, monkeypatch):
    slide = slide_of(tmp_path / "a.tif", tissue_picture(512, 256))
    read = []
    region = SlideFile.region
    monkeypatch.setattr(
        SlideFile, "region", lambda self, s, n, level=0: read.append(level) or region(self, s, n, level)
    )
    assert thumbnail(slide).shape == (512, 256, 3)
    monkeypatch.setattr(_tissue_mask, "_SMALLEST", 100)
    assert thumbnail(slide).shape == (128, 64, 3)
    monkeypatch.setattr(_tissue_mask, "_LARGEST", 50)
    assert thumbnail(slide).shape == (50, 25, 3)
    assert set(read) == {0, 1} and read[0] == 0 and read[-1] == 1
