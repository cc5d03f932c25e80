# SPDX-License-Identifier: Apache-2.0
"""Masks of boxes, given in bins, on the voxels of the image: the whole image or the block that a box covers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

_MOST_NUMBERS = 1 << 24  # of windows held at a time, 64 MB in float32
_FEW_NUMBERS = 1 << 16  # that cost less than to compute windows in two parts
_MOST_PADDING = 1.5  # of larger windows computed together, numbers for one that is used


@torch.no_grad()
def paste_masks(
    probabilities: torch.Tensor, boxes: torch.Tensor, size: Sequence[int], *, threshold: float | None = 0.5
) -> torch.Tensor:
    r"""Masks that cut their boxes into bins, as masks of the image (He et al. 2017, section 3.1).

    Voxel k of an axis has its centre at k + 0.5. In a box [l, h) that has M bins along the axis it lies at

    .. math:: t = \min\left(\max\left(\frac{k + 0.5 - l}{h - l} M - 0.5,\; 0\right),\; M - 1\right)

    of the bins' centres, and its value is the linear interpolation of the bins there, of all axes together. A voxel
    whose centre is outside of the box is 0. Axes are computed one after the other, and only within the boxes.

    Args:
        probabilities: (N, \*bins) floating point, any numbers: probabilities, or logits with a ``threshold`` of 0.
        boxes: (N, 2 \* D) low corners, then high ones, in voxels. What lies outside of the image is cut off.
        size: voxels of the image along each of the D axes.
        threshold: what is above is inside of the mask. Default 0.5 (paper). ``None`` returns the values themselves.

    Returns:
        (N, \*size) bool; for ``None`` the values, float32, or float64 for float64. A box that holds no centre of a
        voxel has an empty mask, also one without extent, inverted, or with NaN. Nothing is differentiated.

    Raises:
        TypeError: if ``probabilities`` or ``boxes`` are not floating point.
        ValueError: if shapes do not fit each other, or ``size`` is not one positive number for each axis.

    Notes:
        The paper does not say how masks are resampled. torchvision pads the bins by one bin of zeros, rounds the boxes
        to whole pixels, each end for itself, and interpolates between these; here boxes stay where they are, and in the
        outer half of the outermost bin the value is that of the bin.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.paste_masks import paste_masks
        >>> bins = torch.tensor([[0.0, 1.0]])
        >>> paste_masks(bins, torch.tensor([[1.0, 5.0]]), (6,), threshold=None).tolist()
        [[0.0, 0.0, 0.25, 0.75, 1.0, 0.0]]
        >>> paste_masks(bins, torch.tensor([[1.0, 5.0]]), (6,)).tolist()
        [[False, False, False, True, True, False]]
    """
    size = _checked(probabilities, boxes, size)
    kind = torch.bool if threshold is not None else torch.promote_types(probabilities.dtype, torch.float32)
    masks = torch.zeros(len(boxes), *size, dtype=kind, device=probabilities.device)
    for row, low, block in _blocks(probabilities, boxes, size, threshold):
        masks[row][tuple(slice(k, k + n) for k, n in zip(low, block.shape, strict=True))] = block
    return masks


@torch.no_grad()
def crop_masks(
    probabilities: torch.Tensor, boxes: torch.Tensor, size: Sequence[int], *, threshold: float | None = 0.5
) -> list[torch.Tensor]:
    r"""The blocks of :py:func:`paste_masks` that the boxes cover, without the rest of the image.

    Args:
        probabilities: (N, \*bins), see :py:func:`paste_masks`.
        boxes: (N, 2 \* D) in voxels. Cut them at the image first where the place of the blocks matters: a block starts
            at ``floor(low)``, or at the image's first voxel where that is beyond.
        size: voxels of the image along each of the D axes.
        threshold: see :py:func:`paste_masks`.

    Returns:
        N tensors of D axes, bool, or values for a ``threshold`` of ``None``: the voxels ``floor(low)`` to
        ``ceil(high)`` of each box [low, high), at least one along an axis, cut at the image. A box that is outside of
        the image has a block without voxels.

    Raises:
        TypeError: see :py:func:`paste_masks`.
        ValueError: see :py:func:`paste_masks`.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.paste_masks import crop_masks
        >>> crop_masks(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 5.0]]), (6,))
        [tensor([False, False,  True,  True])]
    """
    size = _checked(probabilities, boxes, size)
    found: list[torch.Tensor] = [torch.empty(0)] * len(boxes)
    for row, _, block in _blocks(probabilities, boxes, size, threshold):
        found[row] = block.clone()  # a view would keep its whole chunk alive
    return found


def _blocks(
    probabilities: torch.Tensor, boxes: torch.Tensor, size: tuple[int, ...], threshold: float | None
) -> Iterator[tuple[int, list[int], torch.Tensor]]:
    """Row, first voxel and values of the block of each box, smallest blocks first."""
    ndim = len(size)
    values = probabilities if probabilities.dtype == torch.float64 else probabilities.float()
    corners = boxes.to(values).nan_to_num(nan=math.nan)  # large numbers instead of infinite ones
    first, end = corners.nan_to_num(0.0).split(ndim, dim=1)
    edge = corners.new_tensor(size)
    first, end = first.floor(), torch.maximum(end.ceil(), first.floor() + 1)
    first, end = torch.minimum(first.clamp(min=0), edge), torch.minimum(end.clamp(min=0), edge)
    windows = torch.cat([first, (end - first).clamp(min=0)], dim=1).long()
    for rows in _similar(windows[:, ndim:].tolist()):
        part = torch.as_tensor(rows, device=values.device)
        places = windows[part].tolist()
        widths = [max(place[ndim + axis] for place in places) for axis in range(ndim)]
        found = _interpolated(values[part], corners[part], first[part], widths)
        found = found if threshold is None else found > threshold
        for row, place, window in zip(rows, places, found, strict=True):
            yield row, place[:ndim], window[tuple(map(slice, place[ndim:]))]


def _interpolated(
    values: torch.Tensor, boxes: torch.Tensor, first: torch.Tensor, widths: Sequence[int]
) -> torch.Tensor:
    """(n, \\*widths): the bins (n, \\*bins) of boxes at the centres of the voxels from ``first`` (n, D) on."""
    ndim = len(widths)
    with torch.autocast(values.device.type, enabled=False):
        for axis, width in enumerate(widths):
            bins = values.shape[1]
            low, high = boxes[:, axis, None], boxes[:, ndim + axis, None]
            x = first[:, axis, None] + torch.arange(width, device=values.device) + 0.5
            inside = (x >= low) & (x < high)
            place = torch.where(inside, ((x - low) / (high - low) * bins - 0.5).clamp(0, bins - 1), -1.0)
            weights = 1 - (place[:, None] - torch.arange(bins, device=values.device)[:, None]).abs()
            others = values.shape[2:]
            # the axis goes from the front to the back, so that all end in the order in which they came
            values = values.reshape(len(values), bins, -1).transpose(1, 2) @ weights.clamp(min=0)
            values = values.reshape(len(values), *others, width)
    return values


def _similar(shapes: Sequence[Sequence[int]]) -> list[list[int]]:
    """Rows to compute together, in windows of the largest shape along each axis, so that little is padding."""
    volumes = [math.prod(shape) for shape in shapes]
    parts: list[list[int]] = []
    widths, used = [0] * len(shapes[0]) if shapes else [], 0
    for row in sorted(range(len(shapes)), key=volumes.__getitem__):
        wider = [max(pair) for pair in zip(widths, shapes[row], strict=True)]
        padded = math.prod(wider) * (len(parts[-1]) + 1) if parts else 0
        if not parts or padded > min(_MOST_NUMBERS, max(_MOST_PADDING * (used + volumes[row]), _FEW_NUMBERS)):
            parts.append([])
            wider, used = list(shapes[row]), 0
        parts[-1].append(row)
        widths, used = wider, used + volumes[row]
    return parts


def _checked(probabilities: torch.Tensor, boxes: torch.Tensor, size: Sequence[int]) -> tuple[int, ...]:
    for name, value in (("probabilities", probabilities), ("boxes", boxes)):
        if not value.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {value.dtype}.")
    ndim = probabilities.ndim - 1
    if ndim < 1 or 0 in probabilities.shape[1:]:
        raise ValueError(f"probabilities must have the shape (N, *bins) with bins, got {tuple(probabilities.shape)}.")
    if boxes.shape != (len(probabilities), 2 * ndim):
        wanted = f"({len(probabilities)}, {2 * ndim}) for probabilities of {tuple(probabilities.shape)}"
        raise ValueError(f"boxes must have the shape {wanted}, got {tuple(boxes.shape)}.")
    if len(size) != ndim or not all(int(n) == n and n > 0 for n in size):
        raise ValueError(f"size must be a positive number of voxels for each of {ndim} axes, got {tuple(size)}.")
    return tuple(int(n) for n in size)
