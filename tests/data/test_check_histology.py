# SPDX-License-Identifier: Apache-2.0
"""What a bundle refuses before it trains on pictures."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

from monai_labelfx.data import load_datalist
from monai_labelfx.data.gland_samples import synthetic_glands
from monai_labelfx.data.organ_samples import synthetic_organs

check_histology = importlib.import_module("monai_labelfx.data.check_histology").check_histology
PALETTE = {"#000000": 0, "#00ff00": 1}


@pytest.fixture
def splits(tmp_path):
    return load_datalist(synthetic_glands(tmp_path / "data", counts=(4, 2, 2), size=48, per_patient=2, scale=0.5))


def refused(match: str, splits, error: type[Exception] = ValueError, **options) -> None:
    with pytest.raises(error, match=match) as caught:
        check_histology(splits, **options)
    assert "\n" not in str(caught.value)


def test_what_is_fine_is_silent(splits, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        facts = check_histology(splits, patch=48, classes=2)
        check_histology(splits, patch=(32, 48), classes=2, tolerance=0)
        volumes = load_datalist(synthetic_organs(tmp_path / "organs", counts=(1, 1, 0), size=(16, 16, 16)))
        check_histology(volumes, patch=16, classes=2)
    assert len(facts) == 8 and {one.shape for one in facts} == {(48, 48)}
    assert facts[0].name == splits["training"][0]["image"] and facts[0].micrometres == pytest.approx(1.24, rel=1e-3)


def test_mixed_magnifications_name_two_files(splits, tmp_path):
    other = load_datalist(synthetic_glands(tmp_path / "b", counts=(1, 0, 0), size=48, scale=0.45))
    mixed = {"training": [*splits["training"], *other["training"]]}
    refused(
        "'.*b/image/training_000.png' has 1.378 um per pixel and image '.*data/image/.*' 1.24, more than 10% apart",
        mixed,
    )
    check_histology(mixed, tolerance=0.12)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((48, 48, 3), np.uint8), resolution=(4e4, 4e4), resolutionunit=3)
    image = {"image": str(tmp_path / "a.tif")}
    refused("and image '.*a.tif' 0.25, more", {**splits, "test": [image]})
    check_histology({**splits, "test": [image | {"mpp": 1.24}]})
    items = [item | {"magnification": 40 if n else 20} for n, item in enumerate(splits["training"])]
    refused("training_003.png' has 40 as magnification and image '.*training_000.png' 20", {"training": items})
    refused("has mpp='x', expected a number above 0", {"training": [splits["training"][0] | {"mpp": "x"}]})


def test_masks_with_unknown_colours_or_values(splits, tmp_path):
    item = splits["training"][0]
    rgb = np.zeros((48, 48, 3), np.uint8)
    rgb[:20, :, 1] = 255
    path = tmp_path / "mask.png"

    def mask(array: np.ndarray):
        Image.fromarray(array).save(path)
        return {"training": [item | {"label": str(path)}]}

    check_histology(mask(rgb), palette=PALETTE, classes=2)
    refused("mask '.*mask.png' has 3 channels that differ, expected one of class numbers: name its colours", mask(rgb))
    rgb[0, :5] = (1, 254, 0)
    refused("mask '.*mask.png': the mask has the colour #01fe00 at 5 pixels, expected only", mask(rgb), palette=PALETTE)
    refused("has the colour #01fe00", mask(np.dstack([rgb, rgb[..., 1]])), palette=PALETTE)
    grey = np.zeros((48, 48), np.uint8)
    grey[3, 3:6] = 255
    check_histology(mask(grey), classes=2)
    check_histology(mask(np.dstack([grey] * 3)), classes=2)
    check_histology(mask(grey), palette={"#000000": 0, "#ffffff": 1}, classes=2)
    refused("holds the value 255 at 3 pixels, expected only 0, 1$", mask(grey), classes=2, ignored=None)
    refused("holds the value 17 at 3 pixels, expected only 0, 1, 2, 255$", mask(grey // 15), classes=3)
    refused("holds the value 2 at", mask(rgb // 255), palette={"#000000": 0, "#000100": 2}, classes=2)


def test_masks_of_another_size_missing_and_corrupt_files(splits, tmp_path):
    item = splits["training"][0]
    Image.fromarray(np.zeros((48, 47), np.uint8)).save(tmp_path / "mask.png")
    small = {"training": [item | {"label": str(tmp_path / "mask.png")}]}
    refused(r"mask '.*mask.png' has \(47, 48\) pixels, but its image '.*' has \(48, 48\)", small)
    gone = {"training": [item | {"label": str(tmp_path / "no.png")}]}
    refused("no.png' does not exist", gone, FileNotFoundError)
    Path(item["image"]).write_bytes(Path(item["image"]).read_bytes()[:20])
    refused("training_000.png' cannot be read", splits)
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)), tmp_path / "a.nii")
    Path(tmp_path / "b.nii").write_bytes((tmp_path / "a.nii").read_bytes()[:200])
    refused("b.nii", {"training": [{"image": str(tmp_path / "b.nii")}]})


def test_images_smaller_than_a_patch_are_told(splits, tmp_path):
    with pytest.warns(
        UserWarning, match=r"8 of 8 images are smaller than a patch of 49 pixels .first '.*' with .48, 48"
    ):
        check_histology(splits, patch=49)
    with pytest.warns(UserWarning, match="smaller than a patch"):
        check_histology(splits, patch=(16, 64))
    refused(r"patch is \(16, 16, 16\), but image '.*' has 2 axes", splits, patch=(16, 16, 16))
    refused("patch is 0, but image", splits, patch=0)


@pytest.mark.parametrize("word", ["patient", "slide"])
def test_patients_in_two_splits(splits, word):
    shared = {
        split: [{key: value for key, value in item.items() if key != "patient"} | {word: "p7"} for item in items]
        for split, items in splits.items()
    }
    refused(f"{word} 'p7' has images in training and in validation", shared)
    with pytest.warns(UserWarning, match=f"1 of 1 {word}s of the test, such as 'p7', also have images in training"):
        check_histology({"training": shared["training"], "test": shared["test"]})
    with pytest.warns(UserWarning, match="also have images in training or validation"):
        check_histology({"validation": shared["validation"], "test": shared["test"]})


def test_bad_arguments(splits):
    refused("tolerance must be 0 or above, got -1", splits, tolerance=-1)
    refused("there is no item to check", {"training": []})
    refused("'#rrggbb'", splits, palette={"green": 1})
