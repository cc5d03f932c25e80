# SPDX-License-Identifier: Apache-2.0
"""Normalisation of the adversarial networks: spectral norm of the weights, a norm of the features, or none."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from monai.networks.layers.factories import Norm
from monai.networks.layers.utils import get_norm_layer
from torch.nn.utils.parametrizations import spectral_norm

SPECTRAL = "spectral"
_CONV = torch.nn.modules.conv._ConvNd
_BATCH_NORM = torch.nn.modules.batchnorm._BatchNorm


def add_spectral_norm(network: torch.nn.Module, *, keep: Iterable[torch.nn.Module] = ()) -> None:
    """Divide the weight of each convolution below ``network``, except those in ``keep``, by its spectral norm.

    Call it after the weights have got their first values: the power iteration starts from 15 steps on them, so that a
    network is right in evaluation mode before it has seen a batch. Weights changed behind its back would not be. A
    matrix of zeros has no direction to be scaled along and belongs into ``keep``.
    """
    kept = set(keep)
    for module in [m for m in network.modules() if isinstance(m, _CONV) and m not in kept]:
        spectral_norm(module)


def feature_norm(norm: tuple | str | None, spatial_dims: int, channels: int) -> torch.nn.Module:
    """The layer of a MONAI norm specification; the identity for None and for ``"spectral"``, which acts on weights.

    Raises:
        ValueError: for a name that MONAI does not know.
    """
    if norm is None or norm == SPECTRAL:
        return torch.nn.Identity()
    name = norm if isinstance(norm, str) else norm[0]
    if str(name).upper() not in Norm.names:
        raise ValueError(f"norm must be 'spectral', None or a norm of MONAI such as 'instance', got {norm!r}.")
    return get_norm_layer(norm, spatial_dims, channels)


def normal_weights(network: torch.nn.Module, std: float) -> None:
    """Draw weights of convolutions and linear layers around 0, of batch norms around 1; set their biases to 0."""
    for module in network.modules():
        if not isinstance(module, (_CONV, torch.nn.Linear, _BATCH_NORM)) or module.weight is None:
            continue
        torch.nn.init.normal_(module.weight, float(isinstance(module, _BATCH_NORM)), std)
        if module.bias is not None:
            torch.nn.init.zeros_(module.bias)


def he_weights(network: torch.nn.Module, negative_slope: float = 0.0) -> None:
    """Draw weights of convolutions so that a rectifier of this slope keeps the variance (He 2015); zero biases."""
    gain = torch.nn.init.calculate_gain("leaky_relu", negative_slope)
    for module in network.modules():
        if isinstance(module, _CONV):
            fan_in = module.weight.numel() / module.out_channels
            if module.transposed:  # between two inputs there are voxels that each kernel weight only meets in turn
                fan_in /= math.prod(module.stride)
            torch.nn.init.normal_(module.weight, 0, gain / math.sqrt(fan_in))
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
