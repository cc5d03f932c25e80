# SPDX-License-Identifier: Apache-2.0
"""What a detector found, back in the voxels of the images as they were read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from ignite.engine import Engine
from monai.data.utils import to_affine_nd

from monai_labelfx.data._original_blocks import block_on_original_grid
from monai_labelfx.data._original_grid import moved, to_current
from monai_labelfx.metrics._mask_crops import MaskCrops, place_crops
from monai_labelfx.metrics._object_masks import object_masks
from monai_labelfx.ops.box_affine import boxes_through_affine, clip_boxes


class Found(NamedTuple):
    """Detections of an image as it was read, in falling order of their scores."""

    boxes: torch.Tensor  # (N, 2D) float64, cut at the border of the image
    labels: torch.Tensor  # (N,)
    scores: torch.Tensor  # (N,)
    masks: MaskCrops | None
    affine: np.ndarray  # 4 x 4, voxel to mm


def collected(engine: Engine, handler: str) -> Iterator[dict[str, Any]]:
    """Batch and output of each image together.

    Raises:
        ValueError: for an output that is not decollated.
    """
    batch, output = engine.state.batch, engine.state.output
    if not isinstance(output, list):
        raise ValueError(f"{handler} needs decollated items: use decollate=True in the evaluator")
    for number, result in enumerate(output):
        both = isinstance(batch, list) and isinstance(batch[number], Mapping)
        yield {**(batch[number] if both else {}), **result}


def path_of(item: Mapping[str, Any], image_key: str, handler: str) -> str:
    """The absolute path of an item's image.

    Raises:
        ValueError: for an image without meta data.
    """
    name = getattr(item[image_key], "meta", {}).get("filename_or_obj")
    if not name:
        raise ValueError(f"{handler} needs {image_key!r} with meta data that name its file, found none")
    return os.path.abspath(str(name))


def found_as_read(image: Any, pred: Mapping[str, Any], *, name: str, min_score: float, masks: bool) -> Found:
    """The detections of an image in the voxels of its file; those below ``min_score`` or in padding only are left out.

    Raises:
        ValueError: for boxes of another number of axes than the image, or masks that do not fit them; for masks where
            the meta data do not tell the size of the image as it was read.
    """
    boxes, labels, scores = (torch.as_tensor(pred[key]).detach().cpu() for key in ("boxes", "labels", "scores"))
    axes = image.ndim - 1
    if boxes.numel() and boxes.shape[-1] != 2 * axes:
        raise ValueError(f"the boxes of {name!r} must have the shape (N, {2 * axes}), got {tuple(boxes.shape)}")
    boxes = boxes.reshape(-1, 2 * axes).as_subclass(torch.Tensor)
    if not len(boxes) == labels.numel() == scores.numel():
        raise ValueError(
            f"the {len(boxes)} boxes of {name!r} need as many labels and scores, got {labels.numel()} and "
            f"{scores.numel()}"
        )
    labels, scores = labels.reshape(-1), scores.reshape(-1)
    affine = _original_affine(image)
    current = to_current({**image.meta, "original_affine": affine})
    shape = _original_shape(image)
    keep = [*range(axes), 3]
    back = np.linalg.inv(current)[np.ix_(keep, keep)]
    back[-1] = np.eye(axes + 1)[-1]  # an inverse is not exact
    original = boxes_through_affine(boxes.double(), back)
    original = original if shape is None else clip_boxes(original, shape)
    low, high = original.chunk(2, dim=1)
    kept = ~(high <= low).any(dim=1) & ~(scores < min_score)  # NaN is kept, and then refused
    rows = kept.nonzero()[:, 0]
    rows = rows[scores[rows].argsort(descending=True, stable=True)]
    objects = None
    if masks:
        if shape is None and not moved(current, np.eye(4), image.shape[1:]):
            shape = tuple(image.shape[1:])
        if shape is None:
            raise ValueError(
                f"the meta data of {name!r} have no 'spatial_shape', the size of the image as it was read, and so its "
                "masks cannot be brought back to it"
            )
        objects = object_masks(pred["masks"], boxes, image.shape[1:], repr(name)).take(rows.numpy())
        objects = _masks_as_read(objects, current, shape)
    return Found(original[rows], labels[rows], scores[rows], objects, affine)


def _masks_as_read(masks: MaskCrops, current: np.ndarray, shape: tuple[int, ...]) -> MaskCrops:
    if masks.shape == shape and not moved(current, np.eye(4), shape):
        return masks
    placed = [
        block_on_original_grid(crop, low, masks.shape, current, shape)
        for low, crop in zip(masks.low, masks.crops, strict=True)
    ]
    first = np.array([low for low, _ in placed], np.int64).reshape(-1, len(shape))
    return place_crops([block for _, block in placed], first, shape)


def _original_shape(image: Any) -> tuple[int, ...] | None:
    shape = image.meta.get("spatial_shape")
    return None if shape is None else tuple(int(n) for n in np.asarray(shape).ravel()[: image.ndim - 1])


def _original_affine(image: Any) -> np.ndarray:
    """4 x 4, voxel of the image as it was read to mm."""
    affine = image.meta.get("original_affine")
    if affine is None:  # of pictures MONAI keeps none: theirs was the identity
        affine = np.eye(4) if image.applied_operations else image.affine
    return to_affine_nd(3, np.asarray(affine, dtype=np.float64))
