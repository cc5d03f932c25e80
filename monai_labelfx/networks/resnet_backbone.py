# SPDX-License-Identifier: Apache-2.0
"""ResNet and ResNeXt without their classifier, for any number of spatial dimensions, with a stride per axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv

from monai_labelfx.networks._any_size import check_counts, per_axis
from monai_labelfx.networks._backbone import Backbone, MaxPool, he_init, total_strides
from monai_labelfx.networks._norms import make_norm

# depth -> bottleneck blocks or not, blocks per stage (He et al. 2016, table 1; 10 is a small one for tests)
_LAYOUT = {
    10: (False, (1, 1, 1, 1)),
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
    152: (True, (3, 8, 36, 3)),
}
_STAGES = 4
_REFERENCE_WIDTH = 64  # the width at which width_per_group is counted (Xie et al. 2017, table 1)

_Conv = Callable[..., torch.nn.Module]
_Norm = Callable[[int], torch.nn.Module]


class ResNetBackbone(Backbone):
    r"""Residual network, also with grouped convolutions (ResNeXt), that returns the maps C2, C3, C4 and C5.

    After [1]_ and, for ResNeXt, [2]_.
    The stem is a convolution of 7 and max pooling of 3, each of stride 2; four stages follow, of strides 1, 2, 2 and 2.
    Depths 18 and 34 have basic blocks (3, 3), the deeper ones bottlenecks (1, 3, 1) whose stride is in the middle; the
    inner width of a bottleneck is ``floor(planes width_per_group / 64) groups``, where ``planes`` is ``features`` times
    1, 2, 4, 8. ResNeXt-50 32x4d is ``depth=50, groups=32, width_per_group=4``; ResNeXt-101 64x4d is ``depth=101,
    groups=64, width_per_group=4``. Parameters have torchvision's names, see :py:func:`load_torchvision_weights`.

    Args:
        spatial_dims: number of spatial dimensions.
        in_channels: channels of the image.
        depth: 18, 34, 50, 101 or 152; 10 is 18 with one block per stage.
        groups: groups of the middle convolution of a bottleneck.
        width_per_group: channels of a group in the first stage, at ``features=64``.
        features: channels of the stem, 64; less makes a small network.
        stem_stride: stride of the first convolution, one number or one per axis.
        pool_stride: stride of the pooling. Axes of stride 1 are not pooled.
        stage_strides: stride of each stage: four entries, each one number or one per axis. Scans with thick slices keep
            their resolution along z with 1 there, as in ``stem_stride=(2, 2, 1), pool_stride=(2, 2, 1)``.
        stem_kernel: window of the first convolution, odd, one number or one per axis.
        stage_kernels: window of the other convolutions of each stage, odd, as ``stage_strides``.
        norm: ``"group"`` (32 groups, fewer in layers of less than 256 channels), as detectors are trained on one to
            four images at a time; ``"frozen_batch"`` for pretrained weights; ``"batch"``, ``"instance"``, or MONAI's
            pair of a name and arguments.
        zero_init: start the last norm of each block at 0, so that a new block passes its input on [3]_. Needs a norm
            with a trained scale.
        frozen_stages: how much is not trained: -1 nothing, 0 the stem, k the stem and the first k stages.

    Attributes:
        out_channels: channels of the four maps: ``features`` times 1, 2, 4, 8, and four times that for bottlenecks.
        strides: total stride of each map per axis; (4, 8, 16, 32) by default. A map of an axis of n voxels has exactly
            ``ceil(n / stride)``.

    Shape:
        - input: (B, in_channels, \*spatial), any size from one voxel on.
        - output: list of four, (B, out_channels[i], \*ceil(spatial / strides[i])).

    Raises:
        ValueError: for another depth, groups or widths on basic blocks, a ``width_per_group`` that leaves no channel,
            even kernels, or strides that are not one per stage or axis; in forward, for an image of another rank or
            number of channels.

    Notes:
        Convolutions start as in He et al. 2015 (fan out). The published networks have batch norm; group norm is the
        choice of Wu and He 2018 for detectors that are trained from scratch; theirs has 32 groups also in narrow
        layers, ``norm=("group", {"num_groups": 32})``.

    Example:
        >>> import torch
        >>> net = ResNetBackbone(3, 1, depth=10, features=8, stem_stride=(2, 2, 1))
        >>> [tuple(c.shape) for c in net(torch.rand(1, 1, 33, 32, 17))]
        [(1, 8, 9, 8, 9), (1, 16, 5, 4, 5), (1, 32, 3, 2, 3), (1, 64, 2, 1, 2)]
        >>> net.strides[-1], net.out_channels
        ((32, 32, 16), [8, 16, 32, 64])

    References:
        .. [1] He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
        .. [2] Xie et al., "Aggregated Residual Transformations for Deep Neural Networks", CVPR 2017.
        .. [3] Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017, section 5.1.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        *,
        depth: int = 50,
        groups: int = 1,
        width_per_group: int = 64,
        features: int = 64,
        stem_stride: int | Sequence[int] = 2,
        pool_stride: int | Sequence[int] = 2,
        stage_strides: Sequence[int | Sequence[int]] = (1, 2, 2, 2),
        stem_kernel: int | Sequence[int] = 7,
        stage_kernels: Sequence[int | Sequence[int]] = (3, 3, 3, 3),
        norm: tuple | str | None = "group",
        zero_init: bool = False,
        frozen_stages: int = -1,
    ) -> None:
        super().__init__(spatial_dims, in_channels)
        check_counts(groups=groups, width_per_group=width_per_group, features=features)
        if depth not in _LAYOUT:
            raise ValueError(f"depth must be one of {tuple(_LAYOUT)}, got {depth}.")
        bottleneck, blocks = _LAYOUT[depth]
        if not bottleneck and (groups != 1 or width_per_group != _REFERENCE_WIDTH):
            raise ValueError(
                f"groups={groups} and width_per_group={width_per_group} need bottlenecks, of depth 50, 101 or 152; "
                f"depth={depth} has basic blocks, which take groups=1 and width_per_group={_REFERENCE_WIDTH}."
            )
        stem = [per_axis("stem_stride", stem_stride, spatial_dims), per_axis("pool_stride", pool_stride, spatial_dims)]
        steps = _per_stage("stage_strides", stage_strides, spatial_dims)
        first_kernel = per_axis("stem_kernel", stem_kernel, spatial_dims)
        kernels = _per_stage("stage_kernels", stage_kernels, spatial_dims)
        if any(k % 2 == 0 for kernel in (first_kernel, *kernels) for k in kernel):
            raise ValueError(f"stem_kernel and stage_kernels must be odd, got {stem_kernel} and {stage_kernels}.")

        def conv(inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int], groups: int = 1):
            padding = tuple(k // 2 for k in kernel)  # an odd window and half of it at both ends: ceil(n / stride)
            return Conv[Conv.CONV, spatial_dims](inputs, outputs, kernel, stride, padding, groups=groups, bias=False)

        def norm_of(channels: int) -> torch.nn.Module:
            return make_norm(norm, spatial_dims, channels)

        # Padded apart: oneDNN's backward pass of a 3-D convolution of side 7 and stride 2 that pads by itself writes
        # beyond its memory where the first axis has five voxels (PyTorch 2.13 on CPUs with AVX-512).
        self.stem_padding = [side for k in reversed(first_kernel) for side in (k // 2, k // 2)]
        self.conv1 = Conv[Conv.CONV, spatial_dims](in_channels, features, first_kernel, stem[0], 0, bias=False)
        self.bn1 = norm_of(features)
        self.relu = torch.nn.ReLU(inplace=True)
        self.maxpool = MaxPool(tuple(3 if s > 1 else 1 for s in stem[1]), stem[1])
        self.out_channels = []
        inputs = features
        for stage in range(_STAGES):
            planes = features * 2**stage
            width = planes * width_per_group // _REFERENCE_WIDTH * groups
            outputs = planes * (4 if bottleneck else 1)
            if width < 1:
                raise ValueError(
                    f"width_per_group={width_per_group} at features={features} leaves a group less than one channel: "
                    f"it must be {-(-_REFERENCE_WIDTH // features)} or more."
                )
            layer: list[torch.nn.Module] = []
            for index in range(blocks[stage]):
                shape = kernels[stage], steps[stage] if index == 0 else (1,) * spatial_dims
                if bottleneck:
                    layer.append(_Bottleneck(conv, norm_of, inputs, width, outputs, groups, *shape))
                else:
                    layer.append(_Basic(conv, norm_of, inputs, outputs, *shape))
                inputs = outputs
            setattr(self, f"layer{stage + 1}", torch.nn.Sequential(*layer))
            self.out_channels.append(outputs)
        self.strides = total_strides([*stem, *steps])[2:]
        he_init(self)
        if zero_init:
            _zero_last_norms(self)
        self.freeze(frozen_stages)

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The maps C2, C3, C4 and C5 of a plain tensor."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(F.pad(x, self.stem_padding)))))
        maps = []
        for stage in range(_STAGES):
            x = self.get_submodule(f"layer{stage + 1}")(x)
            maps.append(x)
        return maps

    def parts(self) -> list[list[torch.nn.Module]]:
        """The layers of the stem, then those of the four stages."""
        stages = [self.get_submodule(f"layer{stage + 1}") for stage in range(_STAGES)]
        return [[self.conv1, self.bn1], *([stage] for stage in stages)]


class _Basic(torch.nn.Module):
    """Two convolutions with the stride on the first, added to the input."""

    def __init__(
        self, conv: _Conv, norm: _Norm, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int]
    ) -> None:
        super().__init__()
        self.conv1 = conv(inputs, outputs, kernel, stride)
        self.bn1 = norm(outputs)
        self.relu = torch.nn.ReLU(inplace=True)
        self.conv2 = conv(outputs, outputs, kernel, (1,) * len(stride))
        self.bn2 = norm(outputs)
        self.downsample = _projection(conv, norm, inputs, outputs, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class _Bottleneck(torch.nn.Module):
    """Narrow, convolve with the stride, widen, and add to the input."""

    def __init__(
        self,
        conv: _Conv,
        norm: _Norm,
        inputs: int,
        width: int,
        outputs: int,
        groups: int,
        kernel: Sequence[int],
        stride: Sequence[int],
    ) -> None:
        super().__init__()
        one = (1,) * len(stride)
        self.conv1 = conv(inputs, width, one, one)
        self.bn1 = norm(width)
        self.conv2 = conv(width, width, kernel, stride, groups)
        self.bn2 = norm(width)
        self.conv3 = conv(width, outputs, one, one)
        self.bn3 = norm(outputs)
        self.relu = torch.nn.ReLU(inplace=True)
        self.downsample = _projection(conv, norm, inputs, outputs, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


def _projection(
    conv: _Conv, norm: _Norm, inputs: int, outputs: int, stride: Sequence[int]
) -> torch.nn.Sequential | None:
    """The shortcut's convolution where the block changes the size or the channels (option B of the paper)."""
    if inputs == outputs and all(s == 1 for s in stride):
        return None
    return torch.nn.Sequential(conv(inputs, outputs, (1,) * len(stride), stride), norm(outputs))


def _per_stage(name: str, value: Sequence[int | Sequence[int]], spatial_dims: int) -> list[tuple[int, ...]]:
    if not isinstance(value, Sequence) or len(value) != _STAGES:
        raise ValueError(f"{name} must have {_STAGES} entries, one per stage, got {value!r}.")
    return [per_axis(f"an entry of {name}", entry, spatial_dims) for entry in value]


def _zero_last_norms(network: torch.nn.Module) -> None:
    for block in network.modules():
        if isinstance(block, (_Basic, _Bottleneck)):
            weight = (block.bn3 if isinstance(block, _Bottleneck) else block.bn2)._parameters.get("weight")
            if weight is None:
                raise ValueError("zero_init needs a norm with a trained scale, such as norm='group' or norm='batch'.")
            torch.nn.init.zeros_(weight)
