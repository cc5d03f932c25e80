# SPDX-License-Identifier: Apache-2.0
"""Classifier whose class activation maps are its own last layer: stages fused, a convolution of 1, the mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv, Dropout

from monai_labelfx.networks._any_size import check_counts
from monai_labelfx.networks._backbone import Backbone
from monai_labelfx.networks._resample import resize_linear


class CAMNetwork(torch.nn.Module):
    r"""Image classifier on fused stages of a backbone, with its class activation maps at hand.

    With the last ``fused`` maps of the backbone brought to the size of the finest of them and joined as channels,
    ``f(x)`` of F channels, the map of class k is ``M_k = w_k . f + b_k`` in every voxel, and the logit of the image
    is the mean of ``M_k`` over space, which is what a linear layer says of the pooled features: class activation
    mapping [1]_. Joining the last three stages keeps the finer edges of the earlier ones [2]_.

    Args:
        backbone: network that gives maps, finest first, such as :py:class:`WideResNet38Backbone`, whose last three
            have 5632 channels together, or :py:class:`ResNetBackbone`.
        classes: number of classes K, background included where it is a class like the others.
        fused: how many of the backbone's last maps are joined; 3 in [2]_, 1 is plain CAM.
        dropout: rate at which whole channels of the fused map are zeroed in training. Default 0 [2]_.
        prior: probability of each class before training, one number or one per class: the bias starts at
            ``log(p / (1 - p))``, which spares rare and frequent classes the first steps. None leaves PyTorch's.

    Attributes:
        spatial_dims: number of spatial dimensions.
        in_channels: channels of the image.
        classes: K.
        out_channels: channels F of the fused map.
        stride: voxels of the image per voxel of the maps, per axis. An axis of n voxels has ``ceil(n / stride)``.
        head: the convolution of 1 with bias.

    Shape:
        - input: (B, in_channels, \*spatial), any size from one voxel on.
        - output: logits (B, K).

    Raises:
        TypeError: for a ``backbone`` that is none.
        ValueError: for ``fused`` maps that the backbone does not have, counts below 1, a rate or a prior out of range;
            in forward, for an image without voxels, of another rank or another number of channels.

    Notes:
        The maps are raw scores: no ReLU, no division by the maximum. In [2]_ the stages have one stride, so that there
        is nothing to interpolate; here a ResNet's are interpolated linearly.

    Example:
        >>> import torch
        >>> from monai_labelfx.networks.resnet_backbone import ResNetBackbone
        >>> net = CAMNetwork(ResNetBackbone(3, 1, depth=10, features=8), classes=2)
        >>> image = torch.rand(1, 1, 33, 32, 17)
        >>> net(image).shape, net.cam(image).shape, net.features(image).shape
        (torch.Size([1, 2]), torch.Size([1, 2, 5, 4, 3]), torch.Size([1, 112, 5, 4, 3]))
        >>> net.stride
        (8, 8, 8)

    References:
        .. [1] Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016.
        .. [2] Li et al., "Online Easy Example Mining for Weakly-supervised Gland Segmentation from Histology Images",
            MICCAI 2022.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        *,
        fused: int = 3,
        dropout: float = 0.0,
        prior: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(backbone, Backbone):
            raise TypeError(f"backbone must give maps, as WideResNet38Backbone does, got {type(backbone).__name__}.")
        check_counts(classes=classes)
        levels = len(backbone.out_channels)
        if not 1 <= fused <= levels:
            raise ValueError(f"fused must be 1 to {levels}, the maps of {type(backbone).__name__}, got {fused}.")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be a rate from 0 to below 1, got {dropout}.")
        self.spatial_dims = backbone.spatial_dims
        self.in_channels = backbone.in_channels
        self.classes = classes
        self.fused = fused
        self.out_channels = sum(backbone.out_channels[-fused:])
        self.stride = tuple(backbone.strides[-fused])
        self._axes = list(range(2, self.spatial_dims + 2))
        self._coarser = [tuple(stride) != self.stride for stride in backbone.strides[-fused:]]
        self.backbone = backbone
        self.dropout = Dropout[Dropout.DROPOUT, self.spatial_dims](dropout)
        self.head = Conv[Conv.CONV, self.spatial_dims](self.out_channels, classes, 1)
        if prior is not None:
            with torch.no_grad():
                self.head.bias.copy_(_prior_logits(prior, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, K) of images (B, in_channels, \\*spatial): the mean of :py:meth:`cam` over space."""
        pooled = self.features(x).mean(self._axes, keepdim=True)  # the head is linear, so the mean may come first
        return self.head(self.dropout(pooled)).flatten(1)

    def cam(self, x: torch.Tensor) -> torch.Tensor:
        """Raw class activation maps (B, K, \\*ceil(spatial / stride))."""
        return self.head(self.dropout(self.features(x)))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """The fused map (B, F, \\*ceil(spatial / stride)), before dropout."""
        if not torch.jit.is_scripting() and not torch.jit.is_tracing() and any(n < 1 for n in x.shape[2:]):
            raise ValueError(f"CAMNetwork got an image without voxels, of shape {tuple(x.shape)}.")
        return self.fuse(self.backbone(x))

    def fuse(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Join the last ``fused`` of the backbone's maps at the size of the finest, as channels."""
        maps = maps[-self.fused :]
        size = list(maps[0].shape[2:])
        return torch.cat([resize_linear(m, size) if self._coarser[i] else m for i, m in enumerate(maps)], dim=1)


def _prior_logits(prior: float | Sequence[float], classes: int) -> torch.Tensor:
    """The logits of one probability, or of one per class."""
    values = [prior] * classes if isinstance(prior, int | float) else list(prior)
    if len(values) != classes or any(not 0 < p < 1 for p in values):
        raise ValueError(f"prior must be one probability between 0 and 1, or {classes} of them, got {prior!r}.")
    return torch.tensor([math.log(p / (1 - p)) for p in values])
