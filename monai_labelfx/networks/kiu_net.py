# SPDX-License-Identifier: Apache-2.0
"""KiU-Net: a U-Net beside an over-complete network that upsamples where the U-Net pools, fused at each level."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Pool

from monai_labelfx.networks._any_size import AnySizeNetwork, check_counts, strides_per_level
from monai_labelfx.networks._norms import make_norm

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


class KiUNet(AnySizeNetwork):
    r"""KiU-Net: a small U-Net for what is large and a Ki-Net, at many times the image's resolution, for edges.

    From [1]_; Notes say what differs.

    Both branches have the same features. Where the encoder of the U-Net pools, that of the Ki-Net upsamples, and the
    other way round in the decoders; each decoder step adds the features of its own branch's encoder. After each encoder
    level and each decoder level but the last, a cross residual fusion block adds to either branch the other's features
    after a convolution of side 3, norm and ReLU, resampled linearly::

        u' = u + resample(relu(norm(conv(k)))),    k' = k + resample(relu(norm(conv(u))))

    The sum of both branches and a convolution of 1 give the logits.

    Memory: the deepest features of the Ki-Net have ``expansion`` voxels for each voxel of the image, stride ** (depth *
    spatial_dims): 64 at depth 3 in 2-D, 512 at depth 3 in 3-D, 64 at depth 2 in 3-D. With the default 64 channels at
    depth 3, an image of 128 x 128 makes tensors of 268 MB in float32, and training keeps about ten of that size; a
    3-D network of depth 2, of 32 channels, needs the same for 32 x 32 x 32. Run larger ones in windows.

    Images of any size are accepted: they are padded at the far end of each axis, by repeating the outermost voxel, to a
    multiple of ``divisor``, and the output is cropped back. Parameters with one channel in and two classes: 216,546 in
    2-D.

    Args:
        spatial_dims: number of spatial dimensions.
        in_channels: channels of the image.
        out_channels: channels of the output, logits.
        features: channels of the first level, doubled by each further one (16); the decoders end with half of it.
        depth: number of levels. None is 3, and 2 in 3-D, where the third level of the paper takes 512 times the voxels.
        strides: pooling of the U-Net and upsampling of the Ki-Net per axis: one number, one per axis, or one such entry
            per level. Thin stacks want 1 on the thin axis.
        norm: norm specification of MONAI or ``"group"`` of this package, or None.

    Attributes:
        divisor: per axis, the product of the strides: sizes that are multiples of it need no padding.
        expansion: voxels of the Ki-Net's deepest features per voxel of the image.

    Shape:
        - input: (B, in_channels, \*spatial), any size.
        - output: logits (B, out_channels, \*spatial).

    Raises:
        ValueError: for arguments out of range, and in forward for an input of another rank or number of channels, an
            empty image, or one whose deepest level leaves batch norm (in training) or instance norm a single voxel.

    Notes:
        The released model has 290,658 parameters (0.29 million): 74,112 more, two fusion convolutions of 64 channels
        that its forward never calls; the 216,546 others are ours. It puts a ReLU on the logits, which then can't be
        negative; ours are free.

    Example:
        >>> import torch
        >>> net = KiUNet(2, 3, 2, features=4, depth=2)
        >>> net(torch.rand(1, 3, 13, 10)).shape, net.expansion
        (torch.Size([1, 2, 13, 10]), 16)
        >>> KiUNet(2, 3, 2).expansion, KiUNet(3, 1, 2).expansion, KiUNet(3, 1, 2, depth=3).expansion
        (64, 64, 512)

    References:
        .. [1] Valanarasu et al., "KiU-Net: Overcomplete Convolutional Architectures for Biomedical Image and Volumetric
            Segmentation", IEEE Transactions on Medical Imaging 41(4), 2022.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        features: int = 16,
        depth: int | None = None,
        strides: int | Sequence[int | Sequence[int]] = 2,
        norm: tuple | str | None = "batch",
    ) -> None:
        depth = (2 if spatial_dims == 3 else 3) if depth is None else depth
        check_counts(depth=depth)
        if features < 2:
            raise ValueError(f"features must be 2 or more, because the decoders end with half of it, got {features}.")
        levels = strides_per_level(strides, depth, spatial_dims)
        super().__init__(spatial_dims, in_channels, out_channels, levels)
        self.expansion = 1
        for factor in self.divisor:
            self.expansion *= factor

        width = [features * 2**level for level in range(depth)]
        down = list(zip([in_channels, *width], width, levels, strict=False))
        up = list(zip(width[::-1], [*width[-2::-1], features // 2], levels[::-1], strict=True))

        def steps(channels: list[tuple[int, int, tuple[int, ...]]], pooling: bool) -> torch.nn.ModuleList:
            return torch.nn.ModuleList(_Step(spatial_dims, i, o, s, pooling, norm) for i, o, s in channels)

        self.u_encoders, self.u_decoders = steps(down, True), steps(up, False)
        self.ki_encoders, self.ki_decoders = steps(down, False), steps(up, True)
        self.encoder_fusions = torch.nn.ModuleList(_Fusion(spatial_dims, o, norm) for _, o, _ in down)
        self.decoder_fusions = torch.nn.ModuleList(_Fusion(spatial_dims, o, norm) for _, o, _ in up[:-1])
        self.head = Conv[Conv.CONV, spatial_dims](features // 2, out_channels, kernel_size=1)

    def run_padded(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of an image whose sizes are multiples of ``divisor``."""
        u, ki = x, x
        skips: list[tuple[torch.Tensor, torch.Tensor]] = []
        for u_step, ki_step, fusion in zip(self.u_encoders, self.ki_encoders, self.encoder_fusions):  # noqa: B905
            u, ki = fusion(u_step(u), ki_step(ki))
            skips.append((u, ki))
        skips.pop()  # the deepest features are the decoders' input
        for u_step, ki_step, fusion in zip(self.u_decoders, self.ki_decoders, self.decoder_fusions):  # noqa: B905
            u, ki = fusion(u_step(u), ki_step(ki))
            u_skip, ki_skip = skips.pop()
            u, ki = u + u_skip, ki + ki_skip
        return self.head(self.u_decoders[-1](u) + self.ki_decoders[-1](ki))


class _Step(torch.nn.Module):
    """Convolution of side 3, pooling or linear upsampling by ``stride``, norm and ReLU."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        stride: tuple[int, ...],
        pooling: bool,
        norm: tuple | str | None,
    ) -> None:
        super().__init__()
        self.conv = Conv[Conv.CONV, spatial_dims](in_channels, out_channels, kernel_size=3, padding=1)
        self.resample = (
            Pool[Pool.MAX, spatial_dims](kernel_size=stride, stride=stride)
            if pooling
            else torch.nn.Upsample(scale_factor=tuple(float(s) for s in stride), mode=_LINEAR[spatial_dims])
        )
        self.norm = make_norm(norm, spatial_dims, out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.resample(self.conv(x))))


class _Fusion(torch.nn.Module):
    """Cross residual fusion: each branch gets what a convolution finds in the other."""

    def __init__(self, spatial_dims: int, channels: int, norm: tuple | str | None) -> None:
        super().__init__()
        self.mode = _LINEAR[spatial_dims]

        def residual() -> torch.nn.Sequential:
            conv = Conv[Conv.CONV, spatial_dims](channels, channels, kernel_size=3, padding=1)
            return torch.nn.Sequential(conv, make_norm(norm, spatial_dims, channels), torch.nn.ReLU())

        self.to_u, self.to_ki = residual(), residual()

    def forward(self, u: torch.Tensor, ki: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from_ki = F.interpolate(self.to_u(ki), size=u.shape[2:], mode=self.mode)
        from_u = F.interpolate(self.to_ki(u), size=ki.shape[2:], mode=self.mode)
        return u + from_ki, ki + from_u
