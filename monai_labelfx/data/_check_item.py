# SPDX-License-Identifier: Apache-2.0
"""What can be wrong with one item of a datalist, found by opening its files."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing, is_no_channel, to_affine_nd

from monai_labelfx.data._check_boxes import box_faults, box_warnings, class_faults
from monai_labelfx.data._check_instances import instance_boxes, instance_faults, instance_misfits, is_full
from monai_labelfx.data.auto_reader import AutoReader
from monai_labelfx.transforms import PlaceOnGridd

_TOLERANCE = 1e-2  # of a voxel: below this two grids are the same


@dataclass
class Findings:
    """The row of an item: what was measured, what is wrong, what is odd."""

    shape: list[int] | None = None
    spacing: list[float] | None = None
    dtype: str | None = None
    labels: int | None = None
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass
class _Image:
    array: np.ndarray  # (*spatial) or (channels, *spatial)
    affine: np.ndarray
    shape: tuple[int, ...]  # spatial
    channels: int


def check_item(
    item: Mapping[str, Any], *, spatial_dims: int | None, allowed_labels: Collection[int] | None
) -> Findings:
    """Open the files of ``item`` (absolute paths) and list what is wrong with them."""
    found = Findings()
    image = _open(item, "image", found)
    if image is not None:
        found.shape, found.dtype = list(image.shape), image.array.dtype.name
        found.spacing = [float(size) for size in affine_to_spacing(image.affine, r=len(image.shape))]
        if spatial_dims is not None and len(image.shape) != spatial_dims:
            found.faults.append(f"image has {len(image.shape)} spatial axes {image.shape}, expected {spatial_dims}")
    label = None
    for key in ("label", "clean"):
        if key in item:
            before = len(found.faults)
            other = _open(item, key, found)
            if other is not None and image is not None and key == "label":
                other = _placed(other, image)
            if other is not None and image is not None:
                _compare(key, other, image, found)
            if other is not None and key == "label":
                _check_label(other, allowed_labels, found, instances="box_label" in item)
                label = other if len(found.faults) == before else None
    _check_boxes(item, image, label, found)
    return found


def _open(item: Mapping[str, Any], key: str, found: Findings) -> _Image | None:
    """Read one image and check what must hold for any; None when it cannot be used."""
    reader = AutoReader()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # format libraries warn about files that the checks below judge
            array, meta = reader.get_data(reader.read(item[key]))
            array = np.asarray(array)
    except (OSError, ValueError) as error:
        found.faults.append(f"{key}: {error}")
        return None
    if array.dtype.kind not in "buif" or array.dtype.itemsize > 8:
        found.faults.append(f"{key} has values of type {array.dtype}, expected integers or floating numbers")
        return None
    if array.size == 0:
        found.faults.append(f"{key} has no voxels: shape {array.shape}")
        return None
    channel = meta.get("original_channel_dim", math.nan)
    no_channel = is_no_channel(channel)
    array = array if no_channel else np.moveaxis(array, int(channel), 0)
    channels, shape = (1, array.shape) if no_channel else (array.shape[0], array.shape[1:])
    affine = to_affine_nd(3, np.asarray(meta.get("affine", np.eye(4)), dtype=np.float64))
    if not np.isfinite(affine).all() or not abs(np.linalg.det(affine / np.abs(affine).max())) > 0:
        found.faults.append(f"{key} has an unusable affine {affine.tolist()}")
        affine = np.eye(4)
    if array.dtype.kind == "f":
        bad = int(array.size - np.count_nonzero(np.isfinite(array)))
        if bad:
            found.faults.append(f"{key} holds {bad} values that are NaN or infinite")
    return _Image(array, affine, shape, channels)


def _placed(label: _Image, image: _Image) -> _Image:
    """The label as ``PlaceOnGridd`` of the bundles brings it onto the image's grid; a SEG may hold some slices only.

    One that does not fit stays as it is, and the comparison with the image then says so.
    """
    if label.channels != 1:
        return label
    values = label.array.astype(np.float64 if label.array.dtype.kind == "f" else np.int64)
    item: dict[Hashable, Any] = {
        "image": MetaTensor(torch.empty(1, *image.shape), affine=torch.as_tensor(image.affine)),
        "label": MetaTensor(torch.as_tensor(values.reshape(1, *label.shape)), affine=torch.as_tensor(label.affine)),
    }
    try:
        placed = PlaceOnGridd("label", "image")(item)["label"]
    except ValueError:
        return label
    if placed is item["label"]:
        return label
    return _Image(placed[0].numpy(), image.affine, tuple(placed.shape[1:]), 1)


def _compare(key: str, other: _Image, image: _Image, found: Findings) -> None:
    if other.shape != image.shape:
        found.faults.append(f"{key} has shape {other.shape}, but the image has {image.shape}")
        return
    # in voxels, because in mm a whole microscopy image may be smaller than any fixed tolerance
    offset = np.linalg.inv(image.affine) @ other.affine - np.eye(4)
    reach = np.array([*(max(size - 1, 1) for size in (*image.shape, 1, 1, 1)[:3]), 1.0])
    if not float(np.abs(offset @ np.diag(reach)).max()) <= _TOLERANCE:  # also when it is NaN
        own, expected = other.affine.tolist(), image.affine.tolist()
        found.faults.append(f"{key} lies elsewhere than the image: affine {own}, but the image has {expected}")


def _check_label(label: _Image, allowed: Collection[int] | None, found: Findings, *, instances: bool) -> None:
    if label.channels != 1 and not instances:
        found.faults.append(f"label has {label.channels} channels, expected one")
        return
    values = np.unique(label.array)
    values = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    broken = values[values != np.rint(values)] if values.dtype.kind == "f" else values[:0]
    if broken.size:
        found.faults.append(f"label holds values that are no integers, such as {broken[0]}")
        return
    found.labels = int(np.count_nonzero(values))
    if values.size and values[0] < 0:
        found.faults.append(f"label holds negative values, the lowest is {int(values[0])}")
    if allowed is not None:
        unknown = sorted(set(values.astype(np.int64).tolist()) - {0, *allowed})
        if unknown:
            found.faults.append(f"label holds the unknown values {unknown[:10]}, expected 0 and {sorted(set(allowed))}")
    if found.labels == 0:
        found.warnings.append("label is empty: background only")


def _check_boxes(item: Mapping[str, Any], image: _Image | None, label: _Image | None, found: Findings) -> None:
    """Boxes and their classes, and what they say beside the label where all are usable."""
    classes, before = item.get("box_label"), len(found.faults)
    if "box" not in item and classes is not None and "label" not in item:
        found.faults.append("box_label needs boxes, under the key box, or a label in which each object has its number")
    if "box" not in item and (classes is None or "label" not in item):
        return
    if "box" in item and image is not None:
        found.faults += box_faults(item["box"], image.shape)
    if classes is not None:
        found.faults += class_faults(item.get("box", classes), classes)
    if image is None or label is None or len(found.faults) > before:
        return
    array = label.array.reshape(label.channels, *label.shape)
    (tight, values), number = instance_boxes(array), len(classes or ())
    if "box" not in item or label.channels > 1:  # the numbers of the label can only be objects
        found.labels = len(tight)
        found.faults += instance_faults(array, tight, number) or instance_misfits(tight, item.get("box", tight))
        return
    # they are classes or objects, whichever fits the boxes better; where each class has one box in their order it is
    # the same, but for the parts of an object, which are told of classes
    odd = box_warnings(item["box"], classes, array[0])
    if odd and classes is not None and len(tight) == number and values != [int(one) + 1 for one in classes]:
        odd = min(instance_misfits(tight, item["box"]), odd, key=len)
    found.warnings += odd
    if odd and is_full(array, tight, number):
        found.faults += instance_faults(array, tight, number)


def paths_of(item: Mapping[str, Any], keys: Collection[str]) -> list[tuple[str, str]]:
    """(key, real path) of each file that ``item`` names."""
    pairs = []
    for key in keys:
        value = item.get(key, [])
        for one in [value] if isinstance(value, (str, os.PathLike)) else value:
            pairs.append((key, os.path.realpath(Path(one))))
    return pairs
