# SPDX-License-Identifier: Apache-2.0
"""The U-Net of DenoiSeg and Noise2Void, for any number of spatial dimensions and any image size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Pool

from monai_labelfx.networks._any_size import AnySizeNetwork, check_counts, per_axis, strides_per_level
from monai_labelfx.networks.blur_pool import MaxBlurPool

_CONVS_PER_LEVEL = 2
_INITS = ("glorot_uniform", "torch")
_UPSAMPLING = {"nearest": ("nearest",) * 3, "linear": ("linear", "bilinear", "trilinear")}


class DenoiSegUNet(AnySizeNetwork):
    """U-Net with one output tensor: denoised channels first, then background, foreground and border logits.

    Defaults are the paper's: depth 4, 32 features doubling per level, two convolution-norm-ReLU per level, max pooling,
    nearest-neighbour upsampling with concatenation, a linear 1x1 convolution last; 5,500,548 parameters in 2-D and
    16,486,596 in 3-D. Images of any size are accepted: they are padded at the far end of each axis, by repeating the
    outermost voxel, to a multiple of ``divisor``, and the output is cropped back.

    Args:
        spatial_dims: number of spatial dimensions.
        in_channels: channels of the image.
        out_channels: channels of the output; ``in_channels + 3`` by default. 3 is a plain three-class U-Net.
        features: features of the first level, doubled by each further one.
        depth: number of poolings.
        strides: pooling per axis: one number, one per axis, or one such entry per level. Thin stacks want 1 on the thin
            axis, as in ``(2, 2, 1)`` or ``[(2, 2, 1), (2, 2, 1), 2, 2]``.
        kernel_size: side of the convolutions, odd, one number or one per axis.
        norm: MONAI's norm specification, or None. The default is batch norm with Keras' constants, as the reference.
        act: MONAI's activation specification.
        upsample: ``"nearest"`` or ``"linear"``.
        blur_pool: pool with :py:class:`MaxBlurPool` (N2V2).
        top_skip: concatenate the first level's features; N2V2 leaves them out.
        init: ``"glorot_uniform"`` with zero bias (the reference), or ``"torch"`` for PyTorch's own.

    Attributes:
        divisor: per axis, the product of the strides: sizes that are multiples of it need no padding, and tiles whose
            origins are multiples of it see the same pooling grid as the whole image.
        halo: per axis, how far beyond a tile whose bounds are multiples of ``divisor`` its output depends on the image,
            in voxels: read with this margin, a tile gives the whole image's result (in evaluation mode, with batch norm
            or none). 22, 46 and 94 for the paper's network at depth 2, 3 and 4.

    Raises:
        ValueError: for arguments out of range, and in forward for an input of another rank or number of channels, an
            empty image, or one whose deepest level leaves batch norm (in training) or instance norm a single voxel.

    Notes:
        The paper does not state initialisation and batch-norm constants; they follow its code (csbdeep). With a
        momentum of 0.01 the running statistics need some 500 steps to forget their start, so for very short trainings
        pass ``norm="batch"`` (momentum 0.1). N2V2 is ``blur_pool=True, top_skip=False``. A MetaTensor is run as a plain
        tensor and the result carries its metadata. A program that torch.export made with dynamic sizes
        (``Dim.AUTO``) wants two or more voxels per dynamic axis at the deepest level; TorchScript and ONNX take any.

    Example:
        >>> import torch
        >>> net = DenoiSegUNet(3, features=4, depth=2, strides=(2, 2, 1))
        >>> net(torch.rand(1, 1, 9, 16, 1)).shape
        torch.Size([1, 4, 9, 16, 1])
        >>> net.divisor
        (4, 4, 1)
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        out_channels: int | None = None,
        *,
        features: int = 32,
        depth: int = 4,
        strides: int | Sequence[int | Sequence[int]] = 2,
        kernel_size: int | Sequence[int] = 3,
        norm: tuple | str | None = ("batch", {"momentum": 0.01, "eps": 1e-3}),
        act: tuple | str | None = ("relu", {"inplace": True}),
        upsample: str = "nearest",
        blur_pool: bool = False,
        top_skip: bool = True,
        init: str = "glorot_uniform",
    ) -> None:
        out_channels = in_channels + 3 if out_channels is None else out_channels
        check_counts(features=features, depth=depth)
        _check_options(upsample, init)
        levels = strides_per_level(strides, depth, spatial_dims)
        kernel = per_axis("kernel_size", kernel_size, spatial_dims)
        if any(k % 2 == 0 for k in kernel):
            raise ValueError(f"kernel_size must be odd on every axis, got {kernel}.")
        super().__init__(spatial_dims, in_channels, out_channels, levels)
        self.top_skip = top_skip
        self.mode = _UPSAMPLING[upsample][spatial_dims - 1]
        self.halo = tuple(
            _halo(kernel[axis], [level[axis] for level in levels], blur_pool, upsample == "linear")
            for axis in range(spatial_dims)
        )

        def convs(*channels: int) -> list[torch.nn.Module]:
            shared: dict[str, Any] = {"kernel_size": kernel, "adn_ordering": "NA", "act": act, "norm": norm}
            return [Convolution(spatial_dims, i, o, **shared) for i, o in zip(channels, channels[1:], strict=False)]

        def pool(level: int) -> torch.nn.Module:
            if blur_pool:
                return MaxBlurPool(spatial_dims, levels[level])
            return Pool[Pool.MAX, spatial_dims](kernel_size=levels[level], stride=levels[level])

        width = [features * 2**level for level in range(depth + 1)]
        self.encoders = torch.nn.ModuleList([torch.nn.Sequential(*convs(in_channels, width[0], width[0]))])
        for level in range(1, depth):
            down = convs(width[level - 1], width[level], width[level])
            self.encoders.append(torch.nn.Sequential(pool(level - 1), *down))
        self.bottleneck = torch.nn.Sequential(pool(depth - 1), *convs(width[-2], width[-1], width[-2]))
        self.decoders = torch.nn.ModuleList()
        for level in reversed(range(depth)):
            concatenated = width[level] * (2 if level or top_skip else 1)
            self.decoders.append(torch.nn.Sequential(*convs(concatenated, width[level], width[max(level - 1, 0)])))
        self.head = Convolution(spatial_dims, width[0], out_channels, kernel_size=1, conv_only=True)
        if init == "glorot_uniform":
            self.apply(_glorot_uniform)

    def run_padded(self, x: torch.Tensor) -> torch.Tensor:
        """Map a plain tensor whose sizes are multiples of ``divisor``."""
        skips: list[torch.Tensor] = []
        for encoder in self.encoders:
            x = encoder(x)
            skips.append(x)
        x = self.bottleneck(x)
        for decoder in self.decoders:
            skip = skips.pop()
            x = F.interpolate(x, size=skip.shape[2:], mode=self.mode)
            if self.top_skip or len(skips) > 0:
                x = torch.cat([x, skip], dim=1)
            x = decoder(x)
        return self.head(x)


def _check_options(upsample: str, init: str) -> None:
    if upsample not in _UPSAMPLING:
        raise ValueError(f"upsample must be one of {tuple(_UPSAMPLING)}, got {upsample!r}.")
    if init not in _INITS:
        raise ValueError(f"init must be one of {_INITS}, got {init!r}.")


def _halo(kernel: int, strides: Sequence[int], blur_pool: bool, linear: bool) -> int:
    """Follow the interval that a block of output voxels depends on, along one axis, from the head to the image."""
    widen = _CONVS_PER_LEVEL * (kernel // 2)
    first, last = 0, math.prod(strides) - 1
    end = last
    skips = []
    for s in strides:
        first, last = first - widen, last + widen
        skips.append((first, last))
        if linear:  # a fine voxel lies at (voxel + 1/2) / s - 1/2 between two coarse ones
            first, last = (2 * first + 1 - s) // (2 * s), -((s - 1 - 2 * last) // (2 * s))
        else:
            first, last = first // s, last // s
    first, last = first - widen, last + widen
    for s, skip in zip(reversed(strides), reversed(skips), strict=True):
        blur = s - 1 if blur_pool else 0
        first, last = first * s - blur, last * s + s - 1 + blur
        first, last = min(first, skip[0]) - widen, max(last, skip[1]) + widen
    return max(-first, last - end)


def _glorot_uniform(module: torch.nn.Module) -> None:
    if isinstance(module, torch.nn.modules.conv._ConvNd):
        torch.nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            torch.nn.init.zeros_(module.bias)
