# SPDX-License-Identifier: Apache-2.0
"""A small synthetic data set for detectors: solid and hollow objects in 2-D and 3-D, with boxes and instance masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from monai_labelfx.data._blob_image import _smooth
from monai_labelfx.data.class_names import class_names_note
from monai_labelfx.data.datalist import save_datalist
from monai_labelfx.data.prepare._volumes import save_volume
from monai_labelfx.ops.components import component_boxes

__all__ = ["solids_and_shells"]

_SPLITS = ("training", "validation", "test")
_CLASSES = ("solid", "shell")
_SIZE = {2: 128, 3: 48}
_SIDES = {2: (14.0, 44.0), 3: (10.0, 22.0)}  # mean side, in voxels of the default size
_MOST = {2: 6, 3: 5}  # objects in an image
_WALL = 2  # voxels, at least; a seventh of the shortest side where that is more
_TRIES = 40  # places to try before an object is left out
_WINDOW = (-1.5, 2.5)  # what becomes 0 and 255 in a picture


def solids_and_shells(
    destination: str | Path,
    *,
    spatial_dims: int = 2,
    counts: Sequence[int] = (64, 16, 32),
    size: int | None = None,
    empty: float = 0.15,
    background: float = 0.25,
    noise: float = 0.25,
    pictures: bool = False,
    seed: int = 0,
    test_seed: int = 0,
) -> Path:
    r"""Synthetic images of blocks and ellipsoids, of which class 0 is filled and class 1 hollow.

    Both classes have both outlines, all sizes (a mean side of 14 to 44 voxels in 2-D, 10 to 22 in 3-D, log-uniform) and
    the same brightness, so a detector must look at what is inside, as with a nodule and a cavity. An image has up to 6
    objects (5 in 3-D). They may touch, and their boxes may overlap, but none lies in another. The image is the objects
    (0.7 to 1.3, blurred by half a voxel), a smooth background and white noise.

    Args:
        destination: folder to write into.
        spatial_dims: 2 or 3.
        counts: training, validation and test images.
        size: length of each axis in voxels, at least half the default, with objects in proportion; None: 128 in 2-D, 48
            in 3-D.
        empty: share of the images without object.
        background: standard deviation of the smooth background.
        noise: standard deviation of the white noise.
        pictures: write 8-bit PNG (2-D only) instead of NIfTI.
        seed: draws the training and validation images.
        test_seed: draws the test images, so that they do not change with ``seed``.

    Returns:
        Path of ``datalist.json``: ``image`` (float32), ``label`` (each object has its number, 1 to N, and a hollow one
        is hollow), ``box`` (the tight box of each number, in their order), ``box_label`` and ``subject``, the name of
        the image; the classes are named under "class_names". Image n of a split is the same whatever ``counts``.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> import tempfile
        >>> from monai_labelfx.data import load_datalist
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     item = load_datalist(solids_and_shells(folder, counts=(1, 0, 0)))["training"][0]
        >>> len(item["box"]) == len(item["box_label"]), sorted(item)
        (True, ['box', 'box_label', 'image', 'label', 'subject'])
    """
    if spatial_dims not in _SIZE or (pictures and spatial_dims != 2):
        raise ValueError(f"spatial_dims must be 2 or 3, and 2 for pictures, got {spatial_dims}")
    size = _SIZE[spatial_dims] if size is None else size
    if size < _SIZE[spatial_dims] // 2:
        raise ValueError(f"size must be at least {_SIZE[spatial_dims] // 2} voxels, got {size}")
    if not 0 <= empty <= 1 or not min(background, noise) >= 0 or len(counts) != 3 or min(counts) < 0:
        raise ValueError(
            "expected a share empty of 0 to 1, background and noise of at least 0 and three counts, got "
            f"{empty}, {background}, {noise} and {tuple(counts)}"
        )
    folder = Path(destination).absolute()
    splits: dict[str, list[dict[str, Any]]] = {}
    for number, (split, count) in enumerate(zip(_SPLITS, counts, strict=True)):
        for index in range(count):
            generator = np.random.default_rng([test_seed if split == "test" else seed, number, index])
            image, label, classes = shape_image(generator, (size,) * spatial_dims, empty, background, noise)
            item = _write(folder, f"{split}_{index:03d}", image, label, pictures)
            boxes = component_boxes(torch.from_numpy(label.astype(np.int64)), instances=True)[0].tolist()
            splits.setdefault(split, []).append(item | {"box": boxes, "box_label": classes})
    notes = {"name": "solids and shells", "seed": seed, "test_seed": test_seed} | class_names_note(_CLASSES)
    return save_datalist(folder / "datalist.json", splits, notes=notes)


def shape_image(
    generator: np.random.Generator, shape: tuple[int, ...], empty: float, background: float, noise: float
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Image (float32), instance map (uint8) and the class of each number 1 to N."""
    ndim, scale = len(shape), shape[0] / _SIZE[len(shape)]
    label, filled = np.zeros(shape, np.uint8), np.zeros(shape, bool)
    clean, classes = np.zeros(shape, np.float32), []
    number = 0 if generator.random() < empty else int(generator.integers(1, _MOST[ndim] + 1))
    for _ in range(number):
        sides = _sides(generator, ndim, scale)
        block, hollow, brightness = generator.random() < 0.5, generator.random() < 0.5, generator.uniform(0.7, 1.3)
        outline = _outline(sides, block)
        wall = max(_WALL, round(min(sides) / 7))
        inside = np.zeros_like(outline)
        inside[(slice(wall, -wall),) * ndim] = _outline([side - 2 * wall for side in sides], block)
        place = _free_place(generator, filled, outline)
        if place is None:
            continue
        classes.append(int(hollow))
        filled[place] |= outline
        body = outline & ~inside if hollow else outline
        label[place][body] = len(classes)
        clean[place][body] = brightness
    field = background * _smooth(generator, shape, 0.15) + generator.normal(0, noise, shape)
    return (ndimage.gaussian_filter(clean, 0.5) + field).astype(np.float32), label, classes


def _sides(generator: np.random.Generator, ndim: int, scale: float) -> list[int]:
    """The sides of an object in voxels."""
    low, high = _SIDES[ndim]
    mean = scale * np.exp(generator.uniform(np.log(low), np.log(high)))
    return [max(2 * _WALL + 3, round(mean * factor)) for factor in generator.uniform(0.75, 1.3, ndim)]


def _outline(sides: Sequence[int], block: bool) -> np.ndarray:
    """A filled block or ellipsoid that touches every side of its array."""
    if block:
        return np.ones(tuple(sides), bool)
    axes = [(np.arange(side) + 0.5) / side * 2 - 1 for side in sides]
    return np.sum(np.square(np.meshgrid(*axes, indexing="ij")), axis=0) <= 1


def _free_place(generator: np.random.Generator, filled: np.ndarray, outline: np.ndarray) -> tuple[slice, ...] | None:
    """Where the outline meets no other; None when it was not found."""
    for _ in range(_TRIES):
        corner = [
            generator.integers(0, size - side + 1) for size, side in zip(filled.shape, outline.shape, strict=True)
        ]
        place = tuple(slice(int(low), int(low) + side) for low, side in zip(corner, outline.shape, strict=True))
        if not (filled[place] & outline).any():
            return place
    return None


def _write(folder: Path, name: str, image: np.ndarray, label: np.ndarray, pictures: bool) -> dict[str, str]:
    suffix = "png" if pictures else "nii.gz"
    item = {key: str(folder / key / f"{name}.{suffix}") for key in ("image", "label")}
    if pictures:
        from PIL import Image

        low, high = _WINDOW
        grey = np.rint((image.clip(low, high) - low) * (255 / (high - low))).astype(np.uint8)
        for path, array in zip(item.values(), (grey, label), strict=True):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(array.T)).save(path)  # x is the first axis here, and runs along a row
    else:
        save_volume(Path(item["image"]), image, np.eye(4))
        save_volume(Path(item["label"]), label, np.eye(4))
    return item | {"subject": name}
