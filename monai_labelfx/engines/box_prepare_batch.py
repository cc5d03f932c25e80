# SPDX-License-Identifier: Apache-2.0
"""Batches of images with boxes, and with masks where there are some, as MONAI's engines want them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.engines import PrepareBatch

_MODES = ("none", "labelled", "all")


class BoxTightnessPrepareBatch(PrepareBatch):
    """Make the pair (image, target) of a batch, for ``prepare_batch`` of a SupervisedTrainer or -Evaluator.

    The target is the mapping that :py:class:`~monai_labelfx.losses.BoxTightnessLoss` takes:

    ===============  ===============================  =================================================================
    ``bags``         ``<label_key>_bags``             frames (B, N, D + 1, D), what ``BoxesToBagsd`` writes
    ``boxes``        ``<label_key>_boxes``            boxes (B, N, 2 \\* D); only if the batch has no bags, since
                                                      boxes do not follow the transforms that bags follow
    ``labels``       ``<label_key>_box_labels``       class channels (B, N), -1 at padding
    ``has_boxes``    ``<has_boxes_key>``              (B,) bool, false for images that nobody looked at; if the batch
                                                      has none: all true with bags or boxes, else all false
    ``tight_sides``  ``<label_key>_tight_sides``      (B, N, 2 \\* D) bool; absent if the batch has none
    ``ignore``       ``<label_key>_box_ignore``       (B, 1, \\*spatial) bool; absent if the batch has none
    ``masks``        ``<mask_key>``, ``<label_key>``  (B, C, \\*spatial), see ``masks``
    ``has_masks``    ``<has_mask_key>``               (B,) bool, with ``masks``
    ``image``        ``<image_key>``                  the input of the network
    ``spacing``      ``<image_key>_spacing``          voxel size (B, D), or from the affines of the images, if they
                                                      have some; else absent
    ===============  ===============================  =================================================================

    All are plain tensors. Voxels go to the engine's device; boxes, bags, labels and flags stay where they are, because
    the loss reads and checks them on the CPU. Parts of a box may also be lists of B tensors of different lengths.

    Args:
        image_key: key of the image.
        label_key: stem of the keys of the boxes, and key of the class indices (B, 1, \\*spatial), 0 background.
        masks: which masks the loss sees. ``"none"`` (default): none, the label is there only to make boxes from.
            ``"labelled"``: those of images whose flag ``has_mask_key`` is true, for training on boxes and some masks.
            ``"all"``: all, for full supervision or pseudo labels.
        classes: number of class channels C of the network; the number v of a label is the channel v - 1.
        mask_key: key of masks that have the shape (B, C, \\*spatial) already, above 0 in the object, to take instead of
            the class indices: filled boxes or pseudo labels.
        has_boxes_key: key of the flags of images that have been searched for objects.
        has_mask_key: key of the flags of images whose mask may be used.

    Raises:
        KeyError: if the batch lacks the image, the label that masks shall come from, the flags that tell which of them
            are masks, or anything to learn from.
        ValueError: if ``masks`` is unknown or ``classes`` is not above 0; if a label has more classes, or the shape of
            a part does not fit the image.

    Notes:
        An image that :py:class:`~monai_labelfx.transforms.FillMissingLabeld` gave an empty label (a false flag
        ``has_<label_key>``, or ``has_<mask_key>``) never counts as one with a mask.

    Example:
        >>> import torch
        >>> boxes = {"label_boxes": torch.tensor([[[2.0, 1.0, 6.0, 5.0]]]), "label_box_labels": torch.tensor([[0]])}
        >>> image, target = BoxTightnessPrepareBatch()({"image": torch.zeros(1, 1, 8, 8), **boxes})
        >>> sorted(target), target["has_boxes"].tolist()
        (['boxes', 'has_boxes', 'image', 'labels'], [True])
    """

    def __init__(
        self,
        image_key: str = "image",
        *,
        label_key: str = "label",
        masks: str = "none",
        classes: int = 1,
        mask_key: str | None = None,
        has_boxes_key: str = "has_boxes",
        has_mask_key: str = "has_mask",
    ) -> None:
        if masks not in _MODES:
            raise ValueError(f"masks must be one of {', '.join(map(repr, _MODES))}, got {masks!r}.")
        if classes < 1:
            raise ValueError(f"classes must be the number of class channels, 1 or above, got {classes}.")
        self.image_key = image_key
        self.label_key = label_key
        self.masks = masks
        self.classes = classes
        self.mask_key = mask_key
        self.has_boxes_key = has_boxes_key
        self.has_mask_key = has_mask_key

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return the image and the mapping of targets; ``kwargs`` go to ``Tensor.to`` of the image."""
        if self.image_key not in batchdata:
            raise KeyError(f"the batch has no {self.image_key!r}; it has {sorted(map(str, batchdata))}.")
        to: dict[str, Any] = {"device": device, "non_blocking": non_blocking}
        image = _plain(batchdata[self.image_key]).to(**to, **kwargs)
        target = self._boxes(batchdata, len(image))
        if self.masks != "none":
            masks, flags = self._masks(batchdata, image.shape)
            target["masks"], target["has_masks"] = masks.to(**to), flags
        elif "labels" not in target:
            keys = f"{self.label_key}_bags or {self.label_key}_boxes"
            raise KeyError(f"the batch has no {keys}, nor may it use masks; it has {sorted(map(str, batchdata))}.")
        ignore = batchdata.get(f"{self.label_key}_box_ignore")
        if ignore is not None:
            target["ignore"] = _fitting(f"{self.label_key}_box_ignore", _plain(ignore), image.shape).bool().to(**to)
        spacing = self._spacing(batchdata, image.shape)
        if spacing is not None:
            target["spacing"] = spacing
        target["image"] = image
        return image, target

    def _boxes(self, batchdata: Mapping[str, Any], batch: int) -> dict[str, Any]:
        """The parts about boxes; those that the batch has."""
        name = "bags" if batchdata.get(f"{self.label_key}_bags") is not None else "boxes"
        rows = batchdata.get(f"{self.label_key}_{name}")
        flags = batchdata.get(self.has_boxes_key)
        if rows is None:
            return {"has_boxes": torch.zeros(batch, dtype=torch.bool)}
        labels = batchdata.get(f"{self.label_key}_box_labels")
        if labels is None:
            raise KeyError(f"the batch has {self.label_key}_{name} but no {self.label_key}_box_labels.")
        known = torch.ones(batch, dtype=torch.bool) if flags is None else _flags(self.has_boxes_key, flags, batch)
        parts = {name: _each(rows), "labels": _each(labels), "has_boxes": known}
        sides = batchdata.get(f"{self.label_key}_tight_sides")
        if sides is not None:
            parts["tight_sides"] = _each(sides)
        return parts

    def _masks(self, batchdata: Mapping[str, Any], shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks (B, C, \\*spatial), empty where they must not be seen, and the flags (B,)."""
        key = self.mask_key or self.label_key
        if batchdata.get(key) is None:
            raise KeyError(f"masks={self.masks!r} needs {key!r}; the batch has {sorted(map(str, batchdata))}.")
        masks = _fitting(key, _plain(batchdata[key]), shape)
        usable = torch.ones(shape[0], dtype=torch.bool)
        if self.masks == "labelled":
            if batchdata.get(self.has_mask_key) is None:
                raise KeyError(f"masks='labelled' needs the flags {self.has_mask_key!r}, and the batch has none.")
            usable = _flags(self.has_mask_key, batchdata[self.has_mask_key], shape[0])
        if batchdata.get(f"has_{key}") is not None:
            usable = usable & _flags(f"has_{key}", batchdata[f"has_{key}"], shape[0])
        if self.mask_key is None:
            masks = self._channels(masks)
        hidden = ~usable.to(masks.device).view(-1, *[1] * (masks.ndim - 1))
        return masks.masked_fill(hidden, 0), usable

    def _channels(self, label: torch.Tensor) -> torch.Tensor:
        """Class indices (B, 1, \\*spatial) as uint8 masks (B, C, \\*spatial)."""
        highest = int(label.max()) if label.numel() else 0
        if label.shape[1] != 1 or highest > self.classes:
            raise ValueError(
                f"{self.label_key!r} must hold class indices (B, 1, *spatial) from 0 to classes={self.classes}, "
                f"got shape {tuple(label.shape)} and numbers up to {highest}."
            )
        values = torch.arange(1, self.classes + 1, device=label.device).view(1, -1, *[1] * (label.ndim - 2))
        return (label == values).to(torch.uint8)

    def _spacing(self, batchdata: Mapping[str, Any], shape: torch.Size) -> torch.Tensor | None:
        """Voxel sizes (B, D), if they are known."""
        key, wanted = f"{self.image_key}_spacing", (shape[0], len(shape) - 2)
        image = batchdata[self.image_key]
        if batchdata.get(key) is not None:
            spacing = _plain(batchdata[key]).to(torch.float32)
        elif isinstance(image, MetaTensor):
            sizes = image.pixdim if image.is_batch else [image.pixdim] * shape[0]
            spacing = torch.stack([torch.as_tensor(size)[: wanted[1]] for size in sizes]).to(torch.float32)
        else:
            return None
        if spacing.shape != wanted:
            raise ValueError(f"{key!r} must hold voxel sizes (B, D) = {wanted}, got shape {tuple(spacing.shape)}.")
        return spacing


def _plain(value: Any) -> torch.Tensor:
    return value.as_tensor() if isinstance(value, MetaTensor) else torch.as_tensor(value)


def _each(value: Any) -> Any:
    """A padded part as a plain tensor, a list of parts as a list of these; ``None`` stays."""
    if isinstance(value, (list, tuple)):
        return [None if one is None else _plain(one) for one in value]
    return _plain(value)


def _flags(key: str, value: Any, batch: int) -> torch.Tensor:
    flags = _plain(value).reshape(-1).bool()
    if len(flags) != batch:
        raise ValueError(f"{key!r} must hold one flag for each of the {batch} images, found {len(flags)}.")
    return flags.cpu()


def _fitting(key: str, value: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    if value.ndim != len(shape) or value.shape[0] != shape[0] or value.shape[2:] != shape[2:]:
        raise ValueError(f"{key!r} has shape {tuple(value.shape)}, which does not fit the image's {tuple(shape)}.")
    return value
