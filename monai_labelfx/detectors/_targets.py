# SPDX-License-Identifier: Apache-2.0
"""What callers hand to a detector, checked once: images as a batch, boxes padded, useless ones dropped."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad

from monai_labelfx.ops.box_affine import masks_to_boxes


class Targets(NamedTuple):
    """The objects of a batch, padded to the image with most of them (at least one row).

    - ``boxes``: (B, N, 2 * spatial_dims) float32, inside their images; zeros where ``valid`` is false.
    - ``labels``: (B, N) int64; -1 where ``valid`` is false.
    - ``valid``: (B, N) bool.
    - ``masks``: for each image (n, \\*spatial) bool in the order of its valid boxes, or ``None``.
    """

    boxes: torch.Tensor
    labels: torch.Tensor
    valid: torch.Tensor
    masks: list[torch.Tensor] | None


def batch_images(
    images: torch.Tensor | Sequence[torch.Tensor], spatial_dims: int, in_channels: int
) -> tuple[torch.Tensor, list[tuple[int, ...]]]:
    """One (B, C, \\*spatial) tensor, smaller images padded with zeros at their high ends, and the size of each."""
    if isinstance(images, torch.Tensor):
        if images.ndim != spatial_dims + 2 or images.shape[1] != in_channels:
            raise ValueError(_wrong_image("images", (f"B, {in_channels}", spatial_dims), tuple(images.shape)))
        batch, sizes = images.as_subclass(torch.Tensor), [tuple(images.shape[2:])] * len(images)
    else:
        for number, image in enumerate(images):
            if image.ndim != spatial_dims + 1 or image.shape[0] != in_channels:
                raise ValueError(_wrong_image(f"image {number}", (f"{in_channels}", spatial_dims), tuple(image.shape)))
        plain = [image.as_subclass(torch.Tensor) for image in images]
        sizes = [tuple(image.shape[1:]) for image in plain]
        largest = [max(size[axis] for size in sizes) for axis in range(spatial_dims)] if sizes else []
        batch = torch.stack([pad(image, _to_size(image.shape[1:], largest)) for image in plain]) if plain else images  # type: ignore[assignment]
    if not sizes:
        raise ValueError("images is empty, expected at least one image")
    if not batch.is_floating_point():
        raise TypeError(f"images must be floating point, got {batch.dtype}")
    return batch, sizes


def _to_size(size: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Padding of torch.nn.functional.pad: last axis first, low and high."""
    return [n for own, target in zip(reversed(size), reversed(wanted), strict=True) for n in (0, target - own)]


def _wrong_image(name: str, wanted: tuple[str, int], found: tuple[int, ...]) -> str:
    axes = ", ".join(f"axis {axis}" for axis in range(wanted[1]))
    return f"{name} must have shape ({wanted[0]}, {axes}), got {found}"


def image_names(images: torch.Tensor | Sequence[torch.Tensor]) -> list[str]:
    """What warnings call each image: the stem of its file where its meta data know one, else its place in the batch."""
    names = []
    for number in range(len(images)):
        # indexing a batch gives each image its own meta data
        path = getattr(images[number], "meta", {}).get("filename_or_obj")
        names.append(os.path.basename(str(path)) if isinstance(path, str) and path else f"image {number} of the batch")
    return names


def check_targets(
    targets: Sequence[Mapping[str, Any]],
    sizes: Sequence[tuple[int, ...]],
    names: Sequence[str],
    *,
    num_classes: int,
    class_agnostic: bool,
    box_key: str,
    label_key: str,
    needs_masks: bool,
    device: torch.device,
) -> Targets:
    """Boxes and labels of a batch on one device; the callers' mappings and tensors stay as they are.

    A box that covers nothing of its image (no extent, inverted, outside) is dropped with one warning for each image;
    where masks are needed, one whose mask has no voxel too.

    Raises:
        ValueError: for a missing key, a wrong shape, a number that is not finite, a label beyond the classes, or masks
            that are not those of their boxes.
    """
    if len(targets) != len(sizes):
        raise ValueError(f"targets must have one entry for each of the {len(sizes)} images, got {len(targets)}")
    rows = [
        _one(target, size, name, num_classes, class_agnostic, (box_key, label_key), needs_masks, device)
        for target, size, name in zip(targets, sizes, names, strict=True)
    ]
    most = max(1, *(len(boxes) for boxes, _, _ in rows))
    boxes = torch.stack([pad(boxes, (0, 0, 0, most - len(boxes))) for boxes, _, _ in rows])
    labels = torch.stack([pad(labels, (0, most - len(labels)), value=-1) for _, labels, _ in rows])
    masks = [masks for _, _, masks in rows if masks is not None]
    return Targets(boxes, labels, labels >= 0, masks if needs_masks else None)


def _one(
    target: Mapping[str, Any],
    size: tuple[int, ...],
    name: str,
    num_classes: int,
    class_agnostic: bool,
    keys: tuple[str, str],
    needs_masks: bool,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    for key in (*keys, "masks")[: 3 if needs_masks else 2]:
        if key not in target:
            raise ValueError(f"the target of {name} has no {key!r}, found {sorted(map(str, target))}")
    axes = len(size)
    boxes = _plain(target[keys[0]]).to(device, torch.float32)
    labels = _plain(target[keys[1]]).to(device)
    if boxes.numel() == 0 and labels.numel() == 0:  # torch.tensor([]) is how callers write "no boxes"
        boxes, labels = boxes.reshape(0, 2 * axes), labels.reshape(0).long()
    if boxes.ndim != 2 or boxes.shape[1] != 2 * axes or labels.shape != boxes.shape[:1]:
        raise ValueError(
            f"the target of {name} must have {keys[0]} (N, {2 * axes}) and {keys[1]} (N,), "
            f"got {tuple(boxes.shape)} and {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"{keys[1]} of {name} must be whole numbers, got {labels.dtype}")
    labels = labels.long()
    masks = as_masks(target["masks"], (len(boxes), *size), name).to(device) if needs_masks else None
    edges = boxes.new_tensor(size)
    low, high = boxes.split(axes, dim=1)
    clipped = torch.cat([low.clamp(min=0), torch.minimum(high, edges)], dim=1)
    keep = (clipped[:, axes:] > clipped[:, :axes]).all(dim=1) & (high > low).all(dim=1)
    low_label, high_label = (0, num_classes - 1) if not class_agnostic else (0, torch.iinfo(torch.int64).max)
    faults = (
        torch.stack([~boxes.isfinite().all(dim=1), (labels < low_label) | (labels > high_label), ~keep])
        .sum(dim=1)
        .tolist()
    )  # one wait for the device instead of three
    if faults[0]:
        raise ValueError(f"{keys[0]} of {name} hold {faults[0]} box(es) with numbers that are not finite")
    if faults[1]:
        raise ValueError(
            f"{keys[1]} of {name} must be class numbers 0 to {num_classes - 1}, "
            f"got {labels.min().item()} to {labels.max().item()}"
        )
    if faults[2]:
        warnings.warn(f"{faults[2]} of {len(boxes)} boxes of {name} cover nothing of it and were dropped", stacklevel=4)
        clipped, labels = clipped[keep], labels[keep]
        masks = None if masks is None else masks[keep]
    if masks is not None and len(masks):
        found = masks_with_voxels(masks, clipped, name)
        clipped, labels, masks = clipped[found], labels[found], masks[found]
    return clipped, torch.zeros_like(labels) if class_agnostic else labels, masks


def as_masks(value: Any, shape: tuple[int, ...], name: str, what: str = "masks") -> torch.Tensor:
    """Masks (N, \\*spatial) as plain bool: what is not 0, or at least 0.5 in floats, which resampling makes soft.

    Raises:
        ValueError: for another shape, where no masks at all may have any, or for complex numbers.
    """
    masks = _plain(value)
    if not masks.numel() and not shape[0]:  # torch.tensor([]) is how callers write "no masks"
        masks = masks.reshape(shape)
    if tuple(masks.shape) != shape:
        raise ValueError(f"{what} of {name} must have shape {shape}, one mask for each box, got {tuple(masks.shape)}")
    if masks.is_complex():
        raise ValueError(f"{what} of {name} must be bool, whole numbers or floats, got {masks.dtype}")
    if masks.dtype == torch.bool:
        return masks
    return masks >= 0.5 if masks.is_floating_point() else masks != 0


def masks_with_voxels(masks: torch.Tensor, boxes: torch.Tensor, name: str) -> torch.Tensor:
    """Which masks have a voxel, (N,) bool; one warning counts the others, which are to be dropped with their boxes.

    Args:
        masks: (N, \\*spatial) bool.
        boxes: (N, 2 * spatial_dims), cut at the image.
        name: what to call the image.

    Raises:
        ValueError: for a mask whose tight box has nothing in common with its box. (Boxes may be looser than masks, or
            cut another way, but they are of one object.)
    """
    tight = masks_to_boxes(masks)
    axes = masks.ndim - 1
    common = torch.minimum(tight[:, axes:], boxes[:, axes:]) > torch.maximum(tight[:, :axes], boxes[:, :axes])
    solid = (boxes[:, axes:] > boxes[:, :axes]).all(dim=1)
    found = tight[:, axes] > 0
    apart = found & solid & ~common.all(dim=1)
    empty, strange = torch.stack([~found, apart]).sum(dim=1).tolist()  # one wait for the device
    if strange:
        row = int(apart.to(torch.uint8).argmax())
        raise ValueError(
            f"masks of {name} must be those of its boxes, row by row, got box {boxes[row].tolist()} for mask {row}, "
            f"which lies in {tight[row].tolist()}"
        )
    if empty:
        warnings.warn(
            f"{empty} of {len(masks)} masks of {name} have no voxel and were dropped with their boxes", stacklevel=5
        )
    return found


def _plain(value: Any) -> torch.Tensor:
    return torch.as_tensor(value).detach().as_subclass(torch.Tensor)
