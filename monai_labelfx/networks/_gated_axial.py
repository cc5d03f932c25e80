# SPDX-License-Identifier: Apache-2.0
"""Self-attention along one axis with gated relative positions, and the U-Net of the Medical Transformer made of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Pad, Pool

from monai_labelfx.networks._norms import make_norm

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
# Of the relative positions of queries, of keys, of the values, and of the relative positions of values.
_GATES = (0.1, 0.1, 1.0, 0.1)


class GatedAxialAttention(torch.nn.Module):
    r"""Multi-head self-attention of the voxels of each line along one axis (Valanarasu et al. 2021, equation 3).

    For voxel i of a line, with w over the line, d channels of values per head and d / 2 of queries and keys::

        a_iw = (q_i . k_w + G_Q q_i . r^q_{w-i} + G_K k_w . r^k_{w-i}) / sqrt(d / 2)
        y_i = sum_w softmax_w(a_iw) (G_V1 v_w + G_V2 r^v_{w-i})

    The vectors r belong to the distance w - i and are shared by all heads and lines. Distances of ``span`` or more
    share the vectors of ``span - 1``, so that lines of any length can be run and a distance means the same in each.

    Args:
        spatial_dims: number of spatial dimensions.
        channels: channels of the input and of the output, a multiple of ``2 * heads``.
        axis: spatial axis of the lines.
        span: length of the line whose distances all have vectors of their own.
        heads: number of heads.
        norm: norm of queries, keys and values, and of the result.

    Shape:
        - input and output: (B, channels, \*spatial).
    """

    def __init__(
        self, spatial_dims: int, channels: int, axis: int, span: int, *, heads: int, norm: tuple | str | None
    ) -> None:
        super().__init__()
        self.axis, self.span, self.heads, self.channels = axis, span, heads, channels
        self.width = channels // heads
        project = Conv[Conv.CONV, spatial_dims](channels, 2 * channels, kernel_size=1, bias=False)
        torch.nn.init.normal_(project.weight, 0, math.sqrt(1 / channels))
        self.qkv = torch.nn.Sequential(project, make_norm(norm, spatial_dims, 2 * channels))
        self.norm = make_norm(norm, spatial_dims, channels)
        self.gates = torch.nn.Parameter(torch.tensor(_GATES))
        self.relative = torch.nn.Parameter(torch.empty(2 * span - 1, 2 * self.width))
        torch.nn.init.normal_(self.relative, 0, math.sqrt(1 / self.width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, channels, \\*spatial) to the same shape."""
        lines = self.qkv(x).movedim(self.axis + 2, -1).movedim(1, -2)  # (B, other axes, 2 channels, length)
        result = self.attend(lines.reshape(-1, self.heads, 2 * self.width, lines.shape[-1]))
        result = result.reshape(lines.narrow(-2, 0, self.channels).shape)
        return self.norm(result.movedim(-2, 1).movedim(-1, self.axis + 2))

    def attend(self, qkv: torch.Tensor) -> torch.Tensor:
        """Values (N, heads, d, length) of lines (N, heads, 2 d, length) that hold queries, keys and values."""
        half = self.width // 2
        q, k, v = qkv[:, :, :half] / math.sqrt(half), qkv[:, :, half : 2 * half], qkv[:, :, 2 * half :]
        place = torch.arange(qkv.shape[-1], device=qkv.device)
        distance = (place[None, :] - place[:, None]).clamp(1 - self.span, self.span - 1) + self.span - 1
        relative = F.embedding(distance, self.relative.to(qkv.dtype))  # (length, length, 2 d)
        of_q, of_k, of_v = (
            relative[..., :half],
            relative[..., half : 2 * half] / math.sqrt(half),
            relative[..., 2 * half :],
        )
        gates = self.gates.to(qkv.dtype)
        scores = (
            torch.einsum("nhci,nhcw->nhiw", q, k)
            + gates[0] * torch.einsum("nhci,iwc->nhiw", q, of_q)
            + gates[1] * torch.einsum("nhcw,iwc->nhiw", k, of_k)
        )
        weights = torch.softmax(scores, -1)
        return gates[2] * torch.einsum("nhiw,nhcw->nhci", weights, v) + gates[3] * torch.einsum(
            "nhiw,iwc->nhci", weights, of_v
        )


class GatedAxialBlock(torch.nn.Module):
    """Residual block: convolution of 1, attention along each axis, mean pooling by ``stride``, convolution of 1.

    Maps (B, in_channels, *spatial) to (B, 2 * features, *ceil(spatial / stride)).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        features: int,
        spans: Sequence[int],
        stride: int,
        *,
        heads: int,
        norm: tuple | str | None,
    ) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        out = 2 * features
        self.stride = stride
        self.down = torch.nn.Sequential(
            conv(in_channels, features, kernel_size=1, bias=False),
            make_norm(norm, spatial_dims, features),
            torch.nn.ReLU(),
        )
        self.attentions = torch.nn.Sequential(
            *(
                GatedAxialAttention(spatial_dims, features, axis, span, heads=heads, norm=norm)
                for axis, span in enumerate(spans)
            )
        )
        self.pool = Pool[Pool.AVG, spatial_dims](kernel_size=stride, stride=stride)
        self.up = torch.nn.Sequential(
            torch.nn.ReLU(),
            conv(features, out, kernel_size=1, bias=False),
            make_norm(norm, spatial_dims, out),
        )
        self.shortcut = (
            torch.nn.Identity()
            if stride == 1 and in_channels == out
            else torch.nn.Sequential(
                conv(in_channels, out, kernel_size=1, stride=stride, bias=False), make_norm(norm, spatial_dims, out)
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.attentions(self.down(x))
        if self.stride > 1:
            pad: list[int] = []  # the last window has less than ``stride`` voxels: with its last repeated, their mean
            for axis in range(y.ndim - 1, 1, -1):
                pad += [0, (self.stride - y.shape[axis] % self.stride) % self.stride]
            y = self.pool(F.pad(y, pad, mode="replicate"))
        return torch.relu(self.up(y) + self.shortcut(x))


class GatedAxialUNet(torch.nn.Module):
    """U-Net whose encoder is a stem of three convolutions and levels of gated axial blocks.

    The stem halves the image, and so does each level after the first. A decoder step is a convolution of side 3,
    linear upsampling to the size of the encoder's features, ReLU and the sum with them; the last step comes back to
    the image. With ``bottleneck`` the deepest features first pass a convolution of stride 2 and a step of their own.

    Args:
        spatial_dims: number of spatial dimensions.
        in_channels: channels of the image.
        features: channels of the output, and of the attention of the first level; each further level doubles them.
        stem: channels that the stem ends with; its middle has ``8 * features``.
        blocks: blocks of each level.
        size: per axis, the image size whose distances all have vectors of their own.
        bottleneck: the step of stride 2 below the last level.
        heads: heads of each attention.
        norm: norm of stem and blocks.

    Attributes:
        reduction: the factor between the image and the deepest features that are normalised.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        features: int,
        *,
        stem: int,
        blocks: Sequence[int],
        size: Sequence[int],
        bottleneck: bool,
        heads: int,
        norm: tuple | str | None,
    ) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        self.mode = _LINEAR[spatial_dims]
        self.bottleneck = bottleneck
        self.reduction = 2 ** len(blocks)

        # Padded apart: oneDNN's backward pass of a 3-D convolution of side 7 and stride 2 that pads by itself writes
        # beyond its memory where the first axis has five voxels (PyTorch 2.13 on CPUs with AVX-512).
        layers: list[torch.nn.Module] = [Pad[Pad.CONSTANTPAD, spatial_dims](3, 0.0)]
        for i, o, side, stride, pad in (
            (in_channels, stem, 7, 2, 0),
            (stem, 8 * features, 3, 1, 1),
            (8 * features, stem, 3, 1, 1),
        ):
            layers += [
                conv(i, o, kernel_size=side, stride=stride, padding=pad, bias=False),
                make_norm(norm, spatial_dims, o),
                torch.nn.ReLU(),
            ]
        self.stem = torch.nn.Sequential(*layers)

        size = [math.ceil(n / 2) for n in size]
        channels, self.levels = stem, torch.nn.ModuleList()
        for level, count in enumerate(blocks):
            width, rows = features * 2**level, []
            for number in range(count):
                stride = 2 if level and not number else 1
                rows.append(GatedAxialBlock(spatial_dims, channels, width, size, stride, heads=heads, norm=norm))
                size, channels = [math.ceil(n / stride) for n in size], 2 * width
            self.levels.append(torch.nn.Sequential(*rows))

        widths = [2 * features * 2**level for level in reversed(range(len(blocks)))]
        self.steps = torch.nn.ModuleList()
        if bottleneck:
            self.steps.append(conv(widths[0], widths[0], kernel_size=3, stride=2, padding=1))
        for width in widths:
            self.steps.append(conv(width, width // 2, kernel_size=3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features (B, features, *spatial) of an image (B, in_channels, *spatial) of any size."""
        image = x
        x = self.stem(x)
        targets = [image]
        for level in self.levels:
            x = level(x)
            targets.append(x)
        if not self.bottleneck:
            targets.pop()
        for step in self.steps:
            target = targets.pop()
            x = torch.relu(F.interpolate(step(x), size=target.shape[2:], mode=self.mode))
            if len(targets) > 0:  # the image itself gives a size only
                x = x + target
        return x
