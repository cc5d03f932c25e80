# SPDX-License-Identifier: Apache-2.0
"""Masks of detections in windows, which become masks in the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_labelfx.ops.box_affine import masks_to_boxes

Crop = tuple[tuple[int, ...], torch.Tensor]  # the first voxel of a part of a mask, and the part


def crops_of(masks: torch.Tensor | Sequence[torch.Tensor], boxes: torch.Tensor) -> list[Crop]:
    """Of masks (N, \\*window) the parts that are not empty; of blocks, which begin with their boxes, the whole."""
    if not isinstance(masks, torch.Tensor):
        return list(zip(_first_voxels(boxes), masks, strict=True))
    axes = masks.ndim - 1
    corners = masks_to_boxes(masks).long().tolist()
    ranges = [(tuple(c[:axes]), tuple(slice(*ends) for ends in zip(c[:axes], c[axes:], strict=True))) for c in corners]
    return [(low, mask[where].clone()) for mask, (low, where) in zip(masks, ranges, strict=True)]


def united(
    objects: Sequence[Sequence[Crop]], shape: Sequence[int], boxes: torch.Tensor, *, blocks: bool
) -> torch.Tensor | list[torch.Tensor]:
    """For each object the union of its crops: (N, \\*shape) bool, or with ``blocks`` N blocks that their boxes cover.

    A block goes from the voxel ``floor(low)`` of its box to ``ceil(high)``, at least one voxel, cut at the image.
    """
    if not blocks:
        result = torch.zeros((len(objects), *shape), dtype=torch.bool, device=boxes.device)
        for mask, crops in zip(result, objects, strict=True):
            _add(crops, mask, [0] * len(shape))
        return result
    low, high = boxes.chunk(2, dim=1)
    ends = torch.minimum(torch.maximum(high.ceil(), low.floor() + 1), boxes.new_tensor(shape)).long().tolist()
    found = []
    for crops, first, end in zip(objects, _first_voxels(boxes), ends, strict=True):
        size = [max(b - a, 0) for a, b in zip(first, end, strict=True)]
        found.append(torch.zeros(size, dtype=torch.bool, device=boxes.device))
        _add(crops, found[-1], first)
    return found


def _first_voxels(boxes: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(low) for low in boxes.chunk(2, dim=1)[0].floor().clamp(min=0).long().tolist()]


def _add(crops: Sequence[Crop], block: torch.Tensor, first: Sequence[int]) -> None:
    """Put crops into the block that begins at the voxel ``first``; what reaches out of it is cut off.

    A box that was moved from a window into the image may be rounded, and its block then lacks a crop's empty margin.
    """
    for low, crop in crops:
        here, there = [], []
        for start, length, begin, size in zip(first, block.shape, low, crop.shape, strict=True):
            inside = max(start, begin)
            end = max(min(start + length, begin + size), inside)
            here.append(slice(inside - start, end - start))
            there.append(slice(inside - begin, end - begin))
        block[tuple(here)] |= crop[tuple(there)]
