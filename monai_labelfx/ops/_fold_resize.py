# SPDX-License-Identifier: Apache-2.0
"""Linear interpolation of images and score maps to another size, fast for any number of channels, and row by row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import interpolate

_MODES = ("linear", "bilinear", "trilinear")


def fold_resize(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Maps (B, C, \\*spatial) -> (B, C, \\*size): voxels centred at k + 0.5, borders repeated, no antialiasing.

    The numbers of ``torch.nn.functional.interpolate`` (linear, ``align_corners=False``), with the channels as members
    of the batch: on a processor PyTorch takes a slow path where there are three channels. Maps that have the size
    already are given back as they are.

    Args:
        maps: floating point, with up to three spatial axes.
        size: of the result, one number for each spatial axis.

    Example:
        >>> fold_resize(torch.tensor([[[0.0, 4.0]]]), (4,)).tolist()
        [[[0.0, 1.0, 3.0, 4.0]]]
    """
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    folded = maps.flatten(0, 1).unsqueeze(1)
    resized = interpolate(folded, size=tuple(size), mode=_MODES[len(size) - 1], align_corners=False)
    return resized.squeeze(1).unflatten(0, maps.shape[:2])


def resize_rows(maps: torch.Tensor, length: int, first: int = 0, last: int | None = None) -> torch.Tensor:
    """Rows ``first`` to ``last`` (all of them, if it is None) of the maps resized to ``length`` along axis 2.

    Axis 2 is the first spatial one; the others stay. The numbers are those of :py:func:`fold_resize`, but what is not
    asked for is not made, so that a large result can be used up part by part.

    Example:
        >>> resize_rows(torch.tensor([[[0.0, 4.0]]]), 4, 1, 3).tolist()
        [[[1.0, 3.0]]]
    """
    old, last = maps.shape[2], length if last is None else last
    if old == length:
        return maps[:, :, first:last]
    below, above, share = row_samples(old, length, first, last)
    place = share.to(maps).reshape(-1, *[1] * (maps.ndim - 3))
    return maps.index_select(2, below.to(maps.device)).lerp_(maps.index_select(2, above.to(maps.device)), place)


def row_samples(old: int, length: int, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For the rows ``first`` to ``last`` of ``old`` ones resized to ``length``: the two rows each lies between.

    Returns:
        two int64 indices, and the float64 share of the second row, each (last - first,), on the processor. Where a row
        needs one only, both indices are the same.

    Example:
        >>> [values.tolist() for values in row_samples(2, 4, 0, 3)]
        [[0, 0, 0], [0, 1, 1], [0.0, 0.25, 0.75]]
    """
    at = ((torch.arange(first, last, dtype=torch.float64) + 0.5) * (old / length) - 0.5).clamp(0, old - 1)
    below = at.floor()
    share = at - below
    return below.long(), (below + (share > 0)).long(), share


def resize_columns(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Maps (B, C, rows, \\*spatial) -> (B, C, rows, \\*size): :py:func:`fold_resize` of each row.

    Example:
        >>> resize_columns(torch.tensor([[[[0.0, 4.0], [5.0, 5.0]]]]), (4,)).tolist()
        [[[[0.0, 1.0, 3.0, 4.0], [5.0, 5.0, 5.0, 5.0]]]]
    """
    if tuple(maps.shape[3:]) == tuple(size):
        return maps  # flattening the rows of a part of an image would copy them
    return fold_resize(maps.flatten(1, 2), size).unflatten(1, maps.shape[1:3])
