# SPDX-License-Identifier: Apache-2.0
"""Projection heads of patch-wise deep metric learning: embeddings of a few patches of each tapped feature map."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.utils import ensure_tuple_rep

from monai_labelfx.networks._any_size import check_counts

_EPS = 1e-7
_INIT_STD = 0.01


class PatchProjectionHeads(torch.nn.Module):
    r"""One projection head per tapped layer, run at the sampled patches only (Jung et al. 2022, figure 2, P1 and P2).

    A head is a convolution of side 1 to ``features``, ReLU, average pooling over blocks of :math:`2^{pool}` voxels a
    side, and a convolution of side 1; its output is divided by its L2 norm. Nothing in it mixes voxels but the pooling,
    so here the voxels of the patches are gathered first: the numbers are those of projecting the whole map and then
    sampling it, for 1/128 of the work at 128 patches of a crop of 128 x 128.

    Args:
        spatial_dims: number of spatial axes D.
        in_channels: channels of each tapped layer. Default (32, 32), the taps of the paper's generator.
        features: length C of the embeddings. Default 128, the authors' code: 20,736 parameters for 32 channels.
        pool: blocks are ``2 ** pool`` voxels a side, one number or one per axis. Default 0, single voxels, as for the
            paper's AAPM data; 1 for its temporal bones.

    Attributes:
        stride: side of the blocks per axis, for the positions to draw.

    Raises:
        ValueError: for a number out of its range; and in forward for taps or positions of another number or shape.

    Notes:
        Weights start normal with a standard deviation of 0.01 and biases at 0, as in the authors' code. That draws
        positions for each layer, the same in all images; here the layers share those of an image. An embedding whose
        norm is below 1e-7 is 0 and has no gradient: while biases are 0 that is one of a patch whose features are all 0,
        and nothing can be learnt from its direction. The authors add 1e-7 to the norm instead, and divide twice, which
        is the same for all others, but the gradient of their norm is NaN at 0. The heads compute in the type of their
        weights whatever autocast does: early embeddings of 1e-5 would leave float16.

    Example:
        >>> import torch
        >>> heads = PatchProjectionHeads(2, in_channels=(32, 16), pool=1)
        >>> taps = [torch.rand(3, 32, 8, 8), torch.rand(3, 16, 8, 8)]
        >>> positions = torch.tensor([[0, 0], [2, 6]]).expand(3, -1, -1)
        >>> [tuple(embeddings.shape) for embeddings in heads(taps, positions)]
        [(3, 2, 128), (3, 2, 128)]
    """

    offsets: torch.Tensor

    def __init__(
        self,
        spatial_dims: int,
        in_channels: Sequence[int] = (32, 32),
        features: int = 128,
        *,
        pool: int | Sequence[int] = 0,
    ) -> None:
        super().__init__()
        in_channels = tuple(in_channels)
        check_counts(spatial_dims=spatial_dims, features=features, layers=len(in_channels))
        for channels in in_channels:
            check_counts(in_channels=channels)
        powers = ensure_tuple_rep(pool, spatial_dims)
        if min(powers) < 0:
            raise ValueError(f"pool must be 0 or more, one number or one per axis, got {pool}.")
        self.spatial_dims, self.in_channels = spatial_dims, in_channels
        self.stride = tuple(2**power for power in powers)
        steps = torch.tensor(list(itertools.product(*map(range, self.stride))))
        self.register_buffer("offsets", steps, persistent=False)
        self.first = torch.nn.ModuleList(torch.nn.Linear(channels, features) for channels in in_channels)
        self.second = torch.nn.ModuleList(torch.nn.Linear(features, features) for _ in in_channels)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.zeros_(parameter)
            else:
                torch.nn.init.normal_(parameter, std=_INIT_STD)

    def forward(self, taps: Sequence[torch.Tensor], positions: torch.Tensor) -> list[torch.Tensor]:
        r"""Embeddings of the patches, one tensor (B, K, features) per layer, in the type of the weights.

        Args:
            taps: feature maps (B, in_channels, \*spatial), all on one grid.
            positions: (B, K, D) int64 of :func:`monai_labelfx.ops.patch_positions`, voxels of that grid; with pooling
                the first voxels of blocks, which must lie inside the map. Their values are not checked.
        """
        self._check(taps, positions)
        found, dtype = [], next(self.parameters()).dtype
        with torch.autocast(positions.device.type, enabled=False):
            for tap, first, second in zip(taps, self.first, self.second, strict=True):
                voxels = self._gather(tap.as_subclass(torch.Tensor), positions).to(dtype)
                hidden = F.relu(first(voxels)).mean(dim=2)
                found.append(_normalised(second(hidden)))
        return found

    def _gather(self, tap: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The voxels of the patches, (B, K, voxels of a patch, channels)."""
        batch, channels, *size = tap.shape
        rows = torch.arange(batch, device=positions.device)[:, None, None]
        place = positions[:, :, None] + self.offsets
        for axis, n in enumerate(size):
            rows = rows * n + place[..., axis]
        # Not a gather or an index: their gradients add up in an order that a GPU does not promise.
        return F.embedding(rows, tap.movedim(1, -1).reshape(batch * math.prod(size), channels))

    def _check(self, taps: Sequence[torch.Tensor], positions: torch.Tensor) -> None:
        if len(taps) != len(self.in_channels):
            raise ValueError(f"taps must be the {len(self.in_channels)} layers of in_channels, got {len(taps)}.")
        for tap, channels in zip(taps, self.in_channels, strict=True):
            if tap.ndim != self.spatial_dims + 2 or tap.shape[1] != channels or tap.shape[2:] != taps[0].shape[2:]:
                raise ValueError(
                    f"taps must be (B, C, *spatial) with {self.in_channels} channels and {self.spatial_dims} spatial "
                    f"axes of the same size, got {[tuple(each.shape) for each in taps]}."
                )
        batch = taps[0].shape[0]
        if positions.ndim != 3 or positions.shape[0] != batch or positions.shape[2] != self.spatial_dims:
            raise ValueError(f"positions must be ({batch}, K, {self.spatial_dims}), got {tuple(positions.shape)}.")


def _normalised(x: torch.Tensor) -> torch.Tensor:
    """Rows of length one; rows too short to have a direction become 0."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.where(norm > _EPS, x / norm.clamp(min=_EPS), 0)
