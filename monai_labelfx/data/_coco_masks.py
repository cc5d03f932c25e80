# SPDX-License-Identifier: Apache-2.0
"""Masks of objects as COCO's run lengths: from whatever an annotation has, and from what a detector found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.utils import convert_data_type

from monai_labelfx.data.polygon_masks import polygons_to_mask
from monai_labelfx.ops.run_length import decode_run_lengths, encode_run_lengths

_MOST = 2**31  # pixels of a picture


def read_segmentation(
    annotation: Mapping[str, Any], size: Sequence[int] | None, where: str
) -> tuple[dict[str, Any], list[int] | None]:
    """Run lengths of the ``segmentation`` of an annotation, and the tight box of its pixels (``None``: there are none).

    Args:
        annotation: with polygons, counts, or counts as a text.
        size: (x, y) of the image.
        where: what the annotation is called in errors.

    Raises:
        ValueError: there is none, it is of another size than the image, or it cannot be read.
    """
    if size is None or min(size) < 1 or size[0] * size[1] > _MOST:
        raise ValueError(f"masks need the width and height of the image of {where}, found {size}")
    value = annotation.get("segmentation")
    if not value:
        raise ValueError(f"{where} has no segmentation, and masks=True needs one in each annotation")
    if isinstance(value, Mapping):
        mask = decoded(value, size, f"segmentation of {where}")
    elif isinstance(value, list):
        try:
            mask = polygons_to_mask(value, size)
        except ValueError as error:
            raise ValueError(f"segmentation of {where}: {error}") from error
    else:
        raise ValueError(f"segmentation of {where} must be polygons or run lengths, found {_short(value)}")
    (lengths,) = encode_run_lengths(torch.from_numpy(mask)[None])
    return lengths, tight_box(mask)


def decoded(lengths: Any, size: Sequence[int] | None, where: str) -> np.ndarray:
    """Bool mask (x, y) of run lengths that must be of an image of ``size`` (x, y); ``None``: of any."""
    if not _is_run_lengths(lengths):
        raise ValueError(f"{where} must be run lengths with size [height, width] and counts, found {_short(lengths)}")
    height, width = lengths["size"]
    if size is not None and (width, height) != tuple(size):
        raise ValueError(f"{where} has the size [height, width] {[height, width]}, but the image {[*size][::-1]}")
    try:
        return decode_run_lengths([dict(lengths)])[0].numpy()
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{where}: {str(error).removesuffix('.')}") from error


def _is_run_lengths(value: Any) -> bool:
    """Whether these may be run lengths of a picture, of which only the runs themselves are still to be checked."""
    size, counts = (value.get("size"), value.get("counts")) if isinstance(value, Mapping) else (None, None)
    if not isinstance(size, (list, tuple)) or len(size) != 2 or not all(type(one) is int for one in size):
        return False
    listed = isinstance(counts, list) and all(type(one) is int for one in counts)
    return (listed or isinstance(counts, str)) and min(size) >= 1 and size[0] * size[1] <= _MOST


def tight_box(mask: np.ndarray) -> list[int] | None:
    """Low corner, then high corner, half open, of the voxels of a mask; ``None``: there are none."""
    inside = [mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)) for axis in range(mask.ndim)]
    places = [np.flatnonzero(line) for line in inside]
    if not places[0].size:
        return None
    return [int(line[0]) for line in places] + [int(line[-1]) + 1 for line in places]


def segmentations(
    found: Mapping[str, Any], boxes: np.ndarray, size: Sequence[int] | None, where: str
) -> list[tuple[dict[str, Any], int]] | None:
    """Run lengths and number of pixels of each object of an image; ``None`` where it has no masks.

    Args:
        found: ``segmentation``, a list of run lengths, or ``masks``, an array (N, x, y) or a list of N crops; each crop
            begins at the floor of the low corner of its box.
        boxes: (N, 4).
        size: (x, y) of the image, needed by crops.
        where: what the image is called in errors.
    """
    if found.get("segmentation") is not None:
        listed = list(found["segmentation"])
        _check_number(len(listed), boxes, where, "segmentation")
        names = [f"segmentation {number} of {where}" for number in range(len(listed))]
        masks = (decoded(one, size, name) for one, name in zip(listed, names, strict=True))
        return [(dict(one), int(mask.sum())) for one, mask in zip(listed, masks, strict=True)]
    if found.get("masks") is None:
        return None
    cropped = isinstance(found["masks"], (list, tuple))
    listed = [_bool(mask, where) for mask in found["masks"]] if cropped else list(_bool(found["masks"], where))
    _check_number(len(listed), boxes, where, "masks")
    if cropped and size is None and listed:
        raise ValueError(f"masks of {where} are crops and need the size of the image: give shapes.")
    rows = []
    for mask, corner in zip(listed, np.floor(boxes[:, :2]).astype(np.int64).tolist(), strict=True):
        whole = _pasted(mask, corner, size, where) if cropped and size is not None else mask
        if whole.ndim != 2 or (size is not None and whole.shape != tuple(size)):
            wanted = "(N, x, y)" if size is None else f"(N, {size[0]}, {size[1]})"
            raise ValueError(f"masks of {where} must have the shape {wanted}, got {(len(listed), *whole.shape)}.")
        (lengths,) = encode_run_lengths(torch.from_numpy(whole)[None])
        rows.append((lengths, int(whole.sum())))
    return rows


def _pasted(crop: np.ndarray, corner: Sequence[int], size: Sequence[int], where: str) -> np.ndarray:
    """The mask of the image in which a crop begins at ``corner``, or at 0 where that lies outside."""
    low = [max(one, 0) for one in corner]
    if crop.ndim != 2 or any(a + b > end for a, b, end in zip(low, crop.shape, size, strict=True)):
        raise ValueError(
            f"a crop of {where} has the shape {crop.shape} at {tuple(low)}, which the image of {tuple(size)} lacks."
        )
    whole = np.zeros(tuple(size), bool)
    whole[tuple(slice(a, a + b) for a, b in zip(low, crop.shape, strict=True))] = crop
    return whole


def _bool(mask: Any, where: str) -> np.ndarray:
    array = np.asarray(convert_data_type(mask, np.ndarray)[0])
    if array.dtype.kind not in "biu":
        raise TypeError(f"masks of {where} must be bool or whole numbers, got {array.dtype}.")
    return np.ascontiguousarray(array != 0)


def _check_number(number: int, boxes: np.ndarray, where: str, key: str) -> None:
    if number != len(boxes):
        raise ValueError(f"{key} of {where} must be one for each of {len(boxes)} boxes, got {number}.")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
