# SPDX-License-Identifier: Apache-2.0
"""Wide ResNet-38 without its classifier, dilated, for any number of spatial dimensions, with a stride per axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from monai.networks.layers.factories import Conv, Dropout

from monai_labelfx.networks._any_size import per_axis
from monai_labelfx.networks._backbone import Backbone, he_init, total_strides
from monai_labelfx.networks._norms import make_norm

_STAGES = 6  # b2 to b7
_STEM = 64
# stage -> blocks, channels inside and channels out (Wu et al. 2019, table 1, model A)
_BASIC = {2: (3, 128, 128), 3: (3, 256, 256), 4: (6, 512, 512), 5: (3, 512, 1024)}
_BOTTLENECKS = {6: 2048, 7: 4096}
_MULTIPLE = 8  # channels of narrow networks: rounded to what group norm and tensor cores want

_Conv = Callable[..., torch.nn.Module]
_Norm = Callable[[int], torch.nn.Module]


class WideResNet38Backbone(Backbone):
    r"""Wide ResNet-38 with pre-activation that returns four maps, the last three of one stride.

    After [1]_, in the dilated form of weakly supervised segmentation [2]_.
    conv1a has 64 channels and stride 1. Residual stages of two convolutions of 3 follow: b2 (3 blocks, 128 channels),
    b3 (3, 256), b4 (6, 512), each of stride 2, and b5 (3 blocks, 512 inside, 1024 out); then two single bottlenecks
    (1, 3, 1) with dropout of whole channels before the second and the third convolution: b6 (512, 1024, 2048; rate 0.3)
    and b7 (1024, 2048, 4096; rate 0.5); norm and ReLU at the end. A block is ``x + branch(relu(norm(x)))``; the first
    of a stage replaces x by a convolution of 1 of ``relu(norm(x))``. The maps are the ``relu(norm(x))`` that b4, b5 and
    b6 begin with, and the last: 256, 512, 1024 and 4096 channels. The last three together are the 5632 that [2]_ fuses;
    with a linear layer to two classes there are 105.09 million parameters. Parameters have the names of the published
    PyTorch files, see :py:func:`load_resnet38_weights`.

    Args:
        spatial_dims: number of spatial dimensions.
        in_channels: channels of the image.
        width: factor of all channels, to the next multiple of 8; 1/2, 1/4 and 1/8 leave 26.3, 6.6 and 1.65 million
            parameters in 2-D.
        stage_strides: stride of the stages b2 to b7: six entries, each one number or one per axis. The default has the
            output stride 8; ``(2, 2, 2, 2, 1, 1)`` with ``dilations=(1, 1, 1, 1, 2, 2)`` has 16, and
            ``(2, 2, 1, 1, 1, 1)`` with ``(1, 1, 2, 4, 8, 4)`` has 4. Thick slices keep theirs with ``(2, 2, 1)``.
        dilations: dilation of the windows of 3 of the stages b2 to b7, as ``stage_strides``. The first window of b2 to
            b5 has the dilation of the stage before. ``(1, 1, 1, 2, 4, 2)`` is the classifier of [2]_; 4 at the end is
            its segmentation network.
        norm: ``"batch"``; ``"frozen_batch"`` for pretrained weights, as in [2]_, whose scales are not trained either;
            ``"group"`` for training on few images at a time; or MONAI's pair of a name and arguments.
        dropout: rates of b6 and b7.
        frozen_stages: how much is not trained: -1 nothing, 0 conv1a (as in [2]_), k conv1a and the first k stages.

    Attributes:
        out_channels: channels of the four maps, ``width`` times 256, 512, 1024, 4096.
        strides: total stride of each map per axis; 4, 8, 8, 8 by default. A map of an axis of n voxels has exactly
            ``ceil(n / stride)``.

    Shape:
        - input: (B, in_channels, \*spatial), any size from one voxel on.
        - output: list of four, (B, out_channels[i], \*ceil(spatial / strides[i])).

    Raises:
        ValueError: for a width that is not above 0, rates outside 0 to 1, or strides and dilations that are not one per
            stage or axis; in forward, for an image of another rank or number of channels.

    Notes:
        Convolutions start as in He et al. 2015 (fan out). ``"frozen_batch"`` without pretrained weights normalises
        nothing. Batch norm in training needs more than one voxel per channel, in the batch or the smallest map.

    Example:
        >>> import torch
        >>> net = WideResNet38Backbone(3, 1, width=1 / 16, stage_strides=(2, (2, 2, 1), 2, 1, 1, 1)).eval()
        >>> [tuple(m.shape) for m in net(torch.rand(1, 1, 33, 16, 9))]
        [(1, 16, 9, 4, 5), (1, 32, 5, 2, 3), (1, 64, 5, 2, 3), (1, 256, 5, 2, 3)]
        >>> net.strides[-1]
        (8, 8, 4)

    References:
        .. [1] Wu, Shen and van den Hengel, "Wider or Deeper: Revisiting the ResNet Model for Visual Recognition",
            Pattern Recognition 90, 2019.
        .. [2] Li et al., "Online Easy Example Mining for Weakly-supervised Gland Segmentation from Histology Images",
            MICCAI 2022.
    """

    __jit_ignored_attributes__ = ("out_channels", "strides")  # lists that TorchScript cannot read from annotations

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        *,
        width: float = 1.0,
        stage_strides: Sequence[int | Sequence[int]] = (2, 2, 2, 1, 1, 1),
        dilations: Sequence[int | Sequence[int]] = (1, 1, 1, 2, 4, 2),
        norm: tuple | str | None = "batch",
        dropout: tuple[float, float] = (0.3, 0.5),
        frozen_stages: int = -1,
    ) -> None:
        super().__init__(spatial_dims, in_channels)
        if not 0 < width < math.inf:
            raise ValueError(f"width must be a number above 0, got {width}.")
        if len(dropout) != len(_BOTTLENECKS) or any(not 0 <= rate < 1 for rate in dropout):
            raise ValueError(f"dropout must be two rates from 0 to below 1, of b6 and b7, got {dropout}.")
        steps = _per_stage("stage_strides", stage_strides, spatial_dims)
        reaches = _per_stage("dilations", dilations, spatial_dims)
        one = (1,) * spatial_dims

        def scaled(channels: int) -> int:
            return max(math.floor(channels * width / _MULTIPLE + 0.5), 1) * _MULTIPLE

        def conv(inputs: int, outputs: int, kernel: int, stride: Sequence[int], dilation: Sequence[int]):
            padding = tuple(kernel // 2 * d for d in dilation)  # as much as an odd window reaches: ceil(n / stride)
            return Conv[Conv.CONV, spatial_dims](
                inputs, outputs, kernel, tuple(stride), padding, tuple(dilation), bias=False
            )

        def norm_of(channels: int) -> torch.nn.Module:
            return make_norm(norm, spatial_dims, channels)

        def basic(stage: int) -> list[_PreActivated]:
            """The blocks of b2, b3, b4 or b5."""
            blocks, inner, outer = _BASIC[stage]
            inputs = scaled(_BASIC[stage - 1][2] if stage - 1 in _BASIC else _STEM)
            reach, before = reaches[stage - 2], reaches[stage - 3] if stage > 2 else one
            first = _Basic(conv, norm_of, inputs, scaled(inner), scaled(outer), steps[stage - 2], before, reach)
            shape = (scaled(outer), scaled(inner), scaled(outer), one, reach, reach)
            return [first, *(_Basic(conv, norm_of, *shape) for _ in range(blocks - 1))]

        def bottleneck(stage: int, rate: float) -> _PreActivated:
            """b6 or b7."""
            outer = _BOTTLENECKS[stage]
            widths = [scaled(c) for c in (outer // 2, outer // 4, outer // 2, outer)]
            drops = [Dropout[Dropout.DROPOUT, spatial_dims](rate) for _ in range(2)]
            return _Bottleneck(conv, norm_of, widths, steps[stage - 2], reaches[stage - 2], drops)

        self.conv1a = conv(in_channels, scaled(_STEM), 3, one, one)
        self.b2, self.b2_1, self.b2_2 = basic(2)
        self.b3, self.b3_1, self.b3_2 = basic(3)
        self.b4, self.b4_1, self.b4_2, self.b4_3, self.b4_4, self.b4_5 = basic(4)
        self.b5, self.b5_1, self.b5_2 = basic(5)
        self.b6 = bottleneck(6, dropout[0])
        self.b7 = bottleneck(7, dropout[1])
        self.bn7 = norm_of(scaled(_BOTTLENECKS[7]))
        self.relu = torch.nn.ReLU(inplace=norm is not None)
        self.out_channels = [scaled(c) for c in (_BASIC[3][2], _BASIC[4][2], _BASIC[5][2], _BOTTLENECKS[7])]
        self.strides = [total_strides(steps)[stage] for stage in (1, 2, 3, 5)]
        he_init(self)
        self.freeze(frozen_stages)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map an image (B, in_channels, \\*spatial) to the four maps, finest first."""
        if not torch.jit.is_scripting():
            return super().forward(x)  # its checks are not in TorchScript's language
        return self.maps(x)

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What b4, b5 and b6 begin with, and the last map, of a plain tensor."""
        x = self.b2_2(self.b2_1(self.b2(self.conv1a(x))))
        x = self.b3_2(self.b3_1(self.b3(x)))
        fine = self.b4.activated(x)
        x = self.b4_2(self.b4_1(self.b4.residual(x, fine)))
        x = self.b4_5(self.b4_4(self.b4_3(x)))
        middle = self.b5.activated(x)
        x = self.b5_2(self.b5_1(self.b5.residual(x, middle)))
        late = self.b6.activated(x)
        x = self.b7(self.b6.residual(x, late))
        return [fine, middle, late, self.relu(self.bn7(x))]

    def parts(self) -> list[list[torch.nn.Module]]:
        """conv1a, then the blocks of each of the six stages; bn7 is in the last."""
        blocks = {name: block for name, block in self.named_children() if name[1].isdigit()}
        stages = [
            [block for name, block in blocks.items() if name.split("_")[0] == f"b{stage}"]
            for stage in range(2, _STAGES + 2)
        ]
        return [[self.conv1a], *stages[:-1], [*stages[-1], self.bn7]]


class _PreActivated(torch.nn.Module):
    """What the two kinds of block share: norm and ReLU first, then the branch, added to the input or its projection."""

    def __init__(self, conv: _Conv, norm: _Norm, inputs: int, outputs: int, stride: Sequence[int]) -> None:
        super().__init__()
        self.bn_branch2a = norm(inputs)
        self.relu = torch.nn.ReLU(inplace=not isinstance(self.bn_branch2a, torch.nn.Identity))
        self.conv_branch1 = None
        if inputs != outputs or any(s != 1 for s in stride):
            self.conv_branch1 = conv(inputs, outputs, 1, stride, (1,) * len(stride))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.residual(x, self.activated(x))

    def activated(self, x: torch.Tensor) -> torch.Tensor:
        """Norm and ReLU of the input."""
        return self.relu(self.bn_branch2a(x))

    def residual(self, x: torch.Tensor, activated: torch.Tensor) -> torch.Tensor:
        """The block's output, from its input and what :py:meth:`activated` makes of it."""
        if self.conv_branch1 is not None:
            x = self.conv_branch1(activated)
        return x + self.branch(activated)

    def branch(self, x: torch.Tensor) -> torch.Tensor:
        """The convolutions."""
        raise NotImplementedError


class _Basic(_PreActivated):
    """Two convolutions of 3."""

    def __init__(
        self,
        conv: _Conv,
        norm: _Norm,
        inputs: int,
        inner: int,
        outputs: int,
        stride: Sequence[int],
        first_dilation: Sequence[int],
        dilation: Sequence[int],
    ) -> None:
        super().__init__(conv, norm, inputs, outputs, stride)
        self.conv_branch2a = conv(inputs, inner, 3, stride, first_dilation)
        self.bn_branch2b1 = norm(inner)
        self.conv_branch2b1 = conv(inner, outputs, 3, (1,) * len(stride), dilation)

    def branch(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv_branch2b1(self.relu(self.bn_branch2b1(self.conv_branch2a(x))))


class _Bottleneck(_PreActivated):
    """Narrow, convolve with the dilation, widen; ``widths`` are the channels of the input and of the three."""

    def __init__(
        self,
        conv: _Conv,
        norm: _Norm,
        widths: Sequence[int],
        stride: Sequence[int],
        dilation: Sequence[int],
        drops: Sequence[torch.nn.Module],
    ) -> None:
        inputs, narrow, middle, outputs = widths
        super().__init__(conv, norm, inputs, outputs, stride)
        one = (1,) * len(stride)
        self.conv_branch2a = conv(inputs, narrow, 1, stride, one)
        self.bn_branch2b1 = norm(narrow)
        self.dropout_2b1 = drops[0]
        self.conv_branch2b1 = conv(narrow, middle, 3, one, dilation)
        self.bn_branch2b2 = norm(middle)
        self.dropout_2b2 = drops[1]
        self.conv_branch2b2 = conv(middle, outputs, 1, one, one)

    def branch(self, x: torch.Tensor) -> torch.Tensor:
        x = self.dropout_2b1(self.relu(self.bn_branch2b1(self.conv_branch2a(x))))
        x = self.dropout_2b2(self.relu(self.bn_branch2b2(self.conv_branch2b1(x))))
        return self.conv_branch2b2(x)


def _per_stage(name: str, value: Sequence[int | Sequence[int]], spatial_dims: int) -> list[tuple[int, ...]]:
    if not isinstance(value, Sequence) or len(value) != _STAGES:
        raise ValueError(f"{name} must have {_STAGES} entries, one per stage b2 to b7, got {value!r}.")
    return [per_axis(f"an entry of {name}", entry, spatial_dims) for entry in value]
