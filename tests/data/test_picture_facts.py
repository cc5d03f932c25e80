# SPDX-License-Identifier: Apache-2.0
"""Sizes and magnifications from headers."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

from monai_labelfx.data._picture_facts import picture_facts

RGB = np.zeros((12, 20, 3), np.uint8)


def facts(path, **keys):
    return picture_facts({"image": str(path), **keys})


@pytest.mark.parametrize("suffix", ["png", "bmp", "jpg"])
def test_pictures_and_the_print_resolution_that_says_nothing(tmp_path, suffix):
    Image.fromarray(RGB).save(tmp_path / f"a.{suffix}")
    found = facts(tmp_path / f"a.{suffix}")
    assert (found.shape, found.micrometres, found.magnification) == ((20, 12), None, None)
    for dpi in (72, 96, 300, 600):
        Image.fromarray(RGB).save(tmp_path / f"b.{suffix}", dpi=(dpi, dpi))
        assert facts(tmp_path / f"b.{suffix}").micrometres is None
    assert facts(tmp_path / f"b.{suffix}", mpp=0.5, magnification="20").micrometres == 0.5
    assert facts(tmp_path / f"b.{suffix}", mpp="0.5", magnification=20).magnification == 20


def test_pixel_size_of_png_and_tiff(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png", dpi=(25400 / 0.5, 25400 / 0.5))
    assert facts(tmp_path / "a.png").micrometres == pytest.approx(0.5, rel=1e-4)
    tifffile.imwrite(tmp_path / "a.tif", RGB, resolution=(1e4 / 0.25, 1e4 / 1.0), resolutionunit="CENTIMETER")
    found = facts(tmp_path / "a.tif")
    assert found.shape == (20, 12) and found.micrometres == pytest.approx(0.5), "geometric mean of both axes"
    tifffile.imwrite(tmp_path / "b.tif", RGB, resolution=(1e5, 1e5), resolutionunit="INCH")
    assert facts(tmp_path / "b.tif").micrometres is None
    stack = np.zeros((3, 12, 20), np.uint8)
    tifffile.imwrite(tmp_path / "c.ome.tif", stack, ome=True, metadata={"axes": "ZYX", "PhysicalSizeX": 0.3})
    assert facts(tmp_path / "c.ome.tif").shape == (20, 12, 3)
    item = {"image": [str(tmp_path / "a.png"), str(tmp_path / "a.png")]}
    assert picture_facts(item).shape == (20, 12)


def test_aperio_says_both(tmp_path):
    text = "Aperio Image Library v11.2.1 \n20x12 [0,0 20x12] -> 20x12 JPEG/RGB Q=30|AppMag = 20|MPP = 0.4990"
    tifffile.imwrite(tmp_path / "a.svs", RGB, description=text, metadata=None)
    found = facts(tmp_path / "a.svs")
    assert (found.shape, found.micrometres, found.magnification) == ((20, 12), 0.499, 20)
    tifffile.imwrite(tmp_path / "b.svs", RGB, description=text.replace("0.4990", "none"), metadata=None)
    assert facts(tmp_path / "b.svs").micrometres is None


def test_other_files_and_faults(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    assert facts(tmp_path / "a.nii.gz")[1:] == ((4, 5, 6), None, None)
    with pytest.raises(FileNotFoundError, match="no.png' does not exist"):
        facts(tmp_path / "no.png")
    for name in ("bad.png", "bad.tif", "bad.nii.gz", "bad.xyz"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(ValueError, match=name) as caught:
            facts(tmp_path / name)
        assert "\n" not in str(caught.value)
    Image.fromarray(RGB).save(tmp_path / "a.png")
    for value in (0, -1, "fine", True, float("nan"), float("inf"), [1]):
        with pytest.raises(ValueError, match="has mpp=.*, expected a number above 0"):
            facts(tmp_path / "a.png", mpp=value)
