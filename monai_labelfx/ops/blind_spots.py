# SPDX-License-Identifier: Apache-2.0
"""Noise2Void's blind spots: hide few voxels of every image behind values taken from their surroundings.

All spots of a batch are handled together, by flat index. The hidden voxels are first set to NaN, so that "visible"
means "not NaN" everywhere below, and nothing can read what is hidden. Image borders are cropped, never padded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch

BLIND_SPOT_STRATEGIES = ("uniform", "median", "mean", "identity")

# Window values read at once: few enough to stay in a processor's cache, enough to fill a GPU.
_CHUNK = {"cpu": 2**18}
_CHUNK_ELSEWHERE = 2**22


@torch.no_grad()
def blind_spot_mask(
    images: torch.Tensor,
    fraction: float = 0.015,
    strategy: str = "uniform",
    *,
    window: int | Sequence[int] = 11,
    structure: Any = None,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Replace a few voxels of every image and channel by values of their neighbours (Noise2Void, Krull et al. 2019).

    Each image and channel gets exactly ``n = max(1, round(fraction * voxels))`` distinct blind spots. The volume is cut
    into at least ``n`` boxes of about ``1 / fraction`` voxels with sides as equal as the axes allow, ``n`` of these
    hold one spot each, and every voxel is equally likely to be a spot. Channels are independent.

    A replacement is computed from the *visible* voxels of the window around a spot, cropped at the image border. No
    blind spot (nor arm of ``structure``) is visible to any other, so the masked image is a function of the visible
    voxels alone. Where a window holds no visible voxel it is widened around that spot until it does.

    Args:
        images: (B, C, \*spatial), floating point, any number of spatial axes, any device.
        fraction: share of blind spots, in (0, 1). Default 1.5 %: the configuration of the DenoiSeg and N2V code.
        strategy: ``"uniform"`` copies a visible voxel of the window drawn with equal chances, ``"median"`` and
            ``"mean"`` are taken over the visible voxels of the window (N2V2, Hoeck et al. 2022; the median of an even
            number of values is the mean of the middle two), ``"identity"`` changes nothing, though the mask is drawn.
        window: full side of the window in voxels, odd; one number, or one per spatial axis. Default 11 as in the N2V
            code (radius 5).
        structure: structured mask (structN2V, Broaddus et al. 2020): 0/1 array with as many axes as the image has, all
            of odd length. Placed on each spot, its other ones (the arms) are hidden too, each behind a visible value
            of the window around it, drawn with equal chances whatever the strategy, which keeps the noise level;
            they are not marked in the mask. Under ``"identity"`` it has no effect.
        generator: source of all random numbers; a CPU generator gives the same spots for images on any device. The
            spots do not depend on the strategy. Default: torch's global generator of the images' device.

    Returns:
        masked image, plain tensor of the dtype and shape of ``images``; and a bool mask of the same shape, true at the
        selected voxels, whether or not their value changed.

    Raises:
        TypeError: if ``images`` is not a floating-point tensor (cast integer images first).
        ValueError: if an argument is out of range, or no voxel is visible in an image.

    Note:
        NaN voxels count as not visible: they are never a source. Infinite voxels are copied as they are, and make
        means and medians infinite or NaN. No gradient flows through the result.
        The N2V and DenoiSeg code may by default draw the hidden voxel itself (once in 121 draws); here it never is,
        as in N2V2.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops import blind_spot_mask
        >>> images = torch.rand(2, 1, 16, 64, 64)
        >>> masked, spots = blind_spot_mask(images, 0.01, generator=torch.Generator().manual_seed(0))
        >>> spots.sum((2, 3, 4)).tolist()
        [[655], [655]]
        >>> torch.equal(masked[~spots], images[~spots]), (masked[spots] == images[spots]).any().item()
        (True, False)
    """
    sizes = _checked_sizes(images)
    radius = _checked_radius(window, sizes)
    arms = _checked_arms(structure, len(sizes))
    check_blind_spot_options(fraction, strategy)

    masked = images.as_subclass(torch.Tensor).clone(memory_format=torch.contiguous_format)
    mask = torch.zeros(masked.shape, dtype=torch.bool, device=masked.device)
    rows, number = images.shape[0] * images.shape[1], max(1, round(fraction * math.prod(sizes)))
    row, coords, chances = _draw_spots(rows, sizes, number, generator, masked.device)
    spots = _flat_index(row, coords, sizes)
    mask.view(-1).scatter_(0, spots, True)
    if strategy == "identity":
        return masked, mask

    flat = masked.view(-1).index_fill_(0, spots, math.nan)
    if arms:
        hidden = _arm_index(mask, row, coords, arms)
        flat.index_fill_(0, hidden, math.nan)
    values = _replacements(flat, sizes, row, coords, radius, chances, strategy)
    if arms:
        row, coords = _unravel(hidden, sizes)
        chances = _rand((2 * len(sizes) + 1, hidden.numel()), generator, masked.device)
        flat.index_copy_(0, hidden, _replacements(flat, sizes, row, coords, radius, chances, "uniform"))
    flat.index_copy_(0, spots, values)
    return masked, mask


def _draw_spots(
    rows: int, sizes: tuple[int, ...], number: int, generator: torch.Generator | None, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row (m,), coordinates (axes, m) and spare uniform numbers (2 * axes + 1, m) of ``m = rows * number`` blind spots.

    The axes are cut into integer intervals, whose products are the boxes. Boxes of unequal size, or more boxes than
    spots, would favour some voxels: then the grid is shifted around the torus by a random whole number of voxels, which
    gives every voxel the same chance whichever boxes stay empty. All numbers of a row lie next to each other, so the
    first channels of two keys with different channel counts get the same spots.
    """
    axes = len(sizes)
    start, sides, even = _boxes(sizes, number)
    drawn = _rand((rows, axes + (3 * axes + 1) * number), generator, device)
    chances = drawn[:, axes:].view(rows, 3 * axes + 1, number).transpose(0, 1).flatten(1)
    coords = chances[:axes].view(axes, rows, number) * sides.to(device)
    coords.floor_().add_(start.to(device))  # whole numbers in float32 until the shift is done: exact and fast
    if not even:
        size = torch.tensor(sizes, dtype=coords.dtype, device=device)[:, None, None]
        coords += (drawn[:, :axes].t()[:, :, None] * size).floor_()
        coords -= size * (coords >= size)
    row = torch.arange(rows, device=device)[:, None].expand(rows, number)
    return row.flatten(), coords.long().flatten(1), chances[axes:]


@lru_cache(maxsize=8)
def _boxes(sizes: tuple[int, ...], number: int) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Start and side length (axes, 1, number) of the boxes to fill; and whether they all have one size and fill all.

    Kept for the next call: in training the size never changes, and this is half the work of a small batch.
    """
    cuts = _cuts_per_axis(sizes, number)
    total = math.prod(cuts)
    box = torch.arange(number) * total // number  # where there are more boxes than spots, empty ones lie evenly spread
    starts, sides = [], []
    for size, cut in zip(reversed(sizes), reversed(cuts), strict=True):
        cell, box = box % cut, box // cut
        starts.append(cell * size // cut)
        sides.append((cell + 1) * size // cut - starts[-1])
    start, side = (torch.stack(values[::-1])[:, None].float() for values in (starts, sides))
    return start, side, total == number and all(size % cut == 0 for size, cut in zip(sizes, cuts, strict=True))


def _cuts_per_axis(sizes: tuple[int, ...], number: int) -> list[int]:
    """Into how many intervals to cut each axis: at least ``number`` boxes in all, and nearly cubes.

    Short axes first: what a thin axis cannot take (the d-th root wants boxes thicker than the volume) goes to the rest.
    """
    cuts = [1] * len(sizes)
    wanted, voxels = float(number), math.prod(sizes)
    order = sorted(range(len(sizes)), key=lambda axis: sizes[axis])
    for left, axis in zip(range(len(sizes), 0, -1), order, strict=True):
        side = (voxels / wanted) ** (1 / left)
        voxels //= sizes[axis]
        enough = math.ceil(wanted / voxels - 1e-9)
        cuts[axis] = max(enough, round(sizes[axis] / side)) if left > 1 else enough
        wanted /= cuts[axis]
    return cuts


def _replacements(
    flat: torch.Tensor,
    sizes: tuple[int, ...],
    row: torch.Tensor,
    coords: torch.Tensor,
    radius: tuple[int, ...],
    chances: torch.Tensor,
    strategy: str,
) -> torch.Tensor:
    """Replacement (m,) of each voxel, from the visible voxels of ``flat`` around it."""
    if strategy == "uniform":  # nearly always one of two draws from the whole window is visible; the others read it
        drawn = _draw_in_window(sizes, coords, radius, chances[:-1].unflatten(0, (2, -1)))
        first, second = flat.index_select(0, _flat_index(row, drawn, sizes).flatten()).view(2, -1)
        values = torch.where(first.isnan(), second, first)
        todo = values.isnan().nonzero().squeeze(1)
    else:
        values = flat.new_empty(row.shape)
        todo = torch.arange(row.numel(), device=flat.device)
    width = math.prod(2 * r + 1 for r in radius)
    chunk = max(1, _CHUNK.get(flat.device.type, _CHUNK_ELSEWHERE) // width)
    for at in range(0, todo.numel(), chunk):
        part = todo[at : at + chunk]
        values[part] = _summarise(flat, sizes, row[part], coords[:, part], radius, chances[-1, part], strategy)
    return values


def _draw_in_window(
    sizes: tuple[int, ...], coords: torch.Tensor, radius: tuple[int, ...], chances: torch.Tensor
) -> torch.Tensor:
    """Coordinates (draws, axes, m) drawn with equal chances (draws, axes, m) from the window cropped at the border."""
    reach, size = torch.tensor((radius, sizes), device=coords.device)[:, :, None]
    low = (coords - reach).clamp_(min=0)
    sides = torch.minimum(coords + (reach + 1), size) - low
    return (chances * sides.float()).long() + low


def _summarise(
    flat: torch.Tensor,
    sizes: tuple[int, ...],
    row: torch.Tensor,
    coords: torch.Tensor,
    radius: tuple[int, ...],
    chance: torch.Tensor,
    strategy: str,
) -> torch.Tensor:
    """One value (m,) per window: a visible one with equal chances, or their median or mean."""
    windows = _read_windows(flat, sizes, row, coords, radius)
    count = windows.shape[1] - windows.isnan().count_nonzero(dim=1)
    if strategy == "mean":
        values = (windows.nansum(dim=1, dtype=torch.promote_types(flat.dtype, torch.float32)) / count).to(flat.dtype)
    else:
        ranked = _sorted(windows)
        last = (count - 1).clamp_(min=0)
        if strategy == "uniform":
            values = ranked.gather(1, (chance * count).long()[:, None]).squeeze(1)
        else:
            low, high = (ranked.gather(1, place[:, None]).squeeze(1) for place in (last // 2, (last + 1) // 2))
            values = torch.lerp(low, high, 0.5)
    blind = (count == 0).nonzero().squeeze(1)
    if blind.numel():
        if all(r >= size - 1 for r, size in zip(radius, sizes, strict=True)):
            raise ValueError(
                "an image has no visible voxel left: lower fraction, use a smaller structure, or mend NaNs"
            )
        wider = tuple(2 * r + 1 for r in radius)
        values[blind] = _summarise(flat, sizes, row[blind], coords[:, blind], wider, chance[blind], strategy)
    return values


def _read_windows(
    flat: torch.Tensor, sizes: tuple[int, ...], row: torch.Tensor, coords: torch.Tensor, radius: tuple[int, ...]
) -> torch.Tensor:
    """Window values (m, width), NaN where a voxel is hidden or outside the image."""
    dtype = torch.int32 if flat.numel() < 2**31 else torch.int64  # half the bytes, four times faster to compute
    index, outside = row[:, None].to(dtype), flat.new_zeros((row.numel(), 1))
    for size, centre, r in zip(sizes, coords, radius, strict=True):
        r = min(r, size - 1)
        place = centre[:, None].to(dtype) + torch.arange(-r, r + 1, dtype=dtype, device=flat.device)
        nearest = place.clamp(0, size - 1)
        lost = flat.new_zeros(place.shape).masked_fill_(place != nearest, math.nan)
        index = ((index * size)[:, :, None] + nearest[:, None]).flatten(1)
        outside = (outside[:, :, None] + lost[:, None]).flatten(1)
    # index_select: four times faster than flat[index] here
    return flat.index_select(0, index.flatten()).view(index.shape).add_(outside)


def _sorted(windows: torch.Tensor) -> torch.Tensor:
    """Rows in ascending order, NaN last. On a CPU by numpy, whose sort is seven times faster than torch's."""
    if windows.device.type == "cpu" and windows.dtype != torch.bfloat16:
        windows.numpy().sort(axis=1)
        return windows
    return windows.sort(dim=1).values


def _arm_index(mask: torch.Tensor, row: torch.Tensor, coords: torch.Tensor, arms: list[list[int]]) -> torch.Tensor:
    """Flat indices of the voxels under an arm of any spot, spots themselves excepted; each once, in order."""
    sizes = tuple(mask.shape[2:])
    covered = torch.zeros(mask.shape, dtype=torch.bool, device=mask.device).view(-1)
    limits = torch.tensor(sizes, device=mask.device)[:, None]
    for arm in arms:
        place = coords + torch.tensor(arm, device=mask.device)[:, None]
        inside = ((place >= 0) & (place < limits)).all(dim=0)
        covered.index_fill_(0, _flat_index(row[inside], place[:, inside], sizes), True)
    return covered.logical_and_(~mask.view(-1)).nonzero().squeeze(1)


def _flat_index(row: torch.Tensor, coords: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    """Index (..., m) into the flattened batch of the voxels at ``coords`` (..., axes, m)."""
    for axis, size in enumerate(sizes):
        row = row * size + coords[..., axis, :]
    return row


def _unravel(index: torch.Tensor, sizes: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Row (m,) and coordinates (axes, m) of flat indices."""
    places = []
    for size in reversed(sizes):
        places.append(index % size)
        index = index // size
    return index, torch.stack(places[::-1])


def _rand(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> torch.Tensor:
    """Uniform float32 numbers in [0, 1), drawn on the generator's device."""
    source = device if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=source, dtype=torch.float32).to(device)


def check_blind_spot_options(fraction: float, strategy: str) -> None:
    """Raise a ValueError for what can be told without an image."""
    if strategy not in BLIND_SPOT_STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(BLIND_SPOT_STRATEGIES)}, got {strategy!r}")
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must be between 0 and 1, got {fraction}")


def _checked_sizes(images: Any) -> tuple[int, ...]:
    if not isinstance(images, torch.Tensor) or not images.is_floating_point():
        found = images.dtype if isinstance(images, torch.Tensor) else type(images).__name__
        raise TypeError(f"images must be a floating-point tensor, got {found}: cast it, for example with .float()")
    if images.ndim < 3 or 0 in images.shape[2:]:
        raise ValueError(f"images must have the shape (B, C, *spatial), got {tuple(images.shape)}")
    return tuple(images.shape[2:])


def _checked_radius(window: Any, sizes: tuple[int, ...]) -> tuple[int, ...]:
    sides = tuple(window) if isinstance(window, Iterable) else (window,) * len(sizes)
    if len(sides) != len(sizes) or any(side != int(side) or side < 1 or side % 2 == 0 for side in sides):
        raise ValueError(f"window must be one odd number or {len(sizes)} of them, one per spatial axis, got {window}")
    radius = tuple(int(side) // 2 for side in sides)
    if not any(min(r, size - 1) for r, size in zip(radius, sizes, strict=True)):
        raise ValueError(f"no voxel of an image of size {sizes} has a neighbour in a window of {sides} voxels")
    return radius


def _checked_arms(structure: Any, axes: int) -> list[list[int]]:
    """Offsets of the arms from the centre."""
    if structure is None:
        return []
    structure = torch.as_tensor(structure).cpu()
    if structure.ndim != axes or any(side % 2 == 0 for side in structure.shape):
        raise ValueError(f"structure must have {axes} axes of odd length, got the shape {tuple(structure.shape)}")
    if not bool(((structure == 0) | (structure == 1)).all()):
        raise ValueError("structure must hold zeros and ones only")
    centre = torch.tensor([side // 2 for side in structure.shape])
    return [arm for arm in (structure.nonzero() - centre).tolist() if any(arm)]
