# SPDX-License-Identifier: Apache-2.0
"""Boxes and masks of detected objects over an image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monai_labelfx.metrics._mask_crops import MaskCrops
from monai_labelfx.metrics._object_masks import object_masks
from monai_labelfx.visualize._captions import write_captions
from monai_labelfx.visualize._drawn_masks import Drawn, colours_of, with_masks
from monai_labelfx.visualize._pictures import drawn_axes, font, grey_pictures, pixels_of, side_by_side, slices_of

_DASH, _GAP = 5, 4  # pixels
_SHARE = 0.25  # of the largest section of a mask: enough to show the object


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

    A volume is shown by slices through the middle of the best box (the largest one where there are no scores), or next
    to it where its mask has next to nothing there; without boxes through the middle of the volume. Of a volume those
    boxes are drawn that cross the slice. Boxes without scores are dashed, as those of ``reference``. A name that finds
    no room beside those of better boxes is left out.

    Masks have outlines and are tinted; those of one class differ in brightness, so that they can be told apart where
    they touch. Those of ``reference`` have only outlines, dashed in black, and then no boxes.

    Args:
        image: (C, \\*spatial) or (\\*spatial) with D spatial axes, the first channel is drawn. Axis 0 runs to the
            right and axis 1 downwards, as MONAI loads pictures.
        boxes: (N, 2 \\* D) in voxels, low corner, then high corner, half open.
        labels: (N,) whole numbers, from 0.
        scores: (N,), or ``None`` for reference boxes.
        masks: (N, \\*spatial), what is not 0 is inside; or a list of N blocks, each from the voxel ``floor(low)`` of
            its box on.
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
    boxes, labels, scores = (_array(one.get(key)) for key in ("boxes", "labels", "scores"))
    boxes = np.zeros((0, 2 * len(shape))) if not boxes.size else boxes.astype(np.float64)
    count = len(boxes)
    if boxes.shape != (count, 2 * len(shape)) or labels.size != count or scores.size not in (0, count):
        raise ValueError(
            f"{caption!r} must have boxes (N, {2 * len(shape)}), labels and scores (N,), got {boxes.shape}, "
            f"{labels.shape} and {scores.shape}"
        )
    labels = labels.astype(np.int64).reshape(count)
    if one.get("scores") is None:
        low, high = np.split(boxes, 2, axis=1)
        order = np.argsort(-np.prod(high - low, axis=1), kind="stable")
    else:
        scores = scores.astype(np.float64).reshape(count)
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] >= min_score][:max_boxes]
    masks = None if one.get("masks") is None else drawn_masks(one["masks"], boxes, shape, caption).take(order)
    return Drawn(boxes[order], labels[order], None if one.get("scores") is None else scores[order], masks)


def drawn_masks(masks: Any, boxes: Any, shape: Sequence[int], caption: str) -> MaskCrops:
    """Masks (N, \\*shape), a list of N blocks, or what this made of them; what is not 0 is inside."""
    if isinstance(masks, MaskCrops):
        return masks
    inside = [_inside(mask) for mask in masks] if isinstance(masks, list | tuple) else _inside(masks)
    return object_masks(inside, boxes, shape, repr(caption))


def place_of(drawn: Sequence[Drawn], shape: Sequence[int]) -> list[int]:
    """The voxel that slices go through: the middle of the best box of the first that has one, or of the image.

    Where the best box has a mask, the slice along each axis that is next to the middle and shows enough of it.
    """
    for one in drawn:
        if len(one.boxes):
            low, high = np.split(one.boxes[0], 2)
            place = [int(np.clip(math.floor(c), 0, n - 1)) for c, n in zip((low + high) / 2, shape, strict=True)]
            if one.masks is not None and one.masks.volumes[0]:
                crop, first = one.masks.crops[0], one.masks.low[0].tolist()
                return [
                    _nearest_full(crop, axis, p - begin) + begin
                    for axis, (p, begin) in enumerate(zip(place, first, strict=True))
                ]
            return place
    return [n // 2 for n in shape]


def _nearest_full(mask: np.ndarray, axis: int, wanted: int) -> int:
    """The index along an axis next to ``wanted`` that has a good share of what the fullest one has of a mask.

    Not the fullest one: of a cavity that is its wall.
    """
    areas = mask.sum(axis=tuple(a for a in range(mask.ndim) if a != axis))
    enough = np.flatnonzero(areas >= _SHARE * areas.max())
    return int(enough[np.abs(enough - wanted).argmin()])


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
    page = Image.fromarray(with_masks(picture, drawn, shape, plane, place))
    draw = ImageDraw.Draw(page)
    wide = 2 if max(height, width) >= 200 else 1
    captions = []
    for one in drawn[::-1]:
        compared = one.scores is None and len(drawn) > 1
        if compared and one.masks is not None:
            continue  # its masks have outlines
        colours = colours_of(one)
        # the best one last, on top of the others
        for number in range(len(one.boxes) - 1, -1, -1):
            low, high = np.split(one.boxes[number], 2)
            if cut is not None and not (low[cut] < place[cut] + 1 and high[cut] > place[cut]):
                continue
            x = [low[right] * width / shape[right], high[right] * width / shape[right] - 1]
            y = [low[down] * height / shape[down], high[down] * height / shape[down] - 1]
            y = [height - 1 - y[1], height - 1 - y[0]] if down == 2 else y
            sides = zip((x[0], y[0], x[1], y[1]), (width, height, width, height), strict=True)
            corners = [round(min(max(float(side), 0.0), n - 1.0)) for side, n in sides]
            colour = tuple(colours[number].tolist())
            _rectangle(draw, corners, colour, dashed=one.scores is None, width=1 if one.masks is not None else wide)
            if not compared:
                captions.append((corners, colour, _caption(one, number, names)))
    write_captions(draw, captions[::-1], (width, height), font(11 if max(height, width) < 400 else 13))
    return np.asarray(page)


def _rectangle(draw, corners, colour, *, dashed, width):
    left, top, right, bottom = corners
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


def _image(image: Any, axes: int | None) -> np.ndarray:
    values = _array(image)
    if values.ndim not in (2, 3, 4) or not values.size:
        raise ValueError(f"image has shape {values.shape}, expected (C, *spatial) or (*spatial) in 2-D or 3-D")
    if axes is None:  # no boxes tell
        axes = 3 if values.ndim == 4 or (values.ndim == 3 and values.shape[0] > 4) else 2
    if axes not in (2, 3) or values.ndim not in (axes, axes + 1):
        raise ValueError(f"image has shape {values.shape}, expected {axes} spatial axes, as the boxes have")
    return values if values.ndim == axes else values[0]


def _inside(mask: Any) -> Any:
    return mask if str(getattr(mask, "dtype", "")).endswith("bool") else _array(mask) != 0


def _array(value: Any) -> np.ndarray:
    return np.zeros(0) if value is None else np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
