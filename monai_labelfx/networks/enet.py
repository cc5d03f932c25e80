# SPDX-License-Identifier: Apache-2.0
"""ENet as the box-supervised stroke experiments use it, for any number of spatial dimensions and any image size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv, Dropout, Pool
from monai.networks.layers.utils import get_act_layer

from monai_labelfx.networks._any_size import AnySizeNetwork, check_counts, strides_per_level

_INITS = ("glorot_normal", "torch")
_PROJECTION = 4  # a bottleneck works on a quarter of its channels
_POOLINGS = 3
_ASYMMETRIC = 5


class ENet(AnySizeNetwork):
    """Small, fast encoder-decoder of bottlenecks with max-unpooling (Paszke et al. 2016), in the form used on ATLAS.

    The form of Kervadec et al. (2020) and Wang and Xia (2021, section 3.2). Its parts, with f features:

    1. initial block: a convolution of stride 2 beside a max pooling of the image, f channels together;
    2. first group: a pooling bottleneck to 4 f channels, then four plain ones;
    3. second group: a pooling bottleneck to 8 f, then plain, dilated by 2, asymmetric, dilated by 4, plain, dilated by
       8, asymmetric, dilated by 16; third group: the same eight, the last one to 4 f channels;
    4. decoder: unpooling to where the maxima came from, joined with the encoder's features of that size, bottlenecks
       to f; once more to the initial block's size; then nearest-neighbour upsampling, two convolutions of side 3 and
       one of side 1 for the logits.

    A bottleneck projects to a quarter of its channels, convolves with side 3 (asymmetric: side 5 along one axis after
    the other), projects back, and adds its input; norm and PReLU follow each convolution.
    458,230 parameters in 2-D with one channel in and out.

    Images of any size are accepted: they are padded at the far end of each axis, by repeating the outermost voxel, to a
    multiple of ``divisor``, and the output is cropped back.

    Args:
        spatial_dims: number of spatial dimensions.
        in_channels: channels of the image, fewer than ``features``.
        out_channels: channels of the output, logits.
        features: channels of the initial block, a multiple of 4.
        strides: pooling per axis: one number, one per axis, or one such entry for each of the three poolings. Thin
            stacks want 1 on the thin axis, as in ``(2, 2, 1)``.
        dropout: of the first group, the dilated, pooling and unpooling bottlenecks, and of the other ones.
        norm: MONAI's norm specification, or None.
        act: MONAI's activation specification.
        init: ``"glorot_normal"`` with norm weights around 1 of standard deviation 0.02 (the reference), or ``"torch"``
            for PyTorch's own.

    Attributes:
        divisor: per axis, the product of the strides: sizes that are multiples of it need no padding.

    Raises:
        ValueError: for arguments out of range, and in forward for an input of another rank or number of channels, an
            empty image, or one whose deepest level leaves batch norm (in training) or instance norm a single voxel.

    Notes:
        Follows the papers' code where it differs from Paszke et al.: 15 features of the first convolution beside one
        image channel, without norm and activation; dropout of single values; concatenated skips; the upsampling by
        interpolation at the end. That code's 459,530 parameters include 1,300 which no output depends on (two
        auxiliary heads of 1,298 and two PReLUs); they are left out, since distributed training stumbles over them. In
        n-D the asymmetric bottleneck convolves along each of the n axes.

    Example:
        >>> import torch
        >>> net = ENet(3, features=8, strides=(2, 2, 1))
        >>> net(torch.rand(1, 1, 9, 16, 3)).shape
        torch.Size([1, 1, 9, 16, 3])
        >>> net.divisor
        (8, 8, 1)
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        out_channels: int = 1,
        *,
        features: int = 16,
        strides: int | Sequence[int | Sequence[int]] = 2,
        dropout: tuple[float, float] = (0.01, 0.1),
        norm: tuple | str | None = "batch",
        act: tuple | str | None = "prelu",
        init: str = "glorot_normal",
    ) -> None:
        check_counts(in_channels=in_channels)
        if features % _PROJECTION or features <= in_channels:
            raise ValueError(
                f"features must be a multiple of {_PROJECTION} above in_channels={in_channels}, got {features}."
            )
        if len(dropout) != 2 or any(not 0 <= rate < 1 for rate in dropout):
            raise ValueError(f"dropout must be two rates from 0 to below 1, got {dropout}.")
        if init not in _INITS:
            raise ValueError(f"init must be one of {_INITS}, got {init!r}.")
        levels = strides_per_level(strides, _POOLINGS, spatial_dims)
        super().__init__(spatial_dims, in_channels, out_channels, levels)
        low, high = dropout
        layers: dict[str, Any] = {"spatial_dims": spatial_dims, "norm": norm, "act": act}
        f = features

        def group(out: int) -> torch.nn.Sequential:
            blocks: list[torch.nn.Module] = []
            for number, dilation in enumerate((2, 4, 8, 16)):
                width = out if dilation == 16 else 8 * f
                blocks.append(_Bottleneck(8 * f, 8 * f, high, asymmetric=number % 2 == 1, **layers))
                blocks.append(_Bottleneck(8 * f, width, low, dilation=dilation, **layers))
            return torch.nn.Sequential(*blocks)

        self.initial_conv = Conv[Conv.CONV, spatial_dims](in_channels, f - in_channels, 3, levels[0], 1)
        self.initial_pool = Pool[Pool.MAX, spatial_dims](kernel_size=levels[0], stride=levels[0])
        self.down1 = _PoolingBottleneck(f, 4 * f, levels[1], low, **layers)
        self.group1 = torch.nn.Sequential(*(_Bottleneck(4 * f, 4 * f, low, **layers) for _ in range(4)))
        self.down2 = _PoolingBottleneck(4 * f, 8 * f, levels[2], low, **layers)
        self.group2 = group(8 * f)
        self.group3 = group(4 * f)
        self.up2 = _branch(8 * f, 4 * f, low, side=3, **layers)
        self.act2 = _activation(act)
        self.tail2 = torch.nn.Sequential(
            _Bottleneck(4 * f, 4 * f, high, **layers), _Bottleneck(4 * f, f, high, **layers)
        )
        self.up1 = torch.nn.Sequential(_branch(2 * f, f, low, side=3, **layers), _Bottleneck(f, f, high, **layers))
        self.act1 = _activation(act)
        self.last = torch.nn.Sequential(
            *(_conv(f, f, 3, bias=False, **layers) for _ in range(2)),
            Conv[Conv.CONV, spatial_dims](f, out_channels, 1),
        )
        if init == "glorot_normal":
            self.apply(_glorot_normal)

    def run_padded(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of an image whose sizes are multiples of ``divisor``."""
        size = x.shape[2:]
        half = torch.cat([self.initial_conv(x), self.initial_pool(x)], dim=1)
        quarter, indices1 = self.down1(half)
        quarter = self.group1(quarter)
        x, indices2 = self.down2(quarter)
        x = self.group3(self.group2(x))

        x = _unpool(x, indices2, quarter)
        x = self.tail2(self.act2(x + self.up2(torch.cat([x, quarter], dim=1))))
        x = _unpool(x, indices1, half)
        x = self.act1(x + self.up1(torch.cat([x, half], dim=1)))
        return self.last(F.interpolate(x, size=size, mode="nearest"))


class _Bottleneck(torch.nn.Module):
    """Input, brought to ``out_channels`` where they differ, plus the branch; then the activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dropout: float,
        *,
        dilation: int = 1,
        asymmetric: bool = False,
        **layers: Any,
    ) -> None:
        super().__init__()
        self.branch = _branch(in_channels, out_channels, dropout, dilation=dilation, asymmetric=asymmetric, **layers)
        self.shortcut: torch.nn.Module = torch.nn.Identity()
        if in_channels != out_channels and dilation > 1:
            self.shortcut = Convolution(layers["spatial_dims"], in_channels, out_channels, conv_only=True)
        elif in_channels != out_channels:
            self.shortcut = _conv(in_channels, out_channels, 1, **layers)
        self.act = _activation(layers["act"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.branch(x) + self.shortcut(x))


class _PoolingBottleneck(torch.nn.Module):
    """Max pooling, with zeros as its further channels, plus a branch of the same stride; gives the indices too."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: tuple[int, ...], dropout: float, **layers: Any
    ) -> None:
        super().__init__()
        spatial_dims = layers["spatial_dims"]
        self.pool = Pool[Pool.MAX, spatial_dims](kernel_size=stride, stride=stride, return_indices=True)
        self.pad = [0, 0] * spatial_dims + [0, out_channels - in_channels]
        self.branch = _branch(in_channels, out_channels, dropout, side=stride, strides=stride, padding=0, **layers)
        self.act = _activation(layers["act"])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled, indices = self.pool(x)
        return self.act(F.pad(pooled, self.pad) + self.branch(x)), indices


def _branch(
    in_channels: int,
    out_channels: int,
    dropout: float,
    *,
    side: int | Sequence[int] = 1,
    dilation: int = 1,
    asymmetric: bool = False,
    strides: int | Sequence[int] = 1,
    padding: int | None = None,
    **layers: Any,
) -> torch.nn.Sequential:
    """Project to a quarter of the channels with a convolution of ``side``, convolve, project back."""
    inner, spatial_dims = in_channels // _PROJECTION, layers["spatial_dims"]
    convs = [_conv(in_channels, inner, side, strides=strides, padding=padding, **layers)]
    if asymmetric:
        sides = [[_ASYMMETRIC if a == axis else 1 for a in range(spatial_dims)] for axis in range(spatial_dims)]
        convs += [Convolution(spatial_dims, inner, inner, kernel_size=each, conv_only=True) for each in sides[:-1]]
        convs.append(_conv(inner, inner, sides[-1], **layers))
    else:
        convs.append(_conv(inner, inner, 3, dilation=dilation, **layers))
    convs.append(_conv(inner, out_channels, 1, **layers))
    return torch.nn.Sequential(*convs, Dropout[Dropout.DROPOUT, 1](dropout))


def _conv(in_channels: int, out_channels: int, side: int | Sequence[int], **layers: Any) -> Convolution:
    """Convolution, norm and activation."""
    return Convolution(
        in_channels=in_channels, out_channels=out_channels, kernel_size=side, adn_ordering="NA", **layers
    )


def _activation(act: tuple | str | None) -> torch.nn.Module:
    return torch.nn.Identity() if act is None else get_act_layer(act)


def _unpool(x: torch.Tensor, indices: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Put values back where max pooling took them from; zeros elsewhere. ``before`` gives the size."""
    grid = torch.zeros_like(before, dtype=x.dtype)
    return grid.flatten(2).scatter(2, indices.flatten(2), x.flatten(2)).view_as(before)


def _glorot_normal(module: torch.nn.Module) -> None:
    if isinstance(module, torch.nn.modules.conv._ConvNd):
        torch.nn.init.xavier_normal_(module.weight)
    elif isinstance(module, torch.nn.modules.batchnorm._NormBase | torch.nn.GroupNorm) and module.affine:
        torch.nn.init.normal_(module.weight, 1.0, 0.02)
