# SPDX-License-Identifier: Apache-2.0
"""Boxes that a spatial transform has moved: a corner and the edge vectors, their lattice of voxels and their mask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from monai_labelfx.ops._parallelotopes import filled_parallelotopes
from monai_labelfx.ops.crossing_lines import FAR, WHOLE

_FLAT = 1e-6  # edges whose parallelotope is this small beside the cuboid of their lengths span no box
_NOWHERE = -(2**58)  # added to a flat index, it leaves it below 0


class FrameVoxels(NamedTuple):
    """The lattices of several frames, padded to the largest.

    - ``voxels``: (N, \\*largest extents) int64, the flat index of the voxel at each lattice point; -1 outside the image
      and beyond the extents of a smaller frame.
    - ``inside``: the same shape, bool, ``voxels >= 0``. A line of the lattice that has a point within the extents where
      this is false leaves the image, and is no bag.
    - ``extents``: (N, spatial_dims) int64, the number of lattice points along each edge; 0 for padding.
    - ``pitch``: (N, spatial_dims) float, the distance of two lattice points along each edge; 1 for padding.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.box_frames import boxes_to_frames, frame_voxels
        >>> frame_voxels(boxes_to_frames(torch.tensor([[1.0, 1.0, 3.0, 4.0]])), (5, 5)).extents.tolist()
        [[2, 3]]
    """

    voxels: torch.Tensor
    inside: torch.Tensor
    extents: torch.Tensor
    pitch: torch.Tensor


@torch.no_grad()
def boxes_to_frames(boxes: torch.Tensor, index_map: Any = None) -> torch.Tensor:
    r"""Carry boxes through an affine map without loosening them.

    A rotated box is no box along the axes of the new array, and the box around it is not tight. Its crossing lines are
    still crossing lines, though: an affine map sends them to lines between the moved edges. So the box itself is
    carried, as a frame: the point its low corner has gone to, and the vectors its edges have become.

    Let ``y = A x + t`` map old index coordinates (voxel k has its centre at k) to new ones. A box [low, high), whose
    coordinates count from the edge of the first voxel (voxel k reaches from k to k + 1), gets the corner
    ``A (low - 0.5) + t + 0.5``, and its edge d is column d of A times ``high[d] - low[d]``.

    Args:
        boxes: (N, 2 \* spatial_dims) low corner, then high corner, in voxels; a row of zeros is padding.
        index_map: (spatial_dims + 1, spatial_dims + 1) homogeneous matrix, tensor or array. Default ``None``, the
            identity.

    Returns:
        (N, spatial_dims + 1, spatial_dims) frames in the dtype of ``boxes`` (float32 for whole-number types) and on
        their device: in row 0 the corner, in row 1 + d the edge along axis d of the original array. A box [l, h) that
        nothing has moved has the rows l and diag(h - l); padding is zeros.

    Raises:
        TypeError: when ``boxes`` is no tensor of real numbers.
        ValueError: for a wrong shape, a box that is inverted, empty or not finite, and a map that is not finite, not
            affine, or has no inverse.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.box_frames import boxes_to_frames
        >>> flip = torch.tensor([[-1.0, 0, 9], [0, 1, 0], [0, 0, 1]])  # of axis 0, which has 10 voxels
        >>> boxes_to_frames(torch.tensor([[1.0, 2.0, 4.0, 8.0]]), flip).tolist()
        [[[9.0, 2.0], [-3.0, 0.0], [0.0, 6.0]]]
    """
    _check_real("boxes", boxes)
    if boxes.ndim != 2 or boxes.shape[1] % 2 or not boxes.shape[1]:
        raise ValueError(f"boxes must have the shape (N, 2 * spatial_dims), got {tuple(boxes.shape)}.")
    ndim = boxes.shape[1] // 2
    exact = boxes.double()
    low, high = exact.split(ndim, 1)
    padding = (exact == 0).all(1)
    good = ((low < high).all(1) | padding) & (exact.abs() < FAR).all(1)  # NaN is not
    if not good.all():
        row = int((~good).int().argmax())
        raise ValueError(
            f"box {row} must be finite, with every high corner above its low one, got {boxes[row].tolist()}."
        )
    linear, shift = torch.eye(ndim, dtype=torch.float64), torch.zeros(ndim, dtype=torch.float64)
    if index_map is not None:
        matrix = torch.as_tensor(index_map, dtype=torch.float64, device="cpu")
        _check_map(matrix, ndim)
        linear, shift = matrix[:-1, :-1], matrix[:-1, -1]
    linear, shift = linear.to(boxes.device), shift.to(boxes.device)
    corner = (low - 0.5) @ linear.T + (shift + 0.5)
    frames = torch.cat((corner[:, None], (high - low)[:, :, None] * linear.T), 1)
    dtype = boxes.dtype if boxes.is_floating_point() else torch.float32
    return (frames.masked_fill_(padding[:, None, None], 0) + 0.0).to(dtype)  # + 0.0: without -0.0


@torch.no_grad()
def frame_voxels(
    frames: torch.Tensor,
    spatial_shape: Sequence[int],
    *,
    image_index: torch.Tensor | None = None,
    spacing: Sequence[float] | torch.Tensor | None = None,
) -> FrameVoxels:
    """The voxels under a lattice along the edges of each frame, to lay the bags of the original box in.

    Edge vector v gets ``e = round(norm1(v))`` points, one at least, where it runs along an axis, and else
    ``ceil(norm1(v))``, so that from one point to the next the sum of the steps along all axes is 1 at most. Point n of
    the lattice lies at ``corner + sum_d v_d (n_d + 0.5) / e_d``, in the voxel that its coordinates rounded down name.
    For a box that nothing has moved these are its voxels, see :func:`monai_labelfx.ops.box_voxels`; unlike there, what
    the image cuts off has its place in the lattice.

    Args:
        frames: (N, spatial_dims + 1, spatial_dims), see :func:`boxes_to_frames`. A frame without volume is padding.
        spatial_shape: voxels per spatial axis.
        image_index: (N,) whole numbers, the image (or image and channel) of each frame: indices then point into the
            flat stack (images, \\*spatial). Default ``None``: all lie in one image.
        spacing: voxel size, (spatial_dims,) or for each frame (N, spatial_dims), the unit of ``pitch``. Default
            ``None``, voxels.

    Returns:
        :py:class:`FrameVoxels`, on the device of ``frames``.

    Raises:
        TypeError: when ``frames`` is no tensor of real numbers.
        ValueError: for a wrong shape, a frame that is not finite, and any other argument out of its range.

    Notes:
        What comes within 0.001 voxels of a whole number counts as that number: float32 does not hold 10 exactly after a
        rotation by 90 degrees. Tables of the frames are made in float64.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.box_frames import frame_voxels
        >>> turned = torch.tensor([[[0.0, 3.0], [0.0, -2.0], [1.0, 0.0]]])  # its first edge runs back along axis 1
        >>> frame_voxels(turned, (2, 5)).voxels.tolist()
        [[[2], [1]]]
    """
    shape = _checked_shape(spatial_shape)
    corner, edges, solid = _geometry(frames, len(shape))
    sizes = _spacing(spacing, len(frames), len(shape))
    small = edges.abs() <= WHOLE
    straight = small.sum(2) == len(shape) - 1
    edges = edges.masked_fill(straight[..., None] & small, 0)
    length = edges.abs().sum(2)
    extents = torch.where(straight, length.round(), (length - WHOLE).ceil()).clamp(min=1).long() * solid[:, None]
    pitch = torch.where(solid[:, None], (edges * sizes[:, None]).norm(dim=2) / extents.clamp(min=1), 1.0)
    largest = extents.amax(0).tolist() if len(frames) else [0] * len(shape)
    images = _image_numbers(image_index, len(frames), None, solid)
    runs = (edges != 0).any(0).tolist()  # which axes of the image an edge runs along, in any frame

    device = frames.device
    corner, edges, extents = corner.to(device), edges.to(device), extents.to(device)
    column = (len(frames), *(1,) * len(shape))
    index, share = images.to(device).view(column) * math.prod(shape), []
    for axis, size in enumerate(largest):
        step = torch.arange(size, device=device)
        view = (len(frames), *(1,) * axis, size, *(1,) * (len(shape) - 1 - axis))
        share.append(((step + 0.5) / extents[:, axis, None].clamp(min=1)).view(view))
        index = index + torch.where(step < extents[:, axis, None], 0, _NOWHERE).view(view)
    for axis, size in enumerate(shape):
        place = (corner[:, axis] + WHOLE).view(column)
        for edge in range(len(shape)):
            if runs[edge][axis]:
                place = place + edges[:, edge, axis].view(column) * share[edge]
        place = place.floor().clamp_(-1, size).long()
        step = place * math.prod(shape[axis + 1 :])
        index = index + step.masked_fill_((place < 0) | (place >= size), _NOWHERE)
    index = index.clamp_(min=-1)
    return FrameVoxels(index, index >= 0, extents, pitch.to(device, _float(frames)))


@torch.no_grad()
def frames_to_mask(
    frames: torch.Tensor,
    image_index: torch.Tensor,
    number: int,
    spatial_shape: Sequence[int],
    *,
    grow: float = 0.0,
) -> torch.Tensor:
    """The voxels whose centres lie inside the frames of each image.

    Args:
        frames: (N, spatial_dims + 1, spatial_dims), see :func:`boxes_to_frames`. A frame without volume is padding.
            Parts outside the image are cut off.
        image_index: (N,) whole numbers, the image of each frame, or any place in a flat stack of images and channels.
            That of padding is not read.
        number: number of images.
        spatial_shape: voxels per spatial axis.
        grow: voxels to move each face outwards by, along its edge; below 0 inwards, and a frame of which nothing is
            left is empty. Default 0.

    Returns:
        (number, \\*spatial) bool on the device of ``frames``: the union of the frames of each image. A centre on the
        low side of a frame belongs to it, one on the high side does not.

    Raises:
        TypeError: when ``frames`` is no tensor of real numbers.
        ValueError: for a wrong shape, a frame that is not finite, and any other argument out of its range.

    Notes:
        A row of voxels meets a frame in one run, which is computed, so the time grows with the rows, oblique or not.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.box_frames import boxes_to_frames, frames_to_mask
        >>> frames = boxes_to_frames(torch.tensor([[1.0, 1.0, 2.0, 3.0]]))
        >>> frames_to_mask(frames, torch.tensor([0]), 1, (3, 4)).int().tolist()
        [[[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]]
    """
    shape = _checked_shape(spatial_shape)
    corner, edges, solid = _geometry(frames, len(shape))
    if number != int(number) or number < 0:
        raise ValueError(f"number must be a number of images, 0 or above, got {number}.")
    if not math.isfinite(grow):
        raise ValueError(f"grow must be a finite number of voxels, got {grow}.")
    images = _image_numbers(image_index, len(frames), number, solid)
    step = float(grow) / edges.norm(dim=2).masked_fill(~solid[:, None], 1)
    keep = solid & (1 + 2 * step > 0).all(1)
    corner = (corner - (step[..., None] * edges).sum(1))[keep]
    edges, images = ((1 + 2 * step)[..., None] * edges)[keep], images[keep]

    return filled_parallelotopes(corner, edges, images, number, shape, frames.device)


def _geometry(frames: Any, ndim: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Corners (N, axes) and edges (N, axes, axes) in float64, and which frames have a volume (N,), on the CPU."""
    _check_real("frames", frames)
    if frames.ndim != 3 or frames.shape[1:] != (ndim + 1, ndim):
        raise ValueError(
            f"frames must have the shape (N, {ndim + 1}, {ndim}) for {ndim} axes, got {tuple(frames.shape)}."
        )
    exact = frames.detach().to("cpu", torch.float64)
    good = (exact.abs() < FAR).flatten(1).all(1)  # NaN is not
    if not good.all():
        row = int((~good).int().argmax())
        raise ValueError(f"frame {row} must be finite, got {exact[row].tolist()}.")
    corner, edges = exact[:, 0], exact[:, 1:]
    return corner, edges, torch.linalg.det(edges).abs() > _FLAT * edges.norm(dim=2).prod(1)


def _image_numbers(
    image_index: torch.Tensor | None, count: int, number: int | None, solid: torch.Tensor
) -> torch.Tensor:
    """Image (N,) of each frame on the CPU; 0 for padding."""
    if image_index is None:
        return torch.zeros(count, dtype=torch.int64)
    images = torch.as_tensor(image_index, device="cpu")
    whole = not images.is_floating_point() and not images.is_complex() and images.dtype != torch.bool
    used = images[solid] if images.shape == (count,) else images
    if images.shape != (count,) or not whole or (used < 0).any() or (number is not None and (used >= number).any()):
        limit = "at least 0" if number is None else f"0 to {number - 1}"
        raise ValueError(
            f"image_index must hold a whole number of {limit} for each of {count} frames, got {images.tolist()}."
        )
    return images.long() * solid


def _spacing(spacing: Sequence[float] | torch.Tensor | None, count: int, ndim: int) -> torch.Tensor:
    """Voxel sizes (N or 1, axes)."""
    sizes = torch.ones(ndim) if spacing is None else torch.as_tensor(spacing, device="cpu")
    if sizes.shape not in ((ndim,), (count, ndim)) or not ((sizes > 0) & (sizes < math.inf)).all():
        raise ValueError(f"spacing must be above 0 on each of {ndim} axes, one row for all or for each, got {spacing}.")
    return sizes.double().view(-1, ndim)


def _check_real(name: str, value: Any) -> None:
    if not isinstance(value, torch.Tensor) or value.dtype == torch.bool or value.is_complex():
        found = value.dtype if isinstance(value, torch.Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a tensor of real numbers, got {found}.")


def _check_map(matrix: torch.Tensor, ndim: int) -> None:
    last = torch.tensor([0.0] * ndim + [1.0], dtype=torch.float64)
    if matrix.shape != (ndim + 1, ndim + 1) or not matrix.isfinite().all() or not torch.equal(matrix[-1], last):
        raise ValueError(
            f"index_map must be a finite affine matrix ({ndim + 1}, {ndim + 1}) with the last row {last.tolist()}, "
            f"got {matrix.tolist()}."
        )
    linear = matrix[:-1, :-1]
    if not torch.linalg.det(linear).abs() > _FLAT * linear.norm(dim=0).prod():
        raise ValueError(f"index_map must have an inverse, got {matrix.tolist()}.")


def _checked_shape(spatial_shape: Sequence[int]) -> list[int]:
    shape = [int(size) for size in spatial_shape]
    if not shape or min(shape) < 1:
        raise ValueError(f"spatial_shape must have one number of at least 1 per axis, got {tuple(spatial_shape)}.")
    return shape


def _float(frames: torch.Tensor) -> torch.dtype:
    return frames.dtype if frames.is_floating_point() else torch.float32
