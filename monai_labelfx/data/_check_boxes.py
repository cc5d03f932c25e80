# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with the boxes of one item of a datalist, in themselves and beside its label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from monai_labelfx.ops.components import component_boxes

SLACK = 1.0 + 1e-3  # voxels that a side may be off: resampling moves edges by as much


def box_faults(boxes: Any, shape: Sequence[int]) -> list[str]:
    """What makes the boxes of an image unusable: [low..., high...] in voxels, half open, 0 <= low < high <= shape."""
    if not isinstance(boxes, (list, tuple)):
        return [f"box must be a list of boxes, found {boxes!r}"]
    corners, found = 2 * len(shape), []
    for index, box in enumerate(boxes):
        numbers = isinstance(box, (list, tuple)) and all(type(value) in (int, float) for value in box)
        if not numbers or len(box) != corners:
            found.append(f"box[{index}] must be {corners} numbers (low corner, then high corner), found {box!r}")
            continue
        low, high = box[: len(shape)], box[len(shape) :]
        if not all(0 <= a < b <= size for a, b, size in zip(low, high, shape, strict=True)):
            found.append(f"box[{index}] = {box} is empty or not inside the image of shape {tuple(shape)}")
    return found


def class_faults(boxes: Any, classes: Any) -> list[str]:
    """What makes the class channels of boxes unusable."""
    if not isinstance(classes, (list, tuple)):
        return [f"box_label must be a list with a class channel for each box, found {classes!r}"]
    number = len(boxes) if isinstance(boxes, (list, tuple)) else 0
    found = (
        [] if len(classes) == number else [f"box_label must be one for each of {number} boxes, found {len(classes)}"]
    )
    for index, value in enumerate(classes):
        if type(value) not in (int, float) or not value >= 0 or value % 1:
            found.append(f"box_label[{index}] must be a whole number of 0 or above, found {value!r}")
    return found


def box_warnings(boxes: Sequence[Sequence[float]], classes: Sequence[float] | None, label: np.ndarray) -> list[str]:
    """Which boxes are not the tight box of one object of the label: usable, but their lines may miss the object.

    A box with a side that is more than a voxel off the tight box of its component, the one it fits best; a box around
    several components that is the tight box of none; a box without a voxel of its class.

    Args:
        boxes: without faults.
        classes: class channel of each box, c for the label value c + 1. ``None``: unknown, a box is then of the value
            that has most voxels in it.
        label: (\\*spatial) label map on the grid of the boxes.
    """
    native = np.ascontiguousarray(label, dtype=label.dtype.newbyteorder("="))
    tight, values = (column.numpy() for column in component_boxes(torch.as_tensor(native)))
    found = []
    for index, box in enumerate(boxes):
        value = _most_frequent(label, box) if classes is None else int(classes[index]) + 1
        text = _misfit(np.asarray(box, dtype=np.float64), tight[values == value], _window(label, box) == value)
        if text is not None:
            found.append(f"box[{index}] {text.format(value=value)}")
    return found


def _misfit(box: np.ndarray, tight: np.ndarray, inside: np.ndarray) -> str | None:
    """What is odd about a box beside the tight boxes (N, 2 * axes) of the components of its class."""
    if not inside.any():
        return "holds no voxel of the label value {value}"
    ndim = len(box) // 2
    outward = (box - tight) * np.repeat((-1, 1), ndim)  # how far each side lies outside that of the component
    best = int(np.abs(outward).max(1).argmin())
    if np.abs(outward[best]).max() <= SLACK:
        return None
    number = int((outward >= -SLACK).all(1).sum())
    if number > 1:
        return f"holds {number} components of the label value {{value}}, but should be the tight box of one"
    shared = np.minimum(box[ndim:], tight[:, ndim:]) - np.maximum(box[:ndim], tight[:, :ndim])
    overlap = shared.clip(0).prod(1)
    union = (box[ndim:] - box[:ndim]).prod() + (tight[:, ndim:] - tight[:, :ndim]).prod(1) - overlap
    best = int((overlap / union).argmax())
    ways = [way for way, off in (("looser", outward[best]), ("tighter", -outward[best])) if off.max() > SLACK]
    most = f"up to {np.abs(outward[best]).max():g} voxels {' and '.join(ways)}"
    return f"is {most} than the tight box {tight[best].tolist()} of its component"


def _window(label: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """The voxels that a box touches."""
    ends = zip(np.floor(box[: label.ndim]), np.ceil(box[label.ndim :]), strict=True)
    return label[tuple(slice(int(low), int(high)) for low, high in ends)]


def _most_frequent(label: np.ndarray, box: Sequence[float]) -> int:
    """The value, besides 0, with most voxels in a box; 1 where there is none."""
    values, counts = np.unique(_window(label, box), return_counts=True)
    counts[values == 0] = 0
    return int(values[counts.argmax()]) if counts.any() else 1
