# SPDX-License-Identifier: Apache-2.0
"""Write the volumes of a low-dose CT data set and remember its splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_labelfx.data.datalist import save_datalist
from monai_labelfx.data.prepare._volumes import save_volume

PATH_KEYS = ("image", "reference", "roi")

_SPLITS = {"L": "training", "H": "training", "V": "validation", "T": "test", "W": "whole"}


class LdctWriter:
    """Writes ``<key>/<patient>.nii.gz`` below a folder, and its datalist.

    Args:
        destination: the folder.
    """

    def __init__(self, destination: str | Path) -> None:
        self.folder = Path(destination).absolute()
        self.splits: dict[str, list[dict[str, str]]] = {}

    def add(self, letter: str, patient: str, arrays: Mapping[str, np.ndarray], affine: np.ndarray) -> None:
        """Write an item's arrays (x, y, z), key -> array, for L (training, low), H (training, high), V, T or W."""
        item = {"domain": "high" if letter == "H" else "low", "patient": patient}
        for key, array in arrays.items():
            path = self.folder / key / f"{patient}.nii.gz"
            save_volume(path, array, affine)
            item[key] = str(path)
        self.splits.setdefault(_SPLITS[letter], []).append(item)

    def datalist(self, **notes: Any) -> Path:
        """Write ``datalist.json`` with notes; its path."""
        return save_datalist(self.folder / "datalist.json", self.splits, notes=notes, path_keys=PATH_KEYS)


def shift(corner: Sequence[int]) -> np.ndarray:
    """The affine of a part in voxels of the whole, by the place (x, y, z) of its first voxel."""
    matrix = np.eye(4)
    matrix[:3, 3] = corner
    return matrix
