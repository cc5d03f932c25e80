# SPDX-License-Identifier: Apache-2.0
"""What box supervision is given, checked: the options of the loss, and the parts of its target beside the boxes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch

from monai_labelfx.losses._neighbours import plain_tensor
from monai_labelfx.ops.smooth_maxima import alpha_for_target

PARTS = ("boxes", "labels", "bags", "has_boxes", "masks", "has_masks", "image", "spacing", "tight_sides", "ignore")
_AFFINITY_OPTIONS = ("sigma", "threshold", "dilation")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_not_negative(name: str, value: Any) -> None:
    """ValueError unless ``value`` is a finite number of 0 or above."""
    if not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise ValueError(f"{name} must be a finite number of 0 or above, got {value!r}.")


def checked_alpha(alpha: Any, kind: str) -> float:
    """Alpha, or that of a pair (share, value), see ``alpha_for_target``."""
    if not isinstance(alpha, Real):
        if isinstance(alpha, str) or not isinstance(alpha, Sequence) or len(alpha) != 2:
            raise ValueError(f"alpha must be a number or a pair (share, value), got {alpha!r}.")
        return float(alpha_for_target(alpha[0], alpha[1], kind=kind))
    if not 0 <= float(alpha) < math.inf or (kind == "power_mean" and alpha == 0):
        raise ValueError(f"alpha must be finite and 0 or above (power mean: above 0), got {alpha!r}.")
    return float(alpha)


def checked_angles(angles: Any) -> tuple[float, ...]:
    """Angles in degrees."""
    degrees = tuple(float(angle) for angle in angles)
    if not degrees or not all(-90 < angle < 90 for angle in degrees):
        raise ValueError(f"angles must be one or more numbers above -90 and below 90 degrees, got {angles}.")
    return degrees


def checked_area(area: Any) -> tuple[float, float] | None:
    """Bounds of the share of a box."""
    if area is None:
        return None
    if isinstance(area, Real | str) or len(area) != 2 or not 0 <= area[0] <= area[1] <= 1:
        raise ValueError(f"area must be two shares, 0 <= lower <= upper <= 1, got {area!r}.")
    return float(area[0]), float(area[1])


def checked_margin(margin: Any) -> float | tuple[float, ...]:
    """Voxels, one number or one per axis."""
    values = (margin,) if isinstance(margin, Real) else tuple(margin)
    if len(values) not in (1, 2, 3) or not all(isinstance(v, Real) and float(v) >= 0 for v in values):
        raise ValueError(f"margin must be a number of voxels, 0 or above, or one for each axis, got {margin!r}.")
    return float(values[0]) if len(values) == 1 else tuple(float(v) for v in values)


def check_margin_axes(margin: float | tuple[float, ...], ndim: int) -> None:
    """ValueError for a margin of one number per axis of something else."""
    if isinstance(margin, tuple) and len(margin) != ndim:
        raise ValueError(f"margin must be one number, or one for each of {ndim} axes, got {margin}.")


def checked_ring(ring: Any) -> int:
    """A whole number of voxels."""
    if not isinstance(ring, Integral) or isinstance(ring, bool) or ring < 0:
        raise ValueError(f"ring must be a whole number of voxels, 0 or above, got {ring!r}.")
    return int(ring)


def checked_affinity_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Keywords of ``intensity_affinity_loss`` that are no part of the target."""
    unknown = set(options or {}) - set(_AFFINITY_OPTIONS)
    if unknown:
        raise ValueError(f"affinity_options must be among {', '.join(_AFFINITY_OPTIONS)}, got {sorted(unknown)}.")
    return dict(options or {})


def check_parts(target: Any) -> None:
    """TypeError for a target that is no mapping, ValueError for one with other parts, or without annotation."""
    if not isinstance(target, Mapping):
        raise TypeError(f"target must be a mapping with boxes or bags, labels, ..., got {type(target).__name__}.")
    if not set(target) & {"boxes", "bags", "masks"} or set(target) - set(PARTS):
        wanted = f"boxes, bags or masks, and further parts of {', '.join(PARTS)}"
        raise ValueError(f"target must hold {wanted}; it holds {', '.join(map(str, target)) or 'nothing'}.")


def tensor_part(target: Mapping[str, Any], name: str, device: torch.device) -> torch.Tensor:
    """A part that must be a tensor, as a plain one on the device."""
    value = plain_tensor(target[name])
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}.")
    return value.to(device)


def ignored(target: Mapping[str, Any], logits: torch.Tensor) -> torch.Tensor:
    """The part ``ignore``, (B, 1 or C, *spatial) bool."""
    value, shape = tensor_part(target, "ignore", logits.device), logits.shape
    if value.shape not in (shape, (shape[0], 1, *shape[2:])):
        raise ValueError(f"ignore must be (B, 1 or C, *spatial) for logits {tuple(shape)}, got {tuple(value.shape)}.")
    return value.bool()


def masked_images(target: Mapping[str, Any], logits: torch.Tensor) -> torch.Tensor:
    """Which images (B,) have a mask, from ``masks`` and ``has_masks``."""
    batch, flags = len(logits), target.get("has_masks")
    if flags is not None:
        flags = torch.as_tensor(plain_tensor(flags), device=logits.device).bool().flatten()
        if len(flags) != batch:
            raise ValueError(f"has_masks must hold one bool for each of {batch} images, got {len(flags)}.")
    if target.get("masks") is None:
        if flags is not None and flags.any():
            raise ValueError("has_masks says that images have a mask, but the target has no masks.")
        return torch.zeros(batch, dtype=torch.bool, device=logits.device)
    masks = tensor_part(target, "masks", logits.device)
    if masks.shape != logits.shape:
        raise ValueError(f"masks must have the shape of the logits, {tuple(logits.shape)}, got {tuple(masks.shape)}.")
    return torch.ones(batch, dtype=torch.bool, device=logits.device) if flags is None else flags


def without_boxes(target: Mapping[str, Any], masked: torch.Tensor) -> Mapping[str, Any]:
    """The target with the boxes of masked images taken out."""
    if not masked.any():
        return target
    looked = target.get("has_boxes")
    if looked is None:
        known = target.get("boxes") is not None or target.get("bags") is not None
        looked = torch.full((len(masked),), known)
    looked = torch.as_tensor(plain_tensor(looked)).bool().flatten().cpu()
    if len(looked) != len(masked):
        return target  # which is refused when its boxes are read
    return {**target, "has_boxes": looked & ~masked.cpu()}


def voxel_sizes(target: Mapping[str, Any], logits: torch.Tensor) -> torch.Tensor | None:
    """The part ``spacing`` as the voxel size of each image (B, D)."""
    if target.get("spacing") is None:
        return None
    value, batch, ndim = plain_tensor(target["spacing"]), len(logits), logits.ndim - 2
    sizes = torch.as_tensor(value, dtype=torch.float64, device=logits.device)
    if sizes.shape not in ((ndim,), (batch, ndim)) or not (sizes.isfinite() & (sizes > 0)).all():
        raise ValueError(f"spacing must be above 0, ({ndim},) or ({batch}, {ndim}), got {sizes.tolist()}.")
    return sizes.expand(batch, ndim)
