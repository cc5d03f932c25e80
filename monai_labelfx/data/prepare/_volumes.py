# SPDX-License-Identifier: Apache-2.0
"""What the adapters of volumes share: one grid for image and mask, a mask of 0 and 1, a split by patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_labelfx.data.nifti_writer import NiftiWriter
from monai_labelfx.data.prepare._splits import split_by_image

_NEAR = 0.1  # of a voxel: headers are rounded, and a mask that is off by more was drawn on another grid


def save_volume(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write a NIfTI file (x, y[, z]); the same values give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = NiftiWriter()
    writer.set_data_array(array, channel_dim=None)
    writer.affine = np.asarray(affine, dtype=np.float64)
    writer.write(path, verbose=False)


def check_same_grid(
    mask: Path,
    shape: Sequence[int],
    affine: np.ndarray,
    *,
    image: Path,
    image_shape: Sequence[int],
    expected: np.ndarray,
) -> None:
    """Refuse a mask whose voxels are not those of its image, up to a tenth of a voxel anywhere."""
    if tuple(shape) != tuple(image_shape):
        raise ValueError(
            f"mask {str(mask)!r} has shape {tuple(shape)}, but its image {str(image)!r} has {tuple(image_shape)}"
        )
    ends = np.array([[x, y, z, 1] for x in (0, shape[0]) for y in (0, shape[1]) for z in (0, shape[2])]).T
    offset = np.abs((np.linalg.inv(expected) @ affine - np.eye(4)) @ ends).max()
    if not offset <= _NEAR:  # also when it is NaN
        raise ValueError(
            f"mask {str(mask)!r} lies up to {offset:.2f} voxels away from its image {str(image)!r}, expected one grid"
        )


def split_by_subject(
    items: Sequence[Mapping[str, Any]], *, validation: float, test: float, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """Like ``split_by_image`` with all items of one ``subject`` in one split; the shares are of subjects."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for item in items:
        groups.setdefault(item["subject"], []).append(dict(item))
    chosen = split_by_image(
        [{"items": group} for group in groups.values()], validation=validation, test=test, seed=seed
    )
    return {name: [item for group in part for item in group["items"]] for name, part in chosen.items()}
