# SPDX-License-Identifier: Apache-2.0
"""True masks as networks learn them: in the bins of boxes, and on coarser grids."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from monai_labelfx.ops.roi_align import roi_align

_ROUNDING = 1e-5  # of the sum over the samples of a bin: one of which exactly half is covered counts
_MOST_NUMBERS = 2**24  # of masks as float32 at a time, 64 MB


@torch.no_grad()
def mask_targets(
    masks: Sequence[torch.Tensor],
    rois: torch.Tensor,
    image: torch.Tensor,
    matches: torch.Tensor,
    bins: Sequence[int],
    *,
    aligned: bool,
    threshold: float | None,
) -> torch.Tensor:
    """What of its object lies in each bin of a box, by RoIAlign of the true mask.

    Args:
        masks: for each image (n, \\*spatial) bool.
        rois: (R, 2 \\* D) in voxels.
        image: (R,) of each.
        matches: (R,) the row of its object among the masks of its image.
        bins: of each axis.
        aligned: of :py:func:`monai_labelfx.ops.roi_align.roi_align`.
        threshold: a bin of which so much is covered counts as 1, others as 0; ``None`` keeps the share.

    Returns:
        (R, \\*bins) in the dtype of ``rois``, 0 to 1.
    """
    rows = [(image == number).nonzero()[:, 0] for number in range(len(masks))]
    found = [
        roi_align(one[:, None].to(rois.dtype), rois[own], matches[own], bins, aligned=aligned)
        for one, own in zip(masks, rows, strict=True)
    ]
    shares = torch.cat(found)[torch.cat(rows).argsort(), 0]
    return shares if threshold is None else (shares >= threshold - _ROUNDING).to(shares.dtype)


def coarse_masks(masks: torch.Tensor, stride: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """(N, \\*shape) float32: the share of each block of ``stride`` voxels that masks (N, \\*spatial) bool cover.

    What of a block is beyond the image counts as outside of the mask.

    Example:
        >>> coarse_masks(torch.tensor([[True, True, True, False, True]]), (2,), (3,)).tolist()
        [[1.0, 0.5, 0.5]]
    """
    if not len(masks):
        return torch.zeros(0, *shape, device=masks.device)
    together = max(1, _MOST_NUMBERS // max(1, masks[0].numel()))
    return torch.cat([_shares(part, stride, shape) for part in masks.split(together)])


def _shares(masks: torch.Tensor, stride: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    shares = masks.float()
    for axis, (step, count) in enumerate(zip(stride, shape, strict=True), start=1):
        beyond = list(shares.shape)
        beyond[axis] = count * step - beyond[axis]
        shares = torch.cat([shares, shares.new_zeros(beyond)], dim=axis).unflatten(axis, (count, step)).mean(axis + 1)
    return shares
