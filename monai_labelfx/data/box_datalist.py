# SPDX-License-Identifier: Apache-2.0
"""Boxes from a box file as entries of a datalist."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

__all__ = ["add_boxes_to_datalist"]


def add_boxes_to_datalist(
    items: Iterable[Mapping[str, Any]],
    boxes: Mapping[str, Mapping[str, Any]],
    *,
    classes: Sequence[str] | None = None,
    allow_missing: bool = False,
) -> list[dict[str, Any]]:
    """Give the items of a datalist their boxes.

    An item gets the keys "box", a list of boxes ``[x0, y0[, z0], x1, y1[, z1]]`` in voxels, half open, that
    :py:func:`check_datalist` checks against the image, and "box_label", a list of as many class channels. The image of
    an item (the first, where it is a list of channels) and a name in ``boxes`` belong together when one path ends with
    the other: ``data/images/a.png`` and ``images/a.png``, or ``a.png``.

    Args:
        items: entries with "image", such as one split of :py:func:`load_datalist`.
        boxes: image file name -> ``boxes``, ``labels`` and, for ``classes``, ``names``: what :py:func:`load_boxes`
            returns, or :py:func:`load_detections` for each image.
        classes: the names in the order of the network's channels; the class channel of a box is the place of its name.
            The numbers of two files may differ, names do not. Default ``None``: the labels as they are.
        allow_missing: leave an item that ``boxes`` does not know as it is (nobody has looked at this image, which is
            not the same as no object) instead of raising. Default ``False``.

    Returns:
        New items in the same order. Boxes of images that no item has are left out.

    Raises:
        ValueError: no or several names for an image, one name for several images, a name that is not among ``classes``,
            or boxes that are unusable: one sentence with the image.

    Example:
        >>> boxes = {"a.png": {"boxes": [[0, 0, 4, 2]], "labels": [7], "names": {7: "lung"}}}
        >>> add_boxes_to_datalist([{"image": "images/a.png"}], boxes, classes=["heart", "lung"])
        [{'image': 'images/a.png', 'box': [[0.0, 0.0, 4.0, 2.0]], 'box_label': [1]}]
    """
    candidates = defaultdict(list)
    for name in boxes:
        candidates[_parts(name)[-1:]].append(name)
    owner: dict[str, str] = {}
    result = []
    for item in items:
        image = item.get("image")
        image = image[0] if isinstance(image, (list, tuple)) and image else image
        if not isinstance(image, (str, os.PathLike)):
            raise ValueError(f"an item must have an image path under 'image', found {image!r}")
        image, parts = os.fspath(image), _parts(image)
        names = [name for name in candidates[parts[-1:]] if _same_end(parts, _parts(name))]
        if len(names) > 1:
            raise ValueError(f"image {image!r} has several boxes entries: {', '.join(map(repr, names[:5]))}")
        if not names and not allow_missing:
            raise ValueError(
                f"image {image!r} has no boxes entry; an image without an object has an entry without boxes, and "
                "allow_missing=True leaves unknown images as they are"
            )
        result.append(dict(item))
        if names:
            other = owner.setdefault(names[0], image)
            if other != image:
                raise ValueError(f"the boxes of {names[0]!r} belong to several images: {other!r} and {image!r}")
            result[-1] |= _columns(boxes[names[0]], classes, f"boxes of {names[0]!r}")
    return result


def _columns(entry: Mapping[str, Any], classes: Sequence[str] | None, where: str) -> dict[str, list]:
    """The two lists of an item."""
    boxes, labels = np.asarray(entry["boxes"], dtype=np.float64), np.asarray(entry["labels"])
    if boxes.size == labels.size == 0:
        return {"box": [], "box_label": []}
    if boxes.ndim != 2 or boxes.shape[1] not in (4, 6) or labels.shape != boxes.shape[:1]:
        raise ValueError(f"{where} must be (N, 4) or (N, 6) with N labels, got {boxes.shape} and {labels.shape}")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{where} need labels that are whole numbers, got {labels.dtype}")
    low, high = np.split(boxes, 2, axis=1)
    bad = np.flatnonzero(~(np.isfinite(boxes).all(axis=1) & (low < high).all(axis=1)))
    if bad.size:
        raise ValueError(f"{where} hold an unusable one, {boxes[bad[0]].tolist()} (low corner, then high corner)")
    if classes is not None:
        named = [entry.get("names", {}).get(label, f"label {label}") for label in labels.tolist()]
        unknown = sorted(set(named) - set(classes))
        if unknown:
            raise ValueError(f"{where} hold the unknown classes {unknown[:5]}, expected {list(classes)}")
        return {"box": boxes.tolist(), "box_label": [list(classes).index(name) for name in named]}
    return {"box": boxes.tolist(), "box_label": labels.tolist()}


def _parts(path: str | os.PathLike) -> tuple[str, ...]:
    return PurePosixPath(os.path.normpath(os.fspath(path)).replace("\\", "/")).parts


def _same_end(first: tuple[str, ...], second: tuple[str, ...]) -> bool:
    count = min(len(first), len(second))
    return count > 0 and first[-count:] == second[-count:]
