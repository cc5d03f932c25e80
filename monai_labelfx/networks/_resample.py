# SPDX-License-Identifier: Apache-2.0
"""Average pooling to a number of bins and linear interpolation, one axis after the other, as matrix products."""

from __future__ import annotations

import torch


def average_bins(x: torch.Tensor, bins: list[int]) -> torch.Tensor:
    """Average (B, C, *spatial) to (B, C, *bins), of which bin i of b holds ``floor(i n / b)`` to ``ceil((i+1) n / b)``.

    What PyTorch calls adaptive average pooling: bins overlap where b does not divide n, and may be more than voxels.
    As a product with a matrix per axis it is the same for any number of axes, and its backward pass has one order of
    summation on every device, which those of PyTorch's operators do not have on a GPU.

    Example:
        >>> import torch
        >>> average_bins(torch.tensor([[[1.0, 2.0, 6.0]]]), [2])
        tensor([[[1.5000, 4.0000]]])
    """
    for count in bins:
        x = x.movedim(2, -1)
        voxels = x.shape[-1]
        edges = torch.arange(count + 1, device=x.device) * voxels
        first, end = edges[:-1] // count, (edges[1:] + count - 1) // count
        voxel = torch.arange(voxels, device=x.device).unsqueeze(1)
        inside = ((voxel >= first) & (voxel < end)).to(x.dtype)
        x = torch.matmul(x, inside / (end - first).to(x.dtype))
    return x


def resize_linear(x: torch.Tensor, size: list[int]) -> torch.Tensor:
    """Interpolate (B, C, *spatial) linearly to (B, C, *size), voxel i at ``(i + 1/2) / size`` of the axis.

    PyTorch's linear, bilinear or trilinear interpolation with ``align_corners=False``, as a product with a matrix per
    axis, see :py:func:`average_bins`; on a CPU also the faster form for volumes and for many channels.

    Example:
        >>> import torch
        >>> resize_linear(torch.tensor([[[0.0, 4.0]]]), [4])
        tensor([[[0., 1., 3., 4.]]])
    """
    for count in size:
        x = x.movedim(2, -1)
        voxels = x.shape[-1]
        place = (2 * torch.arange(count, device=x.device) + 1) * voxels - count  # in 1 / (2 count) of a voxel
        away = (place - torch.arange(voxels, device=x.device).unsqueeze(1) * (2 * count)).abs()
        near = (2 * count - away).clamp(min=0).to(torch.promote_types(x.dtype, torch.float32))
        x = torch.matmul(x, (near / near.sum(0)).to(x.dtype))  # the sum is 2 count except before and after all centres
    return x
