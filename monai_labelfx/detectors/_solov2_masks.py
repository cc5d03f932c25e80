# SPDX-License-Identifier: Apache-2.0
"""Masks of SOLOv2: kernels of chosen cells times the mask features, their loss, and masks at the size of an image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import embedding

from monai_labelfx.detectors._selected_conv import convolution_at
from monai_labelfx.ops._resize import resize_linear
from monai_labelfx.ops.box_affine import masks_to_boxes
from monai_labelfx.ops.components import largest_components

_MOST_NUMBERS = 2**24  # of masks as float32 at a time, 64 MB; counts up to here are whole in float32


def kernels_at(
    convolution: Any, features: Sequence[torch.Tensor], image: torch.Tensor, cell: torch.Tensor
) -> torch.Tensor:
    """What the convolution gives at chosen cells of all levels.

    Args:
        convolution: from kernel features to the E numbers of a kernel.
        features: of the cells of each level, (B, C, \\*grid).
        image: (P,) of each chosen cell.
        cell: (P,) its number among the cells of all levels.

    Returns:
        (P, E).
    """
    first, found, order = 0, [], []
    for level in features:
        count = level[0, 0].numel()
        chosen = ((cell >= first) & (cell < first + count)).nonzero()[:, 0]
        found.append(convolution_at(convolution, level, image[chosen], cell[chosen] - first))
        order.append(chosen)
        first += count
    return embedding(torch.cat(order).argsort(), torch.cat(found))


def squared_dice(logits: torch.Tensor, masks: torch.Tensor, *, epsilon: float = 1e-3) -> torch.Tensor:
    """(P,) 1 - 2 sum(p t) / (sum(p^2) + sum(t^2) + 2 epsilon), of logits (P, V) and masks t (P, V) from 0 to 1.

    Least where p = t, also for masks of shares; 1 for an empty mask.

    Example:
        >>> round(squared_dice(torch.tensor([[20.0, 0.0]]), torch.tensor([[1.0, 0.0]])).item(), 3)
        0.112
    """
    found = logits.sigmoid()
    shared = (found * masks).sum(dim=1)
    return 1 - 2 * shared / (found.square().sum(dim=1) + masks.square().sum(dim=1) + 2 * epsilon)


def peaks(scores: torch.Tensor) -> torch.Tensor:
    """Scores (C, \\*grid), 0 where one of the 2^D cells from one before to its own along each axis is higher.

    Example:
        >>> peaks(torch.tensor([[1.0, 3.0, 2.0, 2.0]])).tolist()
        [[1.0, 3.0, 0.0, 2.0]]
    """
    highest = scores
    for axis in range(1, scores.ndim):
        rest = highest.shape[axis] - 1
        own = torch.maximum(highest.narrow(axis, 0, rest), highest.narrow(axis, 1, rest))
        highest = torch.cat([highest.narrow(axis, 0, 1), own], dim=axis)
    return torch.where(scores == highest, scores, 0)


def compare_masks(
    kernels: torch.Tensor, features: torch.Tensor, threshold: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What suppression needs to know of the masks of kernels (N, E) and features (E, \\*map).

    A part of the map at a time, for all masks: memory does not grow with the map.

    Returns:
        How many voxels (N,) have a probability above ``threshold``, their mean probability (N,), 0 without any, and
        the intersection over union (N, N) of the masks of these voxels, 0 for empty ones.
    """
    number = len(kernels)
    shared = torch.zeros(number, number, dtype=torch.float64, device=kernels.device)
    total = torch.zeros(number, dtype=torch.float64, device=kernels.device)
    for part in features.flatten(1).split(max(1, _MOST_NUMBERS // max(number, 1)), dim=1):
        found = (kernels @ part).sigmoid()
        inside = (found > threshold).to(found.dtype)
        shared += inside @ inside.T
        total += (found * inside).sum(dim=1)
    count = shared.diagonal()
    union = count[:, None] + count - shared
    return count.long(), (total / count.clamp(min=1)).to(kernels.dtype), (shared / union.clamp(min=1)).to(kernels.dtype)


def image_masks(
    kernels: torch.Tensor,
    features: torch.Tensor,
    stride: Sequence[int],
    size: Sequence[int],
    threshold: float,
    *,
    largest: bool = False,
) -> Iterator[torch.Tensor]:
    """Masks (n, \\*size) bool of kernels (N, E), a few at a time: probabilities interpolated at the image's voxels.

    With ``largest``, of each mask only the largest connected component.
    """
    most = max(features[0].numel(), torch.Size(size).numel())
    for part in kernels.split(max(1, _MOST_NUMBERS // most)):
        if len(part):
            found = (part @ features.flatten(1)).sigmoid().unflatten(1, features.shape[1:])
            masks = resize_linear(found, size, [1 / step for step in stride]) > threshold
            yield largest_components(masks) if largest else masks


def boxed_masks(
    parts: Iterable[torch.Tensor], size: Sequence[int], device: torch.device, *, crop: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | list[torch.Tensor]]:
    """The masks that have a voxel, and their boxes.

    Args:
        parts: masks (n, \\*size) bool, a few at a time.
        size: of the image.
        device: of the result.
        crop: give the block of each box instead of whole masks, which are never held all together then.

    Returns:
        Which masks these are (K,), boxes (K, 2 \\* D), and the masks (K, \\*size), or a list of K blocks.
    """
    rows, boxes, masks, first = [torch.zeros(0, dtype=torch.int64, device=device)], [], [], 0
    boxes.append(torch.zeros(0, 2 * len(size), device=device))
    blocks: list[torch.Tensor] = []
    for part in parts:
        tight = masks_to_boxes(part)
        some = (tight[:, -1] > 0).nonzero()[:, 0]
        rows.append(first + some)
        boxes.append(tight[some])
        first += len(part)
        if crop:
            corners = tight[some].long().view(-1, 2, len(size)).transpose(1, 2).tolist()
            whole = zip(some.tolist(), corners, strict=True)
            blocks += [part[(row, *(slice(*ends) for ends in box))].clone() for row, box in whole]
        else:
            masks.append(part[some])
    if crop:
        return torch.cat(rows), torch.cat(boxes), blocks
    masks.append(torch.zeros(0, *size, dtype=torch.bool, device=device))
    return torch.cat(rows), torch.cat(boxes), torch.cat(masks)
