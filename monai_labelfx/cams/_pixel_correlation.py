# SPDX-License-Identifier: Apache-2.0
"""Pixel correlation module: each voxel's scores become a mean of those of the voxels that look like it."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint


def correlate(scores: torch.Tensor, embeddings: torch.Tensor, *, mebibytes: float = 256.0) -> torch.Tensor:
    r"""Mean of the scores of all voxels, weighted by their likeness (Wang et al. 2020, equations 5 and 6).

    .. math::
        y_q = \frac{\sum_k \mathrm{ReLU}(e_k^\top e_q)\, x_k}{\sum_k \mathrm{ReLU}(e_k^\top e_q)}

    for unit vectors e, over the whole map. The N x N likenesses are made in blocks of some q, each of them thrown away
    and, where there are several, made again in the backward pass, so that memory is bounded whatever N is: a map of
    24 x 24 x 24 would need 764 MB for each image.

    Args:
        scores: x (B, K, \*map).
        embeddings: e (B, E, \*map), of any length, brought to length 1 here.
        mebibytes: most memory for the likenesses of a block, in which there is at least one voxel of each image.

    Returns:
        y (B, K, \*map), in float32, or float64 for float64, whatever autocast does. The result does not depend on the
        blocks, beyond the rounding of the sums.

    Example:
        >>> embeddings = torch.tensor([[[1.0, 2.0, 0.0], [0.0, 0.0, 1.0]]])  # the first two look alike
        >>> correlate(torch.tensor([[[1.0, 3.0, 7.0]]]), embeddings).round(decimals=3).tolist()
        [[[2.0, 2.0, 7.0]]]
    """
    with torch.autocast(scores.device.type, enabled=False):
        kind = torch.promote_types(torch.promote_types(scores.dtype, embeddings.dtype), torch.float32)
        unit = normalize(embeddings.to(kind).flatten(2), dim=1, eps=1e-5)
        values = scores.to(kind).flatten(2)
        values = torch.cat([values, torch.ones_like(values[:, :1])], dim=1)  # the last row sums the weights
        voxels = values.shape[2]
        rows = max(1, int(mebibytes * 2**20 / (values.element_size() * len(values) * max(voxels, 1))))
        blocks = []
        for at in unit.split(min(rows, max(voxels, 1)), dim=2):
            if rows < voxels and torch.is_grad_enabled():
                blocks.append(checkpoint(_block, values, unit, at, use_reentrant=False, preserve_rng_state=False))
            else:
                blocks.append(_block(values, unit, at))
        sums = torch.cat(blocks, dim=2)
        return (sums[:, :-1] / (sums[:, -1:] + 1e-5)).reshape(scores.shape)


def _block(values: torch.Tensor, unit: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """The sums (B, K + 1, n) of all voxels, as n of them weigh them."""
    return values @ (unit.transpose(1, 2) @ at).relu()


class PixelCorrelation(torch.nn.Module):
    """Embed features and image by convolutions of 1, and refine maps of scores with the likeness of the embeddings.

    No gradient goes to the features, the image or the scores: the module alone learns, what belongs together.

    Args:
        spatial_dims: number of spatial dimensions.
        in_channels: channels of the features.
        image_channels: channels of the image.
        width: channels that the features are brought to, and those of the embedding. Default 192 (64 of stage four and
            128 of stage five in the released code).
        mebibytes: most memory for a block of likenesses, see :py:func:`correlate`.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, image_channels: int, *, width: int = 192, mebibytes: float = 256.0
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"pixel_width must be 1 or more, got {width}.")
        if not 0 < mebibytes < math.inf:
            raise ValueError(f"pixel_mebibytes must be above 0, got {mebibytes}.")
        # linear layers on the rows of all voxels are convolutions of 1 for any number of axes
        self.reduce = torch.nn.Linear(in_channels, width, bias=False)
        self.embed = torch.nn.Linear(width + image_channels, width, bias=False)
        self.spatial_dims = spatial_dims
        self.mebibytes = mebibytes

    def forward(self, scores: torch.Tensor, features: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Refine scores (B, K, \\*map) with features (B, F, \\*map) and the image (B, C, \\*map) at their size."""
        rows = self.reduce(features.detach().movedim(1, -1)).relu()
        joined = torch.cat([rows, image.detach().movedim(1, -1).to(rows)], dim=-1)
        return correlate(scores.detach(), self.embed(joined).movedim(-1, 1), mebibytes=self.mebibytes)
