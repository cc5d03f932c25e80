# SPDX-License-Identifier: Apache-2.0
"""How much of its box an object may fill, as a penalty on the predicted share."""

from __future__ import annotations

from typing import cast

import torch
from torch.nn.functional import relu

from monai_labelfx.losses._box_target import BoxTarget
from monai_labelfx.ops.box_frames import frame_voxels
from monai_labelfx.ops.crossing_lines import WHOLE, box_voxels


def area_penalty(logits: torch.Tensor, target: BoxTarget, lower: float, upper: float) -> torch.Tensor:
    r"""Squared distance of the predicted share of each whole box to [lower, upper]: mean over boxes, sum over classes.

    A box that is cut by the image has no known area, and none is asked of it.

    Args:
        logits: (B, C, \*spatial), float32 or float64.
        target: the boxes.
        lower, upper: bounds of the share, 0 to 1.
    """
    classes, shape = logits.shape[1], logits.shape[2:]
    maps = target.image * classes + target.label
    if target.frames is not None:
        index, inside, sides, _ = frame_voxels(target.frames, shape, image_index=maps)
    else:
        boxes = cast(torch.Tensor, target.boxes)
        index = box_voxels(boxes, shape, image_index=maps)
        low, high = boxes.double().split(len(shape), 1)
        inside, sides = index >= 0, (high - WHOLE).ceil() - (low + WHOLE).floor()
    if not len(maps) or not index.numel():
        return logits.new_zeros(())
    volume = sides.prod(1)
    whole = (inside.flatten(1).sum(1) == volume).to(logits.dtype)
    most = upper * (1 + 0.5 / sides).prod(1).to(logits.dtype)  # digital ellipses fill more of small boxes
    values = logits.flatten().index_select(0, index.flatten().clamp(min=0)).sigmoid().view(index.shape)
    share = values.masked_fill(~inside, 0).flatten(1).sum(1) / volume.clamp(min=1).to(logits.dtype)
    penalty = (relu(share - most).square() + relu(lower - share).square()) * whole
    number = penalty.new_zeros(classes).index_add(0, target.label, whole)
    return (penalty.new_zeros(classes).index_add(0, target.label, penalty) / number.clamp(min=1)).sum()
