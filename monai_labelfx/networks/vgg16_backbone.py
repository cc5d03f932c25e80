# SPDX-License-Identifier: Apache-2.0
"""VGG-16 as the trunk of SSD, for any number of spatial dimensions, with a stride per axis."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv

from monai_labelfx.networks._any_size import check_counts, per_axis
from monai_labelfx.networks._backbone import Backbone, MaxPool, he_init, total_strides
from monai_labelfx.networks._norms import make_norm

# convolutions of each block and their channels in units of ``features`` (Simonyan and Zisserman 2015, table 1, D)
_BLOCKS = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))
_POOLS = 4
_HEAD_WIDTH = 16  # channels of fc6 and fc7 in units of ``features``


class VGG16Backbone(Backbone):
    r"""VGG-16 in the form of SSD: the maps of conv4_3 (stride 8) and fc7 (stride 16), after their ReLU.

    After [1]_ and, for its last layers, [2]_.
    Thirteen convolutions of 3 in five blocks with max pooling of 2 between them, rounded up, so that every voxel is
    seen. The fifth pooling is of window 3 and stride 1; fc6 is a convolution of 3 with dilation 6, which spans what the
    fully connected layer saw on a grid half as fine, and fc7 a convolution of 1.

    Args:
        spatial_dims: number of spatial dimensions.
        in_channels: channels of the image.
        features: channels of the first block, 64; the blocks have 1, 2, 4, 8, 8 times that, fc6 and fc7 16 times.
        pool_strides: stride of the four poolings: each one number or one per axis, as ``(2, 2, 1)``; also their window.
        dilation: dilation of fc6, one number or one per axis.
        norm: ``"group"`` (up to 32 groups), for training from scratch on one to four images at a time; None, the
            published network, torchvision's ``vgg16``; ``"batch"`` or ``"frozen_batch"``, its ``vgg16_bn``; or MONAI's
            pair of a name and arguments.
        frozen_stages: how much is not trained: -1 nothing, k the first k + 1 blocks; the fifth has fc6 and fc7.

    Attributes:
        out_channels: channels of the two maps, 512 and 1024.
        strides: total stride of each map per axis. A map of an axis of n voxels has exactly ``ceil(n / stride)``.

    Shape:
        - input: (B, in_channels, \*spatial), any size from one voxel on.
        - output: list of two, (B, out_channels[i], \*ceil(spatial / strides[i])).

    Raises:
        ValueError: for counts below 1, or strides that are not one per pooling or axis; in forward, for an image of
            another rank or number of channels.

    Notes:
        The scaled L2 norm that SSD puts on conv4_3 belongs to the detector. The published network has no norm and does
        not train well from random weights inside SSD, hence the default.

    Example:
        >>> import torch
        >>> net = VGG16Backbone(3, 1, features=4, pool_strides=[2, 2, 2, (2, 2, 1)])
        >>> [tuple(c.shape) for c in net(torch.rand(1, 1, 33, 32, 9))]
        [(1, 32, 5, 4, 2), (1, 64, 3, 2, 2)]
        >>> net.strides
        [(8, 8, 8), (16, 16, 8)]

    References:
        .. [1] Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015.
        .. [2] Liu et al., "SSD: Single Shot MultiBox Detector", ECCV 2016, section 3.
    """

    first_level = 3

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        *,
        features: int = 64,
        pool_strides: Sequence[int | Sequence[int]] = (2, 2, 2, 2),
        dilation: int | Sequence[int] = 6,
        norm: tuple | str | None = "group",
        frozen_stages: int = -1,
    ) -> None:
        super().__init__(spatial_dims, in_channels)
        check_counts(features=features)
        if not isinstance(pool_strides, Sequence) or len(pool_strides) != _POOLS:
            raise ValueError(f"pool_strides must have {_POOLS} entries, one per pooling, got {pool_strides!r}.")
        steps = [per_axis("an entry of pool_strides", entry, spatial_dims) for entry in pool_strides]
        reach = per_axis("dilation", dilation, spatial_dims)

        def block(inputs: int, outputs: int, kernel: int, dilation: Sequence[int]) -> list[torch.nn.Module]:
            padding = tuple(kernel // 2 * d for d in dilation)
            conv = Conv[Conv.CONV, spatial_dims](inputs, outputs, kernel, padding=padding, dilation=tuple(dilation))
            norms = [] if norm is None else [make_norm(norm, spatial_dims, outputs)]
            return [conv, *norms, torch.nn.ReLU(inplace=True)]

        one = (1,) * spatial_dims
        layers: list[torch.nn.Module] = []
        self._ends = []  # one past the last layer of each block, its pooling left out
        inputs = in_channels
        for index, (convs, width) in enumerate(_BLOCKS):
            for _ in range(convs):
                layers += block(inputs, features * width, 3, one)
                inputs = features * width
            self._ends.append(len(layers))
            layers.append(MaxPool(steps[index], steps[index]) if index < _POOLS else MaxPool((3,) * spatial_dims, one))
        self.features = torch.nn.Sequential(*layers)
        self.fc6 = torch.nn.Sequential(*block(inputs, features * _HEAD_WIDTH, 3, reach))
        self.fc7 = torch.nn.Sequential(*block(features * _HEAD_WIDTH, features * _HEAD_WIDTH, 1, one))
        self.out_channels = [inputs, features * _HEAD_WIDTH]
        self.strides = total_strides(steps)[-2:]
        he_init(self)
        self.freeze(frozen_stages)

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The maps conv4_3 and fc7 of a plain tensor."""
        fine = self.features[: self._ends[3]](x)
        return [fine, self.fc7(self.fc6(self.features[self._ends[3] :](fine)))]

    def parts(self) -> list[list[torch.nn.Module]]:
        """The layers of the five blocks; fc6 and fc7 are in the last."""
        starts = [0, *self._ends[:-1]]
        layers = list(self.features)
        parts = [layers[start:end] for start, end in zip(starts, self._ends, strict=True)]
        return [*parts[:-1], [*parts[-1], self.fc6, self.fc7]]
