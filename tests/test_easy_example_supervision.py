# SPDX-License-Identifier: Apache-2.0
"""What the OEEM bundle learns from: patch labels. Masks of its images are for measuring, and change no weight."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from easy_example_bundle import (
    STAGES,
    equal_runs,
    glands,
    metrics,
    organs,
    pseudo_masks,
    read_json,
    read_splits,
    run,
    same_weights,
    ticks,
    write_splits,
)
from PIL import Image

TWICE = {"classifier_epochs": 2, "max_epochs": 2}
"""Two epochs, so that the better one is chosen."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return glands(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory) -> Path:
    """A run whose patch labels come from masks."""
    return run("train", tmp_path_factory.mktemp("whole") / "out", pictures, **TWICE)


def test_ticks_teach_the_same_as_the_masks_they_come_from(whole, pictures, tmp_path):
    """Bit for bit, with masks that do not exist any more."""
    data = tmp_path / "data"
    shutil.copytree(pictures.parent, data)
    datalist = ticks(tmp_path / "ticks", data / "datalist.json")
    shutil.rmtree(data / "label")
    shutil.rmtree(data / "instances")
    splits = read_splits(datalist)
    for item in (item for split in splits.values() for item in split):
        del item["instances"]
    out = run("train", tmp_path / "out", write_splits(datalist, splits), **TWICE)
    assert equal_runs(whole, out)
    reports = [read_json(folder / "stages" / STAGES[0] / "patch_labels.json") for folder in (whole, out)]
    assert reports[0] == reports[1]
    found = [metrics(folder / "stages" / STAGES[1]) for folder in (whole, out)]
    assert found[0]["CAM_consistency"] == found[1]["CAM_consistency"]
    assert set(found[0]) - set(found[1]) == {"CAM_mIoU", "pseudo_mIoU"}


def test_blocks_of_volumes_too(tmp_path):
    datalist = organs(tmp_path / "data", counts=(2, 1, 0))
    first = run("train", tmp_path / "first", datalist, dims=3)
    ticked = ticks(tmp_path / "ticks", datalist, dims=3)
    assert (tmp_path / "ticks" / "ticks.csv").read_text().startswith("image,x,y,z,width,height,depth,class_0,class_1")
    shutil.rmtree(tmp_path / "data" / "label")
    assert equal_runs(first, run("train", tmp_path / "second", ticked, dims=3))


def test_the_test_images_change_nothing(whole, pictures, tmp_path):
    splits = read_splits(pictures)
    generator = np.random.default_rng(0)
    for item in splits["test"]:
        for key, top in (("image", 256), ("label", 2)):
            array = np.asarray(Image.open(item[key]))
            item[key] = str(tmp_path / f"{key}_{Path(item[key]).name}")
            Image.fromarray(generator.integers(0, top, array.shape).astype(np.uint8)).save(item[key])
    assert equal_runs(whole, run("train", tmp_path / "out", write_splits(tmp_path / "datalist.json", splits), **TWICE))


def _inverted(folder: Path, datalist: Path) -> Path:
    splits = read_splits(datalist)
    folder.mkdir()
    for item in (item for split in ("training", "validation") for item in splits[split]):
        mask = np.asarray(Image.open(item["label"]))
        item["label"] = str(folder / Path(item["label"]).name)
        Image.fromarray(1 - mask).save(item["label"])
    return write_splits(folder / "datalist.json", splits)


def test_full_supervision_learns_masks(pictures, tmp_path):
    datalists = {"masks": pictures, "inverted": _inverted(tmp_path / "data", pictures)}
    for name, datalist in datalists.items():
        run("train", tmp_path / name, datalist, "--rival", "full_supervision", pictures=None)
    assert not (tmp_path / "masks" / "stages").exists()
    assert not same_weights(tmp_path / "masks", tmp_path / "inverted")


def test_patch_labels_mask_the_pseudo_masks(whole, pictures):
    """Where all patches around a pixel say that a class is absent, it is not in the pseudo mask."""
    from monai_labelfx.ops.patch_grid import patch_coverage
    from monai_labelfx.transforms import GridPatchLabels

    checked = 0
    for item in (item for split in ("training", "validation") for item in read_splits(pictures)[split]):
        mask = np.asarray(Image.open(item["label"])).T[None]
        found = GridPatchLabels(16, 8, absent=0.005)(mask)
        allowed = patch_coverage(found["patches"], (found["patch_labels"] != 0).long(), mask.shape[1:]).numpy() > 0
        pseudo = pseudo_masks(whole)[f"{Path(item['image']).stem}_pseudo.nii.gz"].reshape(mask.shape[1:])
        assert np.take_along_axis(allowed, pseudo[None].astype(int), 0).all()
        checked += int((~allowed).sum())
    assert checked > 100


def test_pixels_of_low_confidence_are_ignored_in_the_last_stage(pictures, tmp_path):
    out = run("train", tmp_path / "out", pictures, min_confidence=0.75)
    masks = pseudo_masks(out).values()
    share = float(np.mean([(mask != 255).mean() for mask in masks]))
    assert 0 < share < 1 and metrics(out / "stages" / STAGES[1])["labelled_share"] == pytest.approx(share, rel=1e-5)
    assert nibabel.load(next((out / "stages" / STAGES[1] / "pseudo").iterdir())).get_data_dtype() == np.uint8
