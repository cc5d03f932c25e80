# SPDX-License-Identifier: Apache-2.0
"""Cropped masks as COCO's run lengths of the whole image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from monai_labelfx.metrics._mask_crops import MaskCrops
from monai_labelfx.ops.run_length import compressed_counts


def mask_run_lengths(masks: MaskCrops) -> list[dict[str, Any]]:
    """What ``encode_run_lengths`` gives for the whole masks, which for many objects of a CT would fill the memory."""
    size = [int(n) for n in masks.shape[::-1]]
    return [
        {"size": list(size), "counts": compressed_counts(_lengths(crop, low, masks.shape))}
        for crop, low in zip(masks.crops, masks.low.tolist(), strict=True)
    ]


def _lengths(crop: np.ndarray, low: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Lengths of the runs of the image, the first one outside."""
    lines = np.pad(crop.reshape(math.prod(crop.shape[:-1]), crop.shape[-1]), ((0, 0), (1, 1))).view(np.int8)
    steps = np.diff(lines, axis=1)
    # places in the flat image: that of a crop's line, and the voxel in it
    place = np.zeros((1,), np.int64)
    for length, begin, whole in zip(crop.shape[:-1], low[:-1], shape[:-1], strict=True):
        place = (place[:, None] * whole + np.arange(begin, begin + length)).ravel()
    place = place * shape[-1] + low[-1]
    starts, ends = (place[line] + voxel for line, voxel in (np.nonzero(steps == side) for side in (1, -1)))
    apart = starts[1:] != ends[:-1]  # a run that fills its line may go on in the next one
    starts, ends = starts[np.append(True, apart)[: len(starts)]], ends[np.append(apart, True)[: len(ends)]]
    edges = np.stack([starts, ends], axis=1).ravel()
    lengths = np.diff(np.concatenate([[0], edges, [math.prod(shape)]]))
    return lengths[:-1] if lengths[-1] == 0 and len(edges) else lengths
