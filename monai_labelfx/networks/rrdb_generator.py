# SPDX-License-Identifier: Apache-2.0
"""The generator of patch-wise deep metric learning: one residual-in-residual dense block between two convolutions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from monai.data import MetaTensor
from monai.networks.layers.factories import Conv

from monai_labelfx.networks._any_size import AnySizeNetwork, check_counts, strides_per_level
from monai_labelfx.networks._dense_block import LAYERS, DenseConvolutions
from monai_labelfx.networks._spectral import add_spectral_norm, he_weights, normal_weights

_STD = 0.01


class RRDBGenerator(AnySizeNetwork):
    """Small denoiser at full resolution, in two halves: an encoder, whose features are compared, and a decoder.

    The generator of Jung et al. (2022). With x the image, c a convolution of side 3 and p one of side 1::

        f = c1(x)
        tap 1 = f + s * dense(dense(dense(f)))      each block: dense(f) = f + s * five dense convolutions of f
        tap 2 = p(tap 1)
        y = c2(leaky ReLU(tap 2))                   plus x with ``residual``

    Leaky ReLU follows every dense convolution, the last one too. Convolutions pad by repeating the outermost voxel and
    have unit spectral norm. There is no normalisation of features, which would remove the CT number.

    Parameters in 2-D with one channel: 95,169; 32,833 with ``share_weights`` (the published model).

    Args:
        spatial_dims: number of spatial dimensions.
        in_channels: channels of the image.
        out_channels: channels of the output.
        features: channels of both taps (32).
        growth: channels that each dense convolution adds (8).
        dense_blocks: blocks of five convolutions each (3).
        share_weights: use one block ``dense_blocks`` times over, as the released code does.
        residual: add the image to the output and start the last convolution at zero, so that training starts at the
            identity. That convolution has no spectral norm, because a matrix of zeros has none.
        residual_scale: s above (0.1).
        negative_slope: of the leaky ReLU (0.2).
        spectral: spectral norm on each convolution.

    Attributes:
        halo: receptive radius per axis, 17 by default: tiles read with this margin give the whole image's result.
        divisor: ones; there is no pooling.

    Shape:
        - input: (B, in_channels, *spatial), any size, output: (B, out_channels, *spatial).

    Raises:
        ValueError: for counts below 1, ``residual`` with other channels out than in, and in forward for an input of
            another rank or number of channels or without voxels.

    Notes:
        The paper says "RRDB" only; all above follows the released code. There, a Python list is multiplied, so that the
        three blocks of the RRDB are the same object: hence ``share_weights``. ESRGAN's network, which the name comes
        from, has 23 such triples of distinct blocks, 64 features, a scale of 0.2, no activation after a block's last
        convolution and a skip around the trunk. Weights start with standard deviation 0.01 and biases with 0 (the
        released options); spectral norm divides that scale out, and without it weights start with He's. Spectral norm
        is estimated by power iteration in training mode only, so that the network is a fixed function in evaluation
        mode; the released code evaluates in training mode.

    Example:
        >>> import torch
        >>> net = RRDBGenerator(2)
        >>> image = torch.rand(1, 1, 33, 20)
        >>> net(image).shape, net.halo
        (torch.Size([1, 1, 33, 20]), (17, 17))
        >>> [tuple(tap.shape) for tap in net.encode(image)]
        [(1, 32, 33, 20), (1, 32, 33, 20)]
        >>> sum(p.numel() for p in RRDBGenerator(2, share_weights=True).parameters())
        32833
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        out_channels: int = 1,
        *,
        features: int = 32,
        growth: int = 8,
        dense_blocks: int = 3,
        share_weights: bool = False,
        residual: bool = False,
        residual_scale: float = 0.1,
        negative_slope: float = 0.2,
        spectral: bool = True,
    ) -> None:
        check_counts(in_channels=in_channels, features=features, growth=growth, dense_blocks=dense_blocks)
        if residual and in_channels != out_channels:
            raise ValueError(f"residual needs as many channels out as in, got {in_channels} in and {out_channels} out.")
        strides_per_level(1, 1, spatial_dims)
        super().__init__(spatial_dims, in_channels, out_channels, [])
        self.dense_blocks, self.residual, self.residual_scale = dense_blocks, residual, residual_scale
        self.halo = (1 + LAYERS * dense_blocks + 1,) * spatial_dims

        def conv(channels_in: int, channels_out: int) -> torch.nn.modules.conv._ConvNd:
            return Conv[Conv.CONV, spatial_dims](
                channels_in, channels_out, kernel_size=3, padding=1, padding_mode="replicate"
            )

        self.first = conv(in_channels, features)
        self.blocks = torch.nn.ModuleList(
            DenseConvolutions(
                spatial_dims,
                features,
                features,
                growth,
                negative_slope=negative_slope,
                activate_last=True,
                replicate=True,
            )
            for _ in range(1 if share_weights else dense_blocks)
        )
        self.middle = Conv[Conv.CONV, spatial_dims](features, features, kernel_size=1)
        self.act = torch.nn.LeakyReLU(negative_slope)  # not in place: a tap is its input
        self.last = conv(features, out_channels)

        if spectral:
            normal_weights(self, _STD)
        else:
            he_weights(self, negative_slope)
        if residual:
            torch.nn.init.zeros_(self.last.weight)
        if spectral:
            add_spectral_norm(self, keep=[self.last] if residual else [])

    def run_padded(self, x: torch.Tensor) -> torch.Tensor:
        """Map a plain tensor of any size."""
        return self.decode(self._encode(x))

    def encode(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Taps 1 and 2, each (B, features, *spatial), as a list that ``decode`` turns into the output.

        With ``residual`` the list also remembers the image, in its attribute ``image``; a plain list of the same taps
        can't be decoded then.
        """
        self._check(x)
        return self._encode(x.as_tensor() if isinstance(x, MetaTensor) else x)

    def decode(self, taps: Sequence[torch.Tensor]) -> torch.Tensor:
        """The output (B, out_channels, *spatial) from the list that ``encode`` returned: ``decode(encode(x))`` is
        ``forward(x)``, and only the last tap is read."""
        y = self.last(self.act(taps[-1]))
        if not self.residual:
            return y
        if not isinstance(taps, _Taps):
            raise ValueError("decode of a residual RRDBGenerator needs the list that encode returned, got another one.")
        return y + taps.image

    def _encode(self, x: torch.Tensor) -> _Taps:
        features = self.first(x)
        y = features
        for number in range(self.dense_blocks):
            y = torch.add(y, self.blocks[number % len(self.blocks)](y), alpha=self.residual_scale)
        trunk = torch.add(features, y, alpha=self.residual_scale)
        return _Taps((trunk, self.middle(trunk)), x)


class _Taps(list[torch.Tensor]):
    """The taps of an image, with the image that a residual decoder adds."""

    def __init__(self, taps: Iterable[torch.Tensor], image: torch.Tensor) -> None:
        super().__init__(taps)
        self.image = image
