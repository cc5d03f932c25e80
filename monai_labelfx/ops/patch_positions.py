# SPDX-License-Identifier: Apache-2.0
"""Where patches are taken from: random places of each image, drawn without replacement."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


@torch.no_grad()
def patch_positions(
    size: Sequence[int],
    batch: int,
    count: int,
    *,
    stride: int | Sequence[int] = 1,
    foreground: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    r"""Draw K places of each image at random, no place of an image twice, and each image by itself.

    A place is a voxel, or with a stride s a block of s voxels a side whose first voxel is a multiple of s. Blocks that
    would reach over the end of an axis are no places, as in average pooling. All places of an image are equally likely.

    Args:
        size: voxels of the image along each of D axes.
        batch: number of images, B.
        count: K, places of an image.
        stride: side of the blocks, one number or one per axis. Default 1, single voxels.
        foreground: mask (B, 1, \*size), of any type, not 0 where patches are wanted: patches of air, all
            around a patient, are negatives that teach nothing. A block counts as foreground if one of its voxels
            does. An image with fewer than K places in the foreground gives all of these, and the rest from elsewhere.
            Default ``None``, all places.
        generator: source of the random numbers; one of the CPU draws the same for all devices. Default ``None``,
            torch's global generator of the device.
        device: of the result. Default ``None``: that of ``foreground`` or of ``generator``, or else the CPU.

    Returns:
        (B, K, D) int64, the voxel, or the first voxel of the block, in the order of the axes.

    Raises:
        ValueError: if an image has fewer than K places, a number is out of its range, or the mask is of another shape.

    Notes:
        The authors' code takes the same places in all images of a batch, and all there are where it finds fewer than K.
        Here that is an error: K and with it the share of the negatives would depend on the size of the crop.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops import patch_positions
        >>> foreground = torch.zeros(1, 1, 4, 6)
        >>> foreground[..., 2:, 3] = 1
        >>> patch_positions((4, 6), 1, 2, foreground=foreground).sort(1).values.tolist()
        [[[2, 3], [3, 3]]]
        >>> patch_positions((4, 6), 1, 1, stride=2, foreground=foreground).tolist()
        [[[2, 2]]]
    """
    size = tuple(size)
    strides = (stride,) * len(size) if isinstance(stride, int) else tuple(stride)
    _check(size, batch, count, strides)
    places = tuple(n // step for n, step in zip(size, strides, strict=True))
    if math.prod(places) < count:
        raise ValueError(
            f"an image of {size} voxels has {math.prod(places)} places for patches at stride {stride}, fewer than the "
            f"{count} to draw: draw fewer, or take larger crops."
        )
    if device is None:
        device = next((found.device for found in (foreground, generator) if found is not None), torch.device("cpu"))
    source = generator.device if generator is not None else device
    # The largest of random keys: a draw without replacement for all images at once.
    keys = torch.rand((batch, math.prod(places)), generator=generator, device=source).to(device)
    if foreground is not None:
        keys += _blocks(foreground, batch, size, strides).to(device)
    index = keys.topk(count, dim=1).indices
    axes: list[torch.Tensor] = []
    for n, step in zip(reversed(places), reversed(strides), strict=True):
        axes.append(index % n * step)
        index = index // n
    return torch.stack(axes[::-1], dim=-1)


def _blocks(mask: torch.Tensor, batch: int, size: tuple[int, ...], strides: tuple[int, ...]) -> torch.Tensor:
    """True where a block holds a voxel of the mask: (B, places)."""
    if mask.shape != (batch, 1, *size):
        raise ValueError(f"foreground must be {(batch, 1, *size)}, one mask per image, got {tuple(mask.shape)}.")
    inside = mask.as_subclass(torch.Tensor) != 0
    for axis, step in enumerate(strides, start=2):
        inside = inside.unfold(axis, step, step).any(-1)
    return inside.flatten(1)


def _check(size: tuple[int, ...], batch: int, count: int, strides: tuple[int, ...]) -> None:
    if not size or min(size) < 1:
        raise ValueError(f"size must hold one number of voxels above 0 for each axis, got {size}.")
    if batch < 0 or count < 1:
        raise ValueError(f"batch must be at least 0 and count at least 1, got {batch} and {count}.")
    if len(strides) != len(size) or min(strides) < 1:
        raise ValueError(f"stride must be one number above 0, or {len(size)}, one per axis, got {strides}.")
