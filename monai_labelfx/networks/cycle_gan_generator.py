# SPDX-License-Identifier: Apache-2.0
"""The ResNet generator of cycleGAN, without the normalisation that would remove the CT number."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv

from monai_labelfx.networks._any_size import AnySizeNetwork, check_counts, strides_per_level
from monai_labelfx.networks._reach import Layer, reach
from monai_labelfx.networks._spectral import SPECTRAL, add_spectral_norm, feature_norm, he_weights, normal_weights

_STD = 0.02
_DOWNSAMPLINGS = 2


class CycleGANGenerator(AnySizeNetwork):
    """Convolution of side 7, two of stride 2, residual blocks, two transposed ones, convolution of side 7.

    The generator of Zhu et al. (2017): 64-128-256 features, nine blocks ``x + conv(relu(conv(x)))``, ReLU. With
    instance norm and three channels these are its 11,378,179 parameters; 11,365,633 with one channel.

    There is **no instance norm by default**. It subtracts the mean of each channel of each image and divides by its
    spread, so that a constant added to the image, or a factor, leaves no trace behind it: that is the CT number. A
    generator with it has to invent the level of an image from its texture, and shifts HU with the content.

    Args:
        spatial_dims: number of spatial dimensions.
        in_channels: channels of the image.
        out_channels: channels of the output.
        features: channels of the first convolution, doubled by both downsamplings (64).
        blocks: residual blocks (9).
        strides: downsampling per axis: one number, one per axis, or one such entry for each of the two levels. Thin
            stacks want 1 on the thin axis, as in ``(2, 2, 1)``.
        norm: None, ``"spectral"`` for the weights of every convolution, or MONAI's norm specification, as
            ``"instance"`` for the original.
        residual: add the image to the output and start the last convolution at zero, so that training starts at the
            identity. That convolution has no spectral norm, because a matrix of zeros has none.

    Attributes:
        divisor: per axis, the product of the strides (4): other sizes are padded at the far end by repeating the
            outermost voxel, and cropped back.
        halo: per axis, how far beyond a tile, aligned to ``divisor``, its output depends on the image: 83 by default.
            Not true of instance norm, which looks at the whole image.

    Shape:
        - input: (B, in_channels, *spatial), any size, output: (B, out_channels, *spatial).

    Raises:
        ValueError: for arguments out of range, and in forward for an input of another rank or number of channels, an
            empty image, or one whose deepest level leaves batch norm (in training) or instance norm a single voxel.

    Notes:
        Differs from the original where CT asks for it: no tanh at the end, since HU have no bounds, and padding by
        repetition instead of reflection, which small tiles have no room for. With a norm of features, weights start
        with standard deviation 0.02 (the original); without one that would shrink the image from layer to layer, so
        they start with He's, the last one of each block divided by the root of the number of blocks, so that the sum
        of all branches is about as large as what they are added to.

    Example:
        >>> import torch
        >>> net = CycleGANGenerator(3, features=4, blocks=2, strides=(2, 2, 1))
        >>> net(torch.rand(1, 1, 9, 16, 3)).shape
        torch.Size([1, 1, 9, 16, 3])
        >>> net.divisor, CycleGANGenerator(2, features=4).halo
        ((4, 4, 1), (83, 83))
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        out_channels: int = 1,
        *,
        features: int = 64,
        blocks: int = 9,
        strides: int | Sequence[int | Sequence[int]] = 2,
        norm: tuple | str | None = None,
        residual: bool = False,
    ) -> None:
        check_counts(in_channels=in_channels, features=features, blocks=blocks)
        if residual and in_channels != out_channels:
            raise ValueError(f"residual needs as many channels out as in, got {in_channels} in and {out_channels} out.")
        levels = strides_per_level(strides, _DOWNSAMPLINGS, spatial_dims)
        super().__init__(spatial_dims, in_channels, out_channels, levels)
        self.residual = residual
        self.halo = tuple(
            reach(
                [
                    Layer(7, padding=3),
                    *(Layer(3, level[axis]) for level in levels),
                    *[Layer(3)] * (2 * blocks),
                    *(Layer(3, level[axis], transposed=True) for level in reversed(levels)),
                    Layer(7, padding=3),
                ],
                self.divisor[axis],
            )
            for axis in range(spatial_dims)
        )

        def conv(channels_in: int, channels_out: int, side: int = 3) -> torch.nn.modules.conv._ConvNd:
            padding = (side - 1) // 2
            return Conv[Conv.CONV, spatial_dims](
                channels_in, channels_out, side, padding=padding, padding_mode="replicate"
            )

        def normed(*layers: torch.nn.Module, channels: int, act: bool = True) -> list[torch.nn.Module]:
            rectifier = [torch.nn.ReLU(inplace=True)] if act else []
            return [*layers, feature_norm(norm, spatial_dims, channels), *rectifier]

        width = [features * 2**level for level in range(_DOWNSAMPLINGS + 1)]
        layers = normed(conv(in_channels, features, 7), channels=features)
        for level, stride in enumerate(levels):
            down = Conv[Conv.CONV, spatial_dims](width[level], width[level + 1], 3, stride=stride, padding=1)
            layers += normed(down, channels=width[level + 1])
        ends: list[torch.nn.modules.conv._ConvNd] = []
        for _ in range(blocks):
            ends.append(conv(width[-1], width[-1]))
            layers.append(
                _Residual(
                    *normed(conv(width[-1], width[-1]), channels=width[-1]),
                    *normed(ends[-1], channels=width[-1], act=False),
                )
            )
        for level, stride in reversed(list(enumerate(levels))):
            up = Conv[Conv.CONVTRANS, spatial_dims](
                width[level + 1], width[level], 3, stride, padding=1, output_padding=tuple(s - 1 for s in stride)
            )
            layers += normed(up, channels=width[level])
        last = conv(features, out_channels, 7)
        self.layers = torch.nn.Sequential(*layers, last)

        if norm is None or norm == SPECTRAL:
            he_weights(self)
            with torch.no_grad():
                for end in ends:
                    end.weight /= math.sqrt(blocks)
        else:
            normal_weights(self, _STD)
        if residual:
            torch.nn.init.zeros_(last.weight)
        if norm == SPECTRAL:
            add_spectral_norm(self, keep=[last] if residual else [])

    def run_padded(self, x: torch.Tensor) -> torch.Tensor:
        """Map a plain tensor whose sizes are multiples of ``divisor``."""
        return self.layers(x) + x if self.residual else self.layers(x)


class _Residual(torch.nn.Sequential):
    """Its input plus what its layers make of it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)
