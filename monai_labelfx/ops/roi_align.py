# SPDX-License-Identifier: Apache-2.0
"""RoIAlign in any number of dimensions: one axis after the other, over the window of each box only."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import embedding_bag

_MOST_NUMBERS = 1 << 26  # between two axes at a time, 256 MB in float32
_REACHING = 6  # adaptive samples are more than half a voxel apart: four reach a voxel, and one more on either side


def roi_align(
    features: torch.Tensor,
    boxes: torch.Tensor,
    batch_index: torch.Tensor,
    output_size: int | Sequence[int],
    *,
    spatial_scale: float | Sequence[float] = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> torch.Tensor:
    r"""Features of boxes, resampled to one size without rounding the boxes (He et al. 2017, section 3).

    A box is cut into ``output_size`` bins. A bin is the mean of the linear interpolation at samples on a lattice, so
    it is a product of sums, one for each axis: with bin o, voxel p, its S samples :math:`x_s` and n voxels on the axis

    .. math:: W_{o p} = \frac{1}{S} \sum_s [-1 \le x_s \le n] \max(0, 1 - |\min(\max(x_s, 0), n - 1) - p|)

    and the result is :math:`\sum_{p_1 \cdots p_D} W_{o_1 p_1} \cdots W_{o_D p_D} F_{p_1 \cdots p_D}`. Axes are summed
    over one after the other, and only over voxels with a weight, so that the work grows with the boxes and not with
    the map. It is a linear map, and its gradient is the transposed one: both add up the rows of a table in a fixed
    order, so that the gradient is the same in every run, also on a GPU.

    Args:
        features: (B, C, \*spatial). A channels-last layout saves a copy.
        boxes: (R, 2 \* D) low corners, then high ones, in voxels of the image, in the axis order of ``features``. What
            lies outside the map is as above: the border for one voxel, then 0.
        batch_index: (R,) image of each box, whole numbers 0 to B - 1.
        output_size: bins of each axis, one number or D.
        spatial_scale: voxels of the map for one of the image, 1 / stride; one number or D.
        sampling_ratio: samples S of a bin along each axis. 0, the default, takes as many as a bin has voxels of the
            map, rounded up, as in Detectron and mmdetection; torchvision's detectors have 2.
        aligned: the centre of voxel k is at k + 0.5, as everywhere here. ``False`` is the older form, shifted by half a
            voxel of the map, which takes boxes for a voxel wide at least; torchvision's published detectors have it.

    Returns:
        (R, C, \*output_size) in the dtype of ``features``; half precision is computed in float32. Gradients reach the
        features, of any order. The boxes are not differentiated.

    Raises:
        TypeError: if ``features`` or ``boxes`` are not floating point, or ``batch_index`` is not whole numbers.
        ValueError: if shapes do not fit, or a number is out of its range.

    Notes:
        A box without extent gives 0 with adaptive sampling, which takes no sample of it, and the features at its place
        with a fixed one. Inverted boxes count as boxes without extent at their low corner, boxes with NaN give 0.
        torchvision has boxes of (x, y) for tensors of (y, x): its columns are 1, 0, 3, 2 of these.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.roi_align import roi_align
        >>> ramp = torch.arange(8.0).expand(1, 1, 8, 8)  # rises along the last axis
        >>> box = torch.tensor([[0.0, 2.0, 8.0, 6.0]])
        >>> roi_align(ramp, box, torch.tensor([0]), (1, 2)).tolist()
        [[[[2.5, 4.5]]]]
    """
    sizes, scales = _checked(features, boxes, batch_index, output_size, spatial_scale, sampling_ratio)
    if not len(boxes):
        return features[:0].reshape(0, features.shape[1], *sizes)
    ndim, shape = len(sizes), features.shape[2:]
    table = features if features.dtype == torch.float64 else features.float()
    table = table.movedim(1, -1).contiguous().view(-1, features.shape[1])
    corners = boxes.detach().to(torch.promote_types(boxes.dtype, table.dtype))
    axes = []
    for axis, (bins, scale, voxels) in enumerate(zip(sizes, scales, shape, strict=True)):
        low = corners[:, axis] * scale - 0.5 * aligned
        extent = (corners[:, ndim + axis] * scale - 0.5 * aligned - low).clamp(min=0.0 if aligned else 1.0)
        axes.append(_axis_sums(low, extent, bins, voxels, sampling_ratio))
    images = batch_index.to(boxes.device, torch.int64)
    result = [_pooled(table, axes, images, shape, part) for part in _parts(axes, features.shape[1])]
    rows = result[0] if len(result) == 1 else torch.cat(result)
    return rows.view(len(boxes), *sizes, features.shape[1]).movedim(-1, 1).contiguous().to(features.dtype)


class _AxisSums(NamedTuple):
    """What each bin of each box sums up along an axis: a run of ``entries``."""

    entries: torch.Tensor  # (R, bins) number of them
    first: torch.Tensor  # (R, bins) the first one
    place: torch.Tensor  # (entries,) voxel, counted from the low side of the window of the box
    weight: torch.Tensor  # (entries,)
    box: torch.Tensor  # (entries,)
    low: torch.Tensor  # (R,) first voxel of the window
    width: torch.Tensor  # (R,) voxels of the window


def _axis_sums(low: torch.Tensor, extent: torch.Tensor, bins: int, voxels: int, sampling_ratio: int) -> _AxisSums:
    """The sums of boxes from ``low`` (R,) on, ``extent`` (R,) long, in voxels of the map."""
    size = (extent / bins)[:, None]
    samples = size.ceil() if sampling_ratio == 0 else torch.full_like(size, sampling_ratio)
    start = low[:, None] + torch.arange(bins, device=low.device) * size
    ends = [start + (s + 0.5) * size / samples for s in (0, samples - 1)]
    seen = (ends[1] >= -1) & (ends[0] <= voxels)  # also false for NaN
    near, far = (torch.where(seen, end, 0).clamp(0, voxels - 1) for end in ends)
    near = near.floor().long()
    count = torch.where(seen, far.ceil().long() - near + 1, 0)

    owner, entry = _runs(count.flatten())
    place = near.flatten()[owner] + entry
    box = owner // bins
    start, size, samples = start.flatten()[owner], size.flatten()[box], samples.flatten()[box]
    earliest = torch.zeros_like(start)
    if sampling_ratio == 0:
        earliest = (((place - 1 - start) / size * samples - 0.5).ceil() - 1).clamp(min=0)
    weight = torch.zeros_like(start)
    for later in range(sampling_ratio or _REACHING):
        sample = earliest + later
        x = start + (sample + 0.5) * size / samples
        real = (sample >= 0) & (sample < samples) & (x >= -1) & (x <= voxels)
        weight += torch.where(real, (1 - (x.clamp(0, voxels - 1) - place).abs()).clamp(min=0), 0)

    keep = weight > 0
    kept = torch.cat((place.new_zeros(1), keep.cumsum(0)))
    stop = count.flatten().cumsum(0)
    first = kept[stop - count.flatten()]
    count = kept[stop] - first
    lowest = torch.where(seen, near, voxels).amin(1)
    width = (torch.where(seen, far.ceil().long() + 1, 0).amax(1) - lowest).clamp(min=0)
    box = box[keep]
    return _AxisSums(
        count.view(seen.shape),
        first.view(seen.shape),
        place[keep] - lowest[box],
        (weight / samples)[keep],
        box,
        lowest,
        width,
    )


def _pooled(
    table: torch.Tensor, axes: Sequence[_AxisSums], images: torch.Tensor, shape: Sequence[int], part: slice
) -> torch.Tensor:
    """Bins (boxes * bins, C) of the boxes ``part``, from the voxels (B * voxels, C) of all maps.

    Summed over axis a, a box has rows for the bins of the axes 0 to a times the window of the others, in C order.
    """
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    origin = images * math.prod(shape)
    for axis, stride in zip(axes, strides, strict=True):
        origin = origin + axis.low * stride
    rows, outer, origin = table, 1, origin[part]
    for number, axis in enumerate(axes):
        inner = _product([other.width for other in axes[number + 1 :]], axis.width)  # rows of a bin
        reach = axis.place * (inner[axis.box] if number else strides[0])
        count, first, inner, width = axis.entries[part], axis.first[part], inner[part], axis.width[part]
        bins = count.shape[1]
        # A block is the rows of one bin: boxes, times the bins of the axes before, times those of this one.
        start = origin[:, None] + torch.arange(outer, device=origin.device) * (width * inner)[:, None]
        block, place = _runs(inner[:, None].expand(-1, outer * bins).flatten())
        boxes = block // (outer * bins)
        if number == 0:
            place = _address(place, boxes, [other.width[part] for other in axes[1:]], strides[1:])
        start = start.flatten()[block // bins] + place
        bin_of = boxes * bins + block % bins
        count, first = count.flatten()[bin_of], first.flatten()[bin_of]
        stop = count.cumsum(0)
        row = torch.repeat_interleave(count)
        entry = torch.arange(len(row), device=row.device) + (first - stop + count)[row]
        index = start[row] + reach[entry]
        stop = torch.cat((stop.new_zeros(1), stop))
        rows = _RowSums.apply(rows, index, stop, axis.weight[entry].to(rows.dtype))
        outer *= bins
        number_of_rows = outer * inner
        origin = number_of_rows.cumsum(0) - number_of_rows
    return rows


class _RowSums(torch.autograd.Function):
    """Weighted sums of the rows of a table (M, C): row n of the result (N, C) adds up entries stop[n] to stop[n + 1].

    The gradient is the same operation with the entries sorted by the row that they read.
    """

    @staticmethod
    def forward(
        ctx: Any, table: torch.Tensor, index: torch.Tensor, stop: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(index, stop, weight)
        ctx.length = len(table)
        return embedding_bag(index, table, stop, mode="sum", per_sample_weights=weight, include_last_offset=True)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        index, stop, weight = ctx.saved_tensors
        index, order = index.sort(stable=True)
        row = torch.repeat_interleave(stop.diff())[order]
        stop = torch.searchsorted(index, torch.arange(ctx.length + 1, device=index.device))
        return _RowSums.apply(gradient.contiguous(), row, stop, weight[order]), None, None, None


def _address(
    place: torch.Tensor, boxes: torch.Tensor, widths: Sequence[torch.Tensor], strides: Sequence[int]
) -> torch.Tensor:
    """Where in the map the voxel ``place`` of a window is, relative to the window's first."""
    address = torch.zeros_like(place)
    for width, stride in zip(reversed(widths), reversed(strides), strict=True):
        size = width[boxes]
        address += place % size * stride
        place = place // size
    return address


def _runs(count: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For runs of ``count`` (N,) things, the run of each thing and its place in the run."""
    owner = torch.repeat_interleave(count)
    first = count.cumsum(0) - count
    return owner, torch.arange(len(owner), device=count.device) - first[owner]


def _parts(axes: Sequence[_AxisSums], channels: int) -> list[slice]:
    """Boxes to take at a time."""
    most, outer = torch.zeros_like(axes[0].width), 1
    for number, axis in enumerate(axes):
        outer *= axis.entries.shape[1]
        most = torch.maximum(most, outer * _product([other.width for other in axes[number + 1 :]], axis.width))
    part = ((most * channels).cumsum(0) - 1) // _MOST_NUMBERS
    ends = list(itertools.accumulate(part.unique_consecutive(return_counts=True)[1].tolist()))
    return [slice(first, last) for first, last in zip([0, *ends], ends, strict=False)]


def _product(factors: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    return math.prod(factors, start=torch.ones_like(like))


def _checked(
    features: torch.Tensor,
    boxes: torch.Tensor,
    batch_index: torch.Tensor,
    output_size: int | Sequence[int],
    spatial_scale: float | Sequence[float],
    sampling_ratio: int,
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Bins and scale of each axis."""
    for name, value in (("features", features), ("boxes", boxes)):
        if not value.is_floating_point():
            raise TypeError(f"{name} must be floating point, got {value.dtype}.")
    ndim = features.ndim - 2
    if ndim < 1 or 0 in features.shape[2:]:
        raise ValueError(f"features must have the shape (B, C, *spatial) with voxels, got {tuple(features.shape)}.")
    if boxes.ndim != 2 or boxes.shape[1] != 2 * ndim:
        raise ValueError(f"boxes must have the shape (R, {2 * ndim}) for {ndim} axes, got {tuple(boxes.shape)}.")
    if batch_index.is_floating_point() or batch_index.dtype == torch.bool:
        raise TypeError(f"batch_index must be whole numbers, got {batch_index.dtype}.")
    images = len(features)
    if batch_index.shape != boxes.shape[:1] or ((batch_index < 0) | (batch_index >= images)).any():
        raise ValueError(
            f"batch_index must be 0 to {images - 1} for each of {len(boxes)} boxes, got {batch_index.tolist()}."
        )
    sizes = tuple(output_size) if isinstance(output_size, Iterable) else (output_size,) * ndim
    if len(sizes) != ndim or any(size != int(size) or size < 1 for size in sizes):
        raise ValueError(f"output_size must be at least 1, one number or {ndim}, got {output_size}.")
    scales = tuple(spatial_scale) if isinstance(spatial_scale, Iterable) else (spatial_scale,) * ndim
    if len(scales) != ndim or not all(0 < scale < math.inf for scale in scales):
        raise ValueError(f"spatial_scale must be above 0, one number or {ndim}, got {spatial_scale}.")
    if sampling_ratio != int(sampling_ratio) or sampling_ratio < 0:
        raise ValueError(f"sampling_ratio must be 0 or a number of samples, got {sampling_ratio}.")
    return tuple(int(size) for size in sizes), tuple(float(scale) for scale in scales)
