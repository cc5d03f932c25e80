# SPDX-License-Identifier: Apache-2.0
"""Box tightness in the table of formats: data and options that run in seconds."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from dicom_samples import ORIENTATIONS
from samples import write_dataset

SHAPES = {2: (40, 36), 3: (32, 28, 6)}
_PATCH = {2: "[32, 32]", 3: "[32, 28, 6]"}
PRESETS = {2: ["2d"], 3: ["3d", "thin_stack"]}
NETWORK = ["--features", "4", "--depth", "2"]
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
    sizes = ["--batch_size", "2", "--max_epochs", "1", "--steps_per_epoch", "3"]
    return ["--preset", *PRESETS[spatial_dims], *NETWORK, *sizes, "--patch_size", _PATCH[spatial_dims]]


def inference(spatial_dims: int, *presets: str) -> list[str]:
    """Options of inference with the network that :py:func:`training` made."""
    return ["--preset", *PRESETS[spatial_dims], *presets, *NETWORK]
