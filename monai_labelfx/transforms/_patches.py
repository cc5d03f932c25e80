# SPDX-License-Identifier: Apache-2.0
"""Patches of an image and their labels as transforms hand them to each other: checked, and in voxels."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

UNITS = ("voxels", "mm")


def image_name(image: Any) -> str:
    """What to call the image in a message."""
    found = file_name(image)
    return f"image {found!r}" if found else "the image"


def file_name(image: Any) -> str:
    """Path of the file that the image was read from, "" where nothing tells."""
    found = image.meta.get("filename_or_obj") if isinstance(image, MetaTensor) else None
    return str(found) if found else ""


def checked_patches(patches: Any, labels: Any, image: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches (N, 2 * D) int64 and their labels (N, K) int8 on the device of the image, or one sentence.

    Args:
        patches: start and size along each axis, array or tensor.
        labels: 1 present, 0 absent, -1 unknown, array or tensor.
        image: (C, \\*spatial) with D spatial axes.

    Raises:
        ValueError: when shapes do not fit, a patch is empty or reaches out of the image, or a label is no label.
    """
    shape = tuple(image.shape[1:])
    device = image.device if isinstance(image, torch.Tensor) else None
    found, ticks = _plain(patches, device), _plain(labels, device)
    if found.ndim != 2 or found.shape[1] != 2 * len(shape) or found.is_floating_point():
        raise ValueError(
            f"patches of {image_name(image)} must be (N, {2 * len(shape)}) whole numbers, start and size along each "
            f"axis, got {found.dtype} of shape {tuple(found.shape)}."
        )
    if ticks.ndim != 2 or len(ticks) != len(found):
        raise ValueError(
            f"patch labels of {image_name(image)} must be (N, K), a row for each of {len(found)} patches, got shape "
            f"{tuple(ticks.shape)}."
        )
    wrong = (ticks != 1) & (ticks != 0) & (ticks != -1)
    if wrong.any():
        raise ValueError(
            f"patch labels of {image_name(image)} must be 1 (present), 0 (absent) or -1 (unknown), got "
            f"{ticks[wrong][0].item():g}."
        )
    found = found.long()
    start, size = found.chunk(2, dim=1)
    outside = ((start < 0) | (size < 1) | (start + size > start.new_tensor(shape))).any(1)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise ValueError(
            f"patch {row} of {image_name(image)} must lie in the image {shape}, got start {start[row].tolist()} and "
            f"size {size[row].tolist()}: patches count voxels of the image before it is moved, resampled or cut."
        )
    return found, ticks.to(torch.int8)


def voxel_sizes(size: Any, unit: str, image: Any, name: str) -> tuple[int, ...]:
    """A size in ``unit``, one number or one per axis, in whole voxels of the image, at least 1.

    Raises:
        ValueError: for a size that is not positive or has another number of axes, for fractions of voxels, or for mm
            and an image without an affine.
    """
    ndim = image.ndim - 1
    sizes = tuple(size) if isinstance(size, Sequence) else (size,) * ndim
    if len(sizes) != ndim or not all(np.isfinite(one) and one > 0 for one in sizes):
        raise ValueError(f"{name} must be one number above 0, or {ndim}, one per axis of the image, got {size!r}.")
    if unit == "voxels":
        if any(one != int(one) for one in sizes):
            raise ValueError(f"{name} must be whole numbers of voxels, got {size!r}; unit='mm' takes any.")
        return tuple(int(one) for one in sizes)
    return tuple(max(1, round(one / step)) for one, step in zip(sizes, voxel_spacing(image), strict=True))


def voxel_spacing(image: Any) -> tuple[float, ...]:
    """Voxel size in mm per axis, from the affine."""
    if not isinstance(image, MetaTensor):
        raise ValueError(f"unit='mm' needs an image with an affine, got a plain {type(image).__name__}.")
    return tuple(float(step) for step in image.pixdim[: image.ndim - 1])


def check_unit(unit: str) -> None:
    """ValueError unless ``unit`` is one that sizes may have."""
    if unit not in UNITS:
        raise ValueError(f"unit must be one of {', '.join(map(repr, UNITS))}, got {unit!r}.")


def check_single_key(keys: Sequence[Hashable], what: str) -> None:
    """ValueError unless ``keys`` is one key, that of ``what``."""
    if len(keys) != 1:
        raise ValueError(f"keys must be one key, that of {what}, got {tuple(keys)}.")


def require_keys(item: Mapping[Hashable, Any], keys: Sequence[Hashable], owner: Any) -> None:
    """KeyError when the item lacks one of ``keys``."""
    for key in keys:
        if key not in item:
            raise KeyError(f"{type(owner).__name__}: the item has no {key!r}; keys {sorted(map(str, item))}")


def _plain(values: Any, device: torch.device | None) -> torch.Tensor:
    return torch.as_tensor(values, device=device).as_subclass(torch.Tensor).detach()
