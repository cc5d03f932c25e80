# SPDX-License-Identifier: Apache-2.0
"""Batches of images with boxes, as detectors take them: a list of images and a list of targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor, decollate_batch
from monai.engines import PrepareBatch

from monai_labelfx.detectors._targets import as_masks, image_names, masks_with_voxels
from monai_labelfx.ops.box_affine import clip_boxes
from monai_labelfx.transforms._voxel_grids import one_grid

_PADDING = -1  # label of rows that only fill a batch


def detection_items(batchdata: Any, image_key: str = "image") -> list[dict[str, Any]]:
    """The items of a batch, one dictionary for each image.

    Boxes of different images differ in number, so batches of a detector are lists of items: give the loader
    ``collate_fn=monai.data.utils.no_collation``. Lists within the list (a random crop that returns several samples of
    an image) are flattened. A batch that was collated nevertheless is taken apart: along the first axis of tensors and
    arrays, and of lists and tuples that are as long as the batch.

    Args:
        batchdata: list of items, or one collated mapping.
        image_key: key of the images, whose number is that of the batch.

    Raises:
        TypeError: where there is something else than mappings.
        KeyError: where a mapping has no image.

    Example:
        >>> batch = {"image": torch.zeros(2, 1, 8, 8), "box": [torch.zeros(3, 4), torch.zeros(0, 4)], "split": "test"}
        >>> [(tuple(item["image"].shape), len(item["box"]), item["split"]) for item in detection_items(batch)]
        [((1, 8, 8), 3, 'test'), ((1, 8, 8), 0, 'test')]
    """
    if isinstance(batchdata, (list, tuple)):
        return [item for entry in batchdata for item in _one_or_more(entry, image_key)]
    if not isinstance(batchdata, Mapping):
        raise TypeError(f"a batch must be a list of items or a collated mapping, got {type(batchdata).__name__}.")
    _image_of(batchdata, image_key)
    return [_part(batchdata, number, len(batchdata[image_key])) for number in range(len(batchdata[image_key]))]


class DetectionPrepareBatch(PrepareBatch):
    """Make the pair (images, targets) of a batch, for ``prepare_batch`` of DetectionTrainer and DetectionEvaluator.

    ============  ================  ====================================================================================
    images        ``<image_key>``   list of (C, \\*spatial), of any sizes
    ``boxes``     ``<box_key>``     (N, 2 \\* D) float32 in voxels, low corner, then high corner, half open
    ``labels``    ``<label_key>``   (N,) int64; rows with the label -1 fill a batch and are dropped
    ``masks``     ``<mask_key>``    (N, \\*spatial) bool, if a key is given and the item has it
    ``spacing``                     (D,) size of a voxel, of images with meta data, for areas in physical units
    ============  ================  ====================================================================================

    The target of an image is a mapping of all but the first, plain tensors on the engine's device; it is ``None`` for
    an image that nobody annotated: an item without ``<box_key>``, or with ``None`` there. (An image without objects has
    no boxes, ``[]``, and no masks, ``[]`` or (0, \\*spatial).) The trainer refuses such images, the evaluator only
    detects in them. Nothing of the batch is edited.

    Masks are of any number type: bool, whole numbers (what is not 0 belongs to the object) or floats (at least 0.5).
    They may overlap. A mask without any voxel is dropped with its box and label, with one warning for the image.

    Args:
        image_key: key of the image.
        box_key: key of the boxes.
        label_key: key of the classes of the boxes.
        mask_key: key of the masks (N, \\*spatial), one for each box, on the grid of the image, as
            :py:class:`monai_labelfx.transforms.InstancesToMasksd` makes them; default ``None``, none are wanted.

    Raises:
        KeyError: for an item without an image, or with boxes but without labels.
        ValueError: where numbers or shapes of boxes, labels, masks and image do not fit together; for masks with the
            shape of the image and another affine, and for a mask that does not touch its box.

    Notes:
        Images keep their meta data, so that a warning about boxes can name the image; a detector takes them off.

    Example:
        >>> items = [{"image": torch.zeros(1, 8, 8), "box": [[2, 1, 6, 5]], "box_label": [0]},
        ...          {"image": torch.zeros(1, 9, 7), "box": [], "box_label": []}]
        >>> images, targets = DetectionPrepareBatch()(items)
        >>> targets[0]["boxes"].tolist(), tuple(targets[1]["boxes"].shape)
        ([[2.0, 1.0, 6.0, 5.0]], (0, 4))
    """

    def __init__(
        self,
        image_key: str = "image",
        *,
        box_key: str = "box",
        label_key: str = "box_label",
        mask_key: str | None = None,
    ) -> None:
        self.image_key = image_key
        self.box_key = box_key
        self.label_key = label_key
        self.mask_key = mask_key

    def __call__(
        self,
        batchdata: Any,
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor] | None]]:
        """Return the images and their targets; ``kwargs`` go to ``Tensor.to`` of the images."""
        items = detection_items(batchdata, self.image_key)
        to: dict[str, Any] = {"device": device, "non_blocking": non_blocking}
        images = [torch.as_tensor(item[self.image_key]).to(**to, **kwargs) for item in items]
        targets = [
            self._target(item, tuple(image.shape[1:]), name, to)
            for item, image, name in zip(items, images, image_names(images), strict=True)
        ]
        return images, targets

    def _target(
        self, item: Mapping[str, Any], size: tuple[int, ...], name: str, to: dict[str, Any]
    ) -> dict[str, torch.Tensor] | None:
        if item.get(self.box_key) is None:
            return None
        if item.get(self.label_key) is None:
            raise KeyError(f"{name} has {self.box_key!r} but no {self.label_key!r}.")
        boxes, labels = _plain(item[self.box_key]), _plain(item[self.label_key]).reshape(-1)
        if not boxes.numel():
            boxes = boxes.new_zeros(0, 2 * len(size))
        if boxes.ndim != 2 or boxes.shape[1] != 2 * len(size) or len(labels) != len(boxes):
            raise ValueError(
                f"{name} must have {self.box_key!r} ({'N'}, {2 * len(size)}) and as many {self.label_key!r}, "
                f"got {tuple(boxes.shape)} and {tuple(labels.shape)}."
            )
        if labels.numel() and (labels.dtype.is_floating_point or labels.dtype == torch.bool):
            raise ValueError(f"{name} must have whole numbers as {self.label_key!r}, got {labels.dtype}.")
        real = labels != _PADDING
        boxes, labels = boxes[real].to(**to, dtype=torch.float32), labels[real].to(**to, dtype=torch.int64)
        target = {"boxes": boxes, "labels": labels}
        if isinstance(item[self.image_key], MetaTensor):
            target["spacing"] = _plain(item[self.image_key].pixdim)[: len(size)].to(torch.float32)
        if self.mask_key is not None and item.get(self.mask_key) is not None:
            given = item[self.mask_key]
            masks = as_masks(given, (len(real), *size), name, repr(self.mask_key))
            if isinstance(given, MetaTensor) and len(masks) and not one_grid(given, item[self.image_key]):
                raise ValueError(
                    f"{self.mask_key!r} of {name} must lie on the grid of the image, got another affine: move both "
                    "with the same transforms."
                )
            masks = masks[real].to(**to)
            kept = masks_with_voxels(masks, clip_boxes(boxes, size), name)
            target |= {"boxes": boxes[kept], "labels": labels[kept], "masks": masks[kept]}
        return target


def _plain(value: Any) -> torch.Tensor:
    value = np.asarray(value) if isinstance(value, (list, tuple)) else value  # lists of numbers, tensors or arrays
    return torch.as_tensor(value).detach().as_subclass(torch.Tensor)


def _one_or_more(entry: Any, image_key: str) -> list[dict[str, Any]]:
    if isinstance(entry, (list, tuple)):
        return [item for one in entry for item in _one_or_more(one, image_key)]
    if not isinstance(entry, Mapping):
        raise TypeError(f"the items of a batch must be mappings, got {type(entry).__name__}.")
    _image_of(entry, image_key)
    return [dict(entry)]


def _image_of(item: Mapping[str, Any], image_key: str) -> Any:
    if image_key not in item:
        raise KeyError(f"the batch has no {image_key!r}; it has {sorted(map(str, item))}.")
    return item[image_key]


def _part(value: Any, number: int, batch: int) -> Any:
    """What belongs to one image of a collated batch."""
    if isinstance(value, Mapping):
        return {key: _part(entry, number, batch) for key, entry in value.items()}
    if isinstance(value, MetaTensor) and value.is_batch:
        return decollate_batch(value)[number]
    stacked = isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim > 0
    listed: Sequence[Any] | None = value if stacked or isinstance(value, (list, tuple)) else None
    return value[number] if listed is not None and len(listed) == batch else value
