# SPDX-License-Identifier: Apache-2.0
"""Masks of the objects of an image in either form, whole or as blocks, cropped to what they cover."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from monai_labelfx.metrics._detection_inputs import plain
from monai_labelfx.metrics._mask_crops import MaskCrops, place_crops
from monai_labelfx.ops.box_affine import masks_to_boxes


def object_masks(masks: Any, boxes: Any, shape: Sequence[int], name: str) -> MaskCrops:
    """Masks of N objects, on the CPU; whole masks are cropped where they are, so that little is copied.

    Args:
        masks: (N, \\*shape) or a list of N blocks, boolean or whole numbers. A block begins at the voxel ``floor(low)``
            of its box, or at the image's first voxel where that is beyond.
        boxes: (N, 2 \\* D) in voxels.
        shape: spatial shape of the image.
        name: whose masks they are, in errors.

    Raises:
        ValueError: another number of masks than boxes, another shape, floats, or a block that reaches out of the image.
    """
    shape, corners = tuple(shape), plain(boxes).reshape(-1, 2 * len(shape))
    first = np.floor(corners[:, : len(shape)]).clip(min=0).astype(np.int64)
    if isinstance(masks, list | tuple):
        blocks = [plain(mask) for mask in masks]
        sound = len(blocks) == len(corners) and {one.ndim for one in blocks} <= {len(shape)}
        got = f"{len(blocks)} blocks of {sorted({one.ndim for one in blocks})} axes"
    else:
        whole = masks.detach().as_subclass(torch.Tensor) if isinstance(masks, torch.Tensor) else plain(masks)
        got = f"{tuple(whole.shape)}"
        sound = tuple(whole.shape) == (len(corners), *shape) or (not len(corners) and 0 in whole.shape)
        if isinstance(whole, torch.Tensor):
            blocks = _cropped(whole, first) if sound and len(corners) else []
        else:
            blocks, first = list(whole) if sound and len(corners) else [], np.zeros_like(first)
    if not sound:
        raise ValueError(
            f"the masks of {name} must be ({len(corners)}, *{shape}) as its boxes and the image, or a list of "
            f"{len(corners)} blocks of {len(shape)} axes, got {got}"
        )
    kinds = sorted({one.dtype.name for one in blocks if one.dtype.kind not in "biu"})
    if kinds:
        raise ValueError(f"the masks of {name} must be boolean or integer, got {kinds[0]}: compare with a threshold")
    beyond = [row for row, one in enumerate(blocks) if (first[row] + one.shape > shape).any() and one.size]
    if beyond:
        low, size = first[beyond[0]].tolist(), blocks[beyond[0]].shape
        raise ValueError(
            f"mask {beyond[0]} of {name} is a block of {size} voxels from {low} on, which reaches out of the image "
            f"{shape}: a block must begin with its box and end with it"
        )
    return place_crops(blocks, first, shape)


def _cropped(whole: torch.Tensor, first: np.ndarray) -> list[np.ndarray]:
    """The block of each mask around what it covers; ``first`` becomes where they begin."""
    corners = masks_to_boxes(whole).long().tolist()
    axes = whole.ndim - 1
    first[:] = np.array(corners, np.int64).reshape(-1, 2 * axes)[:, :axes]
    return [
        plain(mask[tuple(slice(a, b) for a, b in zip(c[:axes], c[axes:], strict=True))])
        for mask, c in zip(whole, corners, strict=True)
    ]
