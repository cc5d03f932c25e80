# SPDX-License-Identifier: Apache-2.0
"""The residual U-Net of the box-supervised prostate experiments, for any number of spatial dimensions and any size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Pool

from monai_labelfx.networks._any_size import AnySizeNetwork, check_counts, strides_per_level

_INITS = ("he_normal", "torch")


class ResidualUNet(AnySizeNetwork):
    """U-Net of residual blocks whose skips are averaged with the decoder, not concatenated.

    The network of Kervadec et al. (2020) and Wang and Xia (2021, section 3.2) for PROMISE12. A block is
    ``c = conv(x); conv(c + residual(c))``: ``conv`` is a convolution of side 3, norm and activation, ``residual`` three
    of them without the last activation. The encoder max-pools and doubles its features; the decoder upsamples by a
    transposed convolution of side 3, takes the mean with the encoder's features and runs a block; a convolution of side
    3 gives the logits. Defaults are the paper's: 32-64-128-256-512 features, 19,644,961 parameters in 2-D with one
    channel in and out (58,887,841 in 3-D).

    Images of any size are accepted: they are padded at the far end of each axis, by repeating the outermost voxel, to a
    multiple of ``divisor``, and the output is cropped back.

    Args:
        spatial_dims: number of spatial dimensions.
        in_channels: channels of the image.
        out_channels: channels of the output, logits.
        features: features of the first level, doubled by each further one.
        depth: number of poolings.
        strides: pooling per axis: one number, one per axis, or one such entry per level. Thin stacks want 1 on the thin
            axis, as in ``(2, 2, 1)`` or ``[(2, 2, 1), (2, 2, 1), 2, 2]``.
        norm: MONAI's norm specification, or None.
        act: MONAI's activation specification of the encoder and of the bridge at its end.
        decoder_act: MONAI's activation specification of the decoder.
        init: ``"he_normal"``, weights of variance 2 over fan out (the reference), or ``"torch"`` for PyTorch's own.

    Attributes:
        divisor: per axis, the product of the strides: sizes that are multiples of it need no padding.

    Raises:
        ValueError: for arguments out of range, and in forward for an input of another rank or number of channels, an
            empty image, or one whose deepest level leaves batch norm (in training) or instance norm a single voxel.

    Notes:
        The papers name a "residual version of UNet" only; all above follows their code. There, ``"he_normal"`` leaves
        biases and transposed convolutions at PyTorch's own initialisation, so here too. The sigmoid at its end is left
        to the loss. MONAI's ``UNet(num_res_units=...)`` is another network: strided convolutions, concatenated skips,
        2.6 to 16 million parameters at these features for 0 to 5 units.

    Example:
        >>> import torch
        >>> net = ResidualUNet(3, features=4, depth=2, strides=(2, 2, 1))
        >>> net(torch.rand(1, 1, 9, 16, 3)).shape
        torch.Size([1, 1, 9, 16, 3])
        >>> net.divisor
        (4, 4, 1)
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        out_channels: int = 1,
        *,
        features: int = 32,
        depth: int = 4,
        strides: int | Sequence[int | Sequence[int]] = 2,
        norm: tuple | str | None = "batch",
        act: tuple | str | None = ("leakyrelu", {"negative_slope": 0.2, "inplace": True}),
        decoder_act: tuple | str | None = ("relu", {"inplace": True}),
        init: str = "he_normal",
    ) -> None:
        check_counts(features=features, depth=depth)
        if init not in _INITS:
            raise ValueError(f"init must be one of {_INITS}, got {init!r}.")
        levels = strides_per_level(strides, depth, spatial_dims)
        super().__init__(spatial_dims, in_channels, out_channels, levels)
        width = [features * 2**level for level in range(depth + 1)]

        self.encoders = torch.nn.ModuleList([_ResidualBlock(spatial_dims, in_channels, width[0], norm, act)])
        for level, stride in enumerate(levels):
            pool = Pool[Pool.MAX, spatial_dims](kernel_size=stride, stride=stride)
            block = _ResidualBlock(spatial_dims, width[level], width[level + 1], norm, act)
            self.encoders.append(torch.nn.Sequential(pool, block))
        self.upsamplings = torch.nn.ModuleList()
        self.decoders = torch.nn.ModuleList()
        for level, stride in reversed(list(enumerate(levels))):
            self.upsamplings.append(
                Convolution(
                    spatial_dims,
                    width[level + 1],
                    width[level],
                    strides=stride,
                    is_transposed=True,
                    adn_ordering="NA",
                    norm=norm,
                    act=decoder_act,
                )
            )
            self.decoders.append(_ResidualBlock(spatial_dims, width[level], width[level], norm, decoder_act))
        self.head = Convolution(spatial_dims, width[0], out_channels, conv_only=True)
        if init == "he_normal":
            self.apply(_he_normal)

    def run_padded(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of an image whose sizes are multiples of ``divisor``."""
        skips: list[torch.Tensor] = []
        for encoder in self.encoders:
            x = encoder(x)
            skips.append(x)
        x = skips.pop()
        for upsampling, decoder in zip(self.upsamplings, self.decoders):  # noqa: B905  TorchScript has no strict
            x = decoder((upsampling(x) + skips.pop()) / 2)
        return self.head(x)


class _ResidualBlock(torch.nn.Module):
    """``c = first(x); last(c + residual(c))``, five convolutions of side 3."""

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, norm: tuple | str | None, act: tuple | str | None
    ) -> None:
        super().__init__()

        def conv(channels: int, act: tuple | str | None) -> Convolution:
            return Convolution(spatial_dims, channels, out_channels, adn_ordering="NA", norm=norm, act=act)

        self.first = conv(in_channels, act)
        self.residual = torch.nn.Sequential(*(conv(out_channels, each) for each in (act, act, None)))
        self.last = conv(out_channels, act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.last(x + self.residual(x))


def _he_normal(module: torch.nn.Module) -> None:
    if isinstance(module, torch.nn.modules.conv._ConvNd) and not module.transposed:
        torch.nn.init.normal_(module.weight, 0, math.sqrt(2 / (module.out_channels * math.prod(module.kernel_size))))
