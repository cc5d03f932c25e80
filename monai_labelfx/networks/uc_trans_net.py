# SPDX-License-Identifier: Apache-2.0
"""UCTransNet: a U-Net whose skip connections are a transformer between the channels of all scales."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Pool

from monai_labelfx.networks._any_size import AnySizeNetwork, check_counts, per_axis, strides_per_level
from monai_labelfx.networks._channel_transformer import ChannelTransformer
from monai_labelfx.networks._norms import make_norm


class UCTransNet(AnySizeNetwork):
    r"""U-Net with a channel transformer (CTrans) in place of its skip connections.

    From [1]_; Notes say what differs.

    The encoder's features of all scales but the deepest become tokens on one grid, of ``divisor`` voxels of the image
    each, and a channel-wise cross fusion transformer (CCT) lets the channels of each scale attend to those of all. The
    decoder upsamples its features D, weighs each channel of the fused ones, O, by cross attention (CCA, equation 5)::

        O' = sigmoid(L_1 mean(O) + L_2 mean(D)) O

    with means over space and linear layers L_1 and L_2, and joins O' and D by two convolutions of side 3.

    Images of any size and ratio are accepted: they are padded at the far end of each axis, by repeating the outermost
    voxel, to a multiple of ``divisor``, and the output is cropped back.

    Parameters at the defaults in 2-D, with three channels in and two out: 66,430,722, of which CCT has 52,374,144
    (published: 66.4 and 52.4 million). In 3-D with ``img_size=64`` it is 120 million, and 7.5 with 16 features.

    Args:
        spatial_dims: number of spatial dimensions.
        in_channels: channels of the image.
        out_channels: channels of the output, logits.
        features: channels of the first level, doubled by each further one but the deepest (64).
        depth: poolings, and scales of the transformer (4).
        layers: transformer layers (4).
        heads: attention heads, each of full width (4).
        mlp_ratio: width of the perceptrons over the channels of their scale (4).
        dropout: rate of all dropouts (0.1).
        img_size: image size, one number or one per axis (224), whose grid of tokens the positions are learned for. For
            other sizes they are interpolated linearly.
        strides: pooling per axis: one number, one per axis, or one such entry per level. Thin stacks want 1 on the thin
            axis.
        norm: norm specification of MONAI or ``"group"`` of this package, or None.

    Attributes:
        divisor: per axis, the product of the strides: sizes that are multiples of it need no padding.

    Shape:
        - input: (B, in_channels, \*spatial), any size.
        - output: logits (B, out_channels, \*spatial).

    Raises:
        ValueError: for arguments out of range, and in forward for an input of another rank or number of channels, an
            empty image, or one whose deepest level leaves batch norm (in training) or instance norm a single voxel.

    Notes:
        Written from the paper and its parameter counts. Where it is silent, we take: layer norm before attention and
        perceptrons, residuals around both; positions that start at zero; one convolution in the first level and two in
        the others; nearest upsampling; the encoder's features added to the fused ones, without which a skip would hold
        nothing finer than a token. Instance norm of the scores and the mean over heads are the paper's. The output is
        logits for any number of classes.

    Example:
        >>> import torch
        >>> net = UCTransNet(2, 3, 2, features=4, depth=2, layers=1, heads=2, img_size=(16, 24))
        >>> net(torch.rand(1, 3, 21, 34)).shape, net.divisor
        (torch.Size([1, 2, 21, 34]), (4, 4))

    References:
        .. [1] Wang et al., "UCTransNet: Rethinking the Skip Connections in U-Net from a Channel-wise Perspective with
            Transformer", AAAI 2022.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        features: int = 64,
        depth: int = 4,
        layers: int = 4,
        heads: int = 4,
        mlp_ratio: int = 4,
        dropout: float = 0.1,
        img_size: int | Sequence[int] = 224,
        strides: int | Sequence[int | Sequence[int]] = 2,
        norm: tuple | str | None = "batch",
    ) -> None:
        check_counts(features=features, depth=depth, layers=layers, heads=heads, mlp_ratio=mlp_ratio)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be a rate from 0 to below 1, got {dropout}.")
        levels = strides_per_level(strides, depth, spatial_dims)
        super().__init__(spatial_dims, in_channels, out_channels, levels)
        size = per_axis("img_size", img_size, spatial_dims)
        width = [features * 2**level for level in range(depth)]

        def convs(*channels: int) -> list[torch.nn.Module]:
            layers: list[torch.nn.Module] = []
            for i, o in zip(channels, channels[1:], strict=False):
                conv = Conv[Conv.CONV, spatial_dims](i, o, kernel_size=3, padding=1)
                layers += [conv, make_norm(norm, spatial_dims, o), torch.nn.ReLU()]
            return layers

        self.encoders = torch.nn.ModuleList([torch.nn.Sequential(*convs(in_channels, width[0]))])
        for stride, i, o in zip(levels, width, [*width[1:], width[-1]], strict=True):
            pool = Pool[Pool.MAX, spatial_dims](kernel_size=stride, stride=stride)
            self.encoders.append(torch.nn.Sequential(pool, *convs(i, o, o)))
        self.transformer = ChannelTransformer(
            spatial_dims,
            width,
            [tuple(math.prod(s[axis] for s in levels[n:]) for axis in range(spatial_dims)) for n in range(depth)],
            [math.ceil(n / d) for n, d in zip(size, self.divisor, strict=True)],
            layers=layers,
            heads=heads,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            norm=norm,
        )
        # A step halves the channels, down to those of the scale that comes next; the last keeps the first scale's.
        self.attentions = torch.nn.ModuleList(_ChannelCrossGate(c) for c in reversed(width))
        self.decoders = torch.nn.ModuleList(
            torch.nn.Sequential(*convs(2 * c, o, o))
            for c, o in zip(reversed(width), [*width[-2::-1], width[0]], strict=True)
        )
        self.head = Conv[Conv.CONV, spatial_dims](width[0], out_channels, kernel_size=1)

    def run_padded(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of an image whose sizes are multiples of ``divisor``."""
        features: list[torch.Tensor] = []
        for encoder in self.encoders:
            x = encoder(x)
            features.append(x)
        x = features.pop()
        fused = self.transformer(features)
        for attention, decoder in zip(self.attentions, self.decoders):  # noqa: B905  TorchScript has no strict
            skip = fused.pop()
            x = F.interpolate(x, size=skip.shape[2:], mode="nearest")
            x = decoder(torch.cat([attention(skip, x), x], 1))
        return self.head(x)


class _ChannelCrossGate(torch.nn.Module):
    """``sigmoid(L_1 mean(O) + L_2 mean(D)) O``, for O and D of one shape (B, C, *spatial)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.of_skip = torch.nn.Linear(channels, channels)
        self.of_decoder = torch.nn.Linear(channels, channels)

    def forward(self, skip: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        mask = self.of_skip(skip.flatten(2).mean(2)) + self.of_decoder(x.flatten(2).mean(2))
        weights = torch.sigmoid(mask)
        for _ in range(skip.ndim - 2):
            weights = weights.unsqueeze(-1)
        return weights * skip
