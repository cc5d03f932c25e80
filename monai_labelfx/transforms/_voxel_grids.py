# SPDX-License-Identifier: Apache-2.0
"""The grid that voxels lie on: whether two are one, the size of a voxel, and whether all operations are done."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd

_SAME = 0.1  # voxels: no voxel of one grid lies further than this from its place on the other


def one_grid(first: Any, second: Any) -> bool:
    """Whether two arrays (N, \\*spatial), pending operations done, have one shape and, where both know it, one affine.

    Affines of files are rounded, and MONAI's lazy resampling of a picture leaves a 3 x 3 one.
    """
    shape = _shape(first)
    if shape != _shape(second):
        return False
    if not isinstance(first, MetaTensor) or not isinstance(second, MetaTensor):
        return True
    return _agree(first.peek_pending_affine(), second.peek_pending_affine(), shape)


def is_moved(image: Any) -> bool:
    """Whether an image, which knows the affine of its file, has another one now."""
    original = image.meta.get("original_affine") if isinstance(image, MetaTensor) else None
    return original is not None and not _agree(original, image.peek_pending_affine(), _shape(image))


def voxel_volume(affine: Any, ndim: int) -> float:
    """The volume of a voxel (area, length) in the space of an affine, for an image of ``ndim`` axes in any position.

    Raises:
        ValueError: for an affine that is not finite or makes voxels flat.
    """
    edges = torch.as_tensor(affine).as_subclass(torch.Tensor).double()[:-1, :ndim]
    volume = float((edges.T @ edges).det().clamp(min=0).sqrt())  # Gram: a picture may lie in any plane of the space
    if not volume > 0 or not np.isfinite(volume):
        raise ValueError(f"an affine must be finite and give voxels a volume, got {np.asarray(affine).tolist()}.")
    return volume


def check_applied(image: Any, name: str, user: str) -> None:
    """ValueError where lazy operations are still pending, so that the voxels are not where the image says."""
    if isinstance(image, MetaTensor) and image.pending_operations:
        raise ValueError(
            f"{name} has {len(image.pending_operations)} pending operations: call {user} in a Compose, which applies "
            "them first, or apply_pending before it."
        )


def _agree(first: Any, second: Any, shape: tuple[int, ...]) -> bool:
    """Whether two affines put the voxels of ``shape`` in the same places."""
    affines = [np.asarray(torch.as_tensor(each), dtype=np.float64) for each in (first, second)]
    rank = min(len(affine) for affine in affines) - 1
    one, two = (to_affine_nd(rank, affine)[:rank, [*range(len(shape)), rank]] for affine in affines)
    apart = abs(one - two) @ np.array([*shape, 1.0])
    return bool((apart <= _SAME * np.linalg.norm(two[:, :-1], axis=0).min()).all())


def _shape(array: Any) -> tuple[int, ...]:
    return tuple(array.peek_pending_shape() if isinstance(array, MetaTensor) else array.shape[1:])
