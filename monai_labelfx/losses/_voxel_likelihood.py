# SPDX-License-Identifier: Apache-2.0
"""What losses over class indices share: checked targets, the log likelihood of each voxel, and weighted reduction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from monai_labelfx.losses._neighbours import checked_logits, plain_tensor


class Voxels(NamedTuple):
    """Logits and classes of the V voxels of each image, with space flattened."""

    logits: torch.Tensor  # (B, C, V), float32 or float64
    classes: torch.Tensor  # (B, V), int64; 0 at ignored voxels
    ignored: torch.Tensor | None  # (B, V) bool, or None where every voxel counts
    shape: torch.Size  # (B, 1, *spatial)


def checked_voxels(input: Any, target: Any, ignore_index: int | None) -> Voxels:
    r"""Logits (B, C, \*spatial) and class indices (B, 1, \*spatial) of any number type, checked without a host sync.

    Raises:
        TypeError: for logits that are no floating-point tensor, and for a target that is no tensor of real numbers.
        ValueError: for shapes that do not fit, fewer than two classes, or no voxel.
    """
    logits = checked_logits(input)
    if not isinstance(target, torch.Tensor) or target.is_complex():
        found = target.dtype if isinstance(target, torch.Tensor) else type(target).__name__
        raise TypeError(f"target must be a tensor of class indices, got {found}.")
    if logits.shape[1] < 2:
        raise ValueError(f"input must have one channel for each of at least 2 classes, got {tuple(logits.shape)}.")
    shape = torch.Size((logits.shape[0], 1, *logits.shape[2:]))
    if target.shape != shape:
        raise ValueError(
            f"target must be class indices {tuple(shape)} for an input {tuple(logits.shape)}, "
            f"got {tuple(target.shape)}."
        )
    if not shape.numel():
        raise ValueError(f"input must have at least one voxel, got {tuple(logits.shape)}.")
    classes = plain_tensor(target).detach().flatten(1).long()
    ignored = None
    if ignore_index is not None:
        ignored = classes == ignore_index
        classes = classes * (~ignored).view(torch.uint8)  # far faster than masked_fill where the mask is ragged
    return Voxels(logits.flatten(2), classes, ignored, shape)


def log_likelihood(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    r"""log softmax(z) at the class of each voxel (B, V), that is minus its cross-entropy.

    ``cross_entropy(..., reduction="none")`` has the same value and is slower. A class out of range raises an error on
    the CPU and a device-side assertion on CUDA; no value stands for voxels to ignore.
    """
    return logits.log_softmax(1).gather(1, classes[:, None])[:, 0]


def voxel_class_weights(weight: torch.Tensor | Sequence[float] | None, voxels: Voxels) -> torch.Tensor | None:
    """The weight of the class of each voxel (B, V), or ``None`` where no weights are given.

    Raises:
        ValueError: unless there is one weight for each class.
    """
    if weight is None:
        return None
    values = torch.as_tensor(plain_tensor(weight)).detach()
    if values.shape != voxels.logits.shape[1:2]:
        raise ValueError(
            f"weight must be one number for each of {voxels.logits.shape[1]} classes, got {tuple(values.shape)}."
        )
    return values.to(voxels.logits, non_blocking=True)[voxels.classes]


def reduce_voxels(
    log_p: torch.Tensor, weights: torch.Tensor, number: torch.Tensor | int, shape: torch.Size, reduction: str
) -> torch.Tensor:
    """Minus the weighted log likelihoods: of each voxel (``"none"``), their sum, or their sum / number (``"mean"``)."""
    losses = -weights * log_p if reduction == "none" else weights * log_p
    if reduction == "none":
        return losses.view(shape)
    total = -losses.sum()
    if reduction == "sum":
        return total
    if isinstance(number, torch.Tensor):
        number = torch.where(number > 0, number, 1)
    return total / number
