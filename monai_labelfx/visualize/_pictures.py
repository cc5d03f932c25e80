# SPDX-License-Identifier: Apache-2.0
"""Slices of arrays as RGB pictures, with Pillow and numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

PAPER = (255, 255, 255)
# background, foreground, border, then further classes: distinguishable for colour-blind readers (Okabe and Ito)
CLASSES = np.array(
    [(0, 0, 0), (86, 180, 233), (230, 159, 0), (0, 158, 115), (213, 94, 0), (204, 121, 167), (240, 228, 66)], np.uint8
)


def drawn_axes(ndim: int, planes: int) -> list[tuple[int, int, int | None]]:
    """For each plane its axes (right, down) and the axis that is cut; a picture has none to cut."""
    volume: list[tuple[int, int, int | None]] = [(0, 1, 2), (0, 2, 1), (1, 2, 0)]
    return volume[:planes] if ndim == 3 else [(0, 1, None)]


def spatial(array: Any, caption: str) -> np.ndarray:
    """(\\*spatial) of an array or tensor (1, \\*spatial) or (\\*spatial), 2-D or 3-D."""
    values = np.asarray(array.detach().cpu() if hasattr(array, "detach") else array)
    if values.ndim == 4 or (values.ndim == 3 and values.shape[0] == 1):
        values = values[0]
    if values.ndim not in (2, 3) or not values.size:
        raise ValueError(
            f"panel {caption!r} has shape {values.shape}, expected (1, *spatial) or (*spatial) in 2-D or 3-D"
        )
    return values


def slices_of(
    values: np.ndarray, planes: int, spacing: Sequence[float] | None, place: Sequence[int] | None = None
) -> tuple[list[np.ndarray], list[tuple[float, float]]]:
    """Slices as (row, column) arrays, and their sizes (height, width) in units of length.

    Through the voxel ``place``, by default the middle.
    """
    size = [n * s for n, s in zip(values.shape, spacing or (1.0,) * values.ndim, strict=False)]
    at = [n // 2 for n in values.shape]
    if place is not None:
        at = [min(index, n - 1) for index, n in zip(place, values.shape, strict=True)]
    axes = drawn_axes(values.ndim, planes)
    slices: list[np.ndarray] = []
    for _, down, cut in axes:
        plane = values if cut is None else values.take(at[cut], axis=cut)
        # the last axis of a volume points up in its side views
        slices.append(plane.T[::-1] if down == 2 else plane.T)
    return slices, [(size[down], size[right]) for right, down, _ in axes]


def pixels_of(sizes: Sequence[tuple[float, float]], panel_size: int) -> list[tuple[int, int]]:
    """Shapes in pixels: the longest side of any plane becomes ``panel_size``."""
    scale = panel_size / max(max(size) for size in sizes)
    return [(max(1, round(height * scale)), max(1, round(width * scale))) for height, width in sizes]


def grey_pictures(
    slices: Sequence[np.ndarray],
    shapes: Sequence[tuple[int, int]],
    percentiles: tuple[float, float],
    window: Sequence[float] | None = None,
) -> list[np.ndarray]:
    """Slices of grey values as RGB pictures of these shapes, black to white by percentiles or by a window of values."""
    if window is None:
        window = np.percentile(np.concatenate([_finite(s) for s in slices]), percentiles)
    return [resized(_grey(s, window), shape) for s, shape in zip(slices, shapes, strict=True)]


def is_colour(array: Any, kind: str) -> bool:
    """Whether a panel has three channels to draw."""
    return kind == "colour" and array.ndim > 2 and array.shape[0] == 3


def colour_picture(channels: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Slices of red, green and blue, 0 to 255, as one picture of this shape."""
    values = np.stack([np.nan_to_num(channel.astype(np.float64)) for channel in channels], axis=-1)
    return resized(values.round().clip(0, 255).astype(np.uint8), shape)


def _finite(values: np.ndarray) -> np.ndarray:
    finite = values[np.isfinite(values)]
    return finite.astype(np.float64) if finite.size else np.zeros(1)


def _grey(values: np.ndarray, window: Sequence[float]) -> np.ndarray:
    low, high = window
    scaled = (np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low) - low) / max(high - low, 1e-12)
    return np.repeat((scaled.clip(0, 1) * 255).astype(np.uint8)[..., None], 3, axis=-1)


def class_colour(values: np.ndarray) -> np.ndarray:
    """Index of the colour of each class; colours repeat, but only class 0 is black."""
    return np.where(values > 0, (values.astype(np.int64) - 1) % (len(CLASSES) - 1) + 1, 0)


def edges(labels: np.ndarray) -> np.ndarray:
    """Pixels beside a pixel of another label."""
    edge = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        differs = np.diff(labels, axis=axis) != 0
        pad = [(0, 0), (0, 0)]
        for side in ((0, 1), (1, 0)):
            pad[axis] = side
            edge |= np.pad(differs, pad)
    return edge


def nearest(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The array in another size, by nearest neighbours."""
    rows, columns = (((np.arange(n) + 0.5) * values.shape[axis] / n).astype(int) for axis, n in enumerate(shape))
    return values[rows[:, None], columns]


def resized(picture: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Enlarged without smoothing, so that voxels stay visible; shrunk with smoothing, so that noise does not alias."""
    from PIL import Image

    if shape[0] >= picture.shape[0] and shape[1] >= picture.shape[1]:
        return nearest(picture, shape)
    size = (shape[1], shape[0])
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def side_by_side(pictures: Sequence[np.ndarray]) -> Any:
    """Pictures beside each other as one image of Pillow."""
    from PIL import Image

    panel = Image.new("RGB", (sum(p.shape[1] + 2 for p in pictures) - 2, max(p.shape[0] for p in pictures)), PAPER)
    left = 0
    for picture in pictures:
        panel.paste(Image.fromarray(picture), (left, 0))
        left += picture.shape[1] + 2
    return panel


def font(size: int = 13) -> Any:
    """Pillow's own font."""
    from PIL import ImageFont

    return ImageFont.load_default(size=size)


def clip_text(text: str, width: int, used: Any) -> str:
    """The text, shortened to a width in pixels."""
    if used.getlength(text) <= width:
        return text
    while text and used.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
