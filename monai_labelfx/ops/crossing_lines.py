# SPDX-License-Identifier: Apache-2.0
"""Parallel crossing lines of tight boxes, and the planes that take their place in 3-D, as bags of voxel indices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from monai_labelfx.ops._arrays import as_array
from monai_labelfx.ops.instances import per_axis

ANGLES = (-40.0, -20.0, 0.0, 20.0, 40.0)
WHOLE = 1e-3  # voxels: a corner this close to a whole number is that number (float32 resampling, millimetres)
FAR = 2**40  # voxels: no corner is that far away
NOWHERE = -(2**60)  # added to a flat index, it leaves it below 0
TIE = 1e-9  # so that tan(45 degrees) is 1


class CrossingLines(NamedTuple):
    """The crossing lines of several boxes, one bag a row, shortest bags first.

    - ``bags``: (bags, length) int64 flat indices, in order from the low edge to the high one, then -1.
    - ``box``: (bags,) int64 row of ``boxes`` that the line belongs to.
    - ``edge_pair``: (bags,) int64 spatial axis the line runs along, from the box's low edge to its high edge on it. It
      is a positive bag when the box is tight on both sides of the *other* axis, which it tells apart.
    - ``angle``: (bags,) float32 degrees, as given.
    - ``size``: (bags,) int64 number of indices in the row: ``bags[a:b, : size[b - 1]]`` holds all of a few rows.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops import box_crossing_lines
        >>> box_crossing_lines(torch.tensor([[1, 1, 4, 3]]), (5, 5), [0]).size.tolist()
        [2, 2, 2, 3, 3]
    """

    bags: torch.Tensor
    box: torch.Tensor
    edge_pair: torch.Tensor
    angle: torch.Tensor
    size: torch.Tensor


@torch.no_grad()
def box_crossing_lines(
    boxes: torch.Tensor,
    spatial_shape: Sequence[int],
    angles: Sequence[float] | torch.Tensor = ANGLES,
    *,
    spacing: Sequence[float] | torch.Tensor | None = None,
    margin: torch.Tensor | None = None,
    reduced_axis: int | None = None,
    image_index: torch.Tensor | None = None,
    in_box_crops: bool = False,
    distinct: bool = False,
) -> CrossingLines:
    r"""All parallel lines that cross a box from edge to opposite edge, at every angle, for both pairs of edges.

    The positive bags of generalised multiple instance learning (Wang and Xia 2021, section 2.3). A line of edge pair
    ``a`` with offset ``c`` is ``s(t) = c + (t - m) tan(angle)``, t along axis a from the centre of the first voxel of
    the box to the centre of the last, m midway, s along the other axis; c takes every whole number for which the line
    stays inside the box. It becomes the voxels it runs through: a step sideways is never diagonal, so the bag is
    4-connected. A 4-connected line and an 8-connected object that touches both sides of the line cannot cross without
    sharing a voxel, so no bag of a tight box round one connected object, 1-voxel curves included, is without object.
    An angle of 0 gives the rows and columns of the box.

    A box of h x w voxels has ``w - 2 r`` lines along its first axis, ``r = round((h - 1) / 2 * tan(abs(angle)))`` with
    halves rounded down, each of ``h + 2 r`` voxels; likewise along the second with h and w exchanged.

    In 3-D a line may miss the object and a plane cannot: reduce the map along one axis (maximum, or the sums inside a
    smooth maximum) over the extent of the box, and the lines of the projected box, given here for ``reduced_axis``,
    are planes that hold that axis. Do so for each of the three axes. The projection of a 26-connected object is
    8-connected, so no plane misses the object either.

    Args:
        boxes: (N, 2 \* spatial_dims) half-open corners in voxels, MONAI's standard mode, whole or not, any device.
            Fractional corners are rounded outwards, ``[floor(low), ceil(high))``, after snapping what lies within
            0.001 voxels of a whole number.
        spatial_shape: voxels per spatial axis; two axes, or three with ``reduced_axis``.
        angles: degrees, above -90 and below 90, away from the perpendicular of the two edges; at a positive angle the
            other index grows along the line, for both edge pairs. Default -40 to 40 in steps of 20: the best of the
            paper on PROMISE12.
        spacing: voxel size per spatial axis, (D,) or one row for each box (N, D), which makes the angles physical.
            Default ``None``: cubic voxels.
        margin: (N, 2 \* spatial_dims), how many voxels each side of a box may be off, low sides first: 0 for a tight
            side, ``inf`` for one of which nothing is known. A line crosses the object for sure only between the two
            voxels where it touches the sides that the line tells apart, so lines that come within ``margin`` of
            these sides are left out. Default ``None``: tight on all sides.
        reduced_axis: the axis the map was reduced along, in 3-D.
        image_index: (N,) whole numbers, the image (or image and channel) of each box: bags then index the flat stack of
            maps, (images, rows, columns). Default ``None``: all boxes lie in one image.
        in_box_crops: ``False``: index the flat map of the image, of the shape of its two axes left. ``True``: index
            the flat stack of the boxes' own maps, (N, rows, columns), as ``box_voxels`` gathers them, reduced; there
            ``image_index`` has no part.
        distinct: leave out straight lines that are already there: those that a tilt too small for the box leaves
            straight (all of a 1-voxel box), and in 3-D the slabs of angle 0 that two projections share (so call it for
            all three axes). Default ``False``, as in the paper.

    Returns:
        ``CrossingLines``, on the device of ``boxes``. Lines of several boxes and images may be gathered at once.

    Raises:
        TypeError: when ``boxes`` is no tensor of real numbers.
        ValueError: for a box that is inverted, empty or not finite, and for any other argument out of its range.

    Note:
        Where the image, a crop perhaps, cuts a box, only lines that lie inside as a whole are returned, since a cut
        line may miss the object: possibly none, never an error. At large angles an elongated box has no lines between
        its short edges; beyond 45 degrees a square of more than one voxel has none at all.
        The paper's code rotates the prediction with bilinear interpolation and reads rows and columns of the result,
        with which lines may miss a thin object; the same at angle 0.
        Paths are planned on the CPU in float64, one per box, edge pair and angle, and copied to lines on the device of
        ``boxes``, so the result does not depend on it.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.crossing_lines import box_crossing_lines
        >>> lines = box_crossing_lines(torch.tensor([[1, 1, 4, 3]]), (5, 5), [0, 30])
        >>> lines.bags.tolist()
        [[6, 7, -1], [11, 12, -1], [16, 17, -1], [6, 7, -1], [11, 12, -1], [16, 17, -1], [6, 11, 16], [7, 12, 17]]
        >>> lines.edge_pair.tolist(), lines.angle.tolist()
        ([1, 1, 1, 1, 1, 1, 0, 0], [0.0, 0.0, 0.0, 30.0, 30.0, 30.0, 0.0, 0.0])
    """
    shape = _checked_shape(spatial_shape)
    axes = _map_axes(len(shape), reduced_axis)
    degrees = _checked_angles(angles)
    low, high = _corners(boxes, len(shape))
    start, extent = _visible(low, high, shape)

    # One plan for each box, edge pair and angle (N, 2, angles): the lines of a plan are copies of one path.
    slope = _slopes(degrees, spacing, axes, shape, len(low))
    whole = extent == high - low
    usable = whole[:, axes] & np.delete(whole, axes, 1).all(1, keepdims=True)
    trusted, width = _trusted(low, high, start, extent, margin)
    rows, columns = np.where(usable, extent[:, axes], 1)[..., None], width[:, axes[::-1], None]
    reach = np.ceil((rows - 1) / 2 * abs(slope) - (0.5 + TIE)).clip(0, columns).astype(np.int64)
    count = (columns - 2 * reach).clip(0) * usable[..., None]
    if distinct:
        count *= _first_straight(reach, degrees, axes, len(shape))
    size = rows + 2 * reach
    box, edge, angle = np.nonzero(count)
    order = size[box, edge, angle].argsort(kind="stable")
    box, edge, angle = box[order], edge[order], angle[order]
    rows, reach, count, size = rows[box, edge, 0], *(values[box, edge, angle] for values in (reach, count, size))

    sizes = extent.max(0, initial=0) if in_box_crops else np.array(shape)
    stride = np.array([sizes[axes[1]], 1])
    path = _paths(rows, reach, slope[box, edge, angle], stride[edge], stride[1 - edge])
    first = box * sizes[axes].prod() if in_box_crops else start[box][:, axes] @ stride
    if not in_box_crops:
        first += _image_numbers(image_index, len(low))[box] * sizes[axes].prod()
    first += (trusted[box, np.array(axes)[1 - edge]] + reach) * stride[1 - edge]

    plan = np.arange(len(path)).repeat(count)
    number = np.arange(len(plan)) - (count.cumsum() - count)[plan]
    table = np.stack(
        (plan, (first[plan] + number * stride[1 - edge][plan]), box[plan], np.array(axes)[edge][plan], size[plan])
    )
    plans, shift, *named = torch.from_numpy(table).to(boxes.device).unbind()
    bags = torch.from_numpy(path).to(boxes.device).index_select(0, plans).add_(shift[:, None]).clamp_(min=-1)
    tilt = torch.from_numpy(degrees[angle][plan].astype(np.float32)).to(boxes.device)
    return CrossingLines(bags, named[0], named[1], tilt, named[2])


def _paths(rows: np.ndarray, reach: np.ndarray, slope: np.ndarray, along: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Flat offsets (plans, length) of the path of each plan from its middle column; very low where it has ended.

    Row i of a path holds the columns from where the line enters the row to where it leaves it. With ``turn[i]`` the
    column of entry, row i starts after i steps along and ``turn[i] - turn[0]`` steps across (mirrored at negative
    slopes), and the other way round: after l steps, of which i along, the column is ``l - i`` away from the first.
    """
    size = rows + 2 * reach
    step = np.arange(1, rows.max(initial=1))  # row boundaries
    crossing = (step - rows[:, None] / 2) * abs(slope)[:, None]
    turn = np.sign(crossing) * np.ceil(abs(crossing) - (0.5 + TIE)).clip(0)
    begin = np.where(step < rows[:, None], step + turn + reach[:, None], size.max(initial=0)).astype(np.int64)
    row = np.zeros((len(rows), size.max(initial=0) + 1), np.int64)
    np.put_along_axis(row, begin, 1, 1)
    row = row[:, :-1].cumsum(1)
    place = np.arange(row.shape[1])
    column = place - row - reach[:, None]
    path = row * along[:, None] + column * np.where(slope < 0, -across, across)[:, None]
    return np.where(place < size[:, None], path, np.iinfo(np.int64).min // 2)


def _first_straight(reach: np.ndarray, degrees: np.ndarray, axes: list[int], ndim: int) -> np.ndarray:
    """Which plans (N, 2, angles) to keep: tilted ones, and of the straight ones that of the smallest angle."""
    best = abs(degrees).argmin()
    keep = reach > 0
    keep[:, :, best] = True
    if degrees[best] == 0 and ndim > 2:  # keep the slab across an axis where the line runs along the next, cyclically
        keep[:, :, best] = [axis == (other + 1) % ndim for axis, other in zip(axes, axes[::-1], strict=True)]
    return keep


def box_crossing_planes(
    boxes: torch.Tensor,
    spatial_shape: Sequence[int],
    angles: Sequence[float] | torch.Tensor = ANGLES,
    *,
    spacing: Sequence[float] | torch.Tensor | None = None,
    margin: torch.Tensor | None = None,
    reduced_axis: int | None = None,
    distinct: bool = False,
) -> CrossingLines:
    """The voxels of the planes that ``box_crossing_lines`` gives as lines of a projection, written out.

    Each line, extended over the extent of its box on ``reduced_axis``. Far larger than lines on a reduced map, so for
    tests, figures and small boxes; without ``reduced_axis``, in 2-D, the lines themselves. Arguments and errors are
    those of ``box_crossing_lines``.

    Returns:
        ``CrossingLines`` whose ``bags`` point into the flat image. Bags are in the order of the lines; where boxes
        differ in depth, padding may stand anywhere in a row.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.crossing_lines import box_crossing_planes
        >>> box_crossing_planes(torch.tensor([[0, 0, 1, 2, 2, 2]]), (2, 2, 3), [0], reduced_axis=0).bags.tolist()
        [[1, 7, -1, -1], [4, 10, -1, -1], [1, 7, 4, 10]]
    """
    lines = box_crossing_lines(
        boxes, spatial_shape, angles, spacing=spacing, margin=margin, reduced_axis=reduced_axis, distinct=distinct
    )
    if reduced_axis is None:
        return lines
    shape = [int(size) for size in spatial_shape]
    columns = shape[max(_map_axes(len(shape), reduced_axis))]
    coords = [lines.bags // columns, lines.bags % columns]
    visible = torch.from_numpy(np.stack(_visible(*_corners(boxes, len(shape)), shape))[..., reduced_axis])
    start, extent = visible.to(boxes.device)[:, lines.box]
    depth = torch.arange(int(extent.max()) if len(extent) else 0, device=boxes.device)
    coords.insert(reduced_axis, (start[:, None] + depth)[:, None, :])
    coords = [values if values.ndim == 3 else values[:, :, None] for values in coords]
    index = (coords[0] * shape[1] + coords[1]) * shape[2] + coords[2]
    padding = (lines.bags < 0)[:, :, None] | (depth >= extent[:, None])[:, None, :]
    return lines._replace(bags=index.masked_fill(padding, -1).flatten(1), size=lines.size * extent)


def box_voxels(
    boxes: torch.Tensor, spatial_shape: Sequence[int], *, image_index: torch.Tensor | None = None
) -> torch.Tensor:
    r"""Flat indices of the voxels of each box, for gathering all boxes of a batch into one stack of crops.

    Args:
        boxes: (N, 2 \* spatial_dims), as for ``box_crossing_lines``; parts outside the image are cut off.
        spatial_shape: voxels per spatial axis, any number of axes.
        image_index: as for ``box_crossing_lines``.

    Returns:
        (N, \*largest extent) int64 on the device of ``boxes``; -1 beyond a smaller box.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.crossing_lines import box_voxels
        >>> box_voxels(torch.tensor([[0, 1, 2, 3], [1, 0, 2, 1]]), (2, 3)).tolist()
        [[[1, 2], [4, 5]], [[3, -1], [-1, -1]]]
    """
    shape = _checked_shape(spatial_shape)
    start, extent = _visible(*_corners(boxes, len(shape)), shape)
    index = _image_numbers(image_index, len(start)).reshape(-1, *[1] * len(shape)) * math.prod(shape)
    for axis, largest in enumerate(extent.max(0, initial=0)):
        step = np.arange(largest)
        place = (start[:, axis, None] + step) * math.prod(shape[axis + 1 :])
        place = np.where(step < extent[:, axis, None], place, NOWHERE)
        view = (len(start), *(1,) * axis, int(largest), *(1,) * (len(shape) - 1 - axis))
        index = index + place.reshape(view)
    return torch.from_numpy(index.clip(-1)).to(boxes.device)


def _visible(low: np.ndarray, high: np.ndarray, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """First voxel and extent (N, axes) of the part of each box inside the image; extents 0 where there is none."""
    start = np.clip(low, 0, shape)
    return start, (np.minimum(high, shape) - start).clip(0)


def _trusted(
    low: np.ndarray, high: np.ndarray, start: np.ndarray, extent: np.ndarray, margin: torch.Tensor | None
) -> tuple[np.ndarray, np.ndarray]:
    """Distance (N, axes) from the first visible voxel to the first a line across may hold, and how many it may hold."""
    if margin is None:
        return np.zeros_like(start), extent
    loose = torch.as_tensor(margin, dtype=torch.float64, device="cpu").numpy()
    if loose.shape != (len(low), 2 * low.shape[1]) or not (loose >= 0).all():
        raise ValueError(
            f"margin must hold {2 * low.shape[1]} numbers of at least 0 for each of {len(low)} boxes, got {margin}."
        )
    whole = np.ceil(loose.clip(max=FAR) - WHOLE).clip(0).astype(np.int64)
    first = np.maximum(start, low + whole[:, : low.shape[1]])
    end = np.minimum(start + extent, high - whole[:, low.shape[1] :])
    return first - start, (end - first).clip(0)


def _corners(boxes: Any, ndim: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole low and high corners (N, axes)."""
    if not isinstance(boxes, torch.Tensor) or boxes.dtype == torch.bool or boxes.is_complex():
        found = boxes.dtype if isinstance(boxes, torch.Tensor) else type(boxes).__name__
        raise TypeError(f"boxes must be a tensor of real numbers, got {found}.")
    if boxes.ndim != 2 or boxes.shape[1] != 2 * ndim:
        raise ValueError(f"boxes must have the shape (N, {2 * ndim}) for {ndim} axes, got {tuple(boxes.shape)}.")
    exact = as_array(boxes).astype(np.float64)
    low, high = np.floor(exact[:, :ndim] + WHOLE), np.ceil(exact[:, ndim:] - WHOLE)
    good = (low < high).all(1) & (abs(exact) < FAR).all(1)  # NaN is not
    if not good.all():
        row = int(good.argmin())
        raise ValueError(
            f"box {row} must be finite, with every high corner above its low one, got {exact[row].tolist()}."
        )
    return low.astype(np.int64), high.astype(np.int64)


def _image_numbers(image_index: torch.Tensor | None, number: int) -> np.ndarray:
    """Image (N,) of each box."""
    if image_index is None:
        return np.zeros(number, np.int64)
    images = as_array(image_index) if isinstance(image_index, torch.Tensor) else np.asarray(image_index)
    if images.shape != (number,) or images.dtype.kind not in "iu" or (images < 0).any():
        raise ValueError(
            f"image_index must hold a whole number of at least 0 for each of {number} boxes, got {image_index}."
        )
    return images.astype(np.int64)


def _checked_shape(spatial_shape: Sequence[int]) -> list[int]:
    shape = [int(size) for size in spatial_shape]
    if not shape or min(shape) < 1:
        raise ValueError(f"spatial_shape must have one number of at least 1 per axis, got {tuple(spatial_shape)}.")
    return shape


def _map_axes(ndim: int, reduced_axis: int | None) -> list[int]:
    """The two axes of the map, in order."""
    axes = [axis for axis in range(ndim) if axis != reduced_axis]
    if len(axes) != 2 or (reduced_axis is None) != (ndim == 2):
        raise ValueError(
            f"crossing lines lie in a map of two axes: reduced_axis must be None for 2 axes, 0, 1 or 2 for 3, "
            f"got {reduced_axis} for {ndim}."
        )
    return axes


def _checked_angles(angles: Sequence[float] | torch.Tensor) -> np.ndarray:
    given = as_array(angles) if isinstance(angles, torch.Tensor) else angles
    degrees = np.asarray(given, dtype=np.float64)
    if degrees.ndim != 1 or not len(degrees) or not (abs(degrees) < 90).all():
        raise ValueError(f"angles must be one or more numbers above -90 and below 90 degrees, got {angles}.")
    return degrees


def _slopes(
    degrees: np.ndarray, spacing: Sequence[float] | torch.Tensor | None, axes: list[int], shape: list[int], number: int
) -> np.ndarray:
    """Voxels across per voxel along (N, 2, angles), for lines along each of the two axes."""
    if isinstance(spacing, torch.Tensor) and spacing.ndim == 2:
        sizes = spacing.detach().to("cpu", torch.float64).numpy()
        good = sizes.shape == (number, len(shape)) and np.isfinite(sizes).all() and (sizes > 0).all()
    else:
        given: Any = spacing.tolist() if isinstance(spacing, torch.Tensor) else spacing
        sizes = np.array([per_axis(1.0 if given is None else given, len(shape), "spacing")], dtype=np.float64)
        good = bool(sizes.all())
    if not good:
        raise ValueError(f"spacing must be above 0 on every axis, one row for all boxes or for each, got {spacing}.")
    ratio = sizes[:, axes[0]] / sizes[:, axes[1]]
    slopes = np.stack((ratio, 1 / ratio), 1)[..., None] * np.tan(np.radians(degrees))
    return np.broadcast_to(slopes, (number, 2, len(degrees)))
