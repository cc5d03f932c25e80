# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, MetaTensor

from monai_labelfx.engines.patch_label_report import PatchLabelReport
from monai_labelfx.ops.patch_label_statistics import patch_label_statistics
from monai_labelfx.transforms.grid_patch_labels import GridPatchLabelsd


def items_of(*labels, size=(8, 8)) -> list[dict]:
    return [{"image": torch.zeros(3, *size), "patch_labels": torch.tensor(one)} for one in labels]


def test_the_report_counts_all_images_and_is_written(tmp_path, caplog):
    items = items_of([[1, 0], [1, -1]], [[0, 1]], size=(8, 6, 4))
    with caplog.at_level(logging.INFO):
        report = PatchLabelReport(items, output_dir=tmp_path / "new", classes=["stroma", "gland"])()
    statistics = patch_label_statistics(torch.cat([item["patch_labels"] for item in items]))
    assert report == {
        "classes": ["stroma", "gland"],
        "images": 2,
        **statistics,
        "pixels": 2 * 192,
        "pixels_per_label": 384 / 5,
    }
    assert json.loads((tmp_path / "new" / "patch_labels.json").read_text()) == report
    assert [one.name for one in (tmp_path / "new").iterdir()] == ["patch_labels.json"]
    (line,) = [one for one in caplog.records if one.levelno == logging.INFO]
    assert "3 patches of 2 images, 5 labels for 384 voxels; stroma 67 % present, 0.92 bit; gland 50 %" in line.message
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


def test_a_transform_or_a_dataset_makes_the_labels():
    mask = torch.zeros(1, 8, 8)
    mask[..., 4:] = 1
    items = [{"image": np.zeros((3, 8, 8)), "label": mask}]
    twin = GridPatchLabelsd(patch_size=4)
    expected = PatchLabelReport(items, twin)()
    assert expected["present"] == [6, 6] and expected["absent"] == [3, 3]
    assert PatchLabelReport(CacheDataset(items, twin, progress=False))() == expected
    assert "patch_labels" not in items[0]


def test_labels_that_say_next_to_nothing_earn_a_warning(caplog):
    items = items_of([[1, 1]] * 111 + [[1, 0]] * 6)
    PatchLabelReport(items, classes=["stroma", "gland"])()
    (line,) = [one.message for one in caplog.records if one.levelno == logging.WARNING]
    assert "next to nothing about stroma (0.00 bit), gland (0.29 bit): nearly all patches" in line
    caplog.clear()
    PatchLabelReport(items, low_entropy=0)()
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


def test_the_background_of_foreground_scores_needs_no_label(caplog):
    for items in (items_of([[-1, 1], [-1, 0]]), items_of([[1, 1], [1, 0]])):
        report = PatchLabelReport(items, include_background=False)()
        assert report["entropy"] == [0.0, 1.0]
        assert not [one for one in caplog.records if one.levelno >= logging.WARNING]
    with pytest.raises(ValueError, match="'class_0' is never present"):
        PatchLabelReport(items_of([[-1, 1], [-1, 0]]))()
    with pytest.raises(ValueError, match="'class_1' is never present"):
        PatchLabelReport(items_of([[1, 0], [-1, 0]]), include_background=False)()


def test_what_no_training_can_use_is_refused_before_it_starts(tmp_path):
    with pytest.raises(
        ValueError, match="none of 2 patches of 1 images has a known label: tick some, or take thresholds"
    ):
        PatchLabelReport(items_of([[-1, -1], [-1, -1]]), output_dir=tmp_path)()
    with pytest.raises(
        ValueError, match="'gland' is never present in 2 patches of 1 images, so no training can find it"
    ):
        PatchLabelReport(items_of([[1, 0], [1, -1]]), output_dir=tmp_path, classes=["stroma", "gland"])()
    with pytest.raises(ValueError, match="there is no image to train a classifier on"):
        PatchLabelReport([])()
    with pytest.raises(
        ValueError, match=r"labels of item 1 must be \(N, 2\), one column per class, got shape \(1, 3\)"
    ):
        PatchLabelReport(items_of([[1, 1]], [[1, 1, 0]]))()
    for key in ("image", "patch_labels"):
        (item,) = items_of([[1, 1]])
        del item[key]
        with pytest.raises(KeyError, match=f"PatchLabelReport: item 0 has no '{key}'"):
            PatchLabelReport([item])()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="low_entropy must be from 0 to 1 bit, got 2"):
        PatchLabelReport([], low_entropy=2)
    with pytest.raises(ValueError, match="classes must be a number of 2 or above"):
        PatchLabelReport([], classes=1)


def test_nothing_of_the_meta_data_is_written(tmp_path):
    (item,) = items_of([[1, 0], [0, 1]])
    item["image"] = MetaTensor(item["image"], meta={"filename_or_obj": "secret.png"})
    PatchLabelReport([item], output_dir=tmp_path)()
    assert "secret" not in (tmp_path / "patch_labels.json").read_text()
