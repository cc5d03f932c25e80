# SPDX-License-Identifier: Apache-2.0
"""Detection in the table of formats: data and options that run in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
from dicom_samples import ORIENTATIONS
from samples import write_dataset

from monai_labelfx.data import load_datalist, save_datalist

SHAPES = {2: (40, 36), 3: (32, 28, 8)}
PRESETS = {2: ["2d"], 3: ["3d"]}
NETWORK = [
    *("--backbone", "{'depth': 10, 'features': 8}", "--pyramid_channels", "8", "--head_depth", "1"),
    *("--first_level", "2", "--extra_levels", "0"),
    # a network of one epoch is sure of nothing
    *("--detector_ops", json.dumps(["$@detector.set_box_selector_parameters(score_thresh=0, detections_per_img=6)"])),
]
_SIZES = {2: ["--image_size", "64"], 3: ["--window_size", "[24, 24, 8]"]}
_PATCH = {2: [], 3: ["--patch_size", "[24, 24, 8]"]}
OUTPUTS = {"detections": "boxes"}
"""File name postfix of each prediction -> what it is."""


def make_data(folder: Path, kind: str, spatial_dims: int) -> Path:
    """A datalist whose images take turns with all orientations; boxes from label maps (NIfTI) or in the list."""
    datalist = write_dataset(folder, kind, SHAPES[spatial_dims], labelled=4, orientations=list(ORIENTATIONS))
    if kind == "nifti":
        return datalist
    splits = load_datalist(datalist)
    for item in (item for items in splits.values() for item in items):
        label = np.asarray(nibabel.load(item.pop("label")).dataobj)
        item["box"] = [_box(label == number) for number in np.unique(label[label > 0])]
        item["box_label"] = [0] * len(item["box"])
    return save_datalist(datalist, splits)


def _box(mask: np.ndarray) -> list[int]:
    places = np.argwhere(mask)
    return [*places.min(axis=0).tolist(), *(places.max(axis=0) + 1).tolist()]


def training(spatial_dims: int) -> list[str]:
    """Options of training and evaluation."""
    steps = ["--batch_size", "2", "--max_epochs", "1", "--warmup_epochs", "0", "--learning_rate", "0.02"]
    return ["--preset", *PRESETS[spatial_dims], *NETWORK, *steps, *_SIZES[spatial_dims], *_PATCH[spatial_dims]]


def inference(spatial_dims: int, *presets: str) -> list[str]:
    """Options of inference with the network that :py:func:`training` made."""
    return ["--preset", *PRESETS[spatial_dims], *presets, *NETWORK, *_SIZES[spatial_dims], "--min_score", "0"]
