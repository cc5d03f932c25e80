# SPDX-License-Identifier: Apache-2.0
"""What losses over pairs of neighbouring voxels share: the pairs, their weights, and gradients computed in passing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data import MetaTensor

REDUCTIONS = ("sum", "mean", "none")

Fused = Callable[[torch.Tensor, bool], tuple[torch.Tensor, torch.Tensor | None]]
Plain = Callable[[torch.Tensor], torch.Tensor]


def neighbour_offsets(ndim: int, dilation: int = 1) -> list[tuple[int, ...]]:
    """Steps to half of the 3**ndim - 1 neighbours, one of each two opposite ones, so that a pair comes once.

    Example:
        >>> neighbour_offsets(2)
        [(0, 1), (1, -1), (1, 0), (1, 1)]
    """
    steps = itertools.product((-dilation, 0, dilation), repeat=ndim)
    return [step for step in steps if step > (0,) * ndim]


def shifted(values: torch.Tensor, offset: Sequence[int], sign: int) -> torch.Tensor:
    """The view of (B, C, *spatial) that holds the first voxel of each pair (sign -1), or the second (sign 1)."""
    for axis, step in enumerate(offset, start=2):
        size = values.shape[axis]
        values = values.narrow(axis, min(max(sign * step, 0), size), max(size - abs(step), 0))
    return values


def pair_weights(spacing: Any, batch: int, ndim: int) -> torch.Tensor | None:
    """Weight of the pairs at each of ``neighbour_offsets`` in each image, or ``None`` where all are 1.

    ``(|o| min(spacing) / |o * spacing|) ** 2`` for the step o: a difference over a distance counts by
    1 / distance ** 2, in units of what the distance would be if all voxels were cubes of the finest side.

    Args:
        spacing: voxel size per axis, (D,) or (B, D), or ``None`` for cubes.
        batch: B.
        ndim: D.

    Returns:
        (offsets, B or 1) float64 on the CPU.

    Raises:
        ValueError: for a spacing of another shape, or that is not positive and finite.
    """
    if spacing is None:
        return None
    sizes = torch.as_tensor(plain_tensor(spacing)).detach().to("cpu", torch.float64)
    if sizes.shape not in ((ndim,), (1, ndim), (batch, ndim)) or not ((sizes > 0) & sizes.isfinite()).all():
        raise ValueError(
            f"spacing must be one size above 0 for each of {ndim} axes, or ({batch}, {ndim}) of them, "
            f"got {sizes.tolist()}."
        )
    sizes = sizes.reshape(-1, ndim)
    steps = torch.tensor(neighbour_offsets(ndim), dtype=torch.float64)
    distance = (steps[:, None] * sizes / sizes.amin(1, keepdim=True)).square().sum(2)
    return steps.square().sum(1, keepdim=True) / distance


def fused_gradient(logits: torch.Tensor, fused: Fused, plain: Plain) -> torch.Tensor:
    """A value per class whose gradient comes with it, several times faster than autograd over slices.

    Args:
        logits: (B, C, *spatial).
        fused: of the logits, and whether the gradient is wanted, to the values (C,) and the gradient of their sum.
        plain: the same values by differentiable operators, for second derivatives. Class c depends on channel c alone.

    Returns:
        (C,).
    """
    return _FusedGradient.apply(logits, fused, plain)


class _FusedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, fused: Fused, plain: Plain) -> torch.Tensor:
        value, gradient = fused(logits, ctx.needs_input_grad[0])
        ctx.save_for_backward(logits, gradient)
        ctx.plain = plain
        return value

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, gradient = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated itself
            (result,) = torch.autograd.grad(ctx.plain(logits), logits, grads[0], create_graph=True)
            return result, None, None
        return gradient * grads[0].view(-1, *[1] * (logits.ndim - 2)), None, None


def checked_logits(input: Any) -> torch.Tensor:
    """Logits (B, C, *spatial) as a plain tensor in float32 or float64."""
    if not isinstance(input, torch.Tensor) or not input.is_floating_point():
        found = input.dtype if isinstance(input, torch.Tensor) else type(input).__name__
        raise TypeError(f"input must be a tensor of floating-point logits, got {found}.")
    if input.ndim < 3:
        raise ValueError(f"input must be logits (B, C, *spatial), got {tuple(input.shape)}.")
    input = plain_tensor(input)
    return input if input.dtype == torch.float64 else input.float()


def checked_region(region: Any, logits: torch.Tensor) -> torch.Tensor | None:
    """The region (B, 1 or C, *spatial) as 0 and 1 in the dtype of the logits."""
    if region is None:
        return None
    region = torch.as_tensor(plain_tensor(region))
    single = (logits.shape[0], 1, *logits.shape[2:])
    if region.shape not in (logits.shape, single):
        raise ValueError(
            f"region must be {tuple(logits.shape)}, or {single} for the same in all classes, got {tuple(region.shape)}."
        )
    return region.to(logits.device).bool().to(logits.dtype)


def check_reduction(reduction: str) -> None:
    """Raise ValueError unless ``reduction`` is one of ``REDUCTIONS``."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}.")


def reduce_classes(values: torch.Tensor, reduction: str) -> torch.Tensor:
    """Sum or mean of the values (C,) of the classes, or the values themselves."""
    return values if reduction == "none" else values.sum() if reduction == "sum" else values.mean()


def plain_tensor(value: Any) -> Any:
    """A MetaTensor as a plain tensor, which is several times faster to compute with."""
    return value.as_tensor() if isinstance(value, MetaTensor) else value
