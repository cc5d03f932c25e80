# SPDX-License-Identifier: Apache-2.0
"""Ticks of a whole slide, given to the tiles that hold them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monai_labelfx.data._slide_file import SlideFile
from monai_labelfx.data._slide_grid import SlideGrid, tile_of
from monai_labelfx.transforms.patch_table import _ends_with, _Table, read_patch_table

_KEYS = ("patches", "patch_labels", "sub_labels")


def slides_with_ticks(path: str | os.PathLike, slides: Sequence[str]) -> list[bool]:
    """Whether the table has rows for each slide.

    Raises:
        ValueError: for rows of a slide that is not there, rows that fit to several, or, without a column of images,
            where there is not just one slide.
    """
    table = _Table(path)
    names = list(dict.fromkeys(row.text("image") for row in table.rows)) if table.has("image") else [""]
    if names == [""]:
        if len(slides) != 1:
            raise ValueError(f"{table.path!r} has no column 'image' that tells which of {len(slides)} slides is meant")
        return [True]
    owners = {name: [slide for slide in slides if _ends_with(slide, name)] for name in names}
    for name, found in owners.items():
        if len(found) != 1:
            many = f"{len(found)} slides, such as {found[0]!r}" if found else f"none of {len(slides)} slides"
            raise ValueError(f"{table.path!r} names the slide {name!r}, which is {many}: expected the end of its path")
    ticked = {found[0] for found in owners.values()}
    return [slide in ticked for slide in slides]


def tiles_with_ticks(
    slide: SlideFile,
    grid: SlideGrid,
    tiles: Sequence[Mapping[str, Any]],
    path: str | os.PathLike,
    classes: int | Sequence[str],
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Tiles that hold ticks of the table, and these in voxels of their tile, as for ``write_patch_table``.

    A tick goes to one tile, the one that holds all of it and whose middle is nearest. Ticks that lie across the borders
    of tiles get tiles of their own around them: what is cut in two would have no label any more.

    Args:
        slide: that the ticks are of, in voxels of its level 0.
        grid: that tiles are cut from.
        tiles: all tiles of the slide, of one size.
        path: the table.
        classes: names of the classes, or their number.

    Raises:
        ValueError: for a tick that reaches out of the slide, or is larger than a tile: file, line and numbers.
    """
    found = read_patch_table(path, classes, image=slide.path)
    patches, whole = found["patches"].numpy(), np.array(slide.shapes[0])
    if patches.shape[1] != 4:
        raise ValueError(f"{os.fspath(path)!r} has columns for {patches.shape[1] // 2} axes, but slides have 2")
    low, high = patches[:, :2], patches[:, :2] + patches[:, 2:]
    size = np.array(tiles[0]["size"])
    scale = np.array(grid.shape) / whole
    first = np.minimum(np.rint(low * scale).astype(np.int64), np.array(grid.shape) - 1)
    last = np.maximum(np.minimum(np.rint(high * scale).astype(np.int64), grid.shape), first + 1)
    for wrong, what in (
        ((low < 0) | (high > whole), f"reaches out of slide {slide.path!r}, which has {tuple(slide.shapes[0])} pixels"),
        (last - first > size, f"is larger than a tile, which has {tuple((size / scale).astype(int).tolist())} pixels"),
    ):
        if wrong.any():
            row = int(wrong.any(axis=1).argmax())
            x, y, width, height = patches[row].tolist()
            line = found["lines"][row]
            raise ValueError(f"{os.fspath(path)!r}, line {line}: the tick x={x} y={y} {width} x {height} {what}")
    owners = _owners(first, last, np.array([tile["start"] for tile in tiles]), size)
    homes = [(tiles[owner], np.flatnonzero(owners == owner)) for owner in np.unique(owners[owners >= 0])]
    left = np.flatnonzero(owners < 0)
    while left.size:
        start = (first[left[0]] + last[left[0]] - size) // 2
        start = np.clip(start, 0, np.array(grid.shape) - size)
        inside = ((first[left] >= start) & (last[left] <= start + size)).all(axis=1)
        homes.append((tile_of(slide, grid, start.tolist(), size.tolist(), [*start, *size]), left[inside]))
        left = left[~inside]
    result = []
    for tile, rows in homes:
        own = {key: found[key].numpy()[rows] for key in _KEYS if key in found}
        own["patches"] = np.concatenate([first[rows] - tile["start"], (last - first)[rows]], axis=1)
        result.append((dict(tile), own))
    return result


def _owners(first: np.ndarray, last: np.ndarray, starts: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Number of the tile of each tick, -1 where none holds all of it; the tiles are a grid, so each axis is alone."""
    places, known = [], np.ones(len(first), bool)
    for axis in range(2):
        own = np.unique(starts[:, axis])
        holds = (own <= first[:, axis, None]) & (own + size[axis] >= last[:, axis, None])
        away = np.abs(2 * own + size[axis] - (first + last)[:, axis, None])
        places.append(own[np.where(holds, away, np.iinfo(np.int64).max).argmin(axis=1)])
        known &= holds.any(axis=1)
    numbers = {tuple(start): number for number, start in enumerate(starts.tolist())}
    return np.array(
        [numbers[x, y] if here else -1 for x, y, here in zip(*(p.tolist() for p in places), known, strict=True)]
    )
