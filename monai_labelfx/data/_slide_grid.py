# SPDX-License-Identifier: Apache-2.0
"""The voxels of a slide that tiles are cut from: a level, or a size of voxels between two levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from monai_labelfx.data._picture_facts import PictureFacts, picture_facts
from monai_labelfx.data._slide_file import SlideFile, open_slide
from monai_labelfx.data.check_histology import check_histology

_TOLERANCE = 0.05  # of a pixel size, as MONAI's mpp_rtol


class SlideGrid(NamedTuple):
    """Voxels that tiles are cut from: a level, or one in between that is resampled from it."""

    shape: tuple[int, int]  # x, y
    level: int  # that is read
    mpp: float | None  # um per voxel; None: unknown


def slide_grids(
    items: Sequence[Mapping[str, Any]], *, key: str, level: int | None, mpp: float | None
) -> list[SlideGrid]:
    """The grid of each slide; those of a level must have about equally large voxels."""
    grids, alike = [], []
    for item in items:
        slide = open_slide(item[key])
        facts = picture_facts(item, key)
        grid = _at_size(slide, facts, mpp) if mpp is not None else _at_level(slide, facts, level or 0)
        grids.append(grid)
        power = None if facts.magnification is None else facts.magnification * grid.shape[0] / slide.shapes[0][0]
        alike.append({"image": item[key], "mpp": grid.mpp, "magnification": power})
    if mpp is None:
        check_histology({"slides": alike})
    return grids


def tile_of(slide: SlideFile, grid: SlideGrid, start: Sequence[int], size: Sequence[int], core: Sequence[int]) -> dict:
    """A tile as plain numbers."""
    ratios = [own / n for own, n in zip(slide.shapes[0], grid.shape, strict=True)]
    tile = {
        "start": [int(n) for n in start],
        "size": [int(n) for n in size],
        "core": [int(n) for n in core],
        "shape": list(grid.shape),
        "level": grid.level,
        "position": [round(n * ratio) for n, ratio in zip(start, ratios, strict=True)],
    }
    return tile if grid.mpp is None else {**tile, "mpp": grid.mpp}


def _at_level(slide: SlideFile, facts: PictureFacts, level: int) -> SlideGrid:
    if not 0 <= level < len(slide.shapes):
        raise ValueError(
            f"slide {slide.path!r} has no level {level}: it has {len(slide.shapes)}, from 0, {slide.shapes}"
        )
    shape = slide.shapes[level]
    return SlideGrid(shape, level, None if facts.micrometres is None else facts.micrometres * _ratio(slide, level))


def _at_size(slide: SlideFile, facts: PictureFacts, mpp: float) -> SlideGrid:
    if facts.micrometres is None:
        raise ValueError(
            f"slide {slide.path!r} does not say how large its pixels are: name a level instead of mpp, or its mpp in "
            "its item"
        )
    sizes = [facts.micrometres * _ratio(slide, level) for level in range(len(slide.shapes))]
    nearest = min(range(len(sizes)), key=lambda level: abs(sizes[level] - mpp))
    if abs(sizes[nearest] - mpp) <= _TOLERANCE * mpp:
        return SlideGrid(slide.shapes[nearest], nearest, sizes[nearest])
    finer = [level for level, size in enumerate(sizes) if size < mpp]
    if not finer:
        raise ValueError(f"slide {slide.path!r} has at best {sizes[0]:.4g} um per pixel, but mpp={mpp} is asked for")
    level = max(finer, key=sizes.__getitem__)
    width, height = (max(1, round(n * sizes[level] / mpp)) for n in slide.shapes[level])
    return SlideGrid((width, height), level, mpp)


def _ratio(slide: SlideFile, level: int) -> float:
    """Voxels of level 0 for one of ``level``, along the longer axis, which is rounded less."""
    return max(slide.shapes[0]) / max(slide.shapes[level])
