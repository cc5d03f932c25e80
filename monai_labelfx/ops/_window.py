# SPDX-License-Identifier: Apache-2.0
"""Views of a grid and of the same grid moved by some voxels, in step."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def offset_window(values: torch.Tensor, offset: Sequence[int], sign: int) -> torch.Tensor:
    """View of the voxels that have a partner at ``offset`` (sign -1), or of these partners (sign 1), in step.

    Args:
        values: (\\*any, \\*spatial), the spatial axes last.
        offset: voxels to the partner, one number for each spatial axis, less than its length.
        sign: -1 or 1.

    Example:
        >>> values = torch.arange(5)
        >>> offset_window(values, [2], -1).tolist(), offset_window(values, [2], 1).tolist()
        ([0, 1, 2], [2, 3, 4])
    """
    for axis, distance in enumerate(offset, start=values.ndim - len(offset)):
        values = values.narrow(axis, max(sign * distance, 0), values.shape[axis] - abs(distance))
    return values
