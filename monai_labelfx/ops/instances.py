# SPDX-License-Identifier: Apache-2.0
"""From three class probabilities to separate objects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from scipy import ndimage


def integer_labels(labels: torch.Tensor, name: str = "labels") -> torch.Tensor:
    """A label map as int64 in which different labels stay different.

    Images often arrive as floats that hold whole numbers, and torch lacks most arithmetic for unsigned types.

    Args:
        labels: label map of any shape: bool, any integer type, or floats that hold whole numbers.
        name: the argument's name, for the error messages.

    Returns:
        int64 tensor of the same shape and on the same device. Labels of uint64 above 2**63 - 1 wrap to negative
        numbers, one each.

    Raises:
        TypeError: when ``labels`` is no tensor of real numbers.
        ValueError: when a label is negative or no whole number.
    """
    if not isinstance(labels, torch.Tensor) or labels.is_complex():
        found = labels.dtype if isinstance(labels, torch.Tensor) else type(labels).__name__
        raise TypeError(f"{name} must be a tensor of integer labels, got {found}.")
    if labels.dtype == torch.uint64:
        return labels.view(torch.int64)
    whole = labels.to(torch.int64)
    if labels.is_floating_point() and not torch.equal(whole.to(labels.dtype), labels):
        raise ValueError(f"{name} must hold whole numbers, got {labels.dtype} values with fractions, NaN or infinity.")
    if whole.numel() and int(whole.min()) < 0:
        raise ValueError(f"{name} must hold 0 (background) and positive labels, got {int(whole.min())}.")
    return whole


def per_axis(value: float | Sequence[float], ndim: int, name: str) -> tuple[float, ...]:
    """One finite number, at least 0, for each of ``ndim`` spatial axes."""
    values = tuple(value) if isinstance(value, Iterable) else (value,) * ndim
    if len(values) != ndim or not all(np.isfinite(v) and v >= 0 for v in values):
        raise ValueError(f"{name} must be one number of 0 or above, or one for each of {ndim} axes, got {value}.")
    return values


def check_connectivity(connectivity: int, ndim: int) -> None:
    """Raise ValueError unless ``connectivity`` is a number of axes, 1 to ``ndim``."""
    if connectivity not in range(1, ndim + 1):
        raise ValueError(f"connectivity must be between 1 and the number of spatial axes {ndim}, got {connectivity}.")


def decode_instances(
    probabilities: torch.Tensor,
    threshold: float = 0.5,
    *,
    min_size: int = 0,
    fill_holes: bool = False,
    connectivity: int = 1,
    growth: int | Sequence[int] = 1,
) -> torch.Tensor:
    """Separate objects from the probabilities of background, foreground and border.

    The steps, in this order: foreground is where its probability exceeds ``threshold``; its connected components are
    the objects; components below ``min_size`` are dropped; holes are filled; and the objects grow back into the border
    voxels that the training target took from them where they touch (:func:`monai_labelfx.ops.border_classes`).

    Growth is aware of the two kinds of border. The ring around an object lies in the background and is never given to
    it; the seam between two touching objects belongs to them. A border voxel (border at least as probable as
    background, not foreground) counts as seam when no background lies within ``growth`` steps of it (to neighbours that
    differ in one or two axes) and two different objects lie within ``2 * growth`` voxels. Objects grow face by face,
    ``growth`` times, into seam voxels that touch exactly one of them. A perfect prediction of objects that lie more
    than ``4 * growth`` voxels apart thus decodes to exactly these objects.

    Args:
        probabilities: (3, \\*spatial) floats in the order background, foreground, border; any device.
        threshold: foreground probability above which a voxel is an object's, in [0, 1]. Default 0.5; the paper searches
            it on validation images.
        min_size: smallest component to keep, in voxels, counted before filling and growing. Default 0, keep all.
        fill_holes: give each hole that one single object encloses to that object. Default ``False``, as the reference.
        connectivity: how many axes two voxels of one object may differ in, 1 (faces) to the number of spatial axes.
            Default 1, as the reference.
        growth: voxels to grow at seams, one number or one per axis; the ``border_width`` (in voxels) of the training
            target. Default 1; 0 switches growth off, as the reference.

    Returns:
        (1, \\*spatial) int32 labels 1, 2, ... in scan order, 0 background, on the device of ``probabilities``.

    Raises:
        ValueError: when an argument is out of its range or ``probabilities`` has not three channels.

    Notes:
        The paper thresholds and takes connected components, which loses small objects in dense images: the border
        class eats them. Of wide borders along curved contacts only a part comes back. Two objects with a gap of exactly
        ``2 * growth`` background voxels have the same target as two that touch, and are taken to touch. The components
        are found on the CPU.

    Example:
        >>> probabilities = torch.zeros(3, 1, 8)
        >>> for column, kind in enumerate([0, 2, 1, 1, 2, 2, 1, 1]):
        ...     probabilities[kind, 0, column] = 1
        >>> decode_instances(probabilities, growth=0)
        tensor([[[0, 0, 1, 1, 0, 0, 2, 2]]], dtype=torch.int32)
        >>> decode_instances(probabilities)
        tensor([[[0, 0, 1, 1, 1, 2, 2, 2]]], dtype=torch.int32)
    """
    if probabilities.ndim < 2 or probabilities.shape[0] != 3:
        raise ValueError(
            "probabilities must have shape (3, *spatial) for background, foreground and border, "
            f"got {tuple(probabilities.shape)}."
        )
    if not 0.0 <= float(threshold) <= 1.0:
        raise ValueError(f"threshold must be a probability between 0 and 1, got {float(threshold)}.")
    if min_size < 0:
        raise ValueError(f"min_size must be a number of voxels, 0 or above, got {min_size}.")
    ndim = probabilities.ndim - 1
    check_connectivity(connectivity, ndim)
    steps = per_axis(growth, ndim, "growth")
    if any(step != int(step) for step in steps):
        raise ValueError(f"growth must be a whole number of voxels, got {growth}.")

    background, foreground, border = probabilities.detach()
    is_foreground = foreground > float(threshold)
    is_border = (border >= background) & ~is_foreground
    objects = is_foreground.cpu().numpy()
    labels, _ = ndimage.label(objects, ndimage.generate_binary_structure(ndim, connectivity))
    if min_size > 1:
        labels = _drop_small(labels, min_size)
    if fill_holes:
        labels = _fill_holes(labels)
    if any(steps):
        seams = is_border.cpu().numpy()
        labels = _grow(labels, seams, ~(objects | seams), tuple(int(step) for step in steps))
    return torch.as_tensor(labels.astype(np.int32, copy=False), device=probabilities.device)[None]


def _drop_small(labels: np.ndarray, min_size: int) -> np.ndarray:
    """Drop labels of fewer voxels and number the others anew, in their order."""
    keep = np.bincount(labels.ravel()) >= min_size
    keep[0] = False
    return np.where(keep, np.cumsum(keep), 0)[labels]


def _fill_holes(labels: np.ndarray) -> np.ndarray:
    """Give each unlabelled component to the one object that encloses it, if it is one and no image face is touched."""
    gaps, count = ndimage.label(labels == 0)
    highest = np.zeros(count + 1, labels.dtype)
    lowest = np.full(count + 1, np.iinfo(labels.dtype).max, labels.dtype)
    for axis in range(labels.ndim):
        # Moving the axis to the front makes every neighbour along it a plain shift of the first index.
        gap, label = np.moveaxis(gaps, axis, 0), np.moveaxis(labels, axis, 0)
        for here, there in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
            meet = (gap[here] > 0) & (label[there] > 0)
            np.maximum.at(highest, gap[here][meet], label[there][meet])
            np.minimum.at(lowest, gap[here][meet], label[there][meet])
    owner = np.where(highest == lowest, highest, 0)
    for axis in range(labels.ndim):
        owner[gaps.take((0, -1), axis)] = 0
    return np.where(labels > 0, labels, owner[gaps])


def _grow(labels: np.ndarray, border: np.ndarray, background: np.ndarray, steps: tuple[int, ...]) -> np.ndarray:
    """Grow labels into the seams between them, ``steps`` voxels along each axis."""
    near_background = background
    for number in range(max(steps)):
        near_background = ndimage.binary_dilation(near_background, _neighbours(steps, number, 2))
    box = np.ones(tuple(4 * step + 1 for step in steps), bool)
    lowest, highest = _label_range(labels, box)
    seam = border & ~near_background & (lowest != highest)
    for number in range(max(steps)):
        lowest, highest = _label_range(labels, _neighbours(steps, number, 1))
        labels = np.where((labels == 0) & seam & (lowest == highest), highest, labels)
    return labels


def _neighbours(steps: tuple[int, ...], number: int, connectivity: int) -> np.ndarray:
    """Footprint of neighbours that differ in at most ``connectivity`` axes, of those that have a step ``number``."""
    offsets = np.abs(np.indices((3,) * len(steps)) - 1)
    idle = offsets[np.asarray(steps) <= number].any(axis=0)
    return (offsets.sum(axis=0) <= connectivity) & ~idle


def _label_range(labels: np.ndarray, footprint: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest label around each voxel; where there is none, the lowest exceeds all and the highest is 0."""
    objects = np.where(labels > 0, labels, np.iinfo(labels.dtype).max)
    # scipy runs a full footprint axis by axis.
    return (
        ndimage.minimum_filter(objects, footprint=footprint, mode="nearest"),
        ndimage.maximum_filter(labels, footprint=footprint, mode="nearest"),
    )
