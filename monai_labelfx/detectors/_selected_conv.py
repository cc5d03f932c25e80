# SPDX-License-Identifier: Apache-2.0
"""A convolution evaluated at chosen places only: the same numbers, for outputs too large to compute everywhere."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch.nn.functional import embedding, linear, pad


def convolution_at(convolution: Any, maps: torch.Tensor, image: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """What a convolution of stride 1 with as many voxels of padding as keep the size gives at some places.

    The neighbourhoods of the places are gathered, and multiplied by the kernel as a matrix; the gradient reaches maps
    and kernel.

    Args:
        convolution: of any number of axes, odd kernel, stride, dilation and groups 1, zeros around the map.
        maps: (B, C, \\*spatial).
        image: (P,) of each place, 0 to B - 1.
        place: (P,) its number among the voxels of a map in C order.

    Returns:
        (P, out_channels) in the dtype of the maps, computed in that of the convolution.

    Raises:
        ValueError: for a convolution of another kind.

    Example:
        >>> conv, maps = torch.nn.Conv3d(2, 5, 3, padding=1), torch.randn(2, 2, 4, 5, 6)
        >>> some = convolution_at(conv, maps, torch.tensor([0, 1]), torch.tensor([7, 119]))
        >>> every = conv(maps).flatten(2)
        >>> torch.allclose(some, torch.stack([every[0, :, 7], every[1, :, 119]]), atol=1e-5)
        True
    """
    weight, bias = convolution.weight, convolution.bias
    size = maps.shape[2:]
    reach = [n // 2 for n in weight.shape[2:]]
    plain = {*convolution.stride, *convolution.dilation, convolution.groups, *(n % 2 for n in weight.shape[2:])} == {1}
    if not plain or list(convolution.padding) != reach or convolution.padding_mode != "zeros":
        raise ValueError(f"convolution must have an odd kernel, stride 1 and zeros around, got {convolution}")
    around = pad(maps, [n for r in reversed(reach) for n in (r, r)])
    shape = around.shape[2:]
    steps = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        steps[axis] = steps[axis + 1] * shape[axis + 1]
    first = torch.zeros_like(place)  # voxel of the padded map where the neighbourhood of a place begins
    rest = place
    for axis in range(len(size) - 1, -1, -1):
        first = first + rest % size[axis] * steps[axis]
        rest = rest // size[axis]
    kernel = itertools.product(*(range(2 * r + 1) for r in reach))
    offsets = torch.tensor([sum(k * s for k, s in zip(one, steps, strict=True)) for one in kernel], device=place.device)
    rows = around.flatten(2).transpose(1, 2).reshape(-1, maps.shape[1])  # (B * voxels, C)
    number = (image * shape.numel() + first)[:, None] + offsets
    found = embedding(number, rows)  # whose gradient is the same in every run
    matrix = weight.flatten(2).transpose(1, 2).flatten(1)
    return linear(found.flatten(1).to(weight.dtype), matrix, bias).to(maps.dtype)
