# SPDX-License-Identifier: Apache-2.0
"""Pyramid scene parsing network on any backbone, for any number of spatial dimensions and any image size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv, Dropout

from monai_labelfx.networks._any_size import AnySizeNetwork, check_counts, per_axis
from monai_labelfx.networks._backbone import Backbone, he_init
from monai_labelfx.networks._norms import make_norm
from monai_labelfx.networks._resample import average_bins, resize_linear

_CLASSIFIER_STD = 0.01


class PSPNet(AnySizeNetwork):
    r"""Pyramid scene parsing network: what a voxel is, with the averages of 1, 2, 3 and 6 parts of the image beside it.

    After [1]_. On the backbone's last map, of C channels:

    1. per number of bins: average pooling to so many per axis, a convolution of 1 to ``features`` channels, norm, ReLU,
       and linear interpolation back to the map's size;
    2. the map and these together, through a convolution of 3 to ``features`` channels, norm, ReLU, dropout of whole
       channels and a convolution of 1 to the logits;
    3. linear interpolation (``align_corners=False``) to the size of the image.

    In training an auxiliary head on the map before the last one (a convolution of 3, norm, ReLU, dropout, a convolution
    of 1) helps the backbone: its logits come as further channels, see ``AuxiliaryHeadLoss``.

    Images of any size are accepted: they are padded at the far end of each axis, by repeating the outermost voxel, to a
    multiple of ``divisor``, and the output is cropped back. Metadata of a MetaTensor is kept.

    Args:
        backbone: network that gives maps, finest first, such as :py:class:`WideResNet38Backbone` with ``dilations=(1,
            1, 1, 2, 4, 4)``, or :py:class:`ResNetBackbone`.
        classes: number of classes K, background included.
        bins: parts of the image per axis, of each branch: one number, or one per axis, as in ``(6, 6, 2)``.
        features: channels of each branch and of the bottleneck. With the 4096 of ResNet-38 the branches have 8.4
            million parameters, the bottleneck 28.3 and the auxiliary head 2.4.
        auxiliary: build the auxiliary head. Default ``True`` [1]_.
        auxiliary_features: its channels.
        dropout: rate before each classifier. Default 0.1 [1]_.
        norm: norm of the head: ``"batch"`` [1]_, ``"group"``, ``"instance"``, None, or MONAI's pair.

    Attributes:
        classes: K.
        stride: voxels of the image per voxel of the last map, per axis; also ``divisor``.

    Shape:
        - input: (B, in_channels, \*spatial), any size from one voxel on.
        - output: (B, K, \*spatial); in training with the auxiliary head (B, 2 K, \*spatial), its logits last.

    Raises:
        TypeError: for a ``backbone`` that is none.
        ValueError: for no bins, counts below 1, a rate out of range, or an auxiliary head on a backbone of one map; in
            forward, for an input of another rank or number of channels, an empty image, or one whose map leaves batch
            norm (in training) or instance norm a single voxel.

    Notes:
        A branch of one bin has no norm but a bias: batch norm would have one value per channel in a batch of one image,
        which PyTorch refuses in training, and instance norm always. Bins are parts of what the network is given: they
        are larger in a whole image than in a crop, so infer with windows of the training crops' size. Convolutions
        start as in He et al. 2015, classifiers with weights of standard deviation 0.01; the paper is silent. Can be
        scripted by TorchScript on a :py:class:`WideResNet38Backbone` whose norm is not ``"frozen_batch"``, and traced
        and exported on any backbone.

    Example:
        >>> import torch
        >>> from monai_labelfx.networks.resnet_backbone import ResNetBackbone
        >>> net = PSPNet(ResNetBackbone(3, 1, depth=10, features=8), classes=2, features=8, norm="group")
        >>> image = torch.rand(1, 1, 33, 32, 9)
        >>> net(image).shape, net.eval()(image).shape
        (torch.Size([1, 4, 33, 32, 9]), torch.Size([1, 2, 33, 32, 9]))

    References:
        .. [1] Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        *,
        bins: Sequence[int | Sequence[int]] = (1, 2, 3, 6),
        features: int = 512,
        auxiliary: bool = True,
        auxiliary_features: int = 256,
        dropout: float = 0.1,
        norm: tuple | str | None = "batch",
    ) -> None:
        if not isinstance(backbone, Backbone):
            raise TypeError(f"backbone must give maps, as WideResNet38Backbone does, got {type(backbone).__name__}.")
        check_counts(classes=classes, features=features, auxiliary_features=auxiliary_features)
        if not isinstance(bins, Sequence) or not bins:
            raise ValueError(f"bins must name the parts of one branch or more, got {bins!r}.")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be a rate from 0 to below 1, got {dropout}.")
        if auxiliary and len(backbone.out_channels) < 2:
            raise ValueError(f"{type(backbone).__name__} has one map: it takes auxiliary=False.")
        axes = backbone.spatial_dims
        super().__init__(axes, backbone.in_channels, classes, backbone.strides[-1:])
        self.classes = classes
        self.stride = self.divisor
        self.bins = [list(per_axis("an entry of bins", entry, axes)) for entry in bins]
        conv = Conv[Conv.CONV, axes]

        def unit(inputs: int, outputs: int, kernel: int, norm: tuple | str | None) -> torch.nn.Sequential:
            norms = [] if norm is None else [make_norm(norm, axes, outputs)]
            layer = conv(inputs, outputs, kernel, padding=kernel // 2, bias=norm is None)
            unit = torch.nn.Sequential(layer, *norms, torch.nn.ReLU(inplace=True))
            he_init(unit)
            return unit

        def classifier(inputs: int) -> torch.nn.Sequential:
            layer = conv(inputs, classes, 1)
            torch.nn.init.normal_(layer.weight, std=_CLASSIFIER_STD)
            torch.nn.init.zeros_(layer.bias)
            return torch.nn.Sequential(Dropout[Dropout.DROPOUT, axes](dropout), layer)

        self.backbone = backbone
        last = backbone.out_channels[-1]
        self.branches = torch.nn.ModuleList(
            [unit(last, features, 1, norm if max(counts) > 1 else None) for counts in self.bins]
        )
        self.bottleneck = unit(last + len(self.bins) * features, features, 3, norm)
        self.classifier = classifier(features)
        self.auxiliary = None
        if auxiliary:
            before = backbone.out_channels[-2]
            self.auxiliary = torch.nn.Sequential(
                unit(before, auxiliary_features, 3, norm), classifier(auxiliary_features)
            )

    def run_padded(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of a plain tensor whose sizes are multiples of ``divisor``."""
        size = list(x.shape[2:])
        maps = self.backbone(x)
        last = maps[-1]
        joined = [last]
        for index, branch in enumerate(self.branches):
            joined.append(resize_linear(branch(average_bins(last, self.bins[index])), list(last.shape[2:])))
        logits = resize_linear(self.classifier(self.bottleneck(torch.cat(joined, dim=1))), size)
        if self.training and self.auxiliary is not None:
            logits = torch.cat([logits, resize_linear(self.auxiliary(maps[-2]), size)], dim=1)
        return logits
