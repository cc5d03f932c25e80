# SPDX-License-Identifier: Apache-2.0
"""The smooth maximum over every positive bag of many boxes: crossing lines in 2-D, planes in 3-D."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch

from monai_labelfx.ops._bag_sums import bag_tables, bag_terms
from monai_labelfx.ops.box_frames import frame_voxels
from monai_labelfx.ops.crossing_lines import ANGLES, CrossingLines, box_crossing_lines, box_voxels
from monai_labelfx.ops.smooth_maxima import smooth_max_from_terms


class BagLogits(NamedTuple):
    """The bags of several boxes.

    - ``logits``: (bags,) the smooth maximum of each bag, as a logit.
    - ``box``: (bags,) int64 row of the boxes that the bag belongs to.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops import box_bag_logits
        >>> bags = box_bag_logits(torch.zeros(1, 5, 5), torch.tensor([[1, 1, 4, 3]]), angles=[0])
        >>> bags.box.tolist()
        [0, 0, 0, 0, 0]
    """

    logits: torch.Tensor
    box: torch.Tensor


def box_bag_logits(
    logits: torch.Tensor,
    boxes: torch.Tensor | None = None,
    *,
    frames: torch.Tensor | None = None,
    image_index: torch.Tensor | None = None,
    kind: str = "softmax",
    alpha: float = 6.0,
    angles: Sequence[float] | torch.Tensor = ANGLES,
    spacing: Sequence[float] | torch.Tensor | None = None,
    margin: torch.Tensor | None = None,
) -> BagLogits:
    r"""Smooth maximum of every bag that is sure to hold a voxel of the object in its tight box.

    In 2-D the bags are the parallel crossing lines of each box (Wang and Xia 2021, section 2.3), see
    :func:`monai_labelfx.ops.box_crossing_lines`. In 3-D a line may miss the object, so the bags are planes: each holds
    the direction of one axis of the box and a crossing line of the box seen along that axis. The sums inside the smooth
    maximum are added along the axis once, and the lines of the projection are gathered from the result, so that a
    plane costs no more than a line. Slabs that two projections share count once.

    Args:
        logits: (M, \*spatial), a stack of M maps, for instance (B, C, \*spatial) flattened to B C maps.
        boxes: (N, 2 \* spatial_dims), half-open corners in voxels. What a box has outside the map is cut off, and only
            bags that lie inside as a whole are kept.
        frames: (N, spatial_dims + 1, spatial_dims) instead of ``boxes``: boxes that a spatial transform has moved, see
            :func:`monai_labelfx.ops.boxes_to_frames`. The bags are laid in the frame.
        image_index: (N,) the map of each box, 0 to M - 1. Default ``None``: all lie in map 0.
        kind: see :func:`monai_labelfx.ops.smooth_max`.
        alpha: one number, see :func:`monai_labelfx.ops.smooth_max`; what it asks of lines, and of planes with their
            thousands of voxels, tells :func:`monai_labelfx.ops.alpha_for_target`.
        angles, margin: see :func:`monai_labelfx.ops.box_crossing_lines`; sides are those of the box before it moved.
        spacing: voxel size of the maps, (D,) or for each box (N, D), which makes the angles physical.

    Returns:
        ``BagLogits``; no bags where there are no boxes. Float32 for half precision.

    Raises:
        ValueError: for not exactly one of ``boxes`` and ``frames``, and as the functions above.

    Notes:
        Bags add up plain numbers, each exponentiated once a voxel; should a sum underflow, all are added up in
        logarithms, so that results and gradients are those of :func:`monai_labelfx.ops.smooth_max` for any logits. Only
        of equal maxima one alone has the gradient, the first.

    Example:
        >>> import torch
        >>> volume = torch.full((1, 6, 6, 6), -9.0)
        >>> volume[0, 2:4, 2:4, 2:4] = 9.0
        >>> bags = box_bag_logits(volume, torch.tensor([[2, 2, 2, 4, 4, 4]]), angles=[0], kind="max")
        >>> bags.logits.tolist()  # six slabs
        [9.0, 9.0, 9.0, 9.0, 9.0, 9.0]
    """
    if (boxes is None) == (frames is None):
        raise ValueError("exactly one of boxes and frames must be given.")
    logits = logits if logits.dtype == torch.float64 else logits.float()
    shape, hidden = logits.shape[1:], None
    if frames is not None:
        index, inside, extents, spacing = frame_voxels(frames, shape, image_index=image_index, spacing=spacing)
        boxes, shape = torch.cat((torch.zeros_like(extents), extents), 1), index.shape[1:]
        hidden = _points(extents, shape) & ~inside
        hidden = hidden if bool(hidden.any()) else None
    else:
        index = box_voxels(cast(torch.Tensor, boxes), shape, image_index=image_index)
    if index.numel() == 0:
        return BagLogits(logits.flatten()[:0], torch.zeros(0, dtype=torch.int64, device=logits.device))
    found = []
    for axis in range(3) if len(shape) == 3 else (None,):
        lines = box_crossing_lines(
            cast(torch.Tensor, boxes),
            shape,
            angles,
            spacing=spacing,
            margin=margin,
            reduced_axis=axis,
            in_box_crops=True,
            distinct=axis is not None,
        )
        if hidden is not None:
            lines = _complete(lines, hidden if axis is None else hidden.any(axis + 1))
        found.append((axis, lines))
    crops = logits.flatten().index_select(0, index.flatten().clamp(min=0)).view(index.shape)
    views = [(axis, bag_tables(lines.bags, lines.size)) for axis, lines in found]
    values = smooth_max_from_terms(bag_terms(crops, index < 0, views, kind, alpha), kind=kind, alpha=alpha)
    return BagLogits(values, torch.cat([lines.box for _, lines in found]))


def _complete(lines: CrossingLines, hidden: torch.Tensor) -> CrossingLines:
    """The lines that hold no hidden voxel."""
    flags = torch.cat((hidden.new_zeros(1), hidden.flatten()))
    keep = ~flags[lines.bags + 1].any(1)
    return CrossingLines(*(column[keep] for column in lines))


def _points(extents: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """True at the points (N, \\*shape) of the lattice of each frame, false beyond them."""
    result = torch.ones((len(extents), *shape), dtype=torch.bool, device=extents.device)
    for axis, size in enumerate(shape):
        view = (len(extents), *(1,) * axis, size, *(1,) * (len(shape) - 1 - axis))
        result &= (torch.arange(size, device=extents.device) < extents[:, axis, None]).view(view)
    return result
