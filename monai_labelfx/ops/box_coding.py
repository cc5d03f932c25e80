# SPDX-License-Identifier: Apache-2.0
"""Boxes as numbers for a network to predict: deltas to an anchor, or distances from a point to the sides."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

MAX_LOG_SIZE = math.log(1000.0 / 16)  # a box of 1000 from an anchor of 16, before exp overflows

_SMALLEST = 1e-6  # voxels; so that the logarithm of a box without extent is finite


def boxes_to_deltas(boxes: torch.Tensor, anchors: torch.Tensor, weights: Sequence[float] = (1.0, 1.0)) -> torch.Tensor:
    r"""Boxes as deltas to anchors, what :func:`deltas_to_boxes` turns back (Ren et al. 2015, equation 2).

    With centre c and size s of the box, and centre a and size b of the anchor, for every axis

    .. math:: t_c = w_c (c - a) / b, \quad t_s = w_s \log(s / b)

    Args:
        boxes: (..., 2 \* D) low corners, then high ones, in voxels.
        anchors: (..., 2 \* D), broadcasts with ``boxes``.
        weights: of the centre and of the size, or one for each of the 2 \* D deltas. Default 1, as for a dense detector
            or a region proposal network; the second stage of R-CNN has (10, 5), which is a standard deviation of 0.1
            and 0.2.

    Returns:
        (..., 2 \* D): the D centre deltas in axis order, then the D log sizes. Float32 for half precision and whole
        numbers; float64 stays.

    Raises:
        TypeError: if an argument is not a tensor of real numbers.
        ValueError: if the last axes differ or are odd, or for a wrong number of weights.

    Notes:
        Sizes below 1e-6 voxels count as 1e-6, so that the deltas of padding rows are finite.
        In 2-D with the axes (y, x) the deltas of torchvision, which are of (x, y), are columns 1, 0, 3, 2.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.box_coding import boxes_to_deltas
        >>> anchor = torch.tensor([[0.0, 0.0, 4.0, 8.0]])
        >>> boxes_to_deltas(torch.tensor([[1.0, 0.0, 5.0, 16.0]]), anchor).tolist()
        [[0.25, 0.5, 0.0, 0.6931471824645996]]
    """
    boxes, anchors, ndim = _checked("boxes", boxes, "anchors", anchors)
    low, size = boxes[..., :ndim], boxes[..., ndim:] - boxes[..., :ndim]
    anchor_low, anchor_size = anchors[..., :ndim], anchors[..., ndim:] - anchors[..., :ndim]
    positive = anchor_size.clamp(min=_SMALLEST)
    shift = low + 0.5 * size - (anchor_low + 0.5 * anchor_size)
    growth = (size.clamp(min=_SMALLEST) / positive).log()
    factors = _weights(weights, ndim, shift)
    return torch.cat((factors[:ndim] * shift / positive, factors[ndim:] * growth), -1)


def deltas_to_boxes(
    deltas: torch.Tensor,
    anchors: torch.Tensor,
    weights: Sequence[float] = (1.0, 1.0),
    *,
    max_log_size: float = MAX_LOG_SIZE,
) -> torch.Tensor:
    r"""Boxes from deltas to anchors, the inverse of :func:`boxes_to_deltas`.

    Args:
        deltas: (..., 2 \* D): D centre deltas, then D log sizes.
        anchors: (..., 2 \* D), broadcasts with ``deltas``: (N, 1, 2 \* D) for deltas (N, classes, 2 \* D).
        weights: those that the deltas were encoded with. Default 1.
        max_log_size: larger log sizes are cut to this. Default log(1000 / 16), as in Detectron and torchvision.

    Returns:
        (..., 2 \* D) boxes, which may reach beyond the image. Float32 for half precision; float64 stays.

    Raises:
        TypeError: if an argument is not a tensor of real numbers.
        ValueError: if the last axes differ or are odd, or for a wrong number of weights.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.box_coding import deltas_to_boxes
        >>> deltas_to_boxes(torch.tensor([[0.25, 0.5, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 4.0, 8.0]])).tolist()
        [[1.0, 4.0, 5.0, 12.0]]
    """
    deltas, anchors, ndim = _checked("deltas", deltas, "anchors", anchors)
    anchor_low, size = anchors[..., :ndim], anchors[..., ndim:] - anchors[..., :ndim]
    deltas = deltas / _weights(weights, ndim, deltas)
    centre = deltas[..., :ndim] * size + (anchor_low + 0.5 * size)
    half = 0.5 * (deltas[..., ndim:].clamp(max=max_log_size).exp() * size)
    return torch.cat((centre - half, centre + half), -1)


def boxes_to_distances(boxes: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    r"""Distances of points to the sides of boxes, what :func:`distances_to_boxes` turns back (Tian et al. 2019).

    Args:
        boxes: (..., 2 \* D) low corners, then high ones, in voxels.
        points: (..., D), broadcasts with ``boxes``.

    Returns:
        (..., 2 \* D): the D distances to the low sides in axis order, then the D to the high ones, in voxels; all are
        above 0 for a point inside. Float32 for half precision and whole numbers; float64 stays.

    Raises:
        TypeError: if an argument is not a tensor of real numbers.
        ValueError: if the last axes do not fit.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.box_coding import boxes_to_distances
        >>> boxes_to_distances(torch.tensor([1.0, 0.0, 5.0, 9.0]), torch.tensor([2.0, 4.0])).tolist()
        [1.0, 4.0, 3.0, 5.0]
    """
    boxes, points, ndim = _checked("boxes", boxes, "points", points, 1)
    return torch.cat((points - boxes[..., :ndim], boxes[..., ndim:] - points), -1)


def distances_to_boxes(distances: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    r"""Boxes from the distances of points to their sides, the inverse of :func:`boxes_to_distances`.

    Args:
        distances: (..., 2 \* D) to the low sides, then to the high ones, in voxels.
        points: (..., D), broadcasts with ``distances``.

    Returns:
        (..., 2 \* D) boxes. Float32 for half precision and whole numbers; float64 stays.

    Raises:
        TypeError: if an argument is not a tensor of real numbers.
        ValueError: if the last axes do not fit.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.box_coding import distances_to_boxes
        >>> distances_to_boxes(torch.tensor([1.0, 4.0, 3.0, 5.0]), torch.tensor([2.0, 4.0])).tolist()
        [1.0, 0.0, 5.0, 9.0]
    """
    distances, points, ndim = _checked("distances", distances, "points", points, 1)
    return torch.cat((points - distances[..., :ndim], points + distances[..., ndim:]), -1)


def _checked(
    name: str, value: torch.Tensor, other_name: str, other: torch.Tensor, per_axis: int = 2
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Both in float32 at least, and the number of axes; ``other`` has ``per_axis`` numbers for each."""
    for key, tensor in ((name, value), (other_name, other)):
        if not isinstance(tensor, torch.Tensor) or tensor.is_complex() or tensor.dtype == torch.bool:
            found = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise TypeError(f"{key} must be a tensor of real numbers, got {found}.")
    length = value.shape[-1] if value.ndim else 0
    if length == 0 or length % 2 or not other.ndim or 2 * other.shape[-1] != per_axis * length:
        raise ValueError(
            f"{name} must have the shape (..., 2 * D) and {other_name} (..., {'2 * ' * (per_axis - 1)}D), "
            f"got {tuple(value.shape)} and {tuple(other.shape)}."
        )
    return _float(value), _float(other), length // 2


def _float(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _weights(weights: Sequence[float], ndim: int, like: torch.Tensor) -> torch.Tensor:
    """(2 * D,) from a weight of the centre and one of the size, or from 2 * D."""
    numbers = [float(weight) for weight in weights]
    if len(numbers) == 2:
        numbers = [numbers[0]] * ndim + [numbers[1]] * ndim
    if len(numbers) != 2 * ndim or not all(0 < number < math.inf for number in numbers):
        raise ValueError(f"weights must be 2 or {2 * ndim} finite numbers above 0, got {tuple(weights)}.")
    return like.new_tensor(numbers)
