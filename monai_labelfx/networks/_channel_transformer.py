# SPDX-License-Identifier: Apache-2.0
"""Attention between the channels of several scales, in place of the skip connections of a U-Net."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv

from monai_labelfx.networks._norms import make_norm

_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
_EPS = 1e-6  # of the layer norms, as in vision transformers


class ChannelCrossAttention(torch.nn.Module):
    """Multi-head channel-wise cross attention of the scales with all of them (Wang et al. 2022, equations 1 to 3).

    For tokens T_i (B, N, C_i) of scale i, and T_S (B, N, C_S) of all scales side by side, per head::

        Q_i = T_i W_i,  K = T_S W_K,  V = T_S W_V
        A_i = softmax(instance_norm(Q_i^T K / sqrt(C_S)))         (C_i, C_S), softmax over C_S
        result_i = mean over heads of V A_i^T                     (N, C_i), then a linear layer

    What is compared are channels, each a vector over the tokens; a head has the full width. A permutation of the tokens
    permutes the results.

    Args:
        channels: C_i of each scale.
        heads: number of heads.
        dropout: dropout of the attention and of the results.
    """

    def __init__(self, channels: Sequence[int], *, heads: int, dropout: float) -> None:
        super().__init__()
        total = sum(channels)
        self.heads = heads
        self.key = torch.nn.Linear(total, heads * total, bias=False)
        self.value = torch.nn.Linear(total, heads * total, bias=False)
        self.scales = torch.nn.ModuleList(_Scale(c, total, heads, dropout) for c in channels)

    def forward(self, tokens: list[torch.Tensor], everything: torch.Tensor) -> list[torch.Tensor]:
        """Results (B, N, C_i) of tokens (B, N, C_i) of each scale, and of all, (B, N, C_S)."""
        key, value = _split(self.key(everything), self.heads), _split(self.value(everything), self.heads)
        results: list[torch.Tensor] = []
        for number, scale in enumerate(self.scales):
            results.append(scale(tokens[number], key, value))
        return results


class _Scale(torch.nn.Module):
    """The queries of one scale, what they find, and the linear layer behind."""

    def __init__(self, channels: int, total: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.factor = 1 / math.sqrt(total)
        self.query = torch.nn.Linear(channels, heads * channels, bias=False)
        self.out = torch.nn.Linear(channels, channels, bias=False)
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, tokens: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        query = _split(self.query(tokens), self.heads) * self.factor
        scores = F.instance_norm(query.transpose(-1, -2) @ key)  # (B, heads, C_i, C_S)
        weights = self.dropout(torch.softmax(scores, -1))
        return self.dropout(self.out((value @ weights.transpose(-1, -2)).mean(1)))


def _split(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, N, heads * C) to (B, heads, N, C)."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


class ChannelTransformerLayer(torch.nn.Module):
    """Channel cross attention and, for each scale, a perceptron of its own; layer norm before, residual around both."""

    def __init__(self, channels: Sequence[int], *, heads: int, mlp_ratio: int, dropout: float) -> None:
        super().__init__()
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(c, eps=_EPS) for c in channels)
        self.norm_everything = torch.nn.LayerNorm(sum(channels), eps=_EPS)
        self.attention = ChannelCrossAttention(channels, heads=heads, dropout=dropout)
        self.perceptrons = torch.nn.ModuleList(
            torch.nn.Sequential(
                torch.nn.LayerNorm(c, eps=_EPS),
                torch.nn.Linear(c, mlp_ratio * c),
                torch.nn.GELU(),
                torch.nn.Dropout(dropout),
                torch.nn.Linear(mlp_ratio * c, c),
                torch.nn.Dropout(dropout),
            )
            for c in channels
        )

    def forward(self, tokens: list[torch.Tensor]) -> list[torch.Tensor]:
        """Map the tokens (B, N, C_i) of each scale to the same shapes."""
        normed: list[torch.Tensor] = []
        for number, norm in enumerate(self.norms):
            normed.append(norm(tokens[number]))
        attended = self.attention(normed, self.norm_everything(torch.cat(tokens, 2)))
        results: list[torch.Tensor] = []
        for number, perceptron in enumerate(self.perceptrons):
            x = tokens[number] + attended[number]
            results.append(x + perceptron(x))
        return results


class ChannelTransformer(torch.nn.Module):
    """The channel-wise cross fusion transformer (CCT): encoder features of all scales in, fused ones out.

    Features (B, C_i, *spatial_i) are embedded by a convolution whose side and stride are the patch of the scale, so
    that all have the same grid of N tokens, plus a learned position, which is interpolated linearly from the grid that
    it was made for. After the layers and a layer norm, tokens are repeated to the size of their features, pass a
    convolution of 1, norm and ReLU, and are added to them.

    Args:
        spatial_dims: number of spatial dimensions.
        channels: C_i of each scale.
        patches: voxels of a patch per axis, for each scale.
        grid: grid of tokens that positions are learned for.
        layers: number of layers.
        heads: heads of each attention.
        mlp_ratio: width of the perceptrons over C_i.
        dropout: rate of all dropouts.
        norm: norm after the convolution of 1.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: Sequence[int],
        patches: Sequence[tuple[int, ...]],
        grid: Sequence[int],
        *,
        layers: int,
        heads: int,
        mlp_ratio: int,
        dropout: float,
        norm: tuple | str | None,
    ) -> None:
        super().__init__()
        self.embeddings = torch.nn.ModuleList(
            _Embedding(spatial_dims, c, patch, grid, dropout) for c, patch in zip(channels, patches, strict=True)
        )
        self.layers = torch.nn.ModuleList(
            ChannelTransformerLayer(channels, heads=heads, mlp_ratio=mlp_ratio, dropout=dropout) for _ in range(layers)
        )
        self.reconstructions = torch.nn.ModuleList(_Reconstruction(spatial_dims, c, norm) for c in channels)

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Map features (B, C_i, \\*spatial_i) of each scale to the same shapes."""
        tokens: list[torch.Tensor] = []
        grid: list[int] = []
        for number, embedding in enumerate(self.embeddings):
            embedded = embedding(features[number])
            grid = list(embedded.shape[2:])
            tokens.append(embedded.flatten(2).transpose(1, 2))
        for layer in self.layers:
            tokens = layer(tokens)
        results: list[torch.Tensor] = []
        for number, reconstruction in enumerate(self.reconstructions):
            results.append(features[number] + reconstruction(tokens[number], grid, features[number].shape[2:]))
        return results


class _Embedding(torch.nn.Module):
    """Patches of the features of one scale as (B, C, *grid), plus positions."""

    def __init__(
        self, spatial_dims: int, channels: int, patch: tuple[int, ...], grid: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        self.mode = _LINEAR[spatial_dims]
        self.conv = Conv[Conv.CONV, spatial_dims](channels, channels, kernel_size=patch, stride=patch)
        self.positions = torch.nn.Parameter(torch.zeros(1, channels, *grid))
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        positions = F.interpolate(self.positions, size=x.shape[2:], mode=self.mode)
        return self.dropout(x + positions.to(x.dtype))


class _Reconstruction(torch.nn.Module):
    """Tokens (B, N, C) of a grid at the size of the features of their scale."""

    def __init__(self, spatial_dims: int, channels: int, norm: tuple | str | None) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(channels, eps=_EPS)
        self.conv = torch.nn.Sequential(
            Conv[Conv.CONV, spatial_dims](channels, channels, kernel_size=1),
            make_norm(norm, spatial_dims, channels),
            torch.nn.ReLU(),
        )

    def forward(self, tokens: torch.Tensor, grid: list[int], size: list[int]) -> torch.Tensor:
        x = self.norm(tokens).transpose(1, 2).unflatten(2, grid)
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
