# SPDX-License-Identifier: Apache-2.0
"""Separate objects of a mask: its connected components, without the small ones."""

from __future__ import annotations

import numpy as np
import torch

from monai_labelfx.ops.instances import _drop_small, _fill_holes, check_connectivity


def label_objects(
    mask: torch.Tensor, *, connectivity: int | None = None, min_size: int = 0, fill_holes: bool = False
) -> torch.Tensor:
    """Number the connected components of a mask, so that object scores can be had of a semantic segmentation.

    Components below ``min_size`` are dropped first, then holes are filled.

    Args:
        mask: (\\*spatial), what is not 0 is inside.
        connectivity: how many axes two voxels of one object may differ in, 1 (faces) to the number of spatial axes
            (faces, edges and corners). Default ``None``, the number of spatial axes.
        min_size: smallest object to keep, in voxels. Default 0, keep all. A weak segmentation leaves crumbs, each of
            which is a wrong object for a score of objects.
        fill_holes: give each hole that one single object encloses to that object. Default ``False``.

    Returns:
        (\\*spatial) int32, 0 outside, the objects 1, 2, ... in scan order, on the device of ``mask``.

    Raises:
        ValueError: for a mask without spatial axes, or an argument out of its range.

    Notes:
        Objects that touch become one: where borders are predicted, take
        :py:func:`~monai_labelfx.ops.decode_instances`. The components are found on the CPU.

    Example:
        >>> label_objects(torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 1]]), min_size=2).tolist()
        [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 2, 2]]
    """
    from scipy import ndimage

    axes = mask.ndim
    if axes < 1:
        raise ValueError("mask must have the shape (*spatial), got a single number.")
    connectivity = axes if connectivity is None else connectivity
    check_connectivity(connectivity, axes)
    if min_size < 0:
        raise ValueError(f"min_size must be a number of voxels, 0 or above, got {min_size}.")
    inside = (mask != 0).detach().cpu().numpy()
    labels, _ = ndimage.label(inside, ndimage.generate_binary_structure(axes, connectivity))
    if min_size > 1:
        labels = _drop_small(labels, min_size)
    if fill_holes:
        labels = _fill_holes(labels)
    return torch.as_tensor(labels.astype(np.int32, copy=False), device=mask.device)
