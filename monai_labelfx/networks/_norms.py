# SPDX-License-Identifier: Apache-2.0
"""Normalisation layers of the detectors' backbones, chosen by name."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Norm
from monai.networks.layers.utils import get_norm_layer

_GROUPS = 32
# A group of two values, two channels of a map of one voxel, is normalised to -1 and 1, which has no gradient.
_CHANNELS_PER_GROUP = 8


class FrozenBatchNorm(torch.nn.Module):
    """Batch norm whose statistics, scale and shift are constants: ``weight (x - mean) / sqrt(var + eps) + bias``.

    All four are buffers with the names of PyTorch's batch norm, so state dicts of either load into the other. With
    batches of one to four images there is nothing to estimate statistics from: a pretrained network keeps its own.

    Args:
        num_features: channels C of the input (B, C, *spatial), of any rank.
        eps: added to the variance. Torchvision's detectors with the first COCO weights were trained with 0.

    Example:
        >>> import torch
        >>> norm = FrozenBatchNorm(4)
        >>> sorted(norm.state_dict()), list(norm.parameters())
        (['bias', 'running_mean', 'running_var', 'weight'], [])
        >>> norm(torch.ones(1, 4, 2, 2, 2)).shape
        torch.Size([1, 4, 2, 2, 2])
    """

    weight: torch.Tensor
    bias: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, num_features: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((num_features,), value))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


def make_norm(norm: tuple | str | None, spatial_dims: int, channels: int) -> torch.nn.Module:
    """The layer that ``norm`` names, for ``channels`` channels: a name, or a pair of a name and its arguments.

    ``"frozen_batch"`` is :py:class:`FrozenBatchNorm`; ``"group"`` has 32 groups (Wu and He 2018), or fewer where these
    do not divide the channels or would leave a group less than 8 of them (so 8 groups of 64 channels, where the paper
    has 32: groups of few channels do not learn on maps of one voxel); ``"instance"`` has a scale and a shift; None is
    the identity; every other name is MONAI's.

    Raises:
        ValueError: for a name that nobody knows, or groups that do not divide the channels.

    Example:
        >>> [make_norm("group", 3, channels).num_groups for channels in (256, 64, 48, 8)]
        [32, 8, 4, 1]
    """
    if norm is None:
        return torch.nn.Identity()
    name, options = (norm, {}) if isinstance(norm, str) else (norm[0], dict(norm[1]))
    name = str(name).lower()
    if name != "frozen_batch" and name.upper() not in Norm.names:
        raise ValueError(
            f"norm must be 'batch', 'frozen_batch', 'group', 'instance', None or a norm of MONAI, got {norm!r}."
        )
    if name == "frozen_batch":
        return FrozenBatchNorm(channels, **options)
    if name == "group":
        groups = options.setdefault("num_groups", _groups(channels))
        if channels % groups:
            raise ValueError(f"norm has num_groups={groups}, which does not divide the {channels} channels of a layer.")
    if name == "instance":
        options.setdefault("affine", True)
    return get_norm_layer((name, options), spatial_dims, channels)


def _groups(channels: int) -> int:
    groups = math.gcd(_GROUPS, channels)
    while groups > 1 and channels // groups < _CHANNELS_PER_GROUP:
        groups //= 2
    return groups
