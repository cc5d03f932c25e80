# SPDX-License-Identifier: Apache-2.0
"""Boxes under affine maps, from and to world coordinates, from masks and cut at the image; any number of axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

_FLAT = 1e-9  # a determinant this small beside the lengths of its columns belongs to no invertible map
_PLANE = 1e-6  # of the largest entry: below this an affine does not mix the axes of a picture with the third


def boxes_through_affine(boxes: torch.Tensor, matrix: Any, *, edges: bool = False) -> torch.Tensor:
    r"""The axis-aligned hull of where an affine map takes boxes.

    Boxes count from the edge of the first voxel (voxel k covers [k, k + 1)), affines from its centre, which has the
    index k. So for an index map ``y = A x + t`` a corner c goes to ``A (c - 0.5) + t + 0.5``. The hull of the 2^D moved
    corners needs none of them: with ``P = max(A, 0)`` and ``Q = min(A, 0)`` it is

    .. math:: low' = P\,low + Q\,high + t', \qquad high' = P\,high + Q\,low + t'.

    Exact where the map keeps boxes boxes (flips, 90-degree turns, transposes, scalings, shifts, and any order of them),
    else the tightest box around the moved one, looser than the object in it.

    Args:
        boxes: (..., 2 \* D) low corner, then high corner. Those without volume stay so under axis-aligned maps.
        matrix: (D + 1, D + 1) homogeneous, tensor or array, old to new coordinates; of index coordinates, such as
            ``inverse(affine now) @ affine then``. It may be singular (a projection).
        edges: the matrix is of edge coordinates already, so nothing is added or taken. Default ``False``.

    Returns:
        (..., 2 \* D) in the dtype of ``boxes`` (float32 for whole-number types), on their device. Computed in float64;
        differentiable in the boxes.

    Raises:
        TypeError: when ``boxes`` is no tensor of real numbers.
        ValueError: for a wrong shape, or a matrix that is not finite or not affine.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.box_affine import boxes_through_affine
        >>> flip = [[-1, 0, 9], [0, 1, 0], [0, 0, 1]]  # of axis 0, which has 10 voxels
        >>> boxes_through_affine(torch.tensor([[1.0, 2.0, 4.0, 8.0]]), flip).tolist()
        [[6.0, 2.0, 9.0, 8.0]]
    """
    ndim = _checked_boxes(boxes)
    whole = _checked_matrix(matrix, ndim, "matrix")
    linear, shift = whole[:-1, :-1], whole[:-1, -1]
    if not edges:
        shift = shift + 0.5 - 0.5 * linear.sum(1)
    up, down = linear.clamp(min=0), linear.clamp(max=0)
    both = torch.cat((torch.cat((up, down), 1), torch.cat((down, up), 1))).to(boxes.device)
    moved = boxes.double() @ both.T + shift.repeat(2).to(boxes.device)
    return (moved + 0.0).to(_float(boxes))  # + 0.0: without -0.0


def boxes_to_world(boxes: torch.Tensor, affine: Any) -> torch.Tensor:
    r"""Boxes in voxels to boxes in the world (mm), half a voxel included.

    The affine maps the *centre* of voxel k, index k, to mm. So the low edge of voxel 0 lies at ``affine(-0.5)``; to
    leave the half out moves a box by half a voxel, and by a whole one against a flipped copy of the image.

    Args:
        boxes: (..., 2 \* D) in voxels, low corner, then high corner, half open.
        affine: (D + 1, D + 1), index to mm. A larger one (4 x 4 for a picture) counts with its first D axes.

    Returns:
        (..., 2 \* D) low corner, then high corner, along the axes of the world, in the convention of the affine (RAS in
        MONAI): the hull where the image lies obliquely, which no way back makes tight again.

    Raises:
        TypeError: when ``boxes`` is no tensor of real numbers.
        ValueError: for a wrong shape, an affine without an inverse, or a picture that lies obliquely in space.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.box_affine import boxes_to_world
        >>> boxes_to_world(torch.tensor([[0.0, 0.0, 4.0, 2.0]]), torch.diag(torch.tensor([-2.0, 5.0, 1.0]))).tolist()
        [[-7.0, -2.5, 1.0, 7.5]]
    """
    ndim = _checked_boxes(boxes)
    matrix = _image_affine(affine, ndim)
    half = torch.eye(ndim + 1, dtype=torch.float64)
    half[:-1, -1] = -0.5
    return boxes_through_affine(boxes, matrix @ half, edges=True)


def boxes_to_voxels(boxes: torch.Tensor, affine: Any) -> torch.Tensor:
    r"""Boxes in the world (mm) to boxes in voxels, the inverse of :func:`boxes_to_world` for axis-aligned affines.

    Args:
        boxes: (..., 2 \* D) low corner, then high corner, along the axes of the world that ``affine`` maps to.
        affine: (D + 1, D + 1) or larger, index to mm; see :func:`boxes_to_world`.

    Returns:
        (..., 2 \* D) in voxels, low corner, then high corner, half open; the hull where the image lies obliquely.

    Raises:
        TypeError: when ``boxes`` is no tensor of real numbers.
        ValueError: as for :func:`boxes_to_world`.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.box_affine import boxes_to_voxels
        >>> boxes_to_voxels(torch.tensor([[-7.0, -2.5, 1.0, 7.5]]), torch.diag(torch.tensor([-2.0, 5.0, 1.0]))).tolist()
        [[0.0, 0.0, 4.0, 2.0]]
    """
    ndim = _checked_boxes(boxes)
    half = torch.eye(ndim + 1, dtype=torch.float64)
    half[:-1, -1] = 0.5
    return boxes_through_affine(boxes, half @ torch.linalg.inv(_image_affine(affine, ndim)), edges=True)


def masks_to_boxes(masks: torch.Tensor) -> torch.Tensor:
    r"""The tight box of each mask.

    Args:
        masks: (N, \*spatial) of any real type; what is not 0 belongs to the object.

    Returns:
        (N, 2 \* spatial_dims) float32, low corner, then high corner, half open, on the device of ``masks``. An empty
        mask has a box of zeros.

    Raises:
        ValueError: without a spatial axis.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.box_affine import masks_to_boxes
        >>> masks_to_boxes(torch.tensor([[[0, 0, 0], [0, 1, 1]], [[0, 0, 0], [0, 0, 0]]])).tolist()
        [[1.0, 1.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0]]
    """
    if masks.ndim < 2:
        raise ValueError(f"masks must have the shape (N, *spatial), got {tuple(masks.shape)}.")
    ndim = masks.ndim - 1
    if not masks.numel():
        return torch.zeros(len(masks), 2 * ndim, device=masks.device)
    inside = masks if masks.dtype == torch.bool else masks != 0
    low, high = [], []
    for axis in range(1, masks.ndim):
        others = [other for other in range(1, masks.ndim) if other != axis]
        line = (inside.any(others) if others else inside).to(torch.uint8)  # argmax takes the first of equal ones
        found = line.any(1)
        low.append(line.argmax(1) * found)
        high.append((line.shape[1] - line.flip(1).argmax(1)) * found)
    return torch.stack(low + high, 1).to(torch.float32)


def clip_boxes(boxes: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    r"""Boxes cut at the borders of an image; what lies outside becomes a box without volume on its border.

    Args:
        boxes: (..., 2 \* D) low corner, then high corner.
        shape: D spatial sizes in voxels.

    Returns:
        (..., 2 \* D) in the dtype of ``boxes``; differentiable.

    Raises:
        TypeError: when ``boxes`` is no tensor of real numbers.
        ValueError: when the sizes do not match the boxes.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.box_affine import clip_boxes
        >>> clip_boxes(torch.tensor([[-1.0, 2.0, 4.0, 9.0], [9.0, 0.0, 12.0, 3.0]]), (8, 8)).tolist()
        [[0.0, 2.0, 4.0, 8.0], [8.0, 0.0, 8.0, 3.0]]
    """
    ndim = _checked_boxes(boxes)
    if len(shape) != ndim:
        raise ValueError(f"shape must have one size for each of {ndim} axes of the boxes, got {tuple(shape)}.")
    limit = torch.tensor([*shape, *shape], dtype=boxes.dtype, device=boxes.device)
    return torch.minimum(boxes.clamp(min=0), limit)


def _checked_boxes(boxes: Any) -> int:
    """The number of axes of boxes."""
    if not isinstance(boxes, torch.Tensor) or boxes.dtype == torch.bool or boxes.is_complex():
        found = boxes.dtype if isinstance(boxes, torch.Tensor) else type(boxes).__name__
        raise TypeError(f"boxes must be a tensor of real numbers, got {found}.")
    if not boxes.ndim or boxes.shape[-1] % 2 or not boxes.shape[-1]:
        raise ValueError(f"boxes must have the shape (..., 2 * spatial_dims), got {tuple(boxes.shape)}.")
    return boxes.shape[-1] // 2


def _checked_matrix(matrix: Any, ndim: int, name: str) -> torch.Tensor:
    """The matrix in float64 on the CPU."""
    whole = torch.as_tensor(matrix).as_subclass(torch.Tensor).detach().to("cpu", torch.float64)
    last = torch.tensor([0.0] * ndim + [1.0], dtype=torch.float64)
    if whole.shape != (ndim + 1, ndim + 1) or not whole.isfinite().all() or not torch.equal(whole[-1], last):
        raise ValueError(
            f"{name} must be a finite affine matrix ({ndim + 1}, {ndim + 1}) with the last row {last.tolist()}, "
            f"got {whole.tolist()}."
        )
    return whole


def _image_affine(affine: Any, ndim: int) -> torch.Tensor:
    """The affine of the first ``ndim`` axes, invertible."""
    whole = torch.as_tensor(affine).as_subclass(torch.Tensor).detach().to("cpu", torch.float64)
    if whole.ndim == 2 and len(whole) > ndim + 1 and whole.shape[0] == whole.shape[1]:
        mixed = torch.cat((whole[:ndim, ndim:-1].flatten(), whole[ndim:-1, :ndim].flatten()))
        if not mixed.abs().max() <= _PLANE * whole[:-1, :-1].abs().max():
            raise ValueError(
                f"boxes of {ndim} axes in an image that lies obliquely in space have no box of {ndim} axes there, "
                f"got the affine {whole.tolist()}."
            )
        keep = [*range(ndim), len(whole) - 1]
        whole = whole[keep][:, keep]
    whole = _checked_matrix(whole, ndim, "affine")
    linear = whole[:-1, :-1]
    if not torch.linalg.det(linear).abs() > _FLAT * linear.norm(dim=0).prod():
        raise ValueError(f"affine must have an inverse, got {whole.tolist()}.")
    return whole


def _float(boxes: torch.Tensor) -> torch.dtype:
    return boxes.dtype if boxes.is_floating_point() else torch.float32
