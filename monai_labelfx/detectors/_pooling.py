# SPDX-License-Identifier: Apache-2.0
"""RoIAlign on a pyramid: each box from the level that suits its size."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_labelfx.ops.roi_align import roi_align

_ROUNDING = 1e-6  # of the logarithm: a box of exactly the size where a level begins belongs to it


def box_levels(boxes: torch.Tensor, stride: Sequence[int], levels: int, strides_at_second: float) -> torch.Tensor:
    """The level of each box, from its volume (Lin et al. 2017, equation 1), 0 for the finest.

    .. math:: k = \\max\\left(0, \\left\\lfloor 1 + \\log_2 \\frac{s}{s_1} \\right\\rfloor\\right)

    with s the D-th root of the volume in strides of the finest level, measured along each axis, and s_1 the size from
    which on boxes belong to the second level.

    Args:
        boxes: (R, 2 \\* D) in voxels.
        stride: of the finest level, along each axis.
        levels: how many there are; larger boxes go to the coarsest, and those without extent or of NaN to the finest.
        strides_at_second: s_1.

    Example:
        >>> boxes = torch.tensor([[0.0, 0, 111, 111], [0, 0, 112, 112], [0, 0, 448, 448], [0, 0, 56, 224]])
        >>> box_levels(boxes, (4, 4), 4, 28.0).tolist()
        [0, 1, 3, 1]
    """
    axes = len(stride)
    sides = (boxes[:, axes:] - boxes[:, :axes]).clamp(min=0) / boxes.new_tensor(stride)
    size = sides.prod(dim=1) ** (1 / axes)
    begins = size.new_tensor([strides_at_second * 2 ** (level - _ROUNDING) for level in range(levels - 1)])
    return (size[:, None] >= begins).sum(dim=1)


class PyramidPooling:
    """Features of boxes at one size: the level by :py:func:`box_levels`, then RoIAlign.

    Args:
        strides: of each level, along each axis, finest first.
        output_size: bins of each axis, one number or one for each.
        sampling_ratio, aligned: of :py:func:`monai_labelfx.ops.roi_align.roi_align`.
        strides_at_second: see :py:func:`box_levels`.
    """

    def __init__(
        self,
        strides: Sequence[tuple[int, ...]],
        output_size: int | Sequence[int],
        *,
        sampling_ratio: int,
        aligned: bool,
        strides_at_second: float,
    ) -> None:
        self.strides = [tuple(stride) for stride in strides]
        self.output_size = output_size
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.strides_at_second = strides_at_second

    def __call__(self, maps: Sequence[torch.Tensor], boxes: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Maps (B, C, \\*spatial) of the levels, boxes (R, 2 \\* D) and the image of each (R,) -> (R, C, \\*bins)."""
        level = box_levels(boxes, self.strides[0], len(maps), self.strides_at_second)
        rows = [(level == number).nonzero()[:, 0] for number in range(len(maps))]
        pooled = [
            roi_align(
                features,
                boxes[chosen],
                image[chosen],
                self.output_size,
                spatial_scale=[1 / n for n in stride],
                sampling_ratio=self.sampling_ratio,
                aligned=self.aligned,
            )
            for features, chosen, stride in zip(maps, rows, self.strides, strict=True)
        ]
        return torch.cat(pooled)[torch.cat(rows).argsort()]
