# SPDX-License-Identifier: Apache-2.0
"""Whole slides as tiles: the places where they are cut."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_labelfx.data._slide_file import SlideFile, open_slide
from monai_labelfx.data._slide_grid import SlideGrid, slide_grids, tile_of
from monai_labelfx.data._tissue_mask import tissue_mask
from monai_labelfx.ops.patch_grid import patch_grid, patch_sums

__all__ = ["slide_tiles"]

SLIDE_SUFFIXES = (".svs", ".tif", ".tiff")


def slide_tiles(
    slides: str | os.PathLike | Sequence[Any],
    *,
    key: str = "image",
    tile_size: int | Sequence[int] = 1024,
    overlap: int | Sequence[int] = 128,
    level: int | None = None,
    mpp: float | None = None,
    tissue: float | None = 0.05,
) -> list[dict[str, Any]]:
    """Cut whole slides into overlapping tiles, as items that :py:class:`LoadSlideTiled` loads one by one.

    Tiles of an axis start every ``tile_size - overlap`` voxels, the last one is flush with the end of the slide; a
    slide that is smaller than a tile is one tile. The *core* of a tile reaches to the middle of its overlap with its
    neighbours (to the border of the slide where there is none): cores part the slide, so that predictions of cores put
    side by side are one map without seams from the tiles' borders.

    Only headers and a small picture of each slide are read. Tissue is found on the coarsest level of 512 or more voxels
    by Otsu's threshold of saturation, kept from 0.07 to 0.15; holes in it belong to it.

    Args:
        slides: a slide, a folder with slides (.svs, .tif, .tiff, in its folders too), or a sequence of slides or of
            items that have the slide under ``key``. Items may have ``mpp``, the um per pixel of their level 0, which
            goes before what the file says; what else they have (patient, ...) is copied into their tiles.
        key: key of the slide in the items.
        tile_size: voxels of a tile, one number or one for x and y. Default 1024.
        overlap: voxels shared by neighbours, one number or one for x and y. Default 128.
        level: level of the slides that is cut, 0 the finest. Default: 0 where ``mpp`` is not given.
        mpp: um per voxel of the tiles, instead of ``level``. A level within 5 % (MONAI's tolerance) is taken as it is;
            else the next finer one is reduced.
        tissue: a tile is kept where more than this share of its core is tissue; 0: where any is; None: all are kept. A
            slide in which nothing is found keeps all, with a warning. Default 0.05.

    Returns:
        Items with the slide under ``key`` and ``tile``: ``start`` and ``size`` (x, y) in voxels of the grid, ``core``
        (x, y, width, height) likewise, ``shape`` of the grid, the ``level`` that is read, ``position`` (x, y) of the
        start in voxels of level 0, and ``mpp``, if known. Slides keep their order, rows of tiles follow each other.

    Raises:
        FileNotFoundError: no such file or folder, or a folder without slides.
        ValueError: both ``level`` and ``mpp``, or one that a slide does not have; slides of which the largest voxels
            are more than 10 % larger than the smallest; numbers out of range; an unusable file. One sentence each.

    Example:
        >>> import tifffile
        >>> tifffile.imwrite("slide.tif", np.full((96, 64, 3), (200, 90, 160), "uint8"), tile=(32, 32))
        >>> [tile["tile"]["core"] for tile in slide_tiles("slide.tif", tile_size=64, overlap=16)]
        [[0, 0, 64, 48], [0, 48, 64, 48]]
    """
    if level is not None and mpp is not None:
        raise ValueError(f"level={level} and mpp={mpp} exclude each other: give one of them")
    if mpp is not None and not mpp > 0:
        raise ValueError(f"mpp must be above 0 um per voxel, got {mpp}")
    if tissue is not None and not 0 <= tissue < 1:
        raise ValueError(f"tissue must be a share of at least 0 and below 1, or None, got {tissue}")
    sizes, overlaps = _pair(tile_size, "tile_size", 1), _pair(overlap, "overlap", 0)
    if any(o >= n for o, n in zip(overlaps, sizes, strict=True)):
        raise ValueError(f"overlap must be smaller than tile_size {sizes}, got {overlaps}")
    items = find_slides(slides, key=key)
    grids = slide_grids(items, key=key, level=level, mpp=mpp)
    tiles = []
    for item, grid in zip(items, grids, strict=True):
        slide = open_slide(item[key])
        found = [tile_of(slide, grid, *place) for place in _places(grid.shape, sizes, overlaps)]
        if tissue is not None:
            shares = _tissue_shares(slide, grid, found)
            if (shares > tissue).any():
                found = [tile for tile, share in zip(found, shares, strict=True) if share > tissue]
            else:
                warnings.warn(f"no tissue found in slide {slide.path!r}, so all its tiles are kept", stacklevel=2)
        tiles += [{**item, "tile": tile} for tile in found]
    return tiles


def find_slides(slides: str | os.PathLike | Sequence[Any], *, key: str = "image") -> list[dict[str, Any]]:
    """Items of slides, from whatever :py:func:`slide_tiles` takes."""
    if not isinstance(slides, (str, os.PathLike)):
        items = [
            {**one, key: os.fspath(one[key])} if isinstance(one, Mapping) else {key: os.fspath(one)} for one in slides
        ]
        if not items:
            raise ValueError("there is no slide, expected at least one")
        return items
    root = Path(slides)
    if not root.is_dir():
        return [{key: os.fspath(slides)}]
    paths = sorted(root.rglob("*"))
    hidden = [path for path in paths if any(part.startswith(".") for part in path.relative_to(root).parts)]
    found = [path for path in paths if path.suffix.lower() in SLIDE_SUFFIXES and path not in hidden and path.is_file()]
    if not found:
        raise FileNotFoundError(f"{str(root)!r} holds no slide: expected files ending in {', '.join(SLIDE_SUFFIXES)}")
    return [{key: str(path)} for path in found]


def _places(shape: tuple[int, int], sizes: tuple[int, int], overlaps: tuple[int, int]) -> list[tuple]:
    """Start, size and core of each tile, row by row."""
    axes = []
    for extent, size, overlap in zip(shape, sizes, overlaps, strict=True):
        starts = patch_grid((extent,), size, size - overlap)[:, 0].tolist()
        inner = [(a + b + size) // 2 for a, b in zip(starts, starts[1:], strict=False)]
        ends = zip(starts, [0, *inner], [*inner, extent], strict=True)
        axes.append([(start, min(size, extent), low, high - low) for start, low, high in ends])
    return [((x[0], y[0]), (x[1], y[1]), (x[2], y[2], x[3], y[3])) for y, x in product(axes[1], axes[0])]


def _tissue_shares(slide: SlideFile, grid: SlideGrid, tiles: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Share of tissue in the core of each tile."""
    mask = tissue_mask(slide)
    scale = np.divide(mask.shape, grid.shape)
    cores = np.array([tile["core"] for tile in tiles], np.float64)
    low = np.floor(cores[:, :2] * scale).astype(np.int64)
    high = np.maximum(np.ceil((cores[:, :2] + cores[:, 2:]) * scale - 1e-6).astype(np.int64), low + 1)
    patches = np.concatenate([low, high - low], axis=1)
    count = patch_sums(torch.from_numpy(mask)[None], torch.from_numpy(patches))[:, 0].numpy()
    return count / np.prod(high - low, axis=1)


def _pair(value: int | Sequence[int], name: str, least: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or any(n != int(n) or n < least for n in pair):
        raise ValueError(f"{name} must be a whole number of {least} or more, or one for x and y, got {value!r}")
    return int(pair[0]), int(pair[1])
