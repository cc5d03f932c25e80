# SPDX-License-Identifier: Apache-2.0
"""Boxes and masks of pictures as COCO JSON: data sets, and detections as COCO's evaluation reads them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.utils import convert_data_type

from monai_labelfx._atomic import replacing
from monai_labelfx.data._coco_masks import segmentations

__all__ = ["save_coco_dataset", "save_coco_detections"]

_MASK_KEYS = ("segmentation", "area")


def save_coco_dataset(
    path: str | os.PathLike,
    items: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    *,
    shapes: Sequence[Sequence[int]] | None = None,
    category_ids: Sequence[int] | None = None,
    image_root: str | os.PathLike | None = None,
) -> Path:
    """Write items of a datalist as a COCO data set; the file appears complete or not at all.

    Args:
        path: the JSON file to write; its folder is made.
        items: as :py:func:`load_coco` gives them, pictures with ``image``, ``box``, ``box_label`` and, if they have,
            ``image_id`` (else 1, 2, ...) and ``subject``. Objects have masks where the item has ``segmentation``, run
            lengths for each box, or ``masks``, (N, x, y) or a list of N crops, each beginning at the floor of the low
            corner of its box; these are written as run lengths.
        class_names: the names of the classes 0 to C - 1.
        shapes: size (x, y) of each image, for ``width`` and ``height``, needed by crops. Default ``None``: the file
            does not tell them, and :py:func:`load_coco` cannot read its masks.
        category_ids: of the classes. Default ``None``: 1 to C.
        image_root: folder to which the ``file_name`` of images is relative. Default ``None``: that of the JSON file.

    Returns:
        The path of the file. Annotation ids begin with 1, for COCO's evaluation takes 0 for "not matched". ``area`` is
        the number of pixels of the mask, or the area of the box where there is none.

    Raises:
        ValueError: boxes of other than 2 axes or without volume, labels beyond the classes or of another number than
            the boxes, masks of another number or of another size than the image, an image id twice, or ``shapes`` or
            ``category_ids`` of another number.
        TypeError: masks of floating point numbers.

    Example:
        >>> import tempfile
        >>> items = [{"image": "a.png", "box": [[10.0, 20.0, 15.0, 24.0]], "box_label": [0], "image_id": 3}]
        >>> from monai_labelfx.data.coco_json import load_coco
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_coco_dataset(f"{folder}/boxes.json", items, ["lung"], image_root=".")
        ...     load_coco(path, image_root="").items == items
        True
    """
    root = os.path.abspath(Path(path).parent if image_root is None else image_root)
    ids = _category_ids(category_ids, len(class_names))
    if shapes is not None and len(shapes) != len(items):
        raise ValueError(f"shapes must be one (x, y) for each of {len(items)} images, got {len(shapes)}.")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, item in enumerate(items):
        image_id = item.get("image_id", number + 1)
        image = {"id": image_id, "file_name": Path(os.path.relpath(os.path.abspath(item["image"]), root)).as_posix()}
        if shapes is not None:
            image |= dict(zip(("width", "height"), map(int, shapes[number]), strict=True))
        images.append(image | ({"patient": item["subject"]} if "subject" in item else {}))
        boxes, labels, _ = _checked(item.get("box", []), item.get("box_label", []), None, len(ids), image_id)
        masks = segmentations(item, boxes, None if shapes is None else shapes[number], f"image {image_id!r}")
        for row, (corners, label) in enumerate(zip(boxes.tolist(), labels.tolist(), strict=True)):
            x, y, width, height = _from_corners(corners)
            entry = {"id": len(annotations) + 1, "image_id": image_id, "category_id": ids[label]}
            entry |= {"bbox": [x, y, width, height], "area": width * height, "iscrowd": 0}
            annotations.append(entry | ({} if masks is None else dict(zip(_MASK_KEYS, masks[row], strict=True))))
    _check_unique([image["id"] for image in images])
    categories = [{"id": number, "name": name} for number, name in zip(ids, class_names, strict=True)]
    return _write(path, {"images": images, "annotations": annotations, "categories": categories})


def save_coco_detections(
    path: str | os.PathLike,
    detections: Sequence[Mapping[str, Any]],
    image_ids: Sequence[int | str],
    *,
    category_ids: Sequence[int] | None = None,
    shapes: Sequence[Sequence[int]] | None = None,
) -> Path:
    """Write what a detector found in pictures as a COCO results file; it appears complete or not at all.

    Args:
        path: the JSON file to write; its folder is made.
        detections: for each image a mapping of ``boxes`` (N, 4) low corner, then high corner, in pixels of the file,
            ``labels`` (N,) and ``scores`` (N,), tensors or arrays; maybe ``masks`` or ``segmentation``, as in
            :py:func:`save_coco_dataset`.
        image_ids: of the images.
        category_ids: of the classes. Default ``None``: class + 1.
        shapes: size (x, y) of each image, needed by masks that are crops. Default ``None``.

    Returns:
        The path of the file, a list of objects ``image_id``, ``category_id``, ``bbox`` [x, y, width, height],
        ``score`` and, for detections with masks, ``segmentation``, run lengths. An image without detection leaves no
        trace in it, as the format has it.

    Raises:
        ValueError: another number of ids than of images, an id twice, boxes of other than 2 axes (their file is that of
            :py:func:`save_detections`) or without volume, labels without a category, numbers that are not finite, masks
            of another number or size.
        TypeError: masks of floating point numbers.

    Notes:
        Of a file with both, pycocotools takes the sizes of objects (small, medium, large) from the boxes, for masks
        too. Where these matter, leave out the boxes as you read the file.

    Example:
        >>> import tempfile
        >>> found = {"boxes": np.array([[1.0, 2.0, 4.0, 8.0]]), "labels": np.array([0]), "scores": np.array([0.5])}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print(save_coco_detections(f"{folder}/found.json", [found], [7]).read_text().strip())
        [{"image_id": 7, "category_id": 1, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.5}]
    """
    if len(image_ids) != len(detections):
        raise ValueError(f"image_ids must be one for each of {len(detections)} images, got {len(image_ids)}.")
    _check_unique(list(image_ids))
    if shapes is not None and len(shapes) != len(detections):
        raise ValueError(f"shapes must be one (x, y) for each of {len(detections)} images, got {len(shapes)}.")
    rows: list[dict[str, Any]] = []
    for index, (image_id, found) in enumerate(zip(image_ids, detections, strict=True)):
        number = None if category_ids is None else len(category_ids)
        boxes, labels, scores = _checked(found["boxes"], found["labels"], found["scores"], number, image_id)
        masks = segmentations(found, boxes, None if shapes is None else shapes[index], f"image {image_id!r}")
        for row, (corners, label) in enumerate(zip(boxes.tolist(), labels.tolist(), strict=True)):
            category = label + 1 if category_ids is None else int(category_ids[label])
            entry = {"image_id": image_id, "category_id": category, "bbox": _from_corners(corners)}
            entry |= {"score": float(scores[row])}
            rows.append(entry | ({} if masks is None else {"segmentation": masks[row][0]}))
    return _write(path, rows)


def _checked(
    boxes: Any, labels: Any, scores: Any, classes: int | None, image_id: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (N, 4) and scores (N,) float64, labels (N,) int64."""
    rows, channels = _array(boxes).astype(np.float64), _array(labels)
    rows, channels = rows if rows.size else rows.reshape(0, 4), channels if channels.size else np.zeros(0, np.int64)
    values = np.zeros(len(rows)) if scores is None else _array(scores).astype(np.float64)
    where = f"image {image_id!r}"
    if rows.ndim != 2 or rows.shape[1] != 4:
        raise ValueError(f"boxes of {where} must have the shape (N, 4) in COCO, got {rows.shape}; see save_detections.")
    if channels.shape != rows.shape[:1] or values.shape != rows.shape[:1] or channels.dtype.kind not in "iu":
        raise ValueError(
            f"{where} must have a whole number as label and a score for each of {len(rows)} boxes, got "
            f"{channels.dtype} {channels.shape} and {values.shape}."
        )
    if not np.isfinite(rows).all() or not np.isfinite(values).all():
        raise ValueError(f"boxes and scores of {where} must be finite.")
    if (rows[:, :2] >= rows[:, 2:]).any():
        raise ValueError(f"boxes of {where} must have their high corner above the low one.")
    if channels.size and (channels.min() < 0 or (classes is not None and channels.max() >= classes)):
        raise ValueError(f"labels of {where} must be 0 to {'...' if classes is None else classes - 1}.")
    return rows, channels.astype(np.int64), values


def _array(value: Any) -> np.ndarray:
    return convert_data_type(value, np.ndarray)[0] if hasattr(value, "__array__") else np.array(value)


def _from_corners(corners: Sequence[float]) -> list[float]:
    x, y, right, low = corners
    return [x, y, right - x, low - y]


def _category_ids(category_ids: Sequence[int] | None, number: int) -> list[int]:
    ids = list(range(1, number + 1)) if category_ids is None else [int(one) for one in category_ids]
    if len(ids) != number or len(set(ids)) != number:
        raise ValueError(f"category_ids must be {number} different numbers, one for each class, got {ids}.")
    return ids


def _check_unique(ids: list) -> None:
    twice = [number for number, count in Counter(ids).items() if count > 1]
    if twice:
        raise ValueError(f"image ids must differ, got {twice[0]!r} {ids.count(twice[0])} times.")


def _write(path: str | os.PathLike, document: Any) -> Path:
    text = json.dumps(document, allow_nan=False, ensure_ascii=False)
    with replacing(Path(path)) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return Path(path)
