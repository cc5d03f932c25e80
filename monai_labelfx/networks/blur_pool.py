# SPDX-License-Identifier: Apache-2.0
"""Anti-aliased max pooling: the pooling of N2V2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Pool
from monai.utils import ensure_tuple_rep


class MaxBlurPool(torch.nn.Module):
    """Max pooling of stride one, then a triangular blur, then subsampling (Hoeck et al. 2022, section 3).

    For a stride of 2 the blur of that axis is ``[1, 2, 1] / 4``, the kernel of N2V2; for a stride s it is the triangle
    of 2 s - 1 taps, and an axis of stride 1 stays as it is. The triangle is two box averages in a row, so the module
    has neither weights nor a number of channels. Borders repeat the outermost voxel, so a constant stays constant.

    Args:
        spatial_dims: number of spatial dimensions.
        strides: stride per axis, or one for all; also the side of the max window.

    Raises:
        ValueError: when ``strides`` has not one entry per axis, or one below 1.

    Notes:
        The max windows and the blur are placed so that the weights of an output voxel lie symmetrically about the
        block of ``strides`` voxels which nearest-neighbour upsampling fills from it.

    Example:
        >>> import torch
        >>> MaxBlurPool(3, strides=(2, 2, 1))(torch.rand(1, 8, 6, 4, 3)).shape
        torch.Size([1, 8, 3, 2, 3])
    """

    def __init__(self, spatial_dims: int, strides: Sequence[int] | int = 2) -> None:
        super().__init__()
        strides = ensure_tuple_rep(strides, spatial_dims)
        if any(s < 1 for s in strides):
            raise ValueError(f"strides must be 1 or more on every axis, got {strides}.")
        self.pad = [side for s in reversed(strides) for side in (s - 1, s - 1)]
        self.max = Pool[Pool.MAX, spatial_dims](kernel_size=strides, stride=1)
        self.box = Pool[Pool.AVG, spatial_dims](kernel_size=strides, stride=1)
        self.box_and_subsample = Pool[Pool.AVG, spatial_dims](kernel_size=strides, stride=strides)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pool (B, C, *spatial) to (B, C, *spatial / strides)."""
        return self.box_and_subsample(self.box(self.max(F.pad(x, self.pad, mode="replicate"))))
