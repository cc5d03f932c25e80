# SPDX-License-Identifier: Apache-2.0
"""Densely connected convolutions without normalisation, of the RRDB and of the invertible generator."""

from __future__ import annotations

import torch
from monai.networks.layers.factories import Conv, Pad

LAYERS = 5


class DenseConvolutions(torch.nn.Module):
    """Five convolutions of side 3, each of the input and of all results before it (the receptive radius is 5).

    Args:
        spatial_dims: number of spatial dimensions.
        in_channels: channels of the input.
        out_channels: channels of the last convolution, which is the result.
        growth: channels of the four others.
        negative_slope: of the leaky ReLU after each convolution.
        activate_last: whether the last convolution has one too.
        replicate: pad by repeating the outermost voxel instead of by zeros.

    Shape:
        - input: (B, in_channels, *spatial), output: (B, out_channels, *spatial).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        growth: int,
        *,
        negative_slope: float,
        activate_last: bool,
        replicate: bool,
    ) -> None:
        super().__init__()
        self.activate_last = activate_last
        self.act = torch.nn.LeakyReLU(negative_slope, inplace=True)
        # Each result is padded once, not again for every convolution that reads it.
        self.pad = Pad[Pad.REPLICATIONPAD, spatial_dims](1) if replicate else torch.nn.Identity()
        self.convs = torch.nn.ModuleList()
        for number in range(LAYERS):
            width = growth if number < LAYERS - 1 else out_channels
            self.convs.append(
                Conv[Conv.CONV, spatial_dims](
                    in_channels + number * growth, width, kernel_size=3, padding=0 if replicate else 1
                )
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        maps = [self.pad(x)]
        for conv in self.convs[:-1]:
            maps.append(self.pad(self.act(conv(torch.cat(maps, dim=1)))))
        y = self.convs[-1](torch.cat(maps, dim=1))
        return self.act(y) if self.activate_last else y
