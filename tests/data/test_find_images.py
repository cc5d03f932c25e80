# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from monai_labelfx.data import find_images


def test_files_and_series_are_told_apart(tmp_path):
    for name in ("b.nii.gz", "a.PNG", "readme.md", ".hidden.png"):
        (tmp_path / name).touch()
    for series in ("s1", "s2"):
        (tmp_path / series).mkdir()
        for number in range(3):
            (tmp_path / series / f"{number}.dcm").touch()
    (tmp_path / "s3").mkdir()
    (tmp_path / "s3" / "IM0").write_bytes(b"\0" * 128 + b"DICM")
    found = [item["image"] for item in find_images(tmp_path)]
    assert found == [str(tmp_path / name) for name in ("a.PNG", "b.nii.gz", "s1", "s2", "s3")]
    assert find_images(tmp_path / "b.nii.gz", key="x") == [{"x": str(tmp_path / "b.nii.gz")}]
    assert find_images(tmp_path / "s1") == [{"image": str(tmp_path / "s1")}]


def test_nothing_to_find_is_said(tmp_path):
    (tmp_path / "notes").touch()
    with pytest.raises(FileNotFoundError, match="holds no image"):
        find_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="no image at"):
        find_images(tmp_path / "nowhere")
