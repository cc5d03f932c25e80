# SPDX-License-Identifier: Apache-2.0
"""Volumes of boxes, and how far boxes overlap: all pairs or row by row."""

from __future__ import annotations

from typing import cast

import torch

OVERLAP_KINDS = ("iou", "giou", "iof")


def box_volume(boxes: torch.Tensor) -> torch.Tensor:
    r"""Volume (area in 2-D) of half-open boxes: the product of their sides.

    Args:
        boxes: (..., 2 \* spatial_dims), low corner then high corner.

    Returns:
        (...), float32 at least. A box with a negative side holds nothing: 0.

    Raises:
        ValueError: when the last axis is not low and high corner of one axis or more.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.box_overlap import box_volume
        >>> box_volume(torch.tensor([[0, 0, 2, 3], [4, 4, 2, 6]])).tolist()
        [6.0, 0.0]
    """
    low, high = _float_at_least(boxes, "boxes").chunk(2, -1)
    first, *sides = (high - low).clamp(min=0).unbind(-1)
    for side in sides:  # axis by axis, as the intersection, so that a box has an IoU of exactly 1 with itself
        first = first * side
    return first


def box_overlap(first: torch.Tensor, second: torch.Tensor, *, kind: str = "iou") -> torch.Tensor:
    r"""Overlap of every box of ``first`` with every box of ``second``, in any number of dimensions.

    With the intersection I, the union U and the smallest box H around both:

    - ``"iou"``: I / U, 0 to 1;
    - ``"giou"``: I / U - (H - U) / H, -1 to 1, whose gradient also draws disjoint boxes together (Rezatofighi et al.
      2019, algorithm 1);
    - ``"iof"``: I / volume of the box of ``first``, the part of it that lies in the other one.

    Args:
        first: (..., N, 2 \* spatial_dims), low corner then high corner, half open.
        second: (..., M, 2 \* spatial_dims); the leading axes broadcast.
        kind: see above.

    Returns:
        (..., N, M), float32 at least, differentiable. Where the divisor is 0 (two empty boxes) its fraction is 0; a box
        with a negative side is empty.

    Raises:
        ValueError: for another ``kind``, or boxes whose last axes differ or are not low and high corners.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.box_overlap import box_overlap
        >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [2.0, 0.0, 6.0, 4.0], [8.0, 0.0, 8.0, 4.0]])
        >>> box_overlap(boxes[:1], boxes, kind="iof").tolist()
        [[1.0, 0.5, 0.0]]
        >>> box_overlap(boxes, boxes, kind="giou")[0].tolist()
        [1.0, 0.3333333432674408, -0.5]
    """
    first, second = _checked(first, second, kind)
    return _overlap(first.unsqueeze(-2), second.unsqueeze(-3), kind)


def paired_box_overlap(first: torch.Tensor, second: torch.Tensor, *, kind: str = "iou") -> torch.Tensor:
    r"""Overlap of each box of ``first`` with the box of ``second`` in the same row, see :func:`box_overlap`.

    Args:
        first: (..., 2 \* spatial_dims).
        second: (..., 2 \* spatial_dims); the leading axes broadcast.
        kind: ``"iou"``, ``"giou"`` or ``"iof"``.

    Returns:
        (...), float32 at least, differentiable.

    Raises:
        ValueError: as :func:`box_overlap`.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.box_overlap import paired_box_overlap
        >>> paired_box_overlap(torch.tensor([[0.0, 0, 2, 0, 2, 2]]), torch.tensor([[0.0, 0, 0, 2, 2, 2]]), kind="iou")
        tensor([0.])
    """
    return _overlap(*_checked(first, second, kind), kind)


def _overlap(first: torch.Tensor, second: torch.Tensor, kind: str) -> torch.Tensor:
    """Overlap of boxes whose leading axes broadcast; one pass per axis, in place to hold few large tensors."""
    # A column of coordinates is contiguous here: strided ones would cost the large kernels their vector loads.
    a_low, a_high = _columns(first)
    b_low, b_high = _columns(second)
    shared = hull = None
    for low, high, other_low, other_high in zip(a_low, a_high, b_low, b_high, strict=True):
        side = torch.minimum(high, other_high).sub_(torch.maximum(low, other_low)).clamp_(min=0)
        shared = side if shared is None else shared.mul_(side)
        if kind == "giou":
            side = torch.maximum(high, other_high).sub_(torch.minimum(low, other_low)).clamp_(min=0)
            hull = side if hull is None else hull.mul_(side)
    shared = cast(torch.Tensor, shared)  # there is an axis
    volume = box_volume(first)
    if kind == "iof":
        return shared.div_(torch.where(volume > 0, volume, 1.0))
    union = (volume + box_volume(second)).sub_(shared)
    # A tiny number in the divisor would make infinite gradients: an empty divisor is 1 instead, its fraction is 0.
    overlap = shared.div_(torch.where(union > 0, union, 1.0))
    if hull is None:
        return overlap
    return overlap.sub_((hull - union).div_(torch.where(hull > 0, hull, 1.0)))


def _columns(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Low and high coordinates with the axis first, (spatial_dims, ...) each."""
    low, high = boxes.movedim(-1, 0).contiguous().chunk(2, 0)
    return low, high


def _checked(first: torch.Tensor, second: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Both of one floating type."""
    if kind not in OVERLAP_KINDS:
        raise ValueError(f"kind is {kind!r}, expected one of {', '.join(OVERLAP_KINDS)}.")
    first, second = _float_at_least(first, "first"), _float_at_least(second, "second")
    if first.shape[-1] != second.shape[-1]:
        raise ValueError(f"first has {first.shape[-1]} numbers a box, second {second.shape[-1]}, expected the same.")
    dtype = torch.promote_types(first.dtype, second.dtype)
    return first.to(dtype), second.to(dtype)


def _float_at_least(boxes: torch.Tensor, name: str) -> torch.Tensor:
    """The boxes as float32, or float64 if they are that."""
    if boxes.ndim == 0 or boxes.shape[-1] < 2 or boxes.shape[-1] % 2:
        raise ValueError(f"{name} has shape {tuple(boxes.shape)}, expected a last axis of 2 x spatial_dims numbers.")
    return boxes if boxes.dtype == torch.float64 else boxes.float()
