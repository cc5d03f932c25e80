# SPDX-License-Identifier: Apache-2.0
"""Do the pictures of a datalist go together, and with their masks? Asked before the first training step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data.utils import is_no_channel

from monai_labelfx.data._picture_facts import PictureFacts, picture_facts
from monai_labelfx.data.auto_reader import AutoReader
from monai_labelfx.transforms.colours_to_classes import ColoursToClasses

__all__ = ["check_histology"]

_GROUPS = ("patient", "slide")
_Splits = Mapping[str, Sequence[Mapping[str, Any]]]


def check_histology(
    splits: _Splits,
    *,
    patch: int | Sequence[int] | None = None,
    classes: int | None = None,
    palette: Mapping[str | Sequence[int], int] | None = None,
    ignored: int | None = 255,
    tolerance: float = 0.1,
) -> list[PictureFacts]:
    """Refuse pictures of mixed magnifications, masks that do not fit, and patients in training and validation.

    Refused, with one sentence:

    - a missing or unusable file;
    - two pictures whose pixel sizes, or whose magnifications, differ by more than ``tolerance``. These are the items'
      ``mpp`` (micrometres per pixel) and ``magnification`` (of the objective), else what PNG, TIFF and Aperio files
      say; a file that says nothing, or a print resolution (above 25 um per pixel), fits to all;
    - a mask (``label``) of another size than its image; one with colours, without a palette, or with others than those
      of the palette; one with values that are no classes;
    - a ``patient`` or ``slide`` in training and in validation.

    A warning is given for a patient in the test and elsewhere, as in GlaS, whose authors split it so, and for images
    smaller than a patch: their patches are as large as the image, and padded by reflection where a network needs more.

    Of images only headers are read, so that this is fast for whole slides; masks are read. What is wrong with single
    files, :py:func:`check_datalist` finds.

    Args:
        splits: as :py:func:`load_datalist` gives them.
        patch: pixels of a patch, one number or one per axis; None: not checked.
        classes: number of classes K; masks may then hold 0 to K - 1 and ``ignored``.
        palette: of :py:class:`~monai_labelfx.transforms.ColoursToClasses`, where classes are colours.
        ignored: value of masks that stands for no class; None: there is none.
        tolerance: share by which the largest pixel size may exceed the smallest. Default 0.1.

    Returns:
        The facts of each image, in the order of the splits.

    Raises:
        FileNotFoundError: no such file.
        ValueError: what is refused, see above; no item at all; a tolerance below 0.

    Example:
        >>> import tempfile
        >>> from monai_labelfx.data import load_datalist
        >>> from monai_labelfx.data.gland_samples import synthetic_glands
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     splits = load_datalist(synthetic_glands(folder, counts=(1, 1, 0), size=64))
        ...     splits["validation"][0]["mpp"] = 0.25
        ...     check_histology(splits, patch=32, classes=2)
        Traceback (most recent call last):
        ValueError: image '...training_000.png' has 0.62 um per pixel and image '...validation_000.png' 0.25, ...
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be 0 or above, got {tolerance}")
    items = [item for part in splits.values() for item in part]
    if not items:
        raise ValueError("there is no item to check, expected at least one in training")
    _check_groups(splits)
    facts = [picture_facts(item) for item in items]
    _check_alike(facts, "um per pixel", lambda one: one.micrometres, tolerance)
    _check_alike(facts, "as magnification", lambda one: one.magnification, tolerance)
    colours = None if palette is None else ColoursToClasses(palette)
    allowed = None if classes is None else [*range(classes), *([] if ignored is None else [ignored])]
    for item, image in zip(items, facts, strict=True):
        if "label" in item:
            _check_mask(item, image, colours, allowed)
    if patch is not None:
        _check_patch(facts, patch)
    return facts


def _check_groups(splits: _Splits) -> None:
    for word in _GROUPS:
        found = {
            split: {str(item[word]): None for item in part if item.get(word) is not None}
            for split, part in splits.items()
        }
        both = [name for name in found.get("training", {}) if name in found.get("validation", {})]
        if both:
            raise ValueError(
                f"{word} {both[0]!r} has images in training and in validation (so have {len(both) - 1} more), expected "
                f"validation by {word}: move its items to one side"
            )
        seen = [
            name for name in found.get("test", {}) if any(name in found.get(s, {}) for s in ("training", "validation"))
        ]
        if seen:
            warnings.warn(
                f"{len(seen)} of {len(found['test'])} {word}s of the test, such as {seen[0]!r}, also have images in "
                "training or validation: the test does not show how well it works for others",
                stacklevel=3,
            )


def _check_alike(
    facts: Sequence[PictureFacts], what: str, of: Callable[[PictureFacts], float | None], tolerance: float
) -> None:
    known = [(value, one.name) for one in facts if (value := of(one)) is not None]
    if not known:
        return
    (low, fine), (high, coarse) = min(known), max(known)
    if high > low * (1 + tolerance) * (1 + 1e-9):
        raise ValueError(
            f"image {coarse!r} has {high:.4g} {what} and image {fine!r} {low:.4g}, more than {tolerance:.0%} apart, "
            "expected one magnification: resample the images, or leave some out"
        )


def _check_mask(
    item: Mapping[str, Any], image: PictureFacts, colours: ColoursToClasses | None, allowed: Sequence[int] | None
) -> None:
    mask = picture_facts({"image": item["label"]})
    if mask.shape != image.shape:
        raise ValueError(f"mask {mask.name!r} has {mask.shape} pixels, but its image {image.name!r} has {image.shape}")
    values = _read(item["label"])
    if colours is not None:
        try:
            values = np.asarray(colours(torch.as_tensor(values.astype(np.float64))))
        except ValueError as error:
            raise ValueError(f"mask {mask.name!r}: {error}") from error
    elif len(values) > 1 and not (values[: 3 if len(values) > 2 else 1] == values[:1]).all():
        raise ValueError(
            f"mask {mask.name!r} has {len(values)} channels that differ, expected one of class numbers: name its "
            "colours in a palette"
        )
    else:
        values = values[:1]
    if allowed is not None:
        found, counts = np.unique(values, return_counts=True)
        strange = ~np.isin(found, allowed)
        if strange.any():
            raise ValueError(
                f"mask {mask.name!r} holds the value {found[strange][0]:g} at {counts[strange][0]} pixels, expected "
                f"only {', '.join(map(str, allowed))}"
            )


def _read(path: Any) -> np.ndarray:
    """Channels first."""
    reader = AutoReader()
    array, meta = reader.get_data(reader.read(path))
    channel = meta.get("original_channel_dim", np.nan)
    return array[None] if is_no_channel(channel) else np.moveaxis(array, int(channel), 0)


def _check_patch(facts: Sequence[PictureFacts], patch: int | Sequence[int]) -> None:
    def size(one: PictureFacts) -> tuple[int, ...]:
        return (patch,) * len(one.shape) if isinstance(patch, int) else tuple(patch)

    for one in facts:
        if len(size(one)) != len(one.shape) or min(size(one)) < 1:
            raise ValueError(f"patch is {patch}, but image {one.name!r} has {len(one.shape)} axes, {one.shape}")
    small = [one for one in facts if any(n < p for n, p in zip(one.shape, size(one), strict=True))]
    if small:
        warnings.warn(
            f"{len(small)} of {len(facts)} images are smaller than a patch of {patch} pixels (first {small[0].name!r} "
            f"with {small[0].shape}): their patches are cut to the image and padded by reflection",
            stacklevel=3,
        )
