# SPDX-License-Identifier: Apache-2.0
"""Overlapping patches of an image: where they start, what they hold, and how often they cover a voxel."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

__all__ = ["patch_coverage", "patch_grid", "patch_sums"]


def patch_grid(
    size: Sequence[int],
    patch: int | Sequence[int],
    stride: int | Sequence[int],
    *,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    r"""First voxels of the patches of a regular grid, the last patch of each axis flush with the end of the image.

    Along an axis of n voxels the patches of p voxels start at 0, s, 2s, ... as long as they end in the image, and at
    n - p where these do not reach the end. An axis with n <= p has one start, 0: the patch is as long as the image, or
    whoever cuts it pads. So every voxel lies in a patch, unless the stride is larger than the patch.

    Args:
        size: voxels of the image along each of D axes.
        patch: p, voxels of a patch, one number or one per axis.
        stride: s, voxels between patches, one number or one per axis.
        device: of the result. Default ``None``, the CPU.

    Returns:
        (N, D) int64, each start once, the last axis fastest.

    Raises:
        ValueError: for a number below 1, or another number of them than axes.

    Example:
        >>> from monai_labelfx.ops.patch_grid import patch_grid
        >>> patch_grid((7, 3), patch=4, stride=2).tolist()
        [[0, 0], [2, 0], [3, 0]]
    """
    size = tuple(size)
    if not size or min(size) < 1:
        raise ValueError(f"size must hold one number of voxels above 0 for each axis, got {size}.")
    patches, strides = _per_axis(patch, len(size), "patch"), _per_axis(stride, len(size), "stride")
    axes = []
    for extent, length, step in zip(size, patches, strides, strict=True):
        last = max(extent - length, 0)
        axes.append(torch.tensor([*range(0, last, step), last], device=device))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def patch_sums(values: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    r"""Sum of each channel over each patch, read off a summed-area table (Crow 1984) in any number of dimensions.

    The table has at each corner of voxels the sum of all voxels below it, so that a patch needs 2^D numbers of it,
    whatever its size.

    Args:
        values: (K, \*spatial) with D spatial axes.
        patches: (N, 2 \* D) whole numbers, start and size along each axis. A patch that reaches out of the image counts
            what it has inside, one without voxels counts 0.

    Returns:
        (N, K), int64 and exact for whole numbers and bool; float64 for the others, right to the rounding of the sum
        over the whole image.

    Raises:
        ValueError: when the shapes do not fit together, or patches are not whole numbers.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.patch_grid import patch_sums
        >>> patch_sums(torch.arange(6).reshape(1, 2, 3), torch.tensor([[0, 1, 2, 2], [1, 0, 1, 9]])).tolist()
        [[12], [12]]
    """
    shape = tuple(values.shape[1:])
    low, high = _corners(patches.to(values.device), shape)
    kind = torch.float64 if values.is_floating_point() else torch.int64
    table = values.new_zeros((values.shape[0], *(extent + 1 for extent in shape)), dtype=kind).as_subclass(torch.Tensor)
    table[(slice(None), *[slice(1, None)] * len(shape))] = values
    for axis in range(1, table.ndim):
        table.cumsum_(axis)
    flat = table.flatten(1)
    total = flat.new_zeros(values.shape[0], len(low))
    for place, ends in _flat_corners(low, high, shape):
        total += (-1) ** (len(shape) - ends) * flat.index_select(1, place)
    return total.mT.contiguous()


def patch_coverage(patches: torch.Tensor, values: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    r"""For each voxel the sum of the values of all patches that cover it: the transpose of :py:func:`patch_sums`.

    Each patch leaves its value at its 2^D corners with alternating signs, and cumulative sums along the axes spread
    them over the patch. The cost is that of the image, not of image times patches.

    Args:
        patches: (N, 2 \* D) whole numbers, start and size along each axis. What reaches out of the image is left out.
        values: (N, K), one number per patch and channel; all ones give how many patches cover a voxel.
        shape: voxels of the image along each of D axes.

    Returns:
        (K, \*shape), int64 and exact for whole numbers and bool; float64 for the others, where a voxel in no patch may
        be a rounding error away from 0: count in whole numbers to find it.

    Raises:
        ValueError: when the shapes do not fit together, or patches are not whole numbers.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.patch_grid import patch_coverage
        >>> patch_coverage(torch.tensor([[0, 3], [1, 3]]), torch.tensor([[1], [10]]), (5,)).tolist()
        [[1, 11, 11, 10, 0]]
    """
    shape = tuple(shape)
    values = values.as_subclass(torch.Tensor)
    if values.ndim != 2 or len(values) != len(patches):
        raise ValueError(
            f"values must be (N, K), a row for each of {len(patches)} patches, got shape {tuple(values.shape)}."
        )
    low, high = _corners(patches.to(values.device), shape)
    kind = torch.float64 if values.is_floating_point() else torch.int64
    corners = _flat_corners(low, high, shape)
    marks = torch.cat([(-1) ** ends * values.to(kind) for _, ends in corners])
    places, sums = _summed_by_place(torch.cat([place for place, _ in corners]), marks)
    table = torch.zeros(values.shape[1], math.prod(extent + 1 for extent in shape), dtype=kind, device=values.device)
    table[:, places] = sums.mT
    table = table.view(values.shape[1], *(extent + 1 for extent in shape))
    for axis in range(1, table.ndim):
        table.cumsum_(axis)
    return table[(slice(None), *[slice(-1)] * len(shape))].contiguous()


def _per_axis(value: int | Sequence[int], ndim: int, name: str) -> tuple[int, ...]:
    found = (value,) * ndim if isinstance(value, int) else tuple(value)
    if len(found) != ndim or any(number < 1 or number != int(number) for number in found):
        raise ValueError(f"{name} must be one whole number above 0, or {ndim}, one per axis, got {value!r}.")
    return tuple(int(number) for number in found)


def _corners(patches: torch.Tensor, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Low and high corner (N, D) of the patches, cut at the image."""
    if patches.ndim != 2 or patches.shape[1] != 2 * len(shape) or not shape or patches.is_floating_point():
        raise ValueError(
            f"patches must be (N, {2 * len(shape)}) whole numbers, start and size along each axis of an image "
            f"{shape}, got {patches.dtype} of shape {tuple(patches.shape)}."
        )
    start, size = patches.as_subclass(torch.Tensor).long().chunk(2, dim=1)
    ends = start.new_tensor(shape)
    low = torch.minimum(start.clamp(min=0), ends)
    return low, torch.maximum(torch.minimum(start + size, ends), low)


def _flat_corners(low: torch.Tensor, high: torch.Tensor, shape: tuple[int, ...]) -> list[tuple[torch.Tensor, int]]:
    """The 2^D corners of all patches: index (N,) in a flat table of one voxel more per axis, and how many are ends."""
    found = []
    for ends in itertools.product((False, True), repeat=len(shape)):
        place = torch.zeros_like(low[:, 0])
        for axis, (end, extent) in enumerate(zip(ends, shape, strict=True)):
            place = place * (extent + 1) + (high if end else low)[:, axis]
        found.append((place, sum(ends)))
    return found


def _summed_by_place(places: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each place once, and the sum of the values (M, K) there: sorted runs of a cumulative sum, the same every time."""
    order = places.argsort(stable=True)
    found, counts = places[order].unique_consecutive(return_counts=True)
    sums = values[order].cumsum(0)[counts.cumsum(0) - 1]
    return found, sums.diff(dim=0, prepend=torch.zeros_like(sums[:1]))
