# SPDX-License-Identifier: Apache-2.0
"""Piecewise smoothness: the mean squared difference of the probabilities of neighbouring voxels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from monai_labelfx.losses._neighbours import (
    check_reduction,
    checked_logits,
    checked_region,
    fused_gradient,
    neighbour_offsets,
    pair_weights,
    reduce_classes,
    shifted,
)


def pairwise_smoothness_loss(
    input: torch.Tensor,
    region: torch.Tensor | None = None,
    *,
    spacing: torch.Tensor | Sequence[float] | None = None,
    reduction: str = "sum",
) -> torch.Tensor:
    r"""Pairwise smoothness (Wang and Xia 2021, equation 3), over the neighbours of the voxels of a region.

    With the probabilities :math:`p = \mathrm{sigmoid}(z)` of class c, its region :math:`R_c` over all images of the
    batch, and the voxels N(k) of the image that differ from k by at most one step on each axis (8 in 2-D, 26 in 3-D),

    .. math::
        \varphi_c = \frac{\sum_{k \in R_c} \sum_{k' \in N(k)} w_{kk'} (p_k - p_{k'})^2}
                         {\sum_{k \in R_c} \sum_{k' \in N(k)} w_{kk'}}

    A pair with both voxels in the region counts twice and one with a single voxel in it once, so the edge of the region
    is smoothed too. Without a region every pair of the batch counts the same: equation 3 as it is printed.

    Args:
        input: logits (B, C, \*spatial), any number of spatial axes.
        region: true at the voxels R, (B, C, \*spatial), or (B, 1, \*spatial) for the same in all classes; in the
            paper's code the voxels in boxes of the class. Default ``None``, all voxels.
        spacing: voxel size per axis, (D,), or (B, D) where images differ. The weight of a pair with step o is then
            ``w = (|o| min(spacing) / |o * spacing|) ** 2``, that is 1 / distance ** 2, but 1 for pairs as near as they
            would be among cubes of the finest side: a jump between thick slices costs less than one within a slice.
            Default ``None``, w = 1, as for any cubes.
        reduction: over the classes: ``"sum"`` (equation 4, default), ``"mean"``, or ``"none"`` for (C,).

    Returns:
        A scalar, or (C,). A class whose region is empty has exactly 0, with zero gradient.

    Raises:
        TypeError: if ``input`` is no tensor of floating-point numbers.
        ValueError: if shapes do not fit, or an argument is out of its range.

    Notes:
        The paper takes all pairs, its code those of voxels in boxes, divided by their number over the batch; for boxes
        that do not touch the border of the image this is the same number. At the border the code pads the prediction
        with zeros and so charges objects for touching it; here a voxel has fewer neighbours there, nothing else.
        Half precision is computed in float32. The gradient is computed with the value, 2.5 times faster than by
        autograd; second derivatives exist. The value is accurate where p is: differences of probabilities that round
        to the same number are 0.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[[-100.0, -100, 100, 100]] * 3]])  # probabilities 0 0 1 1 in three rows
        >>> round(float(pairwise_smoothness_loss(logits)), 4)  # 7 of 29 pairs differ
        0.2414
        >>> inside = torch.zeros(1, 1, 3, 4, dtype=torch.bool)
        >>> inside[..., 1, 2] = True  # 3 of 8 neighbours differ
        >>> float(pairwise_smoothness_loss(logits, inside))
        0.375
    """
    check_reduction(reduction)
    logits = checked_logits(input)
    inside = checked_region(region, logits)
    weights = pair_weights(spacing, logits.shape[0], logits.ndim - 2)
    count = _number_of_pairs(logits, inside, weights)
    if weights is not None:
        weights = weights.to(logits).view(*weights.shape, *[1] * (logits.ndim - 1))
    scale = 1 / torch.where(count > 0, count, 1)

    def fused(logits: torch.Tensor, with_gradient: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        return _fused(logits, inside, weights, scale, with_gradient)

    def plain(logits: torch.Tensor) -> torch.Tensor:
        return _plain(logits, inside, weights, scale)

    return reduce_classes(fused_gradient(logits, fused, plain), reduction)


class PairwiseSmoothnessLoss(torch.nn.Module):
    """:py:func:`pairwise_smoothness_loss` as a module: ``loss(input, target)``.

    Args:
        reduction: over the classes: ``"sum"`` (the paper), ``"mean"`` or ``"none"``.

    Raises:
        ValueError: as :py:func:`pairwise_smoothness_loss`.
        TypeError: when the target is no mapping.

    Example:
        >>> import torch
        >>> loss = PairwiseSmoothnessLoss()
        >>> region = torch.ones(1, 1, 4, 4, 4, dtype=torch.bool)
        >>> float(loss(torch.zeros(1, 1, 4, 4, 4), {"region": region, "spacing": [1.0, 1.0, 3.0]}))
        0.0
    """

    def __init__(self, *, reduction: str = "sum") -> None:
        super().__init__()
        check_reduction(reduction)
        self.reduction = reduction

    def forward(self, input: torch.Tensor, target: Mapping[str, Any] | None = None) -> torch.Tensor:
        r"""The loss of logits (B, C, \*spatial).

        Args:
            input: logits.
            target: a mapping with ``region`` and ``spacing``, each optional.
        """
        if target is None:
            target = {}
        if not isinstance(target, Mapping):
            raise TypeError(
                "PairwiseSmoothnessLoss takes a mapping with region and spacing, both optional, as target, "
                f"got {type(target).__name__}."
            )
        return pairwise_smoothness_loss(
            input, target.get("region"), spacing=target.get("spacing"), reduction=self.reduction
        )

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        return f"reduction={self.reduction!r}"


def _fused(
    logits: torch.Tensor,
    inside: torch.Tensor | None,
    weights: torch.Tensor | None,
    scale: torch.Tensor,
    with_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The loss (C,) and its gradient in one pass over the pairs."""
    p = torch.sigmoid(logits)
    total = p.new_zeros(p.shape[1])
    gradient = torch.zeros_like(p) if with_gradient else None
    others = [axis for axis in range(p.ndim) if axis != 1]
    for number, offset in enumerate(neighbour_offsets(p.ndim - 2)):
        difference = shifted(p, offset, -1) - shifted(p, offset, 1)
        if inside is None:
            pull = difference.clone()
        else:
            pull = (shifted(inside, offset, -1) + shifted(inside, offset, 1)) * difference
        if weights is not None:
            pull *= weights[number]
        if gradient is not None:
            shifted(gradient, offset, -1).add_(pull)
            shifted(gradient, offset, 1).sub_(pull)
        total += pull.mul_(difference).sum(others)
    if gradient is not None:
        gradient.mul_(p).mul_(p.neg_().add_(1)).mul_(2 * scale.view(-1, *[1] * (p.ndim - 2)))
    return total * scale, gradient


def _plain(
    logits: torch.Tensor, inside: torch.Tensor | None, weights: torch.Tensor | None, scale: torch.Tensor
) -> torch.Tensor:
    """The loss (C,) by differentiable operators."""
    p = torch.sigmoid(logits)
    total = 0 * p.flatten(2).sum((0, 2))
    for number, offset in enumerate(neighbour_offsets(p.ndim - 2)):
        square = (shifted(p, offset, -1) - shifted(p, offset, 1)).square()
        if inside is not None:
            square = square * (shifted(inside, offset, -1) + shifted(inside, offset, 1))
        if weights is not None:
            square = square * weights[number]
        total = total + square.transpose(0, 1).flatten(1).sum(1)
    return total * scale


def _number_of_pairs(logits: torch.Tensor, inside: torch.Tensor | None, weights: torch.Tensor | None) -> torch.Tensor:
    """The sum of the weights of the pairs of each class (C,) or (1,)."""
    ndim = logits.ndim - 2
    counts = torch.ones_like(logits[:, :1]) if inside is None else inside
    # Along each axis the number of voxels that have a neighbour one step down, on the spot, and one step up.
    for _ in range(ndim):
        total = counts.sum(2)
        counts = torch.stack((total - counts.select(2, 0), total, total - counts.select(2, -1)), -1)
    counts = counts.flatten(2).double()
    half = counts.shape[2] // 2  # the other half are the opposite steps, in reverse order
    pairs = counts[..., half + 1 :]
    if inside is not None:
        pairs = pairs + counts[..., :half].flip(-1)
    if weights is not None:
        pairs = pairs * weights.to(pairs).T[:, None]
    return pairs.sum((0, 2)).to(logits.dtype)
