# SPDX-License-Identifier: Apache-2.0
"""OutputLayout: one file for each image."""

from __future__ import annotations

import numpy as np
import pytest
from monai.data import MetaTensor
from monai.transforms import SaveImage

from monai_labelfx.data import OutputLayout


def names(images, **options) -> list[str]:
    layout = OutputLayout("out", postfix="seg", extension=".nii", images=images, **options)
    paths = [image if isinstance(image, str) else image["image"] for image in images]
    return [layout.filename(path if isinstance(path, str) else path[0]).replace("\\", "/") for path in paths]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (["a/x.nii.gz", "a/y.PNG"], ["out/x_seg.nii", "out/y_seg.nii"]),
        (["deep/down/x.dcm"], ["out/x_seg.nii"]),
        (["p1/series1", "p2/series1"], ["out/p1/series1_seg.nii", "out/p2/series1_seg.nii"]),
        (["s/1.2.3.100", "s/1.2.3.101"], ["out/1.2.3.100_seg.nii", "out/1.2.3.101_seg.nii"]),
        (["a/x.png", "a/x.tif", "a/y.tif"], ["out/x.png_seg.nii", "out/x.tif_seg.nii", "out/y_seg.nii"]),
        ([{"image": ["e/1.dcm", "e/2.dcm"]}, {"image": "e/f/1.dcm"}], ["out/1_seg.nii", "out/f/1_seg.nii"]),
    ],
)
def test_each_image_has_a_file_of_its_own(images, expected):
    assert names(images) == expected


def test_absolute_and_relative_paths_are_one(tmp_path):
    layout = OutputLayout("out", postfix="seg", extension=".nii", images=["a/x.nii"])
    assert layout.filename(str(tmp_path / "a" / "x.nii")) == layout.filename("a/x.nii")


def test_save_image_writes_all(tmp_path):
    images = ["p1/1.2.3", "p2/1.2.3", "p2/1.2.4"]
    layout = OutputLayout("out", postfix="seg", extension=".nii", images=images)
    save = SaveImage(folder_layout=layout, output_ext=".nii", writer="monai_labelfx.data.NiftiWriter", print_log=False)
    for number, image in enumerate(images):
        save(MetaTensor(np.full((1, 2, 2, 2), number), meta={"filename_or_obj": image}))
    assert len([path for path in tmp_path.rglob("*.nii")]) == 3


def test_what_would_overwrite_or_is_unknown_is_refused():
    with pytest.raises(ValueError, match="listed twice"):
        names(["a/x.nii", "a/../a/x.nii"])
    layout = OutputLayout("out", postfix="seg", extension=".nii", images=["a/x.nii"])
    with pytest.raises(ValueError, match="'a/y.nii' is not among the 1 images"):
        layout.filename("a/y.nii")
