# SPDX-License-Identifier: Apache-2.0
"""How many levels SSD has for an image size, and the default boxes of each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from monai_labelfx.ops.anchor_grid import anchor_shapes

# shares of the image size, in per cent: the smallest boxes, then from the second level on, as published for COCO
_FIRST, _LOWEST, _HIGHEST = 4, 10, 90
_PUBLISHED = 512  # the sizes are whole voxels of an image of this size


def level_count(image_size: Sequence[int], stride: Sequence[int], least: int) -> int:
    """Levels of strides that double from ``stride`` on until about one place is left, and ``least`` at least."""
    places = max(n / s for n, s in zip(image_size, stride, strict=True))
    return max(least, 1 + round(math.log2(max(places, 1))))


def box_sizes(image_size: Sequence[int], stride: Sequence[int], levels: int) -> list[float]:
    """Sizes of the boxes of ``levels`` levels, and one more, which the last level's larger box goes towards.

    4 % of the image, then from 10 % in equal steps towards 90 %; at least two and four strides of the finest level, so
    that objects overlap one of its boxes wherever they lie. An image that is no cube counts with the side of a cube of
    its volume, an axis of smaller stride as if it had the largest.
    """
    stretch = axis_stretch(stride)
    side = math.prod(n / t for n, t in zip(image_size, stretch, strict=True)) ** (1 / len(stretch))
    stride_share = 100 * max(stride) / side
    first, low = max(_FIRST, 2 * stride_share), max(_LOWEST, 4 * stride_share)
    step = max(0, int((_HIGHEST - low) / max(1, levels - 2)))
    shares = [first, *(low + step * level for level in range(levels))]
    return [int(_PUBLISHED * share / 100) * side / _PUBLISHED for share in shares]


def axis_stretch(stride: Sequence[int]) -> list[float]:
    """Stride of each axis over the largest: boxes are as much thicker or thinner along the axes of the array."""
    return [s / max(stride) for s in stride]


def level_ratios(levels: int) -> list[tuple[float, ...]]:
    """2 for the finest and the two coarsest levels, 2 and 3 for those between."""
    return [(2.0, 3.0) if 0 < level < levels - 2 else (2.0,) for level in range(levels)]


def default_boxes(
    sizes: Sequence[float], ratios: Sequence[Sequence[float]], stretch: Sequence[float]
) -> list[torch.Tensor]:
    """For each level the shapes of its default boxes, (K, spatial_dims) in voxels.

    With s the size of a level and s' the next one: the cube of s, the cube of sqrt(s s'), and for each ratio r, of the
    volume of the first, the boxes that are r times as long, or as short, along one axis as along the others, in the
    order of ``anchor_shapes``. In 2-D these are the two forms of r; in 3-D three rods and three plates.
    """
    axes = len(stretch)
    levels = []
    with torch.device("cpu"):  # also where a network is made on another device, or on none
        for size, larger, wanted in zip(sizes, sizes[1:], ratios, strict=False):
            forms = [[1.0] * axes, [math.sqrt(larger / size)] * axes]
            for ratio in wanted:
                # the cube is among them; in 2-D what is long along one axis is short along the other, and there once
                pairs = anchor_shapes([1.0], axes, ratios=(ratio, 1 / ratio)).tolist()
                forms += [form for form in pairs if len(set(form)) > 1]
            levels.append(torch.tensor(forms) * size * torch.tensor(stretch))
    return levels
