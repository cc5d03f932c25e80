# SPDX-License-Identifier: Apache-2.0
"""Masks of objects over the picture of a slice, with outlines that tell touching objects apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from monai_labelfx.metrics._mask_crops import MaskCrops
from monai_labelfx.visualize._pictures import CLASSES, edges, nearest

_FILL = 0.25  # opacity of a mask: what is below must stay legible
_LIGHT, _DARK = 0.45, 0.35  # how far the second and third object of a class are from its colour to white and black
_HALO = 0.5  # what is left of the picture beside an outline: a bright outline shows on bright tissue
_DASH = 4  # pixels


class Drawn(NamedTuple):
    """Detections of one image that are drawn, the best one first; ``scores`` is ``None`` for reference boxes."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None
    masks: MaskCrops | None


def colours_of(one: Drawn) -> np.ndarray:
    """(N, 3) uint8, the colours of the classes; of objects with masks also lighter and darker, in turns in a class."""
    colours = CLASSES[1 + one.labels % (len(CLASSES) - 1)].astype(np.float64)
    if one.masks is None:
        return colours.astype(np.uint8)
    same = one.labels[:, None] == one.labels
    turn = (np.tril(same, -1).sum(axis=1) % 3)[:, None]
    colours = np.where(turn == 1, colours + _LIGHT * (255 - colours), colours)
    return np.where(turn == 2, colours * (1 - _DARK), colours).astype(np.uint8)


def with_masks(
    picture: np.ndarray, drawn: Sequence[Drawn], shape: Sequence[int], plane: Any, place: Sequence[int]
) -> np.ndarray:
    """The picture of the slice ``plane`` through ``place`` with masks: their outlines on top of all tinted insides.

    A reference beside predictions is not tinted, and its outlines are dashed in black.
    """
    values, outlines = picture.astype(np.float64), []
    wide = 2 if max(picture.shape[:2]) >= 400 else 1
    rows, columns = np.indices(picture.shape[:2])
    dashes = (rows + 2 * columns) // _DASH % 2 == 0
    # predictions, then references, of each the best one last
    for one in sorted(drawn, key=lambda found: found.scores is None):
        if one.masks is None:
            continue
        compared = one.scores is None and len(drawn) > 1
        colours = colours_of(one._replace(masks=None) if compared else one)
        for number in range(len(one.boxes) - 1, -1, -1):
            inside = _slice(one.masks, number, shape, plane, place, picture.shape[:2])
            if inside is None:
                continue
            if not compared:
                values[inside] += _FILL * (colours[number] - values[inside])
                values[edges(inside) & ~inside] *= _HALO
            outlines.append((_outline(inside, wide), colours[number], dashes if compared else None))
    for outline, colour, gaps in outlines:
        values[outline] = colour
        if gaps is not None:
            values[outline & gaps] = 0
    return values.astype(np.uint8)


def _outline(inside: np.ndarray, wide: int) -> np.ndarray:
    rest = inside
    for _ in range(wide):
        rest = rest & ~edges(rest)
    return inside & ~rest


def _slice(
    masks: MaskCrops, number: int, shape: Sequence[int], plane: Any, place: Sequence[int], size: tuple[int, int]
) -> np.ndarray | None:
    """A mask in the slice that is drawn, enlarged to the ``size`` of the picture; ``None`` where it does not reach."""
    right, down, cut = plane
    crop, low, high = masks.crops[number], masks.low[number], masks.high[number]
    if cut is not None:
        index = place[cut] - low[cut]
        if not 0 <= index < crop.shape[cut]:
            return None
        crop = crop.take(index, axis=cut)
    values = np.zeros((shape[right], shape[down]), bool)
    values[tuple(slice(low[axis], high[axis]) for axis in (right, down))] = crop
    return nearest(values.T[::-1] if down == 2 else values.T, size)
