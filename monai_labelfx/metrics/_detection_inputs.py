# SPDX-License-Identifier: Apache-2.0
"""Objects of one image as checked arrays: what detection metrics accept, and the sentences when they do not."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from monai_labelfx.metrics._mask_crops import MaskCrops, crop_masks, place_crops


class Objects(NamedTuple):
    """Detected or true objects of one image, without padding rows; N may be 0."""

    boxes: np.ndarray  # (N, 2 * D) float64, (0, 0) where there is none
    labels: np.ndarray  # (N,) int64, 0 or above
    scores: np.ndarray  # (N,) float64, ones for true objects
    crowd: np.ndarray  # (N,) bool
    ignore: np.ndarray  # (N,) bool
    areas: np.ndarray | None  # (N,) float64, as the target states them
    masks: MaskCrops | None  # None where no masks were asked for

    @property
    def dims(self) -> int:
        """Spatial axes, 0 where nothing tells."""
        return self.masks.low.shape[1] if self.masks and len(self.labels) else self.boxes.shape[1] // 2


def plain(value: Any) -> np.ndarray:
    """Any tensor, array or list as a NumPy array; half precisions become float32."""
    if isinstance(value, torch.Tensor):
        value = value.detach().as_subclass(torch.Tensor)
        if value.dtype in (torch.bfloat16, torch.float16):
            value = value.float()
        return value.cpu().numpy()
    return np.asarray(value)


def read_objects(item: Any, name: str, *, scored: bool, boxes: bool = True, masks: bool = False) -> Objects:
    """Check one dictionary of objects.

    Args:
        item: dictionary of ``boxes`` (N, 2 \\* D), ``labels`` (N,), with ``scored`` also ``scores`` (N,), else maybe
            ``iscrowd``, ``ignore`` and ``area`` (N,); ``masks`` (N, \\*spatial), or a list of N crops.
        name: what the item is called in errors.
        scored: whether these are predictions.
        boxes: whether boxes are needed; without them ``masks`` are.
        masks: whether masks are needed.

    Raises:
        TypeError: when the item is no dictionary, or labels or masks are not integers.
        ValueError: when a key is missing or an array has a wrong shape or value.
    """
    if not isinstance(item, Mapping):
        raise TypeError(f"{name} must be a dictionary with 'boxes' and 'labels', got {type(item).__name__}.")
    labels = plain(_entry(item, "labels", name))
    if labels.ndim != 1 and labels.size:
        raise ValueError(f"'labels' of {name} must have shape (N,), got {labels.shape}.")
    labels = labels.reshape(-1)
    count = len(labels)
    if count and labels.dtype.kind not in "iu":
        raise TypeError(f"'labels' of {name} must be integers, got {labels.dtype}.")
    labels = labels.astype(np.int64)
    if count and labels.min() < -1:
        raise ValueError(f"'labels' of {name} must be 0 or above, or -1 for padding rows, got {labels.min()}.")
    keep = None if not count or labels.min() >= 0 else labels >= 0
    corners = np.zeros((count, 0))
    if boxes or "boxes" in item:
        corners = _boxes(_entry(item, "boxes", name), count, keep, name)
    scores = np.ones(count)
    if scored:
        scores = _column(item, "scores", count, name).astype(np.float64)
        if not np.isfinite(scores).all():
            raise ValueError(f"'scores' of {name} must be finite, got {scores[~np.isfinite(scores)][0]}.")
    crowd, ignore = (
        np.zeros(count, bool) if scored or item.get(key) is None else _column(item, key, count, name).astype(bool)
        for key in ("iscrowd", "ignore")
    )
    areas = None
    if not scored and item.get("area") is not None:
        areas = _column(item, "area", count, name).astype(np.float64)
        if not (areas >= 0).all():
            raise ValueError(f"'area' of {name} must be 0 or above, got {areas[~(areas >= 0)][0]}.")
    crops = _masks(item, count, corners, name) if masks else None
    found = Objects(corners, labels, scores, crowd, ignore, areas, crops)
    return found if keep is None else take(found, np.flatnonzero(keep))


def take(objects: Objects, rows: np.ndarray) -> Objects:
    """The objects of ``rows``, in their order."""
    boxes, labels, scores, crowd, ignore = (values[rows] for values in objects[:5])
    areas = None if objects.areas is None else objects.areas[rows]
    return Objects(boxes, labels, scores, crowd, ignore, areas, objects.masks and objects.masks.take(rows))


def voxel_volume(target: Mapping[Any, Any], dims: int, name: str) -> float | None:
    """Product of the target's ``spacing`` (D,), ``None`` when it states none."""
    if target.get("spacing") is None:
        return None
    spacing = plain(target["spacing"]).astype(np.float64)
    if spacing.ndim != 1 or (dims and len(spacing) != dims) or not (np.isfinite(spacing) & (spacing > 0)).all():
        axes = f"{dims} positive numbers" if dims else "one positive number per axis"
        raise ValueError(f"'spacing' of {name} must be {axes}, got {spacing.tolist()}.")
    return float(spacing.prod())


def identity(target: Mapping[Any, Any]) -> int:
    """A number below 2 ** 52 (exact in float64) that stands for the target's ``image_id``; -1 without one."""
    value = target.get("image_id")
    if value is None:
        return -1
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        value = plain(value).reshape(-1).tolist()
        value = value[0] if len(value) == 1 else value
    return int.from_bytes(hashlib.blake2b(repr(value).encode(), digest_size=8).digest(), "big") >> 12


def _entry(item: Mapping[Any, Any], key: str, name: str) -> Any:
    if item.get(key) is None:
        raise ValueError(f"{name} has no {key!r}; its keys are {sorted(map(str, item))}.")
    return item[key]


def _column(item: Mapping[Any, Any], key: str, count: int, name: str) -> np.ndarray:
    values = plain(_entry(item, key, name))
    if values.shape != (count,) and not (count == 0 and values.size == 0):
        raise ValueError(f"{key!r} of {name} must have shape {(count,)} as its labels, got {values.shape}.")
    return values.reshape(count)


def _boxes(value: Any, count: int, keep: np.ndarray | None, name: str) -> np.ndarray:
    boxes = plain(value)
    if count == 0 and boxes.size == 0:
        columns = boxes.shape[1] if boxes.ndim == 2 and boxes.shape[1] % 2 == 0 else 0
        return np.zeros((0, columns))
    if boxes.ndim != 2 or len(boxes) != count or boxes.shape[1] % 2 or not boxes.shape[1]:
        raise ValueError(
            f"'boxes' of {name} must have shape ({count}, 2 * spatial_dims) as its labels, got {boxes.shape}."
        )
    boxes = boxes.astype(np.float64)
    dims = boxes.shape[1] // 2
    wrong = ~(np.isfinite(boxes).all(1) & (boxes[:, :dims] <= boxes[:, dims:]).all(1))
    wrong &= True if keep is None else keep
    if wrong.any():
        row = boxes[wrong][0].tolist()
        raise ValueError(f"'boxes' of {name} must be finite, low corner before high corner, got {row}.")
    return boxes


def _masks(item: Mapping[Any, Any], count: int, boxes: np.ndarray, name: str) -> MaskCrops | None:
    if not count:
        return None
    masks = _entry(item, "masks", name)
    cropped = isinstance(masks, list | tuple)
    arrays = [plain(mask) for mask in masks] if cropped else plain(masks)
    if len(arrays) != count:
        raise ValueError(f"'masks' of {name} must be {count} as its labels, got {len(arrays)}.")
    kinds = {array.dtype.kind for array in arrays} if cropped else {arrays.dtype.kind}  # type: ignore[union-attr]
    if not kinds <= set("biu"):
        raise TypeError(f"'masks' of {name} must be boolean or integer, got floats: compare them with a threshold.")
    if not cropped:
        dims = arrays.ndim - 1  # type: ignore[union-attr]
        if dims < 1 or (boxes.size and 2 * dims != boxes.shape[1]):
            raise ValueError(f"'masks' of {name} must have shape ({count}, *spatial), got {np.shape(arrays)}.")
        return crop_masks(arrays)  # type: ignore[arg-type]
    if not boxes.size or {2 * array.ndim for array in arrays} != {boxes.shape[1]}:
        raise ValueError(f"cropped 'masks' of {name} need boxes, and as many axes as these have.")
    return place_crops(list(arrays), np.floor(boxes[:, : boxes.shape[1] // 2]).astype(np.int64))
