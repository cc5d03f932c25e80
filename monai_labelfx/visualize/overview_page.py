# SPDX-License-Identifier: Apache-2.0
"""Overview pages: rows of captioned 2-D slices in one picture, drawn with Pillow and numpy only."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

KINDS = ("image", "labels", "classes")
_MARGIN, _LINE, _INK, _PAPER = 8, 18, (30, 30, 30), (255, 255, 255)
# background, foreground, border, then further classes: distinguishable for colour-blind readers (Okabe and Ito)
_CLASSES = np.array(
    [(0, 0, 0), (86, 180, 233), (230, 159, 0), (0, 158, 115), (213, 94, 0), (204, 121, 167), (240, 228, 66)], np.uint8
)

Panel = tuple[str, Any, str]
Row = tuple[str, Sequence[Panel]]


def overview_page(
    rows: Sequence[Row],
    *,
    panel_size: int = 240,
    percentiles: tuple[float, float] = (1.0, 99.5),
    planes: int = 1,
    spacings: Sequence[Sequence[float] | None] | None = None,
) -> np.ndarray:
    """One picture with a row per sample and a captioned panel per array.

    Args:
        rows: ``(title, panels)``; a panel is ``(caption, array, kind)``. Arrays are (*spatial) or (1, *spatial), 2-D or
            3-D, numpy or tensors; those of a row share their spatial shape. Axis 0 runs to the right and axis 1
            downwards, as MONAI loads pictures. Kinds: ``"image"`` grey values; ``"labels"`` one colour per object
            with a contour, over the row's first image if it has one; ``"classes"`` class indices, each in its colour.
        panel_size: longer side of a panel, in pixels.
        percentiles: the grey values of a panel that become black and white, stated below the page.
        planes: 1 shows a volume by the middle slice along its last axis; 3 by the middle slice along every axis.
        spacings: for each row the size of a voxel along each axis, to show anisotropic arrays undistorted.

    Returns:
        RGB picture of shape (height, width, 3), uint8.

    Raises:
        ValueError: for no rows, an unknown kind, or an array that is neither 2-D nor 3-D.

    Example:
        >>> page = overview_page([("a", [("noisy", np.random.rand(1, 8, 9), "image")])], panel_size=64)
        >>> page.shape[2], page.dtype
        (3, dtype('uint8'))
    """
    from PIL import Image, ImageDraw

    if not rows or not all(panels for _, panels in rows):
        raise ValueError("an overview page needs at least one row, and every row at least one panel")
    if planes not in (1, 3):
        raise ValueError(f"planes is {planes!r}, expected 1 or 3")
    sizes = [None] * len(rows) if spacings is None else spacings
    drawn = [
        (title, _draw_row(panels, panel_size, percentiles, planes, spacing))
        for (title, panels), spacing in zip(rows, sizes, strict=True)
    ]
    columns = max(len(panels) for _, panels in drawn)
    widths = [max((p[1].width for _, row in drawn for p in row[c : c + 1]), default=0) for c in range(columns)]
    width = max(sum(widths) + _MARGIN * (columns + 1), 2 * panel_size)
    heights = [2 * _LINE + max(picture.height for _, picture in row) + _MARGIN for _, row in drawn]
    page = Image.new("RGB", (width, sum(heights) + _LINE + 2 * _MARGIN), _PAPER)
    draw, font, top = ImageDraw.Draw(page), _font(), _MARGIN
    for (title, panels), height in zip(drawn, heights, strict=True):
        draw.text((_MARGIN, top), _clip(title, width - 2 * _MARGIN, font), fill=_INK, font=font)
        left = _MARGIN
        for (caption, picture), column in zip(panels, widths, strict=False):
            draw.text((left, top + _LINE), _clip(caption, column, font), fill=_INK, font=font)
            page.paste(picture, (left, top + 2 * _LINE))
            left += column + _MARGIN
        top += height
    low, high = percentiles
    note = f"Grey values: each panel from its percentile {low:g} (black) to {high:g} (white)."
    draw.text((_MARGIN, top), _clip(note, width - 2 * _MARGIN, font), fill=_INK, font=font)
    return np.asarray(page)


def save_overview(path: str | Path, rows: Sequence[Row], **options: Any) -> Path:
    """Write :py:func:`overview_page` as PNG, under a temporary name that is then renamed.

    Args:
        path: the file to write; its folder is made when absent.
        rows: as of ``overview_page``.
        options: keywords of ``overview_page``.
    """
    from PIL import Image

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        Image.fromarray(overview_page(rows, **options)).save(temporary, format="PNG", optimize=True)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _draw_row(panels, panel_size, percentiles, planes, spacing):
    base, drawn = None, []
    for caption, array, kind in panels:
        if kind not in KINDS:
            raise ValueError(f"the kind of panel {caption!r} is {kind!r}, expected one of {', '.join(KINDS)}")
        slices, sizes = _slices(array, caption, planes, spacing)
        # the longest side of any plane becomes panel_size pixels; labels are enlarged before they get their contours
        scale = panel_size / max(max(size) for size in sizes)
        shapes = [(max(1, round(height * scale)), max(1, round(width * scale))) for height, width in sizes]
        if kind == "image":
            window = np.percentile(np.concatenate([_finite(s) for s in slices]), percentiles)
            pictures = [_resized(_grey(s, window), shape) for s, shape in zip(slices, shapes, strict=True)]
            base = pictures if base is None else base
        else:
            slices = [_nearest(s, shape) for s, shape in zip(slices, shapes, strict=True)]
            below = base if base is not None and [p.shape[:2] for p in base] == shapes else [None] * len(slices)
            pictures = [
                _CLASSES[_class_colour(s)] if kind == "classes" else _overlay(s, under)
                for s, under in zip(slices, below, strict=True)
            ]
        drawn.append((caption, _side_by_side(pictures)))
    return drawn


def _slices(array: Any, caption: str, planes: int, spacing: Sequence[float] | None):
    """Middle slices as (row, column) arrays, with their sizes (height, width) in units of length."""
    values = np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
    if values.ndim == 4 or (values.ndim == 3 and values.shape[0] == 1):
        values = values[0]
    if values.ndim not in (2, 3) or not values.size:
        raise ValueError(
            f"panel {caption!r} has shape {values.shape}, expected (1, *spatial) or (*spatial) in 2-D or 3-D"
        )
    size = [n * s for n, s in zip(values.shape, spacing or (1.0,) * values.ndim, strict=False)]
    # drawn axes (right, down) and the axis that is cut
    cuts = [(0, 1, 2), (0, 2, 1), (1, 2, 0)][:planes] if values.ndim == 3 else [(0, 1, None)]
    slices = []
    for _, down, cut in cuts:
        plane = values if cut is None else values.take(values.shape[cut] // 2, axis=cut)
        # the last axis of a volume points up in its side views
        slices.append(plane.T[::-1] if down == 2 else plane.T)
    return slices, [(size[down], size[right]) for right, down, _ in cuts]


def _class_colour(values: np.ndarray) -> np.ndarray:
    """Index of the colour of each class; colours repeat, but only class 0 is black."""
    return np.where(values > 0, (values.astype(np.int64) - 1) % (len(_CLASSES) - 1) + 1, 0)


def _finite(values: np.ndarray) -> np.ndarray:
    finite = values[np.isfinite(values)]
    return finite.astype(np.float64) if finite.size else np.zeros(1)


def _grey(values: np.ndarray, window: np.ndarray) -> np.ndarray:
    low, high = window
    scaled = (np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low) - low) / max(high - low, 1e-12)
    return np.repeat((scaled.clip(0, 1) * 255).astype(np.uint8)[..., None], 3, axis=-1)


def _overlay(labels: np.ndarray, under: np.ndarray | None) -> np.ndarray:
    """Objects half transparent in their own colour, their outline opaque."""
    labels = labels.astype(np.int64)
    inside = labels > 0
    edge = np.zeros_like(inside)
    for axis in (0, 1):
        differs = np.diff(labels, axis=axis) != 0
        pad = [(0, 0), (0, 0)]
        for side in ((0, 1), (1, 0)):
            pad[axis] = side
            edge |= np.pad(differs, pad)
    colours = _colours(labels)
    picture = np.zeros((*labels.shape, 3)) if under is None else under.astype(np.float64)
    share = np.where(inside & edge, 1.0, np.where(inside, 0.35 if under is not None else 0.8, 0.0))[..., None]
    return (picture * (1 - share) + colours * share).astype(np.uint8)


def _colours(labels: np.ndarray) -> np.ndarray:
    """A bright colour per label, far from those of its neighbours in number (hue steps by the golden ratio)."""
    hue = (labels * 0.6180339887) % 1.0
    return 255 * (0.25 + 0.75 * np.clip(np.abs((hue[..., None] * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1))


def _nearest(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    rows, columns = (((np.arange(n) + 0.5) * values.shape[axis] / n).astype(int) for axis, n in enumerate(shape))
    return values[rows[:, None], columns]


def _resized(picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Enlarged without smoothing, so that voxels stay visible; shrunk with smoothing, so that noise does not alias."""
    from PIL import Image

    if shape[0] >= picture.shape[0] and shape[1] >= picture.shape[1]:
        return _nearest(picture, shape)
    size = (shape[1], shape[0])
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def _side_by_side(pictures):
    from PIL import Image

    panel = Image.new("RGB", (sum(p.shape[1] + 2 for p in pictures) - 2, max(p.shape[0] for p in pictures)), _PAPER)
    left = 0
    for picture in pictures:
        panel.paste(Image.fromarray(picture), (left, 0))
        left += picture.shape[1] + 2
    return panel


def _font():
    from PIL import ImageFont

    return ImageFont.load_default(size=13)


def _clip(text: str, width: int, font: Any) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
