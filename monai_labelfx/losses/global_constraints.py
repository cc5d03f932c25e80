# SPDX-License-Identifier: Apache-2.0
"""Global constraints from tight boxes: bands that meet the object, bounds of its size, nothing outside."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from monai.data import MetaTensor

from monai_labelfx.losses._box_target import axis_aligned, read_box_target
from monai_labelfx.losses.log_barrier import log_barrier_extension
from monai_labelfx.ops.crossing_lines import WHOLE


class GlobalConstraintsLoss(torch.nn.Module):
    r"""Segmentation from boxes by constraints on sums of probabilities (Kervadec et al. 2020), the rival.

    With the probabilities :math:`p = \mathrm{sigmoid}(z)` and the log-barrier extension :math:`\psi_t` (see
    :py:func:`~monai_labelfx.losses.log_barrier_extension`), the loss of an image adds up over the classes

    - tightness: a box is cut across each axis into bands of w planes (lines of voxels in 2-D), from its low end on;
      what is left over makes a last, narrower one. The object meets every plane, so
      :math:`\psi_t(w_b - \sum_{k \in b} p_k)`, summed over the bands b of all boxes;
    - size: between the shares :math:`l` and :math:`u` of the union U of the boxes of the class belong to objects:
      :math:`(\psi_t(l |U| - \sum p_k) + \psi_t(\sum p_k - u |U|)) / |\Omega|` with the voxels :math:`\Omega` of the
      image;
    - emptiness: :math:`\psi_t(\sum_{k \notin U} p_k) / |\Omega|`, which rises with slope :math:`t / |\Omega|`;

    each times its weight. The result is the mean over the images that somebody has looked at.

    Args:
        t: of the log-barrier, above 0, kept as the attribute ``t`` that
            :py:class:`~monai_labelfx.engines.LogBarrierSchedule` raises every epoch. Default 5.
        band_width: planes in a band, one number or one for each axis. Default 5.
        size_bounds: (l, u), 0 to 1. Default (0.5, 0.9), as in the published runs.
        tightness_weight: default 1e-4 as in the published runs.
        size_weight: default 1.
        emptiness_weight: default 1.

    Raises:
        ValueError: for an argument out of its range.

    Notes:
        In 3-D a band is a slab. Each of its planes across a connected object that touches both ends holds a voxel of
        it, as each line of voxels does in 2-D, so the bound is the number of planes there too.
        Where the image cuts a box, planes that are cut are dropped, and the bounds of the size are moved by what may be
        hidden; a bound that says nothing any more is dropped. Across axes on which a box is not tight on both sides
        there are no bands.
        The published code takes a two-channel softmax and sums over the batch instead of averaging. It measures boxes
        in the map of their union, where neighbours merge, and from first to last pixel, so that a last row or column
        is in no band if the rest can be divided by w. It switches the sign of the emptiness term and of its weight, to
        the same effect up to a constant. On augmented images its boxes are hulls of rotated boxes and not tight. All
        this is put right here. The loss is below 0 where constraints are met with room to spare.

    Example:
        >>> import torch
        >>> target = {"boxes": [torch.tensor([[2, 2, 12, 10]])], "labels": [torch.tensor([0])]}
        >>> loss = GlobalConstraintsLoss(t=5.0)
        >>> flat, filled = torch.zeros(1, 1, 16, 16), torch.full((1, 1, 16, 16), -9.0)
        >>> filled[..., 3:11, 3:9] = 9.0
        >>> bool(loss(filled, target) < loss(flat, target))
        True
    """

    def __init__(
        self,
        t: float = 5.0,
        *,
        band_width: int | Sequence[int] = 5,
        size_bounds: Sequence[float] = (0.5, 0.9),
        tightness_weight: float = 1e-4,
        size_weight: float = 1.0,
        emptiness_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.weights = {"tightness": tightness_weight, "size": size_weight, "emptiness": emptiness_weight}
        if not 0 < t < math.inf:
            raise ValueError(f"t must be above 0 and finite, got {t}.")
        widths = [band_width] if isinstance(band_width, int) else list(band_width)
        if not widths or not all(isinstance(w, int) and not isinstance(w, bool) and w > 0 for w in widths):
            raise ValueError(f"band_width must be a whole number of planes above 0, or one per axis, got {band_width}.")
        if len(size_bounds) != 2 or not 0 <= size_bounds[0] <= size_bounds[1] <= 1:
            raise ValueError(f"size_bounds must be two shares, 0 <= lower <= upper <= 1, got {size_bounds}.")
        for name, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name}_weight must be a finite number of 0 or above, got {weight}.")
        self.t = float(t)
        self.band_width = widths
        self.size_bounds = (float(size_bounds[0]), float(size_bounds[1]))

    def forward(self, input: torch.Tensor, target: Mapping[str, Any]) -> torch.Tensor:
        r"""The loss.

        Args:
            input: logits (B, C, \*spatial), a channel per class of objects.
            target: a mapping of which these parts are read, and no others:

                - ``boxes`` and ``labels``, or ``bags`` and ``labels``, as for
                  :py:class:`~monai_labelfx.losses.BoxTightnessLoss`; bags must lie along the axes.
                - ``has_boxes``: (B,) bool; images where it is false add nothing, not even emptiness.
                - ``tight_sides``: whether each side of a box is tight, like ``boxes``, low sides first.
                - ``ignore``: (B, 1 or C, \*spatial) bool, voxels outside boxes that may be anything.

        Returns:
            A scalar of float32, or float64 for such input; 0 with a gradient of 0 when nobody looked at any image.

        Raises:
            TypeError: when ``target`` is no mapping, or ``input`` no tensor of floating-point numbers.
            ValueError: for masks without boxes, unusable boxes, oblique bags, labels out of range, misshapen parts.
        """
        terms = self.terms(input, target)
        return torch.stack([weight * terms[name] for name, weight in self.weights.items()]).sum()

    def terms(self, input: torch.Tensor, target: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """The terms ``tightness``, ``size`` and ``emptiness`` before their weights, for logging."""
        if not isinstance(input, torch.Tensor) or not input.is_floating_point():
            raise TypeError(f"input must be a tensor of floating-point logits, got {getattr(input, 'dtype', input)!r}.")
        if input.ndim < 3:
            raise ValueError(f"input must be logits (B, C, *spatial), got {tuple(input.shape)}.")
        logits = _plain(input)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        shape = logits.shape
        # planned on the CPU, where the sizes of all that follows are known without waiting for a device
        found = read_box_target(target, shape[0], shape[1], shape[2:])
        corners, tight_sides = axis_aligned(found)
        if target.get("masks") is not None and target.get("boxes") is None and target.get("bags") is None:
            raise ValueError("GlobalConstraintsLoss learns from boxes or bags, and the target has masks only.")
        widths = self.band_width * (len(shape) - 2) if len(self.band_width) == 1 else self.band_width
        if len(widths) != len(shape) - 2:
            raise ValueError(f"band_width must have a number for each of {len(shape) - 2} axes, got {widths}.")

        p = torch.sigmoid(logits)
        boxes = _boxes(corners, shape[2:])
        maps = found.image * shape[1] + found.label
        voxels = _voxels(boxes, maps, shape[2:], logits.device)
        outside = torch.ones(shape, dtype=torch.bool, device=logits.device)
        outside.view(-1).index_fill_(0, voxels.flat, False)

        looked = found.looked.to(logits).view(-1, 1)
        images, space = looked.sum().clamp(min=1), list(range(2, p.ndim))
        size = math.prod(shape[2:])
        inside, beyond = (p * ~outside).sum(space), (p * (outside & ~_ignored(target, logits))).sum(space)
        bands = _band_excess(p.flatten().index_select(0, voxels.flat), voxels, boxes, tight_sides, widths)
        hidden = torch.zeros(shape[0] * shape[1], dtype=torch.float64).index_add_(0, maps, boxes.hidden)
        bounds = self._size_penalty(inside + beyond, (~outside).sum(space), hidden.to(logits).view(shape[:2]))
        return {
            "tightness": log_barrier_extension(bands, self.t).sum() / images,
            "size": (bounds * looked).sum() / size / images,
            "emptiness": (log_barrier_extension(beyond, self.t) * looked).sum() / size / images,
        }

    def _size_penalty(self, found: torch.Tensor, union: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Penalty (B, C) of soft sizes, given the visible union of the boxes and the voxels hidden by the border."""
        whole = union + hidden
        lower, upper = self.size_bounds[0] * whole - hidden, self.size_bounds[1] * whole
        below = torch.where(lower > 0, log_barrier_extension(lower - found, self.t), 0)
        above = torch.where((union > 0) & (upper <= union), log_barrier_extension(found - upper, self.t), 0)
        return below + above

    def extra_repr(self) -> str:
        """The options, for printing."""
        options = {"t": self.t, "band_width": self.band_width, "size_bounds": self.size_bounds, **self.weights}
        return ", ".join(f"{name}={value!r}" for name, value in options.items())


def global_constraints_loss(
    input: torch.Tensor, target: Mapping[str, Any], *, t: float = 5.0, **options: Any
) -> torch.Tensor:
    r""":py:class:`GlobalConstraintsLoss` as a function.

    Args:
        input: logits (B, C, \*spatial).
        target: a mapping, see :py:meth:`GlobalConstraintsLoss.forward`.
        t: of the log-barrier.
        options: further options of :py:class:`GlobalConstraintsLoss`.

    Returns:
        A scalar.

    Raises:
        TypeError: for an option that the class does not have.
        ValueError: as the class.

    Example:
        >>> import torch
        >>> nothing = {"boxes": [torch.zeros(0, 4)], "labels": [torch.zeros(0)]}
        >>> empty, full = (torch.full((1, 1, 8, 8), z) for z in (-9.0, 9.0))
        >>> bool(global_constraints_loss(empty, nothing) < global_constraints_loss(full, nothing))
        True
    """
    return GlobalConstraintsLoss(t, **options)(input, target)


class _Boxes(NamedTuple):
    """Boxes in whole voxels, on the CPU."""

    start: torch.Tensor  # (N, axes) first visible voxel
    extent: torch.Tensor  # (N, axes) of the visible part
    uncut: torch.Tensor  # (N, axes) bool, all is visible
    hidden: torch.Tensor  # (N,) number of voxels behind the border of the image


class _Voxels(NamedTuple):
    """The visible voxels of all boxes, box after box: place in the flat batch, box, and place in the box per axis."""

    flat: torch.Tensor
    box: torch.Tensor
    places: list[torch.Tensor]


def _boxes(boxes: torch.Tensor, spatial_shape: Sequence[int]) -> _Boxes:
    """Fractional corners are rounded outwards, as for the lines of the other losses."""
    low, high = boxes.double().chunk(2, 1)
    low, high = (low + WHOLE).floor(), (high - WHOLE).ceil()
    sizes = torch.tensor(spatial_shape, dtype=torch.float64)
    start, end = low.clamp(min=0).minimum(sizes), high.clamp(min=0).minimum(sizes)
    extent = (end - start).clamp(min=0)
    visible = extent.prod(1)
    hidden = torch.where(visible > 0, (high - low).prod(1) - visible, 0)
    return _Boxes(start.long(), extent.long(), extent == high - low, hidden)


def _voxels(boxes: _Boxes, maps: torch.Tensor, spatial_shape: Sequence[int], device: torch.device) -> _Voxels:
    """The voxels of boxes of any sizes without padding: numbered through, then told apart by division."""
    volume = boxes.extent.prod(1)
    total = int(volume.sum())
    first = (volume.cumsum(0) - volume).to(device)
    start, extent = boxes.start.to(device), boxes.extent.to(device)
    rows = torch.arange(len(volume), device=device)
    box = rows.repeat_interleave(volume.to(device), output_size=total)
    rest = torch.arange(total, device=device) - first[box]
    places: list[torch.Tensor] = []
    for axis in reversed(range(len(spatial_shape))):
        size = extent[:, axis][box]
        places.insert(0, rest % size)
        rest = torch.div(rest, size, rounding_mode="floor")
    flat = maps.to(device)[box]
    for axis, place in enumerate(places):
        flat = flat * spatial_shape[axis] + start[:, axis][box] + place
    return _Voxels(flat, box, places)


def _band_excess(
    values: torch.Tensor,
    voxels: _Voxels,
    boxes: _Boxes,
    tight_sides: torch.Tensor | None,
    widths: Sequence[int],
) -> torch.Tensor:
    """By how much the probabilities fall short of the number of planes, for each band of each box (bands,)."""
    device, excess = values.device, []
    sides = torch.ones(len(boxes.extent), 2 * len(widths), dtype=torch.bool) if tight_sides is None else tight_sides
    for axis, width in enumerate(widths):
        others = [other for other in range(len(widths)) if other != axis]
        usable = sides[:, axis] & sides[:, axis + len(widths)] & boxes.uncut[:, others].all(1)
        extent = boxes.extent[:, axis]
        number = torch.where(usable & (boxes.extent > 0).all(1), (extent + width - 1) // width, 0)
        first, total = number.cumsum(0) - number, int(number.sum())
        owner = torch.arange(len(number)).repeat_interleave(number)
        planes = (extent[owner] - (torch.arange(total) - first[owner]) * width).clamp(max=width)
        # the voxels of boxes without bands go to one more, that is dropped
        band = torch.where(number > 0, first, total).to(device)[voxels.box]
        band = band + voxels.places[axis] // width * (number > 0).to(device)[voxels.box]
        sums = values.new_zeros(total + 1).index_add(0, band, values)
        excess.append(planes.to(sums) - sums[:-1])
    return torch.cat(excess)


def _ignored(target: Mapping[str, Any], logits: torch.Tensor) -> torch.Tensor:
    """Voxels to leave out (B, 1 or C, *spatial)."""
    if target.get("ignore") is None:
        return torch.zeros((1,) * logits.ndim, dtype=torch.bool, device=logits.device)
    ignore = torch.as_tensor(_plain(target["ignore"]))
    if ignore.shape not in (logits.shape, (logits.shape[0], 1, *logits.shape[2:])):
        raise ValueError(
            f"ignore must be (B, 1 or C, *spatial) for logits {tuple(logits.shape)}, got {tuple(ignore.shape)}."
        )
    return ignore.to(logits.device).bool()


def _plain(value: Any) -> Any:
    """A MetaTensor as a plain tensor, which is several times faster to compute with."""
    return value.as_tensor() if isinstance(value, MetaTensor) else value
