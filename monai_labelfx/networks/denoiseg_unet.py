# SPDX-License-Identifier: Apache-2.0
"""The U-Net of DenoiSeg and Noise2Void, for any number of spatial dimensions and any image size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import MetaTensor, get_track_meta
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Pool
from monai.utils import ensure_tuple_rep

from monai_labelfx.networks.blur_pool import MaxBlurPool

_CONVS_PER_LEVEL = 2
_INITS = ("glorot_uniform", "torch")
_UPSAMPLING = {"nearest": ("nearest",) * 3, "linear": ("linear", "bilinear", "trilinear")}


class DenoiSegUNet(torch.nn.Module):
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
        super().__init__()
        out_channels = in_channels + 3 if out_channels is None else out_channels
        _check_options(spatial_dims, in_channels, out_channels, features, depth, upsample, init)
        levels = _strides_per_level(strides, depth, spatial_dims)
        kernel = _per_axis("kernel_size", kernel_size, spatial_dims)
        if any(k % 2 == 0 for k in kernel):
            raise ValueError(f"kernel_size must be odd on every axis, got {kernel}.")

        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.top_skip = top_skip
        self.mode = _UPSAMPLING[upsample][spatial_dims - 1]
        self.divisor = tuple(math.prod(level[axis] for level in levels) for axis in range(spatial_dims))
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
        self.batch_norm = any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in self.modules())
        self.instance_norm = any(isinstance(m, torch.nn.modules.instancenorm._InstanceNorm) for m in self.modules())
        if init == "glorot_uniform":
            self.apply(_glorot_uniform)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map an image (B, in_channels, *spatial) to (B, out_channels, *spatial)."""
        if not torch.jit.is_scripting():
            if not torch.jit.is_tracing():
                self._check(x)
            if isinstance(x, MetaTensor):
                result = self._run(x.as_tensor())
                return MetaTensor(result).copy_meta_from(x, copy_attr=False) if get_track_meta() else result
        return self._run(x)

    def _run(self, x: torch.Tensor) -> torch.Tensor:
        size = x.shape[2:]
        pad: list[int] = []
        for axis in range(self.spatial_dims):  # F.pad counts from the last axis
            last = self.spatial_dims - 1 - axis
            pad += [0, (self.divisor[last] - size[last] % self.divisor[last]) % self.divisor[last]]
        x = F.pad(x, pad, mode="replicate")

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
        return F.pad(self.head(x), [-p for p in pad])

    def _check(self, x: torch.Tensor) -> None:
        if x.ndim != self.spatial_dims + 2 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"DenoiSegUNet with spatial_dims={self.spatial_dims} and in_channels={self.in_channels} takes "
                f"(B, {self.in_channels}, {', '.join(['size'] * self.spatial_dims)}), got {tuple(x.shape)}."
            )
        if any(n < 1 for n in x.shape[2:]):
            raise ValueError(f"DenoiSegUNet got an image without voxels, of shape {tuple(x.shape)}.")
        if self.instance_norm or (self.batch_norm and self.training):
            values = math.prod(-(-n // d) for n, d in zip(x.shape[2:], self.divisor, strict=True))
            if values * (1 if self.instance_norm else x.shape[0]) == 1:
                raise ValueError(
                    f"{'Instance' if self.instance_norm else 'Batch'} norm has one voxel to normalise when a batch of "
                    f"shape {tuple(x.shape)} is pooled by {self.divisor}: use larger crops, more images per batch, "
                    "fewer levels or another norm."
                )


def _check_options(
    spatial_dims: int, in_channels: int, out_channels: int, features: int, depth: int, upsample: str, init: str
) -> None:
    if spatial_dims not in (1, 2, 3):
        raise ValueError(f"spatial_dims must be 1, 2 or 3, got {spatial_dims}.")
    counts = {"in_channels": in_channels, "out_channels": out_channels, "features": features, "depth": depth}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}.")
    if upsample not in _UPSAMPLING:
        raise ValueError(f"upsample must be one of {tuple(_UPSAMPLING)}, got {upsample!r}.")
    if init not in _INITS:
        raise ValueError(f"init must be one of {_INITS}, got {init!r}.")


def _per_axis(name: str, value: Any, spatial_dims: int) -> tuple[int, ...]:
    """One positive int per axis."""
    values = ensure_tuple_rep(value, spatial_dims) if isinstance(value, int) else value
    if not isinstance(values, Sequence) or len(values) != spatial_dims:
        raise ValueError(f"{name} must be one number or {spatial_dims}, one per axis, got {value!r}.")
    if any(not isinstance(v, int) or v < 1 for v in values):
        raise ValueError(f"{name} must hold whole numbers of 1 or more, got {value!r}.")
    return tuple(values)


def _strides_per_level(strides: Any, depth: int, spatial_dims: int) -> list[tuple[int, ...]]:
    """One stride per level and axis."""
    if isinstance(strides, Sequence) and any(isinstance(entry, Sequence) for entry in strides):
        if len(strides) != depth:
            raise ValueError(f"strides per level must have depth={depth} entries, got {len(strides)}: {strides!r}.")
        return [_per_axis("strides of a level", entry, spatial_dims) for entry in strides]
    return [_per_axis("strides", strides, spatial_dims)] * depth


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
