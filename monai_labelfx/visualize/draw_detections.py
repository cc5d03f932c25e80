# SPDX-License-Identifier: Apache-2.0
"""Boxes and masks of detected objects over an image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from monai_labelfx.visualize._pictures import (
    CLASSES,
    clip_text,
    drawn_axes,
    edges,
    font,
    grey_pictures,
    nearest,
    pixels_of,
    side_by_side,
    slices_of,
)

_DASH, _GAP = 5, 4  # pixels
_INK = (0, 0, 0)
_FILL = 0.35  # opacity of a mask


class Drawn(NamedTuple):
    """Detections of one image that are drawn, the best one first; ``scores`` is ``None`` for reference boxes."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None
    masks: np.ndarray | None


def draw_detections(
    image: Any,
    boxes: Any,
    labels: Any,
    scores: Any = None,
    *,
    masks: Any = None,
    reference: Mapping[str, Any] | None = None,
    names: Mapping[int, str] | None = None,
    min_score: float = 0.0,
    max_boxes: int = 25,
    panel_size: int = 480,
    planes: int = 1,
    spacing: Sequence[float] | None = None,
    percentiles: tuple[float, float] = (1.0, 99.5),
) -> np.ndarray:
    """The picture of an image with outlines of boxes, each in the colour of its class, named and with its score.

    A volume is shown by slices through the best box (the largest one where there are no scores), or through its middle
    without boxes. Of a volume those boxes are drawn that cross the slice. Boxes without scores are dashed, as those of
    ``reference``.

    Args:
        image: (C, \\*spatial) or (\\*spatial) with D spatial axes, the first channel is drawn. Axis 0 runs to the
            right and axis 1 downwards, as MONAI loads pictures.
        boxes: (N, 2 \\* D) in voxels, low corner, then high corner, half open.
        labels: (N,) whole numbers, from 0.
        scores: (N,), or ``None`` for reference boxes.
        masks: (N, \\*spatial), what is not 0 is covered with the colour.
        reference: ``boxes``, ``labels``[, ``masks``] of further, dashed boxes.
        names: label -> what is written beside a box. Default: the number.
        min_score: boxes below are left out.
        max_boxes: how many boxes are drawn, the best ones; of the reference all are.
        panel_size: longer side of the picture (of a plane, for three), in pixels.
        planes: 1 slice of a volume, along its last axis, or 3.
        spacing: size of a voxel along each axis.
        percentiles: the grey values that become black and white.

    Returns:
        RGB picture (height, width, 3), uint8.

    Raises:
        ValueError: where the shapes of image, boxes, labels, scores and masks do not fit together.

    Example:
        >>> picture = draw_detections(np.zeros((1, 32, 16)), [[4, 4, 20, 12]], [0], [0.9], panel_size=64)
        >>> picture.shape, picture[16, 8].tolist()
        ((32, 64, 3), [86, 180, 233])
    """
    if planes not in (1, 3):
        raise ValueError(f"planes is {planes!r}, expected 1 or 3")
    boxes = _array(boxes)
    axes = boxes.shape[-1] // 2 if boxes.size else None
    values = _image(image, axes)
    found = [{"boxes": boxes, "labels": labels, "scores": scores, "masks": masks}]
    drawn = drawn_of([*found, *([] if reference is None else [reference])], values.shape, min_score, max_boxes)
    place = place_of(drawn, values.shape)
    slices, sizes = slices_of(values, planes, spacing, place)
    shapes = pixels_of(sizes, panel_size)
    pictures = outlined(grey_pictures(slices, shapes, percentiles), drawn, values.shape, place, names)
    return np.asarray(side_by_side(pictures))


def drawn_of(
    found: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    shape: Sequence[int],
    min_score: float,
    max_boxes: int,
    caption: str = "detections",
) -> list[Drawn]:
    """What is drawn of one or more mappings of ``boxes``, ``labels``[, ``scores``, ``masks``] in a (\\*shape) image."""
    return [
        _drawn(one, tuple(shape), min_score, max_boxes, caption)
        for one in ([found] if isinstance(found, Mapping) else found)
    ]


def _drawn(one: Mapping[str, Any], shape: tuple[int, ...], min_score: float, max_boxes: int, caption: str) -> Drawn:
    if not isinstance(one, Mapping) or "boxes" not in one or "labels" not in one:
        raise ValueError(f"{caption!r} must be a mapping with boxes, labels and, if there are any, scores and masks")
    boxes, labels, scores, masks = (_array(one.get(key)) for key in ("boxes", "labels", "scores", "masks"))
    boxes = np.zeros((0, 2 * len(shape))) if not boxes.size else boxes.astype(np.float64)
    count = len(boxes)
    fits = boxes.shape == (count, 2 * len(shape)) and labels.size == count and scores.size in (0, count)
    if not fits or (masks.size and masks.shape != (count, *shape)):
        raise ValueError(
            f"{caption!r} must have boxes (N, {2 * len(shape)}), labels and scores (N,) and masks (N, *{shape}), got "
            f"{boxes.shape}, {labels.shape}, {scores.shape} and {masks.shape}"
        )
    labels = labels.astype(np.int64).reshape(count)
    shown = (masks != 0) if masks.size else None
    if one.get("scores") is None:
        low, high = np.split(boxes, 2, axis=1)
        order = np.argsort(-np.prod(high - low, axis=1), kind="stable")
        return Drawn(boxes[order], labels[order], None, None if shown is None else shown[order])
    scores = scores.astype(np.float64).reshape(count)
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= min_score][:max_boxes]
    return Drawn(boxes[order], labels[order], scores[order], None if shown is None else shown[order])


def place_of(drawn: Sequence[Drawn], shape: Sequence[int]) -> list[int]:
    """The voxel that slices go through: the middle of the best box of the first that has one, or of the image."""
    for one in drawn:
        if len(one.boxes):
            low, high = np.split(one.boxes[0], 2)
            return [int(np.clip(math.floor(c), 0, n - 1)) for c, n in zip((low + high) / 2, shape, strict=True)]
    return [n // 2 for n in shape]


def outlined(
    pictures: Sequence[np.ndarray],
    drawn: Sequence[Drawn],
    shape: Sequence[int],
    place: Sequence[int],
    names: Mapping[int, str] | None,
) -> list[np.ndarray]:
    """Copies of the pictures of the slices through ``place`` of a (\\*shape) image, with boxes and masks on them."""
    axes = drawn_axes(len(shape), len(pictures))
    return [_outlined(*one, drawn, shape, place, names or {}) for one in zip(pictures, axes, strict=True)]


def _outlined(picture, plane, drawn, shape, place, names):
    from PIL import Image, ImageDraw

    right, down, cut = plane
    height, width = picture.shape[:2]
    for one in drawn:
        for mask, label in zip([] if one.masks is None else one.masks, one.labels, strict=False):
            picture = _filled(picture, mask, label, plane, place)
    page = Image.fromarray(picture)
    draw = ImageDraw.Draw(page)
    used = font(11 if max(height, width) < 400 else 13)
    captions = []
    for one in drawn[::-1]:
        # the best one last, on top of the others
        for number in range(len(one.boxes) - 1, -1, -1):
            low, high = np.split(one.boxes[number], 2)
            if cut is not None and not (low[cut] < place[cut] + 1 and high[cut] > place[cut]):
                continue
            x = [low[right] * width / shape[right], high[right] * width / shape[right] - 1]
            y = [low[down] * height / shape[down], high[down] * height / shape[down] - 1]
            y = [height - 1 - y[1], height - 1 - y[0]] if down == 2 else y
            colour = tuple(int(c) for c in CLASSES[1 + int(one.labels[number]) % (len(CLASSES) - 1)])
            sides = zip((x[0], y[0], x[1], y[1]), (width, height, width, height), strict=True)
            corners = [round(min(max(float(side), 0.0), n - 1.0)) for side, n in sides]
            _rectangle(draw, corners, colour, dashed=one.scores is None, wide=max(height, width) >= 200)
            if one.scores is not None or len(drawn) == 1:
                captions.append((corners, colour, _caption(one, number, names)))
    for (left, top, _, _), colour, text in captions:
        _write(draw, text, (left, top), (width, height), colour, used)
    return np.asarray(page)


def _filled(picture, mask, label, plane, place):
    """The picture with a mask in the colour of its class, its outline opaque."""
    _, down, cut = plane
    values = mask if cut is None else mask.take(place[cut], axis=cut)
    inside = nearest(values.T[::-1] if down == 2 else values.T, picture.shape[:2])
    share = np.where(inside & edges(inside), 1.0, _FILL * inside)[..., None]
    colour = CLASSES[1 + int(label) % (len(CLASSES) - 1)]
    return (picture * (1 - share) + colour * share).astype(np.uint8)


def _rectangle(draw, corners, colour, *, dashed, wide):
    left, top, right, bottom = corners
    width = 2 if wide else 1
    if not dashed:
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=width)
        return
    for start in range(left, right + 1, _DASH + _GAP):
        for y in (top, max(top, bottom - width + 1)):
            draw.rectangle((start, y, min(start + _DASH - 1, right), y + width - 1), fill=colour)
    for start in range(top, bottom + 1, _DASH + _GAP):
        for x in (left, max(left, right - width + 1)):
            draw.rectangle((x, start, x + width - 1, min(start + _DASH - 1, bottom)), fill=colour)


def _caption(one: Drawn, number: int, names: Mapping[int, str]) -> str:
    label = int(one.labels[number])
    name = str(names.get(label, label))
    return name if one.scores is None else f"{name} {one.scores[number]:.2f}"


def _write(draw, text, corner, size, colour, used):
    """Words above the box, on its colour; inside it where there is no room."""
    text = clip_text(text, size[0] - 4, used)
    tall, long = used.size + 2, math.ceil(used.getlength(text)) + 4
    left = max(0, min(corner[0], size[0] - long))
    top = corner[1] - tall if corner[1] >= tall else min(corner[1] + 1, max(0, size[1] - tall))
    draw.rectangle((left, top, left + long - 1, top + tall - 1), fill=colour)
    draw.text((left + 2, top), text, fill=_INK, font=used)


def _image(image: Any, axes: int | None) -> np.ndarray:
    values = _array(image)
    if values.ndim not in (2, 3, 4) or not values.size:
        raise ValueError(f"image has shape {values.shape}, expected (C, *spatial) or (*spatial) in 2-D or 3-D")
    if axes is None:  # no boxes tell
        axes = 3 if values.ndim == 4 or (values.ndim == 3 and values.shape[0] > 4) else 2
    if axes not in (2, 3) or values.ndim not in (axes, axes + 1):
        raise ValueError(f"image has shape {values.shape}, expected {axes} spatial axes, as the boxes have")
    return values if values.ndim == axes else values[0]


def _array(value: Any) -> np.ndarray:
    return np.zeros(0) if value is None else np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
