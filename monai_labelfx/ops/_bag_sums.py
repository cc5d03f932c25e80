# SPDX-License-Identifier: Apache-2.0
"""Sums and maxima over the voxels of bags: gathered without a trace in autograd, their gradients scattered."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from monai_labelfx.ops.smooth_maxima import add_smooth_max_terms, smooth_max_terms

View = tuple[int | None, list[torch.Tensor]]

_UNDERFLOW = 1e-30  # a sum below this has lost digits in float32


def bag_tables(bags: torch.Tensor, size: torch.Tensor) -> list[torch.Tensor]:
    """Bags, shortest first, as one or two tables, so that not all are padded to the longest.

    Args:
        bags: (bags, length) int64 indices, -1 behind the last one of a bag.
        size: (bags,) number of indices, ascending.

    Returns:
        Tables (rows, length) that hold all bags in order, each index one higher, 0 for padding: split where this
        takes the least padding.

    Example:
        >>> bags = torch.tensor([[5, -1, -1], [6, -1, -1], [3, 4, 2]])
        >>> [table.tolist() for table in bag_tables(bags, torch.tensor([1, 1, 3]))]
        [[[6], [7]], [[4, 5, 3]]]
    """
    if not len(bags):
        return []
    lengths = size.cpu().numpy()
    first = np.arange(1, len(lengths) + 1)  # bags in the first table
    split = int((first * lengths + (len(lengths) - first) * lengths[-1]).argmin()) + 1
    tables = [bags[:split, : lengths[split - 1]] + 1]
    return tables if split == len(bags) else [*tables, bags[split:, : lengths[-1]] + 1]


def bag_terms(
    crops: torch.Tensor, padding: torch.Tensor, views: Sequence[View], kind: str, alpha: float
) -> torch.Tensor:
    """The terms of bags, as ``smooth_max_from_terms`` takes them.

    Each voxel is exponentiated once, and bags add up plain numbers. Where that underflows, all is done over in
    logarithms, which takes several times as long.

    Args:
        crops: (N, \\*extents) logits, float32 or float64.
        padding: of the same shape, true at what is no voxel. No bag points there, but lines along an axis hold it.
        views: axis along which each map of the crops is added up, or ``None``, and the tables of its bags.
        kind, alpha: see :py:func:`monai_labelfx.ops.smooth_max_terms`.

    Returns:
        (2, bags), or (1, bags) for the maximum, the bags of one view after another.
    """
    reduced = any(axis is not None for axis, _ in views)

    def seen(maps: torch.Tensor, neutral: float, reduce: Callable, gather: Callable) -> torch.Tensor:
        maps = maps.masked_fill(padding, neutral) if reduced else maps
        parts = [maps if axis is None else reduce(maps, axis + 2 - maps.ndim) for axis, _ in views]
        return torch.cat([gather(p.flatten(1), tables) for p, (_, tables) in zip(parts, views, strict=True)], 1)

    if kind == "max":
        return seen(crops[None], -math.inf, lambda maps, axis: maps.max(axis).values, _maxima)
    sums = seen(linear_terms(crops, kind, alpha), 0.0, torch.sum, _sums)
    if not bool((sums < _UNDERFLOW).any()):
        return sums.log()
    terms = smooth_max_terms(crops, kind=kind, alpha=alpha)
    return seen(terms, -math.inf, lambda maps, axis: add_smooth_max_terms(maps, dim=axis), _log_sums)


def linear_terms(logits: torch.Tensor, kind: str, alpha: float) -> torch.Tensor:
    """``exp(smooth_max_terms(logits, kind=kind, alpha=alpha))``, without a logarithm: 0 where it underflows.

    Args:
        logits: any shape, float32 or float64.
        kind, alpha: see :py:func:`monai_labelfx.ops.smooth_max_terms`; not the maximum.

    Returns:
        (2, \\*logits.shape).
    """
    if kind == "power_mean":
        log_power = alpha * logsigmoid(logits)
        return torch.stack((log_power.exp(), -torch.expm1(log_power)))
    p, q = torch.sigmoid(logits), torch.sigmoid(-logits)
    weight = torch.exp(-alpha * q)
    if kind == "softmax":
        return torch.stack((p * weight, q * weight))
    return torch.stack((-torch.expm1(-alpha * p) * weight, -torch.expm1(-alpha * q)))


def _padded(maps: torch.Tensor, neutral: float) -> torch.Tensor:
    """Maps (K, 1 + voxels) with ``neutral`` in front, where the padding of the tables points."""
    return torch.cat((maps.new_full((len(maps), 1), neutral), maps), 1)


def _values(row: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Values (bags, length) of one padded map; of a single row, torch gathers ten times as fast as of two at once."""
    return row.index_select(0, table.flatten()).view(table.shape)


class _BagSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: torch.Tensor, *tables: torch.Tensor) -> torch.Tensor:
        ctx.tables, ctx.voxels = tables, maps.shape[1]
        rows = _padded(maps, 0.0).unbind()
        return torch.stack([torch.cat([_values(row, table).sum(1) for table in tables]) for row in rows])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        result = grads[0].new_zeros(len(grads[0]), ctx.voxels + 1)
        for table, grad in zip(ctx.tables, grads[0].split([len(table) for table in ctx.tables], 1), strict=True):
            shares = grad[..., None].expand(-1, -1, table.shape[1])
            result = result.index_add_(1, table.flatten(), shares.flatten(1))
        return result[:, 1:], *[None] * len(ctx.tables)


class _BagMaxima(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: torch.Tensor, *tables: torch.Tensor) -> torch.Tensor:
        row = _padded(maps, -math.inf)[0]
        found = [_values(row, table).max(1) for table in tables]
        places = [table.gather(1, place[:, None]) for table, (_, place) in zip(tables, found, strict=True)]
        ctx.places, ctx.voxels = torch.cat(places).flatten(), maps.shape[1]
        return torch.cat([largest for largest, _ in found])[None]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        result = grads[0].new_zeros(1, ctx.voxels + 1).index_add_(1, ctx.places, grads[0])
        return result[:, 1:], *[None] * (len(ctx.needs_input_grad) - 1)


def _sums(maps: torch.Tensor, tables: list[torch.Tensor]) -> torch.Tensor:
    """Sum of each map (K, voxels) over each bag: (K, bags)."""
    return _BagSums.apply(maps, *tables) if tables else maps[:, :0]


def _maxima(maps: torch.Tensor, tables: list[torch.Tensor]) -> torch.Tensor:
    """Largest value of one map (1, voxels) in each bag: (1, bags). Of equal ones the first has the gradient."""
    return _BagMaxima.apply(maps, *tables) if tables else maps[:, :0]


def _log_sums(terms: torch.Tensor, tables: list[torch.Tensor]) -> torch.Tensor:
    """Terms (K, bags) of bags from those of their voxels (K, voxels)."""
    rows = _padded(terms, -math.inf).unbind()
    found = [add_smooth_max_terms(torch.stack([_values(row, table) for row in rows])) for table in tables]
    return torch.cat([terms[:, :0], *found], 1)
