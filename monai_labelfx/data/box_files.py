# SPDX-License-Identifier: Apache-2.0
"""Boxes of many images from one JSON file: COCO, or our own in voxels or mm."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_labelfx.data._reading import ImageFileError

__all__ = ["load_boxes"]

_VERSION = 1
_OUTSIDE = 0.5  # voxels: what reaches out of the image by less is rounding, and is cut
_OBLIQUE = 0.1  # voxels: a box in mm may lean by this much against the voxels
_SNAP = 1e-3  # voxels: closer to a whole number than this is one
_RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])


def load_boxes(path: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """Read the boxes of many images from one JSON file of two kinds, told apart by their keys.

    **COCO** (2-D; keys "images", "annotations", "categories"): ``bbox`` is [x, y, width, height] in pixels and becomes
    [x, y, x + width, y + height]. Nothing is swapped, because axis 0 of a picture is x here as in MONAI. Labels are the
    category ids as they stand in the file.

    **Our own** (2-D and 3-D): the entry ``labelfx`` as in the files of :py:func:`save_detections`, for many images::

        {"labelfx": {
          "version": 1,
          "spatial_dims": 3,
          "names": {"0": "prostate"},            label -> name; optional, given it each label must have one
          "images": [
            {"file_name": "case00.nii.gz",
             "shape": [256, 256, 40],            spatial shape, x first; optional, given it boxes must lie inside
             "affine_ras": [[...4], ...4],       voxel to mm, RAS, as in ``MetaTensor.affine``; for boxes in mm only
             "boxes": [
               {"label": 0, "box": [x0, y0, z0, x1, y1, z1]},          voxels, half open
               {"label": 0, "box_ras": [x0, y0, z0, x1, y1, z1]},      mm, RAS, along the axes of the patient
               {"label": 0, "corners_lps": [[x, y, z], ...8]}          mm, LPS, along the axes of the image
        ]}]}}

    Of the three forms of a box the first in this order counts. Voxel k reaches from k - 0.5 to k + 0.5 in the index
    that the affine maps to mm, so a point in mm becomes the corner ``inverse(affine)(point) + 0.5``; what comes within
    a thousandth of a whole number is rounded to it.

    A tight box is worth something only while it is tight. Around a box that lies obliquely to the voxels there is no
    tight box of voxels, and the enclosing one, looser with each degree, would teach wrong things silently. So a
    ``box_ras`` under an oblique affine is refused where the enclosing box is looser by more than a tenth of a voxel.
    ``corners_lps`` (the field that :py:func:`save_detections` writes, the corners in any order) has the exact box for
    any affine, oblique and sheared ones too.

    Args:
        path: the JSON file.

    Returns:
        File name of each image, as it stands in the file -> ``boxes`` (N, 2 * spatial_dims) float64 in voxels, low
        corner, then high corner, half open (MONAI's standard mode); ``labels`` (N,) int64; ``names``: label -> name. An
        image without an object has N = 0, which says more than an image that is not in the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no JSON, none of the two kinds, a field that is missing or of the wrong type; a box that is
            inverted, empty, not finite, oblique, or outside the image (by more than half a voxel; less is cut off); an
            unknown category, a crowd (``iscrowd``: several objects, so no tight box), or an image twice: one sentence
            with the file and the entry.

    Example:
        >>> import tempfile
        >>> document = {
        ...     "images": [{"id": 7, "file_name": "a.png", "width": 64, "height": 48}],
        ...     "categories": [{"id": 1, "name": "lung"}],
        ...     "annotations": [{"image_id": 7, "category_id": 1, "bbox": [10, 20, 5, 4]}],
        ... }
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "boxes.json").write_text(json.dumps(document))
        ...     found = load_boxes(f"{folder}/boxes.json")["a.png"]
        >>> found["boxes"].tolist(), found["labels"].tolist(), found["names"]
        ([[10.0, 20.0, 15.0, 24.0]], [1], {1: 'lung'})
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"box file {str(file)!r} does not exist")
    try:
        document = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ImageFileError(f"box file {str(file)!r} is not a JSON file ({error})") from error
    try:
        if isinstance(document, dict) and "labelfx" in document:
            return _own(_get(document, "labelfx", dict, "the file"))
        if isinstance(document, dict) and {"images", "annotations"} <= document.keys():
            return _coco(document)
        raise ValueError(
            "has neither 'images' and 'annotations' (COCO) nor 'labelfx' (the boxes of this package): see load_boxes"
        )
    except ValueError as error:
        raise ImageFileError(f"box file {str(file)!r}: {error}") from error


def _coco(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    names: dict[int, str] = {}
    for where, category in _entries(document, "categories"):
        label = _get(category, "id", int, where)
        if label in names:
            raise ValueError(f"{where} has the id {label} of another category")
        names[label] = _get(category, "name", str, where)
    images: dict[str, tuple[list[Any], list[int]]] = {}
    known: dict[Hashable, tuple[str, list[float] | None]] = {}
    for where, image in _entries(document, "images"):
        name, number = _new_name(image, images, where), _get(image, "id", (int, str), where)
        if number in known:
            raise ValueError(f"{where} has the id {number!r} of another image")
        sized = "width" in image or "height" in image
        shape = [_get(image, key, int, where) for key in ("width", "height")] if sized else None
        known[number], images[name] = (name, shape), ([], [])
    for where, annotation in _entries(document, "annotations"):
        number, label = _get(annotation, "image_id", (int, str), where), _get(annotation, "category_id", int, where)
        if number not in known:
            raise ValueError(f"{where} has the image_id {number!r}, which no image has")
        if label not in names:
            raise ValueError(f"{where} has the category_id {label}, which no category has")
        name, shape = known[number]
        if annotation.get("iscrowd", 0):
            raise ValueError(f"{where} of {name!r} is a crowd (iscrowd), around which no box is tight: leave it out")
        x, y, width, height = _numbers(annotation, "bbox", (4,), where).tolist()
        if not (width > 0 and height > 0):
            raise ValueError(f"{where} of {name!r} has the bbox {[x, y, width, height]}, expected width and height > 0")
        box = np.array([x, y, x + width, y + height])
        images[name][0].append(_inside(box, shape, f"{where} of {name!r}"))
        images[name][1].append(label)
    return {name: _table(rows, labels, 2, names) for name, (rows, labels) in images.items()}


def _own(block: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    if block.get("version") != _VERSION:
        raise ValueError(f"it has version {block.get('version')!r}, this package reads {_VERSION}")
    if "detections" in block and "images" not in block:
        raise ValueError("it holds the detections of one image, without its name: read it with load_detections")
    dims = _get(block, "spatial_dims", int, "'labelfx'")
    if dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, found {dims}")
    names = _names(block)
    result: dict[str, dict[str, Any]] = {}
    for place, image in _entries(block, "images"):
        name = _new_name(image, result, place)
        shape = _numbers(image, "shape", (dims,), place).tolist() if "shape" in image else None
        rows, labels = [], []
        for number, entry in _entries(image, "boxes"):
            where = f"{number} of {name!r}"
            labels.append(_get(entry, "label", int, where))
            if names and labels[-1] not in names:
                raise ValueError(f"{where} has the label {labels[-1]}, which has no name; names {sorted(names)}")
            rows.append(_inside(_voxel_box(entry, image, dims, where), shape, where))
        result[name] = _table(rows, labels, dims, names)
    return result


def _names(block: Mapping[str, Any]) -> dict[int, str]:
    """The names of the labels, which JSON writes as texts."""
    names = {}
    for key, name in (_get(block, "names", dict, "'labelfx'") if "names" in block else {}).items():
        if not key.lstrip("-").isdecimal() or not isinstance(name, str):
            raise ValueError(f"names must map labels (whole numbers) to texts, found {key!r}: {name!r}")
        names[int(key)] = name
    return names


def _voxel_box(entry: Mapping[str, Any], image: Mapping[str, Any], dims: int, where: str) -> np.ndarray:
    """The box of an entry in voxels, from the first of its three forms."""
    if "box" in entry:
        return _numbers(entry, "box", (2 * dims,), where)
    if "box_ras" in entry:
        ends = _numbers(entry, "box_ras", (2 * dims,), where).reshape(2, dims)
        if (ends[1] <= ends[0]).any():
            raise ValueError(f"{where} is empty or inverted: box_ras {ends.ravel().tolist()}")
        points = np.stack(np.meshgrid(*ends.T, indexing="ij"), axis=-1).reshape(-1, dims)
    elif "corners_lps" in entry:
        points = _numbers(entry, "corners_lps", (8, 3), where) * _RAS_TO_LPS
    else:
        raise ValueError(f"{where} has none of 'box', 'box_ras' and 'corners_lps'")
    if "affine_ras" not in image:
        raise ValueError(f"{where} is in mm, but its image has no 'affine_ras'")
    affine = _numbers(image, "affine_ras", (4, 4), f"the image of {where}")
    if not (affine[3] == [0, 0, 0, 1]).all() or not abs(np.linalg.det(affine)) > 0:
        raise ValueError(f"{where} needs an invertible affine_ras, found {affine.tolist()}")
    count = points.shape[1]
    if count == 2 and max(np.abs(affine[:2, 2]).max(), np.abs(affine[2, :2]).max()) > 1e-6 * np.abs(affine[:3]).max():
        raise ValueError(f"{where}: box_ras has 2 axes, but the picture lies obliquely in space: give 'box' in voxels")
    index = (points - affine[:count, 3]) @ np.linalg.inv(affine[:count, :count]).T + 0.5
    low, high = index.min(axis=0), index.max(axis=0)
    lean = float(np.minimum(index - low, high - index).max())
    if not lean <= _OBLIQUE:
        raise ValueError(
            f"{where} lies obliquely to the voxels (by {lean:.2g} of them), so that no box of voxels is tight: "
            "give 'box' in voxels, or 'corners_lps' of a box along the axes of the image"
        )
    box = np.concatenate([low[:dims], high[:dims]])
    return np.where(np.abs(box - np.rint(box)) < _SNAP, np.rint(box), box)


def _inside(box: np.ndarray, shape: Sequence[float] | None, where: str) -> np.ndarray:
    """The box, cut to the image; ValueError when it is empty or reaches out too far."""
    low, high = np.split(box, 2)
    if not (low < high).all():
        raise ValueError(f"{where} is empty or inverted: {box.tolist()} (low corner, then high corner)")
    end = np.full(len(low), np.inf) if shape is None else np.asarray(shape, dtype=np.float64)
    cut_low, cut_high = np.maximum(low, 0.0), np.minimum(high, end)
    if not ((low >= -_OUTSIDE) & (high <= end + _OUTSIDE) & (cut_low < cut_high)).all():
        size = "of unknown shape" if shape is None else f"of shape {tuple(shape)}"
        raise ValueError(f"{where} is outside the image {size}: {box.tolist()} in voxels (low, then high corner)")
    return np.concatenate([cut_low, cut_high])


def _table(rows: list[np.ndarray], labels: list[int], dims: int, names: Mapping[int, str]) -> dict[str, Any]:
    boxes = np.array(rows, dtype=np.float64).reshape(len(rows), 2 * dims)
    return {"boxes": boxes, "labels": np.array(labels, dtype=np.int64), "names": dict(names)}


def _entries(parent: Mapping[str, Any], key: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """(place, entry) of a list of objects."""
    for number, entry in enumerate(_get(parent, key, list, "the file" if key != "boxes" else "an image")):
        if not isinstance(entry, dict):
            raise ValueError(f"{key}[{number}] must be an object, found {_short(entry)}")
        yield f"{key}[{number}]", entry


def _get(parent: Mapping[str, Any], key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A field of the right type."""
    value = parent.get(key)
    large = type(value) is int and abs(value) >= 2**63
    if not isinstance(value, kind) or isinstance(value, bool) or large:
        wanted = {dict: "an object", list: "a list", str: "a text", int: "a whole number of 64 bits"}
        kinds = " or ".join(wanted[one] for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{where} must have {kinds} under {key!r}, found {_short(value)}")
    return value


def _numbers(parent: Mapping[str, Any], key: str, shape: tuple[int, ...], where: str) -> np.ndarray:
    """A field of finite numbers as float64."""
    try:
        value = np.array(parent.get(key), dtype=object)
        numbers = value.shape == shape and all(type(one) in (int, float) for one in value.ravel())
        array = value.astype(np.float64) if numbers else np.empty(0)
    except (ValueError, OverflowError):
        array = np.empty(0)
    if array.shape != shape or not np.isfinite(array).all():
        size = " x ".join(map(str, shape))
        raise ValueError(f"{where} must have {size} finite numbers under {key!r}, found {_short(parent.get(key))}")
    return array


def _new_name(image: Mapping[str, Any], known: Mapping[str, Any], where: str) -> str:
    name = _get(image, "file_name", str, where)
    if not name or name in known:
        raise ValueError(f"{where} has the file_name {name!r}" + (", which another image has" if name else ""))
    return name


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
