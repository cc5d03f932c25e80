# SPDX-License-Identifier: Apache-2.0
"""The patch metric in the table of formats: data and options that run in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from dicom_samples import ORIENTATIONS
from samples import discs, write_image

from monai_labelfx.data import save_datalist

SHAPES = {2: (40, 36), 3: (32, 28, 6)}
_LEVEL = {2: "2", 3: "[2, 2, 0]"}
_PATCH = {2: "[16, 16]", 3: "[16, 16, 4]"}
PRESETS = {2: ["small"], 3: ["3d", "small"]}
OUTPUTS = {"denoised": "series"}
"""File name postfix of each prediction -> what it becomes in DICOM."""


def make_data(folder: Path, kind: str, spatial_dims: int) -> Path:
    """A datalist of noisy and less noisy bodies in air; images take turns with all orientations."""
    splits: dict[str, list[dict]] = {}
    seed = 0
    for split, domains in (("training", ["low", "high"] * 2), ("validation", ["low", "high"]), ("test", ["low"] * 2)):
        for domain in domains:
            seed += 1
            place = folder / "images" / f"{split}{seed}"
            orientation = list(ORIENTATIONS)[seed % len(ORIENTATIONS)]
            item = {"domain": domain, "patient": f"p{seed}"}
            for key, noisy in [("image", domain == "low"), *([("reference", False)] if split == "test" else [])]:
                array = body(spatial_dims, seed, noisy)
                item[key] = str(write_image(place.with_name(f"{place.name}_{key}"), array, kind, orientation))
            splits.setdefault(split, []).append(item)
    return save_datalist(folder / "datalist.json", splits, path_keys=("image", "reference"))


def body(spatial_dims: int, seed: int, noisy: bool) -> np.ndarray:
    """Discs of 40 HU in air, and noise of 60 or 15 HU."""
    image = discs(SHAPES[spatial_dims], seed, radius=9.0)[0] * 12 - 1200
    noise = np.random.default_rng(seed + 1000 * noisy).normal(0, 60 if noisy else 15, image.shape)
    return np.rint(np.clip(image, -1000, 200) + noise).astype(np.float32)


def training(spatial_dims: int) -> list[str]:
    """Options of training and evaluation."""
    sizes = ["--batch_size", "2", "--max_epochs", "1", "--steps_per_epoch", "2", "--val_interval", "1"]
    medium = ["--noise_medium", "[-200, 400]", "--noise_patch", "8"]
    return [*inference(spatial_dims), *sizes, *medium, "--patch_size", _PATCH[spatial_dims], "--patches", "16"]


def inference(spatial_dims: int, *presets: str) -> list[str]:
    """Options of inference with the network that :py:func:`training` made."""
    network = ["--features", "8", "--level", _LEVEL[spatial_dims]]
    return ["--preset", *PRESETS[spatial_dims], *presets, *network]
