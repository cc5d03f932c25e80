# SPDX-License-Identifier: Apache-2.0
"""OEEM in the table of formats: data and options that run in seconds."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from dicom_samples import ORIENTATIONS
from samples import write_dataset

SHAPES = {2: (40, 36), 3: (32, 28, 6)}
PRESETS = {2: ["small", "intensity"], 3: ["3d"]}
WIDTHS = ["--features", "[4, 8, 8, 8]", "--scales", "[1]"]
SIZES = {
    2: {"patch_size": "16", "patch_stride": "8", "input_size": "[16, 16]", "crop_size": "[32, 32]"},
    3: {"patch_size": "16", "patch_stride": "8", "input_size": "[16, 16, 4]", "crop_size": "[32, 32, 8]"},
}
OUTPUTS = {"segmentation": "seg"}
"""File name postfix of each prediction -> what it becomes in DICOM."""


def make_data(folder: Path, kind: str, spatial_dims: int) -> Path:
    """A datalist whose images take turns with all orientations; every label is one class of several objects."""
    datalist = write_dataset(folder, kind, SHAPES[spatial_dims], labelled=4, orientations=list(ORIENTATIONS))
    for path in sorted((folder / "labels").glob("*.nii.gz")):
        label = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image((np.asarray(label.dataobj) > 0).astype(np.uint8), label.affine), path)
    return datalist


def training(spatial_dims: int) -> list[str]:
    """Options of training and evaluation."""
    steps = {"classifier_epochs": "1", "classifier_steps": "2", "max_epochs": "1", "steps_per_epoch": "2"}
    small = {
        "batch_size": "2",
        "images_per_batch": "2",
        "patches_per_image": "2",
        "cam_features": "4",
        "cam_scales": "[1]",
    }
    values = {**SIZES[spatial_dims], **steps, **small}
    return ["--preset", *PRESETS[spatial_dims], *WIDTHS, *(part for k, v in values.items() for part in (f"--{k}", v))]


def inference(spatial_dims: int, *presets: str) -> list[str]:
    """Options of inference with the network that :py:func:`training` made."""
    return ["--preset", *PRESETS[spatial_dims], *presets, *WIDTHS]
