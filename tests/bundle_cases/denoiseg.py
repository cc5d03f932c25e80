# SPDX-License-Identifier: Apache-2.0
"""DenoiSeg in the table of formats: data and options that run in seconds."""

from __future__ import annotations

from pathlib import Path

from dicom_samples import ORIENTATIONS
from samples import write_dataset

SHAPES = {2: (40, 36), 3: (32, 28, 6)}
_PATCH = {2: "[16, 16]", 3: "[16, 16, 4]"}
PRESETS = {2: ["2d"], 3: ["3d", "thin_stack"]}
NETWORK = ["--features", "4", "--depth", "2"]
OUTPUTS = {"denoised": "series", "instances": "seg"}
"""File name postfix of each prediction -> what it becomes in DICOM."""


def make_data(folder: Path, kind: str, spatial_dims: int) -> Path:
    """A datalist whose images take turns with all orientations."""
    return write_dataset(folder, kind, SHAPES[spatial_dims], orientations=list(ORIENTATIONS))


def training(spatial_dims: int) -> list[str]:
    """Options of training and evaluation."""
    sizes = ["--batch_size", "2", "--max_epochs", "1", "--steps_per_epoch", "3"]
    return ["--preset", *PRESETS[spatial_dims], *NETWORK, *sizes, "--patch_size", _PATCH[spatial_dims]]


def inference(spatial_dims: int, *presets: str) -> list[str]:
    """Options of inference with the network that :py:func:`training` made."""
    return ["--preset", *PRESETS[spatial_dims], *presets, *NETWORK]
