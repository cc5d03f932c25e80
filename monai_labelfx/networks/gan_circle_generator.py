# SPDX-License-Identifier: Apache-2.0
"""The generator of GAN-Circle: a chain of narrowing convolutions, all of them concatenated, plus the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.layers.factories import Conv

from monai_labelfx.networks._any_size import AnySizeNetwork, check_counts, per_axis, strides_per_level
from monai_labelfx.networks._reach import Layer, reach
from monai_labelfx.networks._spectral import he_weights

_BRANCHES = (64, 32, 8)  # the wide branch; the narrow one before and after its convolution of side 3
_DECAY = 1.5


class GANCircleGenerator(AnySizeNetwork):
    """Features of eleven convolutions in a row, joined by convolutions of side 1, and the image added at the end.

    The generator of You et al. (2020), the same in both directions; c is a convolution of side 3, p one of side 1::

        f0 = act(c(x))                 128 channels, stride 2
        fi = act(c(f(i-1)))            105, 92, 80, 70, 61, 53, 45, 37, 30, 22, 16 channels
        f  = f0, f1, ... f11           739 channels
        g  = act(p(f)), c(act(p(f)))   64 and 32 -> 8 channels
        y  = x + c(act(t(c(g))))       72 channels, transposed convolution t of stride 2 to 36, one channel

    The width of fi follows the decay rule ``int((F - m) (1 - (i / 11)^(1 / 1.5)) + m)`` from F = 128 to m = 16.
    There is no normalisation. 611,418 parameters in 2-D with one channel.

    Args:
        spatial_dims: number of spatial dimensions.
        in_channels: channels of the image and of the output.
        features: F, channels of the first convolution (128).
        min_features: m, channels of the last one of the row (16).
        layers: convolutions in the row (11).
        stride: 2 or 1, one number or one per axis. The first convolution goes down by it and the transposed one up
            again. 2 is the released code, written for super-resolution; for denoising the pair may be dropped (1), at
            four times the cost in 2-D: a free choice. Thin stacks want 1 on the thin axis, as in ``(2, 2, 1)``.
        negative_slope: of the leaky ReLU (0.1).

    Attributes:
        divisor: ``stride`` per axis: other sizes are padded at the far end by repeating the outermost voxel, and
            cropped back.
        halo: per axis, how far beyond a tile, aligned to ``divisor``, its output depends on the image: 29 by default,
            16 for stride 1.

    Shape:
        - input and output: (B, in_channels, *spatial), any size.

    Raises:
        ValueError: for arguments out of range, and in forward for an input of another rank or number of channels or
            without voxels.

    Notes:
        As in the released code there is no activation after c(g) and after the narrow branch, and the last convolution
        has no bias. Its dropout layers are never switched on and left out. Its strided convolution pads at the far end
        only; here all pad both ends with zeros. The transposed convolution has side 4 along axes of stride 2, and 3
        along axes of stride 1. Weights start with variance 1 over fan in and biases with 0, as there.

    Example:
        >>> import torch
        >>> net = GANCircleGenerator(2)
        >>> net(torch.rand(1, 1, 33, 20)).shape, net.halo, net.divisor
        (torch.Size([1, 1, 33, 20]), (29, 29), (2, 2))
        >>> net.widths
        [128, 105, 92, 80, 70, 61, 53, 45, 37, 30, 22, 16]
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        *,
        features: int = 128,
        min_features: int = 16,
        layers: int = 11,
        stride: int | Sequence[int] = 2,
        negative_slope: float = 0.1,
    ) -> None:
        check_counts(features=features, min_features=min_features, layers=layers)
        if min_features > features:
            raise ValueError(f"min_features must be at most features={features}, got {min_features}.")
        strides_per_level(1, 1, spatial_dims)
        steps = per_axis("stride", stride, spatial_dims)
        if any(step > 2 for step in steps):
            raise ValueError(f"stride must be 1 or 2 on every axis, got {stride!r}.")
        super().__init__(spatial_dims, in_channels, in_channels, [steps])
        self.halo = tuple(
            reach([Layer(3, s), *[Layer(3)] * (layers + 2), Layer(s + 2, s, transposed=True), Layer(3)], s)
            for s in steps
        )
        self.widths = [features]
        for number in range(1, layers + 1):
            rest = 1 - (number / layers) ** (1 / _DECAY)
            self.widths.append(int((features - min_features) * rest + min_features))

        def conv(channels_in: int, channels_out: int, side: int = 3, **options: Any) -> torch.nn.modules.conv._ConvNd:
            return Conv[Conv.CONV, spatial_dims](channels_in, channels_out, side, padding=(side - 1) // 2, **options)

        self.act = torch.nn.LeakyReLU(negative_slope, inplace=True)
        self.row = torch.nn.ModuleList([conv(in_channels, features, stride=steps)])
        self.row.extend(conv(i, o) for i, o in zip(self.widths, self.widths[1:], strict=False))
        total, (wide, before, narrow) = sum(self.widths), _BRANCHES
        self.wide = conv(total, wide, 1)
        self.before, self.narrow = conv(total, before, 1), conv(before, narrow)
        joined = wide + narrow
        self.joined = conv(joined, joined)
        self.up = Conv[Conv.CONVTRANS, spatial_dims](joined, joined // 2, tuple(s + 2 for s in steps), steps, 1)
        self.last = conv(joined // 2, in_channels, bias=False)
        he_weights(self, 1.0)  # without a factor for the rectifier: slope 1 is no rectifier

    def run_padded(self, x: torch.Tensor) -> torch.Tensor:
        """Map a plain tensor whose sizes are multiples of ``divisor``."""
        maps: list[torch.Tensor] = []
        for conv in self.row:
            maps.append(self.act(conv(maps[-1] if maps else x)))
        joined = torch.cat(maps, dim=1)
        branches = [self.act(self.wide(joined)), self.narrow(self.act(self.before(joined)))]
        return x + self.last(self.act(self.up(self.joined(torch.cat(branches, dim=1)))))
