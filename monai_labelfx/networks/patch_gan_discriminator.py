# SPDX-License-Identifier: Apache-2.0
"""The patch discriminators of the unpaired denoising papers, as one network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.networks.blocks import ChannelSELayer
from monai.networks.layers.factories import Conv

from monai_labelfx.networks._any_size import check_counts, per_axis, strides_per_level
from monai_labelfx.networks._spectral import SPECTRAL, add_spectral_norm, feature_norm, normal_weights

_STD = 0.02


class PatchGANDiscriminator(torch.nn.Module):
    """Judge an image patch by patch: a few convolutions to one channel of scores, no sigmoid (Isola et al. 2017).

    Each convolution but the last is followed by the norm (not the first one), leaky ReLU and squeeze-and-excitation
    (not the first one). All pad with ``(kernel_size - 1) // 2`` zeros. Defaults are the discriminator of Jung et al.
    (2022): 401,373 parameters in 2-D, 16 x 16 scores for 128 x 128 voxels. The others' are::

        cycleGAN (70 x 70 patches; 2,762,689 parameters for one channel)
            features=(64, 128, 256, 512), kernel_size=4, norm="instance", squeeze_excitation=None
        GAN-Circle (2,764,481): the same with norm=("instance", {"affine": True})
        invertible (661,633): features=(64, 128, 256), strides=(2, 2, 1, 1), kernel_size=4, norm="batch",
            squeeze_excitation=None, bias=(False, True, True, True)

    with the default strides (2, 2, 2, 1, 1) where none are given.

    Args:
        spatial_dims: number of spatial dimensions.
        in_channels: channels of the image.
        features: channels of each convolution but the last.
        strides: of each convolution, the last one included; an entry is one number or one per axis (thin stacks want 1
            on the thin axis).
        kernel_size: side of all convolutions, one number or one per axis, 3 or more where there is a stride.
        norm: ``"spectral"`` for the weights of every convolution, MONAI's norm specification for the features
            (``"instance"`` has no scale and shift unless ``("instance", {"affine": True})`` asks for them), or None,
            which is what a gradient penalty wants.
        squeeze_excitation: reduction of MONAI's ``ChannelSELayer`` (16), or None for none. It pools over the whole
            image, so scores are then no longer those of separate patches.
        negative_slope: of the leaky ReLU (0.2).
        bias: whether convolutions have a bias, one answer or one each.

    Shape:
        - input: (B, in_channels, *spatial), output: (B, 1, *spatial'), where each convolution makes n voxels of an axis
          to (n + 2 * ((kernel_size - 1) // 2) - kernel_size) // stride + 1. A MetaTensor gives a plain tensor: scores
          don't lie on the image's grid.

    Raises:
        ValueError: for arguments out of range, and in forward for an input of another rank or number of channels, or
            one that is too small to leave a score, or for instance norm a second voxel.

    Notes:
        MONAI's ``PatchDiscriminator`` has neither spectral norm nor squeeze-and-excitation and returns all features.
        Weights start with standard deviation 0.02 and biases with 0, as in cycleGAN; Jung et al. have 0.01, which
        spectral norm divides out. With an even ``kernel_size``, GAN-Circle's code pads one voxel more at the far end,
        so its maps are larger by one per convolution of stride 1.

    Example:
        >>> import torch
        >>> PatchGANDiscriminator(2)(torch.rand(2, 1, 128, 128)).shape
        torch.Size([2, 1, 16, 16])
        >>> flat = PatchGANDiscriminator(3, features=(8, 16), strides=((2, 2, 1), 1, 1), squeeze_excitation=4)
        >>> flat(torch.rand(1, 1, 16, 9, 3)).shape
        torch.Size([1, 1, 8, 5, 3])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        *,
        features: Sequence[int] = (32, 64, 128, 256),
        strides: Sequence[int | Sequence[int]] = (2, 2, 2, 1, 1),
        kernel_size: int | Sequence[int] = 3,
        norm: tuple | str | None = SPECTRAL,
        squeeze_excitation: int | None = 16,
        negative_slope: float = 0.2,
        bias: bool | Sequence[bool] = True,
    ) -> None:
        super().__init__()
        strides_per_level(1, 1, spatial_dims)
        check_counts(in_channels=in_channels, **{f"features[{n}]": width for n, width in enumerate(features)})
        number = len(features) + 1
        biases = [bias] * number if isinstance(bias, bool) else list(bias)
        for name, values in (("strides", strides), ("bias", biases)):
            if len(values) != number:
                raise ValueError(
                    f"{name} must have {number} entries, one per convolution (features has one less), "
                    f"got {tuple(values)}."
                )
        self.spatial_dims, self.in_channels = spatial_dims, in_channels
        self.strides = [per_axis("strides of a convolution", stride, spatial_dims) for stride in strides]
        self.kernel = per_axis("kernel_size", kernel_size, spatial_dims)
        padding = tuple((side - 1) // 2 for side in self.kernel)
        widths = [in_channels, *features, 1]
        layers: list[torch.nn.Module] = []
        for n in range(number):
            options: dict[str, Any] = {"stride": self.strides[n], "padding": padding, "bias": biases[n]}
            layers.append(Conv[Conv.CONV, spatial_dims](widths[n], widths[n + 1], self.kernel, **options))
            if n == number - 1:
                break
            if n > 0:
                layers.append(feature_norm(norm, spatial_dims, widths[n + 1]))
            layers.append(torch.nn.LeakyReLU(negative_slope, inplace=True))
            if n > 0 and squeeze_excitation is not None:
                layers.append(_excitation(spatial_dims, widths[n + 1], squeeze_excitation))
        self.layers = torch.nn.Sequential(*layers)
        self._instance = any(isinstance(m, torch.nn.modules.instancenorm._InstanceNorm) for m in layers)
        normal_weights(self, _STD)
        if norm == SPECTRAL:
            add_spectral_norm(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores (B, 1, *spatial') of an image (B, in_channels, *spatial)."""
        self._check(x)
        return self.layers(x.as_tensor() if isinstance(x, MetaTensor) else x)

    def _check(self, x: torch.Tensor) -> None:
        if x.ndim != self.spatial_dims + 2 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"PatchGANDiscriminator with spatial_dims={self.spatial_dims} and in_channels={self.in_channels} takes "
                f"(B, {self.in_channels}, {', '.join(['size'] * self.spatial_dims)}), got {tuple(x.shape)}."
            )
        size = list(x.shape[2:])
        for n, stride in enumerate(self.strides):
            size = [(v + 2 * ((k - 1) // 2) - k) // s + 1 for v, k, s in zip(size, self.kernel, stride, strict=True)]
            normed = self._instance and 0 < n < len(self.strides) - 1
            if any(v < 1 for v in size) or normed and all(v == 1 for v in size):
                raise ValueError(
                    f"PatchGANDiscriminator got a batch of shape {tuple(x.shape)}, of which convolution {n + 1} of "
                    f"{len(self.strides)} leaves {tuple(size)} voxels: use larger crops or smaller strides"
                    f"{', or another norm than instance norm' if normed else ''}."
                )


def _excitation(spatial_dims: int, channels: int, reduction: int) -> torch.nn.Module:
    if not 1 <= reduction <= channels:
        raise ValueError(f"squeeze_excitation must be from 1 to the {channels} channels of a layer, got {reduction}.")
    return ChannelSELayer(spatial_dims, channels, reduction)
