# SPDX-License-Identifier: Apache-2.0
"""From patch labels alone the bundle learns where glands and organs are: directions, not numbers."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from easy_example_bundle import STAGES, call, glands, metrics, organs, read_json, read_splits

GLANDS = {
    "patch_size": "16",
    "patch_stride": "8",
    "input_size": "[32, 32]",
    "crop_size": "[64, 64]",
    "cam_scales": "[1]",
    "scales": "[1]",
    "classifier_epochs": "4",
    "max_epochs": "4",
}
ORGANS = {
    "patch_size": "24",
    "patch_stride": "12",
    "picture_range": "[-200, 300]",
    "input_size": "[12, 12, 6]",
    "cam_window": "[12, 12, 6]",
    "crop_size": "[24, 24, 16]",
    "tile_size": "[32, 32, 16]",
    "scales": "[1]",
    "classifier_epochs": "6",
    "max_epochs": "6",
}


def background_alone(datalist: Path, splits: tuple[str, ...]) -> float:
    """Pooled mIoU of two classes where everything is called background."""
    items = [item for split in splits for item in read_splits(datalist)[split]]
    shares = [np.asarray(_mask(item["label"]) == 0).mean() for item in items]
    return float(np.mean(shares)) / 2


def _mask(path: str) -> np.ndarray:
    if path.endswith(".png"):
        from PIL import Image

        return np.asarray(Image.open(path))
    return np.asarray(nibabel.load(path).dataobj)


def learn(out: Path, datalist: Path, preset: str, values: dict[str, str]) -> None:
    """Train and evaluate, and compare what each stage adds."""
    options = ["--datalist", datalist, "--preset", preset]
    options += [part for name, value in values.items() for part in (f"--{name}", value)]
    assert call("train", out, *options) == 0
    assert call("evaluate", out, *options) == 0
    accuracy = [value for _, value in read_json(out / "stages" / STAGES[0] / "history.json")["patch_balanced_accuracy"]]
    found, empty = metrics(out), background_alone(datalist, ("training", "validation"))
    print(accuracy, {key: found[key] for key in ("CAM_mIoU", "pseudo_mIoU", "mIoU")}, empty)
    assert max(accuracy) > 0.7, accuracy  # 0.5 is chance
    assert found["pseudo_mIoU"] > found["CAM_mIoU"] > empty, (found, empty)
    assert found["mIoU"] > background_alone(datalist, ("test",)), found


@pytest.mark.slow
def test_glands_are_found_from_patch_labels(tmp_path):
    learn(tmp_path / "out", glands(tmp_path / "data", counts=(12, 4, 6), size=96, scale=0.5), "small", GLANDS)


@pytest.mark.slow
def test_organs_are_found_from_block_labels(tmp_path):
    learn(tmp_path / "out", organs(tmp_path / "data", counts=(14, 4, 4), size=(32, 32, 16)), "3d", ORGANS)
