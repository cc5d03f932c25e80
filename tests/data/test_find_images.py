# SPDX-License-Identifier: Apache-2.0
"""find_images: files, series, X-rays and exports are told apart."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from dicom_samples import CASES, new_slice, phantom, save, series_slices, write_series

from monai_labelfx.data import find_images


def test_files_and_series_are_told_apart(tmp_path):
    for name in ("b.nii.gz", "a.PNG", "readme.md", ".hidden.png"):
        (tmp_path / name).touch()
    for name in ("s1", "s2"):
        write_series(tmp_path / name, phantom())
    (tmp_path / "s3").mkdir()
    shutil.copy(tmp_path / "s1" / "0000.dcm", tmp_path / "s3" / "IM0")
    shutil.copy(tmp_path / "s1" / "0001.dcm", tmp_path / "s3" / "IM.1.2.840")
    found = [item["image"] for item in find_images(tmp_path)]
    assert found == [str(tmp_path / name) for name in ("a.PNG", "b.nii.gz", "s1", "s2", "s3")]
    assert find_images(tmp_path / "b.nii.gz", key="x") == [{"x": str(tmp_path / "b.nii.gz")}]
    assert find_images(tmp_path / "s1") == [{"image": str(tmp_path / "s1")}]


def test_each_x_ray_of_a_folder_is_an_image(tmp_path):
    x_rays = [new_slice(np.full((6, 5), n, np.uint16), modality="DX") for n in range(3)]
    save(tmp_path, x_rays, shuffled=False)
    assert [item["image"] for item in find_images(tmp_path)] == [str(tmp_path / f"{n:04d}.dcm") for n in range(3)]


def test_a_series_can_be_chosen_anywhere_below(tmp_path):
    CASES["two series in one folder"](tmp_path / "patient" / "study")
    third = series_slices(phantom((16, 12, 1)))
    save(tmp_path / "patient" / "other", third)
    uid = third[0].SeriesInstanceUID
    assert find_images(tmp_path, series=uid) == [{"image": [str(tmp_path / "patient" / "other" / "0000.dcm")]}]
    names = {image["image"] for image in find_images(tmp_path)}
    assert names == {str(tmp_path / "patient" / name) for name in ("other", "study")}
    with pytest.raises(ValueError, match=r"no series '1\.2\.3' below .*CT, 8 images"):
        find_images(tmp_path, series="1.2.3")


def test_nothing_to_find_is_said(tmp_path):
    (tmp_path / "notes").touch()
    with pytest.raises(FileNotFoundError, match="holds no image"):
        find_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="no image at"):
        find_images(tmp_path / "nowhere")
