# SPDX-License-Identifier: Apache-2.0
"""Instances of known shape, moved with an image as transforms move it, as a detector returns them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

from monai_labelfx.data import AutoReader
from monai_labelfx.ops.box_affine import masks_to_boxes


def solids(shape: tuple[int, ...]) -> np.ndarray:
    """(3, *shape) bool: an ellipsoid, a block and an ellipsoid without a corner, that do not touch."""
    grid = np.stack(np.meshgrid(*((np.arange(n) + 0.5) / n for n in shape), indexing="ij"))
    first, last = (
        ((grid - centre) ** 2).sum(axis=0) < 0.05
        for centre in (0.27, np.array([0.7, *[0.74] * (len(shape) - 1)]).reshape(-1, *[1] * len(shape)))
    )
    block = (grid[0] > 0.55) & (grid[0] < 0.93) & (grid[1:] < 0.38).all(axis=0)
    return np.stack([first, block, last & ~(grid > 0.8).all(axis=0)])


def load(path: Path, steps: Sequence[Any]) -> dict[str, Any]:
    """The item of an image after ``steps``."""
    read = [LoadImaged("image", reader=AutoReader()), EnsureChannelFirstd("image")]
    return Compose([*read, *steps])({"image": str(path)})


def write_volume(path: Path, values: np.ndarray, affine: np.ndarray) -> Path:
    """A NIfTI file of float32."""
    nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), affine), path)
    return path


def moved_with(image: MetaTensor, masks: np.ndarray, steps: Sequence[Any]) -> np.ndarray:
    """Masks on the grid of the file where the ``steps`` take them, interpolated and cut at a half."""
    affine = image.meta.get("original_affine", np.eye(4))
    item = {"image": MetaTensor(torch.as_tensor(masks).float(), affine=torch.as_tensor(np.asarray(affine)))}
    moved = Compose(list(steps))(item)["image"]
    assert moved.shape[1:] == image.shape[1:]
    return moved.numpy() > 0.5


def blocks_of(masks: torch.Tensor, boxes: torch.Tensor) -> list[torch.Tensor]:
    """The cropped form of masks."""
    low, high = boxes.chunk(2, dim=1)
    ends = zip(low.floor().long().tolist(), high.ceil().long().tolist(), strict=True)
    return [mask[tuple(map(slice, *one))] for mask, one in zip(masks, ends, strict=True)]


def found_in(
    masks: np.ndarray,
    *,
    boxes: Any = None,
    labels: Sequence[int] | None = None,
    scores: Sequence[float] | None = None,
    form: Callable[..., Any] = torch.as_tensor,
) -> dict[str, Any]:
    """A prediction with these masks, whole or (``form=blocks_of``) cropped; scores fall with the number."""
    whole, count = torch.as_tensor(masks), len(masks)
    corners = masks_to_boxes(whole) if boxes is None else torch.as_tensor(boxes, dtype=torch.float32)
    return {
        "boxes": corners,
        "labels": torch.zeros(count, dtype=torch.int64) if labels is None else torch.as_tensor(labels),
        "scores": torch.linspace(0.9, 0.4, count) if scores is None else torch.as_tensor(scores),
        "masks": whole if form is torch.as_tensor else form(whole, corners),
    }


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Overlap of two masks."""
    return 2 * (one & other).sum() / (one.sum() + other.sum())
