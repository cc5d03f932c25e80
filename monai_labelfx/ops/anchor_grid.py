# SPDX-License-Identifier: Apache-2.0
"""Anchors: boxes of a few shapes around every place of a feature map. And the places themselves."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence

import torch

_KEPT = 32  # grids; a pyramid of five levels at six image shapes


def anchor_shapes(
    sizes: Sequence[float | Sequence[float]],
    spatial_dims: int,
    *,
    ratios: Sequence[float] = (2.0,),
    scales: Sequence[float] = (1.0,),
    round: bool = False,
) -> torch.Tensor:
    r"""Shapes of the anchors of one place: a cube, and boxes that are r times as long along one axis.

    For D axes the box of ratio r has the sides :math:`size \cdot r^{(D - 1) / D}` along one axis and :math:`size \cdot
    r^{-1 / D}` along the others, so that every anchor of a size has the volume of the cube. In 2-D a ratio 2 gives the
    classic aspect ratios 0.5, 1 and 2; in 3-D it gives the cube and three rods, and a ratio of 0.5 three plates.

    Order: forms first, and for each form every size, and for each size every scale. Forms are in rising order of the
    first axis, then of the second, and so on, so that in 2-D the ratio of the first axis to the second rises: for
    tensors with the axes (y, x) this is height / width = 0.5, 1, 2, the order of torchvision. In 3-D with a ratio
    above 1: long along axis 2, along axis 1, the cube, long along axis 0.

    Args:
        sizes: in voxels of the image, the side of the cube; or D numbers each, sides that the form is multiplied with,
            for images of thick slices.
        spatial_dims: D.
        ratios: r, above 0. The cube is always there, and a form that comes twice, as 2 and 0.5 in 2-D, is kept once.
            Default 2, see RetinaNet (Lin et al. 2017, section 4).
        scales: every size is multiplied with each of them; RetinaNet has (1, 2 ** (1 / 3), 2 ** (2 / 3)).
        round: round half the side to a whole number, halves to even, as torchvision does. Default ``False``.

    Returns:
        (K, D) float32 with K = forms \* sizes \* scales, on the CPU.

    Raises:
        ValueError: if there is no size or scale, or a number is not above 0 and finite.

    Notes:
        The anchors that torchvision's published RetinaNet was trained with have the whole sizes (n, int(n * 2 ** (1 /
        3)), int(n * 2 ** (2 / 3))), scale 1, ``round=True``, and in :func:`anchor_grid` ``offset=0``.

    Example:
        >>> from monai_labelfx.ops.anchor_grid import anchor_shapes
        >>> anchor_shapes([32, 40, 50], 2, round=True)[:4].tolist()  # wide ones first, then the square
        [[22.0, 46.0], [28.0, 56.0], [36.0, 70.0], [32.0, 32.0]]
        >>> anchor_shapes([8], 3, ratios=[8]).tolist()
        [[4.0, 4.0, 32.0], [4.0, 32.0, 4.0], [8.0, 8.0, 8.0], [32.0, 4.0, 4.0]]
    """
    if spatial_dims < 1:
        raise ValueError(f"spatial_dims must be at least 1, got {spatial_dims}.")
    _check_positive("ratios", ratios)
    _check_positive("scales", scales)
    sides = [_per_axis("sizes", size, spatial_dims) for size in sizes]
    if not sides or not scales:
        raise ValueError(f"sizes and scales must hold a number each, got {tuple(sizes)} and {tuple(scales)}.")
    shapes = torch.tensor(_forms(ratios, spatial_dims), dtype=torch.float64)[:, None, None]
    shapes = shapes * torch.tensor(sides, dtype=torch.float64)[:, None]
    shapes = shapes * torch.tensor(list(scales), dtype=torch.float64)[:, None]
    shapes = shapes.reshape(-1, spatial_dims).float()
    return 2 * (shapes / 2).round() if round else shapes


def anchor_grid(
    shapes: torch.Tensor | Sequence[Sequence[float]],
    map_shape: Sequence[int],
    stride: float | Sequence[float],
    *,
    offset: float | Sequence[float] = 0.5,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    r"""Anchors of the given shapes around every place of a feature map.

    Place i of an axis has its centre at ``(i + offset) * stride``.

    Args:
        shapes: (K, D) sides of the anchors in voxels of the image, see :func:`anchor_shapes`; on the CPU, or the call
            waits for the device.
        map_shape: D numbers of places.
        stride: voxels of the image from one place to the next, one number or D.
        offset: 0.5, the default, is the middle of the voxels that a place stands for; 0 is the reference of torchvision
            and mmdetection. One number or D.
        device: default the CPU, also where another default device is set.
        dtype: float32, the default, or float64, and never the dtype of the features: bfloat16 cannot count to 512.

    Returns:
        (prod(map_shape) \* K, 2 \* D) low corners, then high ones. Places are in C order and the K anchors of a place
        follow one another. The tensor is kept for the next call with the same arguments: never edit it.

    Raises:
        ValueError: if lengths do not fit, or a number or the dtype is out of its range.

    Example:
        >>> from monai_labelfx.ops.anchor_grid import anchor_grid
        >>> anchor_grid([[4, 6]], (1, 2), 8).tolist()
        [[2.0, 1.0, 6.0, 7.0], [2.0, 9.0, 6.0, 15.0]]
    """
    rows = shapes.tolist() if isinstance(shapes, torch.Tensor) else [list(shape) for shape in shapes]
    places = _checked_map(map_shape)
    forms = tuple(_per_axis("shapes", row, len(places)) for row in rows)
    return _anchors(forms, *_checked_places(places, stride, offset, device, dtype))


def grid_points(
    map_shape: Sequence[int],
    stride: float | Sequence[float],
    *,
    offset: float | Sequence[float] = 0.5,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Centres of the places of a feature map.

    Args:
        map_shape, stride, offset, device, dtype: see :func:`anchor_grid`.

    Returns:
        (prod(map_shape), D) in voxels of the image, in C order. Kept for the next call: never edit it.

    Raises:
        ValueError: if lengths do not fit, or a number or the dtype is out of its range.

    Example:
        >>> from monai_labelfx.ops.anchor_grid import grid_points
        >>> grid_points((2, 2), (8, 4)).tolist()
        [[4.0, 2.0], [4.0, 6.0], [12.0, 2.0], [12.0, 6.0]]
    """
    return _points(*_checked_places(_checked_map(map_shape), stride, offset, device, dtype))


def _forms(ratios: Sequence[float], ndim: int) -> list[tuple[float, ...]]:
    """Boxes of volume 1 in rising order, each once."""
    forms = {(1.0,) * ndim}
    for ratio, axis in itertools.product(ratios, range(ndim)):
        form = [ratio ** (-1 / ndim)] * ndim
        form[axis] *= ratio
        forms.add(tuple(round(side, 12) for side in form))  # so that equal ones are the same
    return sorted(forms)


@functools.lru_cache(_KEPT)
def _anchors(
    forms: tuple[tuple[float, ...], ...],
    map_shape: tuple[int, ...],
    stride: tuple[float, ...],
    offset: tuple[float, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    with torch.inference_mode(False):  # a tensor made in inference could not be used in training later
        half = torch.tensor(forms, dtype=torch.float64).view(-1, len(map_shape)) / 2
        centres = _points(map_shape, stride, offset, torch.device("cpu"), torch.float64)[:, None]
        anchors = torch.cat((centres - half, centres + half), -1).flatten(0, 1)
        return anchors.to(device, dtype)


@functools.lru_cache(_KEPT)
def _points(
    map_shape: tuple[int, ...],
    stride: tuple[float, ...],
    offset: tuple[float, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    with torch.inference_mode(False):
        axes = [
            (torch.arange(size, dtype=torch.float64, device="cpu") + first) * step
            for size, step, first in zip(map_shape, stride, offset, strict=True)
        ]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, len(axes)).to(device, dtype)


def _checked_map(map_shape: Sequence[int]) -> tuple[int, ...]:
    places = tuple(int(size) for size in map_shape)
    if not places or min(places) < 0:
        raise ValueError(f"map_shape must have one number of places per axis, got {tuple(map_shape)}.")
    return places


def _checked_places(
    places: tuple[int, ...],
    stride: float | Sequence[float],
    offset: float | Sequence[float],
    device: torch.device | str | None,
    dtype: torch.dtype,
) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...], torch.device, torch.dtype]:
    """The key of a grid."""
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}.")
    offsets = _repeated(offset, len(places))
    if len(offsets) != len(places) or not all(math.isfinite(number) for number in offsets):
        raise ValueError(f"offset must be finite, one number or {len(places)}, got {offset}.")
    where = torch.device("cpu" if device is None else device)
    if where.type == "cuda" and where.index is None:
        where = torch.device("cuda", torch.cuda.current_device())
    return places, _per_axis("stride", stride, len(places)), tuple(map(float, offsets)), where, dtype


def _per_axis(name: str, value: float | Sequence[float], ndim: int) -> tuple[float, ...]:
    numbers = _repeated(value, ndim)
    if len(numbers) != ndim:
        raise ValueError(f"{name} must have one number or {ndim}, one per axis, got {value}.")
    _check_positive(name, numbers)
    return tuple(float(number) for number in numbers)


def _repeated(value: float | Sequence[float], ndim: int) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, Iterable) else (value,) * ndim


def _check_positive(name: str, numbers: Sequence[float]) -> None:
    if not all(0 < number < math.inf for number in numbers):
        raise ValueError(f"{name} must be finite and above 0, got {tuple(numbers)}.")
