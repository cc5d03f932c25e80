# SPDX-License-Identifier: Apache-2.0
"""Online hard example mining: cross-entropy of the voxels that the network gets most wrong."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from monai_labelfx.losses._neighbours import check_reduction, plain_tensor
from monai_labelfx.losses._voxel_likelihood import (
    checked_voxels,
    log_likelihood,
    reduce_voxels,
    voxel_class_weights,
)

_SCOPES = ("image", "batch")


def ohem_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    *,
    threshold: float | None = 0.7,
    min_kept: float | int = 0.25,
    scope: str = "image",
    ignore_index: int | None = None,
    weight: torch.Tensor | Sequence[float] | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    r"""Cross-entropy with online hard example mining, OHEM (Shrivastava et al. 2016), for segmentation.

    A voxel is kept if the probability of its label is below ``threshold``, or if it is one of the ``min_kept`` hardest,
    those with the largest cross-entropy; voxels as hard as the last of these are kept too. With K the kept voxels

    .. math::
        \mathcal{L} = \frac{1}{|K|} \sum_{i \in K} -\log p_{i y_i}

    It is the opposite of :py:func:`easy_example_loss`: where labels are wrong at random, the hardest voxels are the
    wrong ones.

    Args:
        input: logits (B, C, \*spatial), any number of spatial axes. Half precision is computed in float32.
        target: class indices (B, 1, \*spatial), any type of number. Values out of range that are not ``ignore_index``
            raise torch's error on the CPU and its device-side assertion on CUDA.
        threshold: voxels are kept whose label has a probability below it, between 0 and 1; ``None`` for no threshold.
            Default 0.7, as in common segmentation recipes.
        min_kept: how many voxels are kept at least. Below 1: their share of the voxels that are not ignored, rounded,
            at least one voxel. A whole number: voxels for each image, the form of the reference code. Default 0.25.
        scope: the hardest of each ``"image"`` (default), or of the ``"batch"``: then a whole number counts for each
            image still, and is multiplied by their number.
        ignore_index: class index of voxels that are left out. Default ``None``, all voxels count.
        weight: weights of the classes (C,), which do not change what is kept; ``"mean"`` is then divided by their sum
            over the kept voxels. Default ``None``, all 1.
        reduction: ``"mean"`` over the kept voxels of the batch, ``"sum"``, or ``"none"`` for (B, 1, \*spatial).

    Returns:
        A scalar, or (B, 1, \*spatial). Where nothing is kept it is 0, with zero gradient.

    Raises:
        TypeError: if ``input`` is no tensor of floating-point numbers or ``target`` no tensor of real ones.
        ValueError: if shapes do not fit, or an option is out of its range.

    Warns:
        UserWarning: if a whole ``min_kept`` is not below the number of voxels of an image, so that all are kept.

    Notes:
        The reference code for segmentation takes the batch, drops the last of the ``min_kept`` and divides by the
        number of all voxels, so that its gradient shrinks as voxels become easy. Its usual 100000 voxels are more than
        an image of 256 x 256 has: it keeps everything and is plain cross-entropy. That is what the warning is for, and
        why the default is a share.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[0.9, 0.8, 0.1, 0.2], [0.1, 0.2, 0.9, 0.8]]]).log()  # probabilities
        >>> labels = torch.tensor([[[0, 0, 0, 1]]])
        >>> round(float(ohem_loss(logits, labels)), 4)  # only the third, -log(0.1)
        2.3026
        >>> round(float(ohem_loss(logits, labels, threshold=None, min_kept=3)), 4)
        0.9163
    """
    _check_options(threshold, min_kept, scope)
    check_reduction(reduction)
    voxels = checked_voxels(input, target, ignore_index)
    with torch.autocast(input.device.type, enabled=False):
        log_p = log_likelihood(voxels.logits, voxels.classes)
        with torch.no_grad():
            kept = _kept(log_p.detach(), voxels.ignored, threshold, min_kept, scope)
            outer = voxel_class_weights(weight, voxels)
            weights = kept.to(log_p) if outer is None else outer * kept
        return reduce_voxels(log_p, weights, weights.sum(), voxels.shape, reduction)


class OHEMLoss(torch.nn.Module):
    r""":py:func:`ohem_loss` as a module: ``loss(input, target)``.

    Args:
        threshold: voxels are kept whose label has a probability below it, or ``None``.
        min_kept: the least number of voxels that are kept: a share of those that are not ignored, or a whole number
            for each image.
        scope: ``"image"`` or ``"batch"``.
        ignore_index: class index of voxels that are left out, or ``None``.
        weight: weights of the classes (C,), or ``None``.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    Raises:
        ValueError: for an option out of its range.

    Example:
        >>> import torch
        >>> loss = OHEMLoss(threshold=None, min_kept=0.25, ignore_index=255)
        >>> labels = torch.randint(0, 3, (2, 1, 8, 8, 8))
        >>> round(float(loss(torch.zeros(2, 3, 8, 8, 8), labels)), 4)  # all as hard: log 3
        1.0986
    """

    weight: torch.Tensor | None

    def __init__(
        self,
        threshold: float | None = 0.7,
        min_kept: float | int = 0.25,
        *,
        scope: str = "image",
        ignore_index: int | None = None,
        weight: torch.Tensor | Sequence[float] | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        _check_options(threshold, min_kept, scope)
        check_reduction(reduction)
        self.options: dict[str, Any] = {
            "threshold": threshold,
            "min_kept": min_kept,
            "scope": scope,
            "ignore_index": ignore_index,
            "reduction": reduction,
        }
        values = None if weight is None else torch.as_tensor(plain_tensor(weight), dtype=torch.float32)
        self.register_buffer("weight", values, persistent=False)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        r"""The loss of logits (B, C, \*spatial) and class indices (B, 1, \*spatial)."""
        return ohem_loss(input, target, weight=self.weight, **self.options)

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


def _kept(
    log_p: torch.Tensor, ignored: torch.Tensor | None, threshold: float | None, min_kept: float | int, scope: str
) -> torch.Tensor:
    """Which voxels (B, V) are kept."""
    batch, voxels = log_p.shape
    if isinstance(min_kept, int) and min_kept >= voxels:
        warnings.warn(
            f"min_kept={min_kept} is not below the {voxels} voxels of an image: all are kept, which is plain "
            "cross-entropy; give a share such as 0.25.",
            stacklevel=3,
        )
    if ignored is not None:
        log_p = log_p.masked_fill(ignored, torch.inf)
    kept = torch.zeros_like(log_p, dtype=torch.bool)
    if min_kept:
        rows = log_p if scope == "image" else log_p.view(1, -1)
        number: torch.Tensor | int = rows.shape[1]
        if isinstance(min_kept, int):
            number = min(min_kept * (batch if scope == "batch" else 1), rows.shape[1])
        elif ignored is None:
            number = max(round(min_kept * rows.shape[1]), 1)
        else:
            number = (min_kept * (~ignored).view_as(rows).sum(1, keepdim=True).double()).round().long().clamp(min=1)
        if isinstance(number, int):
            limit = rows.kthvalue(number, dim=1, keepdim=True).values
        else:  # a number for each image that only the device knows
            limit = rows.sort(dim=1).values.gather(1, number - 1)
        kept = (rows <= limit).view_as(log_p)
    if threshold is not None:
        kept = kept | (log_p < math.log(threshold))
    return kept if ignored is None else kept & ~ignored


def _check_options(threshold: float | None, min_kept: float | int, scope: str) -> None:
    if threshold is not None and not 0 < threshold < 1:
        raise ValueError(f"threshold must be between 0 and 1 or None, got {threshold}.")
    if isinstance(min_kept, bool) or not isinstance(min_kept, int | float):
        raise ValueError(f"min_kept must be a share below 1 or a whole number of voxels, got {min_kept!r}.")
    if not (min_kept >= 0 and (isinstance(min_kept, int) or min_kept < 1)):
        raise ValueError(f"min_kept must be a share from 0 to below 1 or a whole number of voxels, got {min_kept!r}.")
    if threshold is None and min_kept == 0:
        raise ValueError("Without a threshold min_kept must be above 0: no voxel would be kept.")
    if scope not in _SCOPES:
        raise ValueError(f"scope must be one of {_SCOPES}, got {scope!r}.")
