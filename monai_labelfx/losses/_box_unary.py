# SPDX-License-Identifier: Apache-2.0
"""The unary term of box supervision: positive bags from the boxes, negative bags from what lies outside them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import softplus

from monai_labelfx.losses._box_target import BoxTarget
from monai_labelfx.losses._neighbours import fused_gradient
from monai_labelfx.ops.box_bags import box_bag_logits
from monai_labelfx.ops.smooth_maxima import smooth_max

_HUGE = 1e30  # losses beyond it count as this, so that sums stay finite

NORMALIZATIONS = ("separate", "positive_bags", "all_bags")
NEGATIVES = ("voxels", "lines")


def unary_terms(
    logits: torch.Tensor,
    target: BoxTarget,
    outside: torch.Tensor,
    *,
    kind: str,
    alpha: float,
    angles: Sequence[float],
    spacing: torch.Tensor | None,
    margin: float | Sequence[float],
    beta: float | None,
    gamma: float,
    normalization: str,
    negatives: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""The sums of equations 2 and 5 over positive and over negative bags, normalised, of all classes.

    Args:
        logits: (B, C, \*spatial), float32 or float64.
        target: the boxes.
        outside: (B, C, \*spatial) bool, the voxels that are sure to be no object.
        spacing: voxel size of each image (B, D), or ``None``.
        kind, alpha, angles, margin, beta, gamma, normalization, negatives: as for ``box_tightness_loss``.
    """
    classes = logits.shape[1]
    found = box_bag_logits(
        logits.flatten(0, 1),
        target.boxes,
        frames=target.frames,
        image_index=target.image * classes + target.label,
        kind=kind,
        alpha=alpha,
        angles=angles,
        spacing=None if spacing is None else spacing[target.image],
        margin=_margins(target, margin, logits.ndim - 2),
    )
    label = target.label[found.box]
    values, valid = (logits, outside) if negatives == "voxels" else _lines(logits, outside, kind, alpha)
    number, empty = torch.bincount(label, minlength=classes), valid.sum([0, *range(2, valid.ndim)])
    if normalization != "separate":
        number = empty = number if normalization == "positive_bags" else number + empty
    positive_weight, negative_weight = (1.0, 1.0) if beta is None else (beta, 1 - beta)
    share = positive_weight / number.clamp(min=1).to(logits.dtype)
    positives = _focal_sums(-found.logits[None, None], share[label], gamma)
    missed = _focal_sums(values, valid.to(values.dtype), gamma)
    return positives.sum(), torch.dot(missed, negative_weight / empty.clamp(min=1).to(missed.dtype))


def _focal_sums(logits: torch.Tensor, weight: torch.Tensor, gamma: float) -> torch.Tensor:
    r"""Weighted sums (C,) of -p^gamma log(1 - p), the loss of bags (B, C, \*bags) that ought to have p = 0.

    Exact however close p is to 0 or 1. The weight broadcasts to the logits.
    """
    space = [0, *range(2, logits.ndim)]

    def fused(logits: torch.Tensor, with_gradient: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        p, loss = torch.sigmoid(logits), softplus(logits).clamp_(max=_HUGE)
        power = _power(p, gamma).mul_(weight)
        value = (power * loss).sum(space)
        # p^gamma softplus(z) has the derivative p^gamma (gamma (1 - p) softplus(z) + p)
        return value, torch.addcmul(p, loss, 1 - p, value=gamma).mul_(power) if with_gradient else None

    def plain(logits: torch.Tensor) -> torch.Tensor:
        loss = softplus(logits.clamp(max=_HUGE)) * weight
        return (loss * _power(torch.sigmoid(logits), gamma) if gamma else loss).sum(space)

    return fused_gradient(logits, fused, plain)


def _power(probability: torch.Tensor, gamma: float) -> torch.Tensor:
    return probability.square() if gamma == 2 else probability**gamma


def _lines(logits: torch.Tensor, outside: torch.Tensor, kind: str, alpha: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The lines of an image along its axes (B, C, lines), and which of them lie outside all boxes as a whole."""
    values, valid = [], []
    for axis in range(2, logits.ndim):
        values.append(smooth_max(logits, kind=kind, alpha=alpha, dim=axis).flatten(2))
        valid.append(outside.all(axis).flatten(2))
    return torch.cat(values, 2), torch.cat(valid, 2)


def _margins(target: BoxTarget, margin: float | Sequence[float], ndim: int) -> torch.Tensor | None:
    """How many voxels each side (N, 2 D) may be off; infinitely many where it is not known to be tight."""
    if target.tight_sides is None and not np.any(margin):
        return None
    sides = torch.as_tensor(margin, dtype=torch.float64).expand(ndim).repeat(2).expand(len(target.label), -1)
    return sides if target.tight_sides is None else sides.masked_fill(~target.tight_sides.cpu(), torch.inf)
