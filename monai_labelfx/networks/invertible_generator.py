# SPDX-License-Identifier: Apache-2.0
"""The generator of cycle-free cycleGAN: additive couplings and invertible mixing, run in both directions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.data import MetaTensor, get_track_meta

from monai_labelfx.networks._any_size import AnySizeNetwork, check_counts, per_axis, strides_per_level
from monai_labelfx.networks._dense_block import LAYERS, DenseConvolutions
from monai_labelfx.networks._spectral import he_weights

_PARTS = 4
_INITS = ("identity", "orthogonal")
_SLOPE = 0.2
_WEIGHT_SCALE = 0.1


class InvertibleGenerator(AnySizeNetwork):
    """Bijective network on the high band of an image: ``inverse(forward(x)) == x`` up to rounding (Kwon and Ye 2021).

    The voxels of each block of 2 x 2 (x 2) become channels of a coarser image; then, ``blocks`` times, these channels
    are mixed by an invertible matrix ``W = P L (U + diag(s))`` and coupled: split into quarters a, b, c, d,

    ::

        a' = a - f1(b, c, d)    b' = b - f2(a', c, d)    c' = c - f3(a', b', d)    d' = d - f4(a', b', c')

    with f five dense convolutions whose last one starts at zero. Each line is undone by adding what it subtracted, from
    the last to the first. Then the channels become voxels again.

    The network sees the **high band only**. The low band is carried outside and added to either image, so that
    (low, high) and (low, high') are mapped to each other; the released code splits its own output again instead, and
    since its split is not idempotent, its inverse is off by up to 15 HU.

    3,691,088 parameters in 2-D with one channel, the released configuration's. 80 of them lie in the halves of L and U
    that do not count.

    Args:
        spatial_dims: number of spatial dimensions.
        in_channels: channels of the image and of the output.
        blocks: mixings and couplings (4).
        growth: channels of each dense convolution but the last (64).
        squeeze: voxels per axis that become channels (2), one number or one per axis; thin stacks want 1 on the thin
            axis, as in ``(2, 2, 1)``. Together with ``in_channels`` they must give a multiple of 4 channels.
        init: ``"identity"`` starts all W, and so the network, at the identity; ``"orthogonal"`` starts each W at a
            random orthogonal matrix, as the released code does: its first output has nothing to do with the image,
            since nothing undoes the mixing.

    Attributes:
        divisor: ``squeeze`` per axis.
        halo: per axis, how far beyond a tile, aligned to ``divisor``, its output depends on the image, in either
            direction: 160 by default, 20 convolutions for each block of the coarser image.

    Shape:
        - input and output: (B, in_channels, *spatial). forward takes any size and pads at the far end by repeating the
          outermost voxel; inverse wants sizes that are multiples of ``divisor``, since what was padded is not known.

    Raises:
        ValueError: for arguments out of range; for an input of another rank or number of channels or without voxels;
            in inverse for sizes that are not multiples of ``divisor``.

    Notes:
        The squeezed image is mixed and added to in float64, only the dense convolutions run in the type of the weights
        (or of autocast): these few channels cost nothing, and what is left of the error of the inverse is the rounding
        of its input, 1e-3 HU or less at 2000 HU per unit in float32. The released code's dense convolutions start with
        Glorot's normal weights times 0.1; here with He's times 0.1, which differ little.

    Example:
        >>> import torch
        >>> net = InvertibleGenerator(2, growth=8)
        >>> high = torch.randn(1, 1, 32, 20)
        >>> torch.allclose(net(high), high, atol=1e-6)
        True
        >>> torch.allclose(net.inverse(net(high)), high, atol=1e-6)
        True
        >>> sum(p.numel() for p in InvertibleGenerator(2).parameters())
        3691088
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        *,
        blocks: int = 4,
        growth: int = 64,
        squeeze: int | Sequence[int] = 2,
        init: str = "identity",
    ) -> None:
        check_counts(in_channels=in_channels, blocks=blocks, growth=growth)
        if init not in _INITS:
            raise ValueError(f"init must be one of {_INITS}, got {init!r}.")
        strides_per_level(1, 1, spatial_dims)
        steps = per_axis("squeeze", squeeze, spatial_dims)
        channels = in_channels * math.prod(steps)
        if channels % _PARTS:
            raise ValueError(
                f"in_channels={in_channels} and squeeze={steps} give {channels} channels, which is not a "
                f"multiple of {_PARTS}."
            )
        super().__init__(spatial_dims, in_channels, in_channels, [steps])
        self.halo = tuple(LAYERS * _PARTS * blocks * step for step in self.divisor)
        self.mixings = torch.nn.ModuleList(_Mixing(channels, init) for _ in range(blocks))
        self.couplings = torch.nn.ModuleList(_Coupling(spatial_dims, channels, growth) for _ in range(blocks))

    def run_padded(self, x: torch.Tensor) -> torch.Tensor:
        """Map a plain tensor whose sizes are multiples of ``divisor``."""
        state = self._squeeze(x).double()
        for mixing, coupling in zip(self.mixings, self.couplings, strict=True):
            state = coupling(mixing(state))
        return self._unsqueeze(state).to(x.dtype)

    def inverse(self, y: torch.Tensor) -> torch.Tensor:
        """The image (B, in_channels, *spatial) that ``forward`` maps to ``y``; a MetaTensor keeps its metadata."""
        self._check(y)
        if any(size % step for size, step in zip(y.shape[2:], self.divisor, strict=True)):
            raise ValueError(
                f"inverse of InvertibleGenerator takes sizes that are multiples of {self.divisor}, got "
                f"{tuple(y.shape)}: crop or pad before forward."
            )
        state = self._squeeze(y.as_tensor() if isinstance(y, MetaTensor) else y).double()
        for mixing, coupling in zip(reversed(self.mixings), reversed(self.couplings), strict=True):
            state = mixing.inverse(coupling.inverse(state))  # type: ignore[operator]
        x = self._unsqueeze(state).to(y.dtype)
        if isinstance(y, MetaTensor) and get_track_meta():
            return MetaTensor(x).copy_meta_from(y, copy_attr=False)
        return x

    def _squeeze(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, *spatial) to (B, C * prod(divisor), *coarser): the voxels of a block, last axis fastest."""
        for axis in range(self.spatial_dims):  # the voxels of a block collect between the channel and the axes
            x = x.unflatten(2 + 2 * axis, (-1, self.divisor[axis])).movedim(3 + 2 * axis, 2 + axis)
        return x.flatten(1, 1 + self.spatial_dims)

    def _unsqueeze(self, x: torch.Tensor) -> torch.Tensor:
        x = x.unflatten(1, (-1, *self.divisor))
        for axis in reversed(range(self.spatial_dims)):
            x = x.movedim(2 + axis, 3 + 2 * axis).flatten(2 + 2 * axis, 3 + 2 * axis)
        return x


class _Mixing(torch.nn.Module):
    """The same invertible matrix at every voxel; its inverse solves two triangular systems."""

    permutation: torch.Tensor
    sign: torch.Tensor

    def __init__(self, channels: int, init: str) -> None:
        super().__init__()
        start = torch.eye(channels)
        if init == "orthogonal":
            torch.nn.init.orthogonal_(start)
        permutation, lower, upper = torch.linalg.lu(start)
        self.register_buffer("permutation", permutation)
        self.register_buffer("sign", upper.diagonal().sign())
        self.lower = torch.nn.Parameter(lower.tril(-1))
        self.upper = torch.nn.Parameter(upper.triu(1))
        self.log_scale = torch.nn.Parameter(upper.diagonal().abs().log())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        lower, upper = self._factors()
        return _apply(self.permutation.double() @ lower @ upper, x)

    def inverse(self, x: torch.Tensor) -> torch.Tensor:
        lower, upper = self._factors()
        inner = torch.linalg.solve_triangular(lower, self.permutation.mT.double(), upper=False, unitriangular=True)
        return _apply(torch.linalg.solve_triangular(upper, inner, upper=True), x)

    def _factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        eye = torch.eye(len(self.sign), dtype=torch.float64, device=self.sign.device)
        scale = self.sign.double() * self.log_scale.double().exp()
        return self.lower.double().tril(-1) + eye, self.upper.double().triu(1) + torch.diag(scale)


class _Coupling(torch.nn.Module):
    """Each quarter of the channels minus a function of the others, in turn."""

    def __init__(self, spatial_dims: int, channels: int, growth: int) -> None:
        super().__init__()
        part = channels // _PARTS
        self.functions = torch.nn.ModuleList(
            DenseConvolutions(
                spatial_dims,
                channels - part,
                part,
                growth,
                negative_slope=_SLOPE,
                activate_last=False,
                replicate=False,
            )
            for _ in range(_PARTS)
        )
        he_weights(self)
        with torch.no_grad():
            for function in self.functions:
                *inner, last = (m for m in function.modules() if isinstance(m, torch.nn.modules.conv._ConvNd))
                for conv in inner:
                    conv.weight *= _WEIGHT_SCALE
                torch.nn.init.zeros_(last.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = list(x.chunk(_PARTS, dim=1))
        for number, function in enumerate(self.functions):
            parts[number] = parts[number] - _of_others(function, parts, number)
        return torch.cat(parts, dim=1)

    def inverse(self, x: torch.Tensor) -> torch.Tensor:
        parts = list(x.chunk(_PARTS, dim=1))
        for number, function in reversed(list(enumerate(self.functions))):
            parts[number] = parts[number] + _of_others(function, parts, number)
        return torch.cat(parts, dim=1)


def _of_others(function: torch.nn.Module, parts: list[torch.Tensor], number: int) -> torch.Tensor:
    others = torch.cat(parts[:number] + parts[number + 1 :], dim=1)
    return function(others.to(next(function.parameters()).dtype)).double()


def _apply(matrix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return (matrix @ x.flatten(2)).view_as(x)  # autocast leaves float64 alone
