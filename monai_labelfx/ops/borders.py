# SPDX-License-Identifier: Apache-2.0
"""The three-class target of DenoiSeg: background, foreground and border, from instance labels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch

from monai_labelfx.ops._window import offset_window
from monai_labelfx.ops.instances import check_connectivity, integer_labels, per_axis

BACKGROUND, FOREGROUND, BORDER = 0, 1, 2
ROUNDING = 1e-6  # so that 0.3 mm are three voxels of 0.1 mm


def border_classes(
    instances: torch.Tensor,
    border_width: float | Sequence[float] = 1,
    *,
    connectivity: int = 1,
    spacing: Sequence[float] | None = None,
) -> torch.Tensor:
    """Classes background (0), foreground (1) and border (2) of instance label maps.

    A voxel is border when another label, background included, lies within reach, and it is background itself or lies
    near a second object. So an isolated object keeps all its voxels as foreground and gets a ring in the background,
    while two touching objects each give up a layer along their contact. With the default width and connectivity this is
    the target of the paper's code.

    Args:
        instances: (N, \\*spatial) label maps, each on its own (N = 1 for a channel-first map): 0 background, every
            other number one object; bool, any integer type, or floats that hold whole numbers.
        border_width: thickness of the ring, and of the layer on each side of a contact; one number or one per axis.
            In voxels (whole numbers), or in the unit of ``spacing``. 0 leaves an axis without border. Default 1, the
            reference.
        connectivity: which voxels lie within reach at width 1: those that differ in at most this many axes, 1 (faces)
            to the number of spatial axes. Default 1, the reference.
        spacing: voxel size per spatial axis. Given it, an axis with large voxels gets fewer border voxels, but one at
            least: without it objects that touch along that axis could not be told apart. Default ``None``, voxels.

    Returns:
        (N, \\*spatial) int64 classes on the device of ``instances``.

    Raises:
        TypeError: when ``instances`` is no tensor of real numbers.
        ValueError: when labels are negative or fractional, or another argument is out of its range.

    Notes:
        An offset o is within reach of widths w when sum(abs(o) / w) <= connectivity and abs(o) <= w on each axis; the
        second object is looked for in the full box of half-side w. The paper gives no rule; its code calls
        ``find_boundaries(mode="outer")`` of scikit-image on int32 labels (width 1), which is wrong for int64 labels
        (scikit-image issue 4558). Image faces make no border.

    Example:
        >>> border_classes(torch.tensor([[0, 0, 7, 7, 7, 9, 9, 9, 0, 0]]))
        tensor([[0, 2, 1, 1, 2, 2, 1, 1, 2, 0]])
        >>> border_classes(torch.tensor([[5, 5, 5, 6, 6, 6]]), 2)
        tensor([[1, 2, 2, 2, 2, 1]])
    """
    labels = integer_labels(instances, "instances")
    ndim = labels.ndim - 1
    if ndim < 1:
        raise ValueError(f"instances must have shape (N, *spatial), got {tuple(instances.shape)}.")
    check_connectivity(connectivity, ndim)
    width = _width_in_voxels(border_width, spacing, ndim)
    reach = tuple(min(int(w + ROUNDING), n - 1) for w, n in zip(width, labels.shape[1:], strict=True))

    objects = labels != 0
    differs = torch.zeros_like(objects)
    for offset in itertools.product(*(range(-r, r + 1) for r in reach)):
        share = sum(abs(o) / w for o, w in zip(offset, width, strict=True) if o)
        if offset <= (0,) * ndim or share > connectivity + ROUNDING:  # one of each two opposite offsets
            continue
        here, there = offset_window(labels, offset, -1), offset_window(labels, offset, 1)
        unequal = here != there
        offset_window(differs, offset, -1).logical_or_(unequal)
        offset_window(differs, offset, 1).logical_or_(unequal)

    highest = _extreme(labels.where(objects, torch.iinfo(torch.int64).min), reach, torch.maximum)
    lowest = _extreme(labels.where(objects, torch.iinfo(torch.int64).max), reach, torch.minimum)
    border = differs & (~objects | (highest != lowest))
    return torch.where(border, BORDER, torch.where(objects, FOREGROUND, BACKGROUND))


def _width_in_voxels(
    border_width: float | Sequence[float], spacing: Sequence[float] | None, ndim: int
) -> tuple[float, ...]:
    width = per_axis(border_width, ndim, "border_width")
    if spacing is None:
        if any(w != int(w) for w in width):
            raise ValueError(f"border_width must be a whole number of voxels without spacing, got {border_width}.")
        return width
    sizes = per_axis(spacing, ndim, "spacing")
    if not all(sizes):
        raise ValueError(f"spacing must be above 0 on every axis, got {spacing}.")
    return tuple(max(1.0, w / s) if w else 0.0 for w, s in zip(width, sizes, strict=True))


def _extreme(
    values: torch.Tensor, reach: tuple[int, ...], pick: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Highest or lowest value in the box of half-side ``reach`` around each voxel, axis by axis."""
    for axis, distance in enumerate(reach, start=1):
        result = values.clone()
        for step in range(1, distance + 1):
            count = values.shape[axis] - step
            ahead, behind = result.narrow(axis, 0, count), result.narrow(axis, step, count)
            ahead.copy_(pick(ahead, values.narrow(axis, step, count)))
            behind.copy_(pick(behind, values.narrow(axis, 0, count)))
        values = result
    return values
