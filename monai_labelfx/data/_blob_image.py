# SPDX-License-Identifier: Apache-2.0
"""Draw one synthetic image of a smooth, irregular object in noise, in any number of dimensions."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def blob_image(
    generator: np.random.Generator, shape: tuple[int, ...], second_object: float, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Image (float32) and mask (bool) of one object, or two with the probability ``second_object``."""
    two = generator.random() < second_object
    label = _pair(generator, shape) if two else _blob(generator, shape, (0.16, 0.3))
    background = 0.3 * _smooth(generator, shape, 0.2)
    image = ndimage.gaussian_filter(label.astype(np.float32), 0.5) + background + generator.normal(0, noise, shape)
    return image.astype(np.float32), label


def _pair(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Two objects, both drawn again until they are apart: beside some first ones there is no room for a second."""
    while True:
        first, second = (_blob(generator, shape, radii) for radii in ((0.12, 0.2), (0.08, 0.16)))
        near = ndimage.binary_dilation(first, np.ones((3,) * len(shape)), iterations=2)
        if not (near & second).any():
            return first | second


def _blob(generator: np.random.Generator, shape: tuple[int, ...], radii: tuple[float, float]) -> np.ndarray:
    """One object inside the image: drawn again while it touches the border or is a crumb."""
    axes = len(shape)
    while True:
        turn = np.linalg.qr(generator.normal(size=(axes, axes)))[0]
        radius = generator.uniform(*radii, axes) * shape[0]
        centre = generator.uniform(0.25, 0.75, axes) * shape[0]
        place = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) - centre
        distance = np.linalg.norm(place @ turn / radius, axis=-1)
        mask = ndimage.binary_fill_holes(largest_part(1 - distance + 0.15 * _smooth(generator, shape, 0.06) > 0))
        inner = mask[(slice(1, -1),) * axes]
        if inner.sum() == mask.sum() > (0.2 * radii[0] * shape[0]) ** axes:
            return mask


def _smooth(generator: np.random.Generator, shape: tuple[int, ...], width: float) -> np.ndarray:
    field = ndimage.gaussian_filter(generator.normal(size=shape), width * shape[0], mode="wrap")
    return (field - field.mean()) / field.std()


def largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest component, by neighbours across faces; nothing where the mask is empty."""
    components, _ = ndimage.label(mask)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    return (components == sizes.argmax()) & mask
