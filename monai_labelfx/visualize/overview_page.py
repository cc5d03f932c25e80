# SPDX-License-Identifier: Apache-2.0
"""Overview pages: rows of captioned 2-D slices in one picture, drawn with Pillow and numpy only."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_labelfx.visualize._pictures import (
    CLASSES,
    PAPER,
    class_colour,
    clip_text,
    colour_picture,
    edges,
    font,
    grey_pictures,
    is_colour,
    nearest,
    pixels_of,
    side_by_side,
    slices_of,
    spatial,
)
from monai_labelfx.visualize.draw_detections import Drawn, drawn_of, outlined, place_of

KINDS = ("image", "colour", "labels", "classes", "boxes")
_MARGIN, _LINE, _INK = 8, 18, (30, 30, 30)

Panel = tuple[str, Any, str]
Row = tuple[str, Sequence[Panel]]


def overview_page(
    rows: Sequence[Row],
    *,
    panel_size: int = 240,
    percentiles: tuple[float, float] = (1.0, 99.5),
    planes: int = 1,
    spacings: Sequence[Sequence[float] | None] | None = None,
    names: Mapping[int, str] | None = None,
    min_score: float = 0.0,
    max_boxes: int = 25,
    windows: Mapping[str, tuple[float, float]] | None = None,
) -> np.ndarray:
    """One picture with a row per sample and a captioned panel per array.

    Args:
        rows: ``(title, panels)``; a panel is ``(caption, array, kind)``. Arrays are (*spatial) or (1, *spatial), 2-D or
            3-D, numpy or tensors; those of a row share their spatial shape. Axis 0 runs to the right and axis 1
            downwards, as MONAI loads pictures. Kinds: ``"image"`` grey values; ``"colour"`` red, green and blue of 0 to
            255, an array (3, *spatial), grey values if it has one channel; ``"labels"`` one colour per object
            with a contour, over the row's first image if it has one; ``"classes"`` class indices, each in its colour;
            ``"boxes"`` over the row's first image, a mapping of ``boxes``, ``labels``[, ``scores``, ``masks``], or a
            list of them, as of :py:func:`~monai_labelfx.visualize.draw_detections`: those without scores are dashed.
        panel_size: longer side of a panel, in pixels.
        percentiles: the grey values of a panel that become black and white, stated below the page.
        planes: 1 shows a volume by the middle slice along its last axis; 3 by the middle slice along every axis. A row
            with boxes is shown by the slices through the best one of its first panel of boxes that has any.
        spacings: for each row the size of a voxel along each axis, to show anisotropic arrays undistorted.
        names: label -> what is written beside a box.
        min_score: boxes below are left out, which is stated below the page.
        max_boxes: how many boxes with scores a panel shows, the best ones.
        windows: caption of a panel -> the grey values that become black and white in it, instead of percentiles; stated
            below the page. CT is read in windows of HU.

    Returns:
        RGB picture of shape (height, width, 3), uint8.

    Raises:
        ValueError: for no rows, an unknown kind, an array that is neither 2-D nor 3-D, or boxes that do not fit the
            row's image.

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
    windows = {} if windows is None else windows
    options: dict[str, Any] = {"names": names, "min_score": min_score, "max_boxes": max_boxes, "windows": windows}
    drawn = [
        (title, _draw_row(panels, panel_size, percentiles, planes, spacing, **options))
        for (title, panels), spacing in zip(rows, sizes, strict=True)
    ]
    columns = max(len(panels) for _, panels in drawn)
    widths = [max((p[1].width for _, row in drawn for p in row[c : c + 1]), default=0) for c in range(columns)]
    width = max(sum(widths) + _MARGIN * (columns + 1), 2 * panel_size)
    heights = [2 * _LINE + max(picture.height for _, picture in row) + _MARGIN for _, row in drawn]
    low, high = percentiles
    shown = {caption for _, panels in rows for caption, _, _ in panels}
    notes = [
        f"Grey values of {name}: {ends[0]:g} (black) to {ends[1]:g} (white)."
        for name, ends in windows.items()
        if name in shown
    ]
    if {caption for _, panels in rows for caption, array, kind in panels if not is_colour(array, kind)} - set(windows):
        other = " other" if notes else ""
        notes.append(f"Grey values: each{other} panel from its percentile {low:g} (black) to {high:g} (white).")
    if any(kind == "boxes" for _, panels in rows for _, _, kind in panels):
        least = f" with a score of {min_score:g} or more" if min_score > 0 else ""
        notes.append(f"Boxes: the {max_boxes} best of an image{least}; dashed: reference.")
    page = Image.new("RGB", (width, sum(heights) + len(notes) * _LINE + 2 * _MARGIN), PAPER)
    draw, used, top = ImageDraw.Draw(page), font(), _MARGIN
    for (title, panels), height in zip(drawn, heights, strict=True):
        draw.text((_MARGIN, top), clip_text(title, width - 2 * _MARGIN, used), fill=_INK, font=used)
        left = _MARGIN
        for (caption, picture), column in zip(panels, widths, strict=False):
            draw.text((left, top + _LINE), clip_text(caption, column, used), fill=_INK, font=used)
            page.paste(picture, (left, top + 2 * _LINE))
            left += column + _MARGIN
        top += height
    for line, note in enumerate(notes):
        draw.text((_MARGIN, top + line * _LINE), clip_text(note, width - 2 * _MARGIN, used), fill=_INK, font=used)
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


def _draw_row(
    panels: Sequence[Panel],
    panel_size: int,
    percentiles: tuple[float, float],
    planes: int,
    spacing: Sequence[float] | None,
    *,
    names: Mapping[int, str] | None = None,
    min_score: float = 0.0,
    max_boxes: int = 25,
    windows: Mapping[str, tuple[float, float]] | None = None,
) -> list[tuple[str, Any]]:
    for caption, _, kind in panels:
        if kind not in KINDS:
            raise ValueError(f"the kind of panel {caption!r} is {kind!r}, expected one of {', '.join(KINDS)}")
    arrays = [
        None if kind == "boxes" else spatial(array[0] if is_colour(array, kind) else array, caption)
        for caption, array, kind in panels
    ]
    image = next((a for a, (_, _, kind) in zip(arrays, panels, strict=True) if kind in ("image", "colour")), None)
    boxes = [_boxes(panel, image, min_score, max_boxes) if panel[2] == "boxes" else [] for panel in panels]
    place = None
    if image is not None and any(len(one.boxes) for drawn in boxes for one in drawn):
        place = place_of([one for drawn in boxes for one in drawn], image.shape)  # one slice for the whole row
    base, drawn = None, []
    for (caption, whole, kind), array, found in zip(panels, arrays, boxes, strict=True):
        slices, sizes = slices_of(image if kind == "boxes" else array, planes, spacing, place)  # type: ignore[arg-type]
        # labels are enlarged before they get their contours
        shapes = pixels_of(sizes, panel_size)
        if is_colour(whole, kind):
            channels = [slices_of(spatial(channel, caption), planes, spacing, place)[0] for channel in whole]
            pictures = [colour_picture(c, shape) for c, shape in zip(zip(*channels, strict=True), shapes, strict=True)]
            base = pictures if base is None else base
        elif kind in ("image", "colour"):
            pictures = grey_pictures(slices, shapes, percentiles, window=(windows or {}).get(caption))
            base = pictures if base is None else base
        elif kind == "boxes":
            below = base if base is not None else grey_pictures(slices, shapes, percentiles)
            middle = [n // 2 for n in image.shape]  # type: ignore[union-attr]
            pictures = outlined(below, found, image.shape, place or middle, names)  # type: ignore[union-attr]
        else:
            slices = [nearest(s, shape) for s, shape in zip(slices, shapes, strict=True)]
            fits = base is not None and [p.shape[:2] for p in base] == shapes
            pictures = [
                CLASSES[class_colour(s)] if kind == "classes" else _overlay(s, base[n] if base and fits else None)
                for n, s in enumerate(slices)
            ]
        drawn.append((caption, side_by_side(pictures)))
    return drawn


def _boxes(panel: Panel, image: np.ndarray | None, min_score: float, max_boxes: int) -> list[Drawn]:
    caption, found, _ = panel
    if image is None:
        raise ValueError(f"panel {caption!r} of boxes needs a panel of kind 'image' in its row")
    return drawn_of(found, image.shape, min_score, max_boxes, caption)


def _overlay(labels: np.ndarray, under: np.ndarray | None) -> np.ndarray:
    """Objects half transparent in their own colour, their outline opaque."""
    labels = labels.astype(np.int64)
    inside = labels > 0
    colours = _colours(labels)
    picture = np.zeros((*labels.shape, 3)) if under is None else under.astype(np.float64)
    shown = np.where(inside, 0.35 if under is not None else 0.8, 0.0)
    share = np.where(inside & edges(labels), 1.0, shown)[..., None]
    return (picture * (1 - share) + colours * share).astype(np.uint8)


def _colours(labels: np.ndarray) -> np.ndarray:
    """A bright colour per label, far from those of its neighbours in number (hue steps by the golden ratio)."""
    hue = (labels * 0.6180339887) % 1.0
    return 255 * (0.25 + 0.75 * np.clip(np.abs((hue[..., None] * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1))
