# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with a label whose numbers are objects, beside the classes and boxes of these."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from monai_labelfx.data._check_boxes import SLACK
from monai_labelfx.ops.components import component_boxes


def instance_boxes(label: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Tight boxes (N, 2 * axes) of the numbers of each channel of a label (C, \\*spatial), in rising order; these."""
    native = torch.as_tensor(np.ascontiguousarray(label, dtype=label.dtype.newbyteorder("=")))
    boxes, numbers = zip(*(component_boxes(channel, instances=True) for channel in native), strict=True)
    return torch.cat(boxes).numpy(), torch.cat(numbers).tolist()


def instance_faults(label: np.ndarray, tight: np.ndarray, number: int) -> list[str]:
    """Another number of objects than of their classes.

    Args:
        label: (C, \\*spatial).
        tight: as by :py:func:`instance_boxes`.
        number: of the classes.
    """
    if len(tight) == number:
        return []
    places = "" if len(label) == 1 else f" in {len(label)} channels"
    lost = f", more than its type {label.dtype.name} can number" if number > _most(label) else ""
    return [f"label has {len(tight)} objects{places}, but box_label has {number}{lost}"]


def instance_misfits(tight: np.ndarray, boxes: Sequence[Sequence[float]]) -> list[str]:
    """Which boxes (N, 2 * axes) are off the tight box of their object, in the order of these, by more than a voxel."""
    found = []
    for index, (box, own) in enumerate(zip(boxes, tight, strict=True)):
        distance = float(np.abs(np.asarray(box, dtype=np.float64) - own).max())
        if distance > SLACK:
            found.append(
                f"box[{index}] is up to {distance:g} voxels off the tight box {own.tolist()} of object {index}"
            )
    return found


def is_full(label: np.ndarray, tight: np.ndarray, number: int) -> bool:
    """Whether the label has all numbers that its type has, and yet there are more objects."""
    return number > len(tight) == _most(label)


def _most(label: np.ndarray) -> int:
    """How many objects the type of a label (C, \\*spatial) can number."""
    most = np.iinfo(label.dtype).max if label.dtype.kind in "iu" else 1 if label.dtype.kind == "b" else 2**24
    return int(most) * len(label)
