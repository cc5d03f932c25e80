# SPDX-License-Identifier: Apache-2.0
"""Darknet-53, the trunk of YOLOv3, for any number of spatial dimensions, with a stride per axis."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv

from monai_labelfx.networks._any_size import check_counts, per_axis
from monai_labelfx.networks._backbone import Backbone, he_init, total_strides
from monai_labelfx.networks._norms import make_norm

_BLOCKS = (1, 2, 8, 8, 4)  # residual blocks of each stage (Redmon and Farhadi 2018, table 1)
_MAPS = 3
_SLOPE = 0.1  # of the leaky ReLU below zero, in the authors' code


class Darknet53Backbone(Backbone):
    r"""Darknet-53 without its classifier: the maps of the last three stages, of strides 8, 16 and 32.

    After [1]_.
    A convolution of 3, then five stages of 1, 2, 8, 8 and 4 residual blocks, each stage led by a convolution of 3 and
    stride 2 that doubles the channels. A block narrows to half the channels by a convolution of 1, comes back by one of
    3, and adds its input. Every convolution is followed by a norm and a leaky ReLU of slope 0.1, the block's sum by
    nothing.

    Args:
        spatial_dims: number of spatial dimensions.
        in_channels: channels of the image.
        features: channels of the first convolution, 32; the stages have 2, 4, 8, 16, 32 times that.
        stage_strides: stride of each stage: five entries, each one number or one per axis, as ``(2, 2, 1)``.
        norm: ``"group"`` (up to 32 groups), for one to four images at a time; ``"batch"``, the published network;
            ``"frozen_batch"``, ``"instance"``, or MONAI's pair of a name and arguments.
        frozen_stages: how much is not trained: -1 nothing, 0 the first convolution, k that and the first k stages.

    Attributes:
        out_channels: channels of the three maps, 256, 512 and 1024.
        strides: total stride of each map per axis. A map of an axis of n voxels has exactly ``ceil(n / stride)``.

    Shape:
        - input: (B, in_channels, \*spatial), any size from one voxel on.
        - output: list of three, (B, out_channels[i], \*ceil(spatial / strides[i])).

    Raises:
        ValueError: for counts below 1, or strides that are not one per stage or axis; in forward, for an image of
            another rank or number of channels.

    Example:
        >>> import torch
        >>> net = Darknet53Backbone(3, 1, features=4, stage_strides=[(2, 2, 1), 2, 2, 2, 2])
        >>> [tuple(c.shape) for c in net(torch.rand(1, 1, 33, 32, 17))]
        [(1, 32, 5, 4, 5), (1, 64, 3, 2, 3), (1, 128, 2, 1, 2)]

    References:
        .. [1] Redmon and Farhadi, "YOLOv3: An Incremental Improvement", 2018, section 2.4.
    """

    first_level = 3

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        *,
        features: int = 32,
        stage_strides: Sequence[int | Sequence[int]] = (2, 2, 2, 2, 2),
        norm: tuple | str | None = "group",
        frozen_stages: int = -1,
    ) -> None:
        super().__init__(spatial_dims, in_channels)
        check_counts(features=features)
        if not isinstance(stage_strides, Sequence) or len(stage_strides) != len(_BLOCKS):
            raise ValueError(f"stage_strides must have {len(_BLOCKS)} entries, one per stage, got {stage_strides!r}.")
        steps = [per_axis("an entry of stage_strides", entry, spatial_dims) for entry in stage_strides]

        def unit(inputs: int, outputs: int, kernel: int, stride: Sequence[int] | int = 1) -> torch.nn.Sequential:
            conv = Conv[Conv.CONV, spatial_dims](inputs, outputs, kernel, stride, kernel // 2, bias=norm is None)
            norms = [] if norm is None else [make_norm(norm, spatial_dims, outputs)]
            return torch.nn.Sequential(conv, *norms, torch.nn.LeakyReLU(_SLOPE, inplace=True))

        self.stem = unit(in_channels, features, 3)
        self.stages = torch.nn.ModuleList()
        inputs = features
        for count, step in zip(_BLOCKS, steps, strict=True):
            blocks = [_Residual(unit(2 * inputs, inputs, 1), unit(inputs, 2 * inputs, 3)) for _ in range(count)]
            self.stages.append(torch.nn.Sequential(unit(inputs, 2 * inputs, 3, step), *blocks))
            inputs *= 2
        self.out_channels = [features * 2**stage for stage in range(1, len(_BLOCKS) + 1)][-_MAPS:]
        self.strides = total_strides(steps)[-_MAPS:]
        he_init(self)
        self.freeze(frozen_stages)

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The maps of the last three stages of a plain tensor."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[-_MAPS:]

    def parts(self) -> list[list[torch.nn.Module]]:
        """The first convolution, then the five stages."""
        return [[self.stem], *([stage] for stage in self.stages)]


class _Residual(torch.nn.Module):
    """Narrow, come back, and add to the input."""

    def __init__(self, narrow: torch.nn.Module, widen: torch.nn.Module) -> None:
        super().__init__()
        self.narrow = narrow
        self.widen = widen

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.widen(self.narrow(x))
