# SPDX-License-Identifier: Apache-2.0
"""A COCO data set of boxes, and masks, as items of a datalist."""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from monai_labelfx.data._coco_masks import read_segmentation
from monai_labelfx.data._reading import ImageFileError
from monai_labelfx.data.box_files import _entries, _get, _new_name, _numbers, _refuse_constant

__all__ = ["CocoItems", "load_coco"]

_PATIENT = ("subject", "patient", "patient_id")  # fields of an image that name the person, which COCO knows nothing of
_NAMED = 5  # images that a warning names
_OFF = 3.0  # pixels: by so much the mask of an object may miss its box before it is told


class CocoItems(NamedTuple):
    """What :py:func:`load_coco` reads: items of a datalist, class names, category id of each class, size of each image.

    Example:
        >>> CocoItems([], ["lung"], [7], []).class_names
        ['lung']
    """

    items: list[dict[str, Any]]
    class_names: list[str]
    category_ids: list[int]
    shapes: list[tuple[int, int] | None]


def load_coco(
    path: str | os.PathLike, *, image_root: str | os.PathLike | None = None, masks: bool = False
) -> CocoItems:
    """Read a COCO data set of boxes, and masks, as items for training and evaluation.

    The ``bbox`` of COCO is [x, y, width, height] from the left upper corner of the picture and becomes ``[x, y, x +
    width, y + height]``: axis 0 of an array is x, as MONAI's readers load pictures, so nothing is swapped. Classes are
    0 to C - 1 in the order of the category ids.

    Odd boxes are dropped, with one warning that counts them and names images: those without width or height, those
    outside the image, and crowds (``iscrowd``: several objects in one box). What reaches out of the image is cut, where
    the file tells its size. For boxes that must be tight, and so without mercy, see :py:func:`load_boxes`.

    With ``masks`` the ``segmentation`` of each annotation is read too, be it polygons
    (:py:func:`polygons_to_mask`), run lengths or run lengths as a text, and given as the last, however the file has
    it. Objects without a pixel are dropped and counted as odd boxes are. A mask whose tight box is off its ``bbox`` by
    more than 3 pixels gives a warning with their number; one that does not even meet it is an error, for it belongs
    elsewhere.

    Args:
        path: the JSON file with "images", "annotations" and "categories".
        image_root: folder that the ``file_name`` of images is relative to. Default ``None``: that of the JSON file.
        masks: read the masks. Default ``False``.

    Returns:
        :py:class:`CocoItems` of

        - ``items``: one for each image, in the order of the file: ``image`` (path), ``box`` (list of 4 numbers),
          ``box_label`` (list of classes), ``image_id`` (that of the file) and, where the image has a field "subject",
          "patient" or "patient_id", ``subject``. With ``masks`` also ``segmentation``: for each box the run lengths
          ``{"size": [height, width], "counts": text}`` of its object, see :py:func:`decode_run_lengths`. An image
          without annotation has empty lists.
        - ``class_names`` and ``category_ids``, by class.
        - ``shapes``: (width, height) of each image as the file states it, or ``None``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no JSON, a field that is missing or of the wrong type, an image id or a file name twice, a category
            id or name twice, an annotation of an unknown image or category; with ``masks`` an image without width and
            height, an annotation without segmentation, one of another size than the image, off its box, or that cannot
            be read: one sentence with the file and the entry.

    Example:
        >>> import tempfile
        >>> document = {
        ...     "images": [{"id": 7, "file_name": "a.png", "width": 64, "height": 48}, {"id": 9, "file_name": "b.png"}],
        ...     "categories": [{"id": 3, "name": "nodule"}, {"id": 1, "name": "lung"}],
        ...     "annotations": [{"image_id": 7, "category_id": 3, "bbox": [10, 20, 5, 4]}],
        ... }
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "boxes.json").write_text(json.dumps(document))
        ...     items, names, *_ = load_coco(f"{folder}/boxes.json", image_root="images")
        >>> names, items[1]
        (['lung', 'nodule'], {'image': 'images/b.png', 'box': [], 'box_label': [], 'image_id': 9})
        >>> items[0]["box"], items[0]["box_label"]
        ([[10.0, 20.0, 15.0, 24.0]], [1])
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"COCO file {str(file)!r} does not exist")
    try:
        document = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ImageFileError(f"COCO file {str(file)!r} is not a JSON file ({error})") from error
    try:
        if not isinstance(document, dict):
            raise ValueError(f"must be an object with images, annotations and categories, found {str(document)[:100]}")
        categories = _categories(document)
        items = _images(document, file.parent if image_root is None else Path(image_root))
        dropped, off = _add_annotations(document, items, [number for number, _ in categories], masks)
    except ValueError as error:
        raise ImageFileError(f"COCO file {str(file)!r}: {error}") from error
    if dropped:
        reasons = Counter(reason for _, reason in dropped)
        told = ", ".join(f"{number} {reason}" for reason, number in reasons.items())
        films = _first(name for name, _ in dropped)
        warnings.warn(f"COCO file {str(file)!r}: dropped {len(dropped)} boxes ({told}) of {films}.", stacklevel=2)
    if off:
        most = max(pixels for _, pixels in off)
        warnings.warn(
            f"COCO file {str(file)!r}: {len(off)} masks are off their bbox by more than {_OFF:g} pixels, up to "
            f"{most:g}, of {_first(name for name, _ in off)}.",
            stacklevel=2,
        )
    shapes = [item.pop("size") for item in items.values()]
    for item in items.values():
        del item["name"]
    names, ids = [name for _, name in categories], [number for number, _ in categories]
    return CocoItems(list(items.values()), names, ids, shapes)


def _categories(document: Mapping[str, Any]) -> list[tuple[int, str]]:
    """(id, name) in the order of the ids."""
    found: dict[int, str] = {}
    for where, category in _entries(document, "categories"):
        number, name = _get(category, "id", int, where), _get(category, "name", str, where)
        if number in found or name in found.values():
            raise ValueError(f"{where} has the id {number} or the name {name!r} of another category")
        found[number] = name
    return sorted(found.items())


def _images(document: Mapping[str, Any], root: Path) -> dict[Hashable, dict[str, Any]]:
    """Image id -> item, with the size (width, height) where it is known."""
    items: dict[Hashable, dict[str, Any]] = {}
    names: dict[str, None] = {}
    for where, image in _entries(document, "images"):
        name, number = _new_name(image, names, where), _get(image, "id", (int, str), where)
        if number in items:
            raise ValueError(f"{where} has the id {number!r} of another image")
        names[name] = None
        sized = "width" in image or "height" in image
        size = (_get(image, "width", int, where), _get(image, "height", int, where)) if sized else None
        items[number] = {
            "image": os.path.normpath(os.path.join(root, name)),
            "box": [],
            "box_label": [],
            "image_id": number,
        }
        items[number] |= {"size": size, "name": name}
        patient = [image[key] for key in _PATIENT if isinstance(image.get(key), (str, int))]
        if patient and patient[0] != "":
            items[number]["subject"] = str(patient[0])
    return items


def _add_annotations(
    document: Mapping[str, Any], items: Mapping[Hashable, dict[str, Any]], categories: list[int], masks: bool
) -> tuple[list[tuple[str, str]], list[tuple[str, float]]]:
    """Put boxes and masks into the items; (image, reason) of each that was dropped, (image, pixels) of each mask off.

    The pixels are those between the tight box of the mask and the box.
    """
    classes, dropped, off = {number: rank for rank, number in enumerate(categories)}, [], []
    for item in items.values() if masks else ():
        item["segmentation"] = []
    for where, annotation in _entries(document, "annotations"):
        number, label = _get(annotation, "image_id", (int, str), where), _get(annotation, "category_id", int, where)
        if number not in items:
            raise ValueError(f"{where} has the image_id {number!r}, which no image has")
        if label not in classes:
            raise ValueError(f"{where} has the category_id {label}, which no category has")
        item = items[number]
        box, reason = _box(annotation, item["size"], where)
        if masks and reason is None:
            lengths, tight = read_segmentation(annotation, item["size"], f"{where} of {item['name']!r}")
            if tight is None:
                reason = "without a pixel in their mask"
            else:
                distance = _distance(tight, box, f"{where} of {item['name']!r}")
                off += [(item["name"], distance)] if distance > _OFF else []
                item["segmentation"].append(lengths)
        if reason is not None:
            dropped.append((item["name"], reason))
            continue
        item["box"].append(box)
        item["box_label"].append(classes[label])
    return dropped, off


def _box(annotation: Mapping[str, Any], size: tuple[int, int] | None, where: str) -> tuple[list[float], str | None]:
    """The box, cut at the image, and why it is odd."""
    x, y, width, height = _numbers(annotation, "bbox", (4,), where).tolist()
    end = [np.inf, np.inf] if size is None else size
    box = [max(x, 0.0), max(y, 0.0), min(x + width, end[0]), min(y + height, end[1])]
    if annotation.get("iscrowd", 0):
        return box, "crowds"
    if not (width > 0 and height > 0):
        return box, "without width or height"
    return box, None if box[0] < box[2] and box[1] < box[3] else "outside the image"


def _distance(tight: list[int], box: list[float], where: str) -> float:
    """How far the sides of the tight box of a mask are off those of its box, at most."""
    if not all(max(tight[axis], box[axis]) < min(tight[axis + 2], box[axis + 2]) for axis in (0, 1)):
        raise ValueError(
            f"{where} has a segmentation in {tight}, which does not meet its bbox {box} (low corner, then high corner)"
        )
    return max(abs(a - b) for a, b in zip(tight, box, strict=True))


def _first(names: Iterable[str]) -> str:
    """The first of the names, each once, and how many there are more."""
    films = list(dict.fromkeys(names))
    return ", ".join(map(repr, films[:_NAMED])) + (f" and {len(films) - _NAMED} more" * (len(films) > _NAMED))
