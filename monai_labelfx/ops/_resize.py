# SPDX-License-Identifier: Apache-2.0
"""Linear interpolation of maps to another size, one axis after the other, with a gradient that is always the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def resize_linear(maps: torch.Tensor, size: Sequence[int], steps: Sequence[float] | None = None) -> torch.Tensor:
    """Maps (..., \\*spatial) of any number of axes -> (..., \\*size), voxels centred at k + 0.5, borders repeated.

    The numbers of ``torch.nn.functional.interpolate`` (linear, ``align_corners=False``, ``antialias=True``), by a
    product with the weights of each axis: the gradient is such a product too, where PyTorch's adds up in any order on a
    GPU. Where a step is more than a voxel, the triangle of the interpolation is as wide as the step, so that nothing
    between two places is lost.

    Args:
        maps: of any number of axes.
        size: of the result, for the last axes.
        steps: from one voxel of the result to the next, in voxels of ``maps``, for each axis; places beyond the
            outermost centres repeat them. Default ``None``: old size / new size.

    Example:
        >>> resize_linear(torch.tensor([[0.0, 4.0]]), (4,)).tolist()
        [[0.0, 1.0, 3.0, 4.0]]
        >>> resize_linear(torch.tensor([[0.0, 7.0, 14.0, 21.0]]), (2,)).round().tolist()
        [[5.0, 16.0]]
        >>> resize_linear(torch.tensor([[0.0, 4.0]]), (3,), [0.5]).tolist()
        [[0.0, 1.0, 3.0]]
    """
    for number, length in enumerate(size):
        axis = number - len(size)
        old = maps.shape[axis]
        step = old / length if steps is None else steps[number]
        if step != 1 or length > old:
            maps = (maps.movedim(axis, -1) @ _weights(old, length, step, maps)).movedim(-1, axis)
        elif length < old:
            maps = maps.narrow(axis, 0, length)
    return maps


def _weights(old: int, new: int, step: float, like: torch.Tensor) -> torch.Tensor:
    """(old, new): what each new voxel takes of the old ones."""
    kind = torch.promote_types(like.dtype, torch.float32)
    at = ((torch.arange(new, device=like.device, dtype=kind) + 0.5) * step - 0.5).clamp(0, old - 1)
    voxels = torch.arange(old, device=like.device, dtype=kind)
    weights = (1 - (at - voxels[:, None]).abs() / max(1.0, step)).clamp(min=0)
    return (weights / weights.sum(dim=0)).to(like.dtype)
